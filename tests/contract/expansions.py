"""Which keys `**expression` brings into a call, told from the syntax tree."""

from __future__ import annotations

import ast

ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr)


class Unresolved(Exception):
    """The tree does not tell the keys of an expression."""


def keys(code, node: ast.AST, depth: int = 0) -> dict[str, ast.AST]:
    """{key: its node} of an expression that is a dict; whatever branch may be taken counts.

    `code` is the `checker.Code` that the node is in. A function of ours is followed into all that it
    returns; of a method, which may be any backend's, every one of that name is.
    """
    found: dict[str, ast.AST] = {}
    parts: list[ast.AST] = []
    if depth > 20:
        raise Unresolved(f"{ast.unparse(node)} leads back to itself")
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                parts.append(value)
            elif isinstance(key, ast.Constant):
                found[key.value] = key
            else:
                raise Unresolved(f"{ast.unparse(key)} is no constant")
    elif isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        parts = [node.left, node.right]
    elif isinstance(node, ast.BoolOp):
        parts = node.values
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "dict":
        found, parts = _arguments(node)
    elif isinstance(node, ast.Call):
        parts = _returned(code, node)
    elif isinstance(node, ast.Name):
        found, parts = _put_into(code, node)
    elif isinstance(node, ast.Attribute) and node.attr in code.attribute_values:
        parts = code.attribute_values[node.attr]
    elif not (isinstance(node, ast.Constant) and node.value is None):
        raise Unresolved(f"{ast.unparse(node)} is no dict with constant keys")
    for part in parts:
        found |= keys(code, part, depth + 1)
    return found


def _arguments(call: ast.Call) -> tuple[dict, list]:
    """Keys and further dicts that dict(...) or .update(...) is given."""
    named = {keyword.arg: keyword for keyword in call.keywords if keyword.arg}
    return named, [*call.args, *(keyword.value for keyword in call.keywords if not keyword.arg)]


def _returned(code, call: ast.Call) -> list[ast.AST]:
    """What the called function of ours returns."""
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    functions = [f for f in code.functions.get(name, ()) if _is_method(code, f) != isinstance(call.func, ast.Name)]
    functions = [f for f in functions if code.file[f] == code.file[call]] or functions
    if not functions:
        raise Unresolved(f"{name or ast.unparse(call.func)} is no function of ours")
    inside = [node for function in functions for node in code.within[function]]
    return [node.value for node in inside if isinstance(node, ast.Return) and node.value]


def _is_method(code, function: ast.FunctionDef) -> bool:
    return isinstance(code.scope[function], ast.ClassDef)


def _put_into(code, variable: ast.Name) -> tuple[dict, list]:
    """What the function around a variable, or the file, ever puts into it."""
    scope = code.scope[variable]
    if getattr(getattr(getattr(scope, "args", None), "kwarg", None), "arg", None) == variable.id:
        return _passed_on(code, scope)
    while not any(_is_assignment(node, variable) for node in code.within[scope]):
        if isinstance(scope, ast.Module):
            raise Unresolved(f"{variable.id} is assigned nowhere")
        scope = code.scope[scope]
    found, parts = {}, []
    for node in code.within[scope]:
        target = _target(node)
        if _is_assignment(node, variable):
            parts.append(node.value)
        elif isinstance(target, ast.Name) and target.id == variable.id:
            raise Unresolved(f"{variable.id} is the variable of a loop")
        elif isinstance(target, ast.Subscript) and ast.unparse(target.value) == variable.id:
            parts.append(ast.Dict([target.slice], [target.slice]))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == f"{variable.id}.setdefault":
            parts.append(ast.Dict([node.args[0]], [node.args[0]]))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == f"{variable.id}.update":
            named, further = _arguments(node)
            found |= named
            parts += further
    return found, parts


def _passed_on(code, function: ast.FunctionDef) -> tuple[dict, list]:
    """What reaches a function's own **kwargs: what its callers give beyond its parameters."""
    calls = [n for n in code.file if isinstance(n, ast.Call) and ast.unparse(n.func) == function.name]
    if not calls:
        raise Unresolved(f"nobody calls {function.name}")
    parameters = {a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)}
    found, parts = {}, []
    for call in calls:
        named, further = _arguments(call)
        found |= {name: node for name, node in named.items() if name not in parameters}
        parts += further[len(call.args) :]
    return found, parts


def _target(node: ast.AST) -> ast.AST | None:
    return node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)


def _is_assignment(node: ast.AST, variable: ast.Name) -> bool:
    target = _target(node)
    return isinstance(node, ASSIGNMENTS) and isinstance(target, ast.Name) and target.id == variable.id and node.value
