"""What a method is fed: the batches of an epoch with their views and partners."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from landscape.randomness import stream
from landscape.training.methods import MiniBatch
from landscape.training.setup import Run


def batches_of(run: Run, epoch: int) -> Iterator[MiniBatch]:
    """Return the batches of an epoch that has been begun: the same whenever it is asked for."""
    method, seed, streams = run.method, run.spec.seed, f"training/epoch={epoch}"
    labels, augmentations = run.dataset.train.labels, method.view_augmentations
    order = method.example_order(labels, stream(seed, f"{streams}/examples"))
    when = {"epoch": epoch, "num_epochs": run.spec.epochs}
    batches = run.batches.views(stream(seed, f"{streams}/batches"), augmentations=augmentations, order=order, **when)
    partners = method.partner_order(labels, stream(seed, f"{streams}/partners"))
    if partners is None:
        for views, targets in batches:
            yield MiniBatch(views, targets, run.drawing)
        return
    others = run.batches.views(stream(seed, f"{streams}/partner-batches"), augmentations=augmentations, order=partners)
    for (views, targets), (partner_views, partner_targets) in zip(batches, others):
        yield MiniBatch(views, targets, run.drawing, partner_views, partner_targets)


def inputs_of(run: Run, epoch: int) -> Iterator[Tensor]:
    """Return the inputs of the batches of an epoch."""
    return (batch.views[0] for batch in batches_of(run, epoch))
