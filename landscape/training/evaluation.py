"""The one evaluation loop: loss and accuracy of every class over a fixed set of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from landscape.data import Dataset, Split
from landscape.losses import cross_entropy


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy per class.

    Attributes
    ----------
    loss
        Mean loss of each class's images, (C,) float64; NaN for a class without images.
    accuracy
        Share of each class's images that are classified correctly, (C,) float64; NaN likewise.
    num_examples
        Images per class, (C,) int64.
    """

    loss: Tensor
    accuracy: Tensor
    num_examples: Tensor

    def pooled(self, classes: Iterable[int]) -> tuple[float, float]:
        """Return loss and accuracy over all images of some classes; NaN if there are none."""
        chosen = torch.tensor(list(classes), dtype=torch.int64)
        share = self.num_examples[chosen].double()
        keep = chosen[share > 0]  # a class without images is NaN and must not enter the sum
        share = self.num_examples[keep].double() / share.sum()
        if not len(keep):
            return float("nan"), float("nan")
        return float((share * self.loss[keep]).sum()), float((share * self.accuracy[keep]).sum())


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in evaluation mode and give every submodule its own mode back afterwards."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    dataset: Dataset,
    *,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    batch_size: int = 512,
    flip: bool = False,
) -> Evaluation:
    """Measure loss and accuracy of each class, without augmentation, in evaluation mode.

    Sums run over examples in float64 and are divided once, by the number of images of the class.

    Parameters
    ----------
    model
        The network, on the device to compute on; its mode is restored.
    split
        The images, usually ``dataset.test``.
    dataset
        Gives the normalisation and the number of classes.
    criterion
        Per-example loss, (B, C) logits and (B,) labels to (B,); by default cross-entropy.
    batch_size
        Images per forward pass; changes nothing but speed and the rounding of a matrix product.
    flip
        Whether the logits are the mean of those of the image and of its mirror image (ImbSAM, SSE-SAM, released code).

    Returns
    -------
    Evaluation
        Per class, on the CPU.
    """
    reference = next(model.parameters())
    sums = torch.zeros(3, dataset.num_classes, dtype=torch.float64, device=reference.device)  # loss, correct, count
    modules = [module for module in (model, criterion) if isinstance(module, nn.Module)]
    with evaluation_mode(*modules):
        for stored, own in split.in_order(batch_size):
            images, labels = stored.to(reference.device), own.to(reference.device)
            inputs = dataset.normalise(images, dtype=reference.dtype)
            logits = (model(inputs) + model(inputs.flip(3))) / 2 if flip else model(inputs)
            losses = (criterion or cross_entropy)(logits, labels)
            hits = logits.argmax(dim=1) == labels
            sums.index_add_(1, labels, torch.stack([losses.double(), hits.double(), torch.ones_like(losses).double()]))
    loss, correct, count = sums.cpu()
    return Evaluation(loss / count, correct / count, count.long())
