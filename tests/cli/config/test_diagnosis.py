"""The search for a mistake. tests/cli/messages.json has its messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_probsft.cli.config.composition import Composer
from lit_probsft.cli.config.diagnosis import Diagnosis
from lit_probsft.errors import UserError
from tests.cli.config.flags import FLAGS

MIXTURE = '{"class_path": "lit_probsft.data.rows.mixture.Mixture", "init_args": {"sources": {"a": %s}}}'


def untyped(params):  # type: ignore[no-untyped-def]
    return None


def check(*args: str) -> None:
    composed = Composer("fit", FLAGS, ["resume"]).compose(["--model.model", "some/model", *args])
    Diagnosis(FLAGS).check(composed.content)


@pytest.mark.parametrize(
    "args",
    [
        ["--resume", "--trainer.max_epochs=3"],
        ["--name", "2024-01-01"],
        ["--name", "3"],
        ["--trainer.max_epochs", "null"],
        ["--trainer.callbacks", "[{class_path: LearningRateMonitor, init_args: {logging_interval: step}}]"],
        ["--trainer.callbacks+", "LearningRateMonitor", "--trainer.callbacks.logging_interval", "step"],
        ["--data.train", '{"class_path": "Rows", "init_args": {"path": "a.jsonl"}}', "--data.train.limit", "3"],
        ["--model.init_args.objective.class_path", "Power", "--model.init_args.objective.init_args.alpha", "2"],
        ["--model.optimizer", "lit_probsft.training.module.default_optimizer"],
        ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e-3"],
        ["--config", '{"data": {"batch_size": 3}}'],
        ["--data.train", "FigletPuzzles", "--data.train.count", "5"],
        ["--data.train", "lit_probsft.data.FigletPuzzles", "--data.train.count", "5"],
        ["--data.train", '{"class_path": "Rows", "init_args": {"path": "a"}}', "--data.train.prompt", "Q: {question}"],
    ],
)
def test_nothing_is_found_in_a_valid_configuration(args: list[str]) -> None:
    check(*args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.train", '{"class_path": "Rows", "init_args": [1]}'], "data.train.init_args: expected a mapping of"),
        (["--data.train", '{"class_path": 3}'], "data.train.class_path: expected a class"),
        (["--data.train", '{"class_path": "Rows"}'], "data.train.path: expected a value, got none"),
        (["--model.optimizer", f"{__name__}.untyped"], r"model.optimizer: .*untyped needs the type hint of what it"),
        (
            ["--model.optimizer", f"{__name__}.untyped", "--model.optimizer.lr=1"],
            "model.optimizer: untyped is a function, which takes no arguments",
        ),
        (["--config", '{"data": {"batchsize": 3}}'], "data.batchsize: InstructionDataModule has no option"),
        (["--trainer.max_epochs", "{"], "trainer.max_epochs: expected a whole number or null, got '{'"),
        (["--model.objective", "Power", "--model.objective.alpha", "[1]"], r"model.objective.alpha: expected a number"),
        (["--data.train", MIXTURE % '{"source": [3]}'], r"data.train.sources.a.source: expected"),
        (["--data.train", MIXTURE % '{"source": "a.csv", "wieght": 1}'], r"data.train.sources.a.wieght: Part has no"),
        (
            ["--trainer.callbacks", "[{class_path: LearningRateMonitor, init_args: {interval: step}}]"],
            r"trainer.callbacks\[0\].interval: LearningRateMonitor has no option 'interval'",
        ),
    ],
)
def test_a_malformed_value_is_found(args: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        check(*args)


def test_a_list_of_callbacks_may_be_a_file(tmp_path: Path) -> None:
    part = tmp_path / "callbacks.yaml"
    part.write_text("[{class_path: LearningRateMonitor}]\n")
    check("--trainer.callbacks", str(part))


def test_files_are_walked_from_their_own_folder(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "power.yaml").write_text("class_path: Power\ninit_args: {alhpa: 3}\n")
    (tmp_path / "c.yaml").write_text("fit: {model: {objective: parts/power.yaml}}\n")
    with pytest.raises(UserError, match=r"^model\.objective\.alhpa: Power has no option 'alhpa'"):
        check("--config", str(tmp_path / "c.yaml"))
