"""How much a lane's loss rises at worst within a ball, over all its examples or batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from landscape.flatness.study import Estimate, Study
from landscape.perturbation import Norm, worst_case
from landscape.randomness import stream
from landscape.risk import ClassRisk, ModelRisk
from landscape.risk.normalised import logit_normalised


def _search(
    study: Study, key: str, rho: float, *, norm: Norm = "l2", is_adaptive: bool = False, of: ClassRisk | None = None
) -> np.ndarray:
    """Return the best increase that was found and that of the first step, (2, L)."""
    risk = study.risk if of is None else of
    scale = risk.theta.abs() if is_adaptive else None

    def search(name: str, row: Tensor) -> Mapping[str, object]:
        generator = stream(study.seed, f"flatness/{key}/{name}")
        steps = study.options.ascent_steps
        return {"increase": worst_case(risk, row, rho, steps, generator, norm=norm, scale=scale)}

    lanes = zip(study.lanes.names, study.lanes.weights)
    found = [study.block(f"{key}/lane={name}", partial(search, name, row))["increase"] for name, row in lanes]
    return np.stack(found, 1)


def _l2(study: Study) -> np.ndarray:
    return _search(study, "l2", study.options.rho)


def _adaptive_l2(study: Study) -> np.ndarray:
    return _search(study, "adaptive-l2", study.options.adaptive_rho, is_adaptive=True)


def one_step_increase(study: Study) -> Estimate:
    r"""Return the increase after the one step of sharpness-aware minimisation.

    .. math:: L(w + \rho\, g / \|g\|_2) - L(w)

    Parameters
    ----------
    study
        ``options.rho`` in weight units.

    Returns
    -------
    Estimate
        (L,) nats per example; exact for the step, a lower bound of the worst case.

    Notes
    -----
    Source: Foret et al., ICLR 2021, eq. 2.

    Critique: where the gradient is not small it is about rho |g|, a gradient norm: so it is for most tail classes.
    Not invariant to rescalings (Dinh et al., 2017).
    """
    return Estimate(_l2(study)[1])


def worst_case_increase(study: Study) -> Estimate:
    r"""Return the largest increase that an ascent finds in a Euclidean ball.

    .. math:: \max_{\|e\|_2 \le \rho} L(w + e) - L(w)

    Parameters
    ----------
    study
        ``options.rho`` in weight units, ``options.ascent_steps``.

    Returns
    -------
    Estimate
        (L,) nats per example, a lower bound of the maximum.

    Notes
    -----
    Source: Foret et al., ICLR 2021; multi-step ascent as in Andriushchenko et al., ICML 2023.

    Critique: depends on the optimiser of the inner problem; mostly a gradient norm where the class is not stationary, see
    ``gradient_norm``; not invariant to rescalings (Dinh et al., 2017).
    """
    return Estimate(_l2(study)[0])


def worst_case_linf_increase(study: Study) -> Estimate:
    r"""Return the largest increase that an ascent finds when every weight may move by so much.

    .. math:: \max_{\|e\|_\infty \le \rho} L(w + e) - L(w)

    Parameters
    ----------
    study
        ``options.rho_linf`` in weight units, ``options.ascent_steps``.

    Returns
    -------
    Estimate
        (L,) nats per example, a lower bound of the maximum.

    Notes
    -----
    Source: the box of Keskar et al., ICLR 2017, without its ``|w| + 1``, its division by 1 + L and its L-BFGS-B; ascent
    with sign steps as in Andriushchenko et al., ICML 2023.

    Critique: as for the Euclidean ball; a box of the same side grows with the number of weights.
    """
    return Estimate(_search(study, "linf", study.options.rho_linf, norm="linf")[0])


def adaptive_one_step_increase(study: Study) -> Estimate:
    r"""Return the increase after the one step of adaptive sharpness-aware minimisation.

    .. math:: L(w + \rho\, T^2 g / \|T g\|_2) - L(w), \qquad T = \mathrm{diag}(|w|)

    Parameters
    ----------
    study
        ``options.adaptive_rho`` in units of abs(w_i).

    Returns
    -------
    Estimate
        (L,) nats per example; exact for the step, a lower bound of the adaptive worst case.

    Notes
    -----
    Source: Kwon et al., *ASAM*, ICML 2021, eq. 8 with eta = 0 and all parameters scaled.

    Critique: invariant to rescalings of layers; about rho |Tg| where the class is not stationary.
    """
    return Estimate(_adaptive_l2(study)[1])


def adaptive_worst_case_increase(study: Study) -> Estimate:
    r"""Return the largest increase that an ascent finds in a Euclidean ball in units of the weights.

    .. math:: \max_{\|e / |w|\|_2 \le \rho} L(w + e) - L(w)

    Parameters
    ----------
    study
        ``options.adaptive_rho`` in units of abs(w_i), ``options.ascent_steps``.

    Returns
    -------
    Estimate
        (L,) nats per example, a lower bound of the maximum.

    Notes
    -----
    Source: Kwon et al., ICML 2021; Andriushchenko et al., ICML 2023, section 3.

    Critique: invariant to rescalings that leave the function as it is, not to the scale of the logits; often not related
    to generalisation, sometimes negatively (Andriushchenko et al.). A weight of exactly 0 cannot move.
    """
    return Estimate(_adaptive_l2(study)[0])


def adaptive_worst_case_linf_increase(study: Study) -> Estimate:
    r"""Return the largest increase that an ascent finds when every weight may move by a share of itself.

    .. math:: \max_{|e_i| \le \rho |w_i|} L(w + e) - L(w)

    Parameters
    ----------
    study
        ``options.adaptive_rho_linf``, a share, ``options.ascent_steps``.

    Returns
    -------
    Estimate
        (L,) nats per example, a lower bound of the maximum.

    Notes
    -----
    Source: Andriushchenko et al., ICML 2023, section 3, p = infinity.

    Critique: as for :func:`adaptive_worst_case_increase`.
    """
    found = _search(study, "adaptive-linf", study.options.adaptive_rho_linf, norm="linf", is_adaptive=True)
    return Estimate(found[0])


def normalised_worst_case_increase(study: Study) -> Estimate:
    r"""Return :func:`adaptive_worst_case_increase` of the network with normalised logits.

    .. math:: f \leftarrow (f - \bar f) / \|f - \bar f\|_2 \quad \text{per example, in plain cross-entropy}

    Parameters
    ----------
    study
        ``options.adaptive_rho`` in units of abs(w_i), ``options.ascent_steps``.

    Returns
    -------
    Estimate
        (L,) nats per example of the normalised network, a lower bound of the maximum; NaN for an analytic risk.

    Notes
    -----
    Source: Andriushchenko et al., ICML 2023, section 3 (logit normalisation).

    Critique: free of the scale of the logits, hence the one to put beside an adaptive worst case before a difference
    between head and tail is called sharpness; the ascent is on another loss than the network was trained with.
    """
    if study.network is None:
        return study.without_examples("logits")
    risk = logit_normalised(study.network)
    return Estimate(_search(study, "normalised-l2", study.options.adaptive_rho, is_adaptive=True, of=risk)[0])


# ---- m-sharpness --------------------------------------------------------------------------------------------------


def m_sharpness(study: Study) -> Estimate:
    r"""Return the mean worst case over disjoint batches of m examples of a lane.

    .. math:: \frac1B \sum_b \max_{\|e\|_2 \le \rho} L_b(w + e) - L_b(w), \qquad |b| = m

    Parameters
    ----------
    study
        ``options.rho`` in weight units, ``options.ascent_steps``, ``options.batch_size`` (the m), ``options.max_batches``.

    Returns
    -------
    Estimate
        (L,) nats per example: the mean over batches of lower bounds of the maxima, with its standard error over batches,
        NaN where there is one batch. ``m_sharpness_batch_size`` and ``m_sharpness_num_batches`` say what each lane had.

    Notes
    -----
    Source: Foret et al., ICLR 2021, section 4; Andriushchenko and Flammarion, ICML 2022.

    Rules. m is the same for all lanes; by default the number of examples of the smallest class that is measured. A lane's
    examples are shuffled once by seed and cut into batches of exactly m; what is left over is not used. A lane with fewer
    than m examples is one batch of all of them, and its batch size says so: with fewer examples the number is larger, so it
    is not comparable with the others. A batch of a group is drawn from the group, and weighs its examples as the lane
    does. Lanes with negative weights have no batches: NaN.

    Critique: depends on m as much as on the network; without one m for all classes head and tail cannot be compared.
    With m = 1 it is close to a mean gradient norm per example.
    """
    network = study.network
    if network is None:
        return study.without_examples("single examples")
    size = batch_size(study)
    lanes = study.lanes
    values, errors, sizes, nums = (np.full(len(lanes), np.nan) for _ in range(4))
    for i, (name, row) in enumerate(zip(lanes.names, lanes.weights)):
        if bool((row < 0).any()):
            continue
        block = study.block(f"batches/lane={name}", partial(_batch_worst_cases, study, network, name, row, size))
        found = block["increase"]
        values[i], sizes[i], nums[i] = found.mean(), float(block["size"]), len(found)
        if len(found) > 1:
            errors[i] = found.std(ddof=1) / math.sqrt(len(found))
    return Estimate(
        values,
        errors,
        more={"m_sharpness_batch_size": sizes, "m_sharpness_num_batches": nums},
        attributes={"batch_size": size},
    )


def batch_size(study: Study) -> int:
    """Return the m of m-sharpness: the one asked for, or the number of rows of the smallest class in any lane."""
    if study.options.batch_size is not None:
        return study.options.batch_size
    network = study.network
    assert network is not None
    return int(torch.bincount(network.labels.cpu(), minlength=len(network.class_names))[study.classes].min())


def _batch_worst_cases(study: Study, risk: ModelRisk, name: str, row: Tensor, size: int) -> dict[str, object]:
    """Return the worst case of every batch of a lane (B,), and the batch size that was used."""
    options = study.options
    labels = risk.labels.cpu()
    rows = torch.nonzero(row[labels] != 0)[:, 0]
    order = torch.randperm(len(rows), generator=stream(study.seed, f"flatness/batches/{name}"))
    used = min(size, len(rows))
    num = min(len(rows) // used, options.max_batches)
    increases = []
    for number, batch in enumerate(_batches(rows[order], used, num)):
        part = risk.restricted(batch.to(risk.device))
        generator = stream(study.seed, f"flatness/batches/{name}/batch={number}")
        increases.append(
            worst_case(part, _weights_in(batch, labels, row), options.rho, options.ascent_steps, generator)[0]
        )
    return {"increase": np.asarray(increases), "size": used}


def _batches(rows: Tensor, size: int, num: int) -> Iterator[Tensor]:
    for number in range(num):
        yield rows[number * size : (number + 1) * size].sort().values


def _weights_in(batch: Tensor, labels: Tensor, row: Tensor) -> Tensor:
    """Return the lane's weights (C,) within a batch: each example counts as in the lane, the sum is the lane's."""
    everywhere = torch.bincount(labels, minlength=len(row))
    inside = torch.bincount(labels[batch], minlength=len(row))
    shares = row * inside / everywhere.clamp_min(1)
    return shares * (row.sum() / shares.sum())
