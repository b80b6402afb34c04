"""`chat MODEL`: chats with a model; each line of input is one turn, and the answer is printed while it is generated."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

from lit_probsft.cli.arguments import CommandParser
from lit_probsft.cli.model_flags import add_model_flags, flag_of, tokenizer_options
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
    add_model_flags(parser)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy decoding (default: 0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus to sample from (default: 1)")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=int, default=512, help="maximum length of an answer (default: 512)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for sampling (default: 0)")
    options = parser.parse_args(args)
    import torch

    if not 0 <= options.seed <= LARGEST:
        raise UserError("--seed", f"expected a number from 0 to {LARGEST}, got {options.seed}")

    from lit_probsft.cli.chat_session import ChatSession
    from lit_probsft.evaluation.models import device_named, load_model, model_place
    from lit_probsft.model.generation import Generation

    try:
        generation = Generation(options.max_new_tokens, options.temperature, options.top_p)
    except UserError as error:
        raise flag_of(error) from error
    known = tokenizer_options(options)
    device = device_named(options.device)
    with model_place(options.model) as place:
        model, tokenizer = load_model(place, device, options.dtype, **known)
    generation.report_unused(model)
    session = ChatSession(model, tokenizer, generation, options.system, known["template_options"])
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
