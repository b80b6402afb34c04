"""What lm-eval says of the base and of the tuned model, document by document. Needs the extra `retention`."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_probsft import UserError
from lit_probsft.evaluation import retention
from tests import tiny


def test_without_lm_eval_one_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r"lm-eval is not installed \(pip install .lit_probsft\[retention\].\)"):
        retention.load_tasks(["toy"])


def task(folder: Path, name: str, **fields: Any) -> dict[str, Any]:
    """A task of lm-eval with 24 documents and three choices."""
    rows = [{"question": f"{i} {name}", "choices": ["a", "b", "c"], "gold": i % 3} for i in range(24)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **fields,
    }


def write(folder: Path, name: str, content: dict[str, Any]) -> str:
    (folder / f"{name}.yaml").write_text(json.dumps(content))  # JSON is YAML
    return str(folder / f"{name}.yaml")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    from lit_probsft.data import ByteTokenizer

    folders = [tmp_path_factory.mktemp("model") for _ in range(2)]
    for seed, folder in enumerate(folders):
        tiny.model(seed=seed).save_pretrained(folder)
        ByteTokenizer().load(list).save_pretrained(folder)
    return [*map(str, folders)]


@pytest.mark.slow
def test_differences_are_those_of_the_documents(models: list[str], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    parts = [task(tmp_path, name) for name in ("one", "two")]
    toy, both = write(tmp_path, "one", parts[0]), "both"
    write(tmp_path, "two", parts[1])
    group = write(tmp_path, both, {"group": both, "task": ["one", "two"]})
    base, tuned = models
    options: dict[str, Any] = {"device": "cpu", "manager": retention.load_tasks([toy, both], str(tmp_path))}
    with pytest.raises(UserError, match="expected files of single tasks, got .*both.yaml"):
        retention.load_tasks([group])
    found = retention.measure(tuned, base, [toy, both], **options)
    assert [found[name]["n"] for name in (toy, both)] == [24, 48]
    assert found[toy]["metric"] == "acc"
    assert found[toy]["difference"] == pytest.approx(found[toy]["tuned"] - found[toy]["base"])
    swapped = retention.measure(base, tuned, [toy, both], **options)
    assert swapped[both]["difference"] == pytest.approx(-found[both]["difference"])
    assert swapped[both]["se"] == found[both]["se"] > 0
    same = retention.measure(base, base, [toy], limit=10, **options)
    assert same[toy] == {**same[toy], "base": same[toy]["tuned"], "difference": 0, "se": 0, "n": 10}
    assert json.loads(json.dumps(found)) == found


def test_the_standard_error_is_that_of_paired_differences() -> None:
    before = {("t", i): float(i % 2) for i in range(9)}
    after = {("t", i): float(i % 3 == 0) for i in reversed(range(9))}
    found = retention._compared("t", ("acc", before), ("acc", after))
    paired = [after[key] - before[key] for key in before]
    assert found["se"] == pytest.approx((statistics.variance(paired) / 9) ** 0.5)
    assert found["difference"] == pytest.approx(statistics.fmean(paired))


@pytest.mark.slow
def test_what_lm_eval_cannot_run_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    elsewhere = task(tmp_path, "elsewhere", dataset_path=str(tmp_path / "nothing"), dataset_kwargs={})
    for name, message in (
        ("helaswag", r"no task 'helaswag'. Did you mean 'hellaswag'"),
        (write(tmp_path, "elsewhere", elsewhere), r"the data of .*elsewhere.yaml is not on this machine, and the hub"),
    ):
        with pytest.raises(UserError, match=message):
            retention.load_tasks([name])
    toy = write(tmp_path, "toy", task(tmp_path, "toy"))
    with pytest.raises(UserError, match="lm-eval cannot load .*missing"):
        retention.measure("no/model", str(tmp_path / "missing"), [toy], device="cpu")
