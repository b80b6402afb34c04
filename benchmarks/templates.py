"""Compares our masks with those of TRL's training templates, for every chat template in TRL's wheel.

    python -m benchmarks.templates [--trl WHEEL_OR_FOLDER]

TRL keeps the chat templates of many models, most of them twice: as the model ships it, and as a training template that
marks with `{% generation %}` what the assistant writes. Rows of five kinds go through `tokenize_conversation` with
both. Each cell of the table is one of:

- `exact`: each turn is trained on what TRL marks, apart from its beginning where the generation prompt gives that, and
  from white space behind its end;
- `plain`: the answers and their ends are the same, but one side has an empty reasoning block that the other lacks. TRL
  writes one in every turn of some templates, where the model's own template writes none in the history. We write one
  where the generation prompt opens it;
- `refused`: with the reason;
- `disputed`: the masks differ, and we are convinced of ours, for the reason in `_DISPUTED`;
- `wrong`: anything else;
- `-`: neither template writes such a row.

Independently of TRL, the text of every row must be the generation prompt of its last answer, as the model's own
template writes it, followed by what is trained on, and nothing but white space behind that. Otherwise it is `wrong`.
Templates for which TRL has no marks are compared with what is between the generation prompt and the end of turn in
`_ENDS`. A row without reasoning is asked for with `enable_thinking=False` where the prompt opens reasoning otherwise.

The tokenizer has the tokens of bytes and, as special tokens, the control tokens in the template. Nothing is timed.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.peer_templates import KINDS, TOOLS, Messages, Peer, read_templates, tokenizer_for, trl_version, writes
from lit_probsft.data import tokenize_conversation
from lit_probsft.data.rows.conversation import validate_conversation
from lit_probsft.errors import UserError

# Templates without a training variant or marks: end of an answer, and of a turn that calls a tool.
_ENDS = {
    "gemma4_v2": ("<turn|>", "<turn|>"),
    "gemma4": ("<turn|>", "<|tool_response>"),
    "llama3_": ("<|eot_id|>", "<|eot_id|>"),
}

# Where we are convinced of our mask: beginning of the template's name, kind of row, reason.
_DISPUTED = [
    (
        "diffusion_gemma",
        "tools",
        "TRL does not train on <|tool_response>, with which the template ends a call, so the model would not learn to "
        "stop there. The template also writes the header <|turn>model before an answer to a tool's result, and its "
        "generation prompt does not give that header, so the model has to write it; TRL leaves it out of the mask. In "
        "the training template, whose marks we follow, both are left out by us too.",
    ),
]

_VERDICTS = ("wrong", "disputed", "refused", "plain", "exact")
"""From the worst to the best."""
_BLOCK = re.compile(r"\A\s*<think>\s*</think>\s*")


@dataclass(frozen=True)
class Cell:
    """The result for one template and one kind of row."""

    verdict: str
    reason: str = ""


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


def _same(ours: str, before: str, theirs: str, prompt: str) -> str | None:
    """`exact` or `plain`, see the module's docstring; None if the turns differ in more than that.

    Args:
        ours: what a turn is trained on.
        before: the text before it.
        theirs: what TRL marks of the turn.
        prompt: the generation prompt for the turn.
    """

    def given(beginning: str) -> bool:
        return prompt.endswith(beginning) or prompt.rstrip().removesuffix("<think>").endswith(beginning)

    beginning = theirs.removesuffix(ours)
    if theirs.endswith(ours) and before.endswith(beginning) and given(beginning):
        return "exact"
    opened = re.search(r"<think>\s*\Z", before)
    answer = _BLOCK.sub("", opened.group() + ours if opened else ours)
    beginning = _BLOCK.sub("", theirs.removesuffix(answer))
    before = before[: opened.start()] if opened else before
    return "plain" if theirs.endswith(answer) and before.endswith(beginning) and given(beginning) else None


def compare(name: str, templates: Mapping[str, str], kind: str) -> Cell:
    """Compare a template's mask of one kind of row with TRL's."""
    cell = _compare(name, templates, kind)
    for start, disputed, reason in _DISPUTED:
        if cell.verdict == "wrong" and name.startswith(start) and kind == disputed:
            return Cell("disputed", f"{cell.reason}. {reason}")
    return cell


def _compare(name: str, templates: Mapping[str, str], kind: str) -> Cell:
    template = templates[name]
    trained = templates.get(f"{name}_training", template)
    tokenizer = tokenizer_for(name, template + trained)
    tokenizer.chat_template = template
    messages = KINDS[kind]
    tools = TOOLS if kind == "tools" and "tools" in template else None
    writers = [Peer(tokenizer, text, tools, {}) for text in (template, trained)]
    if not any(writes(peer, kind, messages) for peer in writers):
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
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not len(ours) == len(wanted) == len(turns):
        return Cell("wrong", f"trained on {[piece for _, piece in ours]}, TRL on {wanted}")
    verdicts = []
    for (index, piece), theirs, turn in zip(ours, wanted, turns, strict=True):
        before = "".join(text for text, _ in pieces[:index])
        verdict = _same(piece.rstrip(), before, theirs, own(messages[:turn], True)[0])
        if verdict is None:
            return Cell("wrong", f"trained on {piece!r}, TRL on {theirs!r}")
        verdicts.append(verdict)
    return Cell("plain" if "plain" in verdicts else "exact")


def verdict_of(cells: Mapping[str, Cell]) -> str:
    """The worst of a template's cells."""
    found = {cell.verdict for cell in cells.values()}
    return next(verdict for verdict in _VERDICTS if verdict in found)


def run(options: argparse.Namespace) -> Path:
    """Compare all templates, write and print the result."""
    templates = read_templates(options.trl)
    found = {name: {kind: compare(name, templates, kind) for kind in KINDS} for name in templates}
    totals = Counter(verdict_of(cells) for cells in found.values())
    by_kind = {kind: Counter(cells[kind].verdict for cells in found.values()) for kind in KINDS}
    rows = [{"template": name, **{kind: cell.verdict for kind, cell in cells.items()}} for name, cells in found.items()]
    print(harness.table(rows))
    for name, cells in found.items():
        for kind, cell in cells.items():
            if cell.reason:
                print(f"{name}, {kind}: {cell.verdict}: {cell.reason}")
    print("\n" + ", ".join(f"{totals[verdict]} {verdict}" for verdict in reversed(_VERDICTS)))
    path = harness.write_result(
        "templates",
        {} if options.results is None else {"results": options.results},
        trl=trl_version(options.trl),
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
    parser.add_argument(
        "--trl", type=Path, help="TRL's wheel, or a folder with its files; by default the one installed"
    )
    parser.add_argument("--results", help="folder for the JSON; by default benchmarks/results")
    return parser.parse_args(args)


if __name__ == "__main__":
    run(parse())
