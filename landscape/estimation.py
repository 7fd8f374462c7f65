"""What an analysis will cost on this machine, from one timed block of each kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from landscape.diagnosis import line_policy
from landscape.flatness import estimate_flatness
from landscape.plan import ANALYSES, Plan
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, ModelRisk, lanes_of
from landscape.risk.evaluator import Precision
from landscape.risk.points import Policy, time_walk
from landscape.spectrum import SpectrumOptions

# Steps after which the extremes of a network's lane have usually converged: 24 to 48 on digits, 16 to 48 on CIFAR.
TYPICAL_STEPS = 40


@dataclass(frozen=True)
class Estimate:
    """What a plan will cost on this machine, from one timed block each.

    Attributes
    ----------
    seconds
        Expected wall time of all analyses.
    bytes
        Expected peak memory beyond the model: retained graphs and Lanczos bases.
    num_evaluations, num_products
        Passes over all examples, and Hessian products of one pass.
    """

    seconds: float
    bytes: int
    num_evaluations: int
    num_products: int


def estimate_cost(
    risk: ClassRisk,
    plan: Plan,
    lanes: LaneChoice | None = None,
    *,
    held_out: ModelRisk | None = None,
    parts: Collection[str] = ANALYSES,
) -> Estimate:
    """Time one evaluation and one Hessian product of every lane, and count how many of them a plan needs.

    The extreme runs stop by themselves; they are counted at ``TYPICAL_STEPS``. ``held_out`` is the risk on the other split
    where lines are walked on both; ``parts`` are those of ``ANALYSES`` that are to be run.
    """
    chosen = lanes_of(risk, lanes)
    theta = risk.theta
    evaluation = _seconds(lambda: risk.losses(theta))
    needs_walk = "perturbation" in parts or "surface" in parts
    draw = time_walk(risk, chosen)[1] if needs_walk else 0.0
    product_seconds = 0.0
    widest = chosen.weights[int(np.argmax(chosen.num_examples))]
    vector = torch.nn.functional.normalize(torch.ones_like(theta), dim=0)
    with risk.hessian(theta, widest[None]) as product:
        product(vector[None, None])
        start = time.perf_counter()
        product(vector[None, None])
        product_seconds = (time.perf_counter() - start) * sum(chosen.num_examples) / max(chosen.num_examples)
    options, perturbation = plan.spectrum, plan.perturbation
    lane_passes = sum(chosen.num_examples) / max(int(risk.class_counts.sum()), 1)
    products, evaluations, draws = _products(options) if "spectrum" in parts else 0, 0, 0
    seconds, num_lines = 0.0, 0
    if "spectrum" in parts:
        evaluations += round(lane_passes * 20)  # walks
    if "perturbation" in parts:
        draws += perturbation.num_draws * (len(perturbation.radii) + len(perturbation.sigmas))
        evaluations += round(lane_passes * 4 * perturbation.ascent_steps * len(perturbation.rhos))
    if "surface" in parts:
        draws += plan.plane_points**2 + plan.eigen_points**2
        num_lines = plan.line_points * plan.line_pairs
        beside = None if held_out is None else (held_out, lanes_of(held_out, lanes))
        prepared, line = time_walk(risk, chosen, held_out=beside, policy=line_policy(risk, plan))
        seconds += prepared + line * num_lines
    if "escape" in parts and plan.escape_lengths:
        # Along +-v_min and -gradient; the directions are the spectrum's.
        evaluations += 3 * plan.escape_lengths * len(chosen)
        products += 1
    if "flatness" in parts and plan.flatness is not None and risk.is_additive:
        seconds += estimate_flatness(risk, lanes, options=plan.flatness)[0]
    graph = getattr(risk, "_bytes_per_example", 0) * 2 * max(chosen.num_examples)
    graph = min(graph, getattr(risk, "memory_budget", graph))
    basis = (options.max_steps + options.num_probes * (options.num_steps + options.max_steps)) * len(theta)
    return Estimate(
        seconds=seconds + evaluation * evaluations + draw * draws + product_seconds * products,
        bytes=graph + basis * theta.element_size(),
        num_evaluations=evaluations + draws + num_lines,
        num_products=products,
    )


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _products(options: SpectrumOptions) -> int:
    """Return about how many Hessian products a lane takes."""
    if options.budget is not None and options.until == "converged":
        return options.budget
    extremes = options.overhead + min(TYPICAL_STEPS, options.longest_run)
    if options.until == "verdict":
        return extremes
    return extremes + 2 * options.num_traces + options.num_probes * options.num_steps


def estimate_surface(
    risk: ClassRisk,
    lanes: LaneChoice | None = None,
    *,
    num_points: int,
    held_out: ModelRisk | None = None,
    batchnorm: Policy = "frozen",
    precision: Precision = "exact",
    keep_examples: bool = False,
    group_average: GroupAverage = "examples",
) -> tuple[float, int]:
    """Return (seconds, bytes) of a surface of so many grid points, from timed ones with the same options."""
    chosen = lanes_of(risk, lanes, group_average=group_average)
    beside = None if held_out is None else (held_out, lanes_of(held_out, lanes, group_average=group_average))
    options: dict[str, Any] = {"held_out": beside, "policy": batchnorm, "precision": precision}
    prepared, seconds = time_walk(risk, chosen, keep_examples=keep_examples, **options)
    images = sum(chosen.num_examples[-1:]) + (sum(beside[1].num_examples[-1:]) if beside else 0)
    inputs = getattr(risk, "inputs_per_example", 0) * images * risk.theta.element_size()
    kept = 4 * images * num_points if keep_examples else 0
    return prepared + seconds * num_points, inputs + kept + 8 * 8 * len(chosen) * num_points
