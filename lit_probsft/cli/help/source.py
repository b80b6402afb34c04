"""Reads signatures and docstrings from source files.

Imports nothing that it reads: torch and Lightning take five seconds to import, and help should answer at once.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import docstring_parser

Class: TypeAlias = "tuple[Module, ast.ClassDef]"
Definition: TypeAlias = "tuple[Module, ast.stmt]"


class Field(NamedTuple):
    """A parameter of a class.

    Attributes:
        name: as in the signature.
        module: where the class is defined, in which the two nodes below have their meaning.
        annotation: its type; None without one.
        default: None if the parameter is required.
        text: its entry in the docstring.
    """

    name: str
    module: Module
    annotation: ast.expr | None
    default: ast.expr | None
    text: str


class Description(NamedTuple):
    """A class: its import path, its docstring without the entries of parameters, and its parameters."""

    path: str
    text: str
    fields: dict[str, Field]

    @property
    def name(self) -> str:
        """The class's own name."""
        return self.path.rpartition(".")[2]


@dataclass(frozen=True, eq=False)
class Module:
    """A source file.

    Args:
        name: its import path.
        tree: its statements.
        is_package: whether it is an `__init__.py`.
    """

    name: str
    tree: ast.Module
    is_package: bool

    def find(self, name: str) -> Definition | None:
        """The statement that defines `name`, here or where this file imports it from, and its module."""
        for node in _statements(self.tree.body):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                return self, node
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                    return self, node
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if name == (alias.asname or alias.name):
                        source = module_named(self._absolute(node))
                        return None if source is None or source is self else source.find(alias.name)
        return None

    def find_class(self, name: str) -> Class | None:
        """The class `name`, as `find`; a dotted name is an import path."""
        if "." in name:
            return class_at(name)
        found = self.find(name)
        return (found[0], found[1]) if found is not None and isinstance(found[1], ast.ClassDef) else None

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])


@functools.cache
def module_named(name: str) -> Module | None:
    """The source of a module; None if there is none."""
    path = _file_of(name)
    if path is None:
        return None
    return Module(name, ast.parse(path.read_text(encoding="utf-8")), path.name == "__init__.py")


def class_at(path: str) -> Class | None:
    """The class with this import path; None if it cannot be found."""
    place, _, name = path.rpartition(".")
    module = module_named(place) if place else None
    return None if module is None else module.find_class(name)


@functools.cache
def describe(path: str) -> Description | None:
    """The class with this import path."""
    found = class_at(path)
    if found is None:
        return None
    return Description(path, _documented(*found), _fields(*found))


def _file_of(name: str) -> Path | None:
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top)  # imports nothing: the name has no parent
    except (ValueError, ImportError):
        return None
    if spec is None:
        return None
    if not inner and spec.origin is not None:
        return Path(spec.origin) if spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder).joinpath(*inner)
        for path in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements at the top of a file, with those under `if` and `try`."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _statements([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _statements(node.body)


def _bases(module: Module, node: ast.ClassDef) -> list[Class]:
    found = [module.find_class(ast.unparse(base)) for base in node.bases]
    return [base for base in found if base is not None]


def _docstring(module: Module, node: ast.ClassDef) -> docstring_parser.Docstring:
    init = _method(node, "__init__")
    parts = [ast.get_docstring(node) or "", (init and ast.get_docstring(init)) or ""]
    for other in module.tree.body:  # torch's optimizers: `AdamW.__doc__ = ...`
        if isinstance(other, ast.Assign) and ast.unparse(other.targets[0]) == f"{node.name}.__doc__":
            parts.append(inspect.cleandoc(_text(module, other.value)))
    text = "\n\n".join(filter(None, parts))
    try:
        return docstring_parser.parse(text, style=docstring_parser.DocstringStyle.GOOGLE)
    except docstring_parser.ParseError:  # another style
        return docstring_parser.parse(text.split("\n\n")[0])


def _text(module: Module, node: ast.expr) -> str:
    """The value of an expression that puts texts together."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(module, part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(module, node.value)
    if isinstance(node, ast.BinOp):
        return _text(module, node.left) + _text(module, node.right)
    found = module.find(node.id) if isinstance(node, ast.Name) else None
    value = found[1].value if found is not None and isinstance(found[1], ast.Assign | ast.AnnAssign) else None
    return "" if found is None or value is None else _text(found[0], value)


def _documented(module: Module, node: ast.ClassDef) -> str:
    parsed = _docstring(module, node)
    gap = "\n\n" if parsed.blank_after_short_description else "\n"  # without one, the sentence continues
    return gap.join(filter(None, (parsed.short_description, parsed.long_description)))


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == name), None)


def _fields(module: Module, node: ast.ClassDef) -> dict[str, Field]:
    """The parameters of a class in the order of its signature."""
    texts = {item.arg_name: " ".join((item.description or "").split()) for item in _docstring(module, node).params}
    init = _method(node, "__init__")
    is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    own: dict[str, tuple[ast.expr | None, ast.expr | None]] = {}
    inherited: dict[str, Field] = {}
    fixed: set[str] = set()  # what a subclass sets itself
    if init is not None:
        own = _parameters(init.args)
    else:
        for base in reversed(_bases(module, node)):
            inherited |= _fields(*base)
    if init is None and is_dataclass:
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                if "init=False" in ast.unparse(item):
                    fixed.add(item.target.id)
                elif "ClassVar" not in ast.unparse(item.annotation):
                    own[item.target.id] = item.annotation, item.value
    fields = {
        name: Field(name, module, annotation, default, texts.get(name, ""))
        for name, (annotation, default) in own.items()
    }
    known = {
        name: field._replace(text=texts.get(name) or field.text)
        for name, field in inherited.items()
        if name not in fixed
    }
    return known | fields


def _parameters(args: ast.arguments) -> dict[str, tuple[ast.expr | None, ast.expr | None]]:
    positional = [*args.posonlyargs, *args.args][1:]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    pairs: list[tuple[ast.arg, Any]] = [
        *zip(positional, defaults[-len(positional) :] if positional else [], strict=True),
        *zip(args.kwonlyargs, args.kw_defaults, strict=True),
    ]
    return {arg.arg: (arg.annotation, default) for arg, default in pairs}
