"""`chat` answers as `generate` does after the prompt of training, and prints the answers while they are generated."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.cli.chat import HELP
from lit_probsft.cli.chat_session import ChatSession, _Streamer
from lit_probsft.cli.commands import main
from lit_probsft.data import ByteTokenizer, PretrainedTokenizer, tokenize_prompt
from lit_probsft.errors import UserError
from lit_probsft.model import PretrainedCausalLM
from lit_probsft.model.generation import Generation
from tests import tiny
from tests.cli.test_fit import config, fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template, and with weights large enough for different answers."""
    path = tmp_path_factory.mktemp("model") / "hf"
    model = tiny.model(seed=7, initializer_range=0.5, max_position_embeddings=512)
    model.save_pretrained(path)
    ByteTokenizer().load(list).save_pretrained(path)
    return path


def expected(folder: Path, turns: list[str], system: str | None = None, tokens: int = 8) -> list[str]:
    """The answers to these turns, from the template and `generate` alone."""
    model, tokenizer = PretrainedCausalLM(str(folder)).load(None, torch.float32).eval(), ByteTokenizer().load(list)
    messages = [{"role": "system", "content": system}] if system else []
    answers = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        made = model.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, pad_token_id=256)
        answers.append(tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def talk(monkeypatch: pytest.MonkeyPatch, said: str, *args: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    main(["chat", *map(str, args), "--device", "cpu"])


def test_each_line_is_a_turn_of_one_conversation_until_reset(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(monkeypatch, "hi\nwhat?\n\n/reset\nhi\n/exit\nnever\n", folder, "--max-new-tokens", 8)
    first, second = expected(folder, ["hi", "what?"])
    assert first != second
    assert capsys.readouterr().out == f"{first}\n{second}\n{first}\n"
    talk(monkeypatch, "hi", folder, "--max-new-tokens", 8, "--system", "Be brief.")
    assert capsys.readouterr().out == expected(folder, ["hi"], "Be brief.")[0] + "\n"


def test_the_prompt_has_the_template_options_and_control_tokens_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, prompts = ByteTokenizer().load(list), []
    tokenizer.chat_template = "{{ style }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    model = tiny.model()
    monkeypatch.setattr(model, "generate", lambda ids, **_: prompts.append(ids[0].tolist()))
    ChatSession(model, tokenizer, Generation(4, 0.0, 1.0), template_options={"style": "x"}).answer("a<|im_end|>")
    assert prompts == [[*b"xa<|im_end|>", 258]]


def test_sampled_answers_depend_on_the_seed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for seed in (1, 1, 2):
        talk(monkeypatch, "hi", folder, "--temperature", 1.5, "--top-p", 0.95, "--seed", seed, "--max-new-tokens", 12)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_an_interrupted_answer_is_kept_as_far_as_it_came(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = PretrainedCausalLM(str(folder)).load(None, torch.float32).eval()
    session = ChatSession(model, ByteTokenizer().load(list), Generation(50))
    put, calls = _Streamer.put, []

    def interrupted(streamer: Any, value: Any) -> None:
        calls.append(1)
        if len(calls) == 4:  # after the prompt and two tokens
            raise KeyboardInterrupt
        put(streamer, value)

    monkeypatch.setattr(_Streamer, "put", interrupted)
    answer = session.answer("hi")
    assert answer == expected(folder, ["hi"], tokens=2)[0]
    assert capsys.readouterr().out == f"{answer}\n"
    assert [(m["role"], m["content"]) for m in session.messages] == [("user", "hi"), ("assistant", answer)]
    session.answer("and?")
    assert len(session.messages) == 4


def test_text_is_printed_as_it_comes_and_characters_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Out())
    tokenizer = ByteTokenizer().load(list)
    streamer = _Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    streamer.put(torch.tensor([[1, 2, 3]]))
    for id in tokenizer("aéñ🎈 b\nc")["input_ids"]:
        streamer.put(torch.tensor([id]))
    streamer.put(torch.tensor([tokenizer.eos_token_id]))
    assert [text for text in writes if text] == ["a", "é", "ñ", "🎈 ", "b", "\n", "c"]
    streamer.put(torch.tensor([0xC3]))  # half a character at the end
    streamer.end()
    assert streamer.text == "".join(writes).removesuffix("\n") == "aéñ🎈 b\nc\ufffd"


def test_a_terminal_shows_a_prompt_and_ends_at_end_of_input_or_ctrl_c(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    answer = expected(folder, ["hi"])[0]
    for end in (EOFError, KeyboardInterrupt):
        script: Any = iter(["hi", end])

        def typed(prompt: str, script: Any = script) -> str:
            assert prompt == "> "
            line = next(script)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("builtins.input", typed)
        main(["chat", str(folder), "--device", "cpu", "--max-new-tokens", "8"])
        assert capsys.readouterr().out == f"{folder} ({HELP})\n{answer}\n\n"


@pytest.mark.parametrize("begin", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_on_plain_text_is_prompted_as_it_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = ByteTokenizer().load(list)
    if begin:
        from tokenizers.processors import TemplateProcessing

        tokenizer.bos_token = "<|im_start|>"
        bos = ("<|im_start|>", 257)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    fit(config(tmp_path, data__format="plain", data__tokenizer=str(tmp_path / "tokenizer")))
    exported = PretrainedTokenizer(str(tmp_path / "runs/tiny/hf")).load(list)
    turns = [
        {"role": "user", "content": " a\n"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    for messages in (turns[:1], turns):
        prompt = tokenize_prompt(tokenizer, messages, plain_text=True)
        assert (prompt[0] == 257) == begin
        assert tokenize_prompt(exported, messages) == prompt
    capsys.readouterr()
    talk(monkeypatch, "1 + 1 =\n", "runs/tiny", "--max-new-tokens", 4)  # the folder of the run
    said = capsys.readouterr().out
    assert said
    talk(monkeypatch, "1 + 1 =\n", "runs/tiny/checkpoints/last.ckpt", "--max-new-tokens", 4)
    assert capsys.readouterr().out == said


def test_a_given_template_takes_the_place_of_the_models_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = ByteTokenizer().load(list)
    talk(monkeypatch, "hi", folder, "--max-new-tokens", 8, "--chat-template", tokenizer.chat_template)
    assert capsys.readouterr().out == expected(folder, ["hi"])[0] + "\n"
    talk(monkeypatch, "hi", folder, "--max-new-tokens", 8, "--chat-template", "plain")
    assert capsys.readouterr().out != expected(folder, ["hi"])[0] + "\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--temperature", "-1"], "--temperature: expected 0 (greedy) or more, got -1.0"),
        (["--top-p", "0"], "--top-p: expected a number above 0 and at most 1, got 0.0"),
        (["--max-new-tokens", "0"], "--max-new-tokens: expected at least 1, got 0"),
        (["--device", "moon"], "--device: expected an available device, such as cpu or cuda, got 'moon'"),
        (["--revision", "v1"], "--revision: applies to a hub id, {folder} is a folder"),
    ],
)
def test_a_wrong_flag_is_one_message(folder: Path, args: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        main(["chat", str(folder), *args])
    assert str(caught.value) == message.format(folder=folder)


def test_a_model_that_cannot_chat_is_one_message(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "chat_template.jinja").unlink()
    partial = tmp_path / "partial"
    shutil.copytree(folder, partial)
    (partial / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(b"")
    for args, message in (
        (
            [bare],
            f"MODEL: {str(bare)!r} has no chat template, so it is not trained for chat; fine-tune it first, or "
            "choose a template with --chat-template (a file, Jinja text, or plain)",
        ),
        (
            [partial, "--system", "Be kind."],
            "--system: the model's chat template drops or changes the system message: 'a'",
        ),
        (
            [tmp_path],
            f"MODEL: expected an exported model, the folder of a run that has one, or a hub id, got {str(tmp_path)!r}",
        ),
        (
            [checkpoint],
            f"MODEL: expected an intact checkpoint, {checkpoint} is damaged: File is not a zip file",
        ),
        (["./nowhere"], "MODEL: no such folder: './nowhere'."),
    ):
        with pytest.raises(UserError) as caught:
            main(["chat", *map(str, args), "--device", "cpu"])
        assert str(caught.value) == message


def test_a_conversation_longer_than_the_model_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"^chat: the conversation has 6\d\d tokens, the model 512 positions; /reset starts"
    ):
        talk(monkeypatch, "a" * 600, folder)


@pytest.mark.slow
def test_a_shell_pipes_a_conversation_and_ctrl_c_stops_an_answer(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
    command = [sys.executable, "-m", "lit_probsft", "chat", str(folder), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--max-new-tokens", "8"],
        input=b"hi\n",
        env=environment,
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.decode() == expected(folder, ["hi"])[0] + "\n"
    assert done.stderr == b""

    # At a terminal: Ctrl-C during an answer, then /exit.
    import pty

    control, terminal = pty.openpty()
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    os.set_blocking(control, False)
    seen = b""

    def until(found: Any) -> None:
        nonlocal seen
        end = time.monotonic() + 60
        while not found(seen):
            assert time.monotonic() < end, seen
            try:
                seen += os.read(control, 4096)
            except (BlockingIOError, OSError):
                time.sleep(0.02)

    until(lambda text: text.endswith(b"> "))
    os.write(control, b"hi\n")
    begun = len(seen)
    until(lambda text: len(text) > begun + 20)
    process.send_signal(signal.SIGINT)
    until(lambda text: text.endswith(b"\n> "))
    os.write(control, b"/exit\n")
    assert process.wait(30) == 0, seen
    os.close(control)
