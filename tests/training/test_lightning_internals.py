"""Lightning still has every private name that the package uses, and still calls the ones that it replaces."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loops import fit_loop, training_epoch_loop
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

import lit_probsft
from lit_probsft.training import lightning_internals
from tests import tiny

PRIVATE = {
    "_trainer": (L.LightningModule(), "trainer_of"),
    "_should_accumulate": (fit_loop._FitLoop, "between_steps"),
    "_can_stop_early": (fit_loop._FitLoop, "may_stop_early"),
    "_iteration_based_training": (fit_loop._FitLoop, "finish_epochs_on_resume"),
    "_should_check_val_fx": (
        training_epoch_loop._TrainingEpochLoop,
        "validate_when, also_validate_when, validation_is_due",
    ),
    "_logger_connector": (tiny.trainer(), "after_micro_batches, step_is_logged, log_step"),
    "_data_fetcher": (tiny.trainer().fit_loop, "validation_is_due"),
    "_val_check_time_interval": (tiny.trainer(), "seconds_between_validations"),
    "_results": (fit_loop._FitLoop, "forget_logged"),
    "_print_results": (_EvaluationLoop, "print_one_column"),
    "_check_on_train_epoch_end": (EarlyStopping("val/nll"), "check_after_validation"),
    "_signal_connector": (tiny.trainer(), "handle_signals"),
    "_SignalConnector": (inspect.getmodule(_SignalConnector), "handle_signals"),
    "_original_handlers": (_SignalConnector(tiny.trainer()), "handle_signals"),
    "_register_signal": (_SignalConnector, "handle_signals"),
}
"""Where Lightning has each name, and the functions of lightning_internals.py that use it."""

CALLED = {
    "_iteration_based_training": fit_loop,
    "_should_check_val_fx": training_epoch_loop,
    "_logger_connector": training_epoch_loop,
    "_print_results": inspect.getmodule(_EvaluationLoop),
    "_check_on_train_epoch_end": inspect.getmodule(EarlyStopping),
    "_signal_connector": inspect.getmodule(L.Trainer),
}
"""The module of Lightning that has to read each name that is replaced or set."""


@pytest.mark.parametrize("name", PRIVATE)
def test_lightning_has_the_private_name(name: str) -> None:
    owner, functions = PRIVATE[name]
    assert hasattr(owner, name), (
        f"lightning {L.__version__} has no {name} in {owner!r}: rewrite {functions} in training/lightning_internals.py"
    )


@pytest.mark.parametrize("name", CALLED)
def test_lightning_reads_the_name_that_is_replaced(name: str) -> None:
    source = inspect.getsource(CALLED[name])  # type: ignore[arg-type]
    assert re.search(rf"(self|trainer)\.{name}\b", source), (
        f"lightning {L.__version__} no longer reads {name}: rewrite {PRIVATE[name][1]} in "
        "training/lightning_internals.py"
    )


def test_all_private_names_are_listed_here() -> None:
    tree = ast.parse(inspect.getsource(lightning_internals))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    ours = {"__init__", "_handler", "_numbers"}
    assert used - ours == PRIVATE.keys() - {"_SignalConnector"}


def test_no_other_file_uses_them() -> None:
    names = PRIVATE.keys() - {"_trainer", "_results"}  # which mean other things elsewhere
    for path in Path(lit_probsft.__file__).parent.rglob("*.py"):
        if path.name != "lightning_internals.py":
            attributes = {
                node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
            }
            assert not attributes & names, path


def test_results_are_printed_in_one_column_however_often_it_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = tiny.trainer()
    for _ in range(2):
        lightning_internals.print_one_column(trainer)
    trainer.validate_loop._print_results([{"val/nll": 1.0}, {"val/nll": 2.0}], "validate")
    printed = capsys.readouterr().out
    assert "DataLoader 0" in printed
    assert "DataLoader 1" not in printed


def test_logged_metrics_can_be_forgotten(tmp_path: Path) -> None:
    from lit_probsft.training.module import ProbSFTModule

    class Logging(ProbSFTModule):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            if self.global_step == 1:
                self.log("train/once", 1.0)
            else:
                lightning_internals.forget_logged(self.trainer, ["train/once"])
            assert ("on_train_batch_end.train/once" in self.trainer.fit_loop._results) == (self.global_step == 1)

    rows = tiny.write_rows(tmp_path / "rows.jsonl", 20)
    tiny.trainer(max_steps=2).fit(Logging(tiny.model(), optimizer=tiny.sgd), datamodule=tiny.data(rows))
