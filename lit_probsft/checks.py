"""What is wrong with a configuration and can be told before anything is built, and where an error belongs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace

from lit_probsft.errors import UserError
from lit_probsft.intervals import Every


def check_config_files(args: Sequence[str]) -> None:
    """Refuse a configuration file that cannot be read, with its name; one that is not there is the parser's to
    refuse."""
    for index, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag not in ("--config", "-c"):
            continue
        name = value if equals else args[index + 1] if index + 1 < len(args) else ""
        path = Path(name).expanduser()
        if not name or not path.exists():
            continue
        if not path.is_file():
            raise UserError(f"--config: expected a file, {name} is a folder")
        try:
            content = yaml.safe_load(path.read_bytes().decode("utf-8"))
        except OSError as error:
            raise UserError(f"--config: expected a file that can be read, got {name}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"--config: expected a YAML file in UTF-8, {name} is not: {error}") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f" line {mark.line + 1}" if mark is not None else ""
            problem = getattr(error, "problem", None) or first_line(error)
            raise UserError(f"--config: {name}{where}: not valid YAML: {problem}") from error
        if not isinstance(content, dict):
            got = "an empty file" if content is None else f"a {type(content).__name__}"
            raise UserError(f"--config: expected a mapping with model, data and trainer in {name}, got {got}")
        for part in ("model", "data", "trainer"):
            inner = content.get(part)
            if inner is not None and not isinstance(inner, dict | str):  # a text may name a file of its own
                raise UserError(f"{part}: expected a mapping in {name}, got {inner!r}")


def check_trainer(trainer: Namespace, command: str) -> None:
    """Refuse values that Lightning takes but that train nothing or the wrong way."""
    clip = trainer.gradient_clip_val
    if clip is not None and clip < 0:
        raise UserError(f"trainer.gradient_clip_val: expected 0 (no clipping) or more, got {clip}")
    if trainer.gradient_clip_algorithm not in (None, "norm", "value"):
        raise UserError(
            f"trainer.gradient_clip_algorithm: expected norm or value, got {trainer.gradient_clip_algorithm!r}"
        )
    for name in ("max_epochs", "max_steps"):
        number = trainer[name]
        if number is not None and number < -1:
            raise UserError(f"trainer.{name}: expected at least 1, or -1 for no limit, got {number}")
    if command != "fit":
        return
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer[name] is not None and trainer[name] == 0:
            raise UserError(
                f"trainer.{name}: expected more than 0, since nothing would be trained; got {trainer[name]}"
            )


def check_intervals(config: Namespace) -> Every | None:
    """Refuse shares of an epoch of a stream, and two ways to say when to validate; returns when that is."""
    every = Every.of(config.validate_every, "validate_every")
    for name, usual in (("val_check_interval", None), ("check_val_every_n_epoch", 1)):
        if every is not None and config.trainer[name] != usual:
            raise UserError(f"validate_every: expected it or trainer.{name}, got both")
    if "init_args" in config.data and config.data.init_args.get("streaming"):
        for interval in (every, Every.of(config.checkpoints.save_every, "checkpoints.save_every")):
            if interval is not None:
                interval.refuse_stream()
    return every


def read_checkpoint(path: Path, argument: str, weights_only: bool | None) -> dict[str, Any]:
    """What is in a checkpoint, the weights left on the disk; empty for one that Lightning alone knows how to read."""
    if not path.exists():
        raise UserError(f"{argument}: expected a checkpoint, there is none at {path}")
    if path.is_dir() or weights_only is False:
        return {}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a file that is cut short or no checkpoint at all
        raise UserError(
            f"{argument}: expected a whole checkpoint, {path} cannot be read: {first_line(error)}"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{argument}: expected a checkpoint written by `lit_probsft fit`, {path} is none")
    return content


def with_prefix(error: UserError, config: Namespace) -> UserError:
    """`error` from a constructor, which knows its field but not where in the configuration it stands."""
    message = str(error)
    field = message.partition(":")[0]
    if field.startswith(("schedule.", "generation.")):
        return UserError(f"model.{message}")
    data = config.data.init_args if "init_args" in config.data else Namespace()
    parts = [part for part in ("train", "validation", "test", "predict", "tokenizer") if part in data]
    for part in parts:
        if (place := _place(data[part], field, message)) is not None:
            return UserError(f"data.{part}.{place}{message}")
    mixtures = [part for part in parts if isinstance(data[part], Namespace) and "init_args.sources" in data[part]]
    if len(mixtures) == 1 and re.match(r"sources\b|size$", field):
        return UserError(f"data.{mixtures[0]}.{message}")
    return error


def _place(options: Any, field: str, message: str) -> str | None:
    """Where within `options` a class has `field` with the value that `message` ends with; "" or a path with a dot."""
    if isinstance(options, Namespace):
        options = vars(options)
    if not isinstance(options, dict):
        return None
    if message.endswith(f"got {_at(options, field.split('.'))}"):
        return ""
    for name, value in options.items():
        if (place := _place(value, field, message)) is not None:
            return place if name == "init_args" else f"{name}.{place}"
    return None


def _at(options: Any, path: list[str]) -> Any:
    """What stands at a path of names; `none` where nothing is given, and `...` where there is no such path."""
    for name in path:
        if not isinstance(options, dict | Namespace) or name not in options:
            return ...
        options = options[name]
    return "none" if options is None else options


def first_line(error: BaseException) -> str:
    """What an exception of somebody else says, as far as it fits into a line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
