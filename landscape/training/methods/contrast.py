"""The parametric contrastive loss, and the queue of earlier examples that it contrasts with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

FORMS = ("released", "paper")
RELEASED_QUEUE_LABELS = 1000  # PaCo's released queue starts with labels drawn from 0 to 999, whatever the data set


def parametric_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    centre_logits: Tensor,
    *,
    class_shares: Tensor,
    temperature: float,
    weights: tuple[float, float, float],
    smooth: float = 0.0,
    form: Literal["released", "paper"] = "released",
) -> Tensor:
    r"""Return the parametric contrastive loss of the first M embeddings, (M,).

    .. math::

        \ell_i = -\frac{\sum_k w_{ik} \log p_{ik}}{\sum_k w_{ik}}, \qquad
        p_{ik} = \frac{e^{s_{ik}}}{\sum_c e^{s_{ic}} + \gamma \sum_{j \ne i} e^{s_{ij}}}

    over the C class centres, :math:`s_{ic} = z_{ic} + \log \pi_c`, and the other embeddings,
    :math:`s_{ij} = v_i^\top v_j / T`; w is beta for the centre of the own class, alpha for embeddings of the same class
    and 0 otherwise.

    Parameters
    ----------
    embeddings
        Unit vectors v, (L, d): the anchors first, then keys and queue.
    labels
        (L,) int64; a label below 0 belongs to no class.
    centre_logits
        z of the anchors, (M, C).
    class_shares
        Shares pi of the classes in the training data, (C,).
    temperature
        T.
    weights
        alpha, beta and gamma.
    smooth
        Label smoothing of the centres, over the C - 1 other classes.
    form
        ``released``, or ``paper``: the sum without division by the weights, and no 1e-12 inside the logarithm. The latter
        matters: an anchor's product with itself, 1/T, is left out of the sum but not of the maximum that is
        subtracted, so at T = 0.05 the sum is of the size of exp(-20).

    Notes
    -----
    Source: Cui et al., *Parametric Contrastive Learning*, ICCV 2021, eq. 5, and released code.
    """
    alpha, beta, gamma = weights
    num_anchors, num_classes = centre_logits.shape
    centres = centre_logits + torch.log(class_shares.to(centre_logits.dtype) + 1e-9)
    scores = torch.cat([centres, embeddings[:num_anchors] @ embeddings.T / temperature], dim=1)
    others = torch.ones(num_anchors, len(embeddings), dtype=scores.dtype, device=scores.device).fill_diagonal_(0)
    same = (labels[:num_anchors, None] == labels[None, :]).to(scores.dtype) * others
    own = (labels[:num_anchors, None] == torch.arange(num_classes, device=labels.device)).to(scores.dtype)
    if smooth:
        own = smooth / (num_classes - 1) * (1 - own) + (1 - smooth) * own
    positive = torch.cat([beta * own, alpha * same], dim=1)
    present = torch.cat([torch.ones_like(own), gamma * others], dim=1)
    if form == "released":
        shifted = scores - scores.max(dim=1, keepdim=True).values.detach()
        total = (shifted.exp() * present).sum(dim=1, keepdim=True)
        log_shares = shifted - torch.log(total + 1e-12)
        return -(positive * log_shares).sum(dim=1) / positive.sum(dim=1)
    log_shares = scores - torch.logsumexp(scores + present.log(), dim=1, keepdim=True)
    return -(positive * log_shares).sum(dim=1)


class ExampleQueue(nn.Module):
    """The last K embeddings and their labels, as buffers: a ring that is written without waiting for the device.

    It starts with normal numbers, each *coordinate* of unit length over the K rows, as released.
    """

    embeddings: Tensor
    labels: Tensor
    place: Tensor

    def __init__(self, size: int, num_dims: int, *, num_labels: int, generator: torch.Generator) -> None:
        super().__init__()
        start = functional.normalize(torch.randn(size, num_dims, generator=generator), dim=0)
        self.register_buffer("embeddings", start)
        self.register_buffer("labels", torch.randint(0, num_labels, (size,), generator=generator))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, embeddings: Tensor, labels: Tensor) -> None:
        """Replace the oldest entries."""
        size = len(self.labels)
        embeddings, labels = embeddings[-size:], labels[-size:]  # a batch that is longer than the queue
        rows = (self.place + torch.arange(len(labels), device=labels.device)) % size
        self.embeddings.index_copy_(0, rows, embeddings.to(self.embeddings.dtype))
        self.labels.index_copy_(0, rows, labels)
        self.place.copy_((self.place + len(labels)) % size)


@torch.no_grad()
def follow(copy: nn.Module, original: nn.Module, momentum: float) -> None:
    """Move the parameters of a copy towards those of the original: m copy + (1 - m) original."""
    copies: list[Tensor] = list(copy.parameters())
    originals: list[Tensor] = [p.detach() for p in original.parameters()]
    torch._foreach_mul_(copies, momentum)
    torch._foreach_add_(copies, originals, alpha=1 - momentum)
