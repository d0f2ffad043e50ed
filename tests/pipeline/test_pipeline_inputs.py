"""The smoke profile with a task of another kind, and with input that is wrong."""

from pathlib import Path

from smoke_run import finish, results, start


def test_a_task_whose_requests_ask_for_different_objectives_goes_through_all_notebooks(tmp_path):
    task = f"task={Path(__file__).parent / 'unasked.py'}:Unasked"
    alone, fewer = ("--set", "maze=", "--set", "code=", "--set", "judges="), ("--set", "rl.steps=2")
    finish(start(tmp_path / "run", tmp_path / "calls.txt", "--set", task, *alone, *fewer))
    summary = results(tmp_path / "run")
    for method in summary["methods"].values():
        assert set(method["objectives"]) == {"test_1", "test_2", "test_3"}
        assert all(0 <= figures["covered"][0] <= 1 for figures in method["k"].values())


def test_a_parameter_that_no_notebook_declares_is_an_error(tmp_path):
    process = start(tmp_path / "run", tmp_path / "calls.txt", "-p", "sed=1")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "parameter 'sed' is not declared by 01_reward_vectors.ipynb" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_failing_cell_is_one_line_that_names_notebook_and_error(tmp_path):
    process = start(tmp_path / "run", tmp_path / "calls.txt", "--set", "policy.max_prompt_tokens=3")
    output, _ = process.communicate(timeout=300)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1
    assert len(errors) == 1 and "02_sft_warmup" in errors[0] and "max_prompt_tokens" in errors[0]
    assert "Traceback" not in output
