"""A script for GRPO, turned into VPO: the lines marked with <- differ.

python examples/dropin/trl_user.py [MODEL] [--cpu]     also under torchrun or accelerate launch
"""

import sys

from datasets import Dataset
from trl import GRPOConfig

from vpo_lab import VPOTrainer  # <- was: from trl import GRPOTrainer


def correct(completions, answer, **_):
    return [float(right in completion[0]["content"]) for completion, right in zip(completions, answer, strict=True)]


def brief(completions, **_):
    return [1 / (1 + len(completion[0]["content"]) / 100) for completion in completions]


def main():
    cpu = "--cpu" in sys.argv
    model = next((argument for argument in sys.argv[1:] if argument != "--cpu"), "Qwen/Qwen3-0.6B")
    questions = [[{"role": "user", "content": f"What is {n} + {n}?"}] for n in range(8)]
    trainer = VPOTrainer(  # <- was: GRPOTrainer(
        model=model,
        reward_funcs=[correct, brief],
        candidates=3,  # <- new: three answers in a rollout, each scored by both functions
        args=GRPOConfig(
            output_dir="runs/trl_user",
            num_generations=4,
            per_device_train_batch_size=8,
            max_completion_length=3 * 32,  # <- room for three answers
            max_steps=2,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=cpu,
            bf16=not cpu,
        ),
        train_dataset=Dataset.from_dict({"prompt": questions, "answer": [str(2 * n) for n in range(8)]}),
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
