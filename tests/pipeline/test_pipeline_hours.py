"""The smoke profile under a limit of hours, and without it afterwards: a file, and so a test worker, of its own."""

from smoke_run import finish, results, start

from vpo_lab.runs import Run


def test_hours_end_the_training_with_a_summary_and_a_longer_run_goes_on(tmp_path):
    run, calls = tmp_path / "run", tmp_path / "calls.txt"
    short = ("--set", "maze=", "--set", "code=", "--set", "judges=")
    output = finish(start(run, calls, *short, "--max-hours", "1e-6"))
    assert "vpo was stopped after 1 of 4 steps" in output
    summary = results(run)
    assert summary["stopped"] == {"grpo": "1 of 4 steps", "vpo": "1 of 4 steps"}
    assert set(summary["methods"]) == {"sft", "sft_chain", "grpo", "vpo"}  # evaluated as far as it came
    assert "already done: 00, 01, 02, 03, 04, 05\n" in finish(start(run, calls, *short, "--max-hours", "0"))
    assert results(run) == summary
    assert "already done: 00, 01, 02\n" in finish(start(run, calls, *short))
    whole = results(run)
    assert whole["stopped"] == {} and whole["methods"]["sft"] == summary["methods"]["sft"]
    assert whole["methods"]["vpo"] != summary["methods"]["vpo"]
    assert {Run(run).stage(name).last_step() for name in ("grpo", "vpo")} == {4}
