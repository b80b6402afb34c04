"""Downloads from the hub and uploads to it, by the hub's own client and with a small local hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load

from lit_probsft.cli.commands import main
from lit_probsft.data import ByteTokenizer, InstructionDataModule, Mixture, PretrainedTokenizer, Rows
from lit_probsft.errors import UserError
from lit_probsft.model import PretrainedCausalLM
from lit_probsft.model.lora import LoRA
from lit_probsft.model.lora_injection import inject_adapters
from lit_probsft.run.export import export_model
from lit_probsft.run.upload import HubOptions, ensure_repo, upload
from lit_probsft.training.module import ProbSFTModule
from tests import tiny
from tests.hub_server import TOKEN, USER, Hub, Repo, connected, forget


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, dict[str, str]]]:
    """A hub with a model and a dataset, each at a tag v1 and on main; and their commits."""
    hub, folder, commits = Hub(), tmp_path_factory.mktemp("shelf"), {}
    for seed, branch in ((1, "v1"), (2, "main")):
        model, rows = folder / f"model{seed}", folder / f"rows{seed}"
        tiny.model(seed=seed, vocab_size=260).save_pretrained(model)
        tokenizer = ByteTokenizer().load(list)
        tokenizer.add_tokens([f"<v{seed}>"])
        tokenizer.save_pretrained(model)
        rows.mkdir()
        tiny.write_rows(rows / "train.jsonl", 8, seed=seed)
        commits[f"model {branch}"] = hub.add("models", "you/tiny", model, branch)
        commits[f"rows {branch}"] = hub.add("datasets", "you/rows", rows, branch)
    with connected(hub, folder / "cache"):
        yield hub, commits


@pytest.fixture
def hub(shelf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    forget()
    shelf[0].requests.clear()
    yield shelf[0]
    shelf[0].fails = None
    for name in [name for name in shelf[0].repos if name.startswith(f"models/{USER}/")]:
        del shelf[0].repos[name]


@pytest.mark.parametrize("revision", [None, "v1", pytest.param("the commit of v1", marks=pytest.mark.slow)])
def test_model_tokenizer_and_data_come_from_the_revision(hub: Hub, shelf: Any, revision: str | None) -> None:
    commits, seed = shelf[1], 2 if revision is None else 1
    branch = "main" if revision is None else "v1"
    model_at, rows_at = (
        commits[f"{what} v1"] if revision == "the commit of v1" else revision for what in ("model", "rows")
    )
    source = PretrainedCausalLM("you/tiny", revision=model_at)
    expected = tiny.model(seed=seed, vocab_size=260).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in source.load(None, torch.float32).state_dict().items())
    assert source.commit == commits[f"model {branch}"]
    tokenizer = PretrainedTokenizer("you/tiny", revision=model_at)
    assert tokenizer.load(list).convert_tokens_to_ids(f"<v{seed}>") == 259
    assert tokenizer.commit == commits[f"model {branch}"]
    rows = Rows("you/rows", revision=rows_at, prompt="question", response="answer")
    content = hub.repos["datasets/you/rows"].commits[commits[f"rows {branch}"]]["train.jsonl"]
    wanted = [json.loads(line) for line in content.splitlines()]
    assert list(rows.load()) == wanted
    streamed = rows.reader().next()
    assert streamed is not None
    assert streamed() == wanted[0]
    assert rows.commits() == {"": commits[f"rows {branch}"]}


def adapters_of(base: PretrainedCausalLM, out: Path) -> Any:
    """A folder of adapters of that base, and the model that computes with them."""
    lora = LoRA(r=2, export="adapter")
    model = base.load(None, torch.float32)
    inject_adapters(model, lora)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    export_model(model, ByteTokenizer().load(list), out, lora=lora, base=base)
    return model


def same_answers(one: Any, other: Any) -> bool:
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        return torch.allclose(one(input_ids=ids).logits, other(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_a_repository_of_adapters_is_its_base_with_them(hub: Hub, shelf: Any) -> None:
    base = PretrainedCausalLM("you/tiny")
    adapted = adapters_of(base, Path("adapters"))
    assert not same_answers(adapted, base.load(None, torch.float32))
    sha = hub.add("models", "me/adapters", Path("adapters"))
    forget()
    source = PretrainedCausalLM("me/adapters")
    assert source.commit == sha
    read = source.load(None, torch.float32)
    assert same_answers(read, adapted)
    assert read.state_dict().keys() == base.load(None, torch.float32).state_dict().keys()
    with pytest.raises(UserError, match=r"model.lora.export: expected merged, because the base is a"):
        ProbSFTModule(source, lora=LoRA(export="adapter"))


def test_adapters_are_read_beside_the_revision_of_their_base(hub: Hub, shelf: Any) -> None:
    adapted = adapters_of(PretrainedCausalLM("you/tiny", revision="v1"), Path("adapters"))
    assert same_answers(PretrainedCausalLM("adapters").load(None, torch.float32), adapted)
    with pytest.raises(UserError, match=r"model.model.revision: expected no revision with a folder of a.* 'main'"):
        PretrainedCausalLM("adapters", revision="main")


def flags(*more: str) -> list[str]:
    return [
        *("--name", "run", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *("--model.model", "PretrainedCausalLM", "--model.model.model_name_or_path", "you/tiny"),
        *("--model.model.revision", "v1", "--data.train", "Rows", "--data.train.path", "you/rows"),
        *("--data.train.revision", "v1", "--data.train.prompt", "question", "--data.train.response", "answer"),
        *more,
    ]


def test_a_run_records_the_commits_and_uploads_its_model(
    hub: Hub, shelf: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = main(["fit", *flags("--push_to_hub.repo_id", "mine", "--push_to_hub.private", "true")])
    commits = {"model": shelf[1]["model v1"], "data.tokenizer": shelf[1]["model v1"], "data.train": shelf[1]["rows v1"]}
    assert json.loads(Path("runs/run/run.json").read_text())["commits"] == commits
    card = Path("runs/run/hf/README.md").read_text()
    assert all(f"{name}: {commit}" in card for name, commit in commits.items())
    # the tokenizer that the model lends is of its revision
    assert cli.datamodule.tokenizer.convert_tokens_to_ids("<v1>") == 259

    repo = hub.repos["models/me/mine"]
    assert repo.private
    assert repo.messages == ["initial commit", "Upload a model trained with lit_probsft"]
    sha, files = repo.at("main") or ("", {})
    hf = {path.name: path.read_bytes() for path in Path("runs/run/hf").iterdir()}
    assert files == {".gitattributes": b"", **hf}
    assert f"/me/mine/commit/{sha}" in capsys.readouterr().out.splitlines()[-1]
    weights = load(files["model.safetensors"])
    assert all(torch.equal(weights[name], value) for name, value in tiny.weights(cli.model).items())


@pytest.mark.slow
def test_a_failed_upload_loses_nothing_and_a_complete_run_can_be_uploaded_again(hub: Hub) -> None:
    hub.fails = "/commit/"
    command = ["fit", *flags("--push_to_hub.repo_id", "me/late", "--push_to_hub.revision", "trial")]
    with pytest.raises(UserError) as caught:
        main(command)
    said = str(caught.value)
    assert said.startswith("push_to_hub: runs/run/hf is complete, but could not be uploaded to me/late: ")
    assert said.endswith("; to upload it later: hf upload me/late runs/run/hf . --revision trial")
    assert json.loads(Path("runs/run/run.json").read_text())["status"] == "completed"
    assert PretrainedCausalLM("runs/run/hf").load(None, torch.float32)
    hub.fails = None
    main([*command, "--resume"])
    files = (hub.repos["models/me/late"].at("trial") or ("", {}))[1]
    assert files["model.safetensors"] == Path("runs/run/hf/model.safetensors").read_bytes()
    assert "model.safetensors" not in (hub.repos["models/me/late"].at("main") or ("", {}))[1]


def test_an_upload_replaces_weights_in_other_files(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repos["models/me/files"] = Repo()
    repo.commit({"model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": b"{}", "notes.txt": b"mine"})
    tiny.model().save_pretrained(tmp_path / "hf")
    upload(HubOptions("me/files"), tmp_path / "hf")
    assert set((repo.at("main") or ("", {}))[1]) == {
        *("notes.txt", "config.json", "generation_config.json", "model.safetensors")
    }


@pytest.mark.parametrize(
    ("before", "now"), [("adapter_config.json", "config.json"), ("config.json", "adapter_config.json")]
)
def test_adapters_replace_a_model_and_a_model_replaces_adapters(
    hub: Hub, tmp_path: Path, before: str, now: str
) -> None:
    repo = hub.repos["models/me/turn"] = Repo()
    repo.commit({before: b"{}", "tokenizer.json": b"{}"})
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / now).write_text("{}")
    upload(HubOptions("me/turn"), tmp_path / "hf")
    assert set((repo.at("main") or ("", {}))[1]) == {now, "tokenizer.json"}


@pytest.mark.slow
def test_a_checkpoint_is_exported_and_uploaded(hub: Hub) -> None:
    main(["fit", *flags()])
    main(["export", "runs/run/checkpoints/last.ckpt", "out", "--push-to-hub", "me/out"])
    files = (hub.repos["models/me/out"].at("main") or ("", {}))[1]
    assert files["model.safetensors"] == Path("out/model.safetensors").read_bytes()


NO_ACCESS = "push_to_hub.repo_id: expected a repository to which me and the token have write access, got "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo_id": "a b"}, "push_to_hub.repo_id: expected a repository such as me/model, got 'a b'"),
        ({"repo_id": "me/x", "message": " "}, "push_to_hub.message: expected a text, got ' '"),
        ({"repo_id": "them/x"}, f"{NO_ACCESS}'them/x': You don't have the rights"),
        ({"repo_id": "you/tiny"}, f"{NO_ACCESS}'you/tiny': You have read access but not the required permissions"),
        ({"repo_id": "me/x", "token": None}, "push_to_hub: expected a token with write access, got none; log in with"),
        ({"repo_id": "me/x", "token": "hf_bad"}, "push_to_hub: expected a valid token, the hub refuses this one: "),
        (
            {"repo_id": "me/x", "offline": True},
            "push_to_hub: cannot upload, because HF_HUB_OFFLINE is set",
        ),
        ({"repo_id": "me/x", "fails": "whoami"}, "push_to_hub: the hub refuses 'me/x': the hub is overloaded"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_anything_that_would_block_the_upload_is_an_error(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "nowhere")
    options = dict(options)
    if "token" in options:
        monkeypatch.setenv("HF_TOKEN", options.pop("token") or "")
    if options.pop("offline", False):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.fails = options.pop("fails", None)
    with pytest.raises(UserError) as caught:
        ensure_repo(HubOptions(**options))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--push_to_hub.repo_id", "them/x"], f"{NO_ACCESS}'them/x': You don't have the rights"),
        (["--push_to_hub.repo_id", "a b"], "push_to_hub.repo_id: expected a repository such as me/model, got 'a b'"),
        (
            ["--push_to_hub.repo_id", "me/x", "--checkpoints.export", "none"],
            "push_to_hub: expected checkpoints.export to leave a model to upload, got none",
        ),
    ],
)
def test_the_error_comes_before_anything_is_downloaded(hub: Hub, more: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        main(["fit", *flags(*more)])
    assert str(caught.value).startswith(message)
    assert not Path("runs").exists()
    assert not [request for request in hub.requests if "/you/" in request]


def test_a_hub_that_cannot_be_reached_is_an_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^--push-to-hub: cannot reach the hub at http://127.0.0.1:9: "):
        ensure_repo(HubOptions("me/x"), "--push-to-hub")


@pytest.mark.slow
@pytest.mark.parametrize("trial", [["--trainer.fast_dev_run", "true"], ["--dry_run"]])
def test_a_trial_uploads_nothing(hub: Hub, trial: list[str]) -> None:
    main(["fit", *flags("--push_to_hub.repo_id", "me/trial", *trial)])
    assert "models/me/trial" not in hub.repos
    assert not any("whoami" in request for request in hub.requests)


def test_files_have_no_revision_and_a_mixture_names_the_commit_of_each_source(
    hub: Hub, shelf: Any, tmp_path: Path
) -> None:
    path = str(tiny.write_rows(tmp_path / "rows.jsonl", 2))
    with pytest.raises(UserError) as caught:
        Rows(path, revision="v1").load()
    assert str(caught.value) == "revision: expected none with local files, which have no history, got 'v1'"
    mixture = Mixture({"local": path, "far": Rows("you/rows", revision="v1")})
    data = InstructionDataModule(train=mixture, tokenizer=ByteTokenizer())
    assert data.commits() == {"data.train.sources.far": shelf[1]["rows v1"]}


def test_a_missing_revision_is_an_error(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"^model.model.model_name_or_path: .*you/tiny"):
        PretrainedCausalLM("you/tiny", revision="v9").load(None, torch.float32)
    with pytest.raises(
        UserError,
        match=r"^path: expected a local file or a data set on the hub, could not load 'you/rows': Revision 'v9'",
    ):
        Rows("you/rows", revision="v9").load()


@pytest.mark.slow
def test_the_cache_serves_files_and_their_commit_offline(shelf: Any, tmp_path: Path) -> None:
    """In processes of their own, with the environment variables that users set."""
    hub, commits = shelf
    with hub.served() as endpoint:
        environment = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
        run("you", tmp_path, **environment)
        pushed = hub.repos.pop("models/me/pushed")
    assert "model.safetensors" in (pushed.at("main") or ("", {}))[1]
    run("offline", tmp_path, **{**environment, "HF_HUB_OFFLINE": "1"})
    for name, data in (("you", {"data.train": commits["rows v1"]}), ("offline", {})):
        found = json.loads((tmp_path / "runs" / name / "run.json").read_text())["commits"]
        assert found == {"model": commits["model v1"], "data.tokenizer": commits["model v1"], **data}


def run(name: str, folder: Path, **environment: str) -> None:
    push = ["--push_to_hub.repo_id", "me/pushed"] if name == "you" else []
    # Offline, `datasets` uses the data that it cached last, whatever the revision.
    command = [sys.executable, "-m", "lit_probsft", "fit", *flags(*push, "--name", name)]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
