"""A template that does not end, or writes without end, is stopped by name."""

from __future__ import annotations

import threading
import time

import pytest

from lit_probsft.data.tokens import rendering
from lit_probsft.data.tokens.rendering import Renderer
from lit_probsft.data.tokens.time_limit import TimeLimitError, time_limit
from lit_probsft.errors import UserError

_LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% if i == -1 %}x{% endif %}{% endfor %}{% endfor %}"
_READS = "{{ messages[0]['content'] }}"
_GROWS = "{% if messages[0]['content'] == 'hi' %}{{ 'a' * 100000 }}{% endif %}"
_MESSAGES = [{"role": "user", "content": "hi"}]


def refusal(tokenizer, template: str) -> str:
    with pytest.raises(UserError) as caught:
        Renderer(tokenizer, template)(_MESSAGES)
    return str(caught.value)


def test_an_endless_template_is_stopped_in_any_thread(byte_tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(rendering, "MAX_SECONDS", 0.05)
    expected = "chat_template: the template did not end within 0.05 s"
    endless = _READS + "{% if messages[0]['content'] == 'hi' %}" + _LOOPS + "{% endif %}"
    assert refusal(byte_tokenizer, endless) == expected
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(refusal(byte_tokenizer, endless)))
    thread.start()
    thread.join(10)
    assert found == [expected]
    assert Renderer(byte_tokenizer, _READS)(_MESSAGES) == "hi"


def test_an_immense_text_is_refused(byte_tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(rendering, "MAX_LENGTH", 99_999)
    assert refusal(byte_tokenizer, _READS + _GROWS).startswith("chat_template: expected a text of at most 99,999 char")
    assert "fits into memory" in refusal(byte_tokenizer, _READS + _GROWS.replace("'a' * 100000", "'a' * 10 ** 17"))


def test_a_block_that_ends_in_time_is_never_stopped_later() -> None:
    for _ in range(5):
        try:
            with time_limit(0.001):
                time.sleep(0.03)
        except TimeLimitError:
            pass
        time.sleep(0.001)
