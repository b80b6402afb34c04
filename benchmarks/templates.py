"""Compares our masks with those of TRL's training templates, for every chat template in TRL's wheel.

    python -m benchmarks.templates [--trl WHEEL_OR_FOLDER]

TRL keeps the chat templates of many models, most of them twice: as the model ships it, and as a training template that
marks with `{% generation %}` what the assistant writes. Rows of five kinds go through `tokenize_conversation` with both.
Each cell of the table is one of:

- `exact`: each turn is trained on what TRL marks, apart from its beginning where the generation prompt gives that, and
  from white space behind its end;
- `plain`: the answers and their ends are the same, but one side has an empty reasoning block that the other lacks. TRL
  writes one in every turn of some templates, where the model's own template writes none in the history. We write one
  where the generation prompt opens it;
- `refused`: with the reason;
- `wrong`: anything else;
- `-`: neither template writes such a row.

Independently of TRL, the text of every row must be the generation prompt of its last answer, as the model's own template
writes it, followed by what is trained on, and nothing but white space behind that. Otherwise it is `wrong`. Templates
for which TRL has no marks are compared with what lies between the generation prompt and the end of turn in `_ENDS`.

The tokenizer has the tokens of bytes and, as special tokens, the control tokens in the template. Nothing is timed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from lit_probsft.data import ByteTokenizer, tokenize_conversation
from lit_probsft.data.rows.conversation import validate_conversation
from lit_probsft.errors import UserError

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
# Templates without a training variant or marks: end of an answer, and of a turn that calls a tool.
_ENDS = {
    "gemma4_v2": ("<turn|>", "<turn|>"),
    "gemma4": ("<turn|>", "<|tool_response>"), 
    "llama3_": ("<|eot_id|>", "<|eot_id|>"),
}

_CONTROL = re.compile(
    r"<\|[\w▁/]+\|>|<｜[\w▁]+｜>|<\|[a-z_]+>|<[a-z_]+\|>|\[/?(?:INST|gMASK)\]|</?s>|<sop>|<(?:start|end)_of_\w+>|<image>"
)
_BLOCK = re.compile(r"\A\s*<think>\s*</think>\s*")


@dataclass(frozen=True)
class Cell:
    """The result for one template and one kind of row."""

    verdict: str
    reason: str = ""


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


def tokenizer_for(name: str, template: str) -> Any:
    """A byte tokenizer that has the control tokens of a template."""
    family = max((start for start in _TEXT_TOKENS if name.startswith(start)), key=len)
    begin, end = _TEXT_TOKENS[family]
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
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, marks = render_jinja_template(
            [[self._as_read(message) for message in messages]],
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


def _writes(peer: Peer, kind: str, messages: Messages) -> bool:
    """Whether the template writes rows of this kind."""
    needed = {"system": ["Speak up."], "reasoning": ["Clouds gather."], "tools": ["sky", "town", "Ulm", "wet"]}
    try:
        text = peer(messages)[0]
    except Exception:  # a template may raise anything
        return False
    if kind == "reasoning" and not re.search("think|reasoning_content", peer.template):
        return False  # it would be part of the answer
    return all(part in text for part in needed.get(kind, []))


def _options(peer: Peer, messages: Messages) -> dict[str, Any]:
    """Options with which the model is asked for such an answer: without reasoning where the row has none."""
    if "enable_thinking" not in peer.template:
        return {}
    reasons = bool(messages[-1].get("reasoning_content"))
    prompt = peer(messages[:-1], True)[0].rstrip()
    if prompt.endswith("<think>") and not reasons:
        return {"enable_thinking": False}
    return {"enable_thinking": True} if prompt.endswith("</think>") and reasons else {}


def _supervised(tokenizer: Any, tokens: Mapping[str, list[int]]) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether it is supervised."""
    pieces: list[tuple[list[int], bool]] = []
    for token, label in zip(tokens["input_ids"], tokens["labels"], strict=True):
        if not pieces or pieces[-1][1] != (label != -100):
            pieces.append(([], label != -100))
        pieces[-1][0].append(token)
    decode = functools.partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return [(decode(ids), supervised) for ids, supervised in pieces]


def _marked(text: str, marks: Sequence[tuple[int, int]]) -> list[str]:
    """The marked texts, joined where only white space is between them, without white space behind."""
    spans: list[tuple[int, int]] = []
    for start, end in marks:
        if spans and not text[spans[-1][1] : start].strip():
            spans[-1] = (spans[-1][0], end)
        elif start < end:
            spans.append((start, end))
    return [text[start:end].rstrip() for start, end in spans]


def _between_prompt_and_end(name: str, peer: Peer, messages: Messages) -> list[str]:
    """What each turn adds to its generation prompt, up to the end of turn in `_ENDS`."""
    answer, call = next(ends for start, ends in _ENDS.items() if name.startswith(start))
    text, wanted = peer(messages)[0], []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt, end = peer(messages[:index], True)[0], call if "tool_calls" in message else answer
            wanted.append(text[len(prompt) : text.index(end, len(prompt)) + len(end)])
    return wanted


def _same(ours: str, before: str, theirs: str) -> str | None:
    """`exact` or `plain`, see the module's docstring; None if the turns differ in more than that."""
    if theirs.endswith(ours) and before.endswith(theirs.removesuffix(ours)):
        return "exact"
    opened = re.search(r"<think>\s*\Z", before)
    whole = opened.group() + ours if opened else ours
    answer = _BLOCK.sub("", whole)
    header = theirs.removesuffix(answer)
    if theirs.endswith(answer) and before[: opened.start() if opened else None].endswith(_BLOCK.sub("", header)):
        return "plain"
    return None


def compare(name: str, templates: Mapping[str, str], kind: str) -> Cell:
    """Compare a template's mask of one kind of row with TRL's."""
    template = templates[name]
    trained = templates.get(f"{name}_training", template)
    tokenizer = tokenizer_for(name, template + trained)
    tokenizer.chat_template = template
    messages = KINDS[kind]
    tools = TOOLS if kind == "tools" else None
    writers = [Peer(tokenizer, text, tools, {}) for text in (template, trained)]
    if not any(_writes(peer, kind, messages) for peer in writers):
        return Cell("-")
    try:
        tokens = tokenize_conversation(tokenizer, validate_conversation(messages), tools=tools)
    except UserError as error:
        return Cell("refused", str(error).split("\n")[0])
    pieces = _supervised(tokenizer, tokens)
    options = _options(writers[0], messages)
    own, peer = Peer(tokenizer, template, tools, options), Peer(tokenizer, trained, tools, options)
    try:
        prompt = own(messages[:-1], True)[0]
        text, marks = peer(messages)
    except Exception as error:
        return Cell("wrong", f"trained, although a template refuses it: {error}")
    last = max(index for index, (_, supervised) in enumerate(pieces) if supervised)
    before = "".join(piece for piece, _ in pieces[:last])
    if before != prompt or "".join(piece for piece, _ in pieces[last + 1 :]).strip():
        return Cell("wrong", f"prompt {prompt[-80:]!r}, trained after {before[-80:]!r}")
    wanted = _marked(text, marks) or _between_prompt_and_end(name, own, messages)
    ours = [(index, piece) for index, (piece, supervised) in enumerate(pieces) if supervised]
    if len(ours) != len(wanted):
        return Cell("wrong", f"trained on {[piece for _, piece in ours]}, TRL on {wanted}")
    verdicts = []
    for (index, piece), theirs in zip(ours, wanted, strict=True):
        verdict = _same(piece.rstrip(), "".join(text for text, _ in pieces[:index]), theirs)
        if verdict is None:
            return Cell("wrong", f"trained on {piece!r}, TRL on {theirs!r}")
        verdicts.append(verdict)
    return Cell("plain" if "plain" in verdicts else "exact")


def verdict_of(cells: Mapping[str, Cell]) -> str:
    """The worst of a template's cells."""
    found = {cell.verdict for cell in cells.values()}
    return next(verdict for verdict in ("wrong", "refused", "plain", "exact") if verdict in found)


def run(options: argparse.Namespace) -> Path:
    """Compare all templates, write and print the result."""
    templates = read_templates(options.trl)
    found = {name: {kind: compare(name, templates, kind) for kind in KINDS} for name in templates}
    totals = Counter(verdict_of(cells) for cells in found.values())
    by_kind = {kind: Counter(cells[kind].verdict for cells in found.values()) for kind in KINDS}
    rows = [
        {"template": name, **{kind: cell.verdict for kind, cell in cells.items()}} for name, cells in found.items()
    ]
    print(harness.table(rows))
    for name, cells in found.items():
        for kind, cell in cells.items():
            if cell.reason:
                print(f"{name}, {kind}: {cell.verdict}: {cell.reason}")
    print("\n" + ", ".join(f"{totals[verdict]} {verdict}" for verdict in ("exact", "plain", "refused", "wrong")))
    path = harness.write_result(
        "templates",
        {key: str(value) for key, value in vars(options).items() if value is not None},
        dtype="none",
        templates={
            name: {kind: {"verdict": cell.verdict, "reason": cell.reason} for kind, cell in cells.items()}
            for name, cells in found.items()
        },
        totals=dict(totals),
        by_kind={kind: dict(counts) for kind, counts in by_kind.items()},
    )
    print(path)
    return path


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.templates", description=description)
    parser.add_argument("--trl", type=Path, help="TRL's wheel, or a folder with its files; by default the one installed")
    parser.add_argument("--results", help="folder for the JSON; by default benchmarks/results")
    return parser.parse_args(args)


if __name__ == "__main__":
    run(parse())
