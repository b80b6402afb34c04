"""The objectives that all laws are tested on. A new objective is one line here."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lit_probsft.head.logits import Outputs
from lit_probsft.objectives import (
    ASFT,
    DEFT,
    DFT,
    EAFT,
    GEM,
    IDFT,
    NLL,
    PSFT,
    SCE,
    TALR,
    Anchored,
    Balanced,
    Brier,
    CapabilityPower,
    Cayley,
    ChordPhi,
    Focal,
    Huber,
    InfoSFT,
    LabelSmoothing,
    LogOneMinusP,
    NegP,
    Objective,
    Poly1,
    Power,
    PowerSchedule,
    QuantileThreshold,
    RunningPower,
    Threshold,
    TokenStats,
    TrSFT,
)
from lit_probsft.training.fitting import Capability


@dataclass(frozen=True)
class EntropyWeighted(Objective):
    """A user's objective that reads statistics of the distribution."""

    def loss(self, tokens: TokenStats):
        return (
            -tokens.log_probs * (1 + tokens.entropy) * tokens.collision - tokens.log_complement.exp() * tokens.log_probs
        )

    @property
    def needs(self):
        return frozenset({"entropy", "collision", "log_complement"})


@dataclass(frozen=True)
class Scheduled(Objective):
    """A user's objective that reads the progress of training."""

    def loss(self, tokens: TokenStats):
        return Power(tokens.progress).loss(tokens)

    @property
    def needs(self):
        return frozenset({"progress"})


OF_P_ALONE = [
    NLL(),
    NegP(),
    Power(0.0),
    Power(1.0),
    Power(0.1),
    Power(0.5),
    Power(10.0),
    Power(1e-13),
    Power(1e-9),
    Power(-0.5),
    Power(-2.0),
    LogOneMinusP(),
    LogOneMinusP(eps=1e-6),
    DFT(),
    Threshold(NLL(), 0.2, 1.0),
    Threshold(NegP(), 0.0, 0.8),
    Threshold(LogOneMinusP(), 0.1, 0.9),
    Threshold(DFT(), 0.3, 0.7),
    Threshold(Threshold(NLL(), 0.2), 0.0, 0.9),
    Focal(),
    Focal(gamma=0.5),
    Huber(),
    Poly1(),
    SCE(),
    TrSFT(),
    ChordPhi(),
    InfoSFT(),
    Cayley(floor=0.0),
    TALR(tau=0.7),
    Balanced(NegP()),
    Balanced(Threshold(TrSFT(), 0.05, 1.0), mean_weight=0.2, target=0.4),
]
WITH_LOGITS = [LabelSmoothing(0.0), LabelSmoothing(0.1), Threshold(LabelSmoothing(0.2), 0.05, 1.0), Brier(), GEM()]
WITH_STATISTICS = [
    EntropyWeighted(),
    Threshold(EntropyWeighted(), 0.01, 1.0),
    DEFT(),
    EAFT(),
    Threshold(EAFT(k=3, alpha=0.5), 0.0, 0.9),
    IDFT(),
    Balanced(Brier(), mean_weight=0.1),
]
HANDED_IN = [
    Cayley(),
    TALR(),
    Scheduled(),
    PowerSchedule(),
    QuantileThreshold(),
    Balanced(QuantileThreshold(DEFT(), keep=0.6, side="bottom"), mean_weight=0.1),
    CapabilityPower(),
    RunningPower(),
    RunningPower(exponent=2.0),
]
WITH_REFERENCE = [
    Anchored(Threshold(NegP(), 0.1), weight=0.5),
    Anchored(LabelSmoothing(), weight=0.3, direction="reverse"),
    ASFT(),
    PSFT(),
]
ALL = [*OF_P_ALONE, *WITH_LOGITS, *WITH_STATISTICS, *HANDED_IN, *WITH_REFERENCE]
QUANTILES = tuple((place - 500) / 100 for place in range(1, 1000))
CONTEXT = {
    "progress": 0.3,
    "batch_mean_p": 0.4,
    "batch_nll": 1.5,
    "capability": Capability(0.3, QUANTILES),
    "running_mean_p": 0.4,
}
"""The head's `context` in tests that do not train."""


def reference(count: int, vocabulary: int) -> Outputs:
    """Fixed outputs of a reference model for `count` tokens."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 5, dtype=torch.float64, generator=generator) for n in (count, vocabulary))
    return Outputs(hidden, weight, logit_scale=0.8, soft_cap=5.0)
