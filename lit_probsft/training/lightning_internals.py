"""Every private name of Lightning that this package uses, behind one function each.

`tests/training/test_lightning_internals.py` says which function to rewrite when Lightning renames one of them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector


def trainer_of(module: L.LightningModule) -> L.Trainer | None:
    """The trainer of a module, None before it has one; `module.trainer` raises instead."""
    return module._trainer


def between_steps(trainer: L.Trainer) -> bool:
    """Whether the last micro-batch completed an optimizer step."""
    return not trainer.fit_loop._should_accumulate()


def may_stop_early(trainer: L.Trainer) -> bool:
    """Whether `min_steps` and `min_epochs` are reached."""
    return trainer.fit_loop._can_stop_early


def finish_epochs_on_resume(trainer: L.Trainer) -> None:
    """Make a run with `max_steps` start the next epoch if it resumes at the end of one.

    Lightning would continue the epoch that is already over.
    """
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def validate_when(trainer: L.Trainer, due: Callable[[], bool]) -> None:
    """Validate after a micro-batch if `due()` says so; replaces `val_check_interval`."""
    trainer.fit_loop.epoch_loop._should_check_val_fx = lambda data_fetcher: due()  # type: ignore[method-assign]


def also_validate_when(trainer: L.Trainer, due: Callable[[], bool]) -> None:
    """Validate after a micro-batch if `due()` says so, and when the trainer validates anyway."""
    loop = trainer.fit_loop.epoch_loop
    anyway = loop._should_check_val_fx
    loop._should_check_val_fx = lambda data_fetcher: anyway(data_fetcher) or due()  # type: ignore[method-assign]


def after_micro_batches(trainer: L.Trainer, action: Callable[[], None]) -> None:
    """Call `action` after each training batch's hooks, while Lightning's counters are as in `on_train_batch_end`.

    `action` calls `log_step`: Lightning no longer logs the metrics of steps itself.
    """
    connector = trainer._logger_connector

    def on_batch_end() -> None:
        type(connector).on_batch_end(connector)
        if trainer.training:
            action()

    connector.on_batch_end = on_batch_end  # type: ignore[method-assign]
    connector.update_train_step_metrics = lambda: None  # type: ignore[method-assign]


def step_is_logged(trainer: L.Trainer) -> bool:
    """Whether `log_every_n_steps` or a stop makes Lightning log the present step."""
    return trainer._logger_connector.should_update_logs


def log_step(trainer: L.Trainer) -> None:
    """Log the metrics of the present step to the loggers."""
    connector = trainer._logger_connector
    connector.log_metrics(connector.metrics["log"])


def validation_is_due(trainer: L.Trainer) -> bool:
    """Whether the trainer validates before the next micro-batch if it has validation data."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def seconds_between_validations(trainer: L.Trainer) -> float | None:
    """`val_check_interval` if it is a time, in seconds."""
    seconds: float | None = trainer._val_check_time_interval  # type: ignore[attr-defined]
    return seconds


def forget_logged(trainer: L.Trainer, names: Iterable[str]) -> None:
    """Drop metrics that the module logged after an earlier micro-batch, which Lightning would otherwise log again."""
    for name in names:
        trainer.fit_loop._results.pop(f"on_train_batch_end.{name}", None)


def print_one_column(trainer: L.Trainer) -> None:
    """Make `validate` print the metrics once, not once for each validation set: their names tell the sets apart."""
    loop = trainer.validate_loop
    loop._print_results = lambda results, stage: type(loop)._print_results(results[:1], stage)  # type: ignore[method-assign]


def check_after_validation(stopper: EarlyStopping) -> None:
    """Let the callback read a `val/` or `eval/` metric after each validation, unless its user chose a time."""
    if stopper._check_on_train_epoch_end is None and stopper.monitor.startswith(("val/", "eval/")):
        stopper._check_on_train_epoch_end = False


def handle_signals(
    trainer: L.Trainer, numbers: Iterable[int], handler: Callable[[int, Any], None] = lambda number, frame: None
) -> None:
    """Handle these signals until the trainer's teardown, and keep Lightning from registering its own handlers.

    Lightning's handlers wait for the other ranks, and only its training loop looks at what they note.
    """
    trainer._signal_connector = _OneHandler(trainer, numbers, handler)
    trainer._signal_connector.register_signal_handlers()


class _OneHandler(_SignalConnector):
    def __init__(self, trainer: L.Trainer, numbers: Iterable[int], handler: Callable[[int, Any], None]) -> None:
        super().__init__(trainer)
        self._numbers, self._handler = tuple(numbers), handler

    def register_signal_handlers(self) -> None:
        if not self._original_handlers:  # which the teardown of the base class restores
            self._original_handlers = {number: signal.getsignal(number) for number in self._numbers}
        for number in self._numbers:
            self._register_signal(number, self._handler)
