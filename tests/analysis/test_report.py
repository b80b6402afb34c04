"""The page about a run: it has every chart, names what is missing, and shows users' text as text."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from lit_probsft.analysis import charts
from lit_probsft.analysis.curves import draw_curves, read_metrics
from lit_probsft.analysis.page import escape, format_value
from lit_probsft.analysis.plotting import chart_style, new_chart, to_svg
from lit_probsft.analysis.tokens import BINS, EDGES, Tokens
from lit_probsft.cli.commands import main
from lit_probsft.cli.preview import html_page, make_preview
from lit_probsft.data import Rows
from lit_probsft.errors import UserError
from tests import tiny
from tests.cli.test_fit import config
from tests.evaluation.results_files import write_evaluation

HOSTILE = '</b><script>alert("x")</script><img src="https://evil.example/x.png"/>&amp;\x07\x1b[31m\ud800\uffff'

WHEN = ("before", "after")
PICTURES = {
    "Change of the NLL",
    "Weight of the objective",
    "Gradient mass by p",
    "p of the target",
    "Change of log p by p before",
    "Likelihood before and after",
    "Calibration",
    "NLL",
    "Mean p of the target",
    "Accuracy of the top-1 token",
    "Expected calibration error",
    "Entropy",
    "Loss: the objective's own value",
    "Norm of the gradient",
    "Learning rate",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with hostile text in its validation rows."""
    folder = tmp_path_factory.mktemp("run")
    tiny.write_rows(folder / "other.jsonl", 4, seed=5)
    columns = {"prompt": "question", "response": "answer"}
    sources = {
        name: {"class_path": "Rows", "init_args": {"path": str(folder / f"{name}.jsonl"), **columns}}
        for name in ("other", "hostile")
    }
    path = config(folder, data__watch={"other": sources["other"]}, data__validation=sources["hostile"])
    text = HOSTILE.encode("utf-8", "ignore").decode()
    lines = [json.dumps({"question": f"{i} {text}", "answer": f"{text} {i}"}) for i in range(3)]
    (folder / "hostile.jsonl").write_text("\n".join(lines) + "\n")
    main(["fit", "--config", str(path), "--runs_dir", str(folder / "runs")])
    return folder / "runs" / "tiny"


def parsed(text: str) -> ElementTree.Element:
    """The page, which is also valid XML."""
    assert text.startswith("<!doctype html>\n")
    return ElementTree.fromstring(text.partition("\n")[2])


def titles(page: ElementTree.Element) -> list[str]:
    return [
        svg.findtext("{http://www.w3.org/2000/svg}title") or "" for svg in page.iter("{http://www.w3.org/2000/svg}svg")
    ]


def test_the_page_has_every_chart_and_refers_to_nothing_outside(run: Path, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "base.json", [[0], [1], [0]])
    write_evaluation(run / "results" / "tuned.json", [[1], [1], [0]])
    path = main(["report", str(run), "--against", str(tmp_path / "base.json")])
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    page = parsed(text)
    assert set(titles(page)) == PICTURES
    assert len(titles(page)) == len(PICTURES)
    for element in page.iter():
        assert element.tag.rpartition("}")[2] not in ("script", "link", "iframe", "object", "base", "form")
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            assert name != "src"
            assert name.rpartition("}")[2] != "href" or value.startswith("#"), value
    assert not re.search(r"url\((?!#)|@import", text)
    for svg in page.iter("{http://www.w3.org/2000/svg}svg"):
        drawn = [e.get("d", "") for e in svg.iter() if "id" not in e.attrib]  # those with an id are markers
        for value in re.findall(r"-?[\d.]+|nan|inf", " ".join(drawn)):
            assert -1 <= float(value) <= 450, value  # inside the picture
    shown = "".join(page.itertext())
    assert "other" in shown
    assert "Answers that changed from base to tuned" in shown
    assert len(list(page.iter("details"))) == 1
    assert "Missing: capability.json" in shown
    assert shown.count("Missing") == 1


def test_text_of_users_stays_text(run: Path) -> None:
    page = parsed(main(["report", str(run)]).read_text(encoding="utf-8"))
    moved = [span for span in page.iter("span") if span.get("class") == "text"]
    assert moved
    assert any("<script>alert" in "".join(span.itertext()) for span in moved)
    assert {element.tag for span in moved for element in span} == {"b"}
    assert ElementTree.fromstring(f"<p>{escape(HOSTILE)}</p>").text == HOSTILE.replace("\x07", "␇").replace(
        "\x1b", "␛"
    ).replace("\ud800\uffff", "��")


def test_the_page_of_preview_is_well_formed(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "<i>", "answer": "&\x07"}) + "\n")
    data = tiny.data(
        tmp_path / "rows.jsonl", train=Rows(str(tmp_path / "rows.jsonl"), prompt="question", response="answer")
    )
    parsed(html_page(make_preview(data)))


CAPABILITY: dict[str, Any] = {
    "mean_prob": 0.6,
    "interval": [0.55, 0.65],
    "level": "intermediate",
    "advice": {"objective": None, "reason": "Nothing prevails <i>.", "commands": ["python -m x"], "warnings": []},
    "quantiles": {"0.9": {"prob": 0.99998, "one_minus_prob": 2e-5}},
    "by_source": {"<b>maths": {"mean_prob": 0.7, "interval": [0.6, 0.8]}, "code": {"mean_prob": 0.5}},
    "by_position": [{"from": 0, "mean_prob": 0.3}],
    "noise": {
        "share_of_rows": 0.5,
        "rows": [{"row": 3, "mean_prob": 0.1, "before": "<b>", "label": "I am <i>sorry", "model": "The"}],
    },
}


@pytest.mark.parametrize(
    "content",
    [
        CAPABILITY,
        {"mean_prob": 0.03, "advice": ["NLL fits.", "Watch it."], "interval": None, "by_source": {"a": 0.1}},
        {"level": "weak", "advice": "NLL", "by_source": None},
        {},
    ],
)
def test_the_page_shows_any_capability_json(run: Path, tmp_path: Path, content: dict[str, Any]) -> None:
    for name in ("run.json", "tokens.npz", "metrics.csv"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "capability.json").write_text(json.dumps(content))
    (tmp_path / "capability.png").write_bytes(b"png")
    page = parsed(main(["report", str(tmp_path), "--html", str(tmp_path / "x.html")]).read_text(encoding="utf-8"))
    shown = "".join(page.itertext())
    assert ("Mean p before training" in titles(page)) == ("mean_prob" in content)
    assert [image.get("src") for image in page.iter("img")] == ["data:image/png;base64,cG5n"]
    assert "Missing" not in shown
    if content is CAPABILITY:
        assert "model contradicts most" in shown
        assert "I am <i>sorry" in [element.text for element in page.iter("b")]
        for word in ("Nothing prevails <i>.", "python -m x", "<b>maths", "0.99998", "by_position"):
            assert word in shown, word


def test_the_page_names_what_the_run_has_not_measured(tmp_path: Path, run: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "running"}')
    shown = "".join(parsed(main(["report", str(tmp_path)]).read_text()).itertext())
    for word in ("metrics before and after", "capability.json", "tokens.npz", "metrics.csv"):
        assert re.search(rf"Missing: [^.]*{re.escape(word)}", shown), word
    with np.load(run / "tokens.npz") as file:
        arrays = dict(file)
    arrays["before"][:] = np.nan
    arrays = {k: v for k, v in arrays.items() if not k.startswith(("weight", "pull", "calibration"))}
    np.savez(
        tmp_path / "tokens.npz", **{**arrays, "moved": arrays["moved"][:0], "moved_text": arrays["moved_text"][:0]}
    )
    (tmp_path / "metrics.csv").write_text("step,train/nll\n")
    page = parsed(main(["report", str(tmp_path)]).read_text())
    shown = "".join(page.itertext())
    assert titles(page) == ["p of the target"]
    for word in ("p before training", "the weight curve", "changes of tokens", "rows in"):
        assert f"Missing: {word}" in shown, word


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, [], r"^RUN: expected the folder of a run, such as runs/quickstart, got 'r'"),
        ({}, [], r"^RUN: expected the folder of a run, 'r' has no run.json"),
        ({"run.json": "{"}, [], r"^r/run.json: not valid JSON"),
        ({"run.json": "[]"}, [], r"^r/run.json: expected a JSON object, got list"),
        ({"run.json": "{}", "tokens.npz": "x"}, [], r"^r/tokens.npz: expected the tokens of a run"),
        (
            {"run.json": "{}", "metrics.csv": "step,a\n1,x\n"},
            [],
            r"^r/metrics.csv: expected a table with a column 'step'",
        ),
        ({"run.json": "{}", "metrics.csv": "a\n1\n"}, [], r"^r/metrics.csv: expected a table with a column 'step'"),
        ({"run.json": "{}", "capability.json": "x"}, [], r"^r/capability.json: not valid JSON"),
        ({"run.json": "{}"}, ["--html", "no/x.html"], r"^--html: expected a file in an existing folder"),
        ({"run.json": "{}"}, ["--html", "r"], r"^--html: cannot write 'r': Is a directory"),
    ],
)
def test_a_mistake_of_the_user_gives_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, str] | None, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (content or {}).items() if content is not None else ():
        (tmp_path / "r").mkdir(exist_ok=True)
        (tmp_path / "r" / name).write_text(text)
    if content == {}:
        (tmp_path / "r").mkdir()
    with pytest.raises(UserError, match=message):
        main(["report", "r", *flags])


def test_bins_equal_those_of_a_plain_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(2, 6, (2, 300))
    odds[0, :3] = 800.0  # p = 1
    before, after = -np.logaddexp(0, -odds)
    after[3] = np.nan  # not measured
    pull = rng.random(300)
    np.savez(tmp_path / "t.npz", before=before, after=after, pull_before=pull)
    tokens, kept = Tokens(tmp_path / "t.npz"), [i for i in range(300) if i != 3]

    def place(value: float) -> int:
        inside = [index for index in range(BINS) if EDGES[index] <= value < EDGES[index + 1]]
        return inside[0] if inside else 0 if value < 0 else BINS - 1

    histogram, mass, moves = np.zeros(BINS), np.zeros(BINS), {index: [] for index in range(BINS)}
    for i in kept:
        histogram[place(odds[0, i])] += 1 / len(kept)
        mass[place(odds[0, i])] += pull[i] / len(kept)
        moves[place(odds[0, i])].append(after[i] - before[i])
    np.testing.assert_allclose(tokens.histogram("before"), histogram)
    np.testing.assert_allclose(tokens.pull("before"), mass)
    change = tokens.change()
    assert change.tokens.tolist() == [len(found) for found in moves.values()]
    for index, found in moves.items():
        assert change.mean[index] == pytest.approx(np.mean(found) if found else math.nan, nan_ok=True)
        assert change.low[index] == pytest.approx(np.quantile(found, 0.25) if found else math.nan, nan_ok=True)


def test_curves_skip_an_incomplete_line_and_average_long_metrics(tmp_path: Path) -> None:
    lines = ["step,train/nll,val/nll,val/a/nll,val/nll/a", "0,,3.5,2.5,1"]
    lines += [f"{step},{step / 1000},,," for step in range(1, 1201)]
    (tmp_path / "m.csv").write_text("\n".join([*lines, "1201,0.5"]))  # an incomplete last line
    metrics = read_metrics(tmp_path / "m.csv")
    assert metrics["val/a/nll"].tolist() == [[0.0, 2.5]]
    assert len(metrics["train/nll"]) == 1200
    with chart_style():
        ((svg, caption),) = draw_curves(metrics)
    assert "300" in caption
    assert svg.count("L") < 310
    labels = [text for text in re.findall(r">([^<>]+)</text>", svg) if re.match("train|val", text)]
    assert labels == ["train", "val", "val/a"]


@pytest.mark.parametrize("values", [[], [0.5], [math.nan, math.inf]], ids=str)
def test_a_chart_of_one_point_or_none_is_well_formed(values: list[float]) -> None:
    with chart_style():
        axes = new_chart("<t>", "x", "y")
        axes.plot(values, values, "o-", label="a<b $c$ \u4e2d")
        svg = to_svg(axes)
    assert "nan" not in svg
    assert "a<b $c$ \u4e2d" in "".join(ElementTree.fromstring(svg).itertext())


def test_charts_skip_values_that_are_not_finite(tmp_path: Path) -> None:
    weight = np.array([math.nan, math.inf, 0.5])
    pull = np.array([0.2, math.nan, 0.1])
    log_p = np.array([-0.5, -1e4, 0.0])
    arrays = {f"{name}_{when}": values for name, values in (("weight", weight), ("pull", pull)) for when in WHEN}
    np.savez(tmp_path / "t.npz", weight_p=np.array([0.1, 0.5, 0.9]), before=log_p, after=log_p[::-1], **arrays)
    tokens = Tokens(tmp_path / "t.npz")
    changes = {f"set {value}": {"nll": {"difference": value}} for value in (math.nan, math.inf, None, -0.5)}
    with chart_style():
        drawn = [
            charts.nll_changes(changes),
            charts.nll_changes({"validation": {}}),
            charts.capability_scale(0.5, ["a", None], {"x": {"mean_prob": None}}),
            *(draw(tokens) for draw in (charts.weight_curve, charts.histogram, charts.gradient_mass)),
            *(draw(tokens.change()) for draw in (charts.change_by_bin, charts.before_after)),
        ]
    for svg in drawn:
        assert not re.search(r"[\"\s](nan|inf)", svg)
        ElementTree.fromstring(svg)


def test_a_chart_has_the_same_bytes_again_and_leaves_the_settings_of_matplotlib_alone() -> None:
    charts = []
    for font_size in (10, 30):
        with matplotlib.rc_context({"font.size": font_size, "text.usetex": True}):
            with chart_style():
                charts.append(to_svg(new_chart("Title", "x", "y")))
            assert matplotlib.rcParams["font.size"] == font_size
    assert charts[0] == charts[1]


def test_p_near_1_differs_from_1() -> None:
    assert [format_value(value) for value in (0.99998, 1.0, 0.5, True, None, 12345, [0.1, "a"])] == [
        "0.99998",
        "1",
        "0.5",
        "yes",
        "unknown",
        "12 345",
        "0.1, a",
    ]
