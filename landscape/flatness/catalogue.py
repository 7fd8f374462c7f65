"""Every measure of flatness in one table: its function, formula, source, critique, units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from landscape.errors import unknown_name
from landscape.flatness.averages import (
    adaptive_mean_increase,
    filter_relative_increase,
    lpf_increase,
    mean_increase,
    normalised_mean_increase,
)
from landscape.flatness.radii import loss_radius
from landscape.flatness.relative import relative_flatness
from landscape.flatness.slopes import fisher_rao_norm, gradient_norm, radial_slope
from landscape.flatness.study import Estimate, Study
from landscape.flatness.worst_cases import (
    adaptive_one_step_increase,
    adaptive_worst_case_increase,
    adaptive_worst_case_linf_increase,
    m_sharpness,
    normalised_worst_case_increase,
    one_step_increase,
    worst_case_increase,
    worst_case_linf_increase,
)

# What a measure computes: evaluations at random weights, an ascent per lane, one per batch, one pass over the examples, or
# walks outwards until the loss has risen.
Family = Literal["average", "worst case", "batches", "pass", "radius"]

NATS = "nats per example"
PAIRS = "estimated; error: standard error over antithetic pairs, images as given"
BOUND = "lower bound of the maximum: the best of an ascent"
STEP = "exact for the step; a lower bound of the worst case"
IMAGES = "exact over the examples to rounding; error: standard error of these images as a sample, classes as strata"

DINH = "rescaling layers changes it and not the function (Dinh 2017)"
RATE = "often unrelated to generalisation, follows the learning rate (Andriushchenko 2023)"
GRADIENT = "about radius times gradient norm where the class is not stationary"
CONFIDENCE = "falls with confidence: p (1 - p)"
KINKS = (
    "sigma^2 / 2 tr H + O(sigma^4) only for smooth losses: kinks (ReLU, max pooling) carry curvature that tr H lacks"
)


@dataclass(frozen=True)
class Measure:
    """One measure.

    Attributes
    ----------
    function
        From a study to one number per lane.
    formula, source, critique
        For tables; the function's docstring says more.
    units
        Of value and error.
    family, shares
        What it computes, and the name of the blocks that it may share with other measures.
    exactness
        What the value is and what its error means.
    """

    function: Callable[[Study], Estimate]
    formula: str
    source: str
    critique: str
    units: str
    family: Family
    shares: str
    exactness: str


MEASURES: dict[str, Measure] = {
    "gradient_norm": Measure(
        gradient_norm,
        "|g|",
        "-",
        f"{DINH}; a diagnostic in itself: tail classes are not stationary",
        "nats per example and weight unit",
        "pass",
        "gradient",
        "exact over the examples to rounding",
    ),
    "radial_slope": Measure(
        radial_slope,
        "w.g = d/ds L((1 + s) w)",
        "Liang 2019",
        "of confidence, not of curvature",
        NATS,
        "pass",
        "slopes",
        IMAGES,
    ),
    "fisher_rao_norm": Measure(
        fisher_rao_norm,
        "E (w . grad l)^2",
        "Liang 2019",
        f"few examples with a large loss decide it; {CONFIDENCE}",
        "nats squared",
        "pass",
        "slopes",
        IMAGES,
    ),
    "relative_flatness": Measure(
        relative_flatness,
        "E |phi|^2 (sum_s p_s |w_s|^2 - |sum_s p_s w_s|^2)",
        "Petzka 2021",
        f"one layer only; {CONFIDENCE}",
        NATS,
        "pass",
        "relative-flatness",
        IMAGES,
    ),
    "mean_increase": Measure(
        mean_increase,
        "E_{e ~ N(0, sigma^2)} (L(w + e) + L(w - e)) / 2 - L(w)",
        "Neyshabur 2017",
        f"{DINH}; {CONFIDENCE}",
        NATS,
        "average",
        "gaussian",
        f"{PAIRS}; {KINKS}",
    ),
    "lpf_increase": Measure(
        lpf_increase,
        "(L * N(0, sigma^2))(w) - L(w)",
        "Bisla 2022",
        f"mean_increase with the slope's noise left in; {DINH}",
        NATS,
        "average",
        "gaussian",
        f"estimated; error: standard error over independent draws, images as given; {KINKS}",
    ),
    "filter_relative_increase": Measure(
        filter_relative_increase,
        "E_d L(w + d) - L(w), |d_f| = xi |w_f| (or <=)",
        "Li 2018, Stutz 2021",
        f"normalisation layers stay; {CONFIDENCE}",
        NATS,
        "average",
        "filter",
        PAIRS,
    ),
    "adaptive_mean_increase": Measure(
        adaptive_mean_increase,
        "E_{e ~ N(0, r^2 w^2)} L(w + e) - L(w)",
        "Andriushchenko 2023",
        f"{RATE}; not invariant to the logits' scale",
        NATS,
        "average",
        "adaptive",
        PAIRS,
    ),
    "normalised_mean_increase": Measure(
        normalised_mean_increase,
        "the same of ce((f - mean f) / |f - mean f|)",
        "Andriushchenko 2023",
        f"{RATE}; not the deployed network's loss",
        NATS,
        "average",
        "normalised-adaptive",
        PAIRS,
    ),
    "one_step_increase": Measure(
        one_step_increase,
        "L(w + rho g / |g|) - L(w)",
        "Foret 2021",
        f"{GRADIENT}; {DINH}",
        NATS,
        "worst case",
        "l2",
        STEP,
    ),
    "worst_case_increase": Measure(
        worst_case_increase,
        "max_{|e|_2 <= rho} L(w + e) - L(w)",
        "Foret 2021",
        f"{GRADIENT}; {DINH}",
        NATS,
        "worst case",
        "l2",
        BOUND,
    ),
    "worst_case_linf_increase": Measure(
        worst_case_linf_increase,
        "max_{|e|_inf <= rho} L(w + e) - L(w)",
        "Keskar 2017",
        f"{GRADIENT}; {DINH}",
        NATS,
        "worst case",
        "linf",
        BOUND,
    ),
    "adaptive_one_step_increase": Measure(
        adaptive_one_step_increase,
        "L(w + rho T^2 g / |T g|) - L(w), T = |w|",
        "Kwon 2021",
        f"{GRADIENT}; {RATE}",
        NATS,
        "worst case",
        "adaptive-l2",
        STEP,
    ),
    "adaptive_worst_case_increase": Measure(
        adaptive_worst_case_increase,
        "max_{|e / w|_2 <= rho} L(w + e) - L(w)",
        "Kwon 2021, Andriushchenko 2023",
        f"{RATE}; not invariant to the logits' scale",
        NATS,
        "worst case",
        "adaptive-l2",
        BOUND,
    ),
    "adaptive_worst_case_linf_increase": Measure(
        adaptive_worst_case_linf_increase,
        "max_{|e_i| <= rho |w_i|} L(w + e) - L(w)",
        "Andriushchenko 2023",
        f"{RATE}; not invariant to the logits' scale",
        NATS,
        "worst case",
        "adaptive-linf",
        BOUND,
    ),
    "normalised_worst_case_increase": Measure(
        normalised_worst_case_increase,
        "max_{|e / w|_2 <= rho} of ce((f - mean f) / |f - mean f|)",
        "Andriushchenko 2023",
        f"{RATE}; not the deployed network's loss",
        NATS,
        "worst case",
        "normalised-l2",
        BOUND,
    ),
    "loss_radius": Measure(
        loss_radius,
        "median_d min {r : L(w + r d) >= L(w) + delta}, |d_f| = |w_f|",
        "proposed here",
        "needs one delta for all classes; far to go for whoever is confidently right",
        "filter norms",
        "radius",
        "radii",
        "median over directions and both ways; interval of order statistics in loss_radius_low, _high",
    ),
    "m_sharpness": Measure(
        m_sharpness,
        "mean_b max_{|e|_2 <= rho} L_b(w + e) - L_b(w), |b| = m",
        "Foret 2021",
        f"depends on m as much as on the network; {GRADIENT}",
        NATS,
        "batches",
        "batches",
        "mean of lower bounds of the batches' maxima; error: standard error over batches",
    ),
}


def choose_measures(names: tuple[str, ...]) -> dict[str, Measure]:
    """Return the entries of the names, all of them for (); LandscapeError for an unknown one."""
    for name in names:
        if name not in MEASURES:
            raise unknown_name("measure of flatness", name, MEASURES)
    return {name: MEASURES[name] for name in names} if names else dict(MEASURES)
