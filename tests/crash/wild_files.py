"""Draws files with contents that break readers, each with the command line that reads it."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.cli import mistake_files

Bytes = Callable[[random.Random], bytes]

YAML = [
    b"",
    b"\xef\xbb\xbf" + mistake_files.CONFIG.encode(),
    mistake_files.CONFIG.encode("utf-16"),
    mistake_files.CONFIG.encode("utf-32"),
    mistake_files.CONFIG.replace("  ", "\t").encode(),
    mistake_files.CONFIG.replace("\n", "\r").encode(),
    mistake_files.CONFIG.encode() + b"model: {}\n",
    b"\x00" * 1000,
    bytes(range(256)),
    b"[" * 1_000_000,
    b"{a: " * 100_000,
    b"- " * 100_000,
    b"a: " + b"1" * 100_000,
    b"&a [*a]",
    b"&a {model: *a}",
    b"model: &a\n  model: *a\n",
    b"a: &a [1,1]\nb: &b [*a,*a]\n" + b"".join(b"c%d: &b [%s]\n" % (i, b",".join([b"*b"] * 9)) for i in range(20)),
    b"".join(
        b"a%d: &a%d {%s}\n" % (i, i, b"".join(b"k%d: *a%d, " % (j, i - 1) for j in range(9 * (i > 0))))
        for i in range(12)
    ),
    b"<<: {model: {}}\n<<: [3]\n",
    b"x: &x {a: 1}\n<<: [*x, *x, 3]\n",
    b"model: !!python/object/apply:os.system [ls]\n",
    b"model: !!set {a, b}\n",
    b"data: !!binary aGk=\n",
    b"data: !!timestamp nope\n",
    b"data: !!int nope\n",
    b"data: !!float []\n",
    b"data: !unknown 3\n",
    b"? [a]\n: b\n",
    b"? {a: b}\n: c\n",
    b"--- a\n--- b\n",
    b"%YAML 3.0\n---\na: 1\n",
    b"null: 1\ntrue: 2\n3: 4\n",
    b"trainer:\n  callbacks: {a: &a [*a]}\n",
    b"data: 2024-99-99\n",
    b"data: 99:99:99\n",
    b"data: 0b2\n",
    b"seed_everything: 0o9\n",
    b"seed_everything: " + b"9" * 10_000 + b"\n",
    b'name: "\\x00"\n',
    b'name: "\\ud800"\n',
    b"runs_dir: c.yaml\n",
]

JSON = [
    b"",
    b"[",
    b"null",
    b"3\n",
    b'"a"\n',
    b"[" * 1_000_000,
    b'{"question": ' * 100_000,
    b'{"question": NaN, "answer": Infinity}\n',
    b'{"question": ' + b"9" * 10_000 + b', "answer": "a"}\n',
    b'{"question": "\\ud800", "answer": "\\udfff"}\n',
    b'{"question": null, "answer": null}\n',
    b'{"question": "", "answer": ""}\n',
    b'{"question": ["a"], "answer": {"a": 1}}\n',
    b'{"messages": 3}\n{"messages": []}\n{"messages": [[]]}\n',
    b'{"messages": [{"role": "user"}]}\n',
    b'{"question": "a", "question": "b", "answer": "c"}\n',
    b"\xff\xfe{\x00}\x00",
    b"\x00" * 1000,
    b'{"question": "a", "answer": "' + b"b" * 2_000_000 + b'"}\n',
]

TEMPLATES = [
    b"",
    b"{{",
    b"{% for m in messages %}",
    b"{{ messages }}",
    b"{{ messages[9].content }}",
    b"{{ raise_exception('no') }}",
    b"{{ nothing.at.all }}",
    b"{{ 1 / 0 }}",
    b"{{ ''.__class__.__mro__ }}",
    b"{% include 'x' %}",
    b"{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    b"{{ messages[0].content[::0] }}",
    b"{{ strftime_now('%') }}",
    b"{{ messages | tojson(indent='x') }}",
    b"{{ '%d' % 'a' }}",
    b"{{ messages | map(attribute=3) | list }}",
    b"{{ [] | first }}{{ {}.x() }}",
    b"\xff\xfe",
    b"\x00",
    b"{% generation %}",
    b"{{ caller() }}",
    b"(" * 10_000,
    b"{{ " + b"(" * 10_000 + b" }}",
    b"{{ " + b"-" * 10_000 + b"1 }}",
]

FUNCTIONS = [
    b"def f(row: return",
    b"raise KeyError(3)",
    b"import sys; sys.exit(4)",
    b"f = 3",
    b"def f(): return {}",
    b"def f(row): raise SystemExit(5)",
    b"def f(row): return f(row)",
    b"def f(row): return None",
    b"def f(row): return [row]",
    b"def f(row): yield row",
    b"def f(row):\n    row['question'] = row\n    return row",
    b"def f(row): return {'messages': [{'role': 'user', 'content': f}]}",
    b"def f(row): return {1: 2, None: 3}",
    b"async def f(row): return row",
    b"def f(row): assert False",
    b"def f(row): return {'question': b'a', 'answer': float('nan')}",
    b"class f:\n    def __init__(self, row): pass",
    b"def f(row): raise StopIteration",
    b"def f(row): raise GeneratorExit",
    b"def f(row): raise KeyboardInterrupt",
    b"\xff",
    b"\x00",
]


class WildFile(NamedTuple):
    """A command line and the file that it reads."""

    words: list[str]
    name: str
    content: bytes


def draw(seed: int, folder: Path) -> WildFile:
    """A file, and the command line that reads it; a seed always draws the same.

    Args:
        seed: of the file.
        folder: with the intact files.
    """
    rng = random.Random(seed)
    fit = ["fit", "--config", "c.yaml", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "1"]
    rows = (folder / "train.jsonl").read_bytes()
    kind = rng.choice(["config", "config", "part", "jsonl", "json", "csv", "gz", "template", "function", "capability"])
    if kind == "config":
        content = rng.choice(YAML) if rng.random() < 0.5 else damaged(mistake_files.CONFIG.encode(), rng)
        return WildFile([rng.choice(["fit", "preview", "validate"]), "--config", "w.yaml"], "w.yaml", content)
    if kind == "part":
        flag = rng.choice(["data", "model", "trainer", "model.objective", "data.train", "model.lora", "checkpoints"])
        return WildFile([*fit, f"--{flag}", "w.yaml"], "w.yaml", rng.choice(YAML))
    if kind == "template":
        return WildFile([*fit, "--data.chat_template", "w.jinja"], "w.jinja", rng.choice(TEMPLATES))
    if kind == "function":
        return WildFile([*fit, "--data.train.row_function", "wild_rows.f"], "wild_rows.py", rng.choice(FUNCTIONS))
    if kind == "capability":
        content = (
            rng.choice(JSON) if rng.random() < 0.7 else json.dumps({"mean_p": rng.choice(["a", None, 2, -1])}).encode()
        )
        flags = ["--model.objective", "CapabilityPower", "--model.objective.source", "w.json"]
        return WildFile([*fit, *flags], "w.json", content)
    content = rng.choice(JSON) if rng.random() < 0.5 else damaged(rows, rng)
    if kind == "gz":
        content = damaged(gzip.compress(content), rng)
    name = {"gz": "w.jsonl.gz", "jsonl": "w.jsonl", "json": "w.json", "csv": "w.csv"}[kind]
    flags = ["--data.on_bad_row", "skip"] if rng.random() < 0.5 else []
    return WildFile([*fit, "--data.train.path", name, *flags], name, content)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """`content` with some bytes changed, cut, doubled or swapped."""
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 20])):
        at, length = rng.randrange(len(found) or 1), rng.choice([1, 1, 5, 50])
        change = rng.choice(["flip", "cut", "double", "insert", "end"])
        if change == "flip" and found:
            found[at] ^= 1 << rng.randrange(8)
        elif change == "cut":
            del found[at : at + length]
        elif change == "double":
            found[at:at] = found[at : at + length]
        elif change == "insert":
            found[at:at] = rng.choice([b"\x00", b"\n", b"\xff", b"{", b"[", b'"', b": ", b"*a", b"&a ", b"- ", b"!!x "])
        elif rng.random() < 0.3:
            del found[at:]
    return bytes(found)
