"""Lanes, fixed examples and analytic risks: the small parts of the risk package."""

from __future__ import annotations

import pytest
import torch

from landscape.errors import LandscapeError
from landscape.memory import available_memory
from landscape.risk import AnalyticRisk, choose_lanes
from landscape.risk import lanes_of as lanes_of_risk
from landscape.risk.examples import Examples, limit_per_class, read_examples

NAMES = ("cat", "dog", "owl", "yak")
COUNTS = torch.tensor([6, 3, 1, 0])
GROUPS = {"head": (0,), "medium": (1, 2), "tail": (3,)}


def lanes_of(choice, **options):
    return choose_lanes(choice, class_names=NAMES, class_counts=COUNTS, groups=GROUPS, **options)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("cat", ["cat"]),
        ("cat, owl", ["cat", "owl"]),
        (1, ["dog"]),
        ("1", ["dog"]),
        ([0, "owl", "all"], ["cat", "owl", "all"]),
        ("medium,cat", ["medium", "cat"]),
        ("groups", ["head", "medium"]),  # an empty group is no lane
        (["cat", "cat"], ["cat"]),
    ],
)
def test_choices(choice, names):
    assert list(lanes_of(choice).names) == names


def test_weights_of_every_kind():
    lanes = lanes_of("dog,medium,all")
    assert lanes.kinds == ("class", "group", "all")
    assert lanes.groups == ("medium", "", "")
    assert lanes.num_examples == (3, 4, 10)
    assert lanes.weights.tolist() == [[0, 1, 0, 0], [0, 0.75, 0.25, 0], [0.6, 0.3, 0.1, 0]]
    equal = lanes_of("medium,all", group_average="classes")
    assert equal.weights.tolist() == [[0, 0.5, 0.5, 0], pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])]
    assert len(lanes) == 3


def test_everything_by_default():
    lanes = choose_lanes(None, class_names=NAMES[:2], class_counts=COUNTS[:2], groups={"head": (0,), "tail": (1,)})
    assert lanes.names == ("cat", "dog", "head", "tail", "all")


def test_mixtures():
    lanes = lanes_of({"contrast": [1.0, -1.0, 0.0, 0.0], "half": torch.tensor([0.5, 0, 0.5, 0])})
    assert lanes.names == ("contrast", "half")
    assert lanes.kinds == ("mixture", "mixture")
    assert lanes.weights.tolist() == [[1, -1, 0, 0], [0.5, 0, 0.5, 0]]
    assert lanes.num_examples == (9, 7)


def test_a_class_name_that_looks_like_a_number_is_a_name():
    lanes = choose_lanes("1", class_names=["1", "0"], class_counts=torch.tensor([1, 1]), groups={})
    assert lanes.weights.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("dgo", "unknown lane 'dgo': did you mean 'dog'"),
        ("taill", "unknown lane 'taill': did you mean 'tail'"),
        (4, "unknown lane '4'"),
        ("-1", "unknown lane '-1'"),
        ("yak", "lane 'yak' has no examples in this split"),
        ("tail", "lane 'tail' has no examples in this split"),
        ("classes", "lane 'yak' has no examples"),
        ("", "none of them empty, got ''"),
        ([], r"no lanes chosen: .* got \[\]"),
        ({"m": [1.0, 0.0]}, r"lane 'm': expected 4 weights, got \(2,\)"),
        ({"m": [1.0, float("nan"), 0.0, 0.0]}, r"lane 'm': expected finite weights, got \[1.0, nan"),
        ({"m": [0.5, 0.0, 0.0, 0.5]}, "lane 'm' has no examples"),
        ({"m": [0.0, 0.0, 0.0, 0.0]}, "lane 'm' has no examples"),
    ],
)
def test_bad_choices_name_the_offence(choice, message):
    with pytest.raises(LandscapeError, match=message):
        lanes_of(choice)


@pytest.mark.parametrize(("names", "groups"), [(("a", "a"), {}), (("a", "tail"), {"tail": (0,)})])
def test_a_name_stands_for_one_lane(names, groups):
    with pytest.raises(LandscapeError, match=f"the name '{names[1]}' stands for two lanes"):
        choose_lanes("all", class_names=names, class_counts=torch.tensor([1, 1]), groups=groups)


# ---- examples ----------------------------------------------------------------------------------------------------


def examples(labels, num_classes=4):
    labels = torch.tensor(labels)
    inputs = torch.arange(len(labels), dtype=torch.float32)[:, None]
    return Examples.of(inputs, labels, num_classes=num_classes, device=torch.device("cpu"))


def test_examples_are_sorted_by_class_and_keep_their_order_within():
    found = examples([2, 0, 2, 1, 0, 2])
    assert found.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert found.inputs[:, 0].tolist() == [1, 4, 3, 0, 2, 5]
    assert found.offsets == (0, 2, 3, 6, 6)
    assert found.counts.tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("classes", [[0], [1, 2], [0, 2], [0, 1, 2, 3], [3]])
def test_chunks_cover_every_example_once_and_evenly(size, classes):
    found = examples([0] * 10 + [1] * 7 + [2] * 3)
    rows = [row for chunk in found.chunks(classes, size) for row in range(chunk.start, chunk.stop)]
    assert rows == [i for i, y in enumerate(found.labels.tolist()) if y in classes]
    lengths = [chunk.stop - chunk.start for chunk in found.chunks(classes, size)]
    assert all(length <= size for length in lengths)
    if len(set(classes)) == 4 and size < 20:
        assert max(lengths) - min(lengths) < max(lengths)  # no chunk is a mere remainder


def test_a_subset_keeps_the_classes():
    subset = examples([2, 0, 2, 1, 0, 2]).subset(torch.tensor([1, 3, 5]))
    assert subset.counts.tolist() == [1, 0, 2, 0]
    assert subset.inputs[:, 0].tolist() == [4, 0, 5]


def test_the_first_examples_of_each_class():
    assert limit_per_class(torch.tensor([1, 0, 1, 1, 0, 2]), 2).tolist() == [0, 1, 2, 4, 5]
    assert limit_per_class(torch.tensor([1, 0]), 9).tolist() == [0, 1]


def test_batches_are_read_once():
    calls = []

    def batches():
        calls.append(1)
        yield torch.zeros(2, 3), torch.tensor([0, 1])
        yield torch.ones(1, 3), torch.tensor([2])

    inputs, labels = read_examples(batches())
    assert (inputs.shape, labels.tolist(), len(calls)) == ((3, 3), [0, 1, 2], 1)


def test_available_memory_is_a_number_of_bytes():
    assert 1 << 20 < available_memory(torch.device("cpu")) < 1 << 50


# ---- analytic risks ----------------------------------------------------------------------------------------------


def cubic():
    return AnalyticRisk(
        lambda x: torch.stack([x[0] ** 3 + x[1], x[0] * x[1] ** 2, 2 * x[0] - x[1]]),
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        class_counts=[5, 3, 2],
        groups={"head": (0,), "tail": (1, 2)},
    )


def test_an_analytic_risk_satisfies_the_protocol():
    """Closed form at (1, 2): gradients (3, 1), (4, 4), (2, -1); Hessians diag(6, 0), [[0, 4], [4, 2]], 0."""
    risk = cubic()
    assert risk.losses(risk.theta).tolist() == [3, 4, 0]
    assert risk.losses(risk.theta, [1]).isnan().tolist() == [True, False, True]
    lanes = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, -1, 3]], dtype=torch.float64)
    assert risk.gradients(risk.theta, lanes).tolist() == [[3, 1], [4, 4], [2, -1], [5, -6]]
    vectors = torch.tensor([[1.0, 1.0]], dtype=torch.float64).expand(4, -1)
    assert risk.hvps(risk.theta, lanes, vectors).tolist() == [[6, 0], [4, 6], [0, 0], [2, -6]]
    moved = torch.tensor([2.0, 0.0], dtype=torch.float64)
    assert risk.hvps(moved, lanes[:1], vectors[:1]).tolist() == [[12, 0]]
    assert risk.evaluate(risk.theta)["loss"].tolist() == [3, 4, 0]
    assert risk.theta.tolist() == [1, 2]
    assert risk.layout.num_parameters == 2
    assert risk.class_names == ("0", "1", "2")


def test_an_analytic_risk_in_float64():
    single = AnalyticRisk(lambda x: x.sum()[None] ** 2, torch.ones(3))
    double = single.in_float64()
    assert (single.theta.dtype, double.theta.dtype) == (torch.float32, torch.float64)
    assert double.in_float64() is double
    assert double.losses(double.theta).tolist() == [9]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AnalyticRisk(lambda x: x, torch.ones(2, 2)), r"float vector|\(2, 2\)"),
        (lambda: AnalyticRisk(lambda x: x, torch.ones(2, dtype=torch.int64)), "torch.int64"),
        (lambda: AnalyticRisk(lambda x: x, torch.ones(2, dtype=torch.float16)), "torch.float16"),
        (lambda: AnalyticRisk(lambda x: x.sum(), torch.ones(2)), r"class losses \(C,\), the function returned \(\)"),
        (lambda: AnalyticRisk(lambda x: x.log(), torch.zeros(1)), r"not finite: \[-inf\]"),
        (lambda: AnalyticRisk(lambda x: x, torch.ones(2), class_names=["a"]), "2 classes, got 1 names and 2 counts"),
        (lambda: AnalyticRisk(lambda x: x, torch.ones(2), class_counts=[1, 2, 3]), "2 names and 3 counts"),
        (lambda: AnalyticRisk(lambda x: x, torch.ones(2), groups={"tail": (2,)}), "class 2 does not exist"),
    ],
)
def test_bad_analytic_risks_name_the_offence(make, message):
    with pytest.raises(LandscapeError, match=message):
        make()


def test_a_way_to_average_that_does_not_exist_is_refused_with_the_nearest():
    """Anything but "examples" used to mean "classes" without a word."""
    risk = AnalyticRisk(lambda x: torch.stack([x[0], x[1]]), torch.zeros(2), groups={"tail": (0, 1)})
    with pytest.raises(LandscapeError, match="group average 'clases': did you mean 'classes'"):
        lanes_of_risk(risk, "tail", group_average="clases")
