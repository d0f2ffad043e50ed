"""The helpers of the benchmark: who runs when, and which steps are compared with which."""

import pytest
from bench import UNCOUNTED, Turns, ratios


def test_one_thread_runs_at_a_time_and_each_goes_first_in_turn():
    turns, seen = Turns(2), []

    def work(number, steps):
        def run():
            for step in range(steps):
                if step and (step + number) % 2:  # as in `step_clock`
                    turns.hand_over(number)
                seen.append(f"{number}{step}")

        return run

    turns.run([work(0, 5), work(1, 5)])
    assert seen == ["00", "10", "11", "01", "02", "12", "13", "03", "04", "14"]


def test_a_failure_lets_the_other_finish_and_is_raised():
    turns, seen = Turns(2), []

    def fails():
        turns.hand_over(0)
        raise ValueError("no more")

    def finishes():
        for step in range(3):
            turns.hand_over(1)
            seen.append(step)

    with pytest.raises(ValueError, match="no more"):
        turns.run([fails, finishes])
    assert seen == [0, 1, 2]


def test_ratios_drop_the_first_steps_and_take_two_at_a_time():
    ours = [100.0] * UNCOUNTED + [3.0, 1.0, 2.0, 2.0]
    bare = [1.0] * UNCOUNTED + [1.0, 3.0, 1.0, 1.0]
    assert ratios(ours, bare) == [1.0, 2.0]
