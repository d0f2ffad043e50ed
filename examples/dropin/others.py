"""One reward in the words of OpenRLHF, slime and AReaL: what each asks for, and the flags that name it.

Put the request for three answers into your prompts once: `data.map(lambda row: {"prompt": ask(row["prompt"], 3)})`.
"""

from vpo_lab import SetReward, ask

M = 3


def correct(completions, label, **_):
    return [float(right in completion) for completion, right in zip(completions, label, strict=True)]


def brief(completions, **_):
    return [1 / (1 + len(completion) / 100) for completion in completions]


reward = SetReward([correct, brief], candidates=M)


def reward_func(queries, prompts, labels):
    """Score for OpenRLHF: --reward.remote_url others.py --algo.advantage.estimator group_norm

    A query is the prompt and the reply in one text, so the tags of the request must go first. OpenRLHF only logs
    what this raises: try it on one row before a run.
    """
    replies = [query.rpartition(ask("", M))[2] for query in queries]
    scores = [reward.one(reply, label=label) for reply, label in zip(replies, labels, strict=True)]
    (first, *_) = scores  # it asks for one at a time
    return {"rewards": first["score"], "scores": first["score"], "extra_logs": first}


async def custom_rm(args, sample, **_):
    """Score for slime: --custom-rm-path others.custom_rm --advantage-estimator grpo"""
    return reward.one(sample.response, label=sample.label)["score"]


def areal_reward(prompt, completions, prompt_ids, completion_ids, **columns):
    """Score for AReaL: RLVRWorkflow(reward_fn="others.areal_reward"), and actor.reward_norm by group: it has none.

    It runs in another process and has 15 seconds.
    """
    return reward.one(completions, label=columns["label"])["score"]
