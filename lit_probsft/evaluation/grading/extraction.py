"""Finds the answer in a text. README.md lists the rules; the first that applies decides."""

from __future__ import annotations

import re

_EMPTY_BOX = re.compile(r"[^.\n]{0,80}\\boxed\{\s*\}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BOX_START = re.compile(r"\s*(\{|[-+\\\d][^\s{}$]*|[A-Za-z](?![A-Za-z]))")
_MARK = re.compile(
    r"####(?=[^A-Za-z\n#]*(?:(?<=\d )[a-z]+[ .]*)?(?:\n|$))|<answer>"
    r"|\banswers?\b(?: to [^.:\n]{0,80})?[*_ ]{0,4}(?:is|are|would be|[:：=])(?!\w)"
    r"|\bfinal answer\b[*_# ]{0,4}\n|答案(?:是|为|[:：])",
    re.IGNORECASE,
)
_MATH = re.compile(r"\$\$([^$]+)\$\$|(?<!\\)\$((?:\\.|[^$\\\n])+)\$(?!\d)|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.)])-?[$€£]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+|/\d+)?(?:\s*\\?%)?")
_REST = re.compile(r"[,;]?\s+(?:because|since|as|so|which|where|when|if|for|i hope)\s", re.IGNORECASE)
_HEDGE = re.compile(
    r"\b(?:not|never|between|at (?:least|most)|(?:more|less|fewer|greater|smaller|larger|higher|lower) than)\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?:[A-Za-z]{2,} ){2}.*\d")
_UNFINISHED = re.compile(r"[A-Za-z,:;+*/=(<-]$")
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)|。")
_LONGEST = 4000


def find_answer(text: str) -> tuple[str | None, str]:
    """The answer in a text of any length, by the rules in README.md; without one, None and the reason."""
    if (rest := after_thinking(text)) is None:
        return None, "no answer: the text ends while thinking"
    text = rest
    for box in reversed(list(_BOX.finditer(text))):
        content = _box_content(text, box.end())
        if content is None:
            return None, "no answer: the last box is cut off"
        if content.strip():
            return content.strip(), ""
    tail = text[-50 * _LONGEST :]
    ends = [mark.end() for mark in _MARK.finditer(tail)]
    while ends and _EMPTY_BOX.match(tail, ends[-1]):
        ends.pop()
    if ends:
        return _after_mark(tail[ends[-1] : ends[-1] + _LONGEST]) or None, "no answer: nothing follows the last mark"
    tail = tail[-_LONGEST:].strip()
    short = "\n" not in tail and len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", tail)) < 4
    if short and (_HEDGE.search(tail) or not _SENTENCE.match(tail)):
        return tail.strip("* ") or None, "no answer"
    if "\n" in tail and _UNFINISHED.search(tail):
        return None, "no answer: the text is cut off"
    return _last_mathematics(re.split(r"\n\s*\n", tail)[-1]) or None, "no answer"


def after_thinking(text: str) -> str | None:
    """What follows `</think>`, or the whole text; None if it ends while thinking."""
    text = text.rpartition("</think>")[2]
    return None if "<think>" in text else text


def _box_content(text: str, start: int) -> str | None:
    r"""The content of a box whose command ends at `start`; None if it is cut off. `\boxed 5` needs no braces."""
    rest = _BOX_START.match(text, start)
    if rest is None:
        return "" if text[start:].strip() else None
    if rest[1] != "{":
        return rest[1].rstrip(".,;")
    depth = 1
    for brace in _BRACE.finditer(text, rest.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[rest.end() : brace.start()]
    return None


def last_box(text: str) -> str | None:
    """The content of the last box that is complete and not empty."""
    contents = (_box_content(text, box.end()) for box in reversed([*_BOX.finditer(text)]))
    return next((content.strip() for content in contents if content and content.strip()), None)


def _after_mark(text: str) -> str:
    """The answer at the start of what follows "the answer is"."""
    text = re.sub(r"^[*_]*[\s#:：]*", "", text.partition("</answer>")[0])  # also the end of a bold "Answer:"
    display = _MATH.match(text)
    if display and (display[1] or display[3]):
        return _content(display).strip()
    end = _SENTENCE_END.search(text)
    sentence = text[: end.start()] if end else text
    reason = _REST.search(sentence)
    sentence = (sentence[: reason.start()] if reason else sentence).strip()
    if _HEDGE.match(sentence):
        return sentence
    spans = list(_MATH.finditer(sentence))
    if spans:
        percent = re.match(r"\s*\\?%", sentence[spans[-1].end() :])
        return sentence[spans[0].start() : spans[-1].end()] + (percent[0] if percent else "")
    bold = re.search(r"\*\*([^*]+)\*\*", sentence)
    if bold and "=" not in sentence:
        return bold[1].strip()
    words = re.match(r"(?:[A-Za-z]{2,}\s+)+(?=[-$€£(\[\\]?[\d.])", sentence)
    return (sentence[words.end() :] if words else sentence).strip("*_ ")


def _last_mathematics(paragraph: str) -> str:
    spans, numbers = list(_MATH.finditer(paragraph)), list(_NUMBER.finditer(paragraph))
    if spans and (not numbers or spans[-1].end() >= numbers[-1].end()):
        return _content(spans[-1]).rpartition("=")[2].strip(" .,\n")
    return numbers[-1][0].strip().rstrip(",") if numbers else ""


def _content(math: re.Match[str]) -> str:
    return next(group for group in math.groups() if group is not None)
