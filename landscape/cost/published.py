"""Published costs of training, to stand beside measured ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedCost:
    """One row of the published table.

    Attributes
    ----------
    method
        As printed.
    optimizer
        The name in ``OPTIMIZERS`` that it corresponds to.
    accuracy
        Test accuracy in percent, all classes.
    seconds
        "Native Execution Time" (NET) in seconds. What is timed is not said; an epoch of 10,847 images is plausible.
    plain_seconds
        NET of the same loss with the plain optimizer.
    """

    method: str
    optimizer: str
    accuracy: float
    seconds: float
    plain_seconds: float

    @property
    def ratio(self) -> float:
        """Time relative to plain training with the same loss."""
        return self.seconds / self.plain_seconds


NET_SOURCE = (
    "NET table of Li et al., Gaussian Neighborhood Minimization, NeurIPS 2024 (poster and slides): "
    "ViT-B/16 with prompts, CIFAR-100-LT at ratio 100"
)
PUBLISHED_NET: tuple[PublishedCost, ...] = (
    PublishedCost("CE", "sgd", 81.02, 39.78, 39.78),
    PublishedCost("CE+SAM", "sam", 82.48, 72.51, 39.78),
    PublishedCost("CE+GNM", "gnm", 82.50, 40.16, 39.78),
    PublishedCost("GCL+DRW", "sgd", 89.58, 40.00, 40.00),
    PublishedCost("GCL+DRW+SAM", "sam", 89.69, 74.36, 40.00),
    PublishedCost("GCL+DRW+GNM", "gnm", 90.28, 41.87, 40.00),
)
