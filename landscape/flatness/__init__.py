"""How flat the loss of every class is, in all the ways that the field measures it."""

from __future__ import annotations

from landscape.flatness.catalogue import MEASURES, Measure, choose_measures
from landscape.flatness.measure import estimate_flatness, measure_flatness
from landscape.flatness.options import EFFORT, FlatnessOptions
from landscape.flatness.study import Estimate, Study

__all__ = [
    "EFFORT",
    "MEASURES",
    "Estimate",
    "FlatnessOptions",
    "Measure",
    "Study",
    "choose_measures",
    "estimate_flatness",
    "measure_flatness",
]
