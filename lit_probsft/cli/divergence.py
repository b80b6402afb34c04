"""`divergence`: how far training moved a model, in KL and Jensen-Shannon divergence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_probsft.errors import UserError, first_line
from lit_probsft.model import ModelSource, PretrainedCausalLM
from lit_probsft.model.reference import evaluation_source
from lit_probsft.run.folder import RunFolder
from lit_probsft.storage.atomic import write_json
from lit_probsft.training.compatibility import check_fits

if TYPE_CHECKING:
    from lit_probsft.data import InstructionDataModule
from lit_probsft.analysis.divergence import measure_divergence

BASE, RUN = "base", "run"
"""Words for the configuration's own model and for what the run of its name has exported."""


def run_divergence(options: argparse.Namespace, rest: Sequence[str]) -> dict[str, Any]:
    """The command.

    Args:
        options: `model_a`, `model_b`, `split`, `dtype`, `out`.
        rest: the configuration's flags, as `fit` takes them.

    Returns:
        What it has written.

    Raises:
        UserError: a flag, a model that is not there, or two that do not speak of the same tokens.
    """
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise UserError("--out", f"expected a file in a folder that exists, got {str(options.out)!r}")
    if options.out is not None and options.out.is_dir():
        raise UserError("--out", f"expected a file to write, got {str(options.out)!r}, which is a folder")
    from lit_probsft.cli.parts import parts_of

    module, datamodule, run, trainer = parts_of(rest)
    assert module.source is not None
    dtype = getattr(torch, options.dtype)
    wanted = {"--model-a": options.model_a, "--model-b": options.model_b}
    sources = {flag: _source(flag, name, module.source, run, dtype) for flag, name in wanted.items()}
    for flag, source in sources.items():
        if wanted[flag] != BASE:
            _check_tokens(flag, source, datamodule.tokenizer)
    batches, places = _batches(datamodule, options.split)
    device = _device(str(trainer.accelerator))
    drawn = torch.bfloat16 if str(trainer.precision) == "bf16-true" else torch.float32
    a, b = (source.load(datamodule.tokenizer, drawn).to(device, dtype) for source in sources.values())
    for model in (a, b):
        check_fits(model, datamodule.max_token_id, datamodule.report[options.split]["max_length"])
    sizes = [model.get_output_embeddings().out_features for model in (a, b)]
    if sizes[0] != sizes[1]:
        raise UserError("--model-b", f"expected a vocabulary of {sizes[0]} tokens, which --model-a has, got {sizes[1]}")
    found = measure_divergence(a, b, _shown(batches))
    content = {
        "model_a": sources["--model-a"].name,
        "model_b": sources["--model-b"].name,
        "split": options.split,
        "fingerprint": datamodule.report[options.split]["fingerprint"],
        "dtype": options.dtype,
        "unit": "nats per supervised token; forward_kl is KL(a || b)",
        "examples": len(found.documents),
        "tokens": int(found.tokens.sum()),
        **found.mean(),
        "by_example": [{"row": int(places[each["document"]]), **each} for each in found.of_each()],
    }
    out = run.divergence if options.out is None else options.out
    write_json(out, content)
    _print(content, out)
    return content


def _source(flag: str, wanted: str, base: ModelSource, run: RunFolder, dtype: torch.dtype) -> ModelSource:
    """Where a model comes from, by a word, a hub id or a folder."""
    if wanted == RUN:
        if not run.hf.is_dir():
            raise UserError(
                flag,
                f"expected a trained model in {run.hf}, there is none; train it with fit, or name a folder or a hub id",
            )
        wanted = str(run.hf)
    if wanted != BASE:
        options = {
            name: getattr(base, name) for name in ("attn_implementation", "trust_remote_code") if hasattr(base, name)
        }
        base = PretrainedCausalLM(wanted, **options)
    return evaluation_source(base, dtype)


def _check_tokens(flag: str, source: ModelSource, tokenizer: Any) -> None:
    """Refuse a model whose tokenizer numbers other tokens than that of the data."""
    from transformers import AutoTokenizer

    trusted = getattr(source, "trust_remote_code", False)
    try:
        other_tokenizer = AutoTokenizer.from_pretrained(source.tokenizer_name, trust_remote_code=trusted)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            flag,
            f"expected a hub id or a folder with a model and its tokenizer, got {source.name!r}: {first_line(error)}",
        ) from error
    theirs, ours = other_tokenizer.get_vocab(), tokenizer.get_vocab()
    if theirs != ours:
        other = sorted(set(theirs.items()) ^ set(ours.items()), key=lambda item: (item[1], item[0]))
        token, number = other[0]
        raise UserError(
            flag,
            f"expected a model with the tokenizer of the data, {source.name} numbers {len(other)} tokens "
            f"differently, the first of them {token!r} ({number})",
        )


def _batches(datamodule: InstructionDataModule, split: str) -> tuple[Any, Any]:
    """The split's micro-batches, each document once and alone, and the row of each document."""
    if split == "train" and datamodule.streaming:
        raise UserError("--split", "expected validation or test with data.streaming, which has no end, got 'train'")
    datamodule.setup({"train": "fit", "validation": "validate", "test": "test"}[split])
    documents = datamodule.documents(split)
    return datamodule.loader_over(documents), documents.rows


def _device(accelerator: str) -> torch.device:
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator == "cpu" or found is None else found


def _shown(batches: Any) -> Iterable[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import track

    return track(batches, "divergence", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def _print(content: dict[str, Any], out: Path) -> None:
    print(f"A {content['model_a']}\nB {content['model_b']}")
    print(f"{content['examples']} examples of data.{content['split']}, {content['tokens']} supervised tokens")
    for name, what in (
        ("forward_kl", "KL(A || B)"),
        ("reverse_kl", "KL(B || A)"),
        ("js", "Jensen-Shannon"),
        ("nll_a", "NLL of A"),
        ("nll_b", "NLL of B"),
    ):
        print(f"{what:<16}{content[name]:.6g} nats per token")
    print(f"{out}: the same with each example")
