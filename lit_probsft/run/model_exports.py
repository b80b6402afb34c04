"""When a run exports its model: at the end, at its best, at every checkpoint, or never."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.parallel.sharding import whole_weights
from lit_probsft.parallel.strategies import sharding_of
from lit_probsft.run.checkpoint_export import CHECKPOINT_KEY, checkpoint_entry, export_checkpoint
from lit_probsft.run.export import export_model
from lit_probsft.run.model_card import card_facts
from lit_probsft.run.record import RunRecord
from lit_probsft.storage.checkpoint_files import steps
from lit_probsft.training.callbacks import datamodule_of
from lit_probsft.training.checkpoints import Checkpoints
from lit_probsft.training.module import ProbSFTModule


class ModelExports(Callback):
    """Exports the model to hf/, or to hf-steps/ at every checkpoint.

    Comes after the `RunRecord` among the callbacks: the record is complete before the model is exported.

    Args:
        record: of the run.
        when: `checkpoints.export`: `final`, `best`, `every` or `none`.
    """

    def __init__(self, record: RunRecord, when: str = "final") -> None:
        self.record, self.run, self.when = record, record.run, when

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        exists = trainer.strategy.broadcast(self.run.hf.exists())
        if self.when in ("final", "every") or (self.when == "best" and not exists):
            self._export(trainer, self.run.hf, trainer.global_step)
            if trainer.is_global_zero:
                self.record.note_exported(trainer.global_step)

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # If nothing was left to train, the earlier process may have ended before it exported the model.
        if not self.record.already_complete or not trainer.is_global_zero:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                self.on_resumed(trainer, dict(steps(self.run.checkpoints)), callback.best_step)
        if self.when == "best":
            wanted = not self.run.hf.exists()
        else:
            wanted = self.when != "none" and self.record.content.get("exported_step") != trainer.global_step
        if wanted:
            export_checkpoint(Path(str(trainer.ckpt_path)), self.run.hf, overwrite=True)
            self.record.note_exported(trainer.global_step)

    def on_saved(self, trainer: L.Trainer, step: int, best: bool) -> None:
        """Called after a checkpoint is saved."""
        if self.when == "best" and best:
            self._export(trainer, self.run.hf, step)
            if trainer.is_global_zero:
                self.record.note_exported(step)
        elif self.when == "every":
            self._export(trainer, self.run.hf_step(step), step)

    def on_resumed(self, trainer: L.Trainer, checkpoints: dict[int, Path], best: int) -> None:
        """Called when a run resumes: exports what is missing if the run ended between a checkpoint and its export."""
        if not trainer.is_global_zero:
            return
        wanted: dict[int, Path] = {}
        if self.when == "every":
            wanted = {step: self.run.hf_step(step) for step in checkpoints if not self.run.hf_step(step).exists()}
        elif self.when == "best" and best in checkpoints and self.record.content.get("exported_step") != best:
            wanted = {best: self.run.hf}
        for step, out in wanted.items():
            try:
                export_checkpoint(checkpoints[step], out, overwrite=True)
            except UserError as error:
                rank_zero_warn(f"the model of step {step} is not exported: {error}")
            else:
                if self.when == "best":
                    self.record.note_exported(step)

    def _export(self, trainer: L.Trainer, out: Path, step: int) -> None:
        """All ranks call this; rank 0 writes."""
        module = trainer.lightning_module
        assert isinstance(module, ProbSFTModule)
        weights = whole_weights(module.model, sharded=sharding_of(trainer.strategy) is not None)
        failure = None
        if trainer.is_global_zero:
            try:
                export_model(
                    module.model,
                    datamodule_of(trainer).tokenizer,
                    out,
                    card=card_facts(self.record.content, self.run.path.name, step),
                    weights=weights,
                    lora=module.lora,
                    base=module.source,
                )
            except UserError as error:
                failure = error.args
        if failure := trainer.strategy.broadcast(failure):
            raise UserError(*failure)

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, ProbSFTModule)
        card = card_facts(self.record.content, self.run.path.name, trainer.global_step)
        checkpoint[CHECKPOINT_KEY] = checkpoint_entry(
            pl_module.model,
            datamodule_of(trainer).tokenizer,
            card,
            pl_module.lora,
            pl_module.base_of_adapters,
            pl_module.new_tokens,
        )
