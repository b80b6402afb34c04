"""The commands as a user types them: what they leave behind, and what they say when something is wrong."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_probsft.cli.commands import main
from lit_probsft.errors import UserError
from lit_probsft.run.folder import RunFolder
from lit_probsft.run.predictions import PredictionWriter
from tests import tiny


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(folder: Path, **changes: Any) -> Path:
    """A small run: three steps of eight rows, validation on six others."""
    tiny.write_rows(folder / "train.jsonl", 24)
    tiny.write_rows(folder / "validation.jsonl", 6, seed=1)
    columns = {"prompt": "question", "response": "answer"}
    content: dict[str, Any] = {
        "model": {
            "model": {"class_path": "RandomCausalLM", "init_args": {"config": tiny.LLAMA}},
            "objective": {"class_path": "NLL"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-2}},
            "generation": {"max_new_tokens": 4},
        },
        "data": {
            "train": {"class_path": "Rows", "init_args": {"path": str(folder / "train.jsonl"), **columns}},
            "validation": {"class_path": "Rows", "init_args": {"path": str(folder / "validation.jsonl"), **columns}},
            "tokenizer": {"class_path": "ByteTokenizer"},
            "batch_size": 8,
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
    }
    for path, value in changes.items():
        place = content
        *parents, last = path.split("__")
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def fit(path: Path, *flags: str) -> Any:
    return main(["fit", "--config", str(path), *flags])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_fit_leaves_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = fit(config(tmp_path), "--model.objective", "Threshold", "--model.objective.min_prob", "0.001")
    run = tmp_path / "runs" / "tiny"
    names = {".lock", "config.yaml", "metrics.csv", "run.json", "tokens.npz", "checkpoints", "hf"}
    assert {p.name for p in run.iterdir()} == names
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "step-00000003.ckpt"}

    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "completed"
    assert record["objective"]["class_path"] == "lit_probsft.objectives.Threshold"
    assert record["objective"]["init_args"]["min_prob"] == 0.001
    assert record["counts"]["optimizer_steps"] == 3
    assert record["counts"]["tokens"] == record["data"]["train"]["tokens"]
    assert record["metrics"]["val/nll"] < record["initial_metrics"]["val/nll"]
    assert record["seed"] == 0
    assert record["data_fingerprint"] == cli.datamodule.fingerprint
    assert record["versions"]["torch"] == torch.__version__

    rows = rows_of(run / "metrics.csv")
    steps = [row for row in rows if row["train/loss"]]
    assert len(steps) == 3
    for name in (
        "train/nll",
        "train/mean_p",
        "train/accuracy",
        "train/inside",
        "train/grad_norm",
        "lr",
        "tokens_per_second",
    ):
        assert steps[-1][name] != "", name
    assert float(steps[0]["lr"]) > 0
    assert float(rows[-1]["val/nll"]) == pytest.approx(record["metrics"]["val/nll"])

    model = AutoModelForCausalLM.from_pretrained(run / "hf")
    tokenizer = AutoTokenizer.from_pretrained(run / "hf")
    ids = torch.tensor([tokenizer.encode("1 + 1")])
    torch.testing.assert_close(model(ids).logits, cli.model.model.eval()(ids).logits, rtol=0, atol=0)
    assert tokenizer.chat_template == cli.datamodule.tokenizer.chat_template
    card = (run / "hf" / "README.md").read_text()
    assert "Threshold" in card
    assert "min_prob: 0.001" in card
    said = capsys.readouterr().out
    assert "runs/tiny/hf" in said
    assert "next:" in said


def test_fit_lists_the_rows_it_has_not_used(tmp_path: Path) -> None:
    path = config(tmp_path, data__on_bad_row="skip")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"question": \n')
    fit(path)
    run = tmp_path / "runs" / "tiny"
    (row,) = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert (row["split"], row["row"], row["what"]) == ("train", 24, "skipped")
    assert "line 25: not valid JSON" in row["reason"]
    assert json.loads((run / "run.json").read_text())["data"]["train"]["skipped"] == 1
    RunFolder(run).claim(resume=False)
    assert not (run / "skipped.jsonl").exists()


def test_the_written_config_repeats_the_run(tmp_path: Path) -> None:
    first = fit(config(tmp_path), "--model.objective", "Power", "--model.objective.alpha", "0.5")
    second = main(["fit", "--config", "runs/tiny/config.yaml", "--name", "again"])
    for name, value in tiny.weights(first.model).items():
        assert torch.equal(tiny.weights(second.model)[name], value), name


def slow(*values: Any) -> Any:
    """A case that takes longer than the default suite allows."""
    return pytest.param(*values, marks=pytest.mark.slow)


STOPPER = """
import lightning as L


class Stopper(L.Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise RuntimeError("the power goes out")
"""


@pytest.mark.parametrize(
    ("stop", "accumulate"),
    [(3, 2), *(slow(*case) for case in ((2, 1), (3, 1), (5, 1), (2, 2), (5, 2)))],
)
def test_resume_continues_as_if_it_had_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, stop: int
) -> None:
    """Middle and end of an epoch of three steps; a checkpoint after every step, the last of them one before the
    failure."""
    (tmp_path / "stopper_of_test_cli.py").write_text(STOPPER)
    monkeypatch.syspath_prepend(tmp_path)
    path = config(tmp_path, data__batch_size=8 // accumulate)
    options = [
        "--trainer.max_epochs=2",
        f"--trainer.accumulate_grad_batches={accumulate}",
        f"--trainer.val_check_interval={accumulate}",
    ]
    whole = fit(path, "--name", "whole", *options)
    stopper = f"--trainer.callbacks=[{{class_path: stopper_of_test_cli.Stopper, init_args: {{step: {stop}}}}}]"
    with pytest.raises(RuntimeError, match="the power goes out"):
        fit(path, "--name", "parts", *options, stopper)
    with pytest.raises(UserError, match="--resume"):
        fit(path, "--name", "parts", *options)
    assert json.loads((tmp_path / "runs/parts/run.json").read_text())["status"] == "failed"
    resumed = fit(path, "--name", "parts", *options, "--resume")
    assert resumed.trainer.global_step == whole.trainer.global_step == 6
    for name, value in tiny.weights(whole.model).items():
        assert torch.equal(tiny.weights(resumed.model)[name], value), name
    one, other = (rows_of(tmp_path / "runs" / name / "metrics.csv") for name in ("whole", "parts"))
    assert [row["train/loss"] for row in one if row["train/loss"]] == [
        row["train/loss"] for row in other if row["train/loss"]
    ]
    record = json.loads((tmp_path / "runs/parts/run.json").read_text())
    assert record["status"] == "completed"
    assert record["counts"]["tokens"] == 2 * record["data"]["train"]["tokens"]
    first = json.loads((tmp_path / "runs/whole/run.json").read_text())["initial_metrics"]
    assert record["initial_metrics"] == first != {}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.batch_size=4"], "plan's window_size"),
        slow(["--trainer.accumulate_grad_batches=2"], "plan's window_size"),
        slow(["--data.seed=3"], "plan's seed"),
        (["--model.objective=NegP"], "model.objective"),
        slow(["--data.train.limit=20"], "fingerprint"),
    ],
)
def test_resume_refuses_what_would_be_another_run(tmp_path: Path, flags: list[str], words: str) -> None:
    path = config(tmp_path)
    fit(path)
    before = (tmp_path / "runs/tiny/config.yaml").read_text()
    with pytest.raises(UserError, match=f"--resume: expected .*{words}"):
        fit(path, "--resume", "--trainer.max_epochs=2", *flags)
    assert (tmp_path / "runs/tiny/config.yaml").read_text() == before


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", b"a: [1\nb: 2\n", b"- 1\n", b""])
def test_a_configuration_file_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.yaml").write_bytes(content)
    with pytest.raises(UserError, match="--config: .*broken.yaml") as caught:
        fit(tmp_path / "broken.yaml")
    assert "\n" not in str(caught.value)


def test_export_replaces_only_what_it_has_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "c" / "d").mkdir(parents=True)
    (tmp_path / "c" / "mine").write_text("mine")
    (tmp_path / "c" / "d" / "last.ckpt").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("mine")
    for out in (".", "c", "other", "file", "file/out"):
        with pytest.raises(UserError, match="OUT: "):
            main(["export", "c/d/last.ckpt", out, "--overwrite"])
    assert (tmp_path / "file").read_text() == (tmp_path / "c/mine").read_text() == "mine"
    assert (tmp_path / "other/mine").read_text() == "mine"


def test_resume_refuses_another_model_or_optimizer_and_touches_nothing(tmp_path: Path) -> None:
    path = config(tmp_path, trainer__limit_val_batches=0)
    fit(path)
    files = [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]
    assert (tmp_path / "runs/tiny/checkpoints/last.ckpt").exists()
    before = [p.stat().st_mtime_ns for p in files]
    more = ["--resume", "--trainer.max_epochs", "2"]
    with pytest.raises(UserError, match="--resume: .*optimizer"):
        fit(path, *more, "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1")
    wider = {"class_path": "RandomCausalLM", "init_args": {"config": {**tiny.LLAMA, "hidden_size": 32}}}
    with pytest.raises(UserError, match="--resume: .*size mismatch"):
        fit(config(tmp_path, model__model=wider), *more)
    assert [p.stat().st_mtime_ns for p in files] == before
    (tmp_path / "runs/tiny/checkpoints/last.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match="--resume: expected an intact checkpoint"):
        fit(config(tmp_path), *more)


def test_an_argument_before_the_objectives_name_belongs_to_it(tmp_path: Path) -> None:
    cli = fit(config(tmp_path), "--model.objective.alpha", "3", "--model.objective", "Power")
    assert cli.model.objective.alpha == 3


def test_overwrite_replaces_and_a_failed_start_destroys_nothing(tmp_path: Path) -> None:
    path = config(tmp_path)
    fit(path)
    before = sorted(p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file())
    with pytest.raises(UserError, match="quest"):
        fit(path, "--overwrite", "--data.train.prompt", "quest")
    assert sorted(p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file()) == before
    fit(path, "--overwrite", "--model.objective", "NegP")
    assert "NegP" in (tmp_path / "runs/tiny/run.json").read_text()


def test_validate_test_and_predict_use_what_fit_has_trained(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        data__test={
            "class_path": "Rows",
            "init_args": {"path": "validation.jsonl", "prompt": "question", "response": "answer"},
        },
    )
    untrained = main(["validate", "--config", str(path)]).trainer.callback_metrics["val/nll"]
    assert not (tmp_path / "runs").exists()
    trained = fit(path).trainer.callback_metrics["val/nll"]
    again = main(["validate", "--config", str(path)]).trainer.callback_metrics
    assert float(again["val/nll"]) == pytest.approx(float(trained), rel=1e-6)
    assert json.loads((tmp_path / "runs/tiny/validate.json").read_text())["val/nll"] == pytest.approx(
        float(trained), rel=1e-6
    )
    base = main(["validate", "--config", str(path), "--weights", "base"]).trainer.callback_metrics
    assert float(base["val/nll"]) == pytest.approx(float(untrained), rel=1e-6)
    tested = main(["test", "--config", str(path)]).trainer.callback_metrics
    assert float(tested["test/nll"]) == pytest.approx(float(trained), rel=1e-6)

    cli = main(["predict", "--config", str(path)])
    answers = [json.loads(line) for line in (tmp_path / "runs/tiny/predictions.jsonl").read_text().splitlines()]
    source = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [a["reference"] for a in answers] == [row["answer"] for row in source]
    assert [a["index"] for a in answers] == list(range(6))
    # Padding on the left changes no answer: each equals the one to its prompt alone.
    tokenizer = cli.datamodule.tokenizer
    for row, answer in zip(source, answers, strict=True):
        messages = [{"role": "user", "content": row["question"]}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        out = cli.model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == answer["answer"]


def test_every_row_of_a_mixture_is_answered(tmp_path: Path) -> None:
    path = config(tmp_path)
    rows = {"class_path": "Rows", "init_args": {"path": "validation.jsonl", "prompt": "question", "response": "answer"}}
    mixture = {"class_path": "Mixture", "init_args": {"sources": {"a": rows, "b": rows}}}
    main(["predict", "--config", str(path), "--weights", "base", "--data.predict", json.dumps(mixture)])
    answers = [json.loads(line) for line in (tmp_path / "runs/tiny/predictions.jsonl").read_text().splitlines()]
    assert [(a["source"], a["index"]) for a in answers] == [(name, row) for name in "ab" for row in range(6)]


def test_export_works_from_the_checkpoint_alone(tmp_path: Path) -> None:
    fit(config(tmp_path))
    lonely = tmp_path / "elsewhere" / "some.ckpt"
    lonely.parent.mkdir()
    (tmp_path / "runs/tiny/checkpoints/last.ckpt").rename(lonely)
    main(["export", str(lonely), str(tmp_path / "out")])
    ids = torch.tensor([[5, 6, 7]])
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "runs/tiny/hf")(ids).logits
    torch.testing.assert_close(exported, final, rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("a b") == AutoTokenizer.from_pretrained(
        tmp_path / "runs/tiny/hf"
    ).encode("a b")
    with pytest.raises(UserError, match="OUT"):
        main(["export", str(lonely), str(tmp_path / "out")])
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(lonely.read_bytes()[:5000])
    with pytest.raises(UserError, match="CKPT"):
        main(["export", str(damaged), str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="CKPT"):
        main(["export", str(tmp_path / "none.ckpt"), str(tmp_path / "other")])


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_weights_survive_the_export(tmp_path: Path, tied: bool) -> None:
    path = config(
        tmp_path,
        model__model={
            "class_path": "RandomCausalLM",
            "init_args": {"config": {**tiny.LLAMA, "tie_word_embeddings": tied}},
        },
    )
    cli = fit(path)
    main(["export", "runs/tiny/checkpoints/last.ckpt", "out"])
    ids = torch.tensor([[5, 6, 7, 8]])
    for folder in ("runs/tiny/hf", "out"):
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
        torch.testing.assert_close(model(ids).logits, cli.model.model.eval()(ids).logits, rtol=0, atol=1e-6)


USERS_FILE = """
from dataclasses import dataclass

from lit_probsft import Objective, ProbSFTModule


@dataclass(frozen=True)
class Brier(Objective):
    gamma: float = 2.0

    def loss(self, tokens):
        return (1 - tokens.log_probs.exp()) ** self.gamma


class Halved(ProbSFTModule):
    def token_loss(self, tokens):
        return super().token_loss(tokens) / 2
"""


def test_the_exported_folder_has_the_template_of_the_training_and_stops_where_answers_end(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '<|im_start|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    (tmp_path / "template.jinja").write_text(template)
    fit(config(tmp_path, data__chat_template="template.jinja"))
    main(["export", "runs/tiny/checkpoints/last.ckpt", "out"])
    for folder in ("runs/tiny/hf", "out"):
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
        assert tokenizer.chat_template == template
        stops = model.generation_config.eos_token_id
        assert set(stops) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_start|>")}


def test_a_users_own_objective_and_module_are_named_by_class_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_of_test_cli.py").write_text(USERS_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    cli = fit(
        config(tmp_path),
        "--model",
        "mine_of_test_cli.Halved",
        "--model.objective",
        "mine_of_test_cli.Brier",
        "--model.objective.gamma",
        "3",
    )
    assert type(cli.model).__name__ == "Halved"
    assert cli.model.objective.gamma == 3
    record = json.loads((tmp_path / "runs/tiny/run.json").read_text())
    assert record["objective"]["class_path"] == "mine_of_test_cli.Brier"
    assert record["objective"]["token_loss"] == "mine_of_test_cli.Halved.token_loss"
    again = main(["fit", "--config", "runs/tiny/config.yaml", "--name", "again"])
    assert type(again.model).__name__ == "Halved"


def test_an_objective_named_on_the_command_line_starts_from_its_own_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other_of_test_cli.py").write_text(
        USERS_FILE.replace("gamma: float = 2.0", "alpha: float = 2.0").replace("gamma", "alpha")
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = config(tmp_path, model__objective={"class_path": "Power", "init_args": {"alpha": 8.0}})
    cli = fit(path, "--model.objective", "other_of_test_cli.Brier")
    assert cli.model.objective.alpha == 2.0


@pytest.mark.parametrize("name", ["tensorboard"])
def test_tensorboard_by_configuration_beside_the_csv(tmp_path: Path, name: str) -> None:
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "tb")}}
    fit(config(tmp_path, trainer__logger=logger))
    assert list((tmp_path / "tb").rglob("events.*"))
    assert (tmp_path / "runs/tiny/metrics.csv").exists()


def test_a_run_that_is_no_longer_finite_ends_with_its_last_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_of_test_cli.py").write_text(
        "from lit_probsft import ProbSFTModule\n\n\nclass Broken(ProbSFTModule):\n    def token_loss(self, tokens):\n"
        "        return super().token_loss(tokens) * (float('nan') if self.training and self.global_step >= 2 else 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"10 optimizer steps in a row .* last good weights are in .*step-0+12\.ckpt"):
        fit(config(tmp_path), "--model", "broken_of_test_cli.Broken", "--trainer.max_epochs", "9")
    record = json.loads((tmp_path / "runs/tiny/run.json").read_text())
    assert record["status"] == "failed"
    assert record["counts"]["skipped_steps"] == 10
    main(["export", "runs/tiny/checkpoints/last.ckpt", "out"])
    assert all(p.isfinite().all() for p in AutoModelForCausalLM.from_pretrained("out").parameters())


def mixture(part: Any) -> dict[str, Any]:
    return {"class_path": "Mixture", "init_args": {"sources": {"a": part}}}


TINY_MODEL = {"class_path": "RandomCausalLM", "init_args": {"config": tiny.LLAMA}}

BAD_INPUT = {
    "unknown command": (["ft"], {}, "COMMAND.*Did you mean 'fit'"),
    "missing config": (["fit", "--config", "tin.yaml"], {}, "--config: expected a file"),
    "unknown objective": (["--model.objective", "NegPP"], {}, "model.objective.*'NegPP'.*Did you mean 'NegP'"),
    "unknown objective in the file": (
        [],
        {"model__objective": {"class_path": "Powr"}},
        "model.objective.*'Powr'.*'Power'",
    ),
    "unknown field": (
        ["--model.objective", "Power", "--model.objective.alhpa", "3"],
        {},
        "model.objective.alhpa.*'alpha'",
    ),
    "unknown field of the data": ([], {"data__batch_sise": 3}, "data.batch_sise.*'batch_size'"),
    "unknown field of the trainer": (["--trainr.max_epochs", "3"], {}, "trainr.max_epochs.*'trainer.max_epochs'"),
    "wrong type": (["--data.batch_size", "four"], {}, "data.batch_size: expected a whole number, got 'four'"),
    "value out of range": (["--model.objective", "Threshold", "--model.objective.min_prob", "3"], {}, "min_prob = 3"),
    "schedule out of range": (["--model.schedule.final", "2"], {}, "schedule.final"),
    "no model": ([], {"model": {"objective": {"class_path": "NLL"}}}, "model.model"),
    "missing model folder": (["--model.model", "./no_such_model"], {}, "model_name_or_path.*no_such_model"),
    "unknown model type": (
        [],
        {"model__model": {"class_path": "RandomCausalLM", "init_args": {"config": {"model_type": "lama"}}}},
        "model_type.*'llama'",
    ),
    "unknown field of the model": (
        [],
        {"model__model": {"class_path": "RandomCausalLM", "init_args": {"config": {**tiny.LLAMA, "hiden_size": 8}}}},
        "hiden_size.*'hidden_size'",
    ),
    "vocabulary too small": (
        [],
        {"model__model": {"class_path": "RandomCausalLM", "init_args": {"config": {**tiny.LLAMA, "vocab_size": 50}}}},
        "vocab_size: expected at least.*got 50",
    ),
    "missing file": (["--data.train.path", "trian.jsonl"], {}, "data.train.*trian.jsonl.*train.jsonl"),
    "missing column": (["--data.train.prompt", "questoin"], {}, "data.train.*questoin.*question"),
    "too long": (["--data.max_length", "40"], {}, "data.max_length: expected at most 40 tokens.*data.train"),
    "all dropped": (
        ["--data.max_length", "10", "--data.overflow", "drop"],
        {},
        "data.train: .*all 24 .*data.max_length",
    ),
    "no training data": ([], {"data": {"tokenizer": {"class_path": "ByteTokenizer"}}}, "data.train"),
    "a logger that is none": (["--trainer.logger", "TensorBordLogger"], {}, "trainer.logger.*TensorBordLogger"),
    "weights without a folder": (["validate", "--weights", "nowhere"], {}, "--weights"),
    "resume without a checkpoint": (["--resume"], {}, "--resume"),
    "resume and overwrite": (["--resume", "--overwrite"], {}, "--resume and --overwrite"),
    "runs_dir below a file": (["--runs_dir", "train.jsonl/x"], {}, "--runs_dir: expected a folder.*is a file"),
    "a name that leaves runs_dir": (["--name", "../esc"], {}, "--name"),
    "cache_dir is a file": (["--data.cache_dir", "train.jsonl"], {}, "data.cache_dir: expected a folder"),
    "trainer is a list": ([], {"trainer": [1]}, "trainer: expected a mapping"),
    "data is a text": ([], {"data": "hello"}, "data: expected a class.*'hello'.$"),
    "no devices": (["--trainer.devices", "0"], {}, "trainer.devices"),
    "unknown accelerator": (["--trainer.accelerator", "gpuu"], {}, "trainer.accelerator.*gpuu"),
    "unknown strategy": (["--trainer.strategy", "dpp"], {}, "trainer.strategy.*dpp"),
    "unknown profiler": (["--trainer.profiler", "foo"], {}, "trainer.profiler"),
    "unknown clipping": (["--trainer.gradient_clip_algorithm", "foo"], {}, "trainer.gradient_clip_algorithm.*'foo'"),
    "negative clipping": (["--trainer.gradient_clip_val", "-1"], {}, "trainer.gradient_clip_val"),
    "negative epochs": (["--trainer.max_epochs", "-3"], {}, "trainer.max_epochs"),
    "no epochs": (["--trainer.max_epochs", "0"], {}, "trainer.max_epochs"),
    "no steps": (["--trainer.max_steps", "0"], {}, "trainer.max_steps"),
    "no batches": (["--trainer.limit_train_batches", "0"], {}, "trainer.limit_train_batches"),
    "negative learning rate": (["--model.optimizer.lr", "-1"], {}, "model.optimizer: .*-1"),
    "unknown field of the optimizer": (["--model.optimizer.lrr", "1"], {}, "model.optimizer.lrr.*AdamW.*'lr'"),
    "unknown field of the schedule": ([], {"model__schedule": {"deca": "linear"}}, "model.schedule.deca.*'decay'"),
    "no objective": (["--model.objective", "torch.nn.Linear"], {}, "model.objective: expected.*Objective"),
    "limit below one": (["--data.train.limit", "0"], {}, "data.train.limit"),
    "limit of a mixture's source": (
        [],
        {"data__train": mixture({"class_path": "Rows", "init_args": {"path": "train.jsonl", "limit": 0}})},
        "^data.train.sources.a.limit: expected at least 1 row, got 0$",
    ),
    "a mixture of nothing": (
        [],
        {"data__train": {"class_path": "Mixture", "init_args": {"sources": {}}}},
        "^data.train.sources: expected at least one named source, got none$",
    ),
    "a weight of a mixture": (
        [],
        {"data__validation": mixture({"source": "a.jsonl", "weight": 0}), "data__train": mixture("a.jsonl")},
        "^data.validation.sources.a.weight: expected a number above 0, got 0.0$",
    ),
    "validate without its checkpoint": (["validate", "--ckpt_path", "none.ckpt"], {}, "--ckpt_path: expected.*none"),
    "validate with a damaged checkpoint": (["validate", "--ckpt_path", "train.jsonl"], {}, "--ckpt_path: expected"),
}


# Mistakes that take the same way through the code as others above.
ALIKE = {
    "unknown profiler",
    "unknown clipping",
    "unknown strategy",
    "negative epochs",
    "no steps",
    "no batches",
    "schedule out of range",
    "limit below one",
    "limit of a mixture's source",
    "a mixture of nothing",
    "validate with a damaged checkpoint",
    "unknown field of the data",
}


@pytest.mark.parametrize("name", [slow(name) if name in ALIKE else name for name in BAD_INPUT])
def test_bad_input_is_one_message_that_names_the_argument_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    flags, changes, words = BAD_INPUT[name]
    path = config(tmp_path, **changes)
    command = flags[0] if flags and not flags[0].startswith("-") else "fit"
    rest = [flag for flag in flags if flag != command]
    given = [] if "--config" in rest or command == "ft" else ["--config", str(path)]
    with pytest.raises(UserError, match=words) as caught:
        main([command, *given, *rest])
    assert "\n" not in str(caught.value).strip()
    assert not (tmp_path / "runs").exists()


def shell(*args: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "lit_probsft", *args], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    return done, time.monotonic() - start


def test_help_lists_every_command_and_imports_nothing_heavy(tmp_path: Path) -> None:
    done, _ = shell("--help", cwd=tmp_path)
    assert done.returncode == 0
    for command in ("fit", "validate", "test", "predict", "export"):
        assert f"  {command} " in done.stdout
    heavy = "[m for m in ('torch', 'lightning', 'transformers') if m in sys.modules]"
    probe = "import sys; from lit_probsft.cli import main\n{call}\nprint(" + heavy + ")"
    for call in ("main(['--help'])", "try: main(['export', '--help'])\nexcept SystemExit: pass"):
        out = subprocess.run(
            [sys.executable, "-c", probe.format(call=call)], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert out.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_shell_gets_status_2_one_line_and_no_traceback(tmp_path: Path) -> None:
    done, _ = shell("export", "nowhere.ckpt", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("lit_probsft: error: CKPT")
    assert len(done.stderr.strip().splitlines()) == 1


def test_answers_that_are_empty_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = PredictionWriter(tmp_path / "predictions.jsonl")
    writer._rows = {index: {"index": index, "answer": answer} for index, answer in enumerate(["", "a", ""])}
    with caplog.at_level("INFO"):
        writer.on_predict_epoch_end(SimpleNamespace(world_size=1, is_global_zero=True), None)  # type: ignore[arg-type]
    assert "3 answers in" in caplog.text
    assert "2 of them are empty" in caplog.text
