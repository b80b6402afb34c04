"""The table of commands, and `main`, which runs one. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from lit_probsft.errors import UserError, near_matches
from lit_probsft.parallel.parent import exit_with_launcher

TRAINING = {
    "fit": "fine-tune a model; write checkpoints, metrics and a Hugging Face folder to runs/<name>/",
    "validate": "measure NLL, mean p and other metrics on the validation rows",
    "test": "measure the same on the test rows",
    "predict": "write answers to prompts to runs/<name>/predictions.jsonl",
}
"""Commands of the LightningCLI, which take `--config` and every flag of the configuration."""

OTHERS = {
    "configs": "list, show or copy the configurations that come with the package",
    "preview": "show tokenized rows with their masks, and the problems in the data; loads no model",
    "capability": "measure what a model knows of the training rows, and suggest an objective",
    "evaluate": "grade a model's answers to benchmarks or questions of your own",
    "compare": "compare results of evaluate: differences, intervals and tests",
    "report": "write a report on a run: what it learned, what it forgot, which answers and tokens changed",
    "divergence": "compare two models on the rows of a configuration: KL both ways, Jensen-Shannon",
    "chat": "chat with a model from a run, a folder or the hub",
    "export": "convert a checkpoint to a Hugging Face folder",
}
"""All other commands: each is a file of this folder with a function `run(args)`."""

WITH_FLAGS_OF_FIT = ("preview", "capability", "divergence")
"""Other commands that take `--config` and the flags of the configuration."""

START = "Start with: python -m lit_probsft fit --config configs/quickstart.yaml"


def main(args: Sequence[str] | None = None) -> Any:
    """Run one command, from the shell, a test or a notebook.

    Args:
        args: the command and its flags; None reads them from `sys.argv`.

    Returns:
        What the command returns: `fit`, `validate`, `test` and `predict` return the LightningCLI with its `trainer`,
        `model` and `datamodule`.

    Raises:
        UserError: for an error that the caller can fix.
    """
    exit_with_launcher()
    argv = [arg for arg in (sys.argv[1:] if args is None else args) if arg != "--debug"]  # `shell.run` reads it
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return None
    if argv[0] == "--version":
        from lit_probsft import __version__

        print(__version__)
        return None
    command, flags = argv[0], argv[1:]
    if command in TRAINING or command in WITH_FLAGS_OF_FIT:
        from lit_probsft.cli.help.request import print_help, topic_of

        topic = topic_of(flags)
        if topic or (topic is not None and command in TRAINING):
            print_help(topic, command if command in TRAINING else "fit", TRAINING.get(command, ""))
            return None
    if command in OTHERS:
        return import_module(f"lit_probsft.cli.{command}").run(flags)
    if command not in TRAINING:
        known = [*TRAINING, *OTHERS]
        raise UserError(
            "COMMAND", f"expected one of {', '.join(known)}, got {command!r}.{near_matches(command, known)}"
        )
    if not flags:
        raise UserError(command, f"expected flags, got none. {START}. List the flags with {command} --help")
    if command == "fit" and "--dry_run" in flags:
        from lit_probsft.cli.dry_run import run_dry_run

        return run_dry_run(argv)
    from lit_probsft.cli.fit import run_training_command

    return run_training_command(argv)


def _overview() -> str:
    return "\n".join(
        [
            "usage: python -m lit_probsft COMMAND [--config FILE] [--FLAG VALUE ...]",
            "",
            "Fine-tune causal language models with any objective f(p).",
            "",
            "commands:",
            *(f"  {name:<10} {summary}" for name, summary in {**TRAINING, **OTHERS}.items()),
            "",
            START,
            "List the flags of a command: python -m lit_probsft COMMAND --help",
            "Show the traceback of an error: add --debug, or set LIT_PROBSFT_DEBUG=1",
        ]
    )
