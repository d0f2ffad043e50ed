"""Train two steps with VPOTrainer on Unsloth's own trainer, on a CPU; what it saw goes to FILE.

Unsloth rewrites TRL's source and compiles the result: that is done for real, from its wheels, which PYTHONPATH
holds. What needs a GPU is not: its kernels (triton and cut_cross_entropy are hollow here), its model and vLLM.

Usage: unsloth_case.py unsloth|trl FILE
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


def main(engine: str, file: Path):
    if engine == "unsloth":
        load_unsloth()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from trl_case import arguments, has_a, random_texts, rows, scripted, short, small_model, small_tokenizer

    from vpo_lab import VPOConfig, VPOTrainer

    saw = {"bases": [parent.__name__ for parent in VPOTrainer.__mro__]}
    tokenizer = small_tokenizer()
    for method in ("vpo", "vpo_credit"):
        settings = dict(method=method, gradient_accumulation_steps=2, temperature=1.0, loss_type="dapo", beta=0.0)
        model = small_model(tokenizer)
        trainer = scripted(VPOTrainer, random_texts(0), cut=lambda number: number == 3)(
            model=as_unsloth_has_it(model) if engine == "unsloth" else model,
            reward_funcs=[has_a, short],
            args=arguments(VPOConfig, file.parent / engine, disable_dropout=True, optim="adamw_torch", **settings),
            train_dataset=rows(),
            processing_class=tokenizer,
        )
        trainer.train()
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        saw[method] = {"batches": trainer.batches, "log": trainer.state.log_history, "weights": weights}
    file.write_bytes(pickle.dumps(saw))


main(sys.argv[1], Path(sys.argv[2]))
