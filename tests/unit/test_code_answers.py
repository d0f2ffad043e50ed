"""answers.py: which program counts, and when two values or outputs are the same."""

import time

import pytest

from vpo_lab.tasks.code.answers import program_in, same_output, same_value

ONE, TWO = "```python\na = 1\n```", "```\nb = 2\n```"


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        (f"Here it is.\n{ONE}\nDone.", "a = 1"),
        (f"{ONE}\nor better\n{TWO}", "b = 2"),  # the last one
        (f"{TWO}\n{ONE}", "a = 1"),
        (f"{ONE}\nthen run\n```bash\npython it.py\n```", "a = 1"),  # another language
        (f"{ONE}\n```json\n{{", "a = 1"),
        (f"{ONE}\n```python\nc = 3", "c = 3"),  # not closed: to the end
        ("```python\na = 1\n```python\nb = 2\n```", "b = 2"),  # the first was not closed
        (f"{ONE}\n```python\n```", "a = 1"),  # an empty block is none
        ("```Py\na = 1\n```", "a = 1"),
        ("1. so\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1"),
        ("````python\na = 1\n````", "a = 1"),
        ("def f():\n    return 1", "def f():\n    return 1"),  # no fence
        ("print(1)", "print(1)"),
        ("I cannot do that.", ""),
        ("Sorry", ""),
        ("'text'", ""),
        ("Use ```a = 1``` for it", ""),
        ("```bash\nls\n```", ""),
        ("```python", ""),
        ("", ""),
    ],
)
def test_the_program_that_counts(answer, program):
    assert program_in(answer) == program


@pytest.mark.parametrize(
    "text",
    [
        "```\n" * 40_000,
        "```py\n" * 40_000,
        "`" * 200_000,
        ("```" + " " * 1000 + "`\n") * 200,
        "```" + " " * 200_000 + "`",
        "(" * 20_000,
        "not " * 5_000,
        "f'{" * 6_000,
        "1" + "+1" * 9_900,
        "lambda:" * 2_800,
        "a\n" * 10_000,
        "\0",
        "\ud800",
        "```python\n\ud800\n```",
    ],
)
def test_no_text_raises_or_takes_long(text):
    start = time.process_time()
    program_in(text)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("wanted", "got", "same"),
    [
        ("1", "1", True),
        ("1", "1.0", True),  # as Python's ==
        ("1", "true", False),
        ("true", "1", False),
        ("[true]", "[1]", False),
        ("null", "null", True),
        ("null", "false", False),
        ("0", "null", False),
        ('"1"', "1", False),
        ("[1, [2]]", "[1,[2]]", True),
        ("[1, 2]", "[1]", False),
        ('{"a": [1]}', '{"a": [1.0]}', True),
        ('{"a": 1}', '{"b": 1}', False),
        ("[]", "{}", False),
        ("[]", "null", False),
        ("0.3", "0.30000000000000004", False),
        ("1" + "0" * 400, "1e308", False),
        ("1", None, False),
        ("1", "", False),
        ("1", "[" * 5000, False),
        ("[" * 100 + "]" * 100, "[" * 100 + "]" * 100, True),
        ("1", "9" * 5000, False),
    ],
)
def test_values(wanted, got, same):
    assert same_value(wanted, got) is same


def test_a_tolerance_is_for_floats_only():
    assert same_value("[0.3]", "[0.3000001]", tolerance=1e-6)
    assert not same_value("[0.3]", "[0.31]", tolerance=1e-6)
    assert same_value("2", "2.0000001", tolerance=1e-6)
    assert not same_value("2", "3", tolerance=5)
    assert not same_value("true", "1.0", tolerance=5)


def test_as_a_set_neither_order_nor_number_counts():
    assert same_value("[1, [2, 3]]", "[[2, 3.0], 1, 1]", as_set=True)
    assert not same_value("[1, 2]", "[1, 2, 3]", as_set=True)
    assert not same_value("[1]", "[true]", as_set=True)
    assert not same_value("[1]", "1", as_set=True)


@pytest.mark.parametrize(
    ("wanted", "got", "same"),
    [
        ("1 2\n3\n", "1 2 \n3", True),
        ("1\n2", "1\n2\n\n", True),
        ("1\n2", "1 2", False),
        ("1\n\n2", "1\n2", False),
        ("2.5 3", "2.50 3.0", True),
        ("2.5", "2.5000001", False),
        ("0.1", "1e-1", True),
        ("YES", "yes", False),
        ("a 1", "a 1.0", False),  # only a line of numbers
        ("1000", "1_000", False),
        ("1", "١", False),
        ("", "\n", True),
        ("1", "", False),
        ("1", None, False),
        ("nan", "NaN", False),
        ("1", "1e999999999", False),
    ],
)
def test_printed_output(wanted, got, same):
    assert same_output(wanted, got) is same


def test_a_long_number_with_a_wrong_end_costs_no_time():
    began = time.process_time()
    assert not same_output("1", "1" * 65_000 + "x") and not same_output("1", "1." * 30_000)
    assert same_output("2.50 -.5 1e3", "2.5 -0.5 1000") and same_output("7.", "7")
    assert time.process_time() - began < 1


@pytest.mark.parametrize("tag, counts", [("python3.11", True), ("py", True), ("pycon", False), ("text", False)])
def test_which_languages_count(tag, counts):
    assert bool(program_in(f"```{tag}\nx = 1\n```")) == counts
