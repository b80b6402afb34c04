"""`chat MODEL`: chats with a model; each line of input is one turn, and the answer is printed while it is generated."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from lit_probsft.cli.arguments import CommandParser
from lit_probsft.errors import UserError
from lit_probsft.parallel.seeds import LARGEST

HELP = "/reset starts a new conversation, /exit or end of input quits, Ctrl-C stops an answer"


def run(args: Sequence[str]) -> None:
    """Answer each line of stdin until it ends or says /exit.

    Raises:
        UserError: for a wrong flag, or a model that cannot be loaded or has no chat template; also for a conversation
            that the model cannot continue, unless stdin is a terminal, where the message is printed.
    """
    parser = CommandParser(
        prog="python -m lit_probsft chat", description="Chat with a model from a run, a folder or the hub."
    )
    parser.add_argument("model", metavar="MODEL", help="exported folder, folder of a run, GGUF file, or hub id")
    parser.add_argument("--system", metavar="TEXT", help="system message of the conversation")
    parser.add_argument(
        "--template-options",
        metavar="MAPPING",
        help="options for the chat template, such as '{enable_thinking: false}' (default: those of training)",
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy decoding (default: 0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus to sample from (default: 1)")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=int, default=512, help="maximum length of an answer (default: 512)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for sampling (default: 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: the accelerator, else cpu)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="dtype of the weights (default: bfloat16 on a GPU, else float32)",
    )
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    options = parser.parse_args(args)
    import torch

    if not 0 <= options.seed <= LARGEST:
        raise UserError("--seed", f"expected a number from 0 to {LARGEST}, got {options.seed}")

    from lit_probsft.cli.chat_session import ChatSession, device_named, load_model
    from lit_probsft.model.generation import Generation

    try:
        generation = Generation(options.max_new_tokens, options.temperature, options.top_p)
    except UserError as error:
        flag = error.argument.rpartition(".")[2].replace("_", "-")
        raise UserError(f"--{flag}", error.problem) from error
    template_options = _mapping(options.template_options)
    model, tokenizer = load_model(
        options.model,
        device_named(options.device),
        options.dtype,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        system=options.system,
        template_options=template_options,
    )
    generation.report_unused(model)
    session = ChatSession(model, tokenizer, generation, options.system, template_options)
    torch.manual_seed(options.seed)
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"{options.model} ({HELP})")
    for line in _lines(terminal):
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            session.reset()
        elif text:
            try:
                session.answer(text)
            except UserError as error:
                if not terminal:
                    raise
                print(error)


def _mapping(text: str | None) -> dict[str, Any]:
    """The options of `--template-options`."""
    import yaml

    from lit_probsft.data.rows.template_options import validate_template_options

    try:
        value = yaml.safe_load(text or "{}")
    except yaml.YAMLError:
        value = text
    return validate_template_options(value, argument="--template-options")


def _lines(terminal: bool) -> Iterator[str]:
    """Lines of stdin. A terminal shows a prompt, and Ctrl-C at the prompt ends the input too."""
    if not terminal:
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):  # missing on Windows; lines cannot be edited then
        import readline  # noqa: F401
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        yield line
