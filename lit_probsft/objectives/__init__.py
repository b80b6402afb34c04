"""The objectives f(p): the base class in `base`, one short file per member, and README.md as their table."""

from lit_probsft.objectives.anchored import ASFT, Anchored
from lit_probsft.objectives.balanced import Balanced
from lit_probsft.objectives.base import Objective, TokenStats
from lit_probsft.objectives.brier import Brier
from lit_probsft.objectives.capability_power import CapabilityPower, RunningPower
from lit_probsft.objectives.cayley import Cayley
from lit_probsft.objectives.chord_phi import ChordPhi
from lit_probsft.objectives.deft import DEFT
from lit_probsft.objectives.dft import DFT
from lit_probsft.objectives.eaft import EAFT
from lit_probsft.objectives.focal import Focal
from lit_probsft.objectives.gem import GEM
from lit_probsft.objectives.huber import Huber
from lit_probsft.objectives.idft import IDFT
from lit_probsft.objectives.infosft import InfoSFT
from lit_probsft.objectives.label_smoothing import LabelSmoothing
from lit_probsft.objectives.log_one_minus_p import LogOneMinusP
from lit_probsft.objectives.poly1 import Poly1
from lit_probsft.objectives.power import NLL, NegP, Power
from lit_probsft.objectives.power_schedule import PowerSchedule
from lit_probsft.objectives.psft import PSFT
from lit_probsft.objectives.quantile_threshold import QuantileThreshold
from lit_probsft.objectives.sce import SCE
from lit_probsft.objectives.talr import TALR
from lit_probsft.objectives.threshold import Threshold
from lit_probsft.objectives.trsft import TrSFT

__all__ = [
    "ASFT",
    "DEFT",
    "DFT",
    "EAFT",
    "GEM",
    "IDFT",
    "NLL",
    "PSFT",
    "SCE",
    "TALR",
    "Anchored",
    "Balanced",
    "Brier",
    "CapabilityPower",
    "Cayley",
    "ChordPhi",
    "Focal",
    "Huber",
    "InfoSFT",
    "LabelSmoothing",
    "LogOneMinusP",
    "NegP",
    "Objective",
    "Poly1",
    "Power",
    "PowerSchedule",
    "QuantileThreshold",
    "RunningPower",
    "Threshold",
    "TokenStats",
    "TrSFT",
]
