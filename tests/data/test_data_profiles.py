"""Class counts and subsets against the published numbers and against NumPy's global legacy stream."""

# The published subsets are defined by NumPy's legacy stream, so the tests use it.
# ruff: noqa: NPY002

import numpy as np
import pytest

from landscape.data import long_tailed_counts, select_examples
from landscape.data.profiles import hold_out
from landscape.errors import LandscapeError


@pytest.mark.parametrize(
    ("num_classes", "ratio", "total", "smallest"),
    [
        (10, 200, 11203, 25),
        (10, 100, 12406, 50),
        (10, 50, 13996, 100),
        (10, 10, 20431, 500),
        (100, 200, 9502, 2),
        (100, 100, 10847, 5),
        (100, 50, 12608, 10),
        (100, 10, 19573, 50),
    ],
)
def test_exponential_profiles_have_the_published_sizes(num_classes, ratio, total, smallest):
    counts = long_tailed_counts(50_000 // num_classes, num_classes, ratio, "exponential")
    assert (sum(counts), min(counts), max(counts)) == (total, smallest, 50_000 // num_classes)
    assert list(counts) == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("ratio", "counts"),
    [
        (200, (5000, 2775, 1540, 854, 474, 263, 146, 81, 45, 25)),
        (100, (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)),
    ],
)
def test_cifar10_counts_are_the_published_ones(ratio, counts):
    assert long_tailed_counts(5000, 10, ratio, "exponential") == counts


def test_step_profile_halves_the_classes():
    assert long_tailed_counts(5000, 10, 100, "step") == (5000,) * 5 + (50,) * 5
    assert long_tailed_counts(9, 5, 2, "step") == (9, 9, 4, 4, 4)


@pytest.mark.parametrize("profile", ["exponential", "step"])
def test_ratio_one_is_balanced(profile):
    assert long_tailed_counts(7, 4, 1, profile) == (7,) * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 10, 0.01, "exponential"), "got 0.01: did you mean 100"),
        ((100, 10, -3, "exponential"), "got -3$"),
        ((100, 10, float("nan"), "exponential"), "got nan"),
        ((100, 10, float("inf"), "step"), "got inf"),
        ((100, 10, 101, "exponential"), "ratio 101 leaves class 9 without examples.*at most 100"),
        ((100, 10, 200, "step"), "ratio 200 leaves class 5"),
        ((100, 1, 10, "step"), "at least 2 classes, got 1"),
        ((100, 10, 10, "exponental"), "unknown profile 'exponental': did you mean 'exponential'"),
    ],
)
def test_impossible_profiles_are_refused(arguments, message):
    with pytest.raises(LandscapeError, match=message):
        long_tailed_counts(*arguments)


@pytest.fixture
def labels():
    return np.random.default_rng(3).permutation(np.repeat(np.arange(4), 30))


@pytest.mark.parametrize(("selection", "seed"), [("seed0", 0), ("seed42", 42)])
def test_seeded_selections_follow_the_global_legacy_stream(labels, selection, seed):
    counts = (30, 11, 4, 1)
    state = np.random.get_state()
    np.random.seed(seed)
    expected = []
    for c, count in enumerate(counts):
        indices = np.where(labels == c)[0]
        np.random.shuffle(indices)
        expected += list(indices[:count])
    np.random.set_state(state)
    before = np.random.get_state()[1].copy()
    assert select_examples(labels, counts, selection).tolist() == expected
    assert (np.random.get_state()[1] == before).all()


def test_first_keeps_file_order_and_sorts_by_class(labels):
    chosen = select_examples(labels, (2, 1, 3, 2), "first")
    assert labels[chosen].tolist() == [0, 0, 1, 2, 2, 2, 3, 3]
    assert chosen[:2].tolist() == np.flatnonzero(labels == 0)[:2].tolist()


def test_selections_report_bad_requests(labels):
    with pytest.raises(LandscapeError, match="class 1 has 30 examples, 31 are asked for"):
        select_examples(labels, (1, 31, 1, 1), "first")
    with pytest.raises(LandscapeError, match="unknown selection 'seed1': did you mean 'seed"):
        select_examples(labels, (1, 1, 1, 1), "seed1")


def test_hold_out_is_balanced_disjoint_and_spread(labels):
    kept, held = hold_out(labels, 4, 7)
    assert np.bincount(labels[held]).tolist() == [7] * 4
    assert sorted([*kept, *held]) == list(range(len(labels)))
    positions = np.searchsorted(np.flatnonzero(labels == 2), held[labels[held] == 2])
    assert positions.tolist() == [0, 4, 8, 12, 17, 21, 25]
