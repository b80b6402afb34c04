"""The flags of commands that load a model by name: `chat` and `evaluate`."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from lit_probsft.cli.arguments import CommandParser, path_or_name
from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from lit_probsft.evaluation.models import TokenizerOptions


def add_model_flags(parser: CommandParser) -> None:
    """Add MODEL and the flags that say how it is loaded and prompted."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=path_or_name,
        help="exported folder, folder of a run, checkpoint, adapters, GGUF file, or hub id",
    )
    flags = parser.add_argument_group("the model and its prompts")
    flags.add_argument("--system", metavar="TEXT", help="system message of the conversation")
    flags.add_argument(
        "--chat-template",
        metavar="TEMPLATE",
        help="a file or Jinja text, or `plain` for texts without a template (default: the model's own)",
    )
    flags.add_argument(
        "--template-options",
        metavar="MAPPING",
        help="options for the chat template, such as '{enable_thinking: false}' (default: those of training)",
    )
    flags.add_argument("--device", default="auto", help="cpu, cuda, ... (default: the accelerator, else cpu)")
    flags.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="dtype of the weights (default: bfloat16 on a GPU, else float32)",
    )
    flags.add_argument("--revision", help="branch, tag or commit on the hub")
    flags.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def tokenizer_options(flags: Namespace) -> TokenizerOptions:
    """The options of `load_tokenizer` and `load_model` that the flags give.

    Raises:
        UserError: `--template-options` is not a mapping.
    """
    return {
        "revision": flags.revision,
        "trust_remote_code": flags.trust_remote_code,
        "chat_template": flags.chat_template,
        "system": flags.system,
        "template_options": _mapping(flags.template_options),
    }


def flag_of(error: UserError) -> UserError:
    """The error with its argument as a flag: `max_new_tokens` becomes `--max-new-tokens`."""
    return UserError("--" + error.argument.rpartition(".")[2].replace("_", "-"), error.problem)


def _mapping(text: str | None) -> dict[str, Any]:
    """The options of `--template-options`."""
    import yaml

    from lit_probsft.data.rows.template_options import validate_template_options

    try:
        value = yaml.safe_load(text or "{}")
    except yaml.YAMLError:
        value = text
    return validate_template_options(value, argument="--template-options")
