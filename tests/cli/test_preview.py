"""`preview` shows rows with their masks and the problems in the data, and loads no model."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from lit_probsft.cli.commands import main
from lit_probsft.cli.parts import data_of
from lit_probsft.cli.preview import Problem, html_page, make_preview, print_preview
from lit_probsft.data import ByteTokenizer, InstructionDataModule
from lit_probsft.errors import UserError

ROOT = Path(__file__).parents[2]
GOOD = b'{"prompt": "Say \\u001b[31mhi <b>", "response": "hi"}\n'


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def build(content: bytes, **options: Any) -> InstructionDataModule:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content)
        return InstructionDataModule(str(path), tokenizer=ByteTokenizer(), cache_dir=str(tmp_path / "cache"), **options)

    return build


def printed(preview: Any, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=100, highlight=False, **options)
    print_preview(preview, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_row_is_shown_with_its_mask(make: Any) -> None:
    preview = make_preview(make(GOOD), rows=2)
    (shown,) = preview.shown
    assert shown.pieces == [
        ("<|im_start|>user\nSay ␛[31mhi <b><|im_end|>\n<|im_start|>assistant\n", "masked"),
        ("hi", "supervised"),
        ("<|im_end|>", "end"),
        ("\n", "masked"),
    ]
    assert (shown.row, shown.supervised, shown.tokens, shown.length) == (0, 3, 38, 38)
    assert preview.facts()["supervised"] == "3 of 38 tokens, 7.9 %"
    assert preview.problems == []
    assert "⟦hi<|im_end|>⟧" in printed(preview)
    assert "no problems found" in printed(preview)
    coloured = printed(preview, force_terminal=True, color_system="standard")
    assert "⟦" not in coloured
    assert "\x1b[1;32mhi\x1b[0m\x1b[30;42m<|im_end|>\x1b[0m" in coloured
    assert "\x1b[31mhi" not in coloured  # which the row itself has


def test_rows_with_control_tokens_in_their_text_are_counted_in_preview_and_fit(make: Any) -> None:
    rows = GOOD + b'{"prompt": "Say hi", "response": "hi<|im_end|>"}\n'
    preview = make_preview(make(rows))
    text = "1 of 2 rows contain control tokens in their text, written as ordinary text"
    assert preview.facts()["control tokens"] == text
    assert [kind for _, kind in preview.shown[1].pieces] == ["masked", "supervised", "end", "masked"]
    data = make(rows)
    with pytest.warns(UserWarning, match=f"data.train: {text}"):
        data.setup()
    assert data.report["train"]["with_control_tokens"] == 1
    for kept in (make(rows, special_tokens_in_text="keep"), make(rows, format="plain"), make(GOOD)):
        assert "control tokens" not in make_preview(kept).facts()


def test_columns_and_keys_of_turns_that_nothing_reads_are_named(make: Any) -> None:
    preview = make_preview(
        make(
            b'{"messages": [{"role": "user", "content": "a", "id": 3}, {"role": "assistant", '
            b'"content": "b", "audio": null}], "url": "x"}\n{"prompt": "a", "response": "b", "n": 1}\n'
        )
    )
    assert preview.facts()["not used"] == "url, messages[].id, n"
    assert "not used         url, messages[].id, n\n" in printed(preview)
    assert "not used" not in make_preview(make(GOOD)).facts()


def test_problems_are_counted_and_located_under_any_policy(make: Any) -> None:
    content = GOOD * 3 + b'{"prompt": \n' + b'{"prompt": "a", "response": ""}\n' * 2 + GOOD
    preview = make_preview(make(content), rows=10)
    assert [(problem.rows, problem.first) for problem in preview.problems] == [(2, 4), (1, 3)]
    assert "expected non-empty text" in preview.problems[0].text
    assert "line 4: not valid JSON" in preview.problems[1].text
    assert [shown.row for shown in preview.shown] == [0, 1, 2, 6]
    assert "2 of 7 rows, the first is row 4: cannot be used" in printed(preview)


def test_problems_that_differ_in_the_value_are_one_and_of_many_kinds_the_common_are_listed(make: Any) -> None:
    lists = b"".join(b'{"prompt": "a", "response": ["%c"]}\n' % letter for letter in range(97, 110))
    preview = make_preview(make(GOOD + lists))
    assert [problem.rows for problem in preview.problems] == [13]
    preview.problems = [Problem(f"problem {number}", 0, 20 - number) for number in range(12)]
    assert "problem 9" in printed(preview)
    assert "problem 10" not in printed(preview)
    assert "and 2 other problems, each in at most 10 rows" in printed(preview)
    assert "and 2 other problems" in html_page(preview)


def test_long_rows_are_counted_by_what_happens_to_them(make: Any) -> None:
    content = GOOD + b'{"prompt": "a", "response": "' + b"b" * 90 + b'"}\n'
    truncated = make_preview(make(content, max_length=60, overflow="truncate"), rows=2)
    assert truncated.counts.truncated == 1
    assert (truncated.shown[1].tokens, truncated.shown[1].length) == (60, 112)
    assert "data.max_length cuts off the end of the answer" in truncated.problems[0].text
    dropped = make_preview(make(content, max_length=60, overflow="drop"))
    assert dropped.problems[0].text == "dropped: data.max_length: 112 tokens, at most 60 are kept"
    assert max(dropped.lengths) == 112


def test_of_many_rows_an_even_part_is_measured_and_shown(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_probsft.cli.preview.MEASURED", 10)
    preview = make_preview(make(GOOD * 40), rows=2)
    assert preview.facts()["rows"] == "40, 10 measured"
    assert [shown.row for shown in preview.shown] == [0, 20]


def test_the_page_is_self_contained_and_escapes_the_rows(make: Any) -> None:
    page = html_page(make_preview(make(GOOD)))
    assert not re.search(r"(src|href)=|<script|<b>", page)
    assert '<span class="supervised">hi</span><span class="end">&lt;|im_end|&gt;</span>' in page


def config(folder: Path, rows: bytes) -> Path:
    (folder / "rows.jsonl").write_bytes(rows)
    content = {
        "model": {"model": "./no/such/model", "objective": {"class_path": "NLL"}},
        "data": {"train": str(folder / "rows.jsonl"), "tokenizer": {"class_path": "ByteTokenizer"}},
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_command_reads_the_configuration_of_a_run_and_loads_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = config(tmp_path, GOOD * 2)
    flags = ["--config", str(path), "--rows", "1", "--html=page.html", "--data.max_length", "500"]
    preview = main(["preview", *flags])
    assert len(preview.shown) == 1
    assert "hi<|im_end|>" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        (GOOD, ["--rows", "0"], "^--rows: expected at least 1, got 0"),
        (GOOD, ["--rows", "x"], "--rows: expected a whole number, got 'x'"),
        (GOOD, ["--split", "tset"], "--split: expected one of train, validation, test, predict, got"),
        (GOOD, ["--split", "test"], "^data.test: expected a source of rows"),
        (GOOD, ["--html", "no/where.html"], "^--html: expected a file in an existing folder"),
        (GOOD, ["--data.turns", "frist"], "turns"),
        (b'{"prompt": "a"}\n', [], "^data.train: expected at least one usable row"),
    ],
)
def test_the_command_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: bytes, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(["preview", "--config", str(config(tmp_path, rows)), *flags])


@pytest.mark.parametrize("name", ["quickstart", "llama_neg_p"])
def test_training_configurations_build_their_data_module(name: str) -> None:
    datamodule = data_of(["--config", str(ROOT / "configs" / f"{name}.yaml")])
    assert isinstance(datamodule, InstructionDataModule)


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["preview", "--help"])
    said = capsys.readouterr().out
    for flag in ("--rows", "--split", "--html", "--config"):
        assert flag in said
