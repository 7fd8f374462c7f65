"""CC-SAM's adversarial features against a loop over the classes of a batch, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from landscape.errors import LandscapeError
from landscape.losses import Reweighting, build_loss
from landscape.training import Objective, TrainSpec, train
from landscape.training.methods import METHODS, MiniBatch, Setting, build_method
from landscape.training.methods.adversarial_features import rarity_weights

COUNTS = (100, 30, 9, 3)


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, generator=generator)
    return network


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(12, 1, 2, 3, dtype=torch.float64, generator=generator)
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0])  # class 3 is missing
    return MiniBatch((images,), labels, generator)


def setting_of(model, epochs=30, mixup=0.0):
    objective = Objective(build_loss("ce", COUNTS), Reweighting("none", COUNTS))
    return Setting(model, objective, COUNTS, epochs, mixup=mixup)


def released_loss(model, images, labels, *, epoch, weights, adver_reg=1.0, up_limit=1.0):
    """One class after the other, as released: normalise its gradient at the features, move, weigh."""
    backbone, head = model[:3], model[3]
    features = backbone(images)
    losses = functional.cross_entropy(head(features), labels, reduction="none")
    adversarial = []
    for c in labels.unique():
        mine = labels == c
        gradient = torch.autograd.grad(losses[mine].mean(), features, retain_graph=True)[0]
        moved = features + adver_reg * weights[c] * gradient / gradient.norm()
        adversarial.append(weights[c] * functional.cross_entropy(head(moved)[mine], labels[mine], reduction="none"))
    share = min((epoch + 1) / 30, up_limit)
    return share * torch.cat(adversarial).mean() + (1 - share) * losses.mean()


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize(("epoch", "options"), [(0, {}), (11, {"adver_reg": 0.4}), (29, {"up_limit": 0.3}), (29, {})])
def test_loss_and_gradient_are_those_of_a_loop_over_the_classes(model, batch, form, epoch, options):
    method = build_method("adversarial-features", setting_of(model), form=form, **options)
    method.start_epoch(epoch)
    closures = method.closures(batch)
    losses = closures.descent()
    weights = np.log(max(COUNTS) / np.array(COUNTS) + 0.01) / 2 if form == "released" else np.ones(4)
    expected = released_loss(model, batch.views[0], batch.labels, epoch=epoch, weights=weights, **options)
    assert losses.shape == batch.labels.shape
    assert closures.labels is batch.labels
    assert torch.isclose(losses.mean(), expected, rtol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(losses.mean(), list(model.parameters())),
        torch.autograd.grad(expected, list(model.parameters())),
    ):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-13)


def test_each_class_is_moved_by_its_weight_in_frobenius_norm(model, batch):
    method = build_method("adversarial-features", setting_of(model), adver_reg=0.7, div=3.0)
    steps = method.steps(model[:3](batch.views[0]).detach(), batch.labels)
    norms = [steps[batch.labels == c].norm().item() for c in range(3)]
    assert norms == pytest.approx([0.7 * np.log(100 / n + 0.01) / 3 for n in COUNTS[:3]], rel=1e-12)


def test_class_weights_are_the_conformance_vector():
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    published = [0.0050, 0.2589, 0.5137, 0.7687, 1.0246, 1.2798, 1.5355, 1.7915, 2.0493, 2.3026]
    assert rarity_weights(counts).tolist() == pytest.approx(published, abs=5e-5)
    assert rarity_weights([5000, 25])[1].item() == pytest.approx(2.65, abs=5e-3)  # CIFAR-10-LT at ratio 200


def test_share_grows_with_the_epochs_up_to_its_limit(model):
    for up_limit, expected in ((1.0, [1 / 30, 0.3, 1.0]), (0.3, [1 / 30, 0.3, 0.3])):
        method = build_method("adversarial-features", setting_of(model), up_limit=up_limit)
        shares = []
        for epoch in (0, 8, 29):
            method.start_epoch(epoch)
            shares.append(method.share)
        assert shares == pytest.approx(expected)


def test_a_class_that_is_fitted_exactly_is_not_moved(model, batch):
    with torch.no_grad():
        model[3].weight.zero_()
        model[3].bias.copy_(torch.tensor([1e4, 0.0, 0.0, 0.0]))
    method = build_method("adversarial-features", setting_of(model))
    steps = method.steps(model[:3](batch.views[0]).detach(), batch.labels)
    assert torch.equal(steps, torch.zeros_like(steps))
    assert method.closures(batch).descent().isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "published"}, "unknown form 'published'"),
        ({"adver_reg": -1.0}, r"adver_reg must be a finite number >= 0, got -1\.0"),
        ({"div": 0}, "div must be a finite number > 0, got 0"),
        ({"up_limit": 1.5}, r"up_limit must be a finite number >= 0 and <= 1, got 1\.5"),
        ({"lambda": 1.0}, "unknown option of method 'adversarial-features' 'lambda'"),
    ],
)
def test_bad_options(model, options, message):
    with pytest.raises(LandscapeError, match=message):
        build_method("adversarial-features", setting_of(model), **options)
    with pytest.raises(LandscapeError, match="goes with mixup=0 only"):
        build_method("adversarial-features", setting_of(model, mixup=1.0))


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "gnm"])
def test_it_trains_under_any_optimizer_that_leaves_the_head_alone(tmp_path, optimizer):
    spec = TrainSpec(model="mlp", epochs=2, batch_size=64, method="adversarial-features", optimizer=optimizer)
    assert train(spec, tmp_path).exists()
    assert METHODS[spec.method].unsupported == {"head"}
