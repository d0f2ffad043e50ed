"""Read what a package accepts out of its source text: signatures, fields, names taken from **kwargs."""

from __future__ import annotations

import ast
import inspect


class Gone(Exception):
    """A name that the project relies on is no longer in the source."""


def named(tree: ast.AST, name: str) -> ast.AST:
    """The function or class of a dotted name such as "LLM.generate", wherever in `tree` it stands."""
    for part in name.split("."):
        found = [n for n in ast.walk(tree) if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == part]
        if not found:
            raise Gone(f"{name}: no {part} is defined")
        tree = found[0]
    return tree


def signature_text(function: ast.FunctionDef, drop_first: bool = False) -> str:
    """A function's parameters with `_` for every default, e.g. "prompts, params=_, *, use_tqdm=_"."""
    given = function.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + given.defaults
    parts = [a.arg + ("=_" if d else "") for a, d in zip(plain, defaults, strict=True)][drop_first:]
    if given.vararg or given.kwonlyargs:
        parts.append(f"*{given.vararg.arg if given.vararg else ''}")
    parts += [a.arg + ("=_" if d else "") for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return ", ".join([*parts, *([f"**{given.kwarg.arg}"] if given.kwarg else [])])


def signature(text: str) -> inspect.Signature:
    """The other way round."""
    namespace: dict = {"_": None}
    exec(f"def call({text}): ...", namespace)
    return inspect.signature(namespace["call"])


def fields(cls: ast.ClassDef) -> str:
    """The constructor of a dataclass, msgspec.Struct or TypedDict, as `signature_text` writes it."""
    annotated = [n for n in cls.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    is_optional = {n.target.id: n.value is not None or "NotRequired" in ast.unparse(n.annotation) for n in annotated}
    parts = [name + ("=_" if optional else "") for name, optional in is_optional.items() if not name.startswith("_")]
    made = {ast.unparse(n).split("(")[0].split(".")[-1] for n in (*cls.bases, *cls.decorator_list)}
    by_position = made & {"dataclass", "Struct"} and "kw_only" not in ast.unparse(cls)
    return ", ".join(parts if by_position or not parts else ["*", *parts])


def methods(cls: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    functions = [n for n in cls.body if isinstance(n, ast.FunctionDef)]
    return {f.name: f for f in functions if not f.name.startswith("_") or f.name == "__init__"}


def decorators(function: ast.FunctionDef) -> set[str]:
    return {ast.unparse(d) for d in function.decorator_list}


def attributes_set(function: ast.AST, owner: str = "self") -> set[str]:
    """The names that a function assigns on `owner`: {"text"} of `self.text = ...`."""
    nodes = [n for n in ast.walk(function) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
    return {n.attr for n in nodes if ast.unparse(n.value) == owner}


def keys_read(function: ast.AST, variable: str = "kwargs") -> set[str]:
    """The constant keys that a function reads from a dict: v["k"], v.get("k"), v.pop("k"), "k" in v."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (f"{variable}.get", f"{variable}.pop"):
            found.add(node.args[0])
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == variable:
            found.add(node.slice)
        elif isinstance(node, ast.Compare) and [ast.unparse(c) for c in node.comparators] == [variable]:
            found.add(node.left)
    return {n.value for n in found if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def expanding_call(function: ast.AST, callee: str) -> ast.Call:
    """The call of `callee` to which a function hands a ** expansion."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == callee and None in {k.arg for k in node.keywords}:
            return node
    raise Gone(f"{getattr(function, 'name', '?')} hands no ** expansion to {callee}")


def values_assigned(tree: ast.AST, name: str) -> list[ast.AST]:
    """The expressions assigned to a plain name, wherever in `tree`."""
    assigned = [n for n in ast.walk(tree) if isinstance(n, (ast.Assign, ast.AnnAssign)) and n.value]
    targets = [(n, t) for n in assigned for t in (n.targets if isinstance(n, ast.Assign) else [n.target])]
    found = [n.value for n, t in targets if isinstance(t, ast.Name) and t.id == name]
    if not found:
        raise Gone(f"{name} is assigned nowhere")
    return found


def dict_keys(tree: ast.AST, variable: str) -> set[str]:
    """The constant keys of a dict variable, from its literal and from `variable["key"] = ...`."""
    found = {k.value for v in values_assigned(tree, variable) if isinstance(v, ast.Dict) for k in v.keys if k}
    stores = [n for n in ast.walk(tree) if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store)]
    stores = [n for n in stores if ast.unparse(n.value) == variable and isinstance(n.slice, ast.Constant)]
    return found | {n.slice.value for n in stores}


def accepts_two_dimensions(function: ast.AST, variable: str) -> bool:
    """Does a function add the second dimension only where `variable` lacks it?"""
    wanted = f"if {variable}.dim() == 1:\n    {variable} = {variable}.unsqueeze(1)"
    return any(isinstance(n, ast.If) and ast.unparse(n) == wanted for n in ast.walk(function))
