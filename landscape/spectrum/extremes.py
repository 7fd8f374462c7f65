"""Both ends of many lanes' spectra from Lanczos runs in lock-step, each proven and certified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.memory import available_memory
from landscape.risk import ClassRisk
from landscape.risk.protocol import HessianProduct
from landscape.spectrum.basis import BasisPlace
from landscape.spectrum.certificate import is_certified_negative
from landscape.spectrum.ends import NOISE_EPS, Extremes, Finished, Missed, certify, exact_products
from landscape.spectrum.lanczos import Lanczos, RitzPairs
from landscape.spectrum.options import FEWEST_STEPS, SMALLEST_END, SpectrumOptions
from landscape.spectrum.preflight import Proof, excuse, prove_operator

# Steps between two looks at the convergence of the extreme run.
LOOK_EVERY = 2


def place_basis(
    theta: Tensor, num_rows: int, options: SpectrumOptions, *, longest: int | None = None
) -> tuple[BasisPlace, int]:
    """Return where the bases of some rows live, and the most vectors of each before a restart.

    ``longest`` is the length of a run that does not restart (a probe's); None for an extreme run.
    """
    may_restart = longest is None
    longest = (longest or min(options.longest_run, len(theta))) + 1
    wanted = min(longest, options.basis_vectors or longest) if may_restart else longest
    if options.basis in ("device", "host", "none"):
        return options.basis, wanted
    vector = num_rows * theta.numel() * theta.element_size()
    room = available_memory(theta.device) // 2 // vector
    if room >= wanted:
        return "device", wanted
    if theta.device.type != "cpu" and available_memory(torch.device("cpu")) // 2 // vector >= longest:
        return "host", longest
    fewest = 4 * options.num_extremes + 20
    return ("device", int(room)) if may_restart and room >= fewest else ("none", longest)


def find_extremes_of(
    risk: ClassRisk,
    product: HessianProduct,
    weights: Tensor,
    starts: Tensor,
    *,
    names: Sequence[str],
    options: SpectrumOptions,
    random_shares: Sequence[float] | None = None,
    proofs: Sequence[Proof] | None = None,
) -> list[Extremes]:
    """Run Lanczos on lanes (weights (B, C), starts (B, n)) in lock-step until each has what was asked for.

    ``product`` is what ``risk.hessian(risk.theta, weights)`` yields; ``random_shares`` says what share of each start's
    squared norm is random (None: all of it). ``proofs`` are of lanes that have been proven before.

    Raises
    ------
    LandscapeError
        If a product is not finite, or the operator is not one fixed symmetric matrix.
    """
    shares = [1.0] * len(weights) if random_shares is None else random_shares
    chances = [Missed(starts.shape[1], options.missed_probability, share) for share in shares]
    extra = 0 if proofs is not None else 2
    finished, proofs = _run(
        risk, product, weights, starts, names=names, options=options, chances=chances, proofs=proofs
    )
    ends = torch.stack([finished[b].ends for b in range(len(weights))])
    products = product(ends)
    in_float64, num_exact = exact_products(risk, weights, ends, options)
    extra += ends.shape[1] + num_exact
    return [
        certify(
            finished[b],
            products[b],
            in_float64[b] if in_float64 is not None else None,
            proof=_proven(risk, proofs[b], finished[b], names[b], weights[b]),
            missed=chances[b],
            num_extra=extra,
        )
        for b in range(len(weights))
    ]


def _proven(risk: ClassRisk, proof: Proof, done: Finished, name: str, row: Tensor) -> Proof:
    """Add what all the run's vectors say about symmetry, and refuse an operator that fails late."""
    norm = float(np.abs(done.ritz.values).max(initial=0.0))
    asymmetry = done.asymmetry * (norm / max(norm, proof.size) if norm else 1.0)
    proof = replace(proof, symmetry=float(np.fmax(proof.symmetry, asymmetry)))
    if getattr(risk, "is_fixed", True):
        proof = excuse(risk, proof, row, done.ends[0], done.ends[-1], name=name)
    return proof


def _run(
    risk: ClassRisk,
    product: HessianProduct,
    weights: Tensor,
    starts: Tensor,
    *,
    names: Sequence[str],
    options: SpectrumOptions,
    chances: Sequence[Missed],
    proofs: Sequence[Proof] | None,
) -> tuple[dict[int, Finished], Sequence[Proof]]:
    theta = risk.theta
    place, most_vectors = place_basis(theta, len(weights), options)
    first: list[tuple[Tensor, Tensor]] = []

    def matvec(vectors: Tensor) -> Tensor:
        out = product(vectors[:, None], lanes=rows)[:, 0]
        if len(first) < 2:
            first.append((vectors.clone(), out))
        return out

    rows = list(range(len(weights)))
    run = Lanczos(matvec, starts.to(theta), basis=place, most_vectors=most_vectors)
    limit = min(options.longest_run, len(theta))
    if place == "none" and options.budget is not None:
        limit = min(limit, max((options.longest_run + 1) // 2, 2))  # the ends cost the same run again
    run.extend(min(2, limit))
    for row, name in enumerate(names):
        if not np.isfinite(run.ritz(row).values).all():
            raise LandscapeError(f"lane '{name}': a Hessian product is not finite: the loss overflows at these weights")
    if proofs is None:
        proofs = prove_operator(risk, product, first, names=names, weights=weights)
    finished: dict[int, Finished] = {}
    plain: dict[int, RitzPairs] = {}  # what a run knew before its first restart
    num_plain = limit
    while rows:
        ready = {}
        for row in rows:
            ritz = run.ritz(row)
            if not np.isfinite(ritz.values).all():
                raise LandscapeError(
                    f"lane '{names[row]}': a Hessian product is not finite: the loss overflows at these weights"
                )
            missed = chances[row] if getattr(risk, "is_fixed", True) else None
            if run.num_steps >= limit or is_done(ritz, plain.get(row, ritz), theta.dtype, options, missed):
                ready[row] = ritz
        finished |= _collect(run, ready, plain, product, min(run.num_steps, num_plain), options)
        rows = [row for row in rows if row not in ready]
        if not rows:
            break
        run.keep(rows)
        size = len(run.ritz(rows[0]).values)
        steps = min(LOOK_EVERY, limit - run.num_steps)
        if size + steps + 1 > most_vectors and place == "device":
            num_plain = min(num_plain, run.num_steps)
            plain = {row: plain.get(row) or run.ritz(row) for row in rows}
            run.restart(options.num_extremes + 4, options.num_extremes + 4)
        run.extend(steps)
    return finished, proofs


def _collect(
    run: Lanczos,
    ready: dict[int, RitzPairs],
    plain: dict[int, RitzPairs],
    product: HessianProduct,
    num_plain: int,
    options: SpectrumOptions,
) -> dict[int, Finished]:
    """Take the ends, and the basis, of the lanes that are done."""
    if not ready:
        return {}
    k, chosen = options.num_extremes, {}
    for row, ritz in ready.items():
        if len(ritz.values) < k:
            raise_too_few(k, len(ritz.values))
        chosen[row] = ritz.coordinates[:, [*range(k), *range(len(ritz.values) - 1, len(ritz.values) - 1 - k, -1)]]
    again, num_replayed = None, 0
    if run.place == "none":
        lanes = list(ready)
        longest = max(len(c) for c in chosen.values())
        every = np.stack([np.pad(c, ((0, longest - len(c)), (0, 0))) for c in chosen.values()])
        again = run.replay(every, rows=lanes, matvec=lambda v: product(v[:, None], lanes=lanes)[:, 0])
        num_replayed = longest - 1
    finished = {}
    for index, (row, ritz) in enumerate(ready.items()):
        ends = run.vectors(row, chosen[row]) if again is None else again[index]
        space = run.space(row, len(ritz.values)).clone() if again is None else ends[:0]
        ends = ends / torch.linalg.vector_norm(ends, dim=1, keepdim=True)
        finished[row] = Finished(
            ritz=ritz,
            plain=plain.get(row, ritz),
            space=space,
            ends=ends,
            num_steps=run.num_steps,
            num_plain_steps=num_plain,
            num_products=run.num_steps + num_replayed,
            asymmetry=run.asymmetry(row),
        )
    return finished


def raise_too_few(wanted: int, found: int) -> None:
    """Refuse to return fewer eigenpairs than were asked for."""
    raise LandscapeError(
        f"num_extremes: {wanted} eigenpairs were asked for at either end, but the Krylov space of a random start is "
        f"exhausted after {found}: the operator has no more distinct eigenvalues"
    )


def is_done(
    ritz: RitzPairs, plain: RitzPairs, dtype: torch.dtype, options: SpectrumOptions, missed: Missed | None
) -> bool:
    """Whether a run has what was asked for: both ends, or (until="verdict") only the sign of the smallest.

    A small residual says that an eigenvalue is near, not that it is the end. So a run goes on until the end that its start
    may have missed (from its ``plain`` pairs, before any restart) is near as well. Without ``missed``, for an operator that
    changes with every product, or where the start holds nothing random, residuals have to do.
    """
    if ritz.is_exhausted:
        return True
    k = options.num_extremes
    # After two or three steps an inner eigenvalue may pass for the largest.
    if len(ritz.values) < max(2 * k, FEWEST_STEPS):
        return False
    norm = float(np.abs(ritz.values).max())
    tolerance = options.residual_tolerance(dtype) * norm
    low, high = float(ritz.values[0]), float(ritz.values[-1])
    noise = NOISE_EPS * torch.finfo(dtype).eps * norm
    is_negative = is_certified_negative(
        low, float(ritz.residuals[0]) + noise, high + float(ritz.residuals[-1]), options.threshold
    )
    is_bounded = missed is not None and missed.random_share > 0
    bound, above = missed.bounds(plain) if missed is not None and is_bounded else (-np.inf, np.inf)
    is_positive = bound >= -options.threshold * high
    if options.until == "verdict":
        return bool((is_negative and ritz.residuals[-1] <= 0.1 * norm) or is_positive)
    outer = [*ritz.residuals[:k], *ritz.residuals[-k:]]
    if not all(residual <= tolerance for residual in outer):
        return False
    width = options.end_width
    if is_bounded and above - high > width * abs(high):
        return False
    if not is_bounded or low - bound <= width * abs(low):
        return True
    # A lower end that decides nothing may lie further out with that probability, but is near to what is printed.
    is_small = abs(low) < SMALLEST_END * norm
    return is_positive and (is_small or bool(ritz.residuals[0] <= width * abs(low)))
