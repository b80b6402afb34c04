"""The loss of a step is divided as `normalize` says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.errors import UserError
from lit_probsft.objectives import NLL, Threshold
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule
from tests import tiny


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 20)


def by_hand(model: Any, batches: list[dict[str, Any]], normalize: str) -> torch.Tensor:
    """The loss of a step from the model's own logits: NLL where p >= .004, divided as `normalize` says."""
    numerators, kept, counts = [], [], []
    for batch in batches:
        log_p = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
        target = batch["labels"][:, 1:]
        picked = log_p.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        supervised = target != -100
        inside = supervised & (picked >= math.log(0.004))
        numerators.append((-picked * inside).sum(-1))
        kept.append(inside.sum(-1))
        counts.append(supervised.sum(-1))
    if normalize == "micro_batch":
        return sum(n.sum() / k.sum() for n, k in zip(numerators, kept, strict=True))
    n, k, c = (torch.cat(parts) for parts in (numerators, kept, counts))
    return {"tokens": n.sum() / c.sum(), "kept": n.sum() / k.sum(), "sequence": (n / c).mean()}[normalize]


@pytest.mark.parametrize("normalize", ["tokens", "sequence", "kept", "micro_batch"])
def test_a_step_follows_the_gradient_that_normalize_defines(rows: Path, normalize: Any) -> None:
    objective = Threshold(NLL(), 0.004)
    module = ProbSFTModule(
        tiny.model(torch.float64), objective, tiny.sgd, schedule=Schedule("constant", 0), normalize=normalize
    )
    datamodule = tiny.data(rows, batch_size=4, length_pool=0)
    run = tiny.trainer(accumulate_grad_batches=2, max_steps=1)
    run.fit(module, datamodule=datamodule)
    reference = tiny.model(torch.float64)
    loss = by_hand(reference, list(datamodule.train_dataloader())[:2], normalize)
    loss.backward()
    assert 0 < float(run.callback_metrics["train/inside"]) < 1
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter -= 0.1 * parameter.grad
    # RMSNorm rounds to fp32 inside, whatever the dtype of the model
    tiny.assert_close(tiny.weights(module), reference.state_dict(), 1e-7)


def test_the_auxiliary_loss_of_a_mixture_of_experts_is_trained_on(rows: Path) -> None:
    """With an objective without loss on any token, only the auxiliary loss changes the weights, once per step."""
    experts = {
        "model_type": "mixtral",
        "num_local_experts": 4,
        "output_router_logits": True,
        "router_aux_loss_coef": 1.0,
    }
    moved = []
    for accumulate in (1, 2):
        module = ProbSFTModule(
            tiny.model(**experts), Threshold(NLL(), 0.999), tiny.sgd, schedule=Schedule("constant", 0)
        )
        before = tiny.weights(module)
        tiny.trainer(accumulate_grad_batches=accumulate, max_steps=1).fit(
            module, datamodule=tiny.data(rows, batch_size=8 // accumulate, length_pool=0)
        )
        after = tiny.weights(module)
        moved.append(math.sqrt(sum(float((after[k] - before[k]).square().sum()) for k in before)))
    assert moved[0] > 0
    assert moved[1] == pytest.approx(moved[0], rel=0.5)


def test_kept_with_an_auxiliary_loss_is_refused(rows: Path) -> None:
    experts = {"model_type": "mixtral", "num_local_experts": 4, "output_router_logits": True}
    module = ProbSFTModule(tiny.model(**experts), NLL(), tiny.sgd, normalize="kept")
    with pytest.raises(UserError, match="model.normalize: kept"):
        tiny.trainer().fit(module, datamodule=tiny.data(rows))


def test_the_papers_normalization_depends_on_the_number_of_micro_batches(rows: Path) -> None:
    """`micro_batch` sums means of micro-batches: twice as many of them make the gradient about twice as large."""
    options = {"normalize": "micro_batch", "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    start = tiny.weights(ProbSFTModule(tiny.model(torch.float64)))

    def first_step(batch_size: int, accumulate: int) -> float:
        module = ProbSFTModule(tiny.model(torch.float64), NLL(), schedule=Schedule("constant", 0), **options)
        tiny.trainer(accumulate_grad_batches=accumulate, max_steps=1).fit(
            module, datamodule=tiny.data(rows, batch_size=batch_size, length_pool=0)
        )
        after = tiny.weights(module)
        return math.sqrt(sum(float((after[k] - start[k]).square().sum()) for k in start))

    assert first_step(2, 4) / first_step(8, 1) == pytest.approx(4, rel=0.5)


def test_batches_of_another_loader_are_refused_by_their_missing_keys(rows: Path) -> None:
    batch = {"input_ids": torch.zeros(1, 4, dtype=torch.long), "labels": torch.zeros(1, 4, dtype=torch.long)}
    module = ProbSFTModule(tiny.model(), NLL(), optimizer=tiny.sgd)
    with pytest.raises(UserError, match="window_tokens"):
        tiny.trainer(max_steps=1).fit(module, torch.utils.data.DataLoader([batch], batch_size=None))
