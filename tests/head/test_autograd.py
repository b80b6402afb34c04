"""torch's private name for a retained graph."""

import pytest
import torch

from lit_probsft.head.autograd import backward_retains_graph


class Spy(torch.autograd.Function):
    seen: list[bool] = []

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        Spy.seen.append(backward_retains_graph())
        return upstream


def test_torch_says_whether_backward_retains_the_graph() -> None:
    Spy.seen.clear()
    loss = Spy.apply(torch.ones(1, requires_grad=True)).sum()
    try:
        loss.backward(retain_graph=True)
        loss.backward()
    except AttributeError as error:
        pytest.fail(f"torch {torch.__version__} has renamed what lit_probsft/head/autograd.py calls: {error}")
    assert Spy.seen == [True, False]
