"""Hessian spectra per lane: Lanczos, quadrature, certificates, verdict."""

from landscape.spectrum.certificate import VERDICTS
from landscape.spectrum.lanczos import Lanczos
from landscape.spectrum.lane import Extremes, SpectrumOptions, find_extremes
from landscape.spectrum.measure import extreme_directions, measure_spectrum

__all__ = [
    "VERDICTS",
    "Extremes",
    "Lanczos",
    "SpectrumOptions",
    "extreme_directions",
    "find_extremes",
    "measure_spectrum",
]
