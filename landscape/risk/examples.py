"""The fixed examples under study: sorted by class, resident on the device, cut into chunks that fit the memory."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler, Sampler, SequentialSampler, SubsetRandomSampler

from landscape.data import DiskImages
from landscape.errors import LandscapeError, foreign_errors_explained
from landscape.risk.inputs import Inputs, Stored, as_inputs, held, joined, num_rows, rows_of, shape_of, taken

Transform = Callable[[Any, torch.dtype], Any]

# How deep a loader may be wrapped.
MOST_WRAPPED = 3


@dataclass(frozen=True)
class Examples:
    """N labelled inputs in class order; class c owns the rows ``offsets[c]`` to ``offsets[c + 1]``.

    ``transform`` turns stored inputs (uint8 images, say) into what the model reads, chunk by chunk and in the dtype
    of the analysis; it must be deterministic.
    """

    inputs: Any  # (N, ...), or named ones, or images on disk that are too many for the memory
    labels: Tensor  # (N,) int64, ascending
    offsets: tuple[int, ...]  # (C + 1,)
    transform: Transform | None = None
    order: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # (N,) the rows' places as given

    @classmethod
    def of(
        cls,
        inputs: Stored,
        labels: Tensor,
        *,
        num_classes: int,
        device: torch.device,
        transform: Transform | None = None,
    ) -> Examples:
        """Sort inputs (N, ...) and labels (N,) by class, keeping the order within a class, on the device."""
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
            ignored = [value for value in (-1, -100, 255) if bool((labels == value).any())]
            rest = labels[~torch.isin(labels, torch.tensor(ignored, dtype=labels.dtype))] if ignored else labels
            if ignored and (not len(rest) or (int(rest.min()) >= 0 and int(rest.max()) < num_classes)):
                raise LandscapeError(
                    f"{len(labels) - len(rest)} labels are {ignored[0]}, as for ignored or unlabelled examples (ignore_index): "
                    f"leave these examples out; the others run from 0 to {num_classes - 1}"
                )
            raise LandscapeError(
                f"wrong number of classes: labels run from {int(labels.min())} to {int(labels.max())}, "
                f"the model has {num_classes} outputs"
            )
        order = torch.argsort(labels, stable=True)
        counts = torch.bincount(labels, minlength=num_classes)
        offsets = (0, *torch.cumsum(counts, 0).tolist())
        return cls(held(taken(inputs, order), device), labels[order].to(device), offsets, transform, order.cpu())

    @property
    def counts(self) -> Tensor:
        """(C,) examples per class, on the CPU."""
        return torch.tensor(self.offsets).diff()

    def counts_of(self, draws_per_example: int) -> Tensor:
        """(C,) examples per class where several rows are draws of one; LandscapeError if the rows do not divide so."""
        if draws_per_example < 1 or bool((self.counts % draws_per_example).any()):
            raise LandscapeError(
                f"draws_per_example: expected a number that divides the rows of every class, got {draws_per_example}"
            )
        return self.counts // draws_per_example

    def read(self, rows: slice | Tensor, dtype: torch.dtype) -> Inputs:
        """Return the model inputs of some rows in ``dtype``."""
        return as_model_inputs(rows_of(self.inputs, rows), self.transform, dtype)

    def chunks(self, classes: Sequence[int], size: int) -> Iterator[slice]:
        """Yield row ranges of at most ``size`` rows that cover the given classes, merging neighbours."""
        runs: list[list[int]] = []
        for c in sorted(classes):
            start, stop = self.offsets[c], self.offsets[c + 1]
            if start == stop:
                continue
            if runs and runs[-1][1] == start:
                runs[-1][1] = stop
            else:
                runs.append([start, stop])
        for start, stop in runs:
            num_chunks = -(-(stop - start) // size)
            step = -(-(stop - start) // num_chunks)  # even chunks: no tiny last one
            for first in range(start, stop, step):
                yield slice(first, min(first + step, stop))

    def classes_in(self, rows: slice) -> set[int]:
        """Return the classes that own some of the rows."""
        return {c for c, (a, b) in enumerate(itertools.pairwise(self.offsets)) if a < rows.stop and b > rows.start}

    def reordered(self, order: Tensor) -> Examples:
        """Return rows in any order, any number of times each; no class owns a range of them."""
        return Examples(taken(self.inputs, order), self.labels[order], (), self.transform, self.order[order.cpu()])

    def subset(self, rows: Tensor) -> Examples:
        """Return the examples of ascending row numbers."""
        labels = self.labels[rows]
        counts = torch.bincount(labels.cpu(), minlength=len(self.offsets) - 1)
        offsets = (0, *torch.cumsum(counts, 0).tolist())
        return Examples(taken(self.inputs, rows), labels, offsets, self.transform, self.order[rows.cpu()])


def as_model_inputs(stored: Inputs, transform: Transform | None, dtype: torch.dtype) -> Inputs:
    """Return what the model reads: transformed, or in ``dtype`` where floating (token numbers stay integers)."""
    if transform is not None:
        return transform(stored, dtype)
    if isinstance(stored, dict):
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in stored.items()}
    return stored.to(dtype) if stored.is_floating_point() else stored


def warn_of_drawn_examples(loader: Any) -> None:
    """Warn where a loader's sampler draws examples, so that the class counts are not those of the data set."""
    for _ in range(MOST_WRAPPED):  # prefetchers and the like
        if not hasattr(loader, "sampler") and hasattr(loader, "loader"):
            loader = loader.loader
    sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    dataset = getattr(loader, "dataset", None)
    if dataset is None or not hasattr(dataset, "__len__"):
        return
    plain = (SequentialSampler, RandomSampler, SubsetRandomSampler)
    draws = isinstance(sampler, (Sampler, Iterable)) and not isinstance(sampler, plain)
    draws |= isinstance(sampler, RandomSampler) and sampler.replacement
    who = sampler
    if batch_sampler is not None and not isinstance(batch_sampler, BatchSampler):
        draws, who = True, batch_sampler
    size = getattr(loader, "batch_size", None) or 1
    drops = bool(getattr(loader, "drop_last", False)) and len(dataset) % size > 0
    if draws or drops:
        why = f"its sampler {type(who).__name__} draws them" if draws else "drop_last leaves some out"
        warnings.warn(
            f"the class counts are those of the examples that the loader gave, {why}: pass train_counts= for losses that "
            "count, and a loader in file order for the data under study",
            stacklevel=6,
        )


def read_examples(data: Any) -> tuple[Stored, Tensor]:
    """Return inputs (N, ...) and labels (N,) of what people call data.

    Taken are a pair of tensors, an object with images and labels, and batches; in the place of a tensor of inputs a
    mapping of named tensors, which may hold the labels itself (as ``labels`` or ``label``). Batches (a DataLoader,
    say) are read once, so augmentation in them is frozen at that one draw.
    """
    if hasattr(data, "images") and hasattr(data, "labels"):
        inputs: Stored = as_inputs(data.images)
        labels = _labels(data.labels)
    elif isinstance(data, Mapping) or _is_pair(data):
        inputs, labels = _pair(data)
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        warn_of_drawn_examples(data)
        with foreign_errors_explained("the batches cannot be read"):
            batches = [_pair(batch) for batch in data]
        if not batches:
            raise LandscapeError("the data are empty: expected at least one batch (inputs, labels)")
        inputs = joined([batch[0] for batch in batches])
        labels = torch.cat([batch[1] for batch in batches])
    else:
        raise LandscapeError(
            f"expected data as (inputs, labels) tensors, a data split or an iterable of batches, got {type(data).__name__}"
            + (": wrap it in torch.utils.data.DataLoader(data, batch_size=...)" if hasattr(data, "__getitem__") else "")
        )
    if labels.dim() == 2 and labels.shape[1] == 1 and not labels.is_floating_point():
        labels = labels[:, 0]
    is_whole = not (labels.is_floating_point() or labels.is_complex())
    if labels.dim() != 1 or not _has_rows(inputs) or len(labels) != num_rows(inputs) or not is_whole:
        raise LandscapeError(
            f"expected integer labels (N,) beside inputs (N, ...), got labels {tuple(labels.shape)} {labels.dtype} "
            f"and inputs {shape_of(inputs)}" + ("; of one-hot labels take argmax(1)" if labels.dim() == 2 else "")
        )
    if len(labels) == 0:
        raise LandscapeError("the data are empty: expected at least one example")
    return inputs, labels.long().cpu()


def _has_rows(inputs: Stored) -> bool:
    return isinstance(inputs, (dict, DiskImages)) or inputs.dim() > 0


def _is_pair(data: Any) -> bool:
    """Whether the data are (inputs, labels) rather than a list of two batches, which are pairs or mappings themselves."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    return isinstance(data[1], (Tensor, np.ndarray)) or _is_list_of_labels(data[1])


def _is_list_of_labels(data: Any) -> bool:
    return isinstance(data, (list, tuple)) and bool(data) and isinstance(data[0], (int, str, np.integer, np.str_))


def _pair(batch: Any) -> tuple[Stored, Tensor]:
    """Return inputs and labels of (inputs, labels), or of a mapping that holds its labels."""
    if not isinstance(batch, Mapping):
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise LandscapeError(f"expected batches (inputs, labels), got {_described(batch)}")
        inputs, labels = as_inputs(batch[0]), _labels(batch[1])
        if labels.dim() == 0:
            raise LandscapeError(
                "expected batches (inputs (B, ...), labels (B,)), got single examples: gather them with "
                "torch.utils.data.DataLoader(data, batch_size=...)"
            )
        return inputs, labels
    key = next((key for key in ("labels", "label") if key in batch), None)
    if key is None:
        raise LandscapeError(
            f"expected labels beside named inputs, got only {', '.join(map(str, batch))}: "
            "pass (inputs, labels), or add the entry 'labels'"
        )
    return as_inputs({name: entry for name, entry in batch.items() if name != key}), _labels(batch[key])


def _described(batch: Any) -> str:
    size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    return f"{type(batch).__name__}{size}"


def _labels(given: Any) -> Tensor:
    try:
        return torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(given[0]).__name__ if isinstance(given, (list, tuple)) and given else type(given).__name__
        raise LandscapeError(
            f"expected integer labels (N,), got {kind}: number the classes from 0 (class_names= keeps their names)"
        ) from error


def limit_per_class(labels: Tensor, limit: int) -> Tensor:
    """Return the row numbers of the first ``limit`` examples of each class, in file order."""
    keep = torch.zeros(len(labels), dtype=torch.bool)
    for c in torch.unique(labels).tolist():
        keep[torch.nonzero(labels == c)[:limit, 0]] = True
    return torch.nonzero(keep)[:, 0]
