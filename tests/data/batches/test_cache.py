"""The token cache is never stale, and never incomplete, even if a process is killed."""

import contextlib
import dataclasses
import importlib
import inspect
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lit_probsft.data import BPETokenizer, ByteTokenizer, InstructionDataModule, Rows
from lit_probsft.errors import UserError
from lit_probsft.storage.cache_entry import create_folder
from tests.crash.server import _living
from tests.data.batches import tokenizing
from tests.data.chat_templates import CHATML, MARKED, MARKS_WITHOUT_END

# Every option either decides the tokens or does not. Put a new option into one of these two lists.


@pytest.fixture
def files(jsonl, questions):
    """Files of rows by name, made of `questions`."""
    turns = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    both = [
        {**row, "messages": turns[0]["messages"], "text": "c", "other": turns[0]["messages"], "w": 2}
        for row in questions
    ]
    return {
        "all": jsonl(questions),
        "fewer": jsonl(questions[:-1], "fewer.jsonl"),
        "two": jsonl(questions[:2], "two.jsonl"),
        "three": jsonl(questions[:3], "three.jsonl"),
        "both": jsonl(both, "both.jsonl"),
    }


def spaced():
    tokenizer = ByteTokenizer().load(list)
    tokenizer.add_tokens(["It is"])
    return tokenizer


def templated():
    tokenizer = ByteTokenizer().load(list)
    tokenizer.chat_template = MARKED
    return tokenizer


OPTION = "{% if x == 1 %}{% endif %}"
TWO, THREE, REMOVE = {"validation": "two"}, {"validation": "three"}, {"duplicates": "remove"}
HELD_OUT = {"validation_fraction": 0.25}

MATTER = {
    "train": [{"train": "all"}, {"train": "fewer"}],
    "validation": [{**TWO, **REMOVE}, {**THREE, **REMOVE}],
    "validation_fraction": [{}, HELD_OUT, {"validation_fraction": 0.5}],
    "test": [{"test": "two"}, {"test": "three"}],
    "predict": [{"test": "two"}, {"test": "two", "predict": "three"}],
    "tokenizer": [
        *({"tokenizer": source} for source in (ByteTokenizer(), BPETokenizer(280), BPETokenizer(290))),
        *({"tokenizer": make} for make in (spaced, templated)),
    ],
    "add_tokens": [{}, {"add_tokens": ["It is"]}, {"add_tokens": ["It is", "what"]}],
    "add_special_tokens": [{}, {"add_special_tokens": ["It is"]}],
    "format": [{}, {"format": "plain"}],
    "chat_template": [{}, {"chat_template": CHATML}, {"chat_template": "{{ 'x' }}" + CHATML}],
    "require_end_of_turn": [{}, {"require_end_of_turn": False}],
    "turns": [{}, {"turns": "first"}, {"turns": "last"}],
    "reasoning": [{}, {"reasoning": "mask"}, {"reasoning": "drop"}],
    "template_options": [{"chat_template": OPTION + CHATML, "template_options": o} for o in (None, {"x": 1}, {"x": 2})],
    "special_tokens_in_text": [{}, {"special_tokens_in_text": "refuse"}, {"special_tokens_in_text": "keep"}],
    "rewritten_history": [{}, {"rewritten_history": "split"}],
    "on_bad_row": [{}, {"on_bad_row": "skip"}],
    "max_length": [{}, {"max_length": 2000}, {"max_length": 2001}],
    "overflow": [{"max_length": 75, "overflow": word} for word in ("truncate", "drop")],
    "duplicates": [TWO, {**TWO, **REMOVE}],
    "seed": [{**HELD_OUT, "seed": 0}, {**HELD_OUT, "seed": 1}],
}
DO_NOT_MATTER = {
    "batch_size": {"batch_size": 3},
    "eval_batch_size": {"eval_batch_size": 3},
    "packing": {"packing": True},
    "streaming": {"streaming": True},
    "shuffle_buffer": {"streaming": True, "shuffle_buffer": 5},
    "length_pool": {"length_pool": 0},
    "num_workers": {"num_workers": 1},
    "num_proc": {"num_proc": 2},
    "cache_dir": {"cache_dir": "elsewhere"},
    "watch": {"validation": "two", "watch": {"other": "elsewhere.jsonl"}},
}


def test_every_option_is_in_one_of_the_two_lists():
    options = list(inspect.signature(InstructionDataModule).parameters)
    assert sorted([*MATTER, *DO_NOT_MATTER]) == sorted(options)


@pytest.fixture
def key(tmp_path, files):
    """The cache key of a split's tokens with these options."""

    def find(split="train", **options):
        options = {"train": "all", "tokenizer": ByteTokenizer(), "cache_dir": str(tmp_path / "cache"), **options}
        options = {
            name: files.get(value, value) if isinstance(value, str) else value for name, value in options.items()
        }
        if inspect.isfunction(options["tokenizer"]):
            options["tokenizer"] = options["tokenizer"]()
        return InstructionDataModule(**options).documents(split).folder.name

    return find


@pytest.mark.parametrize("option", MATTER)
def test_an_option_that_decides_the_tokens_changes_the_key(key, option):
    split = option if option in ("test", "predict") else "train"
    keys = [key(split, **options) for options in MATTER[option]]
    assert len(set(keys)) == len(keys)
    assert keys == [key(split, **options) for options in MATTER[option]]


@pytest.mark.parametrize("option", DO_NOT_MATTER)
def test_an_option_that_does_not_decide_the_tokens_keeps_the_key(key, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert key(max_length=2000) == key(max_length=2000, **DO_NOT_MATTER[option])


def test_prompts_and_whole_rows_have_different_keys(key):
    assert key("test", test="two") != key("predict", test="two")


def test_require_end_of_turn_is_checked_even_if_the_rows_are_cached(key):
    assert key(chat_template=MARKS_WITHOUT_END, require_end_of_turn=False)
    with pytest.raises(UserError, match="require_end_of_turn"):
        key(chat_template=MARKS_WITHOUT_END)


ROWS = {
    "path": [{"path": "all"}, {"path": "fewer"}],
    "name": [{}, {"name": "main"}],
    "split": [{}, {"split": "train"}, {"split": "test"}],
    "format": [{"path": "both", "format": name} for name in ("messages", "prompt", "text")],
    "prompt": [{"prompt": "prompt", "response": "response"}, {"prompt": "{prompt}!", "response": "response"}],
    "response": [{"prompt": "prompt", "response": "response"}, {"prompt": "prompt", "response": "{response}!"}],
    "messages": [{"path": "both", "messages": "messages"}, {"path": "both", "messages": "other"}],
    "text": [{"path": "both"}, {"path": "both", "text": "text"}],
    "system": [{}, {"system": "Be kind."}, {"system": "Be brief."}],
    "weight": [{"path": "both"}, {"path": "both", "weight": "w"}],
    "row_function": [{"row_function": "cached_rows.one"}, {"row_function": "cached_rows.other"}],
    "limit": [{}, {"limit": 3}, {"limit": 4}],
    "revision": [{}, {"revision": "main"}, {"revision": "v1"}],
}
CODE = "def one(row):\n    return {{'prompt': row['prompt'], 'response': {!r}}}\n\ndef other(row):\n    return row\n"


def test_every_field_of_rows_is_in_the_list():
    assert sorted(ROWS) == sorted(field.name for field in dataclasses.fields(Rows))


@pytest.mark.parametrize("field", ROWS)
def test_every_field_of_rows_changes_the_fingerprint(files, field, tmp_path, monkeypatch):
    (tmp_path / "cached_rows.py").write_text(CODE.format("yes"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cached_rows", raising=False)
    changes = [{"path": "all", **change} for change in ROWS[field]]
    found = [Rows(**{**change, "path": files[change["path"]]}).fingerprint() for change in changes]
    assert len(set(found)) == len(found)


def test_the_key_depends_on_the_content_of_a_file_and_the_code_of_a_row_function_not_on_their_names(
    key, jsonl, tmp_path, monkeypatch
):
    keys = []
    for answer in ("yes", "no!"):
        path = jsonl([{"prompt": "a", "response": answer}], "same.jsonl")
        keys.append(key(train=path))
    for answer in ("yes", "no!"):
        (tmp_path / "cached_rows.py").write_text(CODE.format(answer))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "cached_rows", raising=False)
        importlib.invalidate_caches()
        monkeypatch.setattr(
            sys, "dont_write_bytecode", True
        )  # two files of one size within a second look the same to it
        keys.append(key(train=Rows(path, row_function="cached_rows.one")))
    assert len(set(keys)) == 4
    (tmp_path / "moved.jsonl").write_bytes(Path(path).read_bytes())
    assert key(train=str(tmp_path / "moved.jsonl")) == keys[1]


# Killed processes.


KILLS = [
    *(("document", 1, "group"), ("document", 150, "group"), ("save", 1, "group"), ("save", 3, "group")),
    *(("rename", 1, "group"), ("renamed", 1, "group"), ("document", 150, "alone")),
]


@pytest.mark.slow
@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_killed_tokenization_leaves_no_incomplete_cache_and_no_process(tmp_path, jsonl, num_proc):
    path = jsonl([{"prompt": f"What is {i}?" * (1 + i % 9), "response": f"It is {i}."} for i in range(300)])
    whole = tokenizing.tokenize(path, tmp_path / "untouched")
    expected = {file.name: file.read_bytes() for file in whole.folder.iterdir()}
    for moment in KILLS:
        cache, log = tmp_path / "-".join(map(str, moment)), tmp_path / "log"
        command = [sys.executable, tokenizing.__file__, path, str(cache), str(num_proc), *map(str, moment)]
        process = subprocess.Popen(command, start_new_session=True, stderr=log.open("w"))
        assert process.wait(60) == -9, log.read_text()
        until = time.monotonic() + 20
        while process.pid in _living().values():  # the session exists as long as one of its processes
            assert time.monotonic() < until, f"{moment}: a process is still running"
            time.sleep(0.05)
        stores = [folder for folder in (cache / "tokens").iterdir() if not folder.name.startswith(".")]
        assert [folder.name for folder in stores] == [whole.folder.name] * (moment[0] == "renamed")
        again = tokenizing.tokenize(path, cache)
        assert {file.name: file.read_bytes() for file in again.folder.iterdir()} == expected


DYING = """
import multiprocessing, os, signal

def row(row):
    if multiprocessing.parent_process() is not None and row["prompt"] == "What is 5?":
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
    return {"prompt": row["prompt"], "response": row["response"]}
"""


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_tokenization_with_an_error(tmp_path, jsonl, monkeypatch):
    (tmp_path / "dying_rows.py").write_text(DYING)
    monkeypatch.syspath_prepend(tmp_path)
    path = jsonl([{"prompt": f"What is {i}?", "response": "It is."} for i in range(12)])
    source = Rows(path, row_function="dying_rows.row")
    cache = tmp_path / "cache"
    data = InstructionDataModule(source, tokenizer=ByteTokenizer(), num_proc=2, cache_dir=str(cache))
    with pytest.raises(UserError, match="^data.num_proc: a tokenizing process failed to start or died"):
        data.setup("fit")
    assert [file.name for file in cache.rglob("*") if file.is_file()] == [".lock"]


# Damaged entries.


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_a_damaged_entry_is_made_again_with_the_same_tokens(tmp_path, jsonl, count):
    path = jsonl([{"prompt": f"What is {i}?", "response": f"It is {i}."} for i in range(4)])
    folder = tokenizing.tokenize(path, tmp_path).folder
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    generator = np.random.default_rng(0)
    for number in range(count):
        file, content = (
            folder / sorted(whole)[number % len(whole)],
            bytearray(whole[sorted(whole)[number % len(whole)]]),
        )
        place = int(generator.integers(len(content)))
        match number // len(whole) % 6:
            case 0:
                content[place] ^= 1 << int(generator.integers(8))
            case 1:
                del content[place:]
            case 2:
                content += b"x"
            case 3:
                content.clear()
        file.write_bytes(content)
        if number // len(whole) % 6 > 3:
            file.unlink()
        if number // len(whole) % 6 == 5:
            file.mkdir()
        with pytest.warns(UserWarning, match="damaged") if file.name != "manifest.json" else contextlib.nullcontext():
            tokenizing.tokenize(path, tmp_path)
        found = {file.name: file.read_bytes() for file in folder.iterdir() if file.name in whole}
        assert {**found, "manifest.json": b""} == {**whole, "manifest.json": b""}, (number, file)
        if found["manifest.json"] != whole["manifest.json"]:  # a byte that changes no value
            (folder / "manifest.json").write_bytes(whole["manifest.json"])


def test_the_next_process_removes_what_a_killed_one_left(tmp_path):
    (tmp_path / ".x.1.partial").mkdir()
    with create_folder(tmp_path / "a", "data.cache_dir"):
        assert not (tmp_path / ".x.1.partial").exists()
        with create_folder(tmp_path / "b", "data.cache_dir"):
            assert len(list(tmp_path.glob(".*.partial"))) == 2
