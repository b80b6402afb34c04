"""What training made a model forget: lm-eval's tasks on the tuned model and on its base, document by document."""

from __future__ import annotations

import contextlib
import gc
import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lit_probsft.errors import UserError, first_line, near_matches
from lit_probsft.storage.adapter_folder import is_adapter_folder

ARGUMENT = "--retention"
METRICS = ("acc_norm", "prompt_level_strict_acc", "exact_match", "acc")
"""The metric of a task is the first of these that it has, else its first that has a number for each document."""


def measure(
    model_folder: str,
    base: str,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    device: str | None = None,
    batch_size: int | str = 8,
    seed: int = 0,
    chat_template: bool = False,
    include_path: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Run lm-eval's tasks on the base model and on the tuned one.

    Args:
        model_folder: the tuned model, or adapters of `base`, as a Hugging Face folder or hub id.
        base: the model before training.
        tasks: names of tasks, groups or tags of lm-eval, such as `ifeval`, `mmlu`, `hellaswag` and `arc_challenge`, or
            YAML files of tasks.
        limit: the number of documents of each task; of each subtask, for a group. None for all.
        device: such as `cuda:0` or `cpu`; None for a GPU if there is one.
        batch_size: as lm-eval takes it: a number or `auto`.
        seed: of the examples in the prompts, and of sampling where a task samples.
        chat_template: put the prompts through the chat template. Both models need one.
        include_path: a folder with YAML files of further tasks.

    Returns:
        By task: `metric`; `base` and `tuned`, its means over documents; `difference`, tuned minus base, and `se`, its
        standard error, from the differences of the documents; `n`, the number of documents. A group is one task with
        the documents of all its subtasks.

    Raises:
        UserError: lm-eval is missing or does not know a task, or the data of a task is not available.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            ARGUMENT, f'lm-eval is not installed (pip install "lit_probsft[retention]"): {error}'
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=include_path)
    options = {"task_manager": manager, "limit": limit, "apply_chat_template": chat_template, "bootstrap_iters": 0}
    options |= dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
    for task in tasks:  # before a model is loaded
        with _errors_of(task, manager):
            manager.load([task])
    tuned = (base, model_folder) if is_adapter_folder(model_folder) else (model_folder, None)
    found: list[dict[str, Any]] = []
    for name, adapters in ((base, None), tuned):
        model = _model(name, adapters, device, batch_size)
        found.append({})
        for task in tasks:
            with _errors_of(task, manager):
                found[-1][task] = _scores(model, task, options)
        del model
        gc.collect()  # a GPU may not hold both
    return {task: _compared(task, found[0][task], found[1][task]) for task in tasks}


def _model(name: str, adapters: str | None, device: str | None, batch_size: int | str) -> Any:
    from lm_eval.models.huggingface import HFLM

    try:
        return HFLM(pretrained=name, peft=adapters, device=device or "cuda", batch_size=batch_size)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(ARGUMENT, f"lm-eval cannot load {adapters or name}: {first_line(error)}") from error


@contextlib.contextmanager
def _errors_of(task: str, manager: Any) -> Iterator[None]:
    """Turn lm-eval's errors about a task into user errors."""
    try:
        yield
    except UserError:
        raise
    except LookupError as error:
        if task in manager.all_tasks:
            raise
        raise UserError(ARGUMENT, f"lm-eval has no task {task!r}.{near_matches(task, manager.all_tasks)}") from error
    except ImportError as error:
        raise UserError(ARGUMENT, f"{task} needs a package that is not installed: {error}") from error
    except OSError as error:
        problem = f"the data of {task} is not on this machine, and the hub does not have it or cannot be reached"
        raise UserError(ARGUMENT, f"{problem}: {first_line(error)}") from error
    except ValueError as error:
        raise UserError(ARGUMENT, f"{task}: {first_line(error)}") from error


def _scores(model: Any, task: str, options: Mapping[str, Any]) -> tuple[str, dict[tuple[str, int], float]]:
    """The metric of a task, and its value for each document of each subtask."""
    from lm_eval import simple_evaluate

    samples: dict[str, list[dict[str, Any]]] = simple_evaluate(model=model, tasks=[task], **options)["samples"]
    first = next(iter(samples.values()))[0]
    numbers = [name for name in first["metrics"] if isinstance(first[name], int | float)]
    metric = next((name for name in (*METRICS, *numbers) if name in numbers), None)
    if metric is None:
        raise UserError(ARGUMENT, f"{task} has no number for each document; its metrics: {', '.join(first['metrics'])}")
    # A task with several ways to extract the answer has each document several times; the first way counts.
    rows = [(name, row) for name, rows in samples.items() for row in rows if row["filter"] == rows[0]["filter"]]
    return metric, {(name, row["doc_id"]): float(row[metric]) for name, row in rows}


def _compared(task: str, base: tuple[str, Any], tuned: tuple[str, Any]) -> dict[str, Any]:
    (metric, before), (_, after) = base, tuned
    differences = [after[document] - before[document] for document in before]
    return {
        "metric": metric,
        "base": statistics.fmean(before.values()),
        "tuned": statistics.fmean(after.values()),
        "difference": statistics.fmean(differences),
        "se": statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None,
        "n": len(differences),
    }
