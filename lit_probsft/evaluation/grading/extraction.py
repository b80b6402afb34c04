"""Finds the answer in a text.

The first rule that applies decides:

1. After `</think>` only the rest counts; a `<think>` that never ends has no answer.
2. The last box that is not empty, `\\boxed{...}` or `\\fbox{...}`. If its braces never close, the text was cut off and
   has no answer.
3. What follows the last `<answer>`, "The answer is", "Answer:", "Final Answer" or `####` (on a line without words,
   since others are headings): mathematics, or the rest of the sentence.
4. A short text of one line, as a whole.
5. The last mathematics or number of the last paragraph; in a chain of equations, the last side.
"""

from __future__ import annotations

import re

_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BOX_START = re.compile(r"\s*(\{|[-+\\\d][^\s{}$]*|[A-Za-z](?![A-Za-z]))")
_MARK = re.compile(
    r"####(?=[^A-Za-z\n#]*(?:\n|$))|<answer>"
    r"|\banswers?\b(?: to [^.:\n]{0,80})?[*_ ]{0,4}(?:is|are|would be|[:：=])(?!\w)"
    r"|\bfinal answer\b[*_# ]{0,4}\n|答案(?:是|为|[:：])",
    re.IGNORECASE,
)
_MATH = re.compile(r"\$\$([^$]+)\$\$|(?<!\\)\$((?:\\.|[^$\\\n])+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.)])-?[$€£]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+|/\d+)?(?:\s*\\?%)?")
_REST = re.compile(r"[,;]?\s+(?:because|since|as|so|which|where|when|if|for|i hope)\s", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)|。")
_LONGEST = 4000


def find_answer(text: str) -> tuple[str | None, str]:
    """The answer in a text of any length, by the rules above; without one, None and the reason."""
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    elif "<think>" in text:
        return None, "no answer: the text ends while thinking"
    for box in reversed(list(_BOX.finditer(text))):
        content = _box_content(text, box.end())
        if content is None:
            return None, "no answer: the last box is cut off"
        if content.strip():
            return content.strip(), ""
    tail = text[-50 * _LONGEST :]
    if marks := list(_MARK.finditer(tail)):
        end = marks[-1].end()
        return _after_mark(tail[end : end + _LONGEST]) or None, "no answer: nothing follows the last mark"
    tail = tail[-_LONGEST:].strip()
    if "\n" not in tail and len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", tail)) < 4:
        return tail.strip("* ") or None, "no answer"
    return _last_mathematics(re.split(r"\n\s*\n", tail)[-1]) or None, "no answer"


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
        return _content(spans[-1]).rpartition("=")[2].strip(" .,")
    return numbers[-1][0].strip().rstrip(",") if numbers else ""


def _content(math: re.Match[str]) -> str:
    return next(group for group in math.groups() if group is not None)
