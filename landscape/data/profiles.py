"""Long-tailed class profiles, and which examples of a balanced set make up the long-tailed one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from landscape.data.dataset import Split
from landscape.errors import LandscapeError, unknown_name

Profile = Literal["exponential", "step"]
Selection = Literal["seed0", "seed42", "first"]
Relabelling = Literal["none", "count"]

# Share of the smallest class that is held out, of every class, where no test images come with the data.
TEST_SHARE = 0.2


def long_tailed_counts(num_max: int, num_classes: int, imbalance_ratio: float, profile: Profile) -> tuple[int, ...]:
    r"""Return the number of training examples of each class, in label order.

    .. math:: n_c = \lfloor n_{\max}\, \mu^{c / (C - 1)} \rfloor, \qquad \mu = 1 / \text{imbalance ratio}

    for the exponential profile; the step profile gives the first ``C // 2`` classes :math:`n_{\max}` and the others
    :math:`\lfloor n_{\max}\, \mu \rfloor`. Truncation is toward zero, in double precision, as published.

    Parameters
    ----------
    num_max
        Examples of the most frequent class.
    num_classes
        Number of classes C, at least 2.
    imbalance_ratio
        Largest over smallest count, at least 1. Released code often takes its inverse.
    profile
        ``"exponential"`` or ``"step"``.

    Raises
    ------
    LandscapeError
        If the ratio is below 1, or so large that a class would be left without examples.

    Notes
    -----
    Source: Cao et al., *LDAM-DRW*, NeurIPS 2019, released code. Differs in: 1. with an odd number of classes the
    released step profile drops the last class; here it belongs to the second half.

    Examples
    --------
    >>> long_tailed_counts(5000, 10, 100, "exponential")
    (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
    """
    if profile not in get_args(Profile):
        raise unknown_name("profile", profile, get_args(Profile))
    if num_classes < 2:
        raise LandscapeError(f"a long-tailed profile needs at least 2 classes, got {num_classes}")
    if not (math.isfinite(imbalance_ratio) and imbalance_ratio >= 1):
        hint = f": did you mean {1 / imbalance_ratio:g}?" if 0 < imbalance_ratio < 1 else ""
        raise LandscapeError(
            f"imbalance_ratio is the largest over the smallest class count, at least 1, got {imbalance_ratio:g}{hint}"
        )
    mu = 1 / imbalance_ratio
    if profile == "exponential":
        counts = tuple(int(num_max * mu ** (c / (num_classes - 1))) for c in range(num_classes))
    else:
        counts = tuple(num_max if c < num_classes // 2 else int(num_max * mu) for c in range(num_classes))
    if min(counts) < 1:
        raise LandscapeError(
            f"imbalance_ratio {imbalance_ratio:g} leaves class {counts.index(0)} without examples, because the largest "
            f"class has only {num_max}: choose a ratio of at most {num_max}"
        )
    return counts


def select_examples(labels: NDArray[np.int64], counts: tuple[int, ...], selection: Selection) -> NDArray[np.int64]:
    """Return the indices of a long-tailed subset, sorted by class.

    Parameters
    ----------
    labels
        Labels of the balanced set, (N,), in file order.
    counts
        Examples to keep of each class.
    selection
        ``"seed0"`` shuffles each class in turn with one legacy NumPy stream, the one of ``np.random.seed(0)``;
        ``"seed42"`` likewise; ``"first"`` keeps the first examples in file order.

    Returns
    -------
    Indices into ``labels``, (sum of counts,): class 0 first, each class in drawn order.

    Raises
    ------
    LandscapeError
        For an unknown selection, or a class with fewer examples than asked for.

    Notes
    -----
    Source, by released code: ``seed0`` LDAM, MiSLAS, GCL, VS and their descendants; ``seed42`` CC-SAM; ``first``
    ImbSAM and SSE-SAM. Published subsets also need the official order of examples.
    """
    if selection not in get_args(Selection):
        raise unknown_name("selection", selection, get_args(Selection))
    # The published subsets are defined by NumPy's legacy generator, which is frozen for good.
    seeds = {"seed0": 0, "seed42": 42}
    rng = np.random.RandomState(seeds[selection]) if selection in seeds else None
    chosen = []
    for c, count in enumerate(counts):
        indices = np.flatnonzero(labels == c)
        if len(indices) < count:
            raise LandscapeError(f"class {c} has {len(indices)} examples, {count} are asked for: lower the counts")
        if rng is not None:
            rng.shuffle(indices)
        chosen.append(indices[:count])
    return np.concatenate(chosen)


def hold_out(
    labels: NDArray[np.int64], num_classes: int, per_class: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split indices into (kept, held out): ``per_class`` of each class, evenly spaced in file order, without chance."""
    held = []
    for c in range(num_classes):
        indices = np.flatnonzero(labels == c)
        held.append(indices[np.arange(per_class) * len(indices) // per_class])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out


def held_out_share(train: Split, class_names: Sequence[str], source: str, remedy: str) -> tuple[Split, Split]:
    """Return what is left of a split and a balanced test: a fifth of the smallest class, at least one, of every class.

    Raises
    ------
    LandscapeError
        Naming ``source`` and the ``remedy``, if a class is empty or has a single example.
    """
    counts = train.counts(len(class_names))
    for few, what in ((0, "no training example, every class needs one"), (1, "1 example, so none can be held out")):
        if few in counts:
            c = counts.index(few)
            name = "" if class_names[c] == str(c) else f" ('{class_names[c]}')"
            raise LandscapeError(f"{source}: class {c}{name} has {what}: add {remedy}")
    kept, held = hold_out(train.labels.numpy(), len(class_names), max(1, int(TEST_SHARE * min(counts))))
    return train.take(torch.from_numpy(kept)), train.take(torch.from_numpy(held))


def relabelled_by_count(train: Split, test: Split, class_names: Sequence[str]) -> tuple[Split, Split, tuple[str, ...]]:
    """Number the classes by falling training count, equal counts in their old order; names stay with their class.

    Notes
    -----
    Source: the loaders of MiSLAS, GCL, GNM and Saddle-LongTail for ImageNet-LT, Places-LT and iNaturalist 2018. Differs in:
    1. they sort unstably, so classes with equal counts come in an order that depends on the version of NumPy; whichever it
    is, their groups differ at most in which of the equal classes stand on either side of a border.
    """
    order = np.argsort(-np.array(train.counts(len(class_names))), kind="stable")
    new_label = torch.empty(len(order), dtype=torch.int64)
    new_label[torch.from_numpy(order)] = torch.arange(len(order))
    names = tuple(class_names[c] for c in order)
    return Split(train.images, new_label[train.labels]), Split(test.images, new_label[test.labels]), names
