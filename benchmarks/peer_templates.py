"""The chat templates in TRL's wheel, rows to render with them, and a tokenizer for each."""

from __future__ import annotations

import importlib.util
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lit_probsft.data import ByteTokenizer

Messages = list[dict[str, Any]]

_USER = {"role": "user", "content": "Will it rain?"}
_ANSWER = {"role": "assistant", "content": "It rains all day."}
_SECOND = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Sun,\n\nat last."}]
_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "sky", "arguments": {"town": "Ulm"}}}
_RESULT = {"role": "tool", "name": "sky", "content": "wet", "tool_call_id": "abcdefghi"}
_CALLED = [_USER, {"role": "assistant", "content": "", "tool_calls": [_CALL]}, _RESULT, _ANSWER]

KINDS: dict[str, Messages] = {
    "single": [_USER, _ANSWER],
    "multi": [_USER, _ANSWER, *_SECOND],
    "system": [{"role": "system", "content": "Speak up."}, _USER, _ANSWER, *_SECOND],
    "reasoning": [_USER, {**_ANSWER, "reasoning_content": "Clouds gather."}],
    "tools": _CALLED,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "sky",
            "description": "The sky over a town.",
            "parameters": {"type": "object", "properties": {"town": {"type": "string", "description": "Its name."}}},
        },
    }
]

# First letters of templates: beginning and end of a text, as in the tokenizers of these models.
_TEXT_TOKENS = {
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "diffusion_gemma": ("<bos>", "<eos>"),
    "gemma": ("<bos>", "<eos>"),
    "glm": (None, "<|endoftext|>"),
    "gptoss": ("<|startoftext|>", "<|return|>"),
    "idefics": ("<|begin_of_text|>", "<|end_of_text|>"),
    "lfm2": ("<|startoftext|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "llava": ("<s>", "</s>"),
    "muse": ("<|begin_of_text|>", "<|eot|>"),
    "nemotron": ("<s>", "<|im_end|>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "qwen": (None, "<|im_end|>"),
    "smolvlm": ("<|im_start|>", "<end_of_utterance>"),
}

_CONTROL = re.compile(
    r"<\|[\w▁/]+\|>|<｜[\w▁]+｜>|<\|[a-z_]+>|<[a-z_]+\|>|\[/?(?:INST|gMASK)\]|</?s>|<sop>|<(?:start|end)_of_\w+>|<image>"
)


def read_templates(place: Path | None) -> dict[str, str]:
    """Read the templates from TRL's wheel, a folder that it is unpacked in, or the installed package.

    Raises:
        SystemExit: there are none.
    """
    if place is None:
        spec = importlib.util.find_spec("trl")
        if spec is None or spec.origin is None:
            raise SystemExit("TRL is not installed; name its wheel (pip download trl==1.16.0 --no-deps) with --trl")
        place = Path(spec.origin).parent
    if place.is_file():
        with zipfile.ZipFile(place) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".jinja")]
            found = {Path(name).stem: wheel.read(name).decode() for name in names}
    else:
        found = {path.stem: path.read_text(encoding="utf-8") for path in place.rglob("chat_templates/*.jinja")}
    if not found:
        raise SystemExit(f"no chat templates in {place}")
    return dict(sorted(found.items()))


def trl_version(place: Path | None) -> str:
    """The version of TRL in a wheel or in a folder that one is unpacked in, or else of the installed package."""
    if place is None:
        return metadata.version("trl")
    names = [place.name, *(path.name for path in place.glob("trl-*.dist-info"))]
    found = [match[1] for name in names if (match := re.match(r"trl-([\w.]+?)(-|\.dist-info)", name))]
    return found[0] if found else "unknown"


def tokenizer_for(name: str, template: str) -> Any:
    """A byte tokenizer that has the control tokens of a template."""
    family = max((start for start in _TEXT_TOKENS if name.startswith(start)), key=len, default=None)
    begin, end = (None, "<|endoftext|>") if family is None else _TEXT_TOKENS[family]
    tokenizer = ByteTokenizer().load(list)
    known = {*_CONTROL.findall(template), begin, end} - {None}
    tokenizer.add_tokens(sorted(known), special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token = begin, end
    return tokenizer


@dataclass(frozen=True)
class Peer:
    """Renders with transformers alone, in whichever form of messages the template reads."""

    tokenizer: Any
    template: str
    tools: list[dict[str, Any]] | None
    options: Mapping[str, Any]

    def __call__(self, messages: Messages, prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the spans that the template marks."""
        read = [self._as_read(message) for message in messages]
        try:
            return self._render(read, prompt)
        except TypeError:  # some templates join the arguments of a call as text
            return self._render([_with_arguments_as_text(message) for message in read], prompt)

    def _render(self, messages: Messages, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, marks = render_jinja_template(
            [messages],
            tools=self.tools,
            chat_template=self.template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
            **self.options,
        )
        return rendered[0], [(start, end) for start, end in marks[0]]

    def _as_read(self, message: dict[str, Any]) -> dict[str, Any]:
        message = dict(message)
        if "message['content'][0]['type']" in self.template or "content'][0]['text']" in self.template:
            message["content"] = [{"type": "text", "text": message["content"]}]
        if "reasoning_content" in message and "reasoning_content" not in self.template:
            if "thinking" in self.template:
                message["thinking"] = message.pop("reasoning_content")
            else:
                reasoning = message.pop("reasoning_content")
                message["content"] = f"<think>\n{reasoning}\n</think>\n\n{message['content']}"
        return message


def _with_arguments_as_text(message: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", [])
    ]
    return {**message, "tool_calls": calls} if calls else message


def writes(peer: Peer, kind: str, messages: Messages) -> bool:
    """Whether the template writes rows of this kind."""
    needed = {"system": ["Speak up."], "reasoning": ["Clouds gather."], "tools": ["sky", "town", "Ulm", "wet"]}
    try:
        text = peer(messages)[0]
    except Exception:  # a template may raise anything
        return False
    if kind == "reasoning" and not re.search("think|reasoning_content", peer.template):
        return False  # it would be part of the answer
    return all(part in text for part in needed.get(kind, []))
