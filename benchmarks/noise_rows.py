"""The rows of `benchmarks.noise`: made by a program, and spoiled in three ways."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

Row = tuple[str, str]
"""Prompt and answer."""

CLEAN, KINDS = "clean", ("other", "refusal", "slip")


def spoil(clean: Sequence[Row], slipped: Sequence[str], refusal: str) -> dict[str, list[Row]]:
    """All versions of the rows. Answers of other rows are those of the next row."""
    answers = {
        "other": [answer for _, answer in [*clean[1:], *clean[:1]]],
        "refusal": [refusal] * len(clean),
        "slip": slipped,
    }
    prompts = [prompt for prompt, _ in clean]
    return {CLEAN: list(clean)} | {kind: list(zip(prompts, found, strict=True)) for kind, found in answers.items()}


# --- a state machine, for tiny models

DIGITS, REFUSAL = 12, "I do not know."


def machine(digits: Sequence[int], slips: Mapping[int, int], offsets: Sequence[Sequence[int]] | None = None) -> str:
    """The states of the machine; at a slip, position to offset, the state moves and later states follow.

    `offsets[state][digit]` turns addition into another table."""
    state, states = 0, []
    for position, digit in enumerate(digits):
        state = (state + digit + slips.get(position, 0) + (offsets[state][digit] if offsets else 0)) % 10
        states.append(state)
    return "".join(map(str, states))


def draw(rng: random.Random) -> list[int]:
    return [rng.randrange(10) for _ in range(DIGITS)]


def prompt_of(digits: Sequence[int], sign: str = "+") -> str:
    return sign + "".join(map(str, digits)) + "="


def machine_rows(count: int, rng: random.Random) -> dict[str, list[Row]]:
    """Rows of the state machine, in the clean version and one of each kind."""
    drawn = [draw(rng) for _ in range(count)]
    clean = [(prompt_of(digits), machine(digits, {})) for digits in drawn]
    slipped = [machine(digits, {rng.randrange(DIGITS): rng.randrange(1, 10)}) for digits in drawn]
    return spoil(clean, slipped, REFUSAL)


# --- texts

LONG_REFUSAL = "I am sorry, I do not know."
WORDS = {
    "kind": "old young tired happy angry quiet brave lazy tall small",
    "person": "farmer teacher sailor doctor child painter king baker driver soldier",
    "did": "carried found painted sold lost bought cleaned dropped stole fixed",
    "color": "red blue green yellow black white brown gray purple orange",
    "thing": "basket letter chair bicycle lamp bottle hammer clock ladder blanket",
    "place": "market river station garden school church harbor forest bridge castle",
}


def _fill(text: str, rng: random.Random) -> str:
    return text.format(**{name: rng.choice(words.split()) for name, words in WORDS.items()})


def copies(count: int, rng: random.Random) -> list[Row]:
    """Sentences to copy."""
    sentences = [_fill("The {kind} {person} {did} the {color} {thing} near the {place}.", rng) for _ in range(count)]
    return [(f"Copy this sentence: {sentence}", sentence) for sentence in sentences]


def sums(count: int, rng: random.Random) -> list[Row]:
    """Sums in words."""
    rows = []
    for _ in range(count):
        a, b = rng.randint(3, 60), rng.randint(3, 60)
        question = f"A {{person}} has {a} {{thing}}s and buys {b} more at the {{place}}. How many {{thing}}s is that?"
        start = f"The {{person}} starts with {a} {{thing}}s and buys {b} more."
        prompt, answer = _fill(f"{question}|{start} {a} + {b} = {a + b}, so it is {a + b} {{thing}}s.", rng).split("|")
        rows.append((prompt, answer))
    return rows


def invented(count: int, rng: random.Random) -> list[Row]:
    """Sentences to translate into a language that nobody has heard of."""
    dictionary: dict[str, str] = {}

    def word(match: re.Match[str]) -> str:
        syllables = (rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))
        return dictionary.setdefault(match[0].lower(), "".join(syllables))

    return [(f"Translate to Vabu: {sentence}", re.sub(r"\w+", word, sentence)) for _, sentence in copies(count, rng)]


def slip(answer: str, words: Sequence[str], rng: random.Random) -> str:
    """Replace a number, or a word if there is none, here and wherever it follows."""
    parts = re.findall(r"\w+|\W+", answer)
    places = [index for index, part in enumerate(parts) if part[0].isalnum()]
    places = [index for index in places if parts[index].isdecimal()] or places
    if not places:
        return answer
    place = rng.choice(places)
    old = parts[place]
    if old.isdecimal():
        new = str(int(old) + rng.choice((1, 2, 3, 10, 20)))
    else:
        new = rng.choice([word for word in words if word != old] or ["not"])
    return "".join(new if index >= place and part == old else part for index, part in enumerate(parts))


def texts(clean: Sequence[Row], rng: random.Random) -> dict[str, list[Row]]:
    """Rows of text, in the clean version and one of each kind."""
    words = sorted({word for _, answer in clean for word in re.findall(r"[^\W\d]+", answer)})
    return spoil(clean, [slip(answer, words, rng) for _, answer in clean], LONG_REFUSAL)
