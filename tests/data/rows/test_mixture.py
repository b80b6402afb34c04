"""Mixtures: quotas, what metrics report separately, and the weight of a row."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import Logger

from lit_probsft.data import ByteTokenizer, InstructionDataModule, Mixture, Part, Rows
from lit_probsft.errors import UserError
from lit_probsft.objectives import NLL
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule
from tests import tiny

# Shares.


def parts(**weights):
    return Mixture({name: Part("x.jsonl", weight) for name, weight in weights.items()})


def test_weights_divide_the_number_of_documents():
    assert parts(a=1.0, b=3.0).quotas({"a": 100, "b": 20}) == {"a": 30, "b": 90}
    assert Mixture({"a": Part("x", 1), "b": Part("y", 2)}, size=9).quotas({"a": 100, "b": 20}) == {"a": 3, "b": 6}
    assert Mixture({"a": Part("x", cap=7), "b": "y"}).quotas({"a": 100, "b": 20}) == {"a": 7, "b": 20}
    assert Mixture({"a": "x", "b": "y"}).quotas({"a": 100, "b": 20}) == {"a": 100, "b": 20}
    assert parts(a=1.0, b=1.0).quotas({"a": 0, "b": 20}) == {"b": 20}


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 9), st.integers(1, 99)), min_size=1, max_size=6))
def test_quotas_sum_to_the_size_and_each_is_within_one_document_of_its_share(drawn):
    mixture = parts(**{f"s{i}": weight for i, (weight, _) in enumerate(drawn)})
    counts = {f"s{i}": count for i, (_, count) in enumerate(drawn)}
    total, size = sum(weight for weight, _ in drawn), sum(counts.values())
    try:
        quotas = mixture.quotas(counts)
    except UserError:
        assert min(weight for weight, _ in drawn) * size / total < 1
        return
    assert sum(quotas.values()) == size
    assert all(abs(quotas[f"s{i}"] - size * weight / total) < 1 for i, (weight, _) in enumerate(drawn))


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ({}, {}, "sources: expected at least one named source, got none"),
        ({"a b": "x"}, {}, "sources: expected names of letters, digits, `_`, `-` and `.`, got 'a b'"),
        ({"a": Part("x", 0.0)}, {}, "sources.a.weight: expected a number above 0, got 0.0"),
        ({"a": Part("x", -1.0)}, {}, "sources.a.weight: expected a number above 0, got -1.0"),
        ({"a": Part("x", math.nan)}, {}, "sources.a.weight: expected a number above 0, got nan"),
        ({"a": Part("x", 1.0), "b": "y"}, {}, "sources.b.weight: expected a weight, since 'a' has one, got none"),
        ({"a": Part("x", 1.0, cap=3)}, {}, "sources.a.cap: cannot be combined with weights, got 3"),
        ({"a": Part("x", cap=0)}, {}, "sources.a.cap: expected at least 1 document, got 0"),
        ({"a": "x"}, {"size": 3}, "size: needs weights, got 3 without any"),
        ({"a": Part("x", 1.0)}, {"size": 0}, "size: expected at least 1 document, got 0"),
        ({"a": Mixture({"b": "x"})}, {}, "sources.a.source: expected a source other than a mixture, got a mixture"),
    ],
)
def test_an_invalid_mixture_is_refused(sources, options, message):
    with pytest.raises(UserError) as error:
        Mixture(sources, **options)
    assert str(error.value) == message


def test_a_number_may_name_a_source():
    assert Mixture({2024: "x.jsonl"}).parts == ("2024",)  # as YAML reads it


def test_a_share_of_less_than_a_document_is_refused():
    with pytest.raises(UserError, match=r"sources.a.weight: expected a share of at least one document, got 0.001 of 1"):
        parts(a=0.001, b=1.0).quotas({"a": 5, "b": 5})


# In the data module.


def rows(name, count):
    return [{"prompt": f"{name} {i}?", "response": f"{name} is " + "so " * (i % 5) + f"{i}."} for i in range(count)]


@pytest.fixture
def two(jsonl, tmp_path):
    """A data module over two sources of 20 and 4 rows."""
    a, b = (jsonl(rows(name, count), f"{name}.jsonl") for name, count in (("a", 20), ("b", 4)))

    def build(weights=(1.0, 1.0), **options):
        train = Mixture({"a": Part(a, weights[0]), "b": Part(b, weights[1])})
        defaults = {"tokenizer": ByteTokenizer(), "cache_dir": str(tmp_path / "cache"), "batch_size": 4}
        return InstructionDataModule(**{"train": train, **defaults, **options})

    return build


@pytest.mark.parametrize("packing", [{}, {"packing": True, "max_length": 120, "batch_size": 1}])
def test_an_epoch_follows_the_weights_and_evaluation_sees_every_document_once(two, packing):
    module = two(**packing)
    module.setup("fit")
    loader = module.train_dataloader()
    documents = [d for batch in loader for d in batch["documents"].tolist()]
    names = np.array(["a"] * 20 + ["b"] * 4)
    assert Counter(names[documents].tolist()) == {"a": 12, "b": 12}
    assert Counter(documents)[20] == 3
    facts = module.report["train"]["sources"]
    assert (facts["a"]["times_per_epoch"], facts["b"]["times_per_epoch"]) == (0.6, 3.0)
    assert sum(facts[name]["supervised_tokens"] for name in "ab") == module.report["train"]["supervised_tokens"]
    counted = Counter()
    for batch in loader:
        counted.update(batch["token_source"][:, 1:][batch["labels"][:, 1:] != -100].tolist())
    supervised, epochs = module.documents("train").supervised, Counter(documents)
    expected = {s: sum(int(supervised[d]) * n for d, n in epochs.items() if (d >= 20) == s) for s in (0, 1)}
    assert counted == expected
    watched = two(validation=module._splits["train"].loaded.source, **packing)
    watched.setup("validate")
    assert sorted(d for batch in watched.val_dataloader() for d in batch["documents"].tolist()) == list(range(24))


def test_weights_do_not_change_the_cached_tokens(two):
    first, second = two(), two(weights=(1.0, 5.0))
    first.setup("fit")
    second.setup("fit")
    assert first.documents("train").folder == second.documents("train").folder
    assert first.plan.describe() != second.plan.describe()


def test_errors_and_dropped_rows_name_the_source_and_its_row(jsonl, tmp_path):
    good, bad = jsonl(rows("a", 3), "a.jsonl"), jsonl([*rows("b", 2), {"prompt": "q", "response": ""}], "b.jsonl")
    options = {"tokenizer": ByteTokenizer(), "cache_dir": str(tmp_path / "cache")}
    where = "data.train.sources.bad.response: column 'response'"
    with pytest.raises(UserError) as error:
        InstructionDataModule(Mixture({"good": good, "bad": bad}), **options).setup("fit")
    assert str(error.value).startswith(where)
    assert str(error.value).endswith("(row 2 of data.train.sources.bad, counted from 0)")
    module = InstructionDataModule(Mixture({"good": good, "bad": bad}), on_bad_row="skip", **options)
    module.setup("fit")
    (loss,) = module.dropped_rows["train"]
    assert (loss["source"], loss["row"], loss["what"]) == ("bad", 2, "skipped")
    with pytest.raises(UserError, match=r"data.train.sources.gone.path: no such file: '.*gone.jsonl'"):
        InstructionDataModule(Mixture({"gone": str(tmp_path / "gone.jsonl")}), **options).setup("fit")
    (tmp_path / "broken.jsonl").write_text("{nonsense\n")
    with pytest.raises(UserError, match=r"data.train.sources.x.path: '.*' line 1: not valid JSON"):
        InstructionDataModule(Mixture({"x": str(tmp_path / "broken.jsonl")}), **options).setup("fit")


@pytest.mark.parametrize("packing", [{}, {"packing": True, "max_length": 120}])
def test_metrics_of_a_source_cover_its_documents_only(two, packing):
    module = two(validation_fraction=0.5, **packing)
    watched = ProbSFTModule(tiny.model(), NLL())
    run = tiny.trainer(max_steps=3)
    run.fit(watched, datamodule=module)
    measured = {name: float(value) for name, value in run.callback_metrics.items()}
    store = module.documents("validation")
    for source, name in enumerate("ab"):
        log_p = []
        for document in np.flatnonzero(store.sources == source):
            ids, labels = (torch.as_tensor(np.array(part)).long() for part in store[document])
            log_probs = watched.model(ids[None]).logits[0, :-1].log_softmax(-1)
            at = labels[1:] != -100
            log_p += log_probs[at].gather(-1, labels[1:][at, None])[:, 0].tolist()
        assert measured[f"val/nll/{name}"] == pytest.approx(-np.mean(log_p), rel=1e-5)
        assert measured[f"val/mean_p/{name}"] == pytest.approx(np.exp(log_p).mean(), rel=1e-5)
    of_train = [value for name, value in measured.items() if name.startswith("train/nll/")]
    assert min(of_train) <= measured["train/nll"] <= max(of_train)


def test_a_step_without_documents_of_a_source_does_not_log_it(two):
    class Log(Logger):
        name = version = ""
        rows = []

        def log_metrics(self, metrics, step=None):
            self.rows.append(metrics)

        def log_hyperparams(self, *args, **kwargs):
            pass

    module = two(batch_size=1)
    run = tiny.trainer(max_steps=12, logger=Log(), log_every_n_steps=1)
    run.fit(ProbSFTModule(tiny.model(), NLL()), datamodule=module)
    rows = [row for row in Log.rows if "train/nll" in row]
    logged = [{name for name in "ab" if f"train/nll/{name}" in row} for row in rows]
    documents = [module.plan.micro_batch(0, step).documents[0] for step in range(12)]
    assert logged == [{"a" if document < 20 else "b"} for document in documents]
    assert {"a"} in logged
    assert {"b"} in logged
    for row, (source,) in zip(rows, logged, strict=True):
        assert row[f"train/nll/{source}"] == pytest.approx(row["train/nll"])
        assert [name for name in row if "mean_p/" in name] == [f"train/mean_p/{source}"]


# A row's weight.


@pytest.fixture
def weighted(tmp_path):
    path = tmp_path / "weighted.jsonl"
    weights = [0, 1, 2.5, 0.5, "3", 1, 1, 4]
    drawn = tiny.write_rows(tmp_path / "rows.jsonl", 8).read_text().splitlines()
    path.write_text(
        "".join(json.dumps({**json.loads(row), "w": w}) + "\n" for row, w in zip(drawn, weights, strict=True))
    )
    return path


@pytest.mark.parametrize("normalize", ["tokens", "sequence"])
@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 200, "batch_size": 4}])
def test_a_weight_multiplies_the_losses_of_a_row_but_not_the_normalizer(weighted, tmp_path, options, normalize):
    source = Rows(str(weighted), prompt="question", response="answer", weight="w")
    data = tiny.data(weighted, train=source, cache_dir=str(tmp_path / "cache"), **options)
    module = ProbSFTModule(
        tiny.model(torch.float64), NLL(), tiny.sgd, schedule=Schedule("constant", 0), normalize=normalize
    )
    tiny.trainer(max_steps=1).fit(module, datamodule=data)
    reference, store = tiny.model(torch.float64), data.documents("train")
    assert store.weights.tolist() == [0, 1, 2.5, 0.5, 3, 1, 1, 4]
    losses, counts = [], []
    for document in range(8):
        ids, labels = (torch.as_tensor(np.array(part)).long() for part in store[document])
        at = labels[1:] != -100
        log_p = reference(ids[None]).logits[0, :-1].log_softmax(-1)[at].gather(-1, labels[1:][at, None])
        losses.append(-store.weights[document] * log_p.sum())
        counts.append(int(at.sum()))
    if normalize == "tokens":
        loss = sum(losses) / sum(counts)
    else:
        loss = sum(loss / count for loss, count in zip(losses, counts, strict=True)) / 8
    loss.backward()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter -= 0.1 * parameter.grad
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(module.model.state_dict()[name], value, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("value", [-1, "heavy", None, True, float("inf"), [1], 1e308, 10**400, 1.001e9])
def test_an_invalid_weight_is_refused_and_its_row_named(jsonl, tmp_path, value):
    path = jsonl([{**row, "w": 1 if i else value} for i, row in enumerate(rows("a", 3))])
    module = InstructionDataModule(Rows(path, weight="w"), tokenizer=ByteTokenizer(), cache_dir=str(tmp_path))
    with pytest.raises(UserError) as error:
        module.setup("fit")
    assert str(error.value).startswith("data.train.weight: column 'w': expected a number from 0 to 1e9, got ")
    assert "row 0" in str(error.value)


def test_a_missing_weight_column_is_refused(jsonl, tmp_path):
    module = InstructionDataModule(
        Rows(jsonl(rows("a", 3)), weight="w"), tokenizer=ByteTokenizer(), cache_dir=str(tmp_path)
    )
    with pytest.raises(UserError, match=r"data.train.weight: no column 'w'"):
        module.setup("fit")


def test_row_weights_change_the_fingerprint(weighted, tmp_path):
    found = set()
    for weight in (None, "w"):
        source = Rows(str(weighted), prompt="question", response="answer", weight=weight)
        module = tiny.data(weighted, train=source, cache_dir=str(tmp_path / "cache"))
        module.setup("fit")
        found.add(module.fingerprint)
    assert len(found) == 2
