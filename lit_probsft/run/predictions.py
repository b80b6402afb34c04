"""predictions.jsonl: the answers of `predict`, and the same for other graders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.run.folder import RunFolder
from lit_probsft.storage.atomic import write_text
from lit_probsft.storage.ranks import gather_objects
from lit_probsft.training.callbacks import datamodule_of


class PredictionWriter(Callback):
    """Writes predictions.jsonl: index, prompt, answer and reference of each row, in the order of the rows.

    Args:
        run: its folder, whose name is also the name of the model for AlpacaEval.
        grader: `alpaca_eval` or `evalplus` to write the input file of this grader too. `evalplus` needs the column
            `task_id` in each row.
    """

    def __init__(self, run: RunFolder, grader: Literal["jsonl", "alpaca_eval", "evalplus"] = "jsonl") -> None:
        self.run = run
        self.grader = grader
        self._rows: dict[int, dict[str, Any]] = {}  # by document, because the sources of a mixture share row numbers

    @override
    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.grader != "evalplus":
            return
        datamodule = datamodule_of(trainer)
        for document in range(len(datamodule.documents("predict").rows)):  # before anything is generated
            row = datamodule.prediction_row(document)
            if not isinstance(row.get("task_id"), str):
                problem = "evalplus needs rows with a text in the column task_id, such as HumanEval/0"
                found = repr(row["task_id"]) if "task_id" in row else "none"
                raise UserError("--predictions_format", f"{problem}; row {row['index']} has {found}")

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
            ordered = [rows[document] for document in sorted(rows)]
            files = [self.run.predictions]
            write_lines(files[0], ordered)
            if self.grader == "alpaca_eval":
                files.append(self.run.alpaca_eval)
                model = self.run.path.name
                outputs = [{"instruction": r["prompt"], "output": r["answer"], "generator": model} for r in ordered]
                write_text(files[1], json.dumps(outputs, ensure_ascii=False, indent=1) + "\n")
            elif self.grader == "evalplus":
                files.append(self.run.evalplus)
                write_lines(files[1], ({"task_id": row["task_id"], "solution": row["answer"]} for row in ordered))
            empty = sum(not row["answer"] for row in rows.values())
            ends = f"; {empty} of them are empty: the model ended its turn at once" if empty else ""
            rank_zero_info(f"{len(rows)} answers in {' and '.join(map(str, files))}{ends}")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
