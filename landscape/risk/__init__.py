"""The risk split by class: toys and networks behind one protocol."""

from landscape.risk.analytic import AnalyticRisk
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.lanes import GroupAverage, LaneChoice, Lanes, choose_lanes, lanes_of
from landscape.risk.model import ModelRisk
from landscape.risk.protocol import ClassRisk, HessianProduct

__all__ = [
    "AnalyticRisk",
    "ClassRisk",
    "GroupAverage",
    "HessianProduct",
    "LaneChoice",
    "Lanes",
    "ModelRisk",
    "choose_lanes",
    "lanes_of",
    "precise_arithmetic",
]
