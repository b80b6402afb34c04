"""The command line: which commands there are and who answers them. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lit_probsft.errors import UserError, first_rank, near_matches

TRAINING = {
    "fit": "fine-tune a model and leave runs/<name>/ with checkpoints, metrics and a Hugging Face folder",
    "validate": "NLL, mean p and the others on the validation rows",
    "test": "the same on the test rows",
    "predict": "write answers to prompts into runs/<name>/predictions.jsonl",
}
"""Commands of Lightning's command line; `--config` and every flag of the configuration go with them."""

USAGE = "python -m lit_probsft COMMAND [--config FILE] [--FLAG VALUE ...]"


def main(args: Sequence[str] | None = None) -> Any:
    """Run one command; serves the shell, tests and notebooks.

    Args:
        args: the command and its flags; None takes them from the shell.

    Returns:
        For `fit`, `validate`, `test` and `predict` the command line object with its `trainer`, `model` and
        `datamodule`.

    Raises:
        UserError: for anything that only the caller can mend.
    """
    argv = [arg for arg in (sys.argv[1:] if args is None else args) if arg != "--debug"]  # `run` reads it
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return None
    if argv[0] == "--version":
        from lit_probsft import __version__

        print(__version__)
        return None
    command, rest = argv[0], argv[1:]
    if command in _OTHERS:
        return _OTHERS[command][0](rest)
    if command not in TRAINING:
        known = [*TRAINING, *_OTHERS]
        raise UserError(
            "COMMAND", f"expected one of {', '.join(known)}, got {command!r}.{near_matches(command, known)}"
        )
    if command == "fit" and "--dry_run" in rest:
        from lit_probsft.cli.dry_run import run_dry_run

        return run_dry_run(argv)
    from lit_probsft.cli.fit import run_training_command

    return run_training_command(argv)


def run() -> NoReturn:
    """`main` for the shell, where an error is told once, by the rank where it happened first: a user's in one message
    without a traceback, with exit status 2, any other as its traceback, with 1; after a signal 143, or 130."""
    # Threads that spin while they wait make a small model several times slower on a busy machine; read once, by torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    together = True  # do all ranks end here?
    try:
        main()
        status = 0
    except UserError as error:
        message = f"lit_probsft: error: {error}"
        if "--debug" in sys.argv[1:] or os.environ.get("LIT_PROBSFT_DEBUG", "") not in ("", "0"):
            message = _whole_traceback(error) + message
        status, together = _report(error, 2, message), False
    except SystemExit as stop:  # on a signal; or Lightning's way of passing an interruption on
        status = stop.code if isinstance(stop.code, int) else 1
        status = 130 if isinstance(stop.__context__, KeyboardInterrupt) else status
        message, together = f"lit_probsft: {getattr(stop, 'message', 'interrupted')}", getattr(stop, "together", True)
        if not together:
            status = _report(stop, status, message)
        elif first_rank() and status:  # --help ends with 0
            print(message, file=sys.stderr)
    except KeyboardInterrupt:
        status, together = 130, False
        if first_rank():
            print("lit_probsft: interrupted", file=sys.stderr)
    except Exception as error:
        status, together = _report(error, 1, None), False
    signals = sys.modules.get("lit_probsft.parallel.processes")
    if signals is not None:
        # Others wait for this one in vain once it has failed; otherwise they are about to end.
        signals.end_children(patience=30 if together else 2)
    sys.stdout.flush()
    sys.stderr.flush()
    if not together and not _alone():
        os._exit(status)  # a communicator whose other end has died may wait for it for ever
    sys.exit(status)


def _whole_traceback(error: BaseException) -> str:
    """With what `raise ... from None` leaves out: whoever asks for a traceback wants to see where it began."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__suppress_context__ = False
        seen = seen.__cause__ or seen.__context__
    return "".join(traceback.format_exception(error))


def _report(error: BaseException, status: int, message: str | None) -> int:
    signals = sys.modules.get("lit_probsft.parallel.processes")
    if signals is not None:  # there may be other processes, which have failed too
        return int(signals.report(error, status, message))
    if first_rank():
        print(message, file=sys.stderr) if message else traceback.print_exception(error)
    return status


def _alone() -> bool:
    return os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")) == "1"


def export(args: Sequence[str]) -> None:
    """`export CKPT OUT`: a checkpoint alone becomes a folder that transformers loads."""
    parser = _Parser(prog="python -m lit_probsft export", description=_OTHERS["export"][1])
    parser.add_argument(
        "checkpoint", metavar="CKPT", type=Path, help="a checkpoint of `fit`, such as runs/NAME/checkpoints/last.ckpt"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the Hugging Face folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--push-to-hub", metavar="ID", help="upload OUT to this repository of the hub, such as me/model"
    )
    form = parser.add_mutually_exclusive_group()
    for name, text in (("merged", "a plain model"), ("adapter", "peft's folder of adapters alone")):
        form.add_argument(
            f"--{name}",
            dest="form",
            action="store_const",
            const=name,
            help=f"{text}, whatever model.lora.export says",
        )
    parser.add_argument("--base", metavar="MODEL", help="where the base of adapters lies, if it has moved")
    options = parser.parse_args(args)
    import transformers

    from lit_probsft.run.checkpoint_export import export_checkpoint
    from lit_probsft.run.export import loader_of
    from lit_probsft.run.upload import HubOptions, ensure_repo, upload

    flag = "--push-to-hub"
    hub = ensure_repo(HubOptions(options.push_to_hub), flag) if options.push_to_hub else None
    transformers.utils.logging.disable_progress_bar()
    export_checkpoint(
        options.checkpoint, options.out, overwrite=options.overwrite, form=options.form, base=options.base
    )
    print(f"{options.out}: ready for {loader_of(options.out)}")
    if hub is not None:
        print(upload(hub, options.out, flag))


def configs(args: Sequence[str]) -> None:
    """`configs list | show NAME | copy NAME [OUT]`: what comes with the package."""
    parser = _Parser(prog="python -m lit_probsft configs", description=_OTHERS["configs"][1])
    commands = parser.add_subparsers(dest="what", required=True, metavar="list | show NAME | copy NAME [OUT]")
    commands.add_parser("list", help="names, and what each trains")
    show, copy = (
        commands.add_parser(name, help=text)
        for name, text in (("show", "print one"), ("copy", "write one, and the parts it is made of, to a folder"))
    )
    for one in (show, copy):
        one.add_argument("name", metavar="NAME", help="as `configs list` says it")
    copy.add_argument("out", metavar="OUT", nargs="?", type=Path, default=Path("configs"), help="a folder (./configs)")
    copy.add_argument("--overwrite", action="store_true", help="replace files that differ")
    options = parser.parse_args(args)
    from lit_probsft.cli import configs as recipes

    if options.what == "list":
        found = recipes.names()
        width = max(map(len, found))
        print("\n".join(f"{name:<{width}}  {text}" for name, text in found.items()))
    elif options.what == "show":
        print(recipes.path_of(options.name).read_text(encoding="utf-8"), end="")
    else:
        written = recipes.copy(options.name, options.out, overwrite=options.overwrite)
        print("\n".join(map(str, written)))
        print(f"\npython -m lit_probsft fit --config {written[0]}")


def preview(args: Sequence[str]) -> Any:
    """`preview --config C`: rows as they will be learnt; all other flags are those of fit."""
    parser = _Parser(prog="python -m lit_probsft preview", description=_OTHERS["preview"][1])
    parser.add_argument("--rows", type=int, default=3, help="how many to show (3)")
    parser.add_argument(
        "--split", choices=("train", "validation", "test", "predict"), default="train", help="of which rows (train)"
    )
    parser.add_argument("--html", type=Path, help="write a page as well")
    parser.add_argument(
        "--config", dest="unused", metavar="FILE", help="the configuration of a run; more flags as fit's"
    )
    if any(arg in ("-h", "--help") for arg in args):
        parser.parse_args(["--help"])
    own, rest = _apart(list(args), ("--rows", "--split", "--html"))
    from lit_probsft.cli.preview import run_preview

    return run_preview(parser.parse_args(own), rest)


def capability(args: Sequence[str]) -> Any:
    """`capability --config C`: what the model knows of the training rows; all other flags are those of validate."""
    parser = _Parser(prog="python -m lit_probsft capability", description=_OTHERS["capability"][1])
    parser.add_argument("--sample", type=int, metavar="N", help="run over N rows drawn at random, or a stream's first")
    parser.add_argument(
        "--weights", dest="unused", metavar="FOLDER", help="a model's folder in place of the base model (base)"
    )
    parser.add_argument(
        "--config", dest="unused", metavar="FILE", help="the configuration of a run; more flags as validate's"
    )
    if any(arg in ("-h", "--help") for arg in args):
        parser.parse_args(["--help"])
    own, rest = _apart(list(args), ("--sample",))
    from lit_probsft.cli.capability import run_capability

    return run_capability(parser.parse_args(own).sample, rest)


def divergence(args: Sequence[str]) -> Any:
    """`divergence --config C`: two models compared on a split's supervised tokens; all other flags are those of fit."""
    parser = _Parser(prog="python -m lit_probsft divergence", description=_OTHERS["divergence"][1])
    what = "a folder, a hub id, `base` for the configuration's model, `run` for what its run has exported"
    parser.add_argument("--model-a", default="base", metavar="MODEL", help=f"{what} (base)")
    parser.add_argument("--model-b", default="run", metavar="MODEL", help="the same (run)")
    splits = ("train", "validation", "test")
    parser.add_argument("--split", choices=splits, default="validation", help="of which rows (validation)")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32", "float64"), default="float32", help="of both models (float32)"
    )
    parser.add_argument("--out", type=Path, help="the file to write (runs/NAME/divergence.json)")
    parser.add_argument(
        "--config", dest="unused", metavar="FILE", help="the configuration of a run; more flags as fit's"
    )
    if any(arg in ("-h", "--help") for arg in args):
        parser.parse_args(["--help"])
    own, rest = _apart(list(args), ("--model-a", "--model-b", "--split", "--dtype", "--out"))
    options = parser.parse_args(own)
    from lit_probsft.cli.divergence import run_divergence

    return run_divergence(options, rest)


def _apart(args: list[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags in `names` with their values, and all others."""
    own: list[str] = []
    rest: list[str] = []
    while args:
        flag = args.pop(0)
        mine = flag.partition("=")[0] in names
        (own if mine else rest).append(flag)
        if mine and "=" not in flag and args:
            own.append(args.pop(0))
    return own, rest


def report(args: Sequence[str]) -> Any:
    """`report RUN`: what a run has left behind, as one page."""
    parser = _Parser(prog="python -m lit_probsft report", description=_OTHERS["report"][1])
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run, such as runs/quickstart")
    parser.add_argument("--html", type=Path, help="where the page is written to (report.html in that folder)")
    options = parser.parse_args(args)
    from lit_probsft.cli.report import run_report

    return run_report(options)


def chat(args: Sequence[str]) -> None:
    """`chat MODEL`: a talk with a model, line by line."""
    parser = _Parser(prog="python -m lit_probsft chat", description=_OTHERS["chat"][1])
    parser.add_argument("model", metavar="MODEL", help="an exported folder, the folder of a run, or a hub id")
    parser.add_argument("--system", metavar="TEXT", help="a system text in front of the talk")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus that is sampled from (1)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="of an answer, at most (512)")
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled (0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda ... (the accelerator, if there is one)")
    types = ("auto", "float32", "bfloat16", "float16")
    parser.add_argument(
        "--dtype", choices=types, default="auto", help="of the weights (bfloat16 on a GPU, else float32)"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that comes with the model")
    options = parser.parse_args(args)
    from lit_probsft.cli.chat import run_chat

    run_chat(options)


class _Parser(argparse.ArgumentParser):
    """Says in our words what argparse refuses, and takes no flag for another that begins like it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        usage = f" (usage: {' '.join(self.format_usage().split()[1:])})"
        if match := re.fullmatch(r"the following arguments are required: (.*)", message):
            raise UserError(match[1], f"expected a value{' for each' * (', ' in match[1])}, got none{usage}")
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            flags = [flag for action in self._actions for flag in action.option_strings]
            said = (
                f"there is no such option.{near_matches(match[1], flags)}"
                if match[1][0] == "-"
                else "expected no more arguments"
            )
            raise UserError(match[1], f"{said}{usage}")
        if match := re.fullmatch(r"argument (.+?): expected one argument", message):
            raise UserError(match[1], "expected a value, got none")
        if match := re.fullmatch(r"argument (.+?): invalid int value: (.*)", message):
            raise UserError(match[1], f"expected a whole number, got {match[2]}")
        if match := re.fullmatch(r"argument (.+?): invalid choice: '(.*)' \(choose from (.*)\)", message):
            choices = match[3].replace("'", "").split(", ")
            place = match[1] if match[1].startswith("-") else "COMMAND"
            raise UserError(
                place, f"expected one of {', '.join(choices)}, got {match[2]!r}.{near_matches(match[2], choices)}"
            )
        raise UserError(self.prog.split()[-1], f"{message}{usage}")


_OTHERS: dict[str, tuple[Callable[[Sequence[str]], Any], str]] = {
    "configs": (configs, "list, show or copy the configurations that come with the package"),
    "preview": (preview, "show rows as they will be learnt, and what is wrong with others; loads no model"),
    "capability": (capability, "what the model knows of the training rows, and which objective fits that"),
    "divergence": (divergence, "how far two models are apart on the rows of a configuration: KL both ways, JS"),
    "chat": (chat, "talk with a model: one that a run has exported, or one of the hub"),
    "export": (export, "write the Hugging Face folder of a checkpoint; needs nothing but it, and the base of adapters"),
    "report": (report, "write one page about a run: what it has learnt and forgotten, and which tokens it moved"),
}


def _overview() -> str:
    commands = {**TRAINING, **{name: text for name, (_, text) in _OTHERS.items()}}
    lines = [f"usage: {USAGE}", "", "Fine-tune causal language models with any objective f(p).", "", "commands:"]
    lines += [f"  {name:<10} {text}" for name, text in commands.items()]
    lines += [
        "",
        "python -m lit_probsft COMMAND --help lists the flags of a command; start with",
        "python -m lit_probsft fit --config configs/quickstart.yaml",
        "--debug (or LIT_PROBSFT_DEBUG=1) with any of them shows the traceback of an error as well",
    ]
    return "\n".join(lines)
