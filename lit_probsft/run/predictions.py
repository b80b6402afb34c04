"""predictions.jsonl: the answers of `predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lit_probsft.storage.atomic import write_text
from lit_probsft.storage.ranks import gather_objects
from lit_probsft.training.callbacks import datamodule_of


class PredictionWriter(Callback):
    """Writes predictions.jsonl: index, prompt, answer and reference of each row, in the order of the rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[int, dict[str, Any]] = {}  # by document, because the sources of a mixture share row numbers

    @override
    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        datamodule = datamodule_of(trainer)
        texts = datamodule.tokenizer.batch_decode(outputs["answers"].tolist(), skip_special_tokens=True)
        # A rank that has run out of documents answers a row of padding, which has no document.
        for index, text in zip(outputs["documents"].tolist(), texts, strict=False):
            self._rows[index] = {**datamodule.prediction_row(index), "answer": text}

    @override
    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rows = {document: row for part in gather_objects(self._rows) for document, row in part.items()}
        if trainer.is_global_zero:
            lines = [json.dumps(rows[document], ensure_ascii=False) + "\n" for document in sorted(rows)]
            write_text(self.path, "".join(lines))
            empty = sum(not row["answer"] for row in rows.values())
            ends = f"; {empty} of them are empty: the model ended its turn at once" if empty else ""
            rank_zero_info(f"{len(rows)} answers in {self.path}{ends}")
