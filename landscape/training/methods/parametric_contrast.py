"""Parametric contrastive learning: PaCo with a momentum encoder, and GPaCo without."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from landscape.data.augmentation import TRANSFORMS
from landscape.errors import unknown_name
from landscape.randomness import stream
from landscape.training.methods.auxiliary import features_and_logits, frozen_copy, num_features, perceptron
from landscape.training.methods.contrast import (
    FORMS,
    RELEASED_QUEUE_LABELS,
    ExampleQueue,
    follow,
    parametric_contrastive_loss,
)
from landscape.training.methods.options import check_choices, check_numbers, check_whole
from landscape.training.methods.protocol import Closures, Method, MiniBatch, Setting

OWN_LOSS: dict[str, Any] = {"loss": "ce", "reweight": "none", "mixup": 0.0, "compile": False}
RANGES = {
    "alpha": (0.0, math.inf),
    "beta": (0.0, math.inf),
    "gamma": (0.0, math.inf),
    "temperature": (1e-3, math.inf),
}


class _ParametricContrast(Method):
    """Two views, the loss's settings, and a queue that grows once per step by what the pieces of its batch left."""

    num_views: ClassVar[int] = 2
    fixed: ClassVar[Mapping[str, Any]] = OWN_LOSS
    unsupported: ClassVar[frozenset[str]] = frozenset({"criterion"})
    name: ClassVar[str]
    own_ranges: ClassVar[Mapping[str, tuple[float, float]]]
    queue: ExampleQueue
    shares: Tensor

    def __init__(
        self,
        setting: Setting,
        *,
        weights: tuple[float, float, float],
        temperature: float,
        key_augmentation: str | None,
        form: Literal["released", "paper"],
    ) -> None:
        super().__init__(setting)
        self.weights = weights
        self.temperature = temperature
        self.key_augmentation = key_augmentation
        self.form = form
        counts = torch.tensor(setting.class_counts, dtype=torch.float64)
        self.register_buffer("shares", counts / counts.sum())
        self._pending: list[list[tuple[Tensor, Tensor]]] = []  # per piece of the batch, what will enter the queue

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise LandscapeError for an option out of range."""
        check_numbers(cls.name, options, {**RANGES, **cls.own_ranges})
        check_whole(cls.name, options, {"queue": 1, "dim": 1})
        check_choices(cls.name, options, {"form": FORMS})
        key = options["key_augmentation"]
        if key is not None and key not in TRANSFORMS:
            raise unknown_name("augmentation", str(key), TRANSFORMS)

    @property
    def view_augmentations(self) -> tuple[str | None, ...]:
        """Name of each view's augmentation."""
        return (None, self.key_augmentation)

    def against_queue(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the queue's embeddings as they are now, and the labels of both views and of the queue."""
        return self.queue.embeddings.clone(), torch.cat([labels, labels, self.queue.labels])

    def after_step(self) -> None:
        """Put into the queue what the batch left for it."""
        for entries in self._pending:
            for embeddings, labels in entries:
                self.queue.push(embeddings, labels)
        self._pending.clear()


class PaCo(_ParametricContrast):
    r"""Parametric contrastive learning (PaCo): class centres and examples in one contrastive loss.

    The anchors are embeddings q of the first view, the others keys k of the second view, from a network that follows the
    weights slowly, and a queue of earlier keys: see :func:`~landscape.training.methods.contrast.parametric_contrastive_loss`.
    Embeddings are the unit vectors that a perceptron (linear, BatchNorm, ReLU, linear) makes of what enters the
    classifier; the centres' logits are the model's own, compensated by the log of the class shares. The checkpoint holds
    the model; perceptron, momentum network and queue belong to the run.

    Parameters
    ----------
    alpha, beta, gamma
        Weights of positive examples and of the own centre, and factor of the examples in the denominator.
    temperature
        T of the products of embeddings.
    momentum
        m of the second network, which moves to m k + (1 - m) q before each step.
    queue, dim
        Length of the queue and of the embeddings.
    key_augmentation
        Name in ``TRANSFORMS`` for the second view; None: that of the run. Released for CIFAR-100-LT: ``crop-flip`` with
        AutoAugment and Cutout for the first view, SimCLR's transform for the second.
    form
        ``released`` or ``paper``, see the loss.

    Notes
    -----
    Source: Cui et al., *Parametric Contrastive Learning*, ICCV 2021, and released code. Defaults are its CIFAR-100-LT script
    at ratio 100 (ResNet-32 of twice the width, 400 epochs, learning rate 0.05, weight decay 5e-4). Others: balanced
    CIFAR-100 temperature 0.07, dim 128; ImageNet-LT alpha 0.05, temperature 0.2, queue 8192, dim 128.

    Differs from the release in:

    1. Its epochs drop the last, smaller batch; here the queue takes batches of any size.
    2. Linear layers start as the other layers of the model, with He-normal weights.
    3. A batch that is cut into pieces (``accumulate``) contrasts within each piece and with the queue before the step.
    4. With an optimizer that evaluates several points per step, the momentum network moves and computes keys once per
       step, at the weights where the step starts, and the queue grows once: every point sees the same keys. PaCo+SAM
       is reported by Rangwani et al. (Saddle-LongTail, NeurIPS 2022), but its code is not released; this is our reading.
    """

    name = "paco"
    own_ranges: ClassVar = {"momentum": (0.0, 1.0)}

    def __init__(
        self,
        setting: Setting,
        *,
        alpha: float = 0.01,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 0.05,
        momentum: float = 0.999,
        queue: int = 1024,
        dim: int = 32,
        key_augmentation: str | None = None,
        form: Literal["released", "paper"] = "released",
    ) -> None:
        super().__init__(
            setting,
            weights=(alpha, beta, gamma),
            temperature=temperature,
            key_augmentation=key_augmentation,
            form=form,
        )
        self.momentum = momentum
        size = num_features(setting.model)
        self.projector = perceptron((size, size, dim), stream(setting.seed, "paco/projector"), has_batchnorm=True)
        self.key_model = frozen_copy(setting.model)
        self.key_projector = frozen_copy(self.projector)
        self.queue = ExampleQueue(
            queue, dim, num_labels=RELEASED_QUEUE_LABELS, generator=stream(setting.seed, "paco/queue")
        )

    @torch.no_grad()
    def _keys(self, images: Tensor) -> Tensor:
        if not self._pending:  # not a further piece of the same batch
            follow(self.key_model, self.setting.model, self.momentum)
            follow(self.key_projector, self.projector, self.momentum)
        features, _ = features_and_logits(self.key_model, images)
        return functional.normalize(self.key_projector(features), dim=1)

    def closures(self, batch: MiniBatch) -> Closures:
        """Move the momentum network, compute the keys, and return the losses against them."""
        labels, keys = batch.labels, self._keys(batch.views[1])
        earlier, everything = self.against_queue(labels)
        self._pending.append([(keys, labels)])

        def losses() -> Tensor:
            features, logits = features_and_logits(self.setting.model, batch.views[0])
            queries = functional.normalize(self.projector(features), dim=1)
            return parametric_contrastive_loss(
                torch.cat([queries, keys.to(queries.dtype), earlier.to(queries.dtype)]),
                everything,
                logits,
                class_shares=self.shares,
                temperature=self.temperature,
                weights=self.weights,
                form=self.form,
            )

        return Closures(descent=losses, labels=labels)


class GPaCo(_ParametricContrast):
    r"""Generalised parametric contrastive learning (GPaCo): both views are anchors of one network, no momentum encoder.

    The loss of an image is the mean over its two views of the loss of :class:`PaCo`; the embeddings of the second
    view enter the queue. The perceptron has two hidden layers and no BatchNorm.

    Parameters
    ----------
    alpha, beta, gamma, temperature, queue, dim, key_augmentation, form
        As for :class:`PaCo`.
    smooth
        Label smoothing of the centres.

    Notes
    -----
    Source: Cui et al., *Generalized Parametric Contrastive Learning*, TPAMI 2023, and released code. Defaults are its
    CIFAR-100-LT script at ratio 100 (400 epochs, learning rate 0.1). ImageNet-LT: alpha 0.045, temperature 0.2, queue 8192,
    dim 128. Differs from the release in: 1. points 1 and 2 of :class:`PaCo`; 2. where an optimizer evaluates several
    points per step, the queue grows once, by the embeddings at the first.
    """

    name = "gpaco"
    own_ranges: ClassVar = {"smooth": (0.0, 1.0)}

    def __init__(
        self,
        setting: Setting,
        *,
        alpha: float = 0.01,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 0.05,
        queue: int = 1024,
        dim: int = 32,
        smooth: float = 0.0,
        key_augmentation: str | None = None,
        form: Literal["released", "paper"] = "released",
    ) -> None:
        super().__init__(
            setting,
            weights=(alpha, beta, gamma),
            temperature=temperature,
            key_augmentation=key_augmentation,
            form=form,
        )
        self.smooth = smooth
        size, num_classes = num_features(setting.model), len(setting.class_counts)
        self.projector = perceptron((size, size, size, dim), stream(setting.seed, "gpaco/projector"))
        self.queue = ExampleQueue(queue, dim, num_labels=num_classes, generator=stream(setting.seed, "gpaco/queue"))

    def closures(self, batch: MiniBatch) -> Closures:
        """Return the losses of both views against each other and the queue."""
        labels = batch.labels
        earlier, everything = self.against_queue(labels)
        seen: list[tuple[Tensor, Tensor]] = []
        self._pending.append(seen)

        def losses() -> Tensor:
            embeddings, logits = zip(*(self._embedded(view) for view in batch.views))
            if not seen:
                seen.append((embeddings[1].detach(), labels))
            both = parametric_contrastive_loss(
                torch.cat([*embeddings, earlier.to(embeddings[0].dtype)]),
                everything,
                torch.cat(logits),
                class_shares=self.shares,
                temperature=self.temperature,
                weights=self.weights,
                smooth=self.smooth,
                form=self.form,
            )
            return both.view(2, -1).mean(dim=0)

        return Closures(descent=losses, labels=labels)

    def _embedded(self, view: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = features_and_logits(self.setting.model, view)
        return functional.normalize(self.projector(features), dim=1), logits
