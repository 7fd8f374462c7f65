"""The released per-class analysis of Saddle-LongTail, setting by setting: ``--protocol saddle-longtail``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from landscape.data.augmentation import Transform, find_transform
from landscape.loading import CheckpointSource, LoadedCheckpoint, risk_of
from landscape.randomness import stream
from landscape.results import Journal, keep_block, validate
from landscape.risk import LaneChoice, ModelRisk, lanes_of
from landscape.risk.arithmetic import precise_arithmetic
from landscape.spectrum.assembly import assemble
from landscape.spectrum.bridge import Batch, PyHessianSettings
from landscape.spectrum.pyhessian import (
    FrozenBatches,
    backend_attributes,
    measure_with_pyhessian,
    rows_of_lane,
)

PROTOCOL = "saddle-longtail"
BATCH_SIZE = 128
# PyHessian's own defaults, which the released script does not change.
RELEASED = PyHessianSettings(num_steps=100, num_probes=1, max_iterations=100, tolerance=1e-3)
NO_VERDICT = "none: the operator changes with every product"


class RedrawnBatches:
    """The images of some rows in file order, in batches, cropped and flipped anew at every pass.

    What the released loader serves: no shuffling, the smaller last batch kept, the training transform left on. Every
    pass is one product, so no two products belong to the same matrix.
    """

    def __init__(
        self, risk: ModelRisk, rows: Tensor, *, transform: Transform, batch_size: int, generator: torch.Generator
    ) -> None:
        self._risk, self._parts = risk, rows.split(batch_size)
        self._transform, self._generator = transform, generator
        self.num_passes = 0

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        self.num_passes += 1
        examples: Any = self._risk._examples
        for part in self._parts:
            images = self._transform.redraw(examples.inputs[part], self._generator)
            inputs = images if examples.transform is None else examples.transform(images, self._risk.dtype)
            yield inputs.to(self._risk.dtype), examples.labels[part]


@precise_arithmetic()
def measure_released(
    loaded: LoadedCheckpoint,
    source: CheckpointSource,
    lanes: LaneChoice | None = "classes",
    *,
    settings: PyHessianSettings = RELEASED,
    seed: int = 0,
    journal: Journal | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> xr.Dataset:
    r"""Measure per-class spectra exactly as the released analysis does, PyHessian included.

    Parameters
    ----------
    loaded, source
        The checkpoint and how to read it. The loss is replaced by plain cross-entropy, as released. On the ``train``
        split the images are augmented anew at every product, with what the data set's training uses; on ``test``
        they are as stored.
    lanes
        Classes; groups and ``"all"`` pool their examples.
    settings
        The released numbers: power iteration and trace of at most 100 products with tolerance 1e-3, a density of 100
        steps from one Rademacher vector.
    seed
        Root seed; the draws of the augmentation and of PyHessian are named streams of each lane.
    journal, progress
        As in :func:`landscape.measure_spectrum`.

    Returns
    -------
    xarray.Dataset
        With dimensions lane, probe, step, attributes ``protocol="saddle-longtail"`` and ``augmentation``, and besides
        the schema's variables ``lambda_max_over_min`` :math:`= \lambda_{\max} / \lambda_{\min}` (signed, as
        logged there; the ``ratio`` of tables and files is :func:`landscape.ratios.curvature_ratio`) and
        ``pyhessian_top_eigenvalue``. No verdict is drawn from it: every lane is ``undecided``.

    Raises
    ------
    LandscapeError
        As :func:`landscape.load_risk` and :func:`landscape.spectrum.pyhessian.measure_with_pyhessian`.

    Notes
    -----
    What the settings are: all images of the class in file order, batches of 128 weighted by their size, BatchNorm in
    evaluation mode, the mean cross-entropy of the class, no weight decay, every trainable parameter. Under redrawn
    augmentation each product belongs to another matrix: T is then not the compression of any operator, and even a
    convex model gets a negative :math:`\lambda_{\min}`.

    It differs from the release: 1. ``torch.eig`` is bridged, see :mod:`landscape.spectrum.bridge`; 2. every draw is
    seeded; 3. any architecture and number of classes. Not reproduced: the ``LDAM`` loss option (measure with
    ``loss="ldam"`` and our own backend), and ``--train_rule_hess DRW``, which has no effect there: the weight of
    a single class cancels from its weighted mean.

    Source: Rangwani, Aithal, Mishra and Venkatesh Babu, *Escaping Saddle Points for Effective Generalization on
    Class-Imbalanced Data*, NeurIPS 2022, and its released code.
    """
    # The images as stored: the loader below is what augments them.
    risk = risk_of(loaded, replace(source, loss="ce", augment="none"))
    assert isinstance(risk, ModelRisk)
    redraws = source.split == "train" and loaded.dataset.augmentation != "none"
    transform = find_transform(loaded.dataset)
    chosen = lanes_of(risk, lanes, group_average="examples")
    blocks = []
    for index, name in enumerate(chosen.names):

        def measure(row: Tensor = chosen.weights[index], name: str = name) -> dict[str, np.ndarray]:
            rows = rows_of_lane(risk, row, name=name)
            generator = stream(seed, f"spectrum/{name}/redraw")
            batches = (
                RedrawnBatches(risk, rows, transform=transform, batch_size=BATCH_SIZE, generator=generator)
                if redraws
                else FrozenBatches(risk, rows, BATCH_SIZE)
            )
            found = measure_with_pyhessian(risk, row, settings=settings, seed=seed, name=name, batches=batches)
            if redraws:
                found["evidence"] = np.asarray(NO_VERDICT)
            return {**found, "lambda_max_over_min": np.asarray(_inverse_ratio(found))}

        blocks.append(keep_block(journal, f"{PROTOCOL}/lane={name}", measure))
        if progress is not None:
            progress(index + 1, len(chosen), f"released spectrum of {name}")
    attributes = {
        **risk.attributes,
        **backend_attributes(settings, seed, len(risk.theta)),
        "protocol": PROTOCOL,
        "augmentation": f"{loaded.dataset.augmentation}, redrawn at every product" if redraws else "none",
        "option_batch_size": BATCH_SIZE,
    }
    dataset = assemble(risk, chosen, blocks)
    dataset.attrs = attributes
    return validate("spectrum", dataset)


def _inverse_ratio(found: dict[str, np.ndarray]) -> float:
    low, high = float(found["lambda_min"]), float(found["lambda_max"])
    return high / low if low != 0 else float("nan")
