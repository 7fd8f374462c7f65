"""Hessian spectra per lane: Lanczos, quadrature, certificates, verdict."""

from landscape.spectrum.certificate import VERDICTS
from landscape.spectrum.ends import Extremes
from landscape.spectrum.lanczos import Lanczos
from landscape.spectrum.lane import find_extremes
from landscape.spectrum.measure import extreme_directions, measure_spectrum
from landscape.spectrum.options import SpectrumOptions

__all__ = [
    "VERDICTS",
    "Extremes",
    "Lanczos",
    "SpectrumOptions",
    "extreme_directions",
    "find_extremes",
    "measure_spectrum",
]
