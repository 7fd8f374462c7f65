"""Samplers: shares of classes in closed form, exact cycles, the same order from the same stream."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from landscape.data import SAMPLERS, build_sampler, long_tailed_counts
from landscape.errors import LandscapeError
from landscape.randomness import stream

COUNTS = torch.tensor(long_tailed_counts(5000, 10, 100, "exponential"))
# Shuffled, so that nothing relies on sorted labels.
LABELS = torch.arange(10).repeat_interleave(COUNTS)[
    torch.randperm(int(COUNTS.sum()), generator=stream(0, "test/labels"))
]


def order_of(sampler, labels=LABELS, *, num_classes=10, name="order", epoch=0, num_epochs=1):
    order = sampler.epoch_order(labels, num_classes, stream(0, name), epoch, num_epochs)
    assert (order.dtype, len(order)) == (torch.int64, sampler.epoch_length(labels, num_classes))
    return order


def require_shares(served, expected):
    """The counts of classes are within 5 standard deviations of a multinomial draw."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    expected = expected / expected.sum()
    found = torch.bincount(served, minlength=len(expected)) / len(served)
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / len(served)).sqrt()).all()


def effective_number_shares(beta=0.9999):
    weights = [(1 - beta) / (1 - beta ** int(n)) for n in COUNTS]
    return [float(n) * w for n, w in zip(COUNTS, weights)]


SHARES = {
    "class-balanced": effective_number_shares(),
    "balanced": [1.0] * 10,
    "square-root": [math.sqrt(n) for n in COUNTS],
    "power": [float(n) ** 0.8 for n in COUNTS],
    "inverse": [1 / float(n) for n in COUNTS],
    "progressive": [float(n) for n in COUNTS],  # in epoch 0
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_repeats_from_its_stream_and_leaves_the_global_one(name):
    sampler, state = build_sampler(name), torch.get_rng_state()
    first = order_of(sampler)
    assert len(first) == len(LABELS)
    assert torch.equal(first, order_of(sampler))
    assert not torch.equal(first, order_of(sampler, name="another"))
    assert torch.equal(torch.get_rng_state(), state)


def test_uniform_is_the_permutation_it_was():
    assert torch.equal(order_of(build_sampler("uniform")), torch.randperm(len(LABELS), generator=stream(0, "order")))


@pytest.mark.parametrize("name", SHARES)
def test_shares_of_the_classes(name):
    order = order_of(build_sampler(name, num_samples=50_000))
    require_shares(LABELS[order], SHARES[name])
    # Within a class each image is equally likely: the tail's 50 images by a chi-squared statistic of 49 degrees.
    if name in ("balanced", "inverse"):
        found = torch.bincount(order, minlength=len(LABELS))[LABELS == 9].double()
        statistic = float(((found - found.mean()) ** 2 / found.mean()).sum())
        assert abs(statistic - 49) < 5 * math.sqrt(2 * 49)


def test_progressive_goes_from_the_data_to_balance():
    for ends, share in (("described", 3 / 4), ("released", 1.0)):
        sampler = build_sampler("progressive", ends=ends, num_samples=50_000)
        mixture = (1 - share) * COUNTS.double() / COUNTS.sum() + share / 10
        require_shares(LABELS[order_of(sampler, epoch=3, num_epochs=4)], mixture)
        assert (sampler.share(0, 4), sampler.share(0, 1), sampler.share(9, 4)) == (0, 0, 1)


def test_released_forms_of_the_shares():
    """GCL draws images in proportion to 1 / n, BBN classes to n_max / n, GLMC images to n^-0.2: the same shares."""
    n = COUNTS.double()
    for name, per_image in (("balanced", 1 / n), ("inverse", n.max() / n / n), ("power", n**-0.2)):
        shares = torch.tensor(SHARES[name], dtype=torch.float64)
        torch.testing.assert_close(n * per_image / (n * per_image).sum(), shares / shares.sum(), rtol=1e-12, atol=0)


def cycle(items, rng):
    """Yield shuffled items for ever, as the released class-aware sampler."""
    while True:
        yield from rng.permutation(items)


@pytest.mark.parametrize(("num_samples_cls", "num_samples"), [(4, "dataset"), (1, 1000), (3, "largest-class"), (4, 10)])
def test_class_aware_cycles(num_samples_cls, num_samples):
    sampler = build_sampler("class-aware", num_samples_cls=num_samples_cls, num_samples=num_samples)
    order = order_of(sampler)
    if num_samples == "largest-class":
        assert len(order) == 5000 * 10
    runs = LABELS[order[: len(order) // num_samples_cls * num_samples_cls]].view(-1, num_samples_cls)
    assert (runs == runs[:, :1]).all()
    visits = runs[:, 0]
    for start in range(0, len(visits) - 9, 10):  # every ten runs visit every class
        assert sorted(visits[start : start + 10].tolist()) == list(range(10))
    if len(visits) > 50:
        assert len({tuple(visits[start : start + 10].tolist()) for start in range(0, 50, 10)}) == 5  # in new order
    for c in range(10):
        mine, n = order[LABELS[order] == c], int(COUNTS[c])
        for start in range(0, len(mine) - n + 1, n):  # every n images of a class are all its images
            assert len(mine[start : start + n].unique()) == n
        if len(mine) > 2 * n:
            assert not torch.equal(mine[:n], mine[n : 2 * n])  # shuffled anew
    # As many of each class as the released loop serves, which differ by at most one run.
    rng = np.random.default_rng(0)
    classes, images = cycle(range(10), rng), [cycle(np.flatnonzero(LABELS.numpy() == c), rng) for c in range(10)]
    served = []
    while len(served) < len(order):
        c = next(classes)
        served += [next(images[c]) for _ in range(num_samples_cls)]
    released = torch.bincount(LABELS[torch.tensor(np.array(served[: len(order)]))], minlength=10)
    assert (torch.bincount(LABELS[order], minlength=10) - released).abs().max() <= num_samples_cls


def test_classes_without_images_are_never_served():
    labels = torch.tensor([0] * 50 + [2] * 5)
    for name in SAMPLERS:
        served = labels[order_of(build_sampler(name), labels, num_classes=4)]
        assert set(served.tolist()) <= {0, 2}
    length = build_sampler("class-aware", num_samples="largest-class").epoch_length(labels, 4)
    assert length == 100


def test_many_classes_are_quick():
    """8142 classes as in iNaturalist: no loop over classes."""
    counts = torch.logspace(math.log10(200), math.log10(2), 8142).long()
    labels = torch.arange(8142).repeat_interleave(counts)
    order = order_of(build_sampler("class-aware", num_samples=200_000), labels, num_classes=8142)
    assert torch.bincount(labels[order], minlength=8142).unique().tolist() == [24, 28]  # whole runs of 4


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("resample", {}, "unknown sampler 'resample'"),
        ("balanced", {"beta": 0.9}, "unknown option of sampler 'balanced' 'beta'.*exponent"),
        ("class-balanced", {"beta": 1.0}, "beta must be at least 0 and below 1, got 1.0"),
        ("class-aware", {"num_samples_cls": 0}, "num_samples_cls must be a whole number of at least 1, got 0"),
        ("power", {"exponent": float("inf")}, "exponent must be a finite number, got inf"),
        ("power", {"num_samples": "all"}, "num_samples must be 'dataset', 'largest-class' or .* got 'all'"),
        ("power", {"num_samples": 0}, "num_samples must be .* got 0"),
        ("progressive", {"ends": "soon"}, "unknown end of progressive sampling 'soon'"),
    ],
)
def test_wrong_options(name, options, match):
    with pytest.raises(LandscapeError, match=match):
        build_sampler(name, **options)
