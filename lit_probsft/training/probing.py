"""Running a model over its training rows without training it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_probsft.data.batches.store import Documents, InMemory
from lit_probsft.errors import UserError
from lit_probsft.head.layer import HeadRequest
from lit_probsft.head.loss import HeadOutput
from lit_probsft.head.token_loss import TokenLoss
from lit_probsft.model.forward import forward_with_objective
from lit_probsft.model.modes import evaluation_mode
from lit_probsft.model.packing import Packs
from lit_probsft.objectives import NLL
from lit_probsft.training.fitting import Capability
from lit_probsft.training.metrics import ProbHistogram, TokenMeans

if TYPE_CHECKING:
    from lit_probsft.data import InstructionDataModule
    from lit_probsft.training.module import ProbSFTModule


def token_statistics(model: Any, batch: dict[str, Any], statistics: Iterable[str]) -> HeadOutput:
    """One forward pass over a micro-batch, with the NLL of its supervised tokens and these statistics of each."""
    request = HeadRequest(batch["labels"], TokenLoss.of(NLL(), statistics), normalizer=1.0)
    return forward_with_objective(
        model, batch["input_ids"], request, batch.get("attention_mask"), Packs.from_batch(batch)
    )[0]


class Subset(Documents):
    """Some of a store's documents.

    Args:
        store: all documents.
        indices: of the subset, in its order.
    """

    def __init__(self, store: Documents, indices: Sequence[int]) -> None:
        self._store, self._indices = store, np.asarray(indices, dtype=np.int64)
        self.max_token_id = store.max_token_id
        for name in ("lengths", "supervised", "rows", "weights", "sources"):
            values = getattr(store, name)
            setattr(self, name, None if values is None else values[self._indices])

    def __getitem__(self, index: int) -> Any:
        """`(input_ids, labels)` of a document, each (t,)."""
        return self._store[int(self._indices[index])]


def training_documents(datamodule: InstructionDataModule, most: int | None) -> Documents:
    """The training documents, each once, or a random sample drawn with the data's seed; the first ones of a stream.

    Args:
        datamodule: set up.
        most: number of documents at most; None for all.

    Raises:
        UserError: no row can be used, or a row of a stream cannot and the data's `on_bad_row` is `error`.
    """
    if not datamodule.streaming:
        store = datamodule.documents("train")
        if most is None or most >= len(store):
            return store
        chosen = np.random.default_rng([datamodule.seed, 1]).choice(len(store), most, replace=False)
        return Subset(store, np.sort(chosen).tolist())
    assert most is not None
    found = []
    for outcome in itertools.chain.from_iterable(datamodule.inspect("train", most)[2]):
        if outcome.status == "skipped" and datamodule.on_bad_row == "error":
            raise UserError("data.train", f"{outcome.reason}")
        if outcome.document is not None:
            found.append(outcome.document)
    if not found:
        raise UserError("data.train", f"expected usable rows, but none of the first {most} can be used")
    return InMemory(found[:most], parts=bool(datamodule.sources_of("train")))


def measure_capability(module: ProbSFTModule, most: int) -> Capability:
    """Run the module's model over (a sample of) the training rows; inside `fit`, all ranks together."""
    trainer = module.trainer
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    documents = training_documents(datamodule, most)
    means, histogram = TokenMeans(NLL()).to(module.device), ProbHistogram().to(module.device)
    batches: Iterable[dict[str, Any]] = datamodule.loader_over(documents)
    rank_zero_info(f"model.objective: measuring p over {len(documents)} training documents")
    with torch.no_grad(), evaluation_mode(module.model), trainer.precision_plugin.forward_context():
        for batch in batches:
            batch = trainer.strategy.batch_to_device(batch)
            output = token_statistics(module.model, batch, {"log_complement"})
            means.update(output)
            histogram.update(output.log_probs, output.log_complement)
    return Capability.of(float(means.compute()["mean_p"]), histogram.compute())
