"""fit, validate, test, predict and export as a user types them, and the files that they write."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
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


def test_fit_writes_the_promised_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert (record["seed"], record["seeds"]) == (0, {"order": 0, "model": 0, "dropout": 0})
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
    output = capsys.readouterr().out
    assert "runs/tiny/hf" in output
    assert "next:" in output


def test_fit_lists_the_rows_that_it_skips(tmp_path: Path) -> None:
    path = config(tmp_path, data__on_bad_row="skip")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"question": \n')
    fit(path)
    run = tmp_path / "runs" / "tiny"
    (row,) = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert (row["split"], row["row"], row["what"]) == ("train", 24, "skipped")
    assert "line 25: not valid JSON" in row["reason"]
    assert json.loads((run / "run.json").read_text())["data"]["train"]["skipped"] == 1
    RunFolder(run).claim(resume=False, overwrite=True)
    assert not (run / "skipped.jsonl").exists()


def test_the_written_config_repeats_the_run(tmp_path: Path) -> None:
    first = fit(config(tmp_path), "--model.objective", "Power", "--model.objective.alpha", "0.5")
    second = main(["fit", "--config", "runs/tiny/config.yaml", "--name", "again"])
    for name, value in tiny.weights(first.model).items():
        assert torch.equal(tiny.weights(second.model)[name], value), name


def slow(*values: Any) -> Any:
    """A case for the slow suite."""
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
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, stop: int
) -> None:
    """The run fails in the middle or at the end of an epoch of three steps, one step after its last checkpoint."""
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
def test_resume_refuses_settings_that_make_another_run(tmp_path: Path, flags: list[str], words: str) -> None:
    path = config(tmp_path)
    fit(path)
    before = (tmp_path / "runs/tiny/config.yaml").read_text()
    with pytest.raises(UserError, match=f"--resume: expected .*{words}"):
        fit(path, "--resume", "--trainer.max_epochs=2", *flags)
    assert (tmp_path / "runs/tiny/config.yaml").read_text() == before


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", b"a: [1\nb: 2\n", b"- 1\n", b""])
def test_a_file_that_is_not_a_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.yaml").write_bytes(content)
    with pytest.raises(UserError, match="--config: .*broken.yaml") as caught:
        fit(tmp_path / "broken.yaml")
    assert "\n" not in str(caught.value)


def test_export_replaces_only_its_own_folders(tmp_path: Path) -> None:
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


def test_resume_refuses_another_model_or_optimizer_and_writes_nothing(tmp_path: Path) -> None:
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


def test_an_objectives_argument_may_precede_its_name(tmp_path: Path) -> None:
    cli = fit(config(tmp_path), "--model.objective.alpha", "3", "--model.objective", "Power")
    assert cli.model.objective.alpha == 3


def test_overwrite_replaces_a_run_only_if_the_new_one_starts(tmp_path: Path) -> None:
    path = config(tmp_path)
    fit(path)
    before = sorted(p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file())
    with pytest.raises(UserError, match="quest"):
        fit(path, "--overwrite", "--data.train.prompt", "quest")
    assert sorted(p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file()) == before
    fit(path, "--overwrite", "--model.objective", "NegP")
    assert "NegP" in (tmp_path / "runs/tiny/run.json").read_text()


def test_validate_test_and_predict_use_the_trained_weights(tmp_path: Path) -> None:
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
    # Padding on the left changes no answer: each equals the answer to its prompt alone.
    tokenizer = cli.datamodule.tokenizer
    for row, answer in zip(source, answers, strict=True):
        messages = [{"role": "user", "content": row["question"]}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        out = cli.model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == answer["answer"]


def test_every_row_of_a_mixture_is_answered(tmp_path: Path) -> None:
    path = config(tmp_path)
    source = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "task_id": f"HumanEval/{i}"}) + "\n" for i, row in enumerate(source)]
    (tmp_path / "validation.jsonl").write_text("".join(lines))
    rows = {"class_path": "Rows", "init_args": {"path": "validation.jsonl", "prompt": "question", "response": "answer"}}
    mixture = json.dumps({"class_path": "Mixture", "init_args": {"sources": {"a": rows, "b": rows}}})
    options = ["--weights", "base", "--data.predict", mixture, "--predictions_format", "evalplus"]
    main(["predict", "--config", str(path), *options])
    answers = [json.loads(line) for line in (tmp_path / "runs/tiny/predictions.jsonl").read_text().splitlines()]
    assert [(a["source"], a["index"]) for a in answers] == [(name, row) for name in "ab" for row in range(6)]
    solutions = [json.loads(line) for line in (tmp_path / "runs/tiny/evalplus.jsonl").read_text().splitlines()]
    assert solutions == [{"task_id": f"HumanEval/{a['index']}", "solution": a["answer"]} for a in answers]


def test_export_needs_only_the_checkpoint(tmp_path: Path) -> None:
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
def test_export_keeps_tied_and_untied_weights(tmp_path: Path, tied: bool) -> None:
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
class SquaredError(Objective):
    gamma: float = 2.0

    def loss(self, tokens):
        return (1 - tokens.log_probs.exp()) ** self.gamma


class Halved(ProbSFTModule):
    def token_loss(self, tokens):
        return super().token_loss(tokens) / 2
"""


def test_the_export_has_the_chat_template_and_stops_at_the_end_of_an_answer(tmp_path: Path) -> None:
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
        "mine_of_test_cli.SquaredError",
        "--model.objective.gamma",
        "3",
    )
    assert type(cli.model).__name__ == "Halved"
    assert cli.model.objective.gamma == 3
    record = json.loads((tmp_path / "runs/tiny/run.json").read_text())
    assert record["objective"]["class_path"] == "mine_of_test_cli.SquaredError"
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
    cli = fit(path, "--model.objective", "other_of_test_cli.SquaredError")
    assert cli.model.objective.alpha == 2.0


def test_tensorboard_can_be_added_to_the_csv(tmp_path: Path) -> None:
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "tb")}}
    fit(config(tmp_path, trainer__logger=logger))
    assert list((tmp_path / "tb").rglob("events.*"))
    assert (tmp_path / "runs/tiny/metrics.csv").exists()


def test_a_run_with_nan_losses_keeps_its_last_finite_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_help_lists_every_command_without_heavy_imports(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lit_probsft", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for command in ("fit", "validate", "test", "predict", "export"):
        assert f"  {command} " in done.stdout
    heavy = "[m for m in ('torch', 'lightning', 'transformers') if m in sys.modules]"
    probe = "import sys; from lit_probsft.cli import main\n{call}\nprint(" + heavy + ")"
    for call in ("main(['--help'])", "try: main(['export', '--help'])\nexcept SystemExit: pass"):
        out = subprocess.run(
            [sys.executable, "-c", probe.format(call=call)], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert out.stdout.splitlines()[-1] == "[]"


def test_empty_answers_are_counted_and_alpaca_eval_has_them_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = PredictionWriter(RunFolder(tmp_path / "tiny"), "alpaca_eval")
    writer._rows = {index: {"prompt": f"é{index}", "answer": answer} for index, answer in enumerate(["", "a", ""])}
    (tmp_path / "tiny").mkdir()
    with caplog.at_level("INFO"):
        writer.on_predict_epoch_end(SimpleNamespace(world_size=1, is_global_zero=True), None)  # type: ignore[arg-type]
    assert "3 answers in" in caplog.text
    assert "2 of them are empty" in caplog.text
    found = json.loads((tmp_path / "tiny/alpaca_eval.json").read_text(encoding="utf-8"))
    assert found[1] == {"instruction": "é1", "output": "a", "generator": "tiny"}
    assert [row["output"] for row in found] == ["", "a", ""]
