"""A model, a tokenizer and data that are small enough to train in a second."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lit_probsft.data import ByteTokenizer, InstructionDataModule, Rows
from lit_probsft.model import RandomCausalLM
from lit_probsft.objectives import NLL, Objective
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def source(seed: int = 0, **fields: Any) -> RandomCausalLM:
    return RandomCausalLM({**LLAMA, **fields}, seed=seed)


def model(dtype: torch.dtype = torch.float32, seed: int = 0, **fields: Any) -> Any:
    tokenizer = ByteTokenizer().load(list)
    return source(seed, **fields).load(tokenizer, dtype)


def write_rows(path: Path, count: int = 24, seed: int = 0) -> Path:
    """Write additions of different lengths as jsonl, with columns question and answer."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        terms = [rng.randrange(100) for _ in range(rng.randrange(2, 9))]
        rows.append(
            {"question": " + ".join(map(str, terms)) + " =", "answer": " ".join(map(str, [*terms, sum(terms)]))}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(path: Path) -> Rows:
    return Rows(str(path), prompt="question", response="answer")


def data(path: Path, **options: Any) -> InstructionDataModule:
    return InstructionDataModule(**{"train": rows(path), "tokenizer": ByteTokenizer(), "batch_size": 8, **options})


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), eps=1e-6)


def trainer(**options: Any) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**{**quiet, "max_epochs": 1, **options})


def fit(
    path: Path,
    *,
    batch_size: int,
    accumulate: int,
    objective: Objective = NLL(),  # noqa: B008
    dtype: torch.dtype = torch.float64,
    optimizer: Any = sgd,
    normalize: Any = "tokens",
    **options: Any,
) -> ProbSFTModule:
    """Train for three optimizer steps; with 20 rows and 8 per step, the last window is not full."""
    module = ProbSFTModule(
        model(dtype), objective, optimizer=optimizer, schedule=Schedule("constant", warmup=0), normalize=normalize
    )
    run = trainer(accumulate_grad_batches=accumulate, gradient_clip_val=1.0, **options)
    run.fit(module, datamodule=data(path, batch_size=batch_size, length_pool=0))
    assert run.global_step == 3
    return module


def weights(module: ProbSFTModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.model.state_dict().items()}


class Counted(ProbSFTModule):
    """Keeps the loss of each step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.losses: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.losses.append(float(self.trainer.callback_metrics["train/loss"]))


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    """Check that two state dicts are equal within a tolerance."""
    for name, value in one.items():
        torch.testing.assert_close(
            other[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
