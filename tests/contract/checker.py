"""What the code uses of other packages, and with which keywords: found in its syntax trees, nothing is run.

A use is written as a path: `trl.GRPOConfig` is a name, `vllm.LLM()` what calling it gives, `[]` one of its items.
So after `outputs = LLM(...).generate(...)` the text `outputs[0].text` is `vllm.LLM().generate()[].text`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

from expansions import Unresolved, keys

ROOTS = ("unsloth", "unsloth_zoo", "vllm", "trl", "transformers", "peft", "accelerate")
# What a variable holds is told by its name where functions of ours pass it on.
OBJECTS = {name: f"{name}()" for name in ("model", "tokenizer", "trainer", "generation")} | {"llm": "vllm.LLM()"}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
SCOPES = (*FUNCTIONS, ast.ClassDef)


@dataclass
class Call:
    where: str
    target: str
    node: ast.Call
    positional: int = 0
    keywords: dict[str, ast.AST] = field(default_factory=dict)
    unresolved: list[str] = field(default_factory=list)  # expansions whose content the tree does not tell
    is_partial: bool = False


@dataclass
class Override:
    """A method of a subclass of ours, and the method of the foreign class in whose place it stands."""

    where: str
    target: str
    function: ast.FunctionDef


class Code:
    """Source files that may call one another's functions, as {file: source}."""

    def __init__(self, sources: dict[str, str], roots: tuple[str, ...] = ROOTS):
        self.roots = roots
        self.file: dict[ast.AST, str] = {}
        self.scope: dict[ast.AST, ast.AST] = {}  # the function, class or file around a node
        self.within: dict[ast.AST, list[ast.AST]] = {}  # and back
        self.names: dict[ast.AST, dict[str, str | None]] = {}
        for name, source in sources.items():
            tree = ast.parse(source)
            self._place(tree, name, tree)
        self.functions: dict[str, list[ast.AST]] = {}
        self.attribute_values: dict[str, list[ast.AST]] = {}  # of `self.engine = LLM(...)`, by "engine"
        for node in self.file:
            if isinstance(node, ast.FunctionDef):
                self.functions.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                self.attribute_values.setdefault(node.targets[0].attr, []).append(node.value)

    @classmethod
    def read(cls, folder: Path, roots: tuple[str, ...] = ROOTS) -> Code:
        files = sorted(folder.rglob("*.py"))
        return cls({str(f.relative_to(folder.parent)): f.read_text(encoding="utf-8") for f in files}, roots)

    def _place(self, node: ast.AST, file: str, scope: ast.AST) -> None:
        self.file[node], self.scope[node] = file, scope
        self.within.setdefault(scope, []).append(node)
        for child in ast.iter_child_nodes(node):
            self._place(child, file, node if isinstance(node, SCOPES) else scope)

    def where(self, node: ast.AST) -> str:
        return f"{self.file[node]}:{node.lineno}"

    # --- What names mean ------------------------------------------------------------------------

    def names_of(self, scope: ast.AST) -> dict[str, str | None]:
        """{name: path} inside a function, class or file; None: nothing of another package."""
        if scope in self.names:
            return self.names[scope]
        outer = {} if isinstance(scope, ast.Module) else self.names_of(self.scope[scope])
        self.names[scope] = names = dict(outer)
        if isinstance(scope, FUNCTIONS):
            arguments = scope.args
            names.update({a.arg: None for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)})
        elif isinstance(scope, ast.ClassDef):
            base = self.path(scope.bases[0], self.scope[scope]) if scope.bases else None
            names["super()"] = f"{base}()" if base else None
        for node in self.within.get(scope, ()):
            self._bind(node, names, scope)
        return names

    def _bind(self, node: ast.AST, names: dict, scope: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                path = alias.name if alias.asname else alias.name.split(".")[0]
                names[alias.asname or path] = path if path.split(".")[0] in self.roots else None
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}" if self._is_foreign(node) else None
        elif isinstance(node, ast.ClassDef) and node is not scope:  # a subclass is called as its base is
            names[node.name] = self.path(node.bases[0], scope) if node.bases else None
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    names[target.id] = self.path(node.value, scope)
        elif isinstance(node, (ast.For, ast.comprehension)) and isinstance(node.target, ast.Name):
            path = self.path(node.iter, scope)
            names[node.target.id] = f"{path}[]" if path else None

    def _is_foreign(self, node: ast.ImportFrom) -> bool:
        return not node.level and node.module.split(".")[0] in self.roots

    def path(self, node: ast.AST, scope: ast.AST | None = None) -> str | None:
        """The path of an expression, or None if it is nothing of another package."""
        scope = scope or self.scope[node]
        if isinstance(node, ast.Name):
            return OBJECTS.get(node.id) or self.names_of(scope).get(node.id)
        if isinstance(node, ast.Attribute):
            if base := self.path(node.value, scope):
                return f"{base}.{node.attr}"
            return self._path_of_own(node, scope) if ast.unparse(node.value) == "self" else None
        if isinstance(node, ast.Subscript):
            base = self.path(node.value, scope)
            return f"{base}[]" if base else None
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            if function == "super":
                return self.names_of(scope).get("super()")
            if function in ("getattr", "hasattr") and isinstance(node.args[1], ast.Constant):
                base = self.path(node.args[0], scope)
                return f"{base}.{node.args[1].value}" if base else None
            base = self.path(node.func, scope)
            return f"{base}()" if base else None
        return None

    def _path_of_own(self, node: ast.Attribute, scope: ast.AST) -> str | None:
        """What `self.name` holds: told by its name, by what is assigned to it, else it is inherited."""
        if node.attr in OBJECTS or node.attr in self.functions:
            return OBJECTS.get(node.attr)
        if values := self.attribute_values.get(node.attr):
            return next(filter(None, (self.path(v) for v in values if isinstance(v, ast.Call))), None)
        base = self.names_of(scope).get("super()")
        return f"{base}.{node.attr}" if base else None

    # --- What is used ---------------------------------------------------------------------------

    def uses(self) -> dict[str, str]:
        """{path: where} of every name, attribute and result of another package."""
        found = {}
        for node in self.file:
            if isinstance(node, (ast.Attribute, ast.Name, ast.Call)) and (path := self.path(node)):
                found.setdefault(path, self.where(node))
            elif isinstance(node, ast.ImportFrom) and self._is_foreign(node):
                found.update({f"{node.module}.{alias.name}": self.where(node) for alias in node.names})
        return found

    def calls(self) -> list[Call]:
        return [call for node in self.file if isinstance(node, ast.Call) and (call := self.call(node))]

    def call(self, node: ast.Call) -> Call | None:
        """What is called with which keywords, or None if it is nothing of another package."""
        function, given = node.func, node.args
        if is_partial := ast.unparse(function) in ("partial", "functools.partial"):
            function, given = given[0], given[1:]
        if ast.unparse(function) in ("super", "getattr", "hasattr") or not (target := self.path(function)):
            return None
        call = Call(self.where(node), target, node, len(given), is_partial=is_partial)
        call.unresolved += [ast.unparse(a) for a in given if isinstance(a, ast.Starred)]
        for keyword in node.keywords:
            try:
                call.keywords.update({keyword.arg: keyword} if keyword.arg else keys(self, keyword.value))
            except Unresolved as error:
                call.unresolved.append(f"**{ast.unparse(keyword.value)}: {error}")
        return call

    def overrides(self) -> list[Override]:
        methods = [n for n in self.file if isinstance(n, ast.FunctionDef) and isinstance(self.scope[n], ast.ClassDef)]
        bases = {node: self.names_of(self.scope[node])["super()"] for node in methods}
        return [Override(self.where(n), f"{base}.{n.name}", n) for n, base in bases.items() if base]
