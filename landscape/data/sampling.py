r"""Which training images an epoch serves, and in which order.

Every sampler is a frozen record whose ``epoch_order(labels, num_classes, generator, epoch, num_epochs)`` returns indices
of images, (M,) int64 on the CPU. With :math:`n_c` images of class c, :math:`N` of all, C classes, and :math:`p_c` the
probability that a served image is of class c; within its class each image is equally likely.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from landscape.class_weights import class_balanced_weights
from landscape.errors import LandscapeError, unknown_name

# How many images an epoch serves: as many as the training split has, max_c n_c C, or a number.
Length = Literal["dataset", "largest-class"] | int


class Sampler(Protocol):
    """What serves the images of an epoch."""

    def epoch_length(self, labels: Tensor, num_classes: int) -> int:
        """Return how many images an epoch serves, M."""

    def epoch_order(
        self, labels: Tensor, num_classes: int, generator: torch.Generator, epoch: int, num_epochs: int
    ) -> Tensor:
        """Return the indices of an epoch's images, (M,) int64 on the CPU.

        Parameters
        ----------
        labels
            (N,) int64, on the CPU.
        num_classes
            C; classes without images are never served.
        generator
            A CPU generator.
        epoch, num_epochs
            Which epoch, counted from 0, of how many.
        """


@dataclass(frozen=True)
class Uniform:
    """Every image once, in random order: instance-balanced sampling."""

    def epoch_length(self, labels: Tensor, num_classes: int) -> int:
        """Return N."""
        return len(labels)

    def epoch_order(
        self, labels: Tensor, num_classes: int, generator: torch.Generator, epoch: int, num_epochs: int
    ) -> Tensor:
        """Return a permutation; see :class:`Sampler`."""
        return torch.randperm(len(labels), generator=generator)


@dataclass(frozen=True)
class ClassAware:
    """A few images of one class, then of another: cycles through shuffled classes, and in each through shuffled images.

    Parameters
    ----------
    num_samples_cls
        Consecutive images of one class: 4 in cRT and GCL, 1 by default in OLTR and CC-SAM.
    num_samples
        Images per epoch.

    Notes
    -----
    Source: Shen et al., *Relay Backpropagation*, ECCV 2016; as released with OLTR and cRT (Kang et al., *Decoupling*, ICLR
    2020). Differs from the releases in: 1. cycles begin anew with each epoch, so that a resumed run serves the same images;
    there they go on; 2. OLTR, cRT and GCL serve ``"largest-class"`` images per epoch, CC-SAM the size of the data set,
    which is the default here.
    """

    num_samples_cls: int = 4
    num_samples: Length = "dataset"

    def __post_init__(self) -> None:
        _check_length(self.num_samples)
        if not _is_whole(self.num_samples_cls, 1):
            raise LandscapeError(f"num_samples_cls must be a whole number of at least 1, got {self.num_samples_cls!r}")

    def epoch_length(self, labels: Tensor, num_classes: int) -> int:
        """Return ``num_samples`` in images."""
        return _length(self.num_samples, torch.bincount(labels, minlength=num_classes))

    def epoch_order(
        self, labels: Tensor, num_classes: int, generator: torch.Generator, epoch: int, num_epochs: int
    ) -> Tensor:
        """Return runs of ``num_samples_cls`` images of one class; see :class:`Sampler`."""
        counts = torch.bincount(labels, minlength=num_classes)
        num = _length(self.num_samples, counts)
        present = torch.nonzero(counts)[:, 0]
        num_visits = -(-num // self.num_samples_cls)
        keys = torch.rand(-(-num_visits // len(present)), len(present), generator=generator, dtype=torch.float64)
        visits = present[keys.argsort(1).flatten()][:num_visits]
        classes = visits.repeat_interleave(self.num_samples_cls)  # of each place of the epoch, the last run whole
        needed = torch.bincount(classes, minlength=len(counts))
        # Per class as many whole shuffles of its images as are needed, one after the other.
        repeats = torch.where(needed > 0, -(-needed // counts.clamp_min(1)), 0)
        by_class = torch.argsort(labels, stable=True)
        first = counts.cumsum(0) - counts
        cycle_class = torch.arange(len(counts)).repeat_interleave(repeats)
        sizes = counts[cycle_class]
        cycle = torch.arange(len(cycle_class)).repeat_interleave(sizes)
        within = torch.arange(len(cycle)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        members = by_class[first[cycle_class[cycle]] + within]
        keys = cycle + torch.rand(len(cycle), generator=generator, dtype=torch.float64)
        members = members[torch.argsort(keys, stable=True)]
        # The k-th place of a class in the epoch takes the k-th of its shuffled images.
        start = (repeats * counts).cumsum(0) - repeats * counts
        order = torch.argsort(classes, stable=True)
        rank = torch.arange(len(classes)) - (needed.cumsum(0) - needed)[classes[order]]
        served = torch.empty_like(classes)
        served[order] = members[start[classes[order]] + rank]
        return served[:num]


@dataclass(frozen=True)
class EffectiveNumber:
    r"""With replacement, each image in proportion to its class's effective-number weight: :math:`p_c \propto n_c w_c`.

    Parameters
    ----------
    beta
        See :func:`landscape.class_weights.class_balanced_weights`.
    num_samples
        Images per epoch.

    Notes
    -----
    Source: Cui et al., *Class-Balanced Loss*, CVPR 2019; the ``Resample`` rule of LDAM-DRW and Saddle-LongTail. Differs
    from these scripts in: 1. there the sampler is made after the loader and never used.
    """

    beta: float = 0.9999
    num_samples: Length = "dataset"

    def __post_init__(self) -> None:
        _check_length(self.num_samples)
        class_balanced_weights([1], self.beta)

    def epoch_length(self, labels: Tensor, num_classes: int) -> int:
        """Return ``num_samples`` in images."""
        return _length(self.num_samples, torch.bincount(labels, minlength=num_classes))

    def class_probabilities(self, counts: Tensor) -> Tensor:
        """Return :math:`p_c`, (C,) float64."""
        weights = class_balanced_weights(counts.clamp_min(1), self.beta)
        return _normalised(counts * weights)

    def epoch_order(
        self, labels: Tensor, num_classes: int, generator: torch.Generator, epoch: int, num_epochs: int
    ) -> Tensor:
        """Return indices with repetitions; see :class:`Sampler`."""
        return _draw(labels, num_classes, self.class_probabilities, self.num_samples, generator)


@dataclass(frozen=True)
class ClassPower:
    r"""With replacement, :math:`p_c \propto n_c^q`.

    Parameters
    ----------
    exponent
        q: 1 is the data's own distribution, 1/2 square-root, 0 balanced (each image in proportion to :math:`1 / n_c`,
        GCL's), -1 reversed (BBN's :math:`n_{\max} / n_c`), 0.8 GLMC's (its ``resample_weighting`` is 1 - q).
    num_samples
        Images per epoch.

    Notes
    -----
    Source: Kang et al., *Decoupling Representation and Classifier for Long-Tailed Recognition*, ICLR 2020, eq. 1; the
    reversed sampler: Zhou et al., *BBN*, CVPR 2020, section 4.2.
    """

    exponent: float = 0.0
    num_samples: Length = "dataset"

    def __post_init__(self) -> None:
        _check_length(self.num_samples)
        if not torch.isfinite(torch.tensor(float(self.exponent))):
            raise LandscapeError(f"exponent must be a finite number, got {self.exponent}")

    def epoch_length(self, labels: Tensor, num_classes: int) -> int:
        """Return ``num_samples`` in images."""
        return _length(self.num_samples, torch.bincount(labels, minlength=num_classes))

    def class_probabilities(self, counts: Tensor) -> Tensor:
        """Return :math:`p_c`, (C,) float64."""
        return _normalised(torch.where(counts > 0, counts.double().clamp_min(1) ** self.exponent, 0))

    def epoch_order(
        self, labels: Tensor, num_classes: int, generator: torch.Generator, epoch: int, num_epochs: int
    ) -> Tensor:
        """Return indices with repetitions; see :class:`Sampler`."""
        return _draw(labels, num_classes, self.class_probabilities, self.num_samples, generator)


@dataclass(frozen=True)
class Progressive:
    r"""With replacement, from the data's own distribution to the balanced one: :math:`p_c = (1 - s) n_c / N + s / C`.

    Parameters
    ----------
    ends
        ``"described"``: :math:`s = e / E` in epoch e of E, which stops short of balance; ``"released"``:
        :math:`s = e / (E - 1)`, balanced in the last epoch.
    num_samples
        Images per epoch.

    Notes
    -----
    Source: Kang et al., *Decoupling*, ICLR 2020, eq. 2, and the released code.
    """

    ends: Literal["described", "released"] = "described"
    num_samples: Length = "dataset"

    def __post_init__(self) -> None:
        _check_length(self.num_samples)
        if self.ends not in ("described", "released"):
            raise unknown_name("end of progressive sampling", self.ends, ("described", "released"))

    def epoch_length(self, labels: Tensor, num_classes: int) -> int:
        """Return ``num_samples`` in images."""
        return _length(self.num_samples, torch.bincount(labels, minlength=num_classes))

    def share(self, epoch: int, num_epochs: int) -> float:
        """Return s, the balanced part of an epoch, from 0 to 1."""
        return min(1.0, epoch / max(1, num_epochs if self.ends == "described" else num_epochs - 1))

    def epoch_order(
        self, labels: Tensor, num_classes: int, generator: torch.Generator, epoch: int, num_epochs: int
    ) -> Tensor:
        """Return indices with repetitions; see :class:`Sampler`."""
        share = self.share(epoch, num_epochs)

        def probabilities(counts: Tensor) -> Tensor:
            return (1 - share) * _normalised(counts.double()) + share * _normalised((counts > 0).double())

        return _draw(labels, num_classes, probabilities, self.num_samples, generator)


def _draw(
    labels: Tensor,
    num_classes: int,
    probabilities: Callable[[Tensor], Tensor],
    num_samples: Length,
    generator: torch.Generator,
) -> Tensor:
    """Draw classes by their probabilities, then an image of each, both with replacement; (M,) int64."""
    counts = torch.bincount(labels, minlength=num_classes)
    num = _length(num_samples, counts)
    classes = torch.multinomial(probabilities(counts), num, replacement=True, generator=generator)
    places = (torch.rand(num, generator=generator, dtype=torch.float64) * counts[classes]).long()
    first = counts.cumsum(0) - counts
    return torch.argsort(labels, stable=True)[first[classes] + places]


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum()


def _length(num_samples: Length, counts: Tensor) -> int:
    """Return the images of an epoch, M."""
    if num_samples == "dataset":
        return int(counts.sum())
    if num_samples == "largest-class":
        return int(counts.max()) * int((counts > 0).sum())
    return int(num_samples)


def _check_length(num_samples: object) -> None:
    if num_samples not in ("dataset", "largest-class") and not _is_whole(num_samples, 1):
        raise LandscapeError(
            f"num_samples must be 'dataset', 'largest-class' or a whole number of at least 1, got {num_samples!r}"
        )


def _is_whole(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


SAMPLERS: dict[str, Sampler] = {
    "uniform": Uniform(),
    "class-aware": ClassAware(),
    "class-balanced": EffectiveNumber(),
    "balanced": ClassPower(0.0),
    "square-root": ClassPower(0.5),
    "power": ClassPower(0.8),
    "inverse": ClassPower(-1.0),
    "progressive": Progressive(),
}


def build_sampler(name: str, **options: Any) -> Sampler:
    """Build a sampler by name.

    Parameters
    ----------
    name
        A key of :data:`SAMPLERS`.
    options
        Fields of its record, in place of their defaults.

    Raises
    ------
    LandscapeError
        For an unknown name or option, or a value out of range.

    Examples
    --------
    >>> labels = torch.tensor([0] * 9 + [1])
    >>> sampler = build_sampler("balanced", num_samples=1000)
    >>> order = sampler.epoch_order(labels, 2, torch.Generator().manual_seed(0), 0, 1)
    >>> bool((labels[order].double().mean() - 0.5).abs() < 0.05)
    True
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    sampler: Any = SAMPLERS[name]
    known = [field.name for field in dataclasses.fields(sampler)]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of sampler '{name}'", option, known or ["(none)"])
    built: Sampler = dataclasses.replace(sampler, **options)
    return built
