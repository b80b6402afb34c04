"""What training changes: the watched sets, and single tokens before and after."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_probsft.analysis.tokens import Tokens
from lit_probsft.cli.commands import main
from lit_probsft.data import Mixture, Rows
from lit_probsft.errors import UserError
from lit_probsft.objectives import EAFT, NLL, NegP, PowerSchedule
from lit_probsft.run.facts import forgetting
from lit_probsft.run.followed_tokens import FollowedTokens
from lit_probsft.run.token_changes import TokenChanges
from lit_probsft.training.module import ProbSFTModule
from tests import tiny
from tests.cli.test_fit import config


def rows(path: Path) -> Rows:
    return Rows(str(path), prompt="question", response="answer")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    counts = {"train": 20, "validation": 6, "other": 5, "third": 3}
    return {
        name: tiny.write_rows(folder / f"{name}.jsonl", count, seed=seed)
        for seed, (name, count) in enumerate(counts.items())
    }


def fit(files: dict[str, Path], callbacks: Any = (), objective: Any = NLL(), **options: Any) -> Any:  # noqa: B008
    """A short run: the trainer, the metrics, and the model before training."""
    data = tiny.data(files["train"], **{"validation": rows(files["validation"]), **options})
    module = ProbSFTModule(tiny.model(), objective, tiny.adamw)
    before = copy.deepcopy(module.model)
    trainer = tiny.trainer(max_epochs=1, num_sanity_val_steps=-1, callbacks=list(callbacks))
    trainer.fit(module, datamodule=data)
    return trainer, {name: float(value) for name, value in trainer.callback_metrics.items()}, before


# --- watched sets


@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 200, "batch_size": 2}])
def test_watched_sets_change_nothing_and_are_measured_like_the_validation_set(
    files: dict[str, Path], options: dict[str, Any]
) -> None:
    watch = {"other": rows(files["other"]), "a.third": rows(files["third"])}
    run, watched, _ = fit(files, watch=watch, **options)
    _, alone, _ = fit(files, **options)
    of_sets = {f"val/{name}/{metric}" for name in watch for metric in ("nll", "mean_p", "ece")}
    assert watched.keys() == alone.keys() | of_sets
    assert {name: watched[name] for name in alone} == alone
    assert run.lightning_module.initial_metrics.keys() >= of_sets
    for name, source in watch.items():
        _, itself, _ = fit(files, validation=source, **options)
        for metric in ("nll", "mean_p", "ece"):
            assert watched[f"val/{name}/{metric}"] == itself[f"val/{metric}"]


def test_the_sources_of_a_validation_mixture_are_measured_next_to_a_watched_set(files: dict[str, Path]) -> None:
    mixture = Mixture({"a": rows(files["validation"]), "b": rows(files["third"])})
    _, found, _ = fit(files, validation=mixture, watch={"other": rows(files["other"])})
    _, alone, _ = fit(files)
    assert found["val/nll/a"] == pytest.approx(alone["val/nll"], rel=1e-9)
    assert {"val/nll/b", "val/mean_p/b", "val/other/nll"} <= found.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"watch": {"a b": "x.jsonl"}}, "data.watch: expected names of letters, digits, `_`, `-` and `.`, got 'a b'"),
        ({"watch": {"nll": "x.jsonl"}}, "data.watch: expected a name other than a metric's, got 'nll'"),
        (
            {"watch": {"a": "x.jsonl"}, "validation": None},
            "data.watch: needs data.validation or data.validation_fraction, to measure what training gains",
        ),
    ],
)
def test_a_watched_set_with_a_bad_name_or_without_validation_is_refused(
    files: dict[str, Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        tiny.data(files["train"], **{"validation": rows(files["validation"]), **options})
    assert str(error.value) == message


def test_errors_in_a_watched_set_name_it(files: dict[str, Path], tmp_path: Path) -> None:
    module = tiny.data(files["train"], validation=rows(files["validation"]), watch={"x": str(tmp_path / "no.jsonl")})
    with pytest.raises(UserError, match=r"^data.watch.x.path: no such file"):
        module.setup("fit")


def test_validate_measures_watched_sets_and_prints_each_metric_once(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.data(files["train"], validation=rows(files["validation"]), watch={"other": rows(files["other"])})
    trainer = tiny.trainer()
    trainer.validate(ProbSFTModule(tiny.model(), NLL()), datamodule=data)
    assert "val/other/ece" in trainer.callback_metrics
    assert "DataLoader 1" not in capsys.readouterr().out
    trainer.test(ProbSFTModule(tiny.model(), NLL()), datamodule=tiny.data(files["train"], test=rows(files["other"])))
    assert {"test/ece", "test/entropy"} <= trainer.callback_metrics.keys()


def test_forgetting_lists_metrics_that_are_known_before_and_after() -> None:
    initial = {"val/nll": 2.0, "val/mean_p": 0.25, "val/a/nll": 1.0, "val/b/nll": 1.0, "val/nll/a": 5.0}
    final = {"val/nll": 1.5, "val/mean_p": 0.5, "val/a/nll": 1.25, "val/nll/a": 5.0, "train/nll": 1.0}
    assert forgetting(initial, final, ("a", "b")) == {
        "validation": {
            "nll": {"initial": 2.0, "final": 1.5, "difference": -0.5},
            "mean_p": {"initial": 0.25, "final": 0.5, "difference": 0.25},
        },
        "a": {"nll": {"initial": 1.0, "final": 1.25, "difference": 0.25}},
    }


# --- single tokens


def plain(model: Any, store: Any) -> list[dict[str, Any]]:
    """Every supervised token of a store, in order, with log p from the model's own logits."""
    found = []
    for document in range(len(store)):
        ids, labels = (torch.as_tensor(np.array(part)).long() for part in store[document])
        with torch.no_grad():
            log_probs = model.eval()(ids[None]).logits[0].log_softmax(-1)
        for position in range(1, len(ids)):
            if labels[position] >= 0:
                log_p = float(log_probs[position - 1, labels[position]])
                found.append({"document": document, "position": position, "token": int(ids[position]), "log_p": log_p})
    return found


def test_followed_tokens_have_the_models_log_p_and_the_text_around_the_largest_changes(
    files: dict[str, Path], tmp_path: Path
) -> None:
    changes = TokenChanges()
    trainer, _, model = fit(files, [changes], NegP(), watch={"other": rows(files["other"])})
    facts = changes.write(tmp_path / "tokens.npz", trainer, trainer.lightning_module)
    store = trainer.datamodule.documents("validation")
    before, after = plain(model, store), plain(trainer.lightning_module.model, store)
    tokens = Tokens(tmp_path / "tokens.npz")
    for name in ("document", "position", "token"):
        assert tokens.arrays[name].tolist() == [token[name] for token in before]
    assert tokens.arrays["row"].tolist() == [int(store.rows[token["document"]]) for token in before]
    expected = [np.array([token["log_p"] for token in found]) for found in (before, after)]
    np.testing.assert_allclose(tokens.before, expected[0], atol=1e-5)
    np.testing.assert_allclose(tokens.after, expected[1], atol=1e-5)
    p = np.exp(expected[1])
    np.testing.assert_allclose(tokens.arrays["pull_after"], p * (1 - p), atol=1e-5)
    assert facts is not None
    assert (facts["supervised"], facts["followed"], facts["step"]) == (len(before), len(before), trainer.global_step)
    assert facts["before"]["nll"] == pytest.approx(-expected[0].mean(), rel=1e-5)
    assert facts["after"]["mean_p"] == pytest.approx(p.mean(), rel=1e-5)

    moved = tokens.moved()
    up = sorted((b - a for a, b in zip(*expected, strict=True) if b > a), reverse=True)[:20]
    down = sorted(b - a for a, b in zip(*expected, strict=True) if b < a)[:20]
    np.testing.assert_allclose([token.after - token.before for token in moved], [*up, *down], atol=1e-5)
    for place, token in zip(tokens.arrays["moved"], moved, strict=True):
        ids = store[before[place]["document"]][0].tolist()
        whole = trainer.datamodule.tokenizer.decode(ids, skip_special_tokens=False)
        assert token.text[1] == trainer.datamodule.tokenizer.decode(ids[before[place]["position"]])
        assert "".join(token.text) in whole


def test_a_sample_of_many_tokens_is_spread_evenly_over_the_documents(files: dict[str, Path], tmp_path: Path) -> None:
    data = tiny.data(files["train"])
    data.setup("fit")
    store = data.documents("train")
    followed = FollowedTokens(store, 100)
    taken = np.bincount(followed.arrays()["document"], minlength=len(store))
    share = store.supervised * 100 / followed.total
    assert len(followed.numbers) == len(set(followed.numbers.tolist())) == 100
    assert (np.abs(taken - share) < 1).all()
    # In any batches, each slot occurs once.
    order = np.random.default_rng(0).permutation(len(store))
    slots = [followed.of_batch(part)[1].tolist() for part in np.array_split(order, 4)]
    assert sorted(slot for part in slots for slot in part) == list(range(100))
    tokens, slots_of_one = followed.of_batch(np.array([7]))
    assert (followed.numbers[slots_of_one] == store.supervised[:7].sum() + tokens).all()


def test_values_that_were_not_measured_are_missing(files: dict[str, Path], tmp_path: Path) -> None:
    changes = TokenChanges(most=10)
    data = tiny.data(files["train"], validation=rows(files["validation"]))
    module = ProbSFTModule(tiny.model(), EAFT(), tiny.adamw)
    trainer = tiny.trainer(max_epochs=1, callbacks=[changes])  # no sanity check
    trainer.fit(module, datamodule=data)
    facts = changes.write(tmp_path / "tokens.npz", trainer, module)
    assert facts is not None
    assert facts["followed"] == 0
    assert "before" not in facts
    tokens = Tokens(tmp_path / "tokens.npz")
    assert (tokens.measured("before"), tokens.measured("after")) == (False, True)
    assert tokens.moved() == []
    assert tokens.pull("after") is None  # EAFT reads an entropy
    assert changes.write(tmp_path / "none.npz", tiny.trainer(), module) is not None
    assert TokenChanges().write(tmp_path / "none.npz", trainer, module) is None


def test_values_of_another_validation_set_are_dropped(files: dict[str, Path]) -> None:
    changes = TokenChanges()
    state = {"before": torch.zeros(3), "after": torch.zeros(3), "step": 3, "calibration": {}, "fingerprint": "another"}
    changes.load_state_dict(state)
    data = tiny.data(files["train"], validation=rows(files["validation"]))
    tiny.trainer(max_steps=1, callbacks=[changes], val_check_interval=1).fit(
        ProbSFTModule(tiny.model(), NLL(), tiny.adamw), datamodule=data
    )
    assert changes.before is None
    assert changes.after is not None
    assert len(changes.after) == data.report["validation"]["supervised_tokens"]
    assert changes.state_dict()["fingerprint"] == data.report["validation"]["fingerprint"]


def test_a_scheduled_objective_has_a_weight_at_the_start_and_one_at_the_end(
    files: dict[str, Path], tmp_path: Path
) -> None:
    changes, objective = TokenChanges(), PowerSchedule(0.0, 1.0)
    trainer, *_ = fit(files, [changes], objective)
    changes.write(tmp_path / "tokens.npz", trainer, trainer.lightning_module)
    arrays = Tokens(tmp_path / "tokens.npz").arrays
    p = arrays["weight_p"]
    np.testing.assert_allclose(arrays["weight_before"], 1 - p, rtol=1e-9)
    np.testing.assert_allclose(arrays["weight_after"], p * (1 - p), rtol=1e-9)


def test_a_run_that_cannot_write_tokens_warns_and_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lit_probsft.run.token_changes.np.savez_compressed", full)
    with pytest.warns(
        UserWarning, match=r"^tokens.npz is not written: --runs_dir: .* could not be written: No space left"
    ):
        main(["fit", "--config", str(config(tmp_path))])
    run = tmp_path / "runs" / "tiny"
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    assert not (run / "tokens.npz").exists()
    assert (run / "hf").is_dir()


def test_a_resumed_run_has_the_values_from_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_rows(tmp_path / "other.jsonl", 4, seed=5)
    columns = {"prompt": "question", "response": "answer"}
    other = {"class_path": "Rows", "init_args": {"path": str(tmp_path / "other.jsonl"), **columns}}
    path = str(config(tmp_path, data__watch={"other": other}, trainer__max_epochs=2))
    main(["fit", "--config", path, "--name", "whole"])
    fails = ["--trainer.callbacks", "tests.crash.callbacks.Fails", "--trainer.callbacks.step", "4"]
    with pytest.raises(RuntimeError, match="the power goes out"):
        main(["fit", "--config", path, "--name", "parts", *fails])
    main(["fit", "--config", path, "--name", "parts", "--resume"])
    whole, parts = (Tokens(tmp_path / "runs" / name / "tokens.npz").arrays for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value, err_msg=name)
    records = [json.loads((tmp_path / "runs" / name / "run.json").read_text()) for name in ("whole", "parts")]
    for key in ("forgetting", "tokens"):
        assert records[0][key] == records[1][key]
    assert records[0]["forgetting"].keys() == {"validation", "other"}
    assert records[0]["tokens"]["step"] == 6
