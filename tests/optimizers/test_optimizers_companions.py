"""What methods do around their steps: averaged weights and normalised layers, each against a plain transcription."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from optimizer_cases import build, closure_of, criterion, make_batch, make_model, weights
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from landscape.errors import LandscapeError
from landscape.models import NormedLinear, build_model
from landscape.optimizers import OPTIMIZERS, SAM, SWA, SpectralNorm, accompany, build_optimizer
from landscape.randomness import stream


def conv_model(seed=0):
    """Convolutions, batch norm and a head, in float64."""
    layers = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 6, 3), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(6, 4)).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=stream(seed, f"test/{name}"), dtype=p.dtype))
    return model


def images(num=12, name="images"):
    return torch.randn(num, 1, 5, 5, generator=stream(0, name), dtype=torch.float64)


def epochs(model, companion, optimizer, epochs_to_run, num_epochs=4):
    """Train: three steps per epoch, as a training loop would."""
    labels = torch.arange(12) % 4
    for epoch in epochs_to_run:
        lr = companion.learning_rate(0.02, epoch=epoch, num_epochs=num_epochs, lr=0.1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.start_epoch(epoch, num_epochs)
        model.train()
        for step in range(3):
            x = images(name=f"{epoch}/{step}")
            optimizer.step(lambda x=x: criterion(model(x), labels), labels=labels)
        companion.end_epoch(epoch, num_epochs)


def started(name, seed=0, **options):
    model = conv_model(seed)
    companion = accompany(OPTIMIZERS[name](**options), model)
    optimizer = build_optimizer(
        name, model.parameters(), base_options={"lr": 0.1, "momentum": 0.9}, model=model, **options
    )
    return model, companion, optimizer


# ---- averaging --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_epochs", "start", "lr"), [(300, 161, 0.1), (225, 126, 0.1), (200, 0.8, 0.05), (10, 0.5, 0.2)]
)
def test_the_learning_rate_of_swa_is_the_released_one(num_epochs, start, lr):
    rule = SWA(start=start, swa_lr=0.01)
    swa_start = start if start >= 1 else round(start * num_epochs) + 1
    for epoch in range(num_epochs):
        t, ratio = epoch / swa_start, 0.01 / lr
        factor = 1.0 if t <= 0.5 else 1.0 - (1.0 - ratio) * (t - 0.5) / 0.4 if t <= 0.9 else ratio
        assert rule.learning_rate(epoch, num_epochs, lr=lr) == pytest.approx(lr * factor, rel=1e-12)


@pytest.mark.parametrize(
    ("start", "num_epochs", "first"),
    [(0.8, 200, 161), (161, 300, 161), (0.7, 10, 8), (0.8, 1, 1), (0.99, 3, 3), (0, 5, 1)],
)
def test_swa_averages_from_an_epoch_or_a_share_of_them(start, num_epochs, first):
    rule, model = SWA(start=start), nn.Linear(1, 1)
    companion = accompany(rule, model)
    assert rule.first_epoch(num_epochs) == first
    for epoch in range(num_epochs):
        companion.end_epoch(epoch, num_epochs)
    assert int(companion.average.n_averaged) == num_epochs - first + 1


def test_swa_that_would_average_nothing_is_an_error():
    with pytest.raises(LandscapeError, match="start=161 is after the last of 60 epochs"):
        SWA(start=161).first_epoch(60)


def test_swa_exports_the_mean_weights_with_statistics_of_the_training_data():
    model, companion, optimizer = started("swa", start=2, swa_lr=0.05)
    kept, record = [], companion.end_epoch

    def end_epoch(epoch, num_epochs):
        kept.append(weights(model).numpy())
        record(epoch, num_epochs)

    companion.end_epoch = end_epoch
    epochs(model, companion, optimizer, range(4))
    trained = copy.deepcopy(model.state_dict())
    batches = [images(8, "a"), images(8, "b"), images(3, "c")]
    network = companion.export(lambda: [(x, None) for x in batches])
    np.testing.assert_allclose(weights(network), np.mean(kept[1:], axis=0), rtol=1e-12, atol=1e-14)

    outputs = [network[0](x).detach().numpy() for x in batches]  # (B, 4, 3, 3): what the batch norm sees
    means = [out.mean(axis=(0, 2, 3)) for out in outputs]
    variances = [out.var(axis=(0, 2, 3), ddof=1) for out in outputs]
    np.testing.assert_allclose(network[1].running_mean, np.mean(means, axis=0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(network[1].running_var, np.mean(variances, axis=0), rtol=1e-12, atol=1e-14)
    assert network[1].momentum == 0.1
    assert all(torch.equal(model.state_dict()[name], value) for name, value in trained.items())


def test_swa_exports_the_trained_network_before_the_first_mean():
    model, companion, _ = started("swa", start=3)
    companion.end_epoch(0, 4)
    assert companion.export(list) is model


def test_swa_can_keep_the_trainings_schedule():
    model = conv_model()
    assert accompany(SWA(schedule="given"), model).learning_rate(0.02, epoch=3, num_epochs=4, lr=0.1) == 0.02
    assert accompany(SWA(swa_lr=0.07), model).learning_rate(0.02, epoch=3, num_epochs=4, lr=0.1) != 0.02


# ---- spectral normalisation -------------------------------------------------------------------------------------


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize(("head", "num"), [(True, 3), (False, 2)])
def test_spectral_norm_divides_by_the_largest_singular_value(head, num):
    """Before any step the vectors are exact, so the norms are one."""
    model, plain = conv_model(), conv_model()
    companion = accompany(SpectralNorm(head=head), model)
    network = companion.export(list)
    for index, (layer, before) in enumerate(zip(layers_of(network), layers_of(plain))):
        matrix = before.weight.detach().numpy().reshape(before.weight.shape[0], -1)
        sigma = np.linalg.svd(matrix, compute_uv=False)[0] if index < num else 1.0
        expected = before.weight.detach().numpy() / sigma
        np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-10, atol=1e-13)
    assert list(network.state_dict()) == list(plain.state_dict())


def test_spectral_norm_steps_equal_a_plain_power_iteration():
    """Two steps by hand: one iteration per pass, sigma = u' W v, and no gradient through u and v."""
    x, y = make_batch()
    model, other = make_model(), make_model()
    accompany(SpectralNorm(), model)
    optimizer = build_optimizer("spectral-norm", model.parameters(), base_options={"lr": 0.1}, model=model)
    vectors = {}
    for layer in (other[0], other[2]):
        u, _, vh = np.linalg.svd(layer.weight.detach().numpy())
        vectors[layer] = torch.tensor(u[:, 0]), torch.tensor(vh[0])
    for _ in range(2):
        optimizer.step(lambda: criterion(model(x), y))
        hidden = x
        for layer in (other[0], other[2]):
            w, (u, v) = layer.weight, vectors[layer]
            u = (w @ v).detach() / (w @ v).detach().norm()
            v = (w.T @ u).detach() / (w.T @ u).detach().norm()
            vectors[layer] = u, v
            hidden = hidden @ (w / (u @ w @ v)).T + layer.bias
            hidden = torch.tanh(hidden) if layer is other[0] else hidden
        loss = criterion(hidden, y).mean()
        for p, g in zip(other.parameters(), torch.autograd.grad(loss, list(other.parameters()))):
            p.data -= 0.1 * g
    for index in (0, 2):
        got = model[index].parametrizations.weight.original
        torch.testing.assert_close(got, other[index].weight, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(model[index].bias, other[index].bias, rtol=1e-11, atol=1e-13)


def test_spectral_norm_exports_what_the_network_computes_and_leaves_it_alone():
    model, companion, optimizer = started("spectral-norm")
    epochs(model, companion, optimizer, range(2))
    state, x = copy.deepcopy(model.state_dict()), images()
    network = companion.export(list)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert type(network[0]) is nn.Conv2d
    torch.testing.assert_close(network.eval()(x), model.eval()(x), rtol=1e-13, atol=1e-15)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert list(network.state_dict()) == list(conv_model().state_dict())
    assert all(p.requires_grad for p in network.parameters())


def test_spectral_norm_uses_no_random_numbers():
    model = conv_model()
    before = torch.get_rng_state()
    accompany(SpectralNorm(), model)
    assert torch.get_rng_state().equal(before)


def test_spectral_norm_leaves_cosine_heads_and_needs_a_layer():
    model = make_model(head="cosine")
    assert accompany(SpectralNorm(), model).layers == ["0"]
    with pytest.raises(
        LandscapeError, match="Sequential has no convolution or linear layer in training to normalise besides its head"
    ):
        accompany(SpectralNorm(head=False), nn.Sequential(nn.Flatten(), nn.Linear(3, 2)))
    with pytest.raises(
        LandscapeError, match=r"NormedLinear has no convolution or linear layer in training to normalise$"
    ):
        accompany(SpectralNorm(), NormedLinear(3, 2))


def test_spectral_norm_of_a_network_that_is_one_layer():
    model = nn.Linear(3, 2)
    network = accompany(SpectralNorm(), model).export(list)
    assert list(network.state_dict()) == ["weight", "bias"]
    assert torch.linalg.matrix_norm(network.weight.detach(), 2).item() == pytest.approx(1.0, rel=1e-6)


def test_spectral_norm_trains_a_network_of_the_registry():
    model = build_model("convnet", num_classes=4, in_channels=1, image_size=8)
    companion = accompany(SpectralNorm(), model)
    optimizer = build_optimizer("spectral-norm", model.parameters(), base_options={"lr": 0.05}, model=model)
    x, y = torch.randn(16, 1, 8, 8, generator=stream(0, "x")), torch.arange(16) % 4
    losses = [optimizer.step(lambda: criterion(model(x), y)).item() for _ in range(20)]
    assert losses[-1] < losses[0]
    for layer in layers_of(companion.export(list)):
        assert type(layer) in (nn.Conv2d, nn.Linear)
        sigma = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item()
        assert sigma == pytest.approx(1.0, abs=0.1)  # the vectors follow the weights by one iteration per step


# ---- both -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["swa", "spectral-norm", "sam"])
def test_a_resumed_training_ends_with_the_bits_of_an_uninterrupted_one(name, tmp_path):
    options = {"start": 0.3} if name == "swa" else {}
    model, companion, optimizer = started(name, **options)
    epochs(model, companion, optimizer, range(3))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "companion": companion.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    epochs(model, companion, optimizer, range(3, 4))

    other, resumed, resumed_optimizer = started(name, seed=1, **options)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(state["model"])
    resumed_optimizer.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["companion"])
    epochs(other, resumed, resumed_optimizer, range(3, 4))
    batches = [images(8, "a"), images(4, "b")]
    whole, again = (c.export(lambda: batches).state_dict() for c in (companion, resumed))
    assert list(whole) == list(again)
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_other_methods_have_nothing_around_their_steps():
    model = conv_model()
    companion = accompany(SAM(), model)
    assert companion.learning_rate(0.02, epoch=1, num_epochs=4, lr=0.1) == 0.02
    companion.end_epoch(1, 4)
    assert companion.export(list) is model
    assert companion.state_dict() == {}


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (SWA, {"start": -1}, "swa: start .* got -1"),
        (SWA, {"swa_lr": "x"}, "swa_lr .* got 'x'"),
        (SWA, {"schedule": "x"}, "schedule must be one of own, given, got 'x'"),
        (SpectralNorm, {"num_iterations": 0}, "num_iterations .* got 0"),
        (SpectralNorm, {"num_iterations": 1.5}, "num_iterations must be a whole number, got 1.5"),
        (SpectralNorm, {"head": "no"}, "head must be true or false .* got 'no'"),
        (SpectralNorm, {"eps": -1}, "eps .* got -1"),
    ],
)
def test_bad_options_are_named(rule, options, message):
    with pytest.raises(LandscapeError, match=message):
        rule(**options)


def test_layers_that_are_held_fixed_are_not_normalised():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    accompany(SpectralNorm(), model)
    assert not is_parametrized(model[0])
    assert is_parametrized(model[2], "weight")
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("name", ["swa", "spectral-norm"])
def test_a_network_without_its_companion_is_said_to_be_trained_by_plain_descent(name):
    model, (x, y) = make_model(), make_batch()
    optimizer = build(name, model)
    with pytest.warns(UserWarning, match=rf"^{name}: its steps alone are plain descent, .*accompany\(rule, model\)"):
        optimizer.step(closure_of(model, x, y), labels=y)
    optimizer.step(closure_of(model, x, y), labels=y)  # said once
    model = make_model()
    accompany(OPTIMIZERS[name](), model)
    build(name, model).step(closure_of(model, x, y), labels=y)  # warnings are errors in this suite
