"""Types and defaults of source files: type hints to describe, and values as a configuration writes them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from lit_probsft.cli.help.source import Field, Module

_PLAIN: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "None": None,
    "list": list,
    "dict": dict,
    "tuple": tuple,
    "Iterable": list,
    "Sequence": list,
    "Mapping": Mapping,
}


@functools.cache
def _stub(path: str) -> type:
    """A type that stands for a class that is not imported."""
    module, _, name = path.rpartition(".")
    return type(name, (), {"__module__": module})


def path_of(stub: type) -> str:
    """The import path of the class that a stub stands for."""
    return f"{stub.__module__}.{stub.__name__}"


def hint_of(field: Field) -> Any:
    """The type of a field; classes are types of the same name and module, without content."""
    return Any if field.annotation is None else _hint(field.module, field.annotation)


def _hint(module: Module, node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return None if node.value is None else _hint(module, ast.parse(str(node.value), mode="eval").body)
    if isinstance(node, ast.BinOp):
        return _union(_hint(module, node.left), _hint(module, node.right))
    if isinstance(node, ast.Subscript):
        return _generic(module, ast.unparse(node.value).rpartition(".")[2], node.slice)
    name = ast.unparse(node)
    if name in _PLAIN:
        return _PLAIN[name]
    found = module.find(name) if isinstance(node, ast.Name) else None
    if found is None:
        return Any if isinstance(node, ast.Name) else _stub(_import_path(module, name))
    home, definition = found
    if isinstance(definition, ast.ClassDef):
        return _stub(f"{home.name}.{definition.name}")
    value = definition.value if isinstance(definition, ast.Assign | ast.AnnAssign) else None
    return Any if value is None else _hint(home, value)


def _generic(module: Module, kind: str, inner: ast.expr) -> Any:
    items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if kind == "Literal":
        return Literal[tuple(ast.literal_eval(item) for item in items)]
    if kind == "Callable":
        return Callable[..., _hint(module, items[-1])]
    if kind in ("Optional", "Union"):
        return _union(*(_hint(module, item) for item in items), *([None] if kind == "Optional" else []))
    if kind == "Annotated":
        return _hint(module, items[0])
    origin = _PLAIN.get(kind, Any)
    return origin if origin in (Any, None) else origin[tuple(... if _dots(i) else _hint(module, i) for i in items)]


def _union(*hints: Any) -> Any:
    return Union[hints]  # noqa: UP007  of a tuple


def _dots(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def _import_path(module: Module, name: str) -> str:
    """The import path of a dotted name such as `nn.Module`, as far as the file's imports tell."""
    head, _, rest = name.partition(".")
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom) and any(head == (alias.asname or alias.name) for alias in node.names):
            return f"{node.module}.{name}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname == head:
                    return f"{alias.name}.{rest}"
    return name


def default_of(field: Field) -> str | None:
    """The default as a configuration writes it; None if the field is required."""
    return None if field.default is None else _shown(field.module, field.default)


def default_class(field: Field) -> tuple[str, dict[str, str]] | None:
    """Import path of the class that the default is an instance of, and the arguments that it gives."""
    call = None if field.default is None else _call(field.module, field.default)
    if call is None:
        return None
    module, node = call
    found = module.find_class(_import_path(module, ast.unparse(node.func)))
    if found is None:
        return None
    given = {keyword.arg: _shown(module, keyword.value) for keyword in node.keywords if keyword.arg}
    return f"{found[0].name}.{found[1].name}", given


def _call(module: Module, node: ast.expr) -> tuple[Module, ast.Call] | None:
    """The call that makes an object: the node itself, or what the function of this name returns."""
    if isinstance(node, ast.Call):
        return module, node
    found = module.find(node.id) if isinstance(node, ast.Name) else None
    if found is None or not isinstance(found[1], ast.FunctionDef):
        return None
    returned = next((item.value for item in ast.walk(found[1]) if isinstance(item, ast.Return)), None)
    return (found[0], returned) if isinstance(returned, ast.Call) else None


def _shown(module: Module, node: ast.expr) -> str:
    try:
        return plain(ast.literal_eval(node))
    except ValueError:
        pass
    if isinstance(node, ast.Name) and (found := module.find(node.id)) is not None:
        value = found[1].value if isinstance(found[1], ast.Assign | ast.AnnAssign) else None
        if value is not None:
            return _shown(found[0], value)
    if (call := _call(module, node)) is not None:
        return _shown_call(*call)
    return ast.unparse(node)


def _shown_call(module: Module, call: ast.Call) -> str:
    name = ast.unparse(call.func).rpartition(".")[2]
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name == "field":  # of a dataclass
        factory = given.get("default_factory")
        if isinstance(factory, ast.Lambda):
            return _shown(module, factory.body)
        if factory is not None:
            return {"list": "[]", "dict": "{}"}.get(ast.unparse(factory), ast.unparse(factory))
        return _shown(module, given["default"]) if "default" in given else ""
    options = ", ".join(f"{key} {_shown(module, value)}" for key, value in given.items() if key)
    return f"{name} with {options}" if options else name


def plain(value: object) -> str:
    """A plain value as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(plain, value))}]"
    return "''" if value == "" else str(value)
