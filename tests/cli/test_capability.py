"""`capability` measures what a plain loop over the tokens measures, and its advice can be followed."""

from __future__ import annotations

import csv
import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_probsft.analysis.advice import (
    EXAMPLES,
    Beliefs,
    Command,
    advise,
    check_sample,
    compare,
    level,
    warnings,
    weights,
)
from lit_probsft.analysis.survey import clustered_interval
from lit_probsft.cli.commands import main
from lit_probsft.errors import UserError
from lit_probsft.objectives import DEFT, NLL, LogOneMinusP, NegP, Power, QuantileThreshold, Threshold
from lit_probsft.training.metrics import ProbHistogram
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule
from tests import tiny
from tests.cli.test_fit import config

MODEL = {"class_path": "RandomCausalLM", "init_args": {"config": {**tiny.LLAMA, "initializer_range": 0.3}}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model trained on a few rows: its p cover the whole range from 0 to 1."""
    folder = tmp_path_factory.mktemp("trained")
    rows = tiny.write_rows(folder / "rows.jsonl", 25)
    module = ProbSFTModule(
        tiny.source(), NLL(), lambda p: torch.optim.AdamW(p, lr=1e-2), schedule=Schedule("constant", warmup=0)
    )
    tiny.trainer(max_epochs=20).fit(module, datamodule=tiny.data(rows))
    module.model.save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ask(path: Path, *flags: str) -> dict[str, Any]:
    main(["capability", "--config", str(path), *flags])
    return json.loads((path.parent / "runs" / "tiny" / "capability.json").read_text())


def tokens_of(cli: Any) -> list[dict[str, np.ndarray]]:
    """Statistics of each document's tokens in float64, one document at a time, from transformers' own logits."""
    model, store, found = cli.model.model.eval(), cli.model.documents, []
    for index in range(len(store)):
        ids, labels = (torch.from_numpy(np.array(part)).long() for part in store[index])
        with torch.no_grad():
            log_p = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        kept = labels[1:] != -100
        log_p, target = log_p[kept], labels[1:][kept]
        others = log_p.scatter(-1, target[:, None], -torch.inf)
        own = log_p.gather(-1, target[:, None])[:, 0]
        found.append(
            {
                "p": own.exp().numpy(),
                "nll": -own.numpy(),
                "odds": (own - others.logsumexp(-1)).numpy(),
                "correct": (log_p.argmax(-1) == target).double().numpy(),
                "top": log_p.amax(-1).exp().numpy(),
                "top token": log_p.argmax(-1).numpy(),
                "target": target.numpy(),
                "entropy": -(log_p.exp() * log_p).sum(-1).numpy(),
            }
        )
    return found


def test_the_command_measures_what_a_plain_loop_measures(
    tmp_path: Path, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, model__model=trained, model__objective__class_path="NegP", trainer__limit_val_batches=1)
    cli = main(["capability", "--config", str(path)])
    result = json.loads((tmp_path / "runs" / "tiny" / "capability.json").read_text())
    by_document = tokens_of(cli)
    for tokens in by_document:
        tokens["ignorant"] = tokens["top"] < 0.3
        tokens["contradicted"] = (tokens["p"] < 0.1) & (tokens["top"] > 0.7)
    together = {name: np.concatenate([tokens[name] for tokens in by_document]) for name in by_document[0]}
    assert (result["rows"], result["tokens"]) == (24, len(together["p"]))
    for name, expected in (("mean_prob", "p"), ("nll", "nll"), ("accuracy", "correct"), ("entropy", "entropy")):
        assert result[name] == pytest.approx(together[expected].mean(), rel=1e-6, abs=1e-6), name
    assert 0.05 < result["mean_prob"] < 0.95

    ordered = np.sort(together["odds"])
    assert ordered[0] < -3
    assert ordered[-1] > 1
    for place, odds in enumerate(result["permilles"], 1):
        assert odds == pytest.approx(ordered[math.ceil(round(place * len(ordered) / 1000, 6)) - 1], abs=1e-3), place
    assert result["quantiles"]["0.1"]["log_odds"] == result["permilles"][99]
    assert result["quantiles"]["0.5"]["prob"] == pytest.approx(1 / (1 + math.exp(-result["permilles"][499])))
    assert result["share_above_0.55"] == pytest.approx((together["p"] > 0.55).mean())
    assert result["interval"] is None  # of 24 rows

    first = np.mean([tokens["p"][0] for tokens in by_document])
    assert result["by_position"][0]["mean_prob"] == pytest.approx(first, rel=1e-5)
    assert result["by_position"][0]["tokens"] == 24
    third = np.concatenate([tokens["p"][3:7] for tokens in by_document])
    assert (result["by_position"][2]["from"], result["by_position"][2]["to"]) == (3, 6)
    assert result["by_position"][2]["mean_prob"] == pytest.approx(third.mean(), rel=1e-5)
    last = np.concatenate([t["p"][[k * 10 // len(t["p"]) == 9 for k in range(len(t["p"]))]] for t in by_document])
    assert result["by_tenth"][9]["tokens"] == len(last)
    assert result["by_tenth"][9]["mean_prob"] == pytest.approx(last.mean(), rel=1e-5)
    bins = np.minimum((together["top"] * 15).astype(int), 14)
    gaps = [abs((together["top"] - together["correct"])[bins == k].sum()) for k in range(15)]
    assert result["calibration"]["error"] == pytest.approx(sum(gaps) / len(bins), rel=1e-4)

    with (tmp_path / "runs" / "tiny" / "capability_examples.csv").open(newline="") as file:
        table = sorted(csv.DictReader(file), key=lambda row: int(row["row"]))
    for name, key in (("confidence", "top"), ("ignorant", "ignorant"), ("contradicted", "contradicted")):
        assert result[name] == pytest.approx(together[key].mean(), rel=1e-5), name
        assert 0 < result[name] < 1, name
        assert [float(row[name]) for row in table] == pytest.approx([t[key].mean() for t in by_document], rel=1e-5)
    noise = result["noise"]
    assert noise["contradicted_rows"] == sum(tokens["contradicted"].any() for tokens in by_document)
    for row, tokens in zip(table, by_document, strict=True):
        if not tokens["contradicted"].any():
            assert row["before"] == row["label"] == row["model"] == ""
            continue
        first = int(tokens["contradicted"].argmax())
        decode = cli.model.data.tokenizer.decode
        assert row["model"] == decode([tokens["top token"][first]])
        assert row["label"].startswith(decode([tokens["target"][first]]))
    assert [float(row["mean_prob"]) for row in table] == pytest.approx([t["p"].mean() for t in by_document], rel=1e-5)
    lowest = min(range(24), key=lambda index: by_document[index]["p"].mean())
    assert result["by_example"]["lowest"][0]["row"] == lowest
    assert (tmp_path / "runs" / "tiny" / "capability.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert f"mean p   {result['mean_prob']:.4f}" in said
    assert result["advice"]["commands"][0] in said
    assert "paper    mean p strong: math 0.76 to 0.81" in said
    assert result["objectives"][0]["objective"] == "NegP()"
    assert result["objectives"][0]["chosen"]

    # Objectives can read the file.
    flags = ("--model.objective", "QuantileThreshold", "--model.objective.source", "runs/tiny")
    fit = main(["fit", "--config", str(path), "--name=fit", "--trainer.max_steps=1", *flags, "--trainer.precision=32"])
    assert fit.model.objective_state.capability.mean_prob == result["mean_prob"]
    record = json.loads((tmp_path / "runs" / "fit" / "run.json").read_text())["objective"]
    edge = record["fitted"]["init_args"]["min_prob"]
    assert np.log(edge / (1 - edge)) == pytest.approx(result["permilles"][99])


def test_a_sample_is_drawn_at_random(tmp_path: Path) -> None:
    objective = {"class_path": "QuantileThreshold", "init_args": {"source": "runs/other"}}  # written below
    path = config(tmp_path, model__model=MODEL, model__objective=objective, data__batch_size=3)
    with pytest.raises(UserError, match="model.objective.source: .* got 'runs/other'"):
        main(["fit", "--config", str(path)])
    cli = main(["capability", "--config", str(path), "--sample", "10", "--name=other"])
    result = json.loads((tmp_path / "runs" / "other" / "capability.json").read_text())
    rows = cli.model.documents.rows.tolist()
    assert len(set(rows)) == 10
    assert rows != list(range(10))
    assert result["sample"]["rows"] == 10
    assert (result["sample"]["of"], result["sample"]["drawn"]) == (24, "at random")
    expected = np.concatenate([tokens["p"] for tokens in tokens_of(cli)]).mean()
    assert result["mean_prob"] == pytest.approx(expected, rel=1e-6)
    assert result["objectives"][0]["objective"].startswith("Threshold(base=NLL(), min_prob=0.00")


def test_only_measured_rows_have_to_fit_the_model(tmp_path: Path) -> None:
    path = config(tmp_path, model__model=MODEL)
    with (tmp_path / "validation.jsonl").open("a") as file:
        file.write(json.dumps({"question": "1 + 1 =", "answer": "2 " * 300}) + "\n")
    with pytest.raises(UserError, match="data.max_length: expected documents within the model's 256 positions"):
        main(["fit", "--config", str(path)])
    assert ask(path)["rows"] == 24


@pytest.mark.slow
def test_sources_are_measured_separately_and_a_stream_by_its_first_rows(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "b.jsonl", 8, seed=5)
    columns = {"prompt": "question", "response": "answer"}
    sources = {
        name: {"class_path": "Rows", "init_args": {"path": str(tmp_path / file), **columns}}
        for name, file in (("a", "train.jsonl"), ("b", "b.jsonl"))
    }
    mixture = {"class_path": "Mixture", "init_args": {"sources": sources}}
    path = config(tmp_path, model__model=MODEL, data__train=mixture)
    whole = ask(path)
    assert {name: entry["rows"] for name, entry in whole["by_source"].items()} == {"a": 24, "b": 8}
    tokens = sum(entry["tokens"] * entry["mean_prob"] for entry in whole["by_source"].values())
    assert tokens / whole["tokens"] == pytest.approx(whole["mean_prob"])
    assert {(e["source"], e["row"]) for e in whole["by_example"]["lowest"]} <= {
        (name, row) for name, count in (("a", 24), ("b", 8)) for row in range(count)
    }
    alone = config(tmp_path, model__model=MODEL, data__streaming=True, trainer__max_steps=100)
    stream = ask(alone, "--sample", "24")
    assert stream["mean_prob"] == pytest.approx(whole["by_source"]["a"]["mean_prob"], rel=1e-6)
    assert (stream["sample"]["of"], stream["sample"]["drawn"]) == (None, "the first")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sample", "1"], "^--sample: expected at least 2 rows, got 1"),
        (["--sample", "x"], "--sample: expected a whole number, got 'x'"),
        (["--data.streaming", "true"], "^--sample: expected a number of rows with data.streaming"),
        (["--weights", "no/where"], "^--weights: expected .* got 'no/where'"),
        (["--ckpt_path", "x.ckpt"], "^--ckpt_path: capability takes no checkpoint"),
        (["--resume"], "--resume and --overwrite: expected only with fit"),
        (["--data.train", "null"], "^data.train: expected a source of rows"),
        (["--data.train.path", "no.jsonl"], "^data.train.*no.jsonl"),
        (
            ["--model.objective", "CapabilityPower", "--model.objective.max_alpha", "-1"],
            "model.objective.max_alpha: expected a finite number above 0, got -1.0",
        ),
        (["--name", "a/b"], "^--name: expected a folder's name"),
        (["--runs_dir", "train.jsonl"], "^--runs_dir: expected a folder"),
    ],
)
def test_the_command_refuses(tmp_path: Path, flags: list[str], message: str) -> None:
    path = config(tmp_path, model__model="./no/such/model")
    with pytest.raises(UserError, match=message):
        main(["capability", "--config", str(path), *flags])
    assert not (tmp_path / "runs").exists()


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["capability", "--help"])
    said = capsys.readouterr().out
    assert all(flag in said for flag in ("--sample", "--weights", "--config"))


@pytest.mark.parametrize(
    ("mean_prob", "expected"),
    [
        (0.0, "weak"),
        (0.1, "weak"),
        (math.nextafter(0.1, 1), "between"),
        (math.nextafter(0.45, 0), "between"),
        (0.45, "intermediate"),
        (0.65, "intermediate"),
        (math.nextafter(0.65, 1), "between"),
        (math.nextafter(0.75, 0), "between"),
        (0.75, "strong"),
        (1.0, "strong"),
    ],
)
def test_levels_at_their_edges(mean_prob: float, expected: str) -> None:
    assert level(mean_prob) == expected


def test_a_sample_is_enough_when_its_interval_lies_within_one_level() -> None:
    assert check_sample(0.5, (0.45, 0.65), 9)["enough"]
    assert check_sample(0.2, (0.11, 0.44), 9)["enough"]
    assert not check_sample(0.3, (0.09, 0.51), 9)["enough"]
    assert not check_sample(0.55, (0.3, 0.7), 9)["enough"]  # both ends are between levels, but not between the same
    assert check_sample(0.8, (0.7, 0.9), 100) == {"enough": False, "rows_needed": 400}
    assert check_sample(0.75, (0.7, 0.8), 100) == {"enough": False, "rows_needed": None}
    assert check_sample(0.8, None, 1) == {"enough": False, "rows_needed": None}


COMMAND = Command(["--config", "my file.yaml"], "mine", ["--trainer.max_steps", "12"], "runs/mine/capability.json")


def beliefs(
    mean: float, confidence: float, ignorant: float = 0.1, wrong: int = 0, rest: tuple[float, float] | None = None
) -> Beliefs:
    """Of 40 rows; without `rest` the other rows are as all rows."""
    return Beliefs(mean, 0.5, confidence, ignorant, 0.05, 40, wrong, *(rest or (mean, confidence)))


@pytest.mark.parametrize(
    ("found", "case", "objective"),
    [
        (beliefs(0.05, 0.1, 0.9), "ignorant", "NLL"),
        (beliefs(0.2, 0.25, 0.6), "ignorant", "NLL"),
        (beliefs(0.05, 0.9), "opposed", "NLL"),
        (beliefs(0.8, 0.8), "agrees", "NegP"),
        (beliefs(0.74, 0.75), "agrees", "NegP"),
        (beliefs(0.45, 0.68, wrong=24, rest=(0.8, 0.81)), "contradicted", "NegP"),
        (beliefs(0.2, 0.7, wrong=33, rest=(0.8, 0.81)), "between", None),
        (beliefs(0.57, 0.71), "intermediate", None),
        (beliefs(0.51, 0.66, wrong=12, rest=(0.57, 0.71)), "intermediate", None),
        (beliefs(0.2, 0.4), "between", None),
        (beliefs(math.nan, math.nan), "between", None),
    ],
)
def test_the_advice_follows_what_the_model_believes_of_the_rows_that_it_agrees_with(
    found: Beliefs, case: str, objective: str | None
) -> None:
    given = advise(found, COMMAND)
    assert (given["case"], given["objective"]) == (case, objective)
    assert (EXAMPLES in given["reason"]) == bool(found.wrong or case == "opposed")
    if objective is None:
        assert "no single objective is best" in given["reason"]
        assert [shlex.split(command)[:8] for command in given["commands"]] == [
            ["python", "-m", "lit_probsft", "fit", "--config", "my file.yaml", "--name", f"mine-pilot-{name}"]
            for name in ("nll", "power", "neg-p", "running")
        ]


@pytest.mark.slow
def test_the_pilots_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Beliefs, "case", "intermediate")
    path = config(tmp_path, model__model=MODEL, data__validation=None)
    main(["capability", "--config", str(path), "--name", "mine", "--data.batch_size=4", "--model.schedule.warmup=100"])
    result = json.loads((tmp_path / "runs" / "mine" / "capability.json").read_text())
    *_, command = result["advice"]["commands"]
    assert "--name mine-pilot-running" in command
    assert "--model.schedule.warmup 0.1" in command
    cli = main(shlex.split(command)[3:])
    assert cli.trainer.global_step == 6  # the whole run, which is shorter than the 20 steps of a pilot
    assert cli.model.objective_state.capability.mean_prob == result["mean_prob"]
    assert "val/accuracy" in cli.trainer.callback_metrics


def seen(*probabilities: float) -> torch.Tensor:
    histogram = ProbHistogram()
    p = torch.tensor(probabilities, dtype=torch.float64)
    histogram.update(p.log(), torch.log1p(-p))
    return histogram.compute()


def test_the_mean_weight_is_known_for_every_objective_of_p() -> None:
    p = (0.01, 0.3, 0.9, 0.99999)
    for objective in (NLL(), NegP(), Power(0.5), LogOneMinusP(), Threshold(NLL(), 0.2)):
        expected = objective.gradient_weight(torch.tensor(p, dtype=torch.float64).log()).mean().item()
        assert weights(objective, seen(*p))["mean"] == pytest.approx(expected, rel=1e-3)
    assert weights(DEFT(), seen(*p)) is None
    assert weights(QuantileThreshold(), seen(*p)) is None


def test_an_objective_whose_weight_vanishes_on_the_tokens_gets_a_warning() -> None:
    weak, strong = seen(*[0.001] * 99, 0.4), seen(*[0.9] * 90, *[0.3] * 10)
    assert any("NegP() (your objective) hardly" in text for text in warnings(compare(NegP(), weak)))
    assert not any("NLL()" in text for text in warnings(compare(NLL(), weak)))
    assert weights(NegP(), weak)["dead"] == pytest.approx(99 * 0.999 / (99 * 0.999 + 0.6), rel=1e-4)
    assert not any("NegP" in text or "NLL" in text for text in warnings(compare(NegP(), strong)))
    above = Threshold(NLL(), 0.95)
    assert weights(above, strong)["dead"] == 1
    assert len([entry for entry in compare(NLL(), weak) if entry["objective"] == "NLL()"]) == 1


def test_the_interval_is_that_of_a_ratio_over_examples() -> None:
    rng = np.random.default_rng(1)
    tokens = np.append(rng.integers(1, 9, 30).astype(float), 0)
    sums = tokens * rng.uniform(0.2, 0.6, 31)
    mean = sums.sum() / tokens.sum()
    deviation = math.sqrt(30 / 29 * ((sums - mean * tokens) ** 2).sum()) / tokens.sum()
    half = 2.045230 * deviation  # Student's t, 29 degrees of freedom
    assert clustered_interval(tokens, sums) == pytest.approx((mean - half, mean + half), rel=1e-5)
    assert clustered_interval(tokens[1:], sums[1:]) is None  # 29 rows with tokens


def test_the_interval_covers_the_mean_in_19_of_20_samples_although_the_tokens_of_an_example_agree() -> None:
    rng = np.random.default_rng(0)
    covered, naive = 0, 0
    for _ in range(2000):
        tokens = rng.integers(5, 50, 30).astype(float)
        sums = tokens * rng.uniform(0.2, 0.6, 30)  # all tokens of an example have the same p
        low, high = clustered_interval(tokens, sums)
        covered += low <= 0.4 <= high
        half = 1.96 * math.sqrt(0.4**2 / 12 / tokens.sum())
        naive += abs(sums.sum() / tokens.sum() - 0.4) <= half
    assert 0.93 < covered / 2000 < 0.97
    assert naive / 2000 < 0.6
