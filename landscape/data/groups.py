"""Head, medium and tail: every grouping rule of the published code, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from landscape.data.dataset import Groups
from landscape.errors import LandscapeError, unknown_name


@dataclass(frozen=True)
class CountRule:
    """Head: more than ``head_above`` training examples. Tail: fewer than ``tail_below``. Medium: the others."""

    head_above: int
    tail_below: int


@dataclass(frozen=True)
class RankRule:
    """Classes by falling count: the first ``head``, the next up to ``medium_end``, the rest, of ``num_classes``."""

    head: int
    medium_end: int
    num_classes: int


# Counts are whole numbers, so "at least 100" reads "more than 99" and "at most 20" reads "fewer than 21".
GROUP_RULES: dict[str, CountRule | RankRule] = {
    "oltr": CountRule(head_above=100, tail_below=20),
    "cc-sam": CountRule(head_above=99, tail_below=21),
    "lpt": CountRule(head_above=100, tail_below=21),
    "sse-cifar10": CountRule(head_above=1000, tail_below=200),
    "focal-sam-cifar10-ir10": CountRule(head_above=2319, tail_below=835),
    "focal-sam-cifar100-ir10": CountRule(head_above=265, tail_below=99),
    "mislas-cifar10": RankRule(3, 7, 10),
    "mislas-cifar100": RankRule(36, 71, 100),
    "rdr-cifar10": RankRule(3, 7, 10),
    "rdr-cifar100": RankRule(35, 69, 100),
    "mislas-imagenet-lt": RankRule(390, 835, 1000),
    "mislas-places-lt": RankRule(131, 288, 365),
    "mislas-inaturalist18": RankRule(842, 4543, 8142),
}
_AUTO = {
    10: "mislas-cifar10",
    100: "mislas-cifar100",
    365: "mislas-places-lt",
    1000: "mislas-imagenet-lt",
    8142: "mislas-inaturalist18",
}
# The share of head and of tail classes where no published rule fits; as in the rule for ten classes.
_OUTER_SHARE = 0.3
# Largest over smallest class, up to which the tail is only noise.
BALANCED = 1.25


def assign_groups(train_counts: Sequence[int], rule: str = "auto") -> Groups:
    """Return the head, medium and tail classes of a training set.

    Parameters
    ----------
    train_counts
        Training examples of each class.
    rule
        A name in :data:`GROUP_RULES`; ``"ranks"``; or ``"auto"``. Rules by rank order the classes by falling count,
        ties by index, so on the usual long-tailed sets a rank is the class index.

        ``"ranks"`` takes the first and the last 30 % of the ranks, rounded, at least one class each.

        ``"auto"`` takes the MiSLAS rule for 10, 100, 365, 1000 and 8142 classes, and ``"ranks"`` for any other number.
        It depends on the number of classes alone, so results at several imbalance ratios compare the same classes,
        and leaves no group empty from three classes on, where the count rules empty the tail of CIFAR-10-LT. Where the
        largest class has at most 1.25 times the examples of the smallest there is no head and no tail: ``"none"``. To
        compare such a set with its long-tailed version by the latter's groups, name the rule.

    Returns
    -------
    Groups with the rule applied (never ``"auto"``); a count rule may leave a group empty, ``"none"`` has none.

    Raises
    ------
    LandscapeError
        For an unknown rule, or a rule by rank written for another number of classes.

    Notes
    -----
    Sources, by released code: ``oltr`` also in decoupling (cRT), ImbSAM, SSE-SAM on CIFAR-100 and BalMS;
    ``sse-cifar10`` also in Focal-SAM at ratio 100; the ``mislas`` rules also in GNM and Saddle-LongTail.

    Examples
    --------
    >>> assign_groups((90, 40, 10, 3), "oltr").members
    {'head': (), 'medium': (0, 1), 'tail': (2, 3)}
    """
    num_classes = len(train_counts)
    if rule == "auto":
        is_balanced = num_classes > 1 and max(train_counts) <= BALANCED * min(train_counts)
        rule = "none" if is_balanced else _AUTO.get(num_classes, "ranks")
    if rule == "none":
        return Groups(rule, {})
    if rule == "ranks":
        outer = max(1, round(_OUTER_SHARE * num_classes))
        bounds: CountRule | RankRule = RankRule(outer, max(outer, num_classes - outer), num_classes)
    elif rule in GROUP_RULES:
        bounds = GROUP_RULES[rule]
    else:
        raise unknown_name("group rule", rule, ["auto", "none", "ranks", *GROUP_RULES])

    if isinstance(bounds, CountRule):
        head = [c for c, n in enumerate(train_counts) if n > bounds.head_above]
        tail = [c for c, n in enumerate(train_counts) if n < bounds.tail_below]
        medium = [c for c, n in enumerate(train_counts) if bounds.tail_below <= n <= bounds.head_above]
    else:
        if bounds.num_classes != num_classes:
            raise LandscapeError(
                f"group rule '{rule}' is for {bounds.num_classes} classes, the data has {num_classes}: choose 'auto'"
            )
        ranked = sorted(range(num_classes), key=lambda c: -train_counts[c])
        head, medium, tail = (
            sorted(part)
            for part in (ranked[: bounds.head], ranked[bounds.head : bounds.medium_end], ranked[bounds.medium_end :])
        )
    return Groups(rule, {"head": tuple(head), "medium": tuple(medium), "tail": tuple(tail)})
