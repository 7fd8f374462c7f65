"""CC-SAM's second stage: the classifier trained on features that are moved against it, farther for rarer classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from landscape.errors import LandscapeError, unknown_name
from landscape.models import find_head
from landscape.optimizers.class_conditional import recorded_call
from landscape.training.methods.protocol import Closures, Method, MiniBatch, Setting

FORMS = ("released", "paper")


class AdversarialFeatures(Method):
    r"""The objective on the batch, and on its features after a step along each class's gradient.

    .. math::

        L = \tfrac1B \sum_i (1 - a)\, \ell(z_i, y_i) + a\, w_{y_i}\, \ell(z_i + \lambda w_{y_i} \delta_i, y_i), \qquad
        \delta_i = \frac{G_i}{\|G_{y_i}\|_F}, \quad G_c = \nabla_z \operatorname{mean}_{y_i = c} \ell_i

    with z the features that enter the classifier. The steps are taken as constants. With t the epoch from 1 and T the
    number of epochs, as released,

    .. math:: w_c = \frac{1}{d} \log\Big(\frac{n_{\max}}{n_c} + 0.01\Big), \qquad a = \min(t / T, u)

    One forward and one backward pass through the network, two more forward passes and one more backward pass through the
    classifier; all classes of the batch at once.

    Parameters
    ----------
    setting
        The run; without mixup.
    adver_reg
        lambda, length of the step; 1 as released.
    div
        d; 2 as released.
    up_limit
        u, the largest share of the adversarial loss: 1 is released for CIFAR-10-LT, 0.3 for CIFAR-100-LT.
    form
        ``released``, or ``paper``: w = 1 for every class, in the step and in the loss.

    Raises
    ------
    LandscapeError
        For an option out of range, or a run with mixup.

    Notes
    -----
    Source: Zhou et al., *Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed Recognition*, CVPR 2023, second
    stage, and its released code. The paper's own text was not at hand: its formula is known from others who state it,
    :math:`z + \lambda \nabla / \|\nabla\|` and :math:`(1 - t/T) L_S + (t/T) L_A`. Differs from the release in:

    1. A class whose features have the gradient zero is not moved, where the release divides by zero.
    2. The losses are the run's own, where the release has cross-entropy throughout.
    3. With a batch in pieces (``accumulate``), the norms are those of the classes within a piece.
    """

    fixed: ClassVar[Mapping[str, Any]] = {"mixup": 0.0}
    unsupported: ClassVar[frozenset[str]] = frozenset({"head"})  # it calls the classifier more than once
    class_weights: Tensor

    def __init__(
        self,
        setting: Setting,
        *,
        adver_reg: float = 1.0,
        div: float = 2.0,
        up_limit: float = 1.0,
        form: Literal["released", "paper"] = "released",
    ) -> None:
        super().__init__(setting)
        self.check_options({"adver_reg": adver_reg, "div": div, "up_limit": up_limit, "form": form})
        if setting.mixup != 0:
            raise LandscapeError(f"method 'adversarial-features' goes with mixup=0 only, got {setting.mixup!r}")
        self.adver_reg = adver_reg
        self.up_limit = up_limit
        weights = rarity_weights(setting.class_counts, div)
        self.register_buffer(
            "class_weights", torch.ones_like(weights) if form == "paper" else weights, persistent=False
        )

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise LandscapeError for an option out of range."""
        if options["form"] not in FORMS:
            raise unknown_name("form", str(options["form"]), FORMS)
        limits = {"adver_reg": math.inf, "div": math.inf, "up_limit": 1.0}
        for name, most in limits.items():
            value = options[name]
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or not 0 <= value <= most or (name == "div" and value == 0):
                least = "> 0" if name == "div" else ">= 0" + (" and <= 1" if most == 1 else "")
                raise LandscapeError(f"adversarial-features: {name} must be a finite number {least}, got {value!r}")

    @property
    def share(self) -> float:
        """Share a of the adversarial loss in this epoch."""
        return min((self.epoch + 1) / self.setting.epochs, self.up_limit)

    def closures(self, batch: MiniBatch) -> Closures:
        """Return the losses of the batch."""
        model, objective, images, labels = self.setting.model, self.setting.objective, batch.views[0], batch.labels
        head = find_head(model)[1]

        def losses() -> Tensor:
            with recorded_call(head) as call:
                logits = model(images)
            features = call.get()[0]
            moved = features + self.steps(features.detach(), labels)
            weights = self.class_weights.to(logits.dtype)[labels]
            plain, adversarial = objective(logits, labels), objective(head(moved), labels)
            mixture: Tensor = (1 - self.share) * plain + self.share * weights * adversarial
            return mixture

        return Closures(descent=losses, labels=labels)

    def steps(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return what is added to each example's features, (B, d), without a graph."""
        head = find_head(self.setting.model)[1]
        with torch.enable_grad():
            at = features.requires_grad_()
            # Each example's loss has its features alone, so that one pass gives the gradients of all classes, up to the
            # class sizes, which the norms cancel.
            (gradient,) = torch.autograd.grad(self.setting.objective(head(at), labels).sum(), at)
        squares = gradient.double().square().sum(dim=1)
        norms = squares.new_zeros(len(self.class_weights)).index_add(0, labels, squares).sqrt()[labels]
        lengths = self.adver_reg * self.class_weights[labels] / torch.where(norms > 0, norms, 1)
        return gradient * lengths.to(gradient.dtype)[:, None]


def rarity_weights(class_counts: Sequence[int], div: float = 2.0) -> Tensor:
    r"""Return :math:`w_c = \log(n_{\max} / n_c + 0.01) / d` of each class, (C,) float64: 0.005 for the most frequent.

    Examples
    --------
    >>> rarity_weights([5000, 500, 50])
    tensor([0.0050, 1.1518, 2.3026], dtype=torch.float64)
    """
    counts = torch.tensor(class_counts, dtype=torch.float64)
    return torch.log(counts.max() / counts + 0.01) / div
