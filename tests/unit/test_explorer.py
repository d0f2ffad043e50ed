"""The explorer's data and table, what a notebook saves of it, and the script's arithmetic by node."""

import json
import re
import shutil
import subprocess
from xml.etree import ElementTree

import nbformat
import numpy as np
import pytest
from explorer_arithmetic import check_arithmetic

from vpo_lab.errors import LabError
from vpo_lab.processes import Session
from vpo_lab.show.explorer import SCRIPT, Explorer, explorer_data, make_world, one_line
from vpo_lab.tasks.maze.world import MazeTask, best_paths
from vpo_lab.tasks.tool_calls.tiny import TinyTools
from vpo_lab.tasks.tool_calls.words import short_answer

OBJECTIVES = ("format", "tool_name", "param_name", "param_value")
SETS = {
    "SFT": (["one", "two", "three"], np.array([[1, 0, 0, 0], [0, 1, 1, 1], [0.5, 0.5, 0.5, 0.5]])),
    "GRPO": (["same"] * 3, np.full((3, 4), 0.7)),
}


@pytest.mark.skipif(not shutil.which("node"), reason="no node; tests/browser asks Chromium the same")
def test_arithmetic_is_that_of_python():
    def ask(function: str, argument) -> object:
        code = SCRIPT.read_text(encoding="utf-8")
        names = re.findall(r"^export (?:const|function) (\w+)", code, re.MULTILINE)
        code += f"\nconsole.log(JSON.stringify(({function})({{ {', '.join(names)} }}, {json.dumps(argument)})));"
        run = subprocess.run(["node", "--input-type=module"], input=code, capture_output=True, text=True, check=True)
        return json.loads(run.stdout)

    check_arithmetic(ask)


# --- The table ----------------------------------------------------------------------------------


def test_the_winner_is_marked_and_ties_are_called_ties():
    sft, grpo = Explorer(SETS, OBJECTIVES).html.split("</table>")[:2]
    assert sft.count("★") == 1 and sft.index("★") < sft.index("two") and "tie" not in sft
    assert grpo.count("★ tie") == 3 and "expected utility (EUM) 0.700" in Explorer(SETS, OBJECTIVES).html


def test_an_answer_that_earns_nothing_has_no_star_and_the_start_is_said():
    html = Explorer({"one": (["a", "b"], np.eye(2)), "none": (["c"], np.zeros((1, 2)))}, ("x", "y"), start="y").html
    assert "All weight on y" in html and html.count("★") == 1 and html.index("★") < html.index("<td>b</td>")
    assert html.index("<td>a</td>") < html.index("★")


def test_what_is_not_asked_is_a_dash_and_has_no_weight():
    ragged = np.array([[1, np.nan, 0.5], [0, np.nan, 1]])
    explorer = Explorer({"VPO": (["a", "b"], ragged)}, ("x", "y", "z"))
    assert explorer.html.count("<td>–</td>") == 2 and "best w·r <b>0.750</b>" in explorer.html
    assert "NaN" not in json.dumps(explorer.data)


def test_model_text_cannot_become_markup():
    attack = "<script>alert(1)</script> & <img src=x onerror='y'>"
    explorer = Explorer({attack: ([attack], np.ones((1, 2)))}, (attack, "b"), [attack])
    assert "<script" not in explorer.html and "<img" not in explorer.html
    assert explorer.html.count("&lt;script&gt;") == 4  # title, set, answer, objective


def test_any_text_is_one_line_that_can_be_sent():
    assert one_line("plain \n text") == "plain text" and one_line(" \n") == "(no answer)"
    assert len(one_line("x" * 1000, limit=20)) == 20
    assert one_line("half \ud83d, whole \U0001f600") == "half \ufffd, whole \U0001f600"


class Task:
    about, picture_key = "two numbers", "a key"

    def __init__(self):
        self.meanings = {"a": "what a means"}

    def short(self, answer: str) -> str:
        return answer.upper()

    def picture(self, gold: str, answers: list[str]) -> str:
        return f"<svg>{gold}{len(answers)}</svg>"


def test_a_task_lends_its_words_and_pictures():
    sets = {"VPO": (["x", "y"], np.eye(2))}
    world = make_world([sets, sets], ("a", "b"), task=Task(), rows=[{"id": "1", "gold": "g"}, {"id": "2", "gold": "h"}])
    assert [request["title"] for request in world["requests"]] == ["1", "2"]
    assert world["meanings"] == ["what a means", ""] and world["about"] == Task.about and world["key"] == "a key"
    assert [request["sets"][0]["picture"] for request in world["requests"]] == ["<svg>g2</svg>", "<svg>h2</svg>"]
    assert world["requests"][0]["sets"][0]["answers"] == ["X", "Y"]
    assert explorer_data([world])["utility_weights"].keys() == {"2"}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Explorer([], OBJECTIVES),
        lambda: Explorer(SETS, []),
        lambda: Explorer(SETS, OBJECTIVES, ["one", "two"]),
        lambda: Explorer(SETS, OBJECTIVES, rows=[]),
        lambda: Explorer(SETS, OBJECTIVES, start="gold"),
        lambda: Explorer({"SFT": (["one answer"], np.ones((2, 4)))}, OBJECTIVES),
        lambda: Explorer({"SFT": ([], np.ones((0, 4)))}, OBJECTIVES),
        lambda: Explorer({"SFT": (["a"], np.full((1, 4), np.nan))}, OBJECTIVES),
    ],
)
def test_what_does_not_fit_is_one_line(wrong):
    with pytest.raises(LabError) as error:
        wrong()
    assert "\n" not in str(error.value)


# --- In a notebook ------------------------------------------------------------------------------


def test_a_reader_gets_the_widget_and_its_table(monkeypatch):
    explorer = Explorer(SETS, OBJECTIVES)
    monkeypatch.setattr("vpo_lab.show.explorer.someone_looks", lambda: True)
    bundle, _ = explorer._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.widget.model_id
    assert "<table>" in bundle["text/html"]
    assert explorer.widget.data == explorer.data


@pytest.mark.parametrize("last", ["explorer", "explorer.show()"])
def test_an_executed_notebook_keeps_a_table_and_no_widget(monkeypatch, last):
    nbclient = pytest.importorskip("nbclient")
    for name, value in Session(headless=True).environment().items():
        monkeypatch.setenv(name, value)
    half = "a \\ud83d"  # a model may write half an emoji, which a kernel cannot send
    source = "import numpy as np\nfrom vpo_lab.show.explorer import Explorer\n"
    source += f"explorer = Explorer({{'VPO': (['{half}', 'b'], np.eye(2))}}, ('x', 'y'), ['{half}'])\n{last}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    assert "widgets" not in notebook.metadata
    (output,) = notebook.cells[0].outputs
    assert set(output.data) == {"text/plain", "text/html"} and "<table>" in output.data["text/html"]


# --- What the course's tasks lend ---------------------------------------------------------------


def test_a_tool_call_answer_in_one_line():
    call = '<think> a </think><tool_call>{"name": "find_inns", "parameters": {"city": "Oslo", "nights": 2}}</tool_call>'
    assert short_answer(call) == "find_inns(city=Oslo, nights=2)"
    assert short_answer("<think> a </think><response> Which\n one? </response>") == "says: Which one?"
    assert short_answer("plain  text") == "plain text"
    half = r'<tool_call>{"name": "f", "parameters": {"s": "\ud83d"}}</tool_call>'
    assert short_answer(half) == "f(s=\ufffd)"
    row = {"prompt": [{"role": "user", "content": "x\n<user> Beds in Oslo? </user>"}], "gold": call}
    assert TinyTools().title(row) == "Beds in Oslo? (meant: find_inns(city=Oslo, nights=2))"


def test_a_maze_is_drawn_with_the_walk_of_each_answer():
    task = MazeTask()
    gold = task.load(split="test")[0]["gold"]
    paths = best_paths(gold)[:2]
    picture = ElementTree.fromstring(task.picture(gold, [*paths, "no arrows"]).replace(' xmlns="', ' x="'))
    walks = [group for group in picture if group.get("data-candidate")]
    assert [group.get("data-candidate") for group in walks] == ["0", "1", "2"]
    assert len(walks[0].find("g/polyline").get("points").split()) == len(paths[0]) + 1
    assert not len(walks[2]), "what is no walk is not drawn"
    assert len(list(picture.iter("rect"))) == 25 and task.picture_key.count("<svg") == 5
