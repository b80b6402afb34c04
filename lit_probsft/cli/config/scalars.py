"""The YAML of configurations: one reading of scalars for files, flags and what the parser writes.

Every scalar keeps its spelling, so that `system: 1e3` can be the text "1e3" or a number, as its option wants.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, NamedTuple

import yaml

_FLOAT = "tag:yaml.org,2002:float"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_VALUE = "tag:yaml.org,2002:value"
_FLOAT_PATTERN = re.compile(
    r"""(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


_MOST_VALUES = 30_000
"""A few lines of nested aliases can mean billions of values."""


class Scalar(NamedTuple):
    """A scalar of a file or a flag.

    Attributes:
        text: as it is written, without the quotes of a file.
        value: what YAML reads; the text itself if a file has it in quotes.
    """

    text: str
    value: Any


def plain(tree: Any) -> Any:
    """The values of a tree of scalars, lists and mappings, without their spelling."""
    if isinstance(tree, Scalar):
        return tree.value
    if isinstance(tree, list):
        return [plain(item) for item in tree]
    return {key: plain(item) for key, item in tree.items()} if isinstance(tree, dict) else tree


def read(text: str) -> Any:
    """The tree of a YAML text: lists and mappings with a `Scalar` for each value.

    Raises:
        yaml.YAMLError: the text is no YAML, a mapping has a key twice, or aliases make the tree endless or huge.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return Scalar("", None) if node is None else _tree(loader, node)
    except RecursionError:
        raise yaml.YAMLError("a value contains itself, or is nested too deeply") from None
    finally:
        loader.dispose()


def load(text: str) -> Any:
    """The values of a YAML text.

    Raises:
        yaml.YAMLError: as `read`.
    """
    return plain(read(text))


def dump(content: Any) -> str:
    """YAML that `read` and `load` take for the same values. Members of enumerations become their values."""
    return str(yaml.dump(content, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False))


def _tree(loader: _Loader, node: yaml.Node) -> Any:
    loader.values += 1
    if loader.values > _MOST_VALUES:
        raise yaml.YAMLError(f"more than {_MOST_VALUES} values")
    if isinstance(node, yaml.SequenceNode):
        return [_tree(loader, item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        loader.refuse_duplicates(node)
        loader.flatten_mapping(node)
        if nested := [key for key, _ in node.value if not isinstance(key, yaml.ScalarNode)]:
            problem = "a bracket where a key belongs"
            raise yaml.constructor.ConstructorError(None, None, problem, nested[0].start_mark)
        return {loader.construct_object(key): _tree(loader, item) for key, item in node.value}
    try:
        value = loader.construct_object(node)
    except (ValueError, AttributeError, LookupError):  # an integer of too many digits, a tag of another type
        value = node.value
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):  # JSON writes 😀 as two escapes
        value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return Scalar(value, value)
    return Scalar(node.value, value)


def _resolvers(base: Any) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """YAML 1.1's, except for times and `=`, and `1e3` is a number as in YAML 1.2."""
    kept = {
        first: [(tag, pattern) for tag, pattern in found if tag not in (_FLOAT, _TIMESTAMP, _VALUE)]
        for first, found in base.yaml_implicit_resolvers.items()
    }
    for first in "-+.0123456789":
        kept[first] = [(_FLOAT, _FLOAT_PATTERN), *kept.get(first, [])]
    return kept


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys; PyYAML would keep the last one."""

    yaml_implicit_resolvers = _resolvers(yaml.SafeLoader)
    values = 0
    """How many values have been read so far; each alias counts again."""

    def refuse_duplicates(self, node: yaml.MappingNode) -> None:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in seen:
                    problem = f"duplicate key `{key.value}`, first used in line {seen[key.value]}"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen[key.value] = line


class _Dumper(yaml.SafeDumper):
    """Puts a text in quotes if this reader, or one of YAML 1.1, would take it for something else."""


_Dumper.yaml_implicit_resolvers = {
    first: [*found, (_FLOAT, _FLOAT_PATTERN)] if first in "-+.0123456789" else found
    for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
_Dumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """PyYAML folds line breaks of Unicode unless they are escaped, as they are in double quotes."""
    style = '"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)
