"""How probable a model finds the reference answer and the choices of a question, without generating.

An answer is tokenized as in training: it is the assistant's last turn of the question's conversation. The tokens that
training supervises are measured, including the one that ends the turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_probsft.data.batches.collate import collate
from lit_probsft.data.batches.plan import MicroBatch
from lit_probsft.data.rows.conversation import Message
from lit_probsft.data.tokens.tokenization import tokenize_conversation
from lit_probsft.errors import errors_within
from lit_probsft.evaluation.tasks.base import Question
from lit_probsft.head.loss import IGNORE_INDEX
from lit_probsft.model.modes import evaluation_mode
from lit_probsft.training.probing import token_statistics


class _Document(NamedTuple):
    """An answer after its prompt: the row that gets its values, the label of a choice, token ids and labels (T,)."""

    row: dict[str, Any]
    label: str | None
    ids: list[int]
    labels: list[int]


def likelihoods(
    model: Any,
    tokenizer: Any,
    items: Sequence[tuple[Sequence[Message], Question]],
    *,
    template_options: Mapping[str, Any] | None = None,
    batch_tokens: int = 8192,
) -> Iterator[dict[str, Any]]:
    """Measure the references and choices of questions, the longest question first.

    Args:
        model: a causal LM. Its output layer becomes an `ObjectiveHead`, which changes nothing else that it does.
        tokenizer: of the model.
        items: the conversation up to the answer, as the model is asked it, and the question.
        template_options: further names that the chat template reads.
        batch_tokens: the most tokens of a batch, with padding; a longer answer has a batch of its own.

    Yields:
        For each question: `question`, its id; of its reference the number of `tokens`, the mean `nll` (nats) and
        `mean_p` over them; and `choices`, for each label `logp`, the sum of log p over its `tokens`. Without a
        reference, or with one that does not fit the model's context, `tokens` is 0 and the means are None. If a choice
        does not fit, `choices` is empty.

    Raises:
        UserError: the template refuses a conversation; or as `install_head`.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
    questions: list[tuple[dict[str, Any], list[_Document]]] = []
    for messages, question in items:
        row: dict[str, Any] = {"question": question.id, "tokens": 0, "nll": None, "mean_p": None, "choices": {}}
        documents = []
        for label, answer in [(None, question.reference), *(question.answers or question.choices).items()]:
            conversation = [*messages, {"role": "assistant", "content": answer}]
            if answer:
                with errors_within("", f" (question {question.id})"):
                    tokens = tokenize_conversation(
                        tokenizer, conversation, template_options=template_options, turns="last"
                    )
                documents.append(_Document(row, label, tokens["input_ids"], tokens["labels"]))
        too_long = {document.label is None for document in documents if len(document.ids) > limit}
        questions.append((row, [document for document in documents if (document.label is None) not in too_long]))
    questions.sort(key=lambda each: -max((len(document.ids) for document in each[1]), default=0))
    batch: list[_Document] = []
    finished: list[dict[str, Any]] = []
    for row, documents in questions:
        for document in documents:
            width = max(len(each.ids) for each in [*batch, document])
            if batch and (len(batch) + 1) * width > batch_tokens:
                _measure(model, batch)
                yield from finished
                batch, finished = [], []
            batch.append(document)
        finished.append(row)
    if batch:
        _measure(model, batch)
    yield from finished


@torch.no_grad()
def _measure(model: Any, batch: Sequence[_Document]) -> None:
    """Write the values of some documents into their rows."""
    micro_batch = MicroBatch(tuple(range(len(batch))), 0, 0, 0)
    tensors = collate(micro_batch, [(document.ids, document.labels) for document in batch], pad_token_id=0)
    device = model.get_output_embeddings().weight.device
    tensors = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in tensors.items()}
    with evaluation_mode(model):
        log_p = token_statistics(model, tensors, ()).log_probs.cpu().double()
    of_document, _ = (tensors["labels"][:, 1:].cpu() != IGNORE_INDEX).nonzero(as_tuple=True)
    columns = torch.stack([torch.ones_like(log_p), log_p, log_p.exp()], -1)
    sums = log_p.new_zeros(len(batch), 3).index_add_(0, of_document, columns).tolist()
    for document, (tokens, logp, p) in zip(batch, sums, strict=True):
        if document.label is None:
            document.row.update(tokens=int(tokens), nll=-logp / tokens, mean_p=p / tokens)
        else:
            document.row["choices"][document.label] = {"logp": logp, "tokens": int(tokens)}


def is_likelihood(content: Mapping[str, Any]) -> bool:
    """Whether an object is a row of `likelihoods` with its task; raises if it has another shape."""
    numbers = [each["logp"] for each in content["choices"].values()]
    numbers += [content["nll"], content["mean_p"]] if content["tokens"] else []
    named = isinstance(content["task"], str) and isinstance(content["question"], str)
    return named and type(content["tokens"]) is int and all(isinstance(number, float) for number in numbers)


def summarize_likelihoods(rows: Sequence[Mapping[str, Any]], questions: Sequence[Question]) -> dict[str, Any]:
    """Summarize the rows of `likelihoods`.

    Returns:
        `questions` and `tokens`, the number of measured references and their tokens; `nll` (nats) and `mean_p`, means
        over these tokens; `choice_accuracy`, the share of questions whose most probable choice is right, and
        `choice_accuracy_normalized`, the same by log p per byte of its answer. None where nothing was measured, or
        the NLL is infinite.
    """
    by_id = {question.id: question for question in questions}
    measured = [row for row in rows if row["tokens"]]
    tokens = sum(row["tokens"] for row in measured)
    sums = {name: sum(row[name] * row["tokens"] for row in measured) for name in ("nll", "mean_p")}
    # JSON has no infinity, which is the NLL of a token that the model rules out.
    means = {name: total / tokens if tokens and math.isfinite(total) else None for name, total in sums.items()}
    plain, normalized = [], []
    for row in rows:
        question, logp = by_id[row["question"]], {label: each["logp"] for label, each in row["choices"].items()}
        if not logp:
            continue
        gold = question.gold if isinstance(question.gold, list) else [question.gold]
        right = {label for label, text in question.choices.items() if label in gold or text in gold}
        answers = question.answers or question.choices
        per_byte = {label: value / len(answers[label].encode()) for label, value in logp.items()}
        plain.append(max(logp, key=logp.__getitem__) in right)
        normalized.append(max(per_byte, key=per_byte.__getitem__) in right)
    return {
        "questions": len(measured),
        "tokens": tokens,
        **means,
        "choice_accuracy": sum(plain) / len(plain) if plain else None,
        "choice_accuracy_normalized": sum(normalized) / len(normalized) if normalized else None,
    }
