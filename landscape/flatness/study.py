"""What every measure is given, what it returns, and means over the examples of lanes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from landscape.flatness.options import FlatnessOptions
from landscape.perturbation import lane_means
from landscape.results import Journal, keep_block
from landscape.risk import ClassRisk, Lanes, ModelRisk


@dataclass(frozen=True)
class Estimate:
    """One number per lane.

    Attributes
    ----------
    value, stderr
        (L,); the standard error is None where the value is exact or a bound, which the measure's entry says.
    more
        Further numbers per lane that belong to it, by name.
    attributes
        What a reader must know beside them: ``missing`` says why the values are NaN.
    """

    value: np.ndarray
    stderr: np.ndarray | None = None
    more: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A risk, the lanes to measure, and the blocks of evaluations that several measures share.

    Attributes
    ----------
    risk, lanes, options, seed
        What is measured, for whom, how far, and the root of every random stream.
    journal
        Keeps finished blocks on disk.
    tick
        Called after every block with its name.
    """

    risk: ClassRisk
    lanes: Lanes
    options: FlatnessOptions = field(default_factory=FlatnessOptions)
    seed: int = 0
    journal: Journal | None = None
    tick: Callable[[str], None] | None = None
    _done: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    @property
    def network(self) -> ModelRisk | None:
        """The risk where it has examples and logits; None for an analytic one."""
        return self.risk if isinstance(self.risk, ModelRisk) else None

    @property
    def classes(self) -> list[int]:
        """Classes that enter some lane."""
        return torch.nonzero((self.lanes.weights != 0).any(0))[:, 0].tolist()

    def block(self, name: str, compute: Callable[[], Mapping[str, object]]) -> dict[str, np.ndarray]:
        """Return a block of arrays, computed when first asked for."""
        if name not in self._done:
            self._done[name] = keep_block(self.journal, f"flatness/{name}", compute)
            if self.tick is not None:
                self.tick(name)
        return self._done[name]

    def missing(self, reason: str) -> Estimate:
        """Return NaN for every lane, with the reason."""
        return Estimate(np.full(len(self.lanes), np.nan), attributes={"missing": reason})

    def without_examples(self, what: str) -> Estimate:
        """Return NaN for every lane: the risk is a function of the weights alone."""
        return self.missing(f"needs {what}, which an analytic risk does not have")


def example_means(study: Study, values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    r"""Return the lanes' means of a number per row (N,), and their standard errors, both (L,).

    .. math:: \bar x = \sum_c w_c \bar x_c, \qquad \mathrm{se}^2 = \sum_c w_c^2 s_c^2 / n_c

    with the classes as strata; fixed draws of one image count as one image, their mean. The mean is exact over the
    examples under study; the standard error is that of these images as a sample, NaN where a class has one.
    """
    network = study.network
    assert network is not None
    draws = network.draws_per_example
    images = values.double().reshape(-1, draws).mean(1)
    labels = network.labels[::draws]
    counts = torch.bincount(labels, minlength=len(network.class_names)).double()

    def class_sums(numbers: Tensor) -> Tensor:
        return torch.zeros_like(counts).index_add_(0, labels, numbers)

    means = class_sums(images) / counts
    spreads = class_sums((images - means[labels]).square()) / (counts - 1)
    shares = replace(study.lanes, weights=study.lanes.weights.square())
    return lane_means(study.lanes, means.cpu()), np.sqrt(lane_means(shares, (spreads / counts).cpu()))
