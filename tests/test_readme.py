"""The README is correct: its commands run, and its tables and its tree are complete."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from lit_probsft import objectives
from lit_probsft.cli.commands import OTHERS, TRAINING, main
from lit_probsft.cli.parts import data_of
from tests import tiny

ROOT = Path(__file__).parent.parent
PAGES = [
    *ROOT.glob("*.md"),
    *(
        path
        for folder in ("lit_probsft", "configs", "benchmarks", "notebooks")
        for path in (ROOT / folder).rglob("*.md")
    ),
]
README = (ROOT / "README.md").read_text()
OBJECTIVES = ROOT / "lit_probsft/objectives/README.md"
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path) -> list[str]:
    """The lines of a page's command blocks, indented or fenced as bash, without comments."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    fenced = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S))
    indented = [line for line in re.sub(r"```.*?```", "", text, flags=re.S).splitlines() if line.startswith("    ")]
    return [line.split("#")[0].strip() for line in [*indented, *fenced.splitlines()]]


def commands(page: Path) -> list[str]:
    return [line for line in blocks(page) if re.search(r"python -m|pip install|torchrun", line)]


COMMANDS = {command for page in PAGES for command in commands(page)}


def the_command(word: str) -> str:
    """The only command on all pages that contains this text."""
    (command,) = [command for command in COMMANDS if word in command]
    return command


def python(page: Path) -> str:
    """The only block of Python on a page."""
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    return str(code)


def test_ci_installs_and_tests_with_the_readmes_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    (install_and_test,) = [command for command in commands(ROOT / "README.md") if "pytest" in command]
    install, test = install_and_test.split(" && ")
    torch = re.fullmatch(r'pip install -e "\.\[test\]" (torch==[\d.]+)', install)
    assert torch
    # CI installs more extras.
    assert re.search(rf'^pip install --quiet -e "\.\[test,[\w,]+\]" {re.escape(torch[1])}$', script, re.M)
    assert f"\n{test} " in script  # CI also runs the slow tests


def test_the_ten_lines_of_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = python(ROOT / "README.md")
    assert len(code.strip().splitlines()) <= 11
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_users_objective_trains_as_its_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(python(OBJECTIVES))
    cli = run(the_command("mine.Shortfall"), "--data.train.count=8", "--data.validation.count=4")
    assert cli.model.objective.gamma == 3


def test_your_own_rows_train_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_rows(tmp_path / "my.jsonl", 40)
    cli = run(the_command("my.jsonl"))
    assert cli.model.objective == objectives.Power(0.3)
    record = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())
    assert record["data"]["validation"]["kept"] == 2


def test_rows_are_packed_as_their_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(the_command("--data.packing"), "--data.train.count=10", "--data.validation.count=2")
    record = json.loads((tmp_path / "runs" / "packed" / "run.json").read_text())["data"]["train"]
    assert record["packs"] * 1024 * record["share_full"] == pytest.approx(record["tokens"])
    assert record["packs"] < record["kept"]


def test_watched_sets_are_measured_and_shown_as_their_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(the_command("--data.watch"), "--data.train.count=10", "--data.validation.count=2")
    main(shlex.split(the_command("runs/watched"))[3:])
    assert "val/others/nll" in (tmp_path / "runs" / "watched" / "report.html").read_text()


def test_every_kind_of_class_in_a_users_file_trains_as_its_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(python(ROOT / "CONTRIBUTING.md") + USERS_CLASSES + python(OBJECTIVES))
    named = re.findall(r"\| `(--[^`]*mine[^`]*)` \|", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) == 8
    flags = [word for flag in named if "row_function" not in flag for word in shlex.split(flag)]
    config = {**tiny.LLAMA, "max_position_embeddings": 1024}  # a class named by a flag starts from its own defaults
    flags.append(f"--model.model.config={json.dumps(config)}")
    cli = run(the_command("mine.Sums"), *flags, "--data.validation.count=4")
    own = [cli.model, cli.model.objective, cli.model.source, cli.model.optimizers().optimizer, cli.trainer.callbacks[0]]
    assert [type(one).__module__ for one in own] == ["mine"] * 5
    data = cli.config.fit.data.init_args
    assert (data.train.class_path, data.tokenizer.class_path) == ("mine.Sums", "mine.Tokenizer")
    assert cli.datamodule.report["train"]["kept"] == 128
    (tmp_path / "rows.jsonl").write_text('{"a": 1, "b": 2}\n' * 8)
    (function,) = [flag for flag in named if "row_function" in flag]
    config = f"--config {ROOT}/configs/quickstart.yaml --data.validation.count 4"
    datamodule = data_of(shlex.split(f"{config} --data.train Rows --data.train.path rows.jsonl {function}"))
    datamodule.setup("fit")
    assert datamodule.report["train"]["kept"] == 8


USERS_CLASSES = """
import torch
from lightning.pytorch import callbacks
from lit_probsft import ProbSFTModule, RandomCausalLM
from lit_probsft.data import ByteTokenizer


class Module(ProbSFTModule):
    def token_loss(self, tokens):
        return super().token_loss(tokens) / 2


class Tokenizer(ByteTokenizer):
    pass


class Model(RandomCausalLM):
    pass


class Optimizer(torch.optim.SGD):
    pass


class Callback(callbacks.Callback):
    pass


def row(row):
    return {"prompt": f"{row['a']} + {row['b']} =", "response": str(row["a"] + row["b"])}


"""


def run(command: str, *more: str):
    args = shlex.split(command.replace("configs/", f"{ROOT}/configs/"))
    assert args[:3] == ["python", "-m", "lit_probsft"]
    return main(
        [*args[3:], *more, "--trainer.max_steps=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    )


@every_page
def test_every_command_on_a_page_exists(page: Path) -> None:
    overview = main(["--help"]) or ""
    for command in commands(page):
        for match in re.finditer(r"-m lit_probsft (\w+)", command):
            assert match[1] in {*TRAINING, *OTHERS}, overview
        for match in re.finditer(r"-m benchmarks\.(\w+)", command):
            assert (ROOT / "benchmarks" / f"{match[1]}.py").exists(), command
        for path in re.findall(r"configs/[\w./]+\.(?:yaml|sh)", command):
            assert (ROOT / path).exists(), path


@every_page
def test_every_flag_on_a_page_exists(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(python(OBJECTIVES) + python(ROOT / "CONTRIBUTING.md"))
    flags = [f"fit --config configs/quickstart.yaml {line}" for line in blocks(page) if line.startswith("--")]
    for command in [*flags, *commands(page)]:
        args = shlex.split(command.split("-m lit_probsft ")[-1].replace("configs/", f"{ROOT}/configs/"))
        named = {word.partition("=")[0] for word in args if word.startswith("--")}
        if "--help" in named:
            with contextlib.suppress(SystemExit):
                main(args)
        elif args[0] in {*TRAINING, "preview", "capability", "divergence"}:
            with pytest.raises(SystemExit) as end:
                main([*args, "--print_config"])  # parses the whole command and builds nothing
            assert not end.value.code, command
        elif args[0] in OTHERS and named:
            capsys.readouterr()
            with pytest.raises(SystemExit):
                main([args[0], "--help"])
            assert named <= {*re.findall(r"--[\w-]+", capsys.readouterr().out)}, command


@every_page
def test_every_link_on_a_page_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_objective_in_the_readmes_table_exists() -> None:
    table = README.split("## Which objective")[1].split("\n## ")[0]
    named = re.findall(r"^\| [^|]+ \| [^|]+ \| `(\w+)", table, re.M)
    assert len(named) >= 4
    assert {*named} <= {*objectives.__all__}


def test_the_tree_names_every_folder() -> None:
    tree = README.split("## The tree")[1]
    for path in (ROOT / "lit_probsft").rglob("__init__.py"):
        assert re.search(
            rf"^ +{re.escape(path.parent.name)}/ ", tree.replace("lit_probsft/", " lit_probsft/ "), re.M
        ), path
