"""The loss head: forward and backward of N tokens, hidden states and output weight in, their gradients out.

    python -m benchmarks.head
    python -m benchmarks.head --dtype bfloat16
    python -m benchmarks.head --device cuda            # 8192 x 4096 x 151936, bfloat16

Every variant starts from the same tensors and returns the sum over tokens. Ratios are to PyTorch's own chunked
cross-entropy. Memory is the peak that one call adds, with the gradients that it leaves; on CPU it is the growth of a
fresh process.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import harness
from lit_probsft import objective_loss
from lit_probsft.objectives import DFT, NLL, LabelSmoothing, LogOneMinusP, NegP, Objective, Power, Threshold

FULL, TORCH_SUM, TORCH_TOKENS, PRODUCTS = (
    "full logits, NLL",
    "torch chunked sum, NLL",
    "torch chunked per token, NegP",
    "three bare products",
)

OBJECTIVES: dict[str, Objective] = {
    "NLL": NLL(),
    "NegP": NegP(),
    "Power(10)": Power(10.0),
    "LogOneMinusP": LogOneMinusP(),
    "Threshold(NLL, 0.2)": Threshold(NLL(), min_prob=0.2),
    "DFT": DFT(),
    "LabelSmoothing(0.1)": LabelSmoothing(0.1),
}

SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"tokens": 2048, "hidden": 512, "vocab": 32000, "dtype": "float32"},
    "cuda": {"tokens": 8192, "hidden": 4096, "vocab": 151936, "dtype": "bfloat16"},
}


@dataclass
class Problem:
    """N hidden states, a (V, H) weight and N labels."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor

    def forget(self) -> None:
        """Drop the gradients."""
        self.hidden.grad = self.weight.grad = None

    def gradient_norms(self) -> dict[str, float]:
        """Norms of the gradients of the last variant; 0 if it has none."""
        names = {"hidden_gradient_norm": self.hidden, "weight_gradient_norm": self.weight}
        return {name: 0.0 if x.grad is None else float(x.grad.float().norm()) for name, x in names.items()}


def make_problem(tokens: int, hidden: int, vocab: int, dtype: str, device: str) -> Problem:
    """Hidden states that point to their labels with random strength, so that p is between nearly 0 and nearly 1."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocab, hidden, generator=generator).div_(math.sqrt(hidden))
    labels = torch.randint(vocab, (tokens,), generator=generator)
    strength = torch.rand(tokens, 1, generator=generator) * 2 * math.log(vocab)
    states = torch.randn(tokens, hidden, generator=generator).addcmul_(strength, weight[labels])
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    return Problem(states.to(**kind).requires_grad_(), weight.to(**kind).requires_grad_(), labels.to(device))


def exact_nll(problem: Problem) -> float:
    """Sum of NLL in float64, a few rows at a time."""
    total, weight = 0.0, problem.weight.detach().double()
    for h, y in zip(problem.hidden.detach().split(128), problem.labels.split(128), strict=True):
        total += float(F.cross_entropy(h.double() @ weight.t(), y, reduction="sum"))
    return total


def full_logits(problem: Problem) -> dict[str, float]:
    """All logits at once, in fp32 for narrower input, as in transformers."""
    # No name refers to the logits, so they are freed as soon as the log-softmax is computed.
    log_probs = F.linear(problem.hidden, problem.weight).float().log_softmax(-1)
    nll = -log_probs.gather(-1, problem.labels.unsqueeze(-1)).sum()
    nll.backward()
    return {"nll": nll.item()}


def torch_sum(problem: Problem) -> dict[str, float]:
    """PyTorch's chunked cross-entropy, which also computes gradients in forward, but only of NLL."""
    nll = F.linear_cross_entropy(
        problem.hidden, problem.weight, problem.labels, reduction="sum", options=torch.nn.LinearCrossEntropyOptions()
    )
    nll.backward()
    return {"nll": nll.item()}


def torch_tokens(problem: Problem) -> dict[str, float]:
    """PyTorch's chunked cross-entropy of each token and f = 1 - p on top, which is how it can compute any f(p)."""
    nll = F.linear_cross_entropy(
        problem.hidden, problem.weight, problem.labels, reduction="none", options=torch.nn.LinearCrossEntropyOptions()
    )
    loss = -torch.expm1(-nll).sum()
    loss.backward()
    return {"nll": nll.detach().double().sum().item(), "loss": loss.item()}


def bare_products(problem: Problem) -> dict[str, float]:
    """Only the three matrix products (logits, dHidden, dWeight): the lower bound with the same multiplication."""
    hidden, weight = problem.hidden.detach(), problem.weight.detach()
    logits = hidden @ weight.t()
    problem.hidden.grad, problem.weight.grad = logits @ weight, logits.t() @ hidden
    return {}


def ours(problem: Problem, objective: Objective) -> dict[str, float]:
    """`objective_loss`; NLL comes from the statistics that it returns with the loss."""
    output = objective_loss(problem.hidden, problem.weight, problem.labels, objective, normalizer=1)
    output.loss.backward()
    return {"nll": -output.log_probs.double().sum().item(), "loss": output.loss.item()}


def calls() -> dict[str, Callable[[Problem], Mapping[str, float]]]:
    """Every variant that this PyTorch can run, by name."""
    theirs: dict[str, Callable[[Problem], Mapping[str, float]]] = {FULL: full_logits}
    if hasattr(F, "linear_cross_entropy"):
        theirs |= {TORCH_SUM: torch_sum, TORCH_TOKENS: torch_tokens}
    theirs[PRODUCTS] = bare_products
    return theirs | {f"ours, {name}": _Ours(objective) for name, objective in OBJECTIVES.items()}


@dataclass(frozen=True)
class _Ours:
    objective: Objective

    def __call__(self, problem: Problem) -> dict[str, float]:
        return ours(problem, self.objective)


def _for_memory(name: str, sizes: Mapping[str, Any], threads: int) -> Callable[[], Any]:
    """In a fresh process: warm up on a small problem and return the call of a variant on the whole problem."""
    torch.set_num_threads(threads)
    call = calls()[name]
    # The same hidden size makes the libraries set up the same kernels. With fewer rows PyTorch would not use chunks.
    call(make_problem(sizes["hidden"], sizes["hidden"], 2 * sizes["hidden"], sizes["dtype"], "cpu"))
    problem = make_problem(**sizes, device="cpu")
    return lambda: call(problem)


def run(options: argparse.Namespace) -> Path:
    """Time all variants, measure their memory, compare their values and write the result."""
    torch.set_num_threads(options.threads)
    cuda = options.device == "cuda"
    sizes = {name: getattr(options, name) for name in ("tokens", "hidden", "vocab", "dtype")}
    problem = make_problem(**sizes, device=options.device)
    chosen = calls()
    skipped = [name for name in (TORCH_SUM, TORCH_TOKENS) if name not in chosen]

    def variant(call: Callable[[Problem], Mapping[str, float]]) -> Callable[[], Mapping[str, float]]:
        def fresh() -> Mapping[str, float]:
            problem.forget()
            return call(problem)

        return fresh

    variants = [harness.Variant(name, variant(call)) for name, call in chosen.items()]
    timings = harness.time_variants(
        variants,
        rounds=options.rounds,
        synchronize=torch.cuda.synchronize if cuda else lambda: None,
        inspect=problem.gradient_norms,
        report=harness.say,
    )
    memory = {}
    for v in variants:
        if cuda:
            problem.forget()
            memory[v.name] = harness.cuda_extra_bytes(v.call)
        else:
            memory[v.name] = harness.peak_extra_bytes(_for_memory, v.name, sizes, options.threads)
        harness.say(f"memory: {v.name} {memory[v.name] / harness.MIB:.0f} MiB")

    seconds = {name: timing.seconds for name, timing in timings.items()}
    cpu_seconds = {name: timing.cpu_seconds for name, timing in timings.items()}
    references = [name for name in (FULL, TORCH_SUM, TORCH_TOKENS) if name in seconds]
    relative = {name: harness.ratios(seconds, name) for name in references}
    # With bfloat16 input, logits (full) or NLL (torch, per token) are rounded, and so agree only to that precision.
    tolerance = 1e-6 if options.dtype == "float32" else 2e-2
    nll = {name: t.values["nll"] for name, t in timings.items() if "nll" in t.values}
    agreed = harness.agreement(nll, exact_nll(problem), tolerance)
    products = 3 * 2 * options.tokens * options.hidden * options.vocab
    rows = [
        {
            "variant": name,
            "seconds": harness.significant(timing.summary()["seconds"]["median"], 3),
            **{f"x {short}": relative[key][name] for key, short in _SHORT.items() if key in relative},
            "extra MiB": round(memory[name] / harness.MIB),
        }
        for name, timing in timings.items()
    ]
    path = harness.write_result(
        "head",
        vars(options),
        options.device,
        label="" if options.dtype == SIZES[options.device]["dtype"] else options.dtype,
        skipped=dict.fromkeys(skipped, "this PyTorch has no F.linear_cross_entropy"),
        variants={
            name: {
                **timing.summary(),
                "extra_memory_mib": harness.significant(memory[name] / harness.MIB),
                "product_gflops_per_second": harness.significant(products / min(timing.seconds) / 1e9),
            }
            for name, timing in timings.items()
        },
        time_ratios={f"to {name}": values for name, values in relative.items()},
        cpu_time_ratios={} if cuda else {f"to {name}": harness.ratios(cpu_seconds, name) for name in references},
        memory_ratios={
            f"to {FULL}": {name: harness.significant(size / memory[FULL]) for name, size in memory.items()},
        },
        nll_agreement=agreed,
    )
    print(harness.table(rows))
    print(f"\nNLL of all variants within {tolerance:g} of float64, relatively: {agreed['agree']}\n{path}")
    return path


_SHORT = {FULL: "full", TORCH_SUM: "torch sum", TORCH_TOKENS: "torch per token"}


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options; sizes default to those of the device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    for name in ("tokens", "hidden", "vocab"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", help="folder for the JSON; by default benchmarks/results")
    options = parser.parse_args(args)
    for name, value in SIZES[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


if __name__ == "__main__":
    run(parse())
