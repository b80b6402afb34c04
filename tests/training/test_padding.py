"""The pad token makes no difference, even if it is the end-of-turn token or the model has no row for it.

Padding is recognized by its position.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.data import ByteTokenizer, InstructionDataModule
from lit_probsft.objectives import NegP
from lit_probsft.run.export import export_model
from lit_probsft.training.module import Generation, ProbSFTModule
from lit_probsft.training.optim import Schedule
from tests import tiny


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Conversations of one to three rounds, with the end-of-turn token inside documents."""

    def turn(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    turns = [turn(role, f"{i}" * (1 + i % 4)) for i in range(9) for role in ("user", "assistant")]
    lines = [json.dumps({"messages": (turns + turns)[2 * i : 2 * i + 2 + i % 3 * 2]}) for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "rows.jsonl")


def trained(pad: str, rows: str, **options: Any) -> tuple[ProbSFTModule, Any, dict[int, str]]:
    """Train four steps from the same weights with this pad token; return module, tokenizer and all answers."""
    tokenizer = ByteTokenizer().load(list)
    model = tiny.source(tie_word_embeddings=options.pop("tied")).load(tokenizer, torch.float64)
    tokenizer.add_special_tokens({"pad_token": pad})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # the row of the pad token is drawn as zeros otherwise
            parameter.normal_(std=0.2, generator=generator)
    module = ProbSFTModule(
        model, NegP(), optimizer=tiny.sgd, schedule=Schedule("constant", warmup=0), generation=Generation(6)
    )
    data = InstructionDataModule(rows, predict=rows, tokenizer=tokenizer, batch_size=4, **options)
    trainer = tiny.trainer(max_steps=4, max_epochs=4, accumulate_grad_batches=2)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 4
    answers = {}
    for batch in trainer.predict(module, datamodule=data):
        texts = tokenizer.batch_decode(batch["answers"].tolist(), skip_special_tokens=True)
        answers |= dict(zip(batch["documents"].tolist(), texts, strict=True))
    return module, tokenizer, answers


@pytest.mark.parametrize(
    ("pad", "tied", "packing"),
    [
        ("[PAD]", False, False),  # a token of the tokenizer for which the model has no row
        ("<|im_end|>", True, False),
        ("<|im_end|>", False, True),
    ],
)
def test_the_pad_token_changes_neither_training_nor_answers(
    rows: str, pad: str, tied: bool, packing: bool, tmp_path: Path
) -> None:
    packed = {"packing": True, "max_length": 128} if packing else {}
    special, _, answers = trained("<|pad|>", rows, tied=tied, **packed)
    ending, tokenizer, same = trained(pad, rows, tied=tied, **packed)
    moved = tiny.weights(ending)
    for name, weight in tiny.weights(special).items():
        torch.testing.assert_close(moved[name], weight, rtol=0, atol=0)
    assert answers == same
    assert len(answers) == 9

    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_model(ending.model, tokenizer, tmp_path / "hf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").pad_token == pad
    assert loaded.generation_config.eos_token_id == 258


@pytest.mark.parametrize(
    "options", [{}, {"packing": True, "max_length": 128}, {"streaming": True, "shuffle_buffer": 9}]
)
def test_padding_needs_no_row_that_the_documents_do_not_need(rows: str, options: dict[str, Any]) -> None:
    tokenizer = ByteTokenizer().load(list)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    data = InstructionDataModule(rows, predict=rows, tokenizer=tokenizer, batch_size=4, **options)
    data.trainer = tiny.trainer(max_steps=3, accumulate_grad_batches=2)
    data.setup()
    batches = [*data.train_dataloader(), *data.predict_dataloader()]
    padding = torch.cat([batch["input_ids"][batch["attention_mask"] == 0] for batch in batches])
    assert len(padding)
    assert options or any(not len(batch["documents"]) for batch in batches)  # an empty micro-batch
    assert max(int(batch["input_ids"].max()) for batch in batches) == 258 < tokenizer.pad_token_id


def test_the_end_of_turn_token_is_trained_if_it_is_also_the_pad_token(rows: str) -> None:
    """Torch gives the embedding of the pad token no gradient."""
    after = trained("<|im_end|>", rows, tied=False)[0].model.get_input_embeddings().weight
    before = torch.empty_like(after).normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    moved = (after - before).detach().abs().amax(-1)
    assert moved[258] > 1e-5
    assert moved[0] == 0  # in no document
