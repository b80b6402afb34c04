"""`divergence --config C`: compares two models on the supervised tokens of a split."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_probsft.cli.arguments import CommandParser, path_argument
from lit_probsft.errors import UserError

if TYPE_CHECKING:
    import torch

    from lit_probsft.data import InstructionDataModule
    from lit_probsft.model import ModelSource
    from lit_probsft.run.folder import RunFolder

BASE, RUN = "base", "run"
"""Names for the model of the configuration, and for the model that its run has exported."""


def run(args: Sequence[str]) -> dict[str, Any]:
    """Compare the models, write divergence.json and return its content.

    Raises:
        UserError: for a wrong flag, a missing model, or two models with different tokens.
    """
    parser = CommandParser(
        prog="python -m lit_probsft divergence",
        description="Compare two models on the supervised tokens of a split: KL divergence both ways, Jensen-Shannon "
        "divergence, NLL.",
        epilog="--config FILE and all other flags are those of fit. See fit --help, or --help model.lora.",
    )
    model = f"a folder, a hub id, `{BASE}` for the configuration's model, or `{RUN}` for the one its run exported"
    parser.add_argument("--model-a", default=BASE, metavar="MODEL", help=f"{model} (default: {BASE})")
    parser.add_argument("--model-b", default=RUN, metavar="MODEL", help=f"the other model (default: {RUN})")
    splits = ("train", "validation", "test")
    parser.add_argument("--split", choices=splits, default="validation", help="rows to use (default: validation)")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32", "float64"),
        default="float32",
        help="dtype of both models (default: float32)",
    )
    parser.add_argument(
        "--out", metavar="FILE", type=path_argument, help="file to write (default: runs/NAME/divergence.json)"
    )
    options, flags = parser.parse_known_args(args)
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise UserError("--out", f"expected a file in an existing folder, got {str(options.out)!r}")
    if options.out is not None and options.out.is_dir():
        raise UserError("--out", f"expected a file, {str(options.out)!r} is a folder")
    import torch

    from lit_probsft.analysis.divergence import measure_divergence
    from lit_probsft.cli.parts import parts_of
    from lit_probsft.storage.atomic import write_json
    from lit_probsft.training.compatibility import check_fits

    module, datamodule, folder, trainer = parts_of(flags)
    assert module.source is not None
    dtype = getattr(torch, options.dtype)
    names = {"--model-a": options.model_a, "--model-b": options.model_b}
    sources = {flag: _source(flag, name, module.source, folder, dtype) for flag, name in names.items()}
    for flag, source in sources.items():
        if names[flag] != BASE:
            _check_tokens(flag, source, datamodule.tokenizer)
    batches, rows = _batches(datamodule, options.split)
    device = _device(str(trainer.accelerator))
    # Random weights depend on the dtype in which they are drawn: that of training.
    drawn = torch.bfloat16 if str(trainer.precision) == "bf16-true" else torch.float32
    a, b = (source.load(datamodule.tokenizer, drawn).to(device, dtype) for source in sources.values())
    report = datamodule.report[options.split]
    for model in (a, b):
        check_fits(model, datamodule.max_token_id, report["max_length"])
    sizes = [model.get_output_embeddings().out_features for model in (a, b)]
    if sizes[0] != sizes[1]:
        raise UserError("--model-b", f"expected a vocabulary of {sizes[0]} tokens, as --model-a has, got {sizes[1]}")
    found = measure_divergence(a, b, _with_progress(batches))
    content = {
        "model_a": sources["--model-a"].name,
        "model_b": sources["--model-b"].name,
        "split": options.split,
        "fingerprint": report["fingerprint"],
        "dtype": options.dtype,
        "unit": "nats per supervised token; forward_kl is KL(a || b)",
        "examples": len(found.documents),
        "tokens": int(found.tokens.sum()),
        **found.mean(),
        "by_example": [{"row": int(rows[each["document"]]), **each} for each in found.of_each()],
    }
    out = folder.divergence if options.out is None else options.out
    write_json(out, content)
    _print(content, out)
    return content


def _source(flag: str, name: str, base: ModelSource, run: RunFolder, dtype: torch.dtype) -> ModelSource:
    """The source of model `name`: `base`, `run`, a folder or a hub id."""
    from lit_probsft.model import PretrainedCausalLM
    from lit_probsft.model.reference import evaluation_source

    if name == RUN:
        if not run.hf.is_dir():
            raise UserError(
                flag, f"{run.hf} does not exist: train the model with fit first, or give a folder or a hub id"
            )
        name = str(run.hf)
    if name != BASE:
        kept = ("attn_implementation", "trust_remote_code")
        base = PretrainedCausalLM(name, **{option: getattr(base, option) for option in kept if hasattr(base, option)})
    return evaluation_source(base, dtype)


def _check_tokens(flag: str, source: ModelSource, tokenizer: Any) -> None:
    """Refuse a model whose tokenizer has other tokens or ids than the data's.

    Raises:
        UserError: naming the first difference.
    """
    from lit_probsft.data.tokens.tokenizers import read_tokenizer

    trusted = getattr(source, "trust_remote_code", False)
    try:
        other = read_tokenizer(str(source.tokenizer_name), trust_remote_code=trusted)
    except UserError as error:
        raise UserError(flag, error.problem) from error
    differences = set(other.get_vocab().items()) ^ set(tokenizer.get_vocab().items())
    if differences:
        token, number = min(differences, key=lambda item: (item[1], item[0]))
        raise UserError(
            flag,
            f"expected a model with the data's tokenizer, that of {source.name} differs in {len(differences)} tokens, "
            f"first in {token!r} ({number})",
        )


def _batches(datamodule: InstructionDataModule, split: str) -> tuple[Any, Any]:
    """The split's micro-batches, one document per row, and the source row of each document."""
    if split == "train" and datamodule.streaming:
        raise UserError("--split", "expected validation or test, since a stream (data.streaming) has no end, got train")
    datamodule.setup({"train": "fit", "validation": "validate", "test": "test"}[split])
    documents = datamodule.documents(split)
    return datamodule.loader_over(documents), documents.rows


def _device(accelerator: str) -> torch.device:
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator == "cpu" or found is None else found


def _with_progress(batches: Any) -> Iterable[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import track

    return track(batches, "divergence", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def _print(content: dict[str, Any], out: Path) -> None:
    print(f"A {content['model_a']}\nB {content['model_b']}")
    print(f"{content['examples']} examples of data.{content['split']}, {content['tokens']} supervised tokens")
    for name, label in (
        ("forward_kl", "KL(A || B)"),
        ("reverse_kl", "KL(B || A)"),
        ("js", "Jensen-Shannon"),
        ("nll_a", "NLL of A"),
        ("nll_b", "NLL of B"),
    ):
        print(f"{label:<16}{content[name]:.6g} nats per token")
    print(f"{out}: these values, and those of each example")
