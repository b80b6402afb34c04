"""Likelihoods of references and choices against plain loops over full logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.data import ByteTokenizer, Rows
from lit_probsft.data.tokens.tokenization import tokenize_conversation
from lit_probsft.errors import UserError
from lit_probsft.evaluation.likelihood import likelihoods, summarize_likelihoods
from lit_probsft.evaluation.tasks.base import Question
from lit_probsft.objectives import NLL
from lit_probsft.training.module import ProbSFTModule
from tests import tiny

SYSTEM = {"role": "system", "content": "Answer."}


def question(number: int, **fields: Any) -> Question:
    messages = [{"role": "user", "content": f"{number} + " * number + "1 ="}]
    return Question(str(number), messages, **{"gold": "B", "reference": str(number) * (number + 1), **fields})


def questions() -> list[Question]:
    choices = {"A": "four", "B": "five or so", "C": "6"}
    return [question(1), question(2, choices=choices), question(3, choices=choices), question(4, reference="")]


def items() -> list[Any]:
    return [([SYSTEM, *each.messages], each) for each in questions()]


def by_id(rows: Any) -> dict[str, Any]:
    return {row["question"]: row for row in rows}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return ByteTokenizer().load(list)


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_likelihoods_equal_those_from_full_logits_whatever_the_batches(tokenizer: Any, batch_tokens: int) -> None:
    plain, model = tiny.model(torch.float64), tiny.model(torch.float64)
    rows = by_id(likelihoods(model, tokenizer, items(), batch_tokens=batch_tokens))
    for messages, each in items():
        row = rows.pop(each.id)
        for label, answer in {None: each.reference, **each.choices}.items():
            if not answer:
                assert (row["tokens"], row["nll"], row["mean_p"]) == (0, None, None)
                continue
            conversation = [*messages, {"role": "assistant", "content": answer}]
            tokens = tokenize_conversation(tokenizer, conversation)
            ids = torch.tensor([tokens["input_ids"]])
            with torch.no_grad():
                log_probs = plain(input_ids=ids).logits[0].log_softmax(-1)
            answer_ids = [*answer.encode(), 258]  # 258 ends the turn, and the template adds a newline
            start = ids.shape[1] - len(answer_ids) - 1
            assert tokens["input_ids"][start:-1] == answer_ids
            log_p = torch.stack([log_probs[start + i - 1, token] for i, token in enumerate(answer_ids)])
            if label is None:
                assert row["tokens"] == len(answer_ids)
                assert row["nll"] == pytest.approx(-float(log_p.mean()), rel=1e-10)
                assert row["mean_p"] == pytest.approx(float(log_p.exp().mean()), rel=1e-10)
            else:
                assert row["choices"][label] == {
                    "logp": pytest.approx(float(log_p.sum()), rel=1e-10),
                    "tokens": len(answer_ids),
                }
        assert set(row["choices"]) == set(each.choices)
    assert not rows


def test_nll_and_mean_p_are_those_that_validate_measures_on_the_same_rows(tmp_path: Path, tokenizer: Any) -> None:
    path = tiny.write_rows(tmp_path / "rows.jsonl")
    asked = [
        Question(str(i), [{"role": "user", "content": row["question"]}], None, row["answer"])
        for i, row in enumerate(map(json.loads, path.read_text().splitlines()))
    ]
    rows = list(likelihoods(tiny.model(), tokenizer, [(each.messages, each) for each in asked]))
    summary = summarize_likelihoods(rows, asked)
    data = tiny.data(path, validation=Rows(str(path), prompt="question", response="answer"))
    (metrics,) = tiny.trainer().validate(ProbSFTModule(tiny.model(), NLL()), datamodule=data, verbose=False)
    assert summary["questions"] == len(asked)
    assert summary["nll"] == pytest.approx(metrics["val/nll"], rel=1e-6)
    assert summary["mean_p"] == pytest.approx(metrics["val/mean_p"], rel=1e-6)


def test_means_are_over_tokens_and_the_most_probable_choice_counts() -> None:
    choices = {"A": "a", "B": "b" * 10}
    asked = [Question("1", [], "B", "x", choices), Question("2", [], ["b" * 10], "x", choices), Question("3", [], "A")]
    more_probable = {"A": {"logp": -3.0, "tokens": 2}, "B": {"logp": -5.0, "tokens": 11}}  # B has more per byte
    rows = [
        {"question": "1", "tokens": 1, "nll": 1.0, "mean_p": 0.4, "choices": more_probable},
        {"question": "2", "tokens": 3, "nll": 2.0, "mean_p": 0.2, "choices": {**more_probable, "B": {"logp": -2.0}}},
        {"question": "3", "tokens": 0, "nll": None, "mean_p": None, "choices": {}},
    ]
    assert summarize_likelihoods(rows, asked) == {
        "questions": 2,
        "tokens": 4,
        "nll": 7 / 4,
        "mean_p": pytest.approx(0.25),
        "choice_accuracy": 0.5,
        "choice_accuracy_normalized": 1.0,
    }
    assert set(summarize_likelihoods(rows[2:], asked).values()) == {0, None}


def test_what_does_not_fit_the_context_is_not_measured(tokenizer: Any) -> None:
    choices = {"A": "a", "B": "b"}
    asked = [question(1, reference="long " * 60, choices=choices), question(2, choices={**choices, "B": "b" * 300})]
    rows = by_id(likelihoods(tiny.model(), tokenizer, [(each.messages, each) for each in asked]))
    assert (rows["1"]["tokens"], rows["1"]["nll"], list(rows["1"]["choices"])) == (0, None, ["A", "B"])
    assert (rows["2"]["tokens"], rows["2"]["choices"]) == (4, {})


def test_a_refused_conversation_names_its_question(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "a"}]
    refusing = ByteTokenizer().load(list)
    refusing.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(UserError, match="question 7"):
        list(likelihoods(tiny.model(), refusing, [(messages, Question("7", messages, "a", "b"))]))
