"""Relative flatness of the classifier, in closed form."""

from __future__ import annotations

import torch

from landscape.errors import LandscapeError
from landscape.flatness.study import Estimate, Study, example_means
from landscape.risk import ModelRisk
from landscape.risk.features import features_and_logits, head_weight


def relative_flatness(study: Study) -> Estimate:
    r"""Return the relative flatness of the last linear layer.

    .. math::

        \kappa_{Tr} = \sum_{s, s'} \langle w_s, w_{s'} \rangle\, \mathrm{Tr}\, H_{s s'}
        = E\Big[ \|\phi\|^2 \Big( \sum_s p_s \|w_s\|^2 - \big\| \sum_s p_s w_s \big\|^2 \Big) \Big]

    with :math:`H_{s s'} = \partial^2 L / \partial w_s \partial w_{s'}`, the classifier's rows :math:`w_s`, its input
    :math:`\phi` and the softmax :math:`p`. The second form holds because softmax cross-entropy has
    :math:`H_{s s'} = E[(p_s \delta_{s s'} - p_s p_{s'}) \phi \phi^T]`; it takes one forward pass.

    Parameters
    ----------
    study
        A network with a linear classifier. The bias is no part of w_s. Whatever the objective, it is that of plain
        cross-entropy.

    Returns
    -------
    Estimate
        (L,) nats per example; exact over the examples to rounding, with the standard error over images. NaN, with the
        reason, for a cosine head (its logits do not depend on the norms of w_s), for a model that changes the
        classifier's output, and for an analytic risk.

    Notes
    -----
    Source: Petzka et al., *Relative Flatness and Generalization*, NeurIPS 2021. The closed form is ours.

    Critique: invariant to rescalings between layers; of one layer only; p_s (1 - p_s) makes it fall with confidence as
    much as with flatness, the more so where every p is near 0 or 1.
    """
    network = study.network
    if network is None:
        return study.without_examples("logits and features")
    try:
        found = study.block("relative-flatness", lambda: {"value": _of_rows(network)})["value"]
    except LandscapeError as error:
        return study.missing(str(error))
    return Estimate(*example_means(study, torch.as_tensor(found, device=network.device)))


def _of_rows(risk: ModelRisk) -> object:
    weight = head_weight(risk).detach().double()  # (C, d)
    distances = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist").square()
    parts = []
    for _, features, logits in features_and_logits(risk):
        p = logits.double().softmax(1)
        # sum_st p_s p_t |w_s - w_t|^2 / 2 is the variance of w under p, term by term positive: a certain example, whose
        # p is 1 to rounding, loses no digits.
        parts.append(features.double().square().sum(1) * ((p @ distances) * p).sum(1) / 2)
    return torch.cat(parts).cpu().numpy()
