"""Where a trainer is in its run, and whether it validates."""

from __future__ import annotations

import lightning as L

from lit_probsft.training.lightning_internals import validation_is_due


def epoch_ends(trainer: L.Trainer) -> bool:
    """Whether the last micro-batch was the last of its epoch."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def run_ends(trainer: L.Trainer) -> bool:
    """Whether the last optimizer step was the last of the run.

    Call it before the epoch is over: Lightning then counts an epoch that was cut short as complete.
    """
    counts = trainer.fit_loop.epoch_progress.current
    return trainer.global_step == trainer.max_steps or (epoch_ends(trainer) and counts.ready == trainer.max_epochs)


def validates(trainer: L.Trainer) -> bool:
    """Whether there is data to validate on during training."""
    if not trainer.enable_validation:
        return False
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.setup_data()  # does nothing the second time
    return not loop.skip


def has_validation(trainer: L.Trainer) -> bool:
    """Whether a run has validation data, as the data module reports them before the model is loaded."""
    report = getattr(getattr(trainer, "datamodule", None), "report", None)
    return trainer.limit_val_batches != 0 and (report is None or "validation" in report)


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether the trainer validates before the next micro-batch."""
    return validation_is_due(trainer) and validates(trainer)


def validation_set(trainer: L.Trainer) -> str | None:
    """The fingerprint of the validation set. val/nll of different sets cannot be compared."""
    report = getattr(getattr(trainer, "datamodule", None), "report", {})
    fingerprint = report.get("validation", {}).get("fingerprint")
    return None if fingerprint is None else str(fingerprint)
