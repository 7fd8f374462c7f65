"""The objective on the batch as it is, or mixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from landscape.data.mixing import mixup
from landscape.errors import unknown_name
from landscape.training.methods.examples import dominant_labels
from landscape.training.methods.protocol import Closures, Method, MiniBatch, Setting

MIXED_LABELS = ("dominant", "own")


class Plain(Method):
    r"""The objective on the logits of the batch; with ``mixup`` on images mixed with others of the same batch.

    .. math:: \tilde x_i = \lambda x_i + (1 - \lambda) x_{j(i)}, \qquad
              \ell_i = \lambda\, \ell(\tilde x_i, y_i) + (1 - \lambda)\, \ell(\tilde x_i, y_{j(i)})

    with one :math:`\lambda \sim \text{Beta}(\alpha, \alpha)` and one permutation j per batch. Class weights are those of
    each label set, :math:`\sum_i w_{y_i} \ell_i / \sum_i w_{y_i}`.

    Parameters
    ----------
    setting
        ``setting.mixup`` is alpha; 0: no mixup. Released: 1 on CIFAR (MiSLAS, GCL, CC-SAM), 0.2 on larger sets.
    mixed_labels
        Which class the optimizer takes a mixed example for: ``dominant``, that of the image with the larger share, or
        ``own``, that of the first image whatever its share, as released for CC-SAM.

    Notes
    -----
    Source: Zhang et al., *mixup*, ICLR 2018; the draws are those of :func:`landscape.data.mixing.mixup`.
    """

    def __init__(self, setting: Setting, *, mixed_labels: Literal["dominant", "own"] = "dominant") -> None:
        super().__init__(setting)
        self.mixed_labels = mixed_labels

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise LandscapeError unless ``mixed_labels`` is known."""
        if options["mixed_labels"] not in MIXED_LABELS:
            raise unknown_name("choice of mixed_labels", str(options["mixed_labels"]), MIXED_LABELS)

    def closures(self, batch: MiniBatch) -> Closures:
        """Return the losses of the batch."""
        model, objective, images, labels = self.setting.model, self.setting.objective, batch.views[0], batch.labels
        if self.setting.mixup == 0:
            return Closures(descent=lambda: objective(model(images), labels), labels=labels)
        mixed = mixup(images, labels, self.setting.mixup, batch.generator)
        partner_labels = mixed.partner_labels

        def losses() -> Tensor:
            logits = model(mixed.images)
            shares = mixed.shares.to(logits.dtype)
            return shares * objective(logits, labels) + (1 - shares) * objective(logits, partner_labels)

        seen = labels if self.mixed_labels == "own" else dominant_labels(labels, partner_labels, mixed.shares)
        return Closures(descent=losses, labels=seen)
