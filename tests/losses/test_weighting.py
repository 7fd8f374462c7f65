"""Class weights, when training uses them, and the focal loss with its weights inside."""

import numpy as np
import pytest
import torch
from loss_cases import CIFAR10, CIFAR100, assert_rounds_to, numpy_focal, numpy_rarity

from landscape.errors import LandscapeError
from landscape.losses import CLASS_WEIGHTS, Reweighting, build_loss, class_balanced_weights, class_weights


def test_class_balanced_weights():
    expected = [0.051, 0.077, 0.121, 0.195, 0.319, 0.525, 0.868, 1.443, 2.409, 3.993]
    weights = class_balanced_weights(CIFAR10)
    assert weights.dtype == torch.float64
    assert_rounds_to(weights, expected)
    assert float(weights.sum()) == pytest.approx(10, rel=1e-14)
    assert_rounds_to(class_balanced_weights(CIFAR100)[[0, 50, 99]], [0.0449, 0.4571, 4.3783], digits=4)
    assert_rounds_to(class_balanced_weights(CIFAR100, 0.9998)[[0, 50, 99]], [0.0459, 0.4576, 4.3746], digits=4)
    assert class_balanced_weights(CIFAR10, 0.0).tolist() == [1.0] * 10


@pytest.mark.parametrize(("kind", "epochs"), [("none", {}), ("cb", {0, 4, 5, 9}), ("drw", {5, 9})])
def test_reweighting_starts_where_it_should(kind, epochs):
    reweighting = Reweighting(kind, CIFAR10, start_epoch=5)
    for epoch in (0, 4, 5, 9):
        weights = reweighting.weights(epoch)
        assert (weights is None) == (epoch not in epochs)
        assert weights is None or torch.equal(weights, class_balanced_weights(CIFAR10))


def test_reweighting_defaults_are_the_published_ones():
    reweighting = Reweighting("drw", CIFAR10)
    assert reweighting.weights(159) is None
    assert reweighting.weights(160) is reweighting.class_weights
    weights = Reweighting("cb", CIFAR10, beta=0.9998).weights(0)
    assert torch.equal(weights, class_balanced_weights(CIFAR10, 0.9998))


def test_reweighted_mean_is_the_weighted_mean(batch):
    logits, labels = batch
    reweighting = Reweighting("cb", CIFAR10)
    losses = reweighting(build_loss("ce", CIFAR10)(logits, labels), labels, 0)
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=class_balanced_weights(CIFAR10))
    torch.testing.assert_close(losses.mean(), expected, rtol=1e-13, atol=0)
    plain = torch.rand(32)
    assert Reweighting("none", CIFAR10)(plain, labels, 3) is plain
    assert reweighting(plain, labels, 0).dtype == torch.float32


def test_weights_cancel_in_a_batch_of_one_class(batch):
    logits, _ = batch
    labels = torch.full((32,), 9)
    losses = build_loss("ce", CIFAR10)(logits, labels)
    torch.testing.assert_close(Reweighting("cb", CIFAR10)(losses, labels, 0), losses, rtol=1e-14, atol=0)


def test_kinds_of_weights():
    n = np.array(CIFAR10, float)
    beta = 0.9999 + 1e-5 * numpy_rarity(n)
    transcriptions = {
        "equal": np.ones(10),
        "effective-number": (1 - 0.9999) / (1 - 0.9999**n),
        "graded-effective-number": (1 - beta) / (1 - beta**n),
        "inverse": 1 / n,
        "inverse-sqrt": 1 / np.sqrt(n),
    }
    assert set(transcriptions) == set(CLASS_WEIGHTS)
    for kind, raw in transcriptions.items():
        weights = class_weights(kind, CIFAR10)
        np.testing.assert_allclose(weights.numpy(), raw * 10 / raw.sum(), rtol=1e-10)
        assert float(weights.sum()) == pytest.approx(10, rel=1e-14)
        torch.testing.assert_close(class_weights(kind, [7, 7, 7]), torch.ones(3, dtype=torch.float64))
    # limits of the effective number: one example counts as one, and so does every further one as beta goes to 1
    torch.testing.assert_close(class_weights("effective-number", CIFAR10, beta=0.0), class_weights("equal", CIFAR10))
    nearly = class_weights("effective-number", CIFAR10, beta=1 - 1e-9)
    torch.testing.assert_close(nearly, class_weights("inverse", CIFAR10), rtol=1e-5, atol=0)


def test_samplers_draw_classes_as_named():
    n = torch.tensor(CIFAR10, dtype=torch.float64)
    torch.testing.assert_close(
        n * class_weights("inverse", CIFAR10) / n[0], torch.full_like(n, 10 / (1 / n).sum() / n[0])
    )
    drawn = n * class_weights("inverse-sqrt", CIFAR10)
    torch.testing.assert_close(drawn / drawn[0], (n / n[0]).sqrt())


def test_reweighting_takes_any_kind_of_weights(batch):
    logits, labels = batch
    losses = Reweighting("cb", CIFAR10, weights="inverse")(build_loss("ce", CIFAR10)(logits, labels), labels, 0)
    weight = 1 / torch.tensor(CIFAR10, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=weight)
    torch.testing.assert_close(losses.mean(), expected, rtol=1e-13, atol=0)


# --- the focal loss with its weights inside


def test_weights_inside_follow_the_schedule_and_are_counted_once(batch):
    logits, labels = batch
    z, y, n = logits.numpy(), labels.numpy(), np.array(CIFAR10, float)
    loss = build_loss("focal", CIFAR10, gamma=1.5, weights_inside=True)
    inside, plain = numpy_focal(z, y, n, gamma=1.5, weights_inside=True), numpy_focal(z, y, n, gamma=1.5)
    assert np.abs(inside - plain).max() > 0.1
    for kind, epoch, expected in (("none", 0, inside), ("cb", 0, inside), ("drw", 4, plain), ("drw", 5, inside)):
        weighed = Reweighting(kind, CIFAR10, start_epoch=5).weigh(loss, logits, labels, epoch)
        np.testing.assert_allclose(weighed.numpy(), expected, rtol=1e-12)


def test_other_losses_are_weighed_afterwards(batch):
    logits, labels = batch
    loss, reweighting = build_loss("focal", CIFAR10), Reweighting("cb", CIFAR10)
    weighed = reweighting.weigh(loss, logits, labels, 0)
    assert torch.equal(weighed, reweighting(loss(logits, labels), labels, 0))
    assert not torch.equal(weighed, loss(logits, labels))


def test_weights_inside_do_not_cancel_in_a_batch_of_one_class(batch):
    logits, labels = batch[0], torch.full((32,), 9)
    loss = build_loss("focal", CIFAR10, gamma=0.0, weights_inside=True)
    expected = float(class_balanced_weights(CIFAR10)[9]) * build_loss("ce", CIFAR10)(logits, labels)
    torch.testing.assert_close(Reweighting("cb", CIFAR10).weigh(loss, logits, labels, 0), expected)


def test_unit_weights_inside_are_the_paper_form(batch):
    loss = build_loss("focal", CIFAR10, gamma=2.0, weights_inside=True, beta=0.0)
    torch.testing.assert_close(loss(*batch), build_loss("focal", CIFAR10, gamma=2.0)(*batch), rtol=1e-14, atol=0)


def test_bad_reweighting_is_refused():
    with pytest.raises(LandscapeError, match="unknown re-weighting 'dwr': did you mean 'drw'"):
        Reweighting("dwr", CIFAR10)
    with pytest.raises(LandscapeError, match="start_epoch must be at least 0, got -1"):
        Reweighting("drw", CIFAR10, start_epoch=-1)
    for beta in (1.0, -0.1):
        with pytest.raises(LandscapeError, match=f"beta must be at least 0 and below 1, got {beta}"):
            class_balanced_weights(CIFAR10, beta)
    with pytest.raises(LandscapeError, match="unknown kind of class weights 'inverted': did you mean 'inverse'"):
        class_weights("inverted", CIFAR10)
    with pytest.raises(LandscapeError, match="unknown kind of class weights 'inv'"):
        Reweighting("cb", CIFAR10, weights="inv")
    with pytest.raises(LandscapeError, match=r"graded-effective-number must be below 0\.99999, got 0\.999995"):
        class_weights("graded-effective-number", CIFAR10, beta=0.999995)
    with pytest.raises(LandscapeError, match="class_counts must be at least 1, got 0 for class 1"):
        build_loss("focal", [3, 0], weights_inside=True)
