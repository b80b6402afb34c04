r"""Grades the answer to a multiple-choice question.

An answer states its choice, after its thinking, in the first of these ways that it uses:

1. `\boxed{B}`, `<answer>B</answer>`, "the answer is B", "Answer: (B) aspirin", "I choose B" or "B is correct". The
   last such statement counts.
2. Nothing but a choice on a line: `B`, `**B**`, `(B)`, `B. aspirin` or `aspirin`, and no other choice like that.
3. A label and punctuation first: "B. It inhibits ...", "Yes, because ...".
4. A label in brackets or bold, or after "option", and no other label like that.
5. The text of a choice after "is", at the end of a clause: "The drug of choice is aspirin." Again, no other like that.

A choice is named by its label or by its whole text; if they disagree, by its label. "A or B", "none" and a label that
does not exist name no choice. Before another word, "A" and "I" are English, like small letters and words such as "no".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from lit_probsft.evaluation.grading.extraction import after_thinking
from lit_probsft.evaluation.grading.grade import Grade

NO_CHOICE = ""
"""What a statement names that names no choice, or several."""

_FONT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|boldsymbol|bf|rm)\s*\{([^{}]*)\}")
_BOLD = re.compile(r"(\*\*|__)\(?(\w{1,5})[).:]?\1")
_STATEMENT = re.compile(
    r"""(?P<box> \\(?:boxed|fbox) \s* \{ )
    | <answer>
    | \bfinal\s+answer \s* \n
    | (?: (?<!each\ )(?<!every\ )(?<!possible\ )\banswer | \bcorrect\s+answers
        | \b(?:correct|best|right|final|likely|appropriate|my|selected)\s+
        (?:option|choice|response|letter|treatment|diagnosis|step) )\b
      (?:\s+(?!choices|options)[a-z]{2,}){0,8}?
      (?: \s*[:=] | \s+[-–—]\s | \s+(?:is|would\ be|will\ be|should\ be|must\ be)\b)
    | \bI\s+(?:(?:would|will|must|can)\s+)? (?:choose|pick|select|go\ with)\b""",
    re.VERBOSE | re.IGNORECASE,
)
_FILLER = re.compile(
    r"(?:[\s:(\[{<\"'“‘]|(?:that|most|likely|probably|clearly|therefore|thus|option|choice|letter)\b)*", re.IGNORECASE
)
_END = r"(?=[\"'”’)\]]*(?:\s*(?:[,;:!?)\]}<>\n—–]|\.(?!\d)|-\s|$)|\s+(?:because|since|due|is|as|(?:and )?not)\b))"
_DENIED = r"(?![)\]\"']*\s+(?:is|was|would be)(?:n['’]t|\s+(?:not|never|wrong|false|un|in(?=[a-z]{4}))))"
_AFTER_TEXT = r"(?=[,;:!?)—–]|\.(?!\d)|$|\s(?:because|since|due|is|as|in|for|which|that|with|by|to)\b)"
_NONE = re.compile(r"[A-Z]\b(?!\s+[a-z]|['’^+=-])|(?i:none|neither|both|all)\b")
_IS_RIGHT = (
    r"\s+(?:is|must be|would be)\s+(?:the\s+|clearly\s+|most\s+|best\s+)*"
    r"(?:correct|right|appropriate|answer|likely|choice|option)\b"
)


def grade_choice(answer: str, gold: str, choices: Mapping[str, str], *, last_named: bool = False) -> Grade:
    """Grade an answer to a multiple-choice question.

    Args:
        answer: what the model wrote.
        gold: the label of the right choice.
        choices: the text of each choice by its label, such as `A` to `J`, or yes, no and maybe.
        last_named: take the last choice that the answer names anywhere, as the paper's protocol does, instead of the
            one that it states.
    """
    reader = _reader(tuple((str(label).strip(), str(text)) for label, text in choices.items()))
    found = reader.last_named(answer) if last_named else reader.stated(_plain(after_thinking(answer) or ""))
    if not found:
        return Grade(False, None, "no answer" if found is None else "names no choice, or several")
    correct = found == str(gold).strip() or found == reader.labels.get(str(gold).strip().casefold())
    return Grade(correct, found, "the right choice" if correct else f"another choice than {gold}")


def _plain(text: str) -> str:
    """Without fonts; a bold label is in brackets."""
    return re.sub(r"[*_`$]|\\(?=[()\[\]])", "", _BOLD.sub(r"(\2)", _FONT.sub(r"\1", text)))


def _words(text: str) -> str:
    """For comparison: without markup, articles at the beginning, case and punctuation at the ends."""
    words = " ".join(re.sub(r"[{}\\]", " ", _plain(text)).split()).strip(" .,;:!?()[]\"'“”#-").casefold()
    return re.sub(r"^(?:the|an|a)\s+", "", words)


@lru_cache(maxsize=256)
def _reader(choices: tuple[tuple[str, str], ...]) -> _Reader:
    return _Reader(dict(choices))


class _Reader:
    """Finds the choice that a text names: its label, `NO_CHOICE`, or None if the text is about something else."""

    def __init__(self, choices: Mapping[str, str]) -> None:
        self.labels: dict[str, str] = {}
        for label in filter(None, choices):
            self.labels |= {label.casefold(): label, label: label}
        self.texts: dict[str, str] = {}
        for label, text in choices.items():
            if words := _words(text):
                self.texts[words] = NO_CHOICE if words in self.texts else label
        names = sorted(filter(None, choices), key=len, reverse=True)
        one = "|".join(map(re.escape, names)) or r"(?!)"
        # Other capital letters are no English words.
        capital = "|".join(name for name in names if re.fullmatch("[B-HJ-Z]", name)) or r"(?!)"
        label = rf"(?:(?P<capital>{capital})(?![\w'’^+=-])|(?P<label>(?i:{one})){_END}){_DENIED}"
        self.label = re.compile(label)
        self.other = re.compile(
            rf"[)\]\"']*\s*(?:,?\s*(?:or|and)\b(?:\s+(?:maybe|perhaps|possibly)\b)?|[/,&])\s*[(\[\"']*{label}(?!\s+(?:is|was|would|has)\b)"
        )
        self.before = re.compile(rf"(?P<label>{one})(?!\w)", re.IGNORECASE)
        self.right = re.compile(rf"(?<![\w'’-])(?P<label>{one})\)?{_IS_RIGHT}")
        self.marked = re.compile(rf"(?:\((?P<label>{one})\)|\b(?i:option|choice)\s+(?P<other>{one})(?!\w)){_DENIED}")
        texts = "|".join(map(re.escape, sorted(self.texts, key=len, reverse=True))) or r"(?!)"
        self.said = re.compile(rf"\b(?:is|are|was|be)\s+(?:(?:the|an|a)\s+)?(?P<text>{texts})(?=[,;!?)]|\.(?!\d)|$)")
        self.anywhere = re.compile(rf"(?<![^\W_])(?![aA] )(?P<label>{one})(?![^\W_])")

    def stated(self, answer: str) -> str | None:
        """The choice that the answer states, by the rules of this module."""
        statements = {match.end(): self._stated_by(match) for match in _STATEMENT.finditer(answer)}
        statements |= {match.end(): self._named(match) for match in self.right.finditer(answer)}
        for place in sorted(statements, reverse=True):
            if statements[place] is not None:
                return statements[place]
        lines = answer.splitlines()
        alone = {line: found for line in lines if (found := self.whole(line)) is not None}
        if len(named := {*alone.values()}) == 1:
            return named.pop()
        if not alone and (first := self.begins(answer)):
            return first[0]
        marked = {self._named(match) for line in lines if line not in alone for match in self.marked.finditer(line)}
        if alone or marked:
            return marked.pop() if len(marked) == 1 else NO_CHOICE
        said = {self.texts[match["text"]] for match in self.said.finditer(" ".join(answer.split()).casefold())}
        return said.pop() if len(said) == 1 else NO_CHOICE if said else None

    def last_named(self, answer: str) -> str | None:
        """The choice whose label comes last, if possible after "answer is"; without labels, whose text comes last."""
        after = [*re.finditer(rf"answer is\s*{self.anywhere.pattern}", answer)]
        if labels := after or [*self.anywhere.finditer(answer)]:
            return self._named(labels[-1])
        places = {answer.casefold().rfind(text): label for text, label in self.texts.items()}
        last = max(places, default=-1)
        return places[last] if last >= 0 else None

    def _stated_by(self, statement: re.Match[str]) -> str | None:
        text = statement.string[statement.end() : statement.end() + 1000]
        if statement["box"]:
            content = re.match(r"((?:[^{}]|\{[^{}]*\})*)\}", text)
            return NO_CHOICE if content is None else self.whole(content[1]) or NO_CHOICE
        text = _FILLER.sub("", text, count=1)
        if found := self.begins(text):
            return found[0]
        words = _words(text)
        fitting = [choice for choice in self.texts if re.match(re.escape(choice) + _AFTER_TEXT, words)]
        if fitting:
            return self.texts[max(fitting, key=len)]
        return NO_CHOICE if _NONE.match(text) else None

    def begins(self, text: str) -> tuple[str, str] | None:
        """The choice whose label the text begins with, and what follows."""
        text = _FILLER.sub("", text, count=1)
        if label := self.label.match(text):
            other = self.other.match(text, label.end())
            several = other is not None and self._named(other) != self._named(label)
            return NO_CHOICE if several else self._named(label), text[label.end() :]
        if (label := self.before.match(text)) and self._has_text(named := self._named(label), text[label.end() :]):
            return named, ""
        return None

    def whole(self, line: str) -> str | None:
        """The choice that the line consists of."""
        words = _words(line)
        if (named := self.labels.get(words, self.texts.get(words))) is not None:
            return named
        found = self.begins(line)
        return found[0] if found and (not found[0] or self._has_text(*found)) else None

    def _has_text(self, label: str, text: str) -> bool:
        return self.texts.get(_words(text)) == label

    def _named(self, match: re.Match[str]) -> str:
        name = next(group for group in match.groups() if group)
        return self.labels.get(name) or self.labels.get(name.casefold(), NO_CHOICE)  # `re` takes ı for I
