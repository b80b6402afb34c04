"""The objectives f(p): one abstract idea in `base`, one short file per member."""

from lit_probsft.objectives.base import Objective, TokenStats
from lit_probsft.objectives.dft import DFT
from lit_probsft.objectives.label_smoothing import LabelSmoothing
from lit_probsft.objectives.log_one_minus_p import LogOneMinusP
from lit_probsft.objectives.power import NLL, NegP, Power
from lit_probsft.objectives.threshold import Threshold

__all__ = ["DFT", "NLL", "LabelSmoothing", "LogOneMinusP", "NegP", "Objective", "Power", "Threshold", "TokenStats"]
