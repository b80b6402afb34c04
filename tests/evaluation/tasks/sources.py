"""Two rows of each source in its real shape, on the hub and in local files, and their right answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """Rows as one source stores them. `file` is relative to `--data-dir`; None is for the hub's columns."""

    task: str
    file: str | None
    rows: Any
    golds: list[str]


SUM = "What is $1+1$?"
HALF = r"Find \frac{2}{4}."
SOLUTION = r"We have $1+1 = \boxed{1}$, no, \boxed{\text{2}}."
OPTIONS = {"A": "aspirin", "B": "zinc", "C": "iron", "D": "tin"}
EXAM = {"question": "Which one is a drug?", "options": OPTIONS, "answer_idx": "A", "answer": "aspirin"}
STUDY = {
    "QUESTION": "Does it help?",
    "CONTEXTS": ["It did.", "In mice."],
    "LONG_ANSWER": "It may.",
    "final_decision": "yes",
}
SCIENCE = {
    "id": "7-980",
    "question_stem": "Frilled sharks live",
    "choices": {"text": ["deep", "on land", "in trees", "in soup"], "label": ["A", "B", "C", "D"]},
    "answerKey": "B",
}
WOLOF = {"question_id": 70, "question": "Lan la?", **{f"option_{i}": f"tontu {i}" for i in range(8)}}
WOLOF |= {"option_8": None, "option_9": "N/A", "answer": "C", "answer_index": 2, "category": "law"}
PUZZLE = {"prompt": "Which word is this?\n# # #\n## ##", "response": "WORD"}

SHAPES = [
    Shape(
        "math500",
        "math/math_oai.jsonl",
        [
            {"problem": SUM, "solution": SOLUTION, "answer": r"\text{2}", "unique_id": f"test/{i}.json"}
            for i in range(2)
        ],
        [r"\text{2}"] * 2,
    ),
    Shape("minerva_math", "math/minerva_math.jsonl", [{"problem": SUM, "solution": SOLUTION, "idx": 0}], [r"\text{2}"]),
    Shape("minerva_math", None, [{"question": SUM, "answer": "4.5e33"}], ["4.5e33"]),
    Shape(
        "olympiadbench",
        "math/olympiadbench.jsonl",
        [{"id": 1606, "context": None, "question": SUM, "solution": ["Two.", "2."], "final_answer": ["$2^{1}$"]}],
        ["2^{1}"],
    ),
    Shape("aime24", "aime24/test.jsonl", [{"id": 60, "problem": SUM, "solution": SOLUTION, "answer": "025"}], ["025"]),
    Shape("aime24", None, [{"id": 60, "problem": SUM, "solution": r"\boxed{204}", "url": "x"}], ["204"]),
    Shape("aime25", "math/aime25.jsonl", [{"question": SUM, "answer": r"336^\circ"}], [r"336^\circ"]),
    Shape("aime25", None, [{"problem": SUM, "answer": "70", "id": "0"}], ["70"]),
    Shape("amc23", "amc23.jsonl", [{"id": 0, "problem": SUM, "question": SUM, "answer": 27.0}], ["27"]),
    Shape(
        "gsm8k",
        "gsm8k/test.jsonl",
        [{"question": SUM, "answer": "1+1=<<1+1=2>>2\n#### 1,450"}, {"question": HALF, "answer": "#### 0.5"}],
        ["1,450", "0.5"],
    ),
    Shape(
        "medical", "m1_eval_data.json", {"NEJM": [EXAM, EXAM], "Lancet": [{**EXAM, "answer_idx": "D"}]}, ["A", "A", "D"]
    ),
    Shape("pubmedqa", "pubmedqa/ori_pqal.json", {"11": STUDY, "12": {**STUDY, "final_decision": "no"}}, ["yes", "no"]),
    Shape(
        "pubmedqa",
        None,
        [{"pubid": 11, "question": "Does it?", "context": {"contexts": ["It did."]}, "final_decision": "maybe"}],
        ["maybe"],
    ),
    Shape("openbookqa", "openbookqa/test.jsonl", [SCIENCE, {**SCIENCE, "id": "8"}], ["B", "B"]),
    Shape("mmlu_prox/wo", "mmlu_prox/wo.jsonl", [WOLOF, {**WOLOF, "question_id": 71}], ["C", "C"]),
    Shape("figlet", None, [PUZZLE], ["WORD"]),
]


def write(path: Path, rows: Any) -> Path:
    """Write rows as the file's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) + "\n" for row in rows] if path.suffix == ".jsonl" else [json.dumps(rows)]
    path.write_text("".join(lines))
    return path
