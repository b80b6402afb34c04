"""`compare`: differences, intervals and tests against the obvious, and what it writes and refuses."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from lit_probsft.cli.commands import main
from lit_probsft.errors import UserError
from lit_probsft.evaluation.comparison import GROUPS, MEAN, Entry, bootstrap, compare
from lit_probsft.evaluation.page import SHOWN, grades_section
from lit_probsft.evaluation.results import read_results, results_files, write_results
from tests.evaluation.results_files import draw_grades, results, task, write_evaluation

A, B, C = (draw_grades(seed, 300, p) for seed, p in ((1, 0.4), (2, 0.5), (3, 0.6)))


def entry_of(entries: list[Entry], name: str, result: str, metric: str = "accuracy") -> Entry:
    (found,) = [e for e in entries if (e.task, e.result, e.metric) == (name, result, metric)]
    return found


@pytest.mark.parametrize("size", [1, 5])
def test_the_bootstrap_spreads_as_the_mean_of_clusters_does(size: int) -> None:
    values = np.random.default_rng(0).normal(size=400).round(1)
    groups = [str(i // size) for i in range(400)]
    means = values.reshape(-1, size).mean(1)
    drawn = bootstrap(values, groups)
    assert drawn.std() == pytest.approx(means.std(ddof=1) / np.sqrt(len(means)), rel=0.06)
    assert drawn.mean() == pytest.approx(values.mean(), abs=1e-9)
    assert bootstrap(np.zeros(400), groups).std() > 0
    assert np.corrcoef(drawn, bootstrap(values, groups, 1))[0, 1] == pytest.approx(0, abs=0.05)


def test_differences_are_paired_by_question_and_tested_by_mcnemar_with_holms_adjustment() -> None:
    entries = compare({"a": results(t=task(A)), "b": results(t=task(B)), "c": results(t=task(C))}).entries
    raw = {}
    for label, grades in (("b", B), ("c", C)):
        found = entry_of(entries, "t", label)
        changes = [b - a for (a,), (b,) in zip(A, grades, strict=True)]
        error = np.std(changes, ddof=1) / np.sqrt(300)
        assert found.difference == pytest.approx(np.mean(changes))
        ends = [found.difference_low, found.difference_high]
        assert ends == pytest.approx([np.mean(changes) - 1.97 * error, np.mean(changes) + 1.97 * error], abs=0.01)
        raw[label] = binomtest(changes.count(1), changes.count(1) + changes.count(-1)).pvalue
    assert raw["c"] < raw["b"]
    assert entry_of(entries, "t", "c").p == pytest.approx(2 * raw["c"])
    assert entry_of(entries, "t", "b").p == pytest.approx(max(raw["b"], 2 * raw["c"]))
    assert entry_of(entries, "t", "a").difference is None


@pytest.mark.parametrize("n", [1, 4])
def test_several_answers_or_groups_use_the_clustered_error(n: int) -> None:
    a, b = (draw_grades(seed, 60, p, n) for seed, p in ((1, 0.4), (2, 0.5)))

    def group(i: int) -> str:
        return "xyz"[i % 3]

    alone = entry_of(compare({"a": results(t=task(a)), "b": results(t=task(b))}).entries, "t", "b")
    changes = np.mean(b, 1) - np.mean(a, 1)
    assert (alone.p == pytest.approx(ttest_1samp(changes, 0).pvalue)) == (n > 1)
    entries = compare({"a": results(t=task(a, group)), "b": results(t=task(b, group))}).entries
    of_groups = [changes[i::3].mean() for i in range(3)]
    clustered, by_group = entry_of(entries, "t", "b"), entry_of(entries, "t", "b", GROUPS)
    p = ttest_1samp(of_groups, 0).pvalue  # the groups have one size
    assert clustered.p in (pytest.approx(2 * p), pytest.approx(max(p, by_group.p)))  # the smaller or the larger of two
    assert by_group.difference == pytest.approx(np.mean(of_groups))
    assert by_group.mean == pytest.approx(np.mean(b), abs=1e-6)


def test_intervals_of_differences_contain_the_truth_where_few_questions_or_groups_differ() -> None:
    generator, hits = np.random.default_rng(0), np.zeros(2)
    half = [[i % 2] for i in range(90)]
    for _ in range(30):
        kinds = generator.choice(3, 30, p=[0.04, 0.06, 0.9])  # gets wrong, gets right, stays right
        few = {"a": task([[int(kind != 1)] for kind in kinds]), "b": task([[int(kind != 0)] for kind in kinds])}
        chances = np.clip(0.5 + 0.15 * generator.normal(size=3), 0, 1)
        tuned = generator.binomial(1, np.repeat(chances, 30)).reshape(-1, 1).tolist()
        grouped = {label: task(grades, lambda i: "xyz"[i // 30]) for label, grades in (("a", half), ("b", tuned))}
        for place, (tasks, truth) in enumerate(((few, 0.02), (grouped, 0.0))):
            entries = compare({label: results(t=numbers) for label, numbers in tasks.items()}).entries
            found = entry_of(entries, "t", "b")
            hits[place] += (found.difference_low or 0) <= truth <= (found.difference_high or 0)
    assert (hits >= 27).all()


def test_the_overall_difference_is_the_mean_over_shared_tasks() -> None:
    first = results(s=task(A), t=task(A), own=task(A))
    second = results(s=task(C), t=task(C))
    entries = compare({"a": first, "b": second}).entries
    of_tasks = [entry_of(entries, name, "b") for name in "st"]
    overall = entry_of(entries, MEAN, "b")
    assert overall.difference == pytest.approx(np.mean([entry.difference for entry in of_tasks]))
    half = [(e.difference_high or 0) - (e.difference_low or 0) for e in (*of_tasks, overall)]
    assert half[2] == pytest.approx(np.hypot(half[0], half[1]) / 2, rel=0.05)
    assert overall.paired == 600
    # A large task that gets worse and a small one that gets better have no mean difference.
    opposite = ([[1]] * 360 + [[0]] * 40, [[0]] * 40 + [[1]] * 360), ([[0]] * 20, [[1]] * 2 + [[0]] * 18)
    a, b = ({name: task(pair[i]) for name, pair in zip("st", opposite, strict=True)} for i in (0, 1))
    b["s"] = task([[0]] * 40 + [[1]] * 320 + [[0]] * 40)
    assert (entry_of(compare({"a": results(**a), "b": results(**b)}).entries, MEAN, "b").p or 0) > 0.5
    assert entry_of(entries, "own", "a").difference is None


def test_what_was_measured_differently_is_refused_unless_told() -> None:
    a, b = results(t=task(A)), results(settings={"temperature": 1.0, "seed": 5}, t=task(B[:100]))
    b["tasks"]["t"]["settings"] |= {"max_new_tokens": 4, "rows_fingerprint": "of fewer rows"}
    with pytest.raises(UserError) as refused:
        compare({"a": a, "b": b})
    text = str(refused.value)
    parts = ("temperature is 1.0, not 0.0", "t max_new_tokens is 4, not 9", "t has 100 questions, not 300, and 100")
    for part in parts:
        assert part in text
    assert "seed" not in text
    assert "rows_fingerprint" not in text
    comparison = compare({"a": a, "b": b}, different=True)
    assert parts[0] in comparison.notes[0]
    assert entry_of(comparison.entries, "t", "b").paired == 100


def test_the_papers_rows_are_those_of_the_same_model_and_task() -> None:
    base = results("Qwen/Qwen2.5-Math-1.5B", math500=task(A), gsm8k=task(B))
    run = results("runs/x/hf", math500=task(A))
    compared = compare({"base": base})
    assert "arXiv 2510.00526" in " ".join(compared.notes)
    paper = [entry for entry in compared.entries if entry.questions is None]
    assert [entry.mean for entry in paper] == pytest.approx([0.4252, 0.6395, 0.6527])
    assert {entry.task for entry in paper} == {"math500"}
    assert not [entry for entry in compare({"run": run}).entries if entry.questions is None]
    run["model"]["base"] = "Qwen/Qwen2.5-Math-1.5B"
    assert len(compare({"run": run}).entries) == 4


def test_the_table_and_the_picture_are_written_in_each_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, grades in (("a_1", A), ("b$|", B)):
        write_evaluation(tmp_path / "results" / f"{name}.json", grades)
    forms = {"--markdown": "t.md", "--latex": "t.tex", "--csv": "t.csv", "--picture": "t.svg"}
    comparison = main(["compare", "results", *(word for pair in forms.items() for word in pair)])
    b = comparison.entries[1]
    assert [entry.result for entry in comparison.entries] == ["a_1", "b$|"]
    assert Path("t.md").read_text() == capsys.readouterr().out
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", Path("t.md").read_text().splitlines()[3])]
    assert cells[2:4] == [r"b$\|", f"{100 * b.mean:.1f}"]
    assert f"{100 * b.difference:+.1f}" == cells[5]
    latex = Path("t.tex").read_text()
    assert r"b\$| & " in latex
    assert r"sums (300) & a\_1 & " in latex
    with open("t.csv", newline="") as file:
        assert [float(line["mean"]) for line in csv.DictReader(file)] == [e.mean for e in comparison.entries]
    assert ElementTree.parse("t.svg").getroot().tag.endswith("svg")
    assert "b$|" in Path("t.svg").read_text()


def test_labels_are_the_names_of_files_or_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("x/a.json", "y/a.json", "y/b.json"):
        write_evaluation(Path(path), A)
    Path("y/run.json").write_text("{}")
    assert results_files([Path("x/a.json"), Path("y")]).keys() == {"x/a", "y/a", "b"}
    assert [*results_files([Path("y/b.json"), Path("y")])] == ["b", "a"]  # the first one is compared with
    Path("y/b.json").unlink()
    with pytest.raises(UserError, match="has not ended"):
        read_results(Path("y/b.json"))


def test_a_results_file_is_read_as_it_was_written_and_refused_when_it_is_damaged(tmp_path: Path) -> None:
    content, path = results(t=task(draw_grades(0, 3, 0.5, 4)), u=task(A)), tmp_path / "a.json"
    write_results(path, {**content, "note": "[\n 1,\n 2\n]"})
    assert read_results(path) == {**content, "note": "[\n 1,\n 2\n]"}
    assert re.search(r'"0": \[\d, \d, \d, \d\]', path.read_text())
    damages = [
        lambda c: c.pop("tasks"),
        lambda c: c.update(tasks={}),
        lambda c: c.update(model=None),
        lambda c: c.update(format=2),
        lambda c: c["tasks"].update(t=None),
        lambda c: c["tasks"]["t"].pop("settings"),
        lambda c: c["tasks"]["t"]["accuracy"].update(mean=None),
        lambda c: c["tasks"]["t"]["accuracy"].update(high=3),
        lambda c: c["tasks"]["t"]["accuracy"].pop("se"),
        lambda c: c["tasks"]["t"]["grades"].clear(),
        lambda c: c["tasks"]["t"]["grades"].update({"0": [2]}),
        lambda c: c["tasks"]["t"].update(greedy=c["tasks"]["t"]["accuracy"], values={"greedy": {"0": 1}}),
        lambda c: c["tasks"]["t"].update(groups={"x": {}}),
    ]
    for damage in damages:
        broken = json.loads(path.read_text())
        damage(broken)
        (tmp_path / "b.json").write_text(json.dumps(broken))
        with pytest.raises(UserError) as refused:
            read_results(tmp_path / "b.json")
        assert str(tmp_path / "b.json") in str(refused.value)


def test_the_page_has_the_answers_that_changed_as_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\x1b"
    base, tuned = [[1]] * 3 + [[0]] * 40, [[0]] * 2 + [[1]] * 41
    write_evaluation(tmp_path / "base.json", base)
    retention = {"mmlu": {"metric": "acc", "base": 0.61, "tuned": 0.6, "difference": -0.01, "se": 0.004, "n": 9}}
    write_evaluation(tmp_path / "tuned.json", tuned, hostile, retention=retention)
    body = grades_section([tmp_path / "tuned.json"], tmp_path / "base.json")
    page = ElementTree.fromstring(f"<body>{''.join(body)}</body>")
    assert not list(page.iter("script"))
    text = "".join(page.itertext())
    assert "from wrong to right: 40 of 43 questions" in text
    assert "from right to wrong: 2 of 43 questions" in text
    assert f"And {40 - SHOWN} more" in text
    assert "-0.01" in text
    details = ["".join(each.itertext()) for each in page.iter("details")]
    assert len(details) == SHOWN + 2
    for shown in details:
        assert all(part in shown for part in ("ask ", "gold", "answer ", "why", "<script>alert(1)</script>␛"))
    assert not grades_section([tmp_path / "tuned.json"])[1].count("details")
