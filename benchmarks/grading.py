r"""Grades gold solutions as if a model had written them, other ways to write gold answers, and wrong answers.

    python -m benchmarks.grading --data FOLDER

FOLDER holds, at any depth, rows of MATH-500 (math_oai.jsonl), Minerva (minerva_math.jsonl), OlympiadBench
(olympiadbench.jsonl) and GSM8K (gsm8k/test.jsonl). Missing files are left out.

- `gold` should be right: each gold solution against its gold answer, which is the last box of a solution of Minerva.
  For OlympiadBench, the final answer in a box.
- `rewritten` should be right: each gold answer with spaces, `\left(`, `\dfrac`, thousands separators, a unit, `x =`.
- `wrong` should be refused: each gold answer with another sign, another digit, a factor of ten, or two items of a tuple
  in the other order. The draw does not know that a cosine keeps its value with another sign.
- `public` are the pairs from public reports in the tests.

math-verify alone, `verify(parse(gold), parse(text))`, grades the same texts. Every miss is listed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from lit_probsft.evaluation.grading import grade_math
from lit_probsft.evaluation.grading.extraction import find_answer
from tests.evaluation.grading.pairs import PUBLIC

_FILES = {
    "MATH-500": "math_oai.jsonl",
    "Minerva": "minerva_math.jsonl",
    "GSM8K": "gsm8k/test.jsonl",
    "OlympiadBench": "olympiadbench.jsonl",
}
_NUMBER = re.compile(r"(?<![\d.,\w\\])(?<!_\{)\d+(?:\.\d+)?(?![\d,]*\d)")
_PLAIN = re.compile(r"-?[\d.]+|-?\\frac\{\d+\}\{\d+\}")
_TUPLE = re.compile(r"\$?(?:\\left)?\(([^()]*?)(?:\\right)?\)\$?")

Case = tuple[str, str, str, bool]
"""Kind, gold answer, text, and whether the text is right."""


def gold_and_text(name: str, row: dict[str, Any]) -> tuple[str, str]:
    """The gold answer of a row, and a text that gives it."""
    if name == "MATH-500":
        return row["answer"], row["solution"]
    if name == "Minerva":
        return find_answer(row["solution"])[0] or "", row["solution"]
    if name == "GSM8K":
        return row["answer"].rpartition("####")[2].strip(), row["answer"]
    return row["final_answer"][0], rf"The answer is \boxed{{{row['final_answer'][0]}}}."


def rewritten(gold: str) -> Iterator[Case]:
    """The gold answer in other ways of writing."""
    texts = {
        "spaces": re.sub(r"(?<=[=+(,{])(?!\d{3}|\\!)", r" \\, ", gold),
        "fractions": gold.replace(r"\frac", r"\dfrac"),
    }
    if "left" not in gold:
        texts["brackets"] = re.sub(r"(?<![\\\w])\(", r"\\left(", re.sub(r"(?<!\\)\)", r"\\right)", gold))
    if _PLAIN.fullmatch(gold):
        texts |= {"unit": rf"{gold} \text{{ meters}}", "letter": f"x = {gold}"}
    if re.fullmatch(r"-?\d{4,}", gold):
        texts["thousands"] = f"{int(gold):,}"
    yield from ((kind, gold, rf"\boxed{{{text}}}", True) for kind, text in texts.items() if text != gold)


def wrong(gold: str, draw: random.Random) -> Iterator[Case]:
    """Wrong answers that look like the gold answer."""
    texts = {}
    if numbers := [match for match in _NUMBER.finditer(gold) if float(match[0])]:
        number = draw.choice(numbers)
        before, after = gold[: number.start()], gold[number.end() :]
        if r"\pm" not in gold:
            texts["sign"] = (before[:-1] if before.endswith("-") else f"{before}-") + number[0] + after
        place = draw.choice([k for k, character in enumerate(number[0]) if character.isdigit()])
        digit = draw.choice([digit for digit in "123456789" if digit != number[0][place]])
        texts["digit"] = before + number[0][:place] + digit + number[0][place + 1 :] + after
        whole, _, rest = number[0].partition(".")
        texts["factor ten"] = before + (f"{whole}{rest[0]}.{rest[1:]}" if rest else f"{whole}0") + after
    if (inside := _TUPLE.fullmatch(gold.strip())) and "infty" not in gold:
        first, *others = inside[1].split(",")
        if others and first.strip() != others[0].strip():
            texts["order"] = f"({','.join([others[0], first, *others[1:]])})"
    yield from ((kind, gold, rf"\boxed{{{text}}}", False) for kind, text in texts.items())


def math_verify(gold: str, text: str) -> bool:
    """The grade of math-verify alone."""
    from math_verify import parse, verify

    return bool(verify(parse(gold if "$" in gold else f"${gold}$"), parse(text)))


def count(cases: Sequence[Case], peer: bool, seconds: list[float]) -> dict[str, Any]:
    """Grade the cases, and list those that do not come out as they should."""
    misses, theirs = [], 0
    for kind, gold, text, right in cases:
        start = time.perf_counter()
        grade = grade_math(text, gold)
        seconds.append(time.perf_counter() - start)
        theirs += peer and math_verify(gold, text) == right
        if grade.correct != right:
            misses.append({"kind": kind, "gold": gold, "answer": grade.extracted, "reason": grade.reason})
    total = max(len(cases), 1)
    peer_share = theirs / total if peer else None
    return {"cases": len(cases), "share": 1 - len(misses) / total, "math_verify_share": peer_share, "misses": misses}


def run(options: argparse.Namespace) -> Path:
    """Grade everything, write and print the result."""
    draw = random.Random(options.seed)
    parts: dict[str, list[Case]] = {"public": [("pair", *pair) for pair in PUBLIC]}
    for name, file in _FILES.items():
        path = next((path for path in sorted(options.data.rglob("*.jsonl")) if path.as_posix().endswith(file)), None)
        if path is None:
            harness.say(f"{name}: no {file}, left out")
            continue
        pairs = [gold_and_text(name, json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        parts[f"{name}, gold"] = [("gold", gold, text, True) for gold, text in pairs]
        parts[f"{name}, rewritten"] = [case for gold, _ in pairs for case in rewritten(gold)]
        parts[f"{name}, wrong"] = [case for gold, _ in pairs for case in wrong(gold, draw)]
    seconds: list[float] = []
    results = {}
    for part, cases in parts.items():
        results[part] = count(cases, options.peer, seconds)
        harness.say(f"{part}: {results[part]['share']:.4f} of {len(cases)}")
    timing = {"median": statistics.median(seconds), "mean": statistics.mean(seconds), "max": max(seconds)}
    rows = [
        {
            "answers": part,
            "number": result["cases"],
            "as they should": f"{result['share']:.2%}",
            "math-verify alone": f"{result['math_verify_share']:.2%}" if options.peer else None,
        }
        for part, result in results.items()
    ]
    print(harness.table(rows))
    print(f"\nseconds per grade: median {timing['median']:.2g}, mean {timing['mean']:.2g}, longest {timing['max']:.2g}")
    for part, result in results.items():
        for miss in result["misses"]:
            print(f"{part}, {miss['kind']}: {miss['gold']} | {miss['answer']} | {miss['reason']}")
    arguments = {"data": options.data.name, "seed": options.seed}
    arguments |= {} if options.results is None else {"results": options.results}
    path = harness.write_result("grading", arguments, results=results, seconds=timing)
    print(path)
    return path


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grading", description=description)
    parser.add_argument("--data", type=Path, required=True, help="the folder with the rows")
    parser.add_argument("--seed", type=int, default=0, help="of the wrong answers")
    parser.add_argument(
        "--peer", action=argparse.BooleanOptionalAction, default=True, help="grade with math-verify too"
    )
    parser.add_argument("--results", help="folder for the JSON; by default benchmarks/results")
    return parser.parse_args(args)


if __name__ == "__main__":
    run(parse())
