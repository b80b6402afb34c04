"""Draws command lines that are mostly wrong, from the parser's own options and from values that break programs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from lit_probsft.cli.config.hints import Option, alternatives, class_families, is_group, known_options, members
from lit_probsft.cli.config.jsonargparse_internals import flags_of
from lit_probsft.cli.fit import ProbSFTCLI
from lit_probsft.data import InstructionDataModule
from lit_probsft.training.module import ProbSFTModule
from tests.cli import mistake_files
from tests.evaluation.results_files import write_evaluation

NUMBERS = (  # noqa: SIM905
    "0 -1 -2 1 2 3 0.5 -0.5 1.5 1e-30 1e30 -1e30 .nan nan .inf -.inf 99 2147483648 9223372036854775808 "
    "1000000000000000000000000000000 0x1F 1_000 0b1 007 1:30 true null"
).split()
TEXTS = [
    "",
    " ",
    "null",
    "true",
    "None",
    "~",
    "Ω☃",
    "é\n\t",
    "a" * 5000,
    "{",
    "[",
    "[1, 2",
    "[]",
    "{}",
    "{a: {b: {c: [1, {}]}}}",
    "&a [*a]",
    "&a {b: *a}",
    "*x",
    "!!python/object/apply:os.getcwd []",
    "!!binary aGk=",
    "!!set {a, b}",
    "2024-01-01",
    "- a",
    "a: b: c",
    "'",
    '"\\ud800"',
    "#",
    "%YAML 9",
    "[null]",
    "[[[[]]]]",
    "{class_path: null}",
    "{class_path: NLL, init_args: 3}",
    "{class_path: [NLL]}",
    "{init_args: {}}",
    "{1: 2}",
    "{null: null}",
    "[" * 3000,
    "[" * 300 + "]" * 300,
    "--",
    "-1",
    "=",
    "..",
    "epoch",
    "auto",
]
CLASSES = (  # noqa: SIM905
    "os os.path os.getcwd torch.nn.Linear torch.Tensor builtins.int json.JSONDecodeError nowhere.Nothing "
    "lit_probsft.nope lit_probsft. .a a..b torch.optim.SparseAdam torch.optim.LBFGS torch.optim.SGD "
    "torch.optim.Optimizer wild_classes.Raises wild_classes.Abstract wild_classes.Wrong wild_classes.Late "
    "wild_classes.number wild_classes wild_exits.X wild_syntax.X wild_raises.X collections.abc.Callable typing.Any"
).split()
PATHS = (  # noqa: SIM905
    "/ . .. /dev/null /dev/zero /proc/self/mem /proc/x /etc fifo socket folder dangling closed train.jsonl c.yaml "
    "empty binary.jsonl nothing.jsonl ~/x ~nobody/x runs loop train.jsonl/x weird.yaml a\\b"
).split()
CLASS_FILE = """
from dataclasses import dataclass
from lightning.pytorch.callbacks import Callback
from lit_probsft import Objective
from lit_probsft.data import Source, TokenizerSource
from lit_probsft.model import ModelSource


class Raises(Callback):
    def __init__(self):
        raise KeyError(3)


class Abstract(Objective):
    pass


@dataclass(frozen=True)
class Wrong(Source):
    def load(self):
        return 3

    def conversation(self, row):
        return None


class Late(Callback):
    def __init__(self, a: int = 1, *, b: "Unknown" = None):
        pass


number = 3
"""


def write_scene(folder: Path, trained: Path | None = None) -> None:
    """Write what the drawn lines name: rows, c.yaml, files of all kinds, and the run `done` if `trained` is given."""
    mistake_files.write_files(folder, None, {})
    files = {
        "wild_classes.py": CLASS_FILE,
        "wild_exits.py": "import sys; sys.exit(3)\n",
        "wild_syntax.py": "class X(:\n",
        "wild_raises.py": "raise RuntimeError('no')\n",
        "empty": "",
        "nothing.jsonl": "",
        "weird.yaml": "- a\n- {b: 3}\n",
        "q.jsonl": '{"question": "a?", "answer": "1"}\n' * 3,
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    for name in ("r", "s"):
        write_evaluation(folder / f"{name}.json", [[0], [1], [1]], name)
    (folder / "binary.jsonl").write_bytes(bytes(range(256)) * 4)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.getcwd()
        os.chdir(folder)
        unix.bind("socket")
        os.chdir(here)
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "closed").write_text("")
    (folder / "closed").chmod(0)
    if trained is not None:
        shutil.copytree(trained, folder / "runs")


def drawn(seeds: Iterable[int]) -> dict[int, list[str]]:
    """The command line of each seed, drawn in a new process: which classes exist depends on what is imported."""
    words = [sys.executable, "-m", __name__, *map(str, seeds)]
    made = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    return {int(seed): line for seed, line in json.loads(made.stdout.splitlines()[-1]).items()}


class Lines:
    """Draws command lines.

    Args:
        seed: of the line; a seed always draws the same line while the options stay the same.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def draw(self) -> list[str]:
        """A command line."""
        pick = self.random.random()
        if pick < 0.6:
            return self._training("fit")
        if pick < 0.75:
            return self._training(self.random.choice(["validate", "test", "predict"]))
        if pick < 0.83:
            return self._training(self.random.choice(["preview", "capability", "divergence"]))
        return self._evaluation() if pick < 0.91 else self._other()

    def _training(self, command: str) -> list[str]:
        flags = options()
        config = "c.yaml" if self.random.random() < 0.95 else self.random.choice(PATHS)
        words = [command, "--config", config, "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
        for _ in range(self.random.choice([1, 1, 1, 2, 3])):
            name = self.random.choice(GROUPS)(flags, self.random)
            words += self._flag(name, flags[name])
        return words

    def _flag(self, name: str, option: Option) -> list[str]:
        words = [f"--{name}", self.value(option.hint)]
        families = class_families(option.hint)
        kinds = [kind for family in families for kind in members(family) if kind.__name__ != "FigletPuzzles"]
        if kinds and self.random.random() < 0.8:
            kind = self.random.choice(sorted(kinds, key=repr))
            words[1] = f"{kind.__module__}.{kind.__qualname__}" if self.random.random() < 0.5 else kind.__name__
            below = known_options(kind)
            for field in self.random.sample(sorted(below), min(len(below), self.random.randrange(3))):
                words += [f"--{name}.{field}", self.value(below[field].hint)]
        if self.random.random() < 0.05:
            words = self.random.choice([words[:1], [words[0] + "=" + words[1]], [words[0] + "+", words[1]]])
        return words

    def value(self, hint: Any) -> str:
        """A text for an option: mostly of the kind that it takes."""
        if self.random.random() < 0.1:
            return self.random.choice(self.random.choice([NUMBERS, TEXTS, CLASSES, PATHS]))
        kind = self.random.choice(alternatives(hint))
        origin = get_origin(kind) or kind
        if origin is Literal:
            return self.random.choice([str(self.random.choice(get_args(kind))), "nope"])
        if origin is bool:
            return self.random.choice(["true", "false", "null", "2", "yes"])
        if origin in (int, float):
            return self.random.choice(NUMBERS)
        if origin is str:
            return self.random.choice(self.random.choice([TEXTS, PATHS, NUMBERS]))
        if origin in (list, tuple):
            item = (get_args(kind) or (Any,))[0]
            return "[" + ", ".join(self.value(item) for _ in range(self.random.randrange(4))) + "]"
        if origin is dict:
            item = (get_args(kind) or (Any,))[-1]
            return "{" + ", ".join(f"k{i}: {self.value(item)}" for i in range(self.random.randrange(3))) + "}"
        return self.random.choice(self.random.choice([CLASSES, TEXTS, PATHS]))

    def _evaluation(self) -> list[str]:
        number, text, path, odd = (
            (lambda pool=pool: self.random.choice(pool)) for pool in (NUMBERS, TEXTS, PATHS, [*TEXTS, *PATHS])
        )
        task = self.random.choice(
            ["Exact:q.jsonl", "Math:q.jsonl", "Exact:" + path(), "gsm8k", odd(), text() + "," + text()]
        )
        flag = self.random.choice(
            ["--n", "--temperature", "--top-p", "--max-new-tokens", "--seed", "--limit", "--devices"]
        )
        other = self.random.choice(
            ["--system", "--chat-template", "--template-options", "--device", "--data-dir", "--base"]
        )
        asked = ["--tasks", "Exact:q.jsonl", "--max-new-tokens", "3"]
        lines = [
            ["evaluate", "runs/done", *asked, "--out", "x.json", flag, number(), "--temperature", number()],
            ["evaluate", "runs/done", *asked, "--out", "x.json", other, odd(), "--likelihood"],
            [
                "evaluate",
                "runs/done",
                *asked,
                "--out",
                self.random.choice(["results/x.json", odd(), path() + "/x.json"]),
            ],
            ["evaluate", self.random.choice(["runs/done/hf", odd()]), *asked, "--out", "x.json"],
            ["evaluate", "runs/done", "--tasks", task, "--out", "x.json", "--limit", "2", "--max-new-tokens", "3"],
            ["evaluate", "runs/done", *asked, "--out", "r.json", self.random.choice(["--overwrite", "--greedy"])],
            ["evaluate", "runs/done", *asked, "--out", "x.json", "--server", odd()],
            ["compare", "r.json", odd(), self.random.choice(["--different", "r/../r.json"])],
            ["compare", "r.json", "s.json", "--" + self.random.choice(["markdown", "latex", "csv", "picture"]), odd()],
            ["report", "runs/done", "--evaluation", odd(), "--against", self.random.choice(["s.json", odd()])],
            ["report", "runs/done", "--evaluation", "r.json", "--against", odd()],
        ]
        return self.random.choice(lines)

    def _other(self) -> list[str]:
        number, text, path = ((lambda pool=pool: self.random.choice(pool)) for pool in (NUMBERS, TEXTS, PATHS))

        def page() -> str:
            return self.random.choice([path for path in PATHS if path != "fifo"])  # waits for its reader

        model = self.random.choice(["runs/done", "runs/done/hf", path(), text()])
        lines = [
            ["chat", model, "--seed", number(), "--max-new-tokens", "3"],
            ["chat", "runs/done", "--temperature", number(), "--max-new-tokens", "3"],
            ["chat", "runs/done", "--top-p", number(), "--temperature", "1", "--max-new-tokens", "3"],
            ["chat", "runs/done", "--device", self.random.choice(["meta", "cpu:3", "cuda", "xla", text()])],
            ["chat", "runs/done", "--system", text(), "--template-options", text(), "--max-new-tokens", "3"],
            ["chat", "runs/done", "--revision", text(), "--max-new-tokens", number()],
            ["export", self.random.choice(["runs/done/checkpoints/last.ckpt", path(), text()]), path()],
            ["export", "runs/done/checkpoints/last.ckpt", "out", "--base", self.random.choice([path(), text()])],
            ["export", "runs/done/checkpoints/last.ckpt", text(), "--adapter"],
            [
                "report",
                self.random.choice(["runs/done", path(), text()]),
                "--html",
                self.random.choice([path(), text()]),
            ],
            [
                "configs",
                self.random.choice(["list", "show", "copy", text()]),
                self.random.choice(["quickstart", text(), path()]),
            ],
            ["configs", "copy", "quickstart", self.random.choice([path(), text()])],
            ["preview", "--config", "c.yaml", "--rows", number(), "--html", page()],
            [
                "capability",
                "--config",
                "c.yaml",
                "--name",
                text(),
                "--" + self.random.choice(["rows", "tokens"]),
                number(),
            ],
            ["divergence", "--config", "c.yaml", "--model-a", model, "--model-b", self.random.choice([path(), text()])],
            ["divergence", "--config", "c.yaml", "--name", "done", "--rows", number(), "--out", path()],
            [
                "fit",
                "--config",
                "c.yaml",
                "--name",
                "done",
                self.random.choice(["--resume", "--overwrite"]),
                "--trainer.max_steps",
                number(),
            ],
            ["validate", "--config", "c.yaml", "--ckpt_path", path()],
            ["predict", "--config", "c.yaml", "--weights", self.random.choice([path(), text()])],
            ["fit", "--config", "c.yaml", "--dry_run", "--data.batch_size", number()],
            ["fit", "--help", text()],
            [text(), path()],
        ]
        return self.random.choice(lines)


_OPTIONS: dict[str, Option] = {}
SKIPPED = ("print_config", "help", "trainer.num_nodes", "config", "subcommand", "push_to_hub")
"""Options that print and end, that wait for other machines, or that speak to a hub."""


def options() -> dict[str, Option]:
    """All options of `fit`, with those of the classes that it has by default, by name."""
    if not _OPTIONS:
        for name, hint in _fit_hints().items():
            if hint is not None and not name.endswith("help") and not name.startswith(SKIPPED):
                _add(name, Option(hint))
        _add("model", Option(Any), ProbSFTModule)
        _add("data", Option(Any), InstructionDataModule)
    return _OPTIONS


def _add(name: str, option: Option, owner: Any = None) -> None:
    groups = [family for family in class_families(option.hint) if is_group(family)]
    owner = owner or (groups[0] if groups else None)
    if owner is None or name.count(".") > 2:
        _OPTIONS[name] = option
        return
    for field, inner in known_options(owner).items():
        _add(f"{name}.{field}", inner)


def _fit_hints() -> dict[str, Any]:
    """The type hints of the parser's flags."""
    found: dict[str, Any] = {}

    class Stop(Exception):
        pass

    class Parsed(ProbSFTCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            found.update(flags_of(self.parser_of("fit"))[0])
            raise Stop

    with contextlib.suppress(Stop):
        Parsed(["fit"])
    return found


def _in_group(prefix: str) -> Any:
    return lambda flags, rng: rng.choice(sorted(name for name in flags if name.startswith(prefix)))


GROUPS = [_in_group(prefix) for prefix in ("trainer.", "trainer.", "data.", "data.", "model.", "model.", "")]


if __name__ == "__main__":
    print(json.dumps({seed: Lines(int(seed)).draw() for seed in sys.argv[1:]}))
