"""Every published grouping rule on the counts it was written for."""

import pytest

from landscape.data import GROUP_RULES, assign_groups, long_tailed_counts
from landscape.errors import LandscapeError

CIFAR10 = long_tailed_counts(5000, 10, 100, "exponential")
CIFAR100 = long_tailed_counts(500, 100, 100, "exponential")


def sizes(groups):
    return tuple(len(groups.members[name]) for name in ("head", "medium", "tail"))


@pytest.mark.parametrize(
    ("counts", "rule", "expected"),
    [
        (CIFAR100, "oltr", (35, 35, 30)),
        (CIFAR100, "cc-sam", (35, 34, 31)),
        (CIFAR100, "lpt", (35, 34, 31)),
        (CIFAR100, "mislas-cifar100", (36, 35, 29)),
        (CIFAR100, "rdr-cifar100", (35, 34, 31)),
        (CIFAR10, "oltr", (8, 2, 0)),
        (CIFAR10, "sse-cifar10", (4, 3, 3)),
        (CIFAR10, "mislas-cifar10", (3, 4, 3)),
        (CIFAR10, "rdr-cifar10", (3, 4, 3)),
        (long_tailed_counts(5000, 10, 10, "exponential"), "focal-sam-cifar10-ir10", (4, 3, 3)),
        (long_tailed_counts(500, 100, 10, "exponential"), "focal-sam-cifar100-ir10", (28, 42, 30)),
        (range(1000, 0, -1), "mislas-imagenet-lt", (390, 445, 165)),
        (range(365, 0, -1), "mislas-places-lt", (131, 157, 77)),
        (range(8142, 0, -1), "mislas-inaturalist18", (842, 3701, 3599)),
    ],
)
def test_group_sizes(counts, rule, expected):
    groups = assign_groups(counts, rule)
    assert groups.rule == rule
    assert sizes(groups) == expected


@pytest.mark.parametrize(
    ("rule", "group_of"),
    [
        ("oltr", {101: "head", 100: "medium", 20: "medium", 19: "tail"}),
        ("cc-sam", {100: "head", 99: "medium", 21: "medium", 20: "tail"}),
        ("lpt", {101: "head", 100: "medium", 21: "medium", 20: "tail"}),
        ("sse-cifar10", {1001: "head", 1000: "medium", 200: "medium", 199: "tail"}),
        ("focal-sam-cifar10-ir10", {2320: "head", 2319: "medium", 835: "medium", 834: "tail"}),
        ("focal-sam-cifar100-ir10", {266: "head", 265: "medium", 99: "medium", 98: "tail"}),
    ],
)
def test_count_rules_at_their_borders(rule, group_of):
    members = assign_groups(list(group_of), rule).members
    for c, group in enumerate(group_of.values()):
        assert c in members[group]


@pytest.mark.parametrize("rule", GROUP_RULES)
def test_every_rule_puts_each_class_in_one_group(rule):
    num_classes = getattr(GROUP_RULES[rule], "num_classes", 100)
    counts = [(7 * c) % 501 + 1 for c in range(num_classes)]
    groups = assign_groups(counts, rule)
    assert sorted(c for members in groups.members.values() for c in members) == list(range(num_classes))
    assert list(groups.members) == ["head", "medium", "tail"]
    assert all(list(members) == sorted(members) for members in groups.members.values())


@pytest.mark.parametrize("ratio", [1, 10, 50, 100, 200])
@pytest.mark.parametrize(("num_max", "num_classes"), [(5000, 10), (500, 100), (200, 10)])
def test_auto_never_leaves_a_group_empty(num_max, num_classes, ratio):
    groups = assign_groups(long_tailed_counts(num_max, num_classes, ratio, "exponential"))
    if ratio == 1:
        assert (groups.rule, groups.members) == ("none", {})
        return
    assert min(sizes(groups)) > 0
    assert groups.rule in GROUP_RULES


@pytest.mark.parametrize(
    ("num_classes", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (5, (2, 1, 2)), (20, (6, 8, 6))]
)
def test_ranks_for_other_numbers_of_classes(num_classes, expected):
    groups = assign_groups([10 * 2**c for c in range(num_classes)][::-1])
    assert (groups.rule, sizes(groups)) == ("ranks", expected)


def test_rank_rules_follow_the_counts_and_break_ties_by_index():
    groups = assign_groups([1, 9, 5, 9, 2], "ranks")
    assert groups.members == {"head": (1, 3), "medium": (2,), "tail": (0, 4)}
    assert assign_groups([4, 4, 4], "ranks").members == {"head": (0,), "medium": (1,), "tail": (2,)}


def test_balanced_classes_have_no_groups_unless_a_rule_is_named():
    assert assign_groups([10] * 10).members == {}
    assert assign_groups([100, 90, 80]).rule == "none"
    assert assign_groups([101, 90, 80]).rule == "ranks"
    assert sizes(assign_groups([10] * 10, "mislas-cifar10")) == (3, 4, 3)
    assert assign_groups(CIFAR10, "none").rule == "none"


def test_unfit_rules_are_refused():
    with pytest.raises(LandscapeError, match="'mislas-cifar100' is for 100 classes, the data has 10"):
        assign_groups(CIFAR10, "mislas-cifar100")
    with pytest.raises(LandscapeError, match="unknown group rule 'olt': did you mean 'oltr'"):
        assign_groups(CIFAR10, "olt")
