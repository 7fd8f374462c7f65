"""Global and local mixture consistency with cumulative re-weighting (GLMC)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.training.methods.auxiliary import features_and_logits, num_features, perceptron, second_classifier
from landscape.training.methods.mixing import dominant_labels, draw_box, draw_coefficient, draw_weighted_examples
from landscape.training.methods.options import check_choices, check_numbers, check_whole
from landscape.training.methods.protocol import Closures, Method, MiniBatch, Setting


class _View(NamedTuple):
    """A mixed batch, and the share of the first images in its labels."""

    images: Tensor
    share: float


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
    cut_share
        Labels of the cut mixture: ``coefficient``, lambda itself, as released; ``area``, the share of pixels that the
        first image keeps, as in CutMix.
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
        cut_share: Literal["coefficient", "area"] = "coefficient",
        dim: int = 128,
    ) -> None:
        super().__init__(setting)
        self.contrast_weight = contrast_weight
        self.resample_weighting = resample_weighting
        self.mix = mix
        self.cut_share = cut_share
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
        check_choices("glmc", options, {"cut_share": ("coefficient", "area")})

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
        views = self._mixed(batch.views, batch.partner_views, batch.generator)
        labels = (batch.labels, batch.partner_labels)

        def losses(*, is_ascent: bool) -> Tensor:
            features, own_logits = zip(*(features_and_logits(self.setting.model, view.images) for view in views))
            total = sum(self._supervised(f, z, v.share, labels) for f, z, v in zip(features, own_logits, views))
            assert isinstance(total, Tensor)
            return total if is_ascent else total + self.contrast_weight * self._disagreement(*features)

        ascent: Callable[[], Tensor] = lambda: losses(is_ascent=True)  # noqa: E731
        seen = dominant_labels(batch.labels, batch.partner_labels, views[0].share)
        return Closures(descent=lambda: losses(is_ascent=False), labels=seen, ascent=ascent)

    def _mixed(
        self, views: tuple[Tensor, ...], partners: tuple[Tensor, ...], generator: torch.Generator
    ) -> tuple[_View, _View]:
        share = draw_coefficient(self.mix, generator)
        height, width = views[1].shape[2:]
        rows, columns = draw_box(height, width, share, generator)
        cut = views[1].clone()
        cut[:, :, rows, columns] = partners[1][:, :, rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        cut_share = share if self.cut_share == "coefficient" else 1 - area
        return _View(share * views[0] + (1 - share) * partners[0], share), _View(cut, cut_share)

    def _supervised(self, features: Tensor, own_logits: Tensor, share: float, labels: tuple[Tensor, Tensor]) -> Tensor:
        """Return a times the plain losses of the auxiliary classifier plus 1 - a times the own one's weighted ones."""
        loss: nn.Module = getattr(self.setting.objective, "loss", self.setting.objective)
        logits, weights = self.classifier(features), self.class_weights.to(own_logits.dtype)
        first, second = labels
        plain = share * loss(logits, first) + (1 - share) * loss(logits, second)
        weighted = share * weights[first] * loss(own_logits, first)
        weighted = weighted + (1 - share) * weights[second] * loss(own_logits, second)
        return self.balance * plain + (1 - self.balance) * weighted

    def _disagreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Return minus the cosines of each view's prediction with the other's projection, (B,)."""
        targets = [self.projector(features) for features in (first, second)]
        guesses = [self.predictor(target) for target in targets]
        one = functional.cosine_similarity(guesses[0], targets[1].detach(), dim=1)
        other = functional.cosine_similarity(guesses[1], targets[0].detach(), dim=1)
        return -(one + other)
