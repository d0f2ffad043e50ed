"""Train two steps with VPOTrainer on Unsloth's own trainer, on a CPU; what it saw goes to FILE.

Unsloth rewrites TRL's source and compiles the result: that is done for real, from its wheels, which PYTHONPATH
holds. What needs a GPU is not: its kernels (triton and cut_cross_entropy are hollow here), its model and vLLM.

Usage: unsloth_case.py FILE
"""

import importlib.abc
import importlib.machinery
import os
import pickle
import sys
import types
from importlib.util import find_spec
from pathlib import Path

HOLLOW = ("triton", "cut_cross_entropy")
# Where the defaults of Unsloth's config are others than TRL's.
SAME = dict(optim="adamw_torch", lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0)
SAME |= dict(loss_type="dapo", mask_truncated_completions=False, epsilon=0.2, epsilon_high=0.2, beta=0.0)
SAME |= dict(temperature=1.0, gradient_accumulation_steps=2, disable_dropout=True)


class Nothing:
    """Stands for any object of a hollow module; as a decorator it returns what it decorates."""

    def __init__(self, *_, **__):
        pass

    def __call__(self, *given, **options):
        return given[0] if len(given) == 1 and not options and callable(given[0]) else Nothing()

    def __getattr__(self, name):
        return named(name)

    def __getitem__(self, key):
        return Nothing()

    def __iter__(self):
        return iter(())


def named(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Nothing,), {}) if name[0].isupper() else Nothing()


class Hollow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of the packages in HOLLOW that are not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HOLLOW:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__, module.__version__ = named, "3.9.0"
        return module

    def exec_module(self, module):
        pass


def load_unsloth():
    """Import it, and let it replace TRL's trainers, which it leaves alone on a machine without a GPU."""
    if any(find_spec(package) is None for package in HOLLOW):
        sys.meta_path.append(Hollow())
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"
    import unsloth  # noqa: F401
    from unsloth import FastLanguageModel
    from unsloth.models.rl import PatchFastRL

    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    PatchFastRL(FastLanguageModel=FastLanguageModel)
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"


def as_unsloth_has_it(model):
    """The model with what Unsloth's trainer expects of one that Unsloth has loaded."""
    model.for_training = lambda use_gradient_checkpointing=True: model.train()
    model.for_inference = model.eval
    model._unsloth_gradient_checkpointing = False
    model.max_seq_length = 1024
    model._unsloth_user_float32 = True
    return model


def train(trainer_class, config_class, folder: Path, prepare=lambda model: model) -> dict:
    """Two steps with an advantage per set, per answer, and of one generation: batches, log, gradients and weights."""
    from transformers import TrainerCallback
    from trl_case import arguments, has_a, random_texts, rows, scripted, short, small_model, small_tokenizer

    class Gradients(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            self.seen.append({name: weight.grad.clone() for name, weight in model.named_parameters()})

    tokenizer, saw = small_tokenizer(), {}
    for name, method, passes in (("vpo", "vpo", 2), ("vpo_credit", "vpo_credit", 2), ("shared", "vpo", 4)):
        gradients = Gradients()
        trainer = scripted(trainer_class, random_texts(0), cut=lambda number: number == 3)(
            model=prepare(small_model(tokenizer)),
            reward_funcs=[has_a, short],
            args=arguments(config_class, folder / name, method=method, steps_per_generation=passes, **SAME),
            train_dataset=rows(),
            processing_class=tokenizer,
            callbacks=[gradients],
        )
        trainer.train()
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        log = trainer.state.log_history
        saw[name] = {"batches": trainer.batches, "log": log, "gradients": gradients.seen, "weights": weights}
    return saw


def after_the_longest(trainer_class, config_class, folder: Path, tried: bool) -> tuple[dict, tuple]:
    """Two steps, with the longest prompt tried first or not: the weights, and a rollout compared with itself.

    That is what the course's trainer does with Unsloth on a GPU.
    """
    import torch
    from trl_case import arguments, has_a, random_texts, rows, scripted, small_model, small_tokenizer

    from vpo_lab.train.trainer import _difference, try_longest

    tokenizer = small_tokenizer()
    trainer = scripted(trainer_class, random_texts(0))(
        model=as_unsloth_has_it(small_model(tokenizer)),
        reward_funcs=[has_a],
        args=arguments(config_class, folder / str(tried), ask=False, **SAME),
        train_dataset=rows(chat=False),
        processing_class=tokenizer,
    )
    step, wanted = trainer.training_step, [tried]

    def first(model, *rest):
        if wanted and wanted.pop():  # before the very first pass: it forgets what a step has gathered
            try_longest(trainer, model)
        return step(model, *rest)

    trainer.training_step = first
    trainer.train()
    batch = trainer.batches[-1]
    parts = ("prompt", "completion")
    prompt, completion = (batch[f"{part}_ids"][0][batch[f"{part}_mask"][0].bool()].tolist() for part in parts)
    with torch.no_grad():
        os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "0"
        logps_TV = trainer.model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
        os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "1"  # as its loss leaves it
    own = [logps_TV[len(prompt) + t - 1, token].item() for t, token in enumerate(completion)]
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return weights, (*_difference(trainer, prompt, completion, own), len(completion))


if __name__ == "__main__":
    load_unsloth()
    sys.path.insert(0, str(Path(__file__).parents[1]))

    from unsloth_stages import run_stages

    from vpo_lab import VPOConfig, VPOTrainer

    target = Path(sys.argv[1])
    seen = train(VPOTrainer, VPOConfig, target.parent / "unsloth", as_unsloth_has_it)
    seen["longest"] = [after_the_longest(VPOTrainer, VPOConfig, target.parent, tried) for tried in (False, True)]
    seen["stages"] = run_stages(target.parent / "stages")
    target.write_bytes(pickle.dumps({**seen, "bases": [parent.__name__ for parent in VPOTrainer.__mro__]}))
