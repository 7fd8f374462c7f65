"""Global and local mixture consistency with cumulative re-weighting (GLMC)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.data.mixing import Mixed, blend, draw_shares, paste
from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.training.methods.auxiliary import features_and_logits, num_features, perceptron, second_classifier
from landscape.training.methods.examples import dominant_labels, draw_weighted_examples
from landscape.training.methods.options import check_choices, check_numbers, check_whole
from landscape.training.methods.protocol import Closures, Method, MiniBatch, Setting

BOXES: dict[str, Literal["glmc", "released"]] = {"glmc": "glmc", "cutmix": "released"}


class GLMC(Method):
    r"""Two mixtures of each image with a partner, MixUp and CutMix, whose embeddings shall agree (GLMC).

    .. math::

        \ell_i = \sum_{v \in \{\text{mixup}, \text{cutmix}\}} \Big[a\, \ell^\lambda(z_v) + (1 - a)\, \ell^\lambda_w(z'_v)\Big]
                 - \kappa\, [\cos(p_1, \bar h_2) + \cos(p_2, \bar h_1)], \qquad a = 1 - (e/E)^2

    z are the logits of a second, auxiliary classifier and z' those of the model's own. Both take the mixed labels,
    :math:`\ell^\lambda = \lambda \ell(y) + (1 - \lambda) \ell(y_{\text{partner}})`, the latter each weighted by
    :math:`w_c \propto n_c^{-q}`, sum C. h is a linear projection of what enters the classifiers, p a linear
    prediction of h, the bar stops the gradient. Partners are drawn with replacement by :math:`n_y^{-r}`, and both have two
    augmented views, one for each mixture. Epoch e of E.

    As released, the evaluated classifier is the re-weighted one: it is the model's own and what the checkpoint holds. It
    learns nothing in the first epoch, where a = 1. With SAM and its kin the perturbation comes from the supervised losses
    alone, and the step from all.

    Parameters
    ----------
    contrast_weight
        kappa: 4 on CIFAR-LT, 10 on ImageNet-LT; with SAM 1 on CIFAR-10-LT (Rangwani et al., Saddle-LongTail).
    label_weighting, resample_weighting
        q and r: 1.2 and 0 on CIFAR-LT; 1 and 0.2 on ImageNet-LT.
    mix
        Parameter of the coefficient's Beta distribution, one draw for both mixtures of a batch. The release has an option
        ``beta`` of 0.5 that does not reach the draw; the value in force is 1.
    box
        Rectangle and labels of the cut mixture: ``glmc`` as released, sides rounded up and lambda itself in the labels;
        ``cutmix`` as in CutMix, sides rounded down and the share of pixels that the first image keeps.
    dim
        Length of the projections: 128 in the released ResNet-32, 256 in its larger networks.

    Notes
    -----
    Source: Du et al., *Global and Local Mixture Consistency Cumulative Learning for Long-tailed Visual Recognitions*, CVPR
    2023, and released code; with SAM: Rangwani et al., NeurIPS 2022, released code. Its CIFAR recipe: ResNet-32 of four
    times the width or ResNet-34, 200 epochs, batch 64, learning rate 0.01, weight decay 5e-3, cosine.

    Differs from the release in:

    1. Any loss of per-example form takes the place of cross-entropy, such as balanced softmax.
    2. All examples of the partners' epoch are drawn before its first batch.
    """

    num_views: ClassVar[int] = 2
    fixed: ClassVar[Mapping[str, Any]] = {"reweight": "none", "mixup": 0.0, "compile": False}
    unsupported: ClassVar[frozenset[str]] = frozenset({"criterion"})
    class_weights: Tensor
    class_counts: Tensor

    def __init__(
        self,
        setting: Setting,
        *,
        contrast_weight: float = 4.0,
        label_weighting: float = 1.2,
        resample_weighting: float = 0.0,
        mix: float = 1.0,
        box: Literal["glmc", "cutmix"] = "glmc",
        dim: int = 128,
    ) -> None:
        super().__init__(setting)
        self.contrast_weight = contrast_weight
        self.resample_weighting = resample_weighting
        self.mix = mix
        self.box = box
        generator = stream(setting.seed, "glmc/networks")
        self.classifier = second_classifier(setting.model, generator)
        self.projector = perceptron((num_features(setting.model), dim), generator)
        self.predictor = perceptron((dim, dim), generator)
        counts = torch.tensor(setting.class_counts, dtype=torch.float64)
        weights = counts**-label_weighting
        self.register_buffer("class_counts", counts)
        self.register_buffer("class_weights", weights * len(counts) / weights.sum())

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise LandscapeError for an option out of range."""
        bounds = dict.fromkeys(("contrast_weight", "label_weighting", "resample_weighting"), (0.0, math.inf))
        check_numbers("glmc", options, bounds | {"mix": (1e-3, math.inf)})
        check_whole("glmc", options, {"dim": 1})
        check_choices("glmc", options, {"box": BOXES})

    def partner_order(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the partners of an epoch, drawn with replacement."""
        return draw_weighted_examples(labels, self.class_counts, self.resample_weighting, generator)

    @property
    def balance(self) -> float:
        """Share a of the losses without class weights in this epoch."""
        return 1.0 - (self.epoch / self.setting.epochs) ** 2

    def closures(self, batch: MiniBatch) -> Closures:
        """Draw coefficient and box, mix, and return the losses."""
        if batch.partner_views is None or batch.partner_labels is None:
            raise LandscapeError(
                "glmc mixes each batch with a second one, got none: serve the examples of partner_order"
            )
        views = self._mixed(batch, batch.partner_views, batch.partner_labels)

        def losses(*, is_ascent: bool) -> Tensor:
            features, own_logits = zip(*(features_and_logits(self.setting.model, view.images) for view in views))
            total = sum(self._supervised(*inputs) for inputs in zip(features, own_logits, views))
            assert isinstance(total, Tensor)
            return total if is_ascent else total + self.contrast_weight * self._disagreement(*features)

        ascent: Callable[[], Tensor] = lambda: losses(is_ascent=True)  # noqa: E731
        seen = dominant_labels(batch.labels, batch.partner_labels, views[0].shares)
        return Closures(descent=lambda: losses(is_ascent=False), labels=seen, ascent=ascent)

    def _mixed(self, batch: MiniBatch, partners: tuple[Tensor, ...], partner_labels: Tensor) -> tuple[Mixed, Mixed]:
        """Return the two mixtures of the batch: one share for all, then one pixel for the rectangle's centre."""
        num, sizes = len(batch.labels), batch.views[1].shape[2:]
        shares = draw_shares(self.mix, 1, batch.generator).expand(num)
        centres = torch.stack([torch.randint(0, size, (1,), generator=batch.generator) for size in sizes])
        first = blend(batch.views[0], batch.labels, partners=partners[0], partner_labels=partner_labels, shares=shares)
        second = paste(
            batch.views[1],
            batch.labels,
            partners=partners[1],
            partner_labels=partner_labels,
            shares=shares,
            centres=centres.expand(2, num),
            box=BOXES[self.box],
        )
        return first, second

    def _supervised(self, features: Tensor, own_logits: Tensor, mixed: Mixed) -> Tensor:
        """Return a times the plain losses of the auxiliary classifier plus 1 - a times the own one's weighted ones."""
        loss: nn.Module = getattr(self.setting.objective, "loss", self.setting.objective)
        logits, weights = self.classifier(features), self.class_weights.to(own_logits.dtype)
        shares = mixed.shares.to(own_logits.dtype)
        total = torch.zeros_like(shares)
        for share, labels in ((shares, mixed.labels), (1 - shares, mixed.partner_labels)):
            weighted = weights[labels] * loss(own_logits, labels)
            total = total + share * (self.balance * loss(logits, labels) + (1 - self.balance) * weighted)
        return total

    def _disagreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Return minus the cosines of each view's prediction with the other's projection, (B,)."""
        targets = [self.projector(features) for features in (first, second)]
        guesses = [self.predictor(target) for target in targets]
        one = functional.cosine_similarity(guesses[0], targets[1].detach(), dim=1)
        other = functional.cosine_similarity(guesses[1], targets[0].detach(), dim=1)
        return -(one + other)
