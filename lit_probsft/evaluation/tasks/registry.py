"""Tasks by name, by import path, or from a file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from lit_probsft.data.rows.columns import shown_value
from lit_probsft.data.rows.imports import import_callable
from lit_probsft.errors import UserError, errors_within, first_line, near_matches
from lit_probsft.evaluation.tasks.base import Task
from lit_probsft.evaluation.tasks.choices import Choices, Medical, MMLUProX, OpenBookQA, PubMedQA
from lit_probsft.evaluation.tasks.exact import Exact, Figlet
from lit_probsft.evaluation.tasks.math import AIME24, AIME25, AMC23, GSM8K, Math, Math500, MinervaMath, OlympiadBench

BENCHMARKS: Mapping[str, type[Task]] = {
    "math500": Math500,
    "minerva_math": MinervaMath,
    "olympiadbench": OlympiadBench,
    "aime24": AIME24,
    "aime25": AIME25,
    "amc23": AMC23,
    "gsm8k": GSM8K,
    "medical": Medical,
    "pubmedqa": PubMedQA,
    "openbookqa": OpenBookQA,
    "mmlu_prox": MMLUProX,
    "figlet": Figlet,
}
"""Tasks with rows of their own, by name."""

READY: Mapping[str, type[Task]] = {kind.__name__: kind for kind in (Math, Choices, Exact)}
"""Tasks for a user's own rows."""

Named = str | Mapping[str, Any]
"""A task as a text, such as `math500`, or as a mapping with `class_path` and `init_args`."""


def tasks_named(
    spec: str | Sequence[Named] | Mapping[str, Named], data_dir: str | Path | None = None
) -> dict[str, Task]:
    """Build tasks.

    Each is named by `math500`; `medical/NEJM`, one group of it; `Math:mine.jsonl`, a class and its `path`; or
    `my_file.MyTask`, an import path. In a list or a YAML file it may also be a mapping with `class_path` and
    `init_args`.

    Args:
        spec: names separated by commas, a list, a mapping from names to tasks, or a .yaml file with one of these.
        data_dir: a folder with local files for the tasks that have `files`, see `Task`.

    Returns:
        The tasks by name, in order.

    Raises:
        UserError: a task does not exist, refuses an option, is named twice, or has no file in `data_dir`.
    """
    if isinstance(spec, str):
        spec = _read(spec) if spec.endswith((".yaml", ".yml")) else [part.strip() for part in spec.split(",")]
    if isinstance(spec, Mapping) and "class_path" in spec:
        spec = [spec]
    if isinstance(spec, str) or not isinstance(spec, Sequence | Mapping) or not spec:
        raise UserError("tasks", f"expected a list of tasks, got {shown_value(spec)}")
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise UserError("data_dir", f"no such folder: {str(data_dir)!r}")
    tasks: dict[str, Task] = {}
    for given, named in spec.items() if isinstance(spec, Mapping) else ((None, named) for named in spec):
        name, kind, arguments = _parsed(named)
        name = name if given is None else str(given)
        if name in tasks:
            raise UserError("tasks", f"two tasks are named {name!r}; a .yaml file can name them: `a: {name}`")
        with errors_within(f"tasks.{name}"):
            tasks[name] = _with_local_files(_built(kind, arguments), data_dir)
    return tasks


def _parsed(named: Any) -> tuple[str, type[Task], dict[str, Any]]:
    """The name, the class and the arguments of one task."""
    group = ""
    if isinstance(named, Mapping) and {"class_path"} <= {*named} <= {"class_path", "init_args"}:
        name, arguments = str(named["class_path"]), dict(named.get("init_args") or {})
    elif isinstance(named, str):
        name, _, path = named.partition(":")
        name, _, group = name.partition("/")
        arguments = {**({"path": path} if path else {}), **({"groups": [group]} if group else {})}
    else:
        raise UserError("tasks", f"expected a name, or class_path and init_args, got {shown_value(named)}")
    kind = _class_named(name)
    file = arguments.get("path")
    own = Path(file).name.split(".")[0] if isinstance(file, str) else kind.__name__
    name = next((name for name, benchmark in BENCHMARKS.items() if benchmark is kind), own)
    return f"{name}/{group}" if group else name, kind, arguments


def _class_named(name: str) -> type[Task]:
    known = {**BENCHMARKS, **READY, **{kind.__name__: kind for kind in BENCHMARKS.values()}}
    if name in known:
        return known[name]
    if "." not in name:
        listed = [*BENCHMARKS, *READY]
        hint = near_matches(name, listed) or f" There are {', '.join(listed)}, and my_file.MyTask."
        raise UserError("tasks", f"no task {name!r}.{hint}")
    kind: Any = import_callable(name, "tasks", "class", "my_file.MyTask")
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise UserError("tasks", f"expected a subclass of lit_probsft.evaluation.tasks.Task, got {name}")
    return kind


def _built(kind: type[Task], arguments: Mapping[str, Any]) -> Task:
    """A task, after its arguments are checked against the types of its fields."""
    known = [field.name for field in dataclasses.fields(kind)]
    try:
        hints = get_type_hints(kind)
        for name, value in arguments.items():
            if name not in known:
                raise UserError(name, f"{kind.__name__} has no option {name!r}.{near_matches(name, known)}")
            if not _fits(value, hints[name]):
                expected = hints[name].__name__ if isinstance(hints[name], type) else hints[name]
                raise UserError(name, f"expected {expected}, got {shown_value(value)}")
        return kind(**arguments)
    except UserError:
        raise
    except Exception as error:  # whatever the constructor of a user's class raises
        raise UserError("", f"{kind.__name__} refuses its arguments: {first_line(error)}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a YAML file has a type; anything has one that YAML does not know."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(one, get_args(hint)[0]) for one in value)
    return hint not in (str, int, float, bool, type(None)) or isinstance(value, hint)


def _with_local_files(task: Task, data_dir: str | Path | None) -> Task:
    """The task with the first of its files that is in the folder."""
    if data_dir is None or task.path is not None or not task.files:
        return task
    folder = Path(data_dir).expanduser()
    for name in task.files:
        if any(folder.glob(re.sub(r"\{\w+\}", "*", name))):
            return dataclasses.replace(task, path=str(folder / name))
    raise UserError("", f"expected {' or '.join(task.files)} in {str(data_dir)!r}, found none")


def _read(file: str) -> Any:
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError("tasks", f"cannot read {file!r}: {first_line(error)}") from error
