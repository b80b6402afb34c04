"""The backend that asks a server, against a small server with moods and against a real `transformers serve`."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.data import ByteTokenizer
from lit_probsft.data.tokens.tokenization import tokenize_prompt
from lit_probsft.errors import UserError
from lit_probsft.evaluation.generation import http_client
from lit_probsft.evaluation.generation.requests import Answer, Draw, Request
from lit_probsft.evaluation.generation.server import ServerBackend
from lit_probsft.model.generation import Generation
from tests import tiny

TOKENIZER = ByteTokenizer().load(list)

Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]


class Fake:
    """A server with the OpenAI protocol that repeats the end of the prompt.

    Args:
        kind: `vllm` takes token ids and any field; `transformers` takes text and refuses fields that it does not know;
            `chat` has no completions.
    """

    def __init__(self, kind: str = "vllm") -> None:
        self.kind, self.models, self.tokenizer = kind, ["tiny"], TOKENIZER
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.mood: Callable[[dict[str, Any]], Reply | None] = lambda body: None
        """Called with each body; what it returns is sent instead of an answer."""
        self.running = self.most = 0
        self._lock = threading.Lock()

    def reply(self, path: str, body: dict[str, Any] | None) -> Reply:
        if body is None:
            return 200, {"data": [{"id": name, "owned_by": self.kind} for name in self.models]}
        with self._lock:
            self.bodies.append(body)
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            return self.mood(body) or self._answer(path, body)
        finally:
            self.running -= 1

    def _answer(self, path: str, body: dict[str, Any]) -> Reply:
        chat, prompt = path == "/v1/chat/completions", body.get("prompt")
        if self.kind == "chat" and not chat:
            return 404, {"detail": "Not Found"}
        if self.kind != "vllm" and "top_k" in body:
            return 422, {"detail": "Unexpected fields in the request: {'top_k'}"}
        if self.kind == "chat" and "generation_config" in body:
            return 400, {"error": {"message": "Unrecognized request argument"}}
        if self.kind == "transformers" and isinstance(prompt, list):
            return 400, {"detail": "prompt must be a string."}
        ids = tokenize_prompt(self.tokenizer, body["messages"]) if chat else prompt
        ids = self.tokenizer(ids)["input_ids"] if isinstance(ids, str) else ids
        text = f"{len(ids)} {body['seed']} {body['temperature']}"
        choice = {"message": {"content": text}} if chat else {"text": text}
        usage = {"prompt_tokens": len(ids), "completion_tokens": 3}
        return 200, {"choices": [{**choice, "finish_reason": "stop"}], "usage": usage}


@contextmanager
def served(fake: Fake) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.respond(None)

        def do_POST(self) -> None:
            self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def respond(self, body: Any) -> None:
            fake.headers.append(dict(self.headers))
            status, content, *headers = fake.reply(self.path, body)
            if status == 0:  # goes away without a word
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers[0] if headers else {})}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # the client has not waited
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 64})(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_PAUSE", 0.002)


def requests(count: int = 3, samples: int = 1, temperature: float = 1.0, tokens: int = 16) -> list[Request]:
    found = []
    for index in range(count):
        messages = [{"role": "user", "content": f"{index} é" * (index + 1)}]
        draws = [Draw(sample, 2**40 + 10 * index + sample, temperature) for sample in range(samples)]
        found.append(Request(index, messages, tokenize_prompt(TOKENIZER, messages), draws, tokens))
    return found


def answers(backend: ServerBackend, asked: list[Request]) -> list[Answer]:
    return sorted(backend.answer(asked), key=lambda answer: (answer.index, answer.sample))


@pytest.mark.parametrize(
    ("kind", "tokenizer", "prompt", "filters_off"),
    [
        ("vllm", TOKENIZER, "tokens", True),
        ("transformers", TOKENIZER, "text", True),
        ("chat", TOKENIZER, "messages", False),
        ("vllm", None, "messages", True),
    ],
)
def test_the_prompt_of_training_reaches_every_kind_of_server(
    kind: str, tokenizer: Any, prompt: str, filters_off: bool
) -> None:
    asked = requests()
    fake = Fake(kind)
    with served(fake) as url:
        backend = ServerBackend(f"{url}/v1/", tokenizer=tokenizer, top_p=0.9)
        fake.bodies.clear()
        found = answers(backend, asked)
    assert [answer.text.split()[0] for answer in found] == [str(len(request.prompt)) for request in asked]
    described = backend.describe()
    assert (described["prompt"], described["filters_off"]) == (prompt, filters_off)
    assert (described["url"], described["model"], described["owner"]) == (f"{url}/v1", "tiny", kind)
    for body in fake.bodies:
        assert (body["max_tokens"], body["temperature"], body["top_p"]) == (16, 1.0, 0.9)
    if prompt == "tokens":
        assert {tuple(body["prompt"]) for body in fake.bodies} == {tuple(request.prompt) for request in asked}
        assert all(body["top_k"] == -1 and body["repetition_penalty"] == 1.0 for body in fake.bodies)
    if prompt == "text":
        texts = {TOKENIZER.decode(request.prompt) for request in asked}
        assert {body["prompt"] for body in fake.bodies} == texts
        assert all(json.loads(body["generation_config"])["do_sample"] for body in fake.bodies)


def test_a_server_that_would_change_the_prompt_gets_messages() -> None:
    """As Ollama, which puts its template around the prompt of /v1/completions."""
    fake = Fake("transformers")

    def wrapped(body: dict[str, Any]) -> Reply | None:
        if not isinstance(body.get("prompt"), str):
            return None
        return 200, {"choices": [{"text": ""}], "usage": {"prompt_tokens": 99, "completion_tokens": 1}}

    fake.mood = wrapped
    with served(fake) as url:
        assert ServerBackend(url, tokenizer=TOKENIZER).describe()["prompt"] == "messages"


@pytest.mark.parametrize("adds", [True, False])
def test_a_beginning_token_reaches_the_model_once(adds: bool) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = ByteTokenizer().load(list)
    tokenizer.add_special_tokens({"bos_token": "<|pad|>"})
    tokenizer.chat_template = "<|pad|>" + tokenizer.chat_template
    if adds:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|pad|> $A", special_tokens=[("<|pad|>", 256)])
    messages = [{"role": "user", "content": "Hi"}]
    prompt = tokenize_prompt(tokenizer, messages)
    fake = Fake("transformers")
    fake.tokenizer = tokenizer
    with served(fake) as url:
        backend = ServerBackend(url, tokenizer=tokenizer)
        list(backend.answer([Request(0, messages, prompt, [Draw(0, 0, 0.0)], 4)]))
    assert backend.describe()["prompt"] == "text"
    assert tokenizer(fake.bodies[-1]["prompt"])["input_ids"] == prompt


def test_each_draw_has_its_seed_and_temperature_and_runs_with_the_others() -> None:
    asked = requests(6, samples=4)
    fake = Fake()
    with served(fake) as url:
        backend = ServerBackend(url, tokenizer=TOKENIZER, concurrency=5)
        first, meeting = iter(range(5)), threading.Barrier(5)
        fake.mood = lambda body: None if next(first, None) is None else (meeting.wait(10), None)[1]
        found = answers(backend, asked)
        assert [(answer.index, answer.sample) for answer in found] == [(i, k) for i in range(6) for k in range(4)]
        expected = [f"{draw.seed % 2**31} {draw.temperature}" for request in asked for draw in request.draws]
        assert [answer.text.split(" ", 1)[1] for answer in found] == expected
        assert fake.most == 5
        assert {(answer.tokens, answer.finish_reason) for answer in found} == {(3, "stop")}


def test_tokens_and_reasoning_of_servers_that_say_them_otherwise() -> None:
    fake = Fake("chat")
    with served(fake) as url:
        backend = ServerBackend(url, tokenizer=TOKENIZER)
        message = {"content": "4", "reasoning_content": "2 + 2"}
        fake.mood = lambda body: (200, {"choices": [{"message": message, "finish_reason": "length"}]})
        (answer,) = answers(backend, requests(1))
    assert (answer.text, answer.finish_reason) == ("<think>\n2 + 2\n</think>\n\n4", "length")
    assert answer.tokens == len(answer.text)  # one token a byte, and none that ends it


@pytest.mark.parametrize(
    "reply",
    [
        "<html>",
        "[" * 10**5,
        {"choices": []},
        {"choices": [3]},
        {"choices": [{"text": None}]},
        {"choices": [{"message": "a"}]},
        {"choices": [{"message": {"content": [1]}}]},
    ],
)
def test_what_is_no_answer_is_one_message(reply: Any) -> None:
    fake = Fake()
    with served(fake) as url:
        backend = ServerBackend(url, tokenizer=TOKENIZER)
        fake.mood = lambda body: (200, reply)
        with pytest.raises(UserError, match=r"^--server: "):
            answers(backend, requests(1))


@pytest.mark.parametrize("usage", [None, [1], {"completion_tokens": -1}, {"completion_tokens": "3"}])
def test_tokens_are_counted_here_if_the_server_does_not_count_them(usage: Any) -> None:
    fake = Fake()
    with served(fake) as url:
        backend = ServerBackend(url, tokenizer=TOKENIZER)
        fake.mood = lambda body: (200, {"choices": [{"text": "abc\ud800"}], "usage": usage})
        assert {answer.tokens for answer in answers(backend, requests(1))} == {5}


@pytest.mark.parametrize("reply", [(500, "oops"), (503, {"error": "loading"}), (429, {}), (0, "")])
def test_passing_errors_are_retried_and_change_nothing(reply: Reply) -> None:
    fake, asked = Fake(), requests(4)
    with served(fake) as url:
        backend = ServerBackend(url, tokenizer=TOKENIZER)
        whole = answers(backend, asked)
        failures = iter([reply] * 7)
        fake.mood = lambda body: next(failures, None)
        assert answers(backend, asked) == whole


def test_a_server_that_asks_for_a_pause_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, pauses = Fake(), []
    monkeypatch.setattr(http_client, "sleep", pauses.append)
    with served(fake) as url:
        backend = ServerBackend(url, tokenizer=TOKENIZER)
        busy = iter([(429, {}, {"Retry-After": "7"}), (503, {}, {"Retry-After": "99999"}), (503, {}), (503, {})])
        fake.mood = lambda body: next(busy, None)
        answers(backend, requests(1))
    assert pauses[:2] == [7, 300]
    assert 0.5 * 0.002 * 4 <= pauses[2] <= 1.5 * 0.002 * 4
    assert 0.5 * 0.002 * 8 <= pauses[3] <= 1.5 * 0.002 * 8


def test_when_the_server_goes_away_the_answers_so_far_remain() -> None:
    fake, asked = Fake(), requests(20)
    with served(fake) as url:
        backend = ServerBackend(url, tokenizer=TOKENIZER, concurrency=2, retries=2)
        fake.mood = lambda body: (0, "") if len(fake.bodies) > 10 else None
        found = []
        with pytest.raises(UserError, match=r"failed 3 times, the last time with: Remote end closed connection"):
            for answer in backend.answer(asked):
                found.append(answer)
    assert 5 <= len(found) < 20


def test_a_refusal_ends_at_once_with_the_words_of_the_server() -> None:
    fake, asked = Fake(), requests(30)
    with served(fake) as url:
        backend = ServerBackend(url, tokenizer=TOKENIZER, concurrency=2)
        fake.bodies.clear()
        fake.mood = lambda body: (400, {"error": {"message": "too long", "code": 400}})
        with pytest.raises(UserError, match=r"/v1/completions refuses the request: status 400, too long$"):
            list(backend.answer(asked))
        assert len(fake.bodies) <= 2


def test_a_caller_that_stops_ends_the_requests() -> None:
    fake = Fake()
    with served(fake) as url:
        backend = ServerBackend(url, tokenizer=TOKENIZER, concurrency=2)
        fake.mood = lambda body: time.sleep(0.02)
        iterator = backend.answer(requests(50))
        next(iterator)
        iterator.close()
        time.sleep(0.1)
        asked = len(fake.bodies)
        time.sleep(0.1)
        assert len(fake.bodies) == asked < 20


def test_mistakes_at_the_start_are_one_message() -> None:
    def message(url: str, *args: Any, **options: Any) -> str:
        start = time.monotonic()
        with pytest.raises(UserError) as caught:
            ServerBackend(url, *args, **options)
        assert time.monotonic() - start < 5
        return str(caught.value)

    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    down = message(f"127.0.0.1:{port}/v1")
    assert down == f"--server: no server answers at http://127.0.0.1:{port}/v1: Connection refused"
    for url in ("http://localhost:x", "ftp://localhost", "http://", "local host"):
        assert message(url) == f"--server: expected a URL such as http://localhost:8000, got {url!r}"
    fake = Fake()
    with served(fake) as url:
        fake.models = ["a", "b"]
        assert message(url) == f"--server: expected one model at {url}/v1, got a, b; name the model"
        fake.mood = lambda body: (401, {"error": {"message": "Invalid API key"}})
        refused = "refuses the request: status 401, Invalid API key"
        assert message(url, "a", api_key="secret") == f"--server: {url}/v1/chat/completions {refused}"
        assert fake.headers[-1]["Authorization"] == "Bearer secret"
        fake.mood = lambda body: (200, "<html>Welcome</html>")
        assert "status 200, <html>Welcome</html>" in message(url, "a", tokenizer=TOKENIZER)
        fake.mood = lambda body: (200, {"choices": [{"message": {"content": ""}}]})
        assert "does not count tokens" in message(url, "a")
        fake.mood = lambda body: time.sleep(1)
        assert "has not answered within 0.1 s" in message(url, "a", timeout=0.1)


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")),
    reason="needs transformers[serving]",
)
def test_transformers_serve_answers_as_generate_does(tmp_path: Path) -> None:
    model = tiny.model()
    model.generation_config.eos_token_id = 258
    model.save_pretrained(tmp_path)
    config = {"eos_token_id": 258, "repetition_penalty": 5.0, "no_repeat_ngram_size": 2}  # which are turned off
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    TOKENIZER.save_pretrained(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    command = ["-m", "transformers.cli.transformers", "serve", str(tmp_path), "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        for _ in range(600):
            try:
                backend = ServerBackend(f"127.0.0.1:{port}", tokenizer=TOKENIZER, concurrency=1)
                break
            except UserError:
                assert process.poll() is None, process.stdout and process.stdout.read().decode()
                time.sleep(0.1)
        assert backend.describe()["prompt"] == "text"
        assert backend.describe()["model"] == str(tmp_path)
        greedy = answers(backend, requests(5, temperature=0.0, tokens=24))
        drawn = [answers(backend, requests(2, samples=3, tokens=24)) for _ in range(2)]
        without_tokenizer = answers(ServerBackend(f"127.0.0.1:{port}"), requests(5, temperature=0.0, tokens=24))
    finally:
        process.terminate()
        process.wait()
    for request, answer in zip(requests(5), greedy, strict=True):
        ids = torch.tensor([request.prompt])
        produced = Generation(24).answer(model, ids, torch.ones_like(ids), pad_token_id=256)[0, ids.shape[1] :]
        assert answer.text == TOKENIZER.decode(produced, skip_special_tokens=True)
        assert answer.tokens == len(produced)
        assert answer.finish_reason == ("stop" if produced[-1] == 258 else "length")
    assert drawn[0] == drawn[1]
    assert len({answer.text for answer in drawn[0]}) == 6
    assert [answer.text for answer in without_tokenizer] == [answer.text for answer in greedy]
