"""The pages that `--help` prints: the common flags, one option or class, and every flag."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator

from lit_probsft.cli.help import options
from lit_probsft.cli.help.options import OPTIMIZERS, ROOTS, Option, is_ours
from lit_probsft.cli.help.source import Description, describe
from lit_probsft.cli.help.texts import first_sentence

COMMON = {
    "fit": {
        "model": ("model.model", "model.objective", "model.optimizer.lr", "model.schedule.warmup", "model.lora"),
        "data": (
            "data.train",
            "data.validation",
            "data.validation_fraction",
            "data.max_length",
            "data.batch_size",
            "data.packing",
        ),
        "training": (
            "trainer.max_epochs",
            "trainer.max_steps",
            "trainer.accumulate_grad_batches",
            "trainer.precision",
            "trainer.devices",
            "validate_every",
            "early_stopping.patience",
        ),
        "run": ("config", "name", "seed_everything", "resume", "overwrite", "dry_run", "push_to_hub.repo_id"),
    },
    "validate": {
        "model": ("model.model", "model.objective"),
        "data": ("data.validation", "data.watch", "data.max_length", "data.eval_batch_size"),
        "evaluation": ("weights", "ckpt_path", "trainer.limit_val_batches", "trainer.precision", "trainer.devices"),
        "run": ("config", "name", "runs_dir"),
    },
    "test": {
        "model": ("model.model", "model.objective"),
        "data": ("data.test", "data.max_length", "data.eval_batch_size"),
        "evaluation": ("weights", "ckpt_path", "trainer.limit_test_batches", "trainer.precision", "trainer.devices"),
        "run": ("config", "name", "runs_dir"),
    },
    "predict": {
        "model": (
            "model.model",
            "model.generation.max_new_tokens",
            "model.generation.temperature",
            "model.generation.top_p",
        ),
        "data": ("data.predict", "data.eval_batch_size"),
        "evaluation": ("weights", "ckpt_path", "trainer.limit_predict_batches", "trainer.precision", "trainer.devices"),
        "run": ("config", "name", "runs_dir"),
    },
}
"""The flags that people use, in groups."""

_EXAMPLES = {
    "fit": (
        "--config configs/quickstart.yaml",
        "--config configs/quickstart.yaml --model.objective NegP --name negp",
    ),
    "validate": ("--config runs/quickstart/config.yaml", "--config runs/quickstart/config.yaml --weights base"),
    "test": ("--config runs/quickstart/config.yaml --data.test test.jsonl",),
    "predict": ("--config runs/quickstart/config.yaml --data.predict prompts.jsonl",),
}

_TOPICS = (
    ("model, data, trainer", "the options of one part"),
    ("model.lora", "one option and what it takes; also data.train, model.optimizer, ..."),
    ("Power", "the options of a class; also LoRA, Rows, AdamW, mine.Objective, ..."),
    ("all", "every flag"),
)


def overview(command: str, summary: str) -> str:
    """The common flags of a command, examples, and where the rest is."""
    lines = [f"usage: python -m lit_probsft {command} [--config FILE] [--FLAG VALUE ...]", "", _sentence(summary), ""]
    lines += [f"  python -m lit_probsft {command} {example}" for example in _EXAMPLES[command]]
    for group, places in COMMON[command].items():
        lines += ["", f"{group}:"]
        for place in places:
            option = options.option_at(place)
            assert option is not None, place
            default = "" if option.default == "null" else _default(option)
            lines += _in_columns(f"--{place}", first_sentence(option.text) + default, 36)
    lines += ["", "more:"]
    for topic, text in _TOPICS:
        lines += _in_columns(f"{command} --help {topic}", text, 36)
    return "\n".join(lines)


def page(topic: str, command: str) -> str:
    """The page of one option, of a class, or with `all` of every flag.

    Raises:
        UserError: nothing has this name.
    """
    if topic == "all":
        entries = [_entry(option, f"--{option.place}") for option in options.all_options(command)]
        return "\n".join(line for entry in entries for line in entry)
    place = topic.removeprefix("--").replace(".init_args", "").removesuffix(".class_path")
    if place in ROOTS:
        return "\n".join(_class_page(describe(ROOTS[place]), place))
    if len(owned := options.owners(place)) > 1:
        sections = [[f"{name}:", *_entry(option, f"--{option.place}")] for name, option in owned]
        return "\n".join(line for section in sections for line in section)
    if (option := options.option_at(place)) is not None:
        return "\n".join(_option_page(option))
    if (found := options.class_named(topic)) is not None:
        return "\n".join(_class_page(found[0], "", of=found[1]))
    raise options.unknown(topic)


def _option_page(option: Option) -> Iterator[str]:
    yield from _entry(option._replace(classes=[]), f"--{option.place}")
    if not option.classes:
        return
    if len(option.classes) > 1 or option.is_optimizer:
        yield ""
        yield "classes, or your own by its import path (--help CLASS shows the options of one):"
        for path in OPTIMIZERS if option.is_optimizer else sorted(option.classes, key=_name_in_lower_case):
            found = describe(path)
            name = path if option.is_optimizer else path.rpartition(".")[2]
            yield from _in_columns(name, first_sentence(found.text) if found else "", 28)
    yield ""
    yield from _class_page(describe(option.classes[0]), option.place, given=option.given)


def _class_page(
    found: Description | None, place: str, of: str = "", given: dict[str, str] | None = None
) -> Iterator[str]:
    if found is None:
        return
    yield f"{found.name} ({found.path}){f', a class for {of}' if of else ''}"
    text = found.text if is_ours(found.path) else first_sentence(found.text)
    for paragraph in text.split("\n\n"):
        yield ""
        yield from _wrapped(" ".join(paragraph.split()), "")
    fields = options.options_of(place, found.path, given)
    if fields:
        yield ""
    for option in fields:
        yield from _entry(option, f"--{option.place}" if place else option.place)


def _entry(option: Option, name: str) -> Iterator[str]:
    """An option with its type and default, and its text below."""
    yield f"  {name}  {option.words}{_default(option)}"
    yield from _wrapped(option.text, "      ")
    if len(option.classes) > 1:
        names = [path.rpartition(".")[2] for path in sorted(option.classes, key=_name_in_lower_case)]
        yield from _wrapped(f"Classes: {', '.join(names)}.", "      ")


def _name_in_lower_case(path: str) -> str:
    return path.rpartition(".")[2].lower()


def _default(option: Option) -> str:
    if option.words == "no value" or option.default == "":
        return ""
    return " (required)" if option.default is None else f" (default: {option.default})"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _in_columns(name: str, text: str, width: int) -> Iterable[str]:
    lines = textwrap.wrap(text, max(_width() - width - 2, 30), break_on_hyphens=False) or [""]
    first, *rest = lines
    if len(name) >= width:
        return [f"  {name}", *(" " * (width + 2) + line for line in lines)]
    return [f"  {name:<{width}}{first}".rstrip(), *(" " * (width + 2) + line for line in rest)]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def _width() -> int:
    return min(shutil.get_terminal_size((100, 24)).columns, 120)
