"""Defects that were seen in other surface tools, one test each, named by their row in our survey of those tools.

Every test is a check and a defective variant: the check passes on ours and fails on the variant, which repeats the
mistake that was found, so that a check that cannot fail would be noticed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape import measure_spectrum
from landscape.directions import filter_normalised, gaussian
from landscape.errors import LandscapeError
from landscape.perturbation import PerturbationOptions, measure_perturbation
from landscape.randomness import stream
from landscape.results import load_results, save_results
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.spectrum import SpectrumOptions
from landscape.surface import cosine, measure, measure_surface, random_directions

E1, E2 = torch.eye(2, dtype=torch.float64)
X, Y = np.array([-1.0, 0.0, 0.5, 1.5]), np.array([-0.5, 0.0, 2.0])


def check_fails(check, *args):
    """The check must refuse the defective variant."""
    with pytest.raises(AssertionError):
        check(*args)


def toy(function):
    return AnalyticRisk(lambda t: function(t[0], t[1])[None], torch.zeros(2, dtype=torch.float64))


def plane(function, x=X, y=Y):
    return measure_surface(toy(function), "all", kind="plane", directions=[E1, E2], x=x, y=y).isel(pair=0, lane=0)


def network():
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    for number, parameter in enumerate(model.parameters()):
        parameter.data.normal_(generator=stream(number, "defects/weights"))
        parameter.data.mul_(torch.logspace(-1, 1, len(parameter)).view(-1, *[1] * (parameter.dim() - 1)))
    return model.eval()


def images(num=12):
    return torch.randn(num, 1, 4, 4, generator=stream(0, "defects/images")), torch.arange(num) % 3


def network_risk(model=None):
    return ModelRisk(model or network(), images())


# ---- 3.1 ----------------------------------------------------------------------------------------------------------


def check_centred(values):
    """Every row and column of a bowl centred on the model has its smallest value in the middle."""
    middle = values.shape[0] // 2, values.shape[1] // 2
    assert (values.argmin(0) == middle[0]).all()
    assert (values.argmin(1) == middle[1]).all()


def test_3_1_row_shift():
    values = plane(lambda a, b: a**2 + 3 * b**2, np.linspace(-1, 1, 9), np.linspace(-1, 1, 5)).loss.values
    check_centred(values)
    shifted = values.copy()
    shifted[1::2] = np.roll(shifted[1::2], 1, axis=1)
    check_fails(check_centred, shifted)


# ---- 3.2 ----------------------------------------------------------------------------------------------------------


def check_orthogonal(axes, weights_norm):
    assert abs(cosine(*axes)) < 1e-5
    for d in axes:
        assert float(d.norm()) == pytest.approx(weights_norm, rel=1e-5)


def test_3_2_gram_schmidt_without_the_squared_norm():
    generator = stream(0, "defects/3.2")
    risk = ModelRisk(nn.Linear(100, 3, bias=False), (torch.randn(6, 100, generator=generator), torch.arange(6) % 3))
    check_orthogonal(random_directions(risk, num=2, seed=0, pair=0), float(risk.theta.norm()))
    d1, d2 = torch.randn(2, 300, generator=generator)
    check_fails(check_orthogonal, [d1, d2 - (d2 @ d1) * d1], float(risk.theta.norm()))


# ---- 3.3 and 3.7 --------------------------------------------------------------------------------------------------


def slanted(a, b):
    return a**3 + 10 * b + a * b


def check_values(dataset, function):
    for alpha in dataset.alpha.values:
        for beta in dataset.beta.values:
            assert float(dataset.loss.sel(alpha=alpha, beta=beta)) == pytest.approx(function(alpha, beta), abs=1e-12)


def test_3_3_swapped_axes_and_edited_values(tmp_path):
    measured = plane(slanted)
    path = save_results({"surface": measured}, tmp_path / "r.nc")
    for dataset in (measured, load_results(path)["surface"].to_dataset()):
        check_values(dataset, slanted)
        assert dataset.alpha.values.tolist() == X.tolist()  # not recentred, not clipped at the edges
    square = plane(slanted, X, X)
    check_values(square, slanted)
    check_fails(check_values, square.assign(loss=(("beta", "alpha"), square.loss.values.T)), slanted)
    noisy = measured.loss.where(measured.loss < measured.loss.max(), measured.loss.max() * 1.001)
    check_fails(check_values, measured.assign(loss=noisy), slanted)


def test_3_3_a_ceiling_and_a_hole_come_back_as_they_are():
    """A loss clipped at 0.3 never exceeds 0.3; where it is not a number, nothing is filled in."""

    def clipped(a, b):
        return torch.where(a + b > 1, torch.nan, (a**2 + b**2).clamp(max=0.3))

    axis = np.linspace(-1, 1, 5)
    b, a = np.meshgrid(axis, axis, indexing="ij")
    expected = np.where(a + b > 1, np.nan, np.minimum(a**2 + b**2, 0.3))
    values = plane(clipped, axis, axis).loss.values
    np.testing.assert_array_equal(values, expected)
    for defective in (
        np.where(np.isnan(values), np.nanmean(values), values),
        np.where(values == 0.3, 0.3 + 1e-9, values),
    ):
        check_fails(np.testing.assert_array_equal, defective, expected)


# ---- 3.4 ----------------------------------------------------------------------------------------------------------


def check_moves(result):
    assert float(result.loss.max()) > float(result.loss.min())


def test_3_4_constant_surface(monkeypatch):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    risk = network_risk(model)
    for kind in ("line", "plane"):
        check_moves(measure_surface(risk, "all", kind=kind, x=[-1, 0, 1], y=[-1, 1] if kind == "plane" else None))
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(LandscapeError, match="constant"):  # the one way to ask for a constant surface
        measure_surface(risk, "all", directions=[torch.zeros_like(risk.theta)])
    monkeypatch.setattr(measure, "class_losses", lambda risk, point: {"loss": risk.losses(risk.theta)})
    check_fails(check_moves, measure_surface(risk, "all", x=[-1, 0, 1]))


# ---- 3.5 ----------------------------------------------------------------------------------------------------------


def check_finite(losses):
    assert np.isfinite(losses).all()


def test_3_5_batchnorm_statistics_perturbed_like_weights():
    model = network()
    risk = network_risk(model)
    assert risk.layout.num_parameters == sum(p.numel() for p in model.parameters())  # no buffer among them
    x = np.linspace(-1, 1, 5)
    for policy in ("frozen", "recalibrate"):
        check_finite(measure_surface(risk, kind="plane", x=x, y=x, batchnorm=policy).loss)
    defective = []
    for alpha in x:
        moved = network()
        for tensor in moved.state_dict().values():
            if tensor.is_floating_point():
                d = torch.randn(tensor.shape, generator=stream(0, "defects/3.5"))
                tensor += 3 * alpha * d * tensor.norm() / d.norm()
        with torch.no_grad():
            defective.append(moved(images()[0]).numpy())
    check_fails(check_finite, np.stack(defective))


# ---- 3.6 ----------------------------------------------------------------------------------------------------------


def check_ratios(direction, weight):
    ratios = direction.flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
    np.testing.assert_allclose(ratios, 1, rtol=0, atol=1e-5)


def test_3_6_filter_norms_over_the_wrong_axis():
    """Filters of norms that differ a hundredfold: normalising over dim 0 would mix them."""
    risk = network_risk()
    weights = risk.layout.named(risk.theta)
    d = risk.layout.named(random_directions(risk, num=1, seed=0, pair=0)[0])
    for name in ("0.weight", "4.weight"):
        norms = weights[name].flatten(1).norm(dim=1)
        assert norms.max() / norms.min() > 30
        check_ratios(d[name], weights[name])
        draw = torch.randn(weights[name].shape, generator=stream(0, "defects/3.6"))
        defective = draw * torch.norm(weights[name], dim=0) / torch.norm(draw, dim=0)
        check_fails(check_ratios, defective, weights[name])


# ---- 3.7 ----------------------------------------------------------------------------------------------------------


def test_3_7_grid_that_is_not_square():
    measured = plane(slanted)
    assert measured.loss.shape == (3, 4)
    check_values(measured, slanted)
    scrambled = measured.loss.values.T.reshape(3, 4)  # meshgrid order against the order of the storage
    check_fails(check_values, measured.assign(loss=(("beta", "alpha"), scrambled)), slanted)


def test_3_7_a_loss_of_zero_is_computed_not_missing(tmp_path):
    measured = plane(lambda a, b: 0 * a)
    loaded = load_results(save_results({"surface": measured}, tmp_path / "r.nc"))["surface"]
    assert (loaded.loss == 0).all()
    assert loaded.done.all()
    assert loaded.done.dtype == bool
    assert not (loaded.loss > 0).any()  # what "value <= 0 means not computed" would conclude


def check_unmoved(direction):
    for name, part in direction.items():
        assert part.dim() > 1 or not part.any(), name


def test_3_7_one_dimensional_part_of_a_random_direction_is_not_the_weights():
    risk = network_risk()
    check_unmoved(risk.layout.named(random_directions(risk, num=1, seed=0, pair=0)[0]))
    weights = risk.layout.unflatten(risk.theta)
    draws = filter_normalised(gaussian(weights, stream(0, "defects/3.7"), sigma=1.0), weights)
    defective = [w if w.dim() == 1 else d for d, w in zip(draws, weights)]
    check_fails(check_unmoved, dict(zip(risk.layout.names, defective)))


def test_3_7_a_range_that_starts_at_zero():
    assert plane(slanted, [0, 1], [0, 2]).loss.values.tolist() == [[0, 1], [20, 23]]


# ---- 3.8 ----------------------------------------------------------------------------------------------------------


def check_independent(one, other):
    limit = 5 / math.sqrt(len(one))
    assert abs(cosine(one, other)) < limit
    assert abs(cosine(one, torch.ones_like(one))) < limit


def test_3_8_uniform_directions():
    x = torch.randn(6, 1000, generator=stream(0, "defects/3.8"))
    risk = ModelRisk(nn.Linear(1000, 3, bias=False), (x, torch.arange(6) % 3))
    check_independent(*(random_directions(risk, num=1, seed=seed, pair=0)[0] for seed in (0, 1)))
    uniform = [torch.rand(3000, generator=stream(seed, "defects/3.8")) for seed in (0, 1)]
    assert cosine(*uniform) == pytest.approx(0.75, abs=0.02)
    check_fails(check_independent, *uniform)


def check_restored(model, before):
    now = {**model.state_dict(), "mode": model.training, "flags": [p.requires_grad for p in model.parameters()]}
    assert now.keys() == before.keys()
    for name, value in before.items():
        assert value.equal(now[name]) if isinstance(value, torch.Tensor) else value == now[name], name


def test_3_8_model_left_moved(monkeypatch):
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before |= {"mode": True, "flags": [True] * len(list(model.parameters()))}
    random_state = torch.get_rng_state()
    risk = network_risk(model)
    measure_surface(risk, kind="plane", x=[-1, 1], y=[-1, 1])
    check_restored(model, before)
    monkeypatch.setattr(measure, "class_losses", lambda risk, point: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure_surface(risk, kind="plane", x=[-1, 1], y=[-1, 1])
    check_restored(model, before)
    assert torch.get_rng_state().equal(random_state)
    check_fails(check_restored, model.requires_grad_(False), before)
    model.requires_grad_(True)
    nn.init.zeros_(model[0].weight)
    check_fails(check_restored, model, before)


# ---- 3.9 ----------------------------------------------------------------------------------------------------------


EIGENVALUES = torch.tensor([-2.0, -0.5, 0.0, 0.1, 1.0, 3.0, 5.0], dtype=torch.float64)


def check_density(values, weights):
    """Weights sum to 1; the first two moments are tr H / n and |H|_F^2 / n."""
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert (weights * values).sum() == pytest.approx(float(EIGENVALUES.mean()), abs=1e-8)
    assert (weights * values**2).sum() == pytest.approx(float((EIGENVALUES**2).mean()), abs=1e-8)


def test_3_9_density_that_ignores_its_weights():
    """Few enough eigenvalues that the run exhausts the space: then the density is exact, whatever the probe."""
    risk = AnalyticRisk(lambda t: 0.5 * (EIGENVALUES * t * t).sum()[None], torch.zeros(7, dtype=torch.float64))
    result = measure_spectrum(risk, "all", options=SpectrumOptions(num_probes=2))
    for probe in range(2):
        values, weights = (result[name].values[0, probe] for name in ("ritz_value", "ritz_weight"))
        values, weights = values[~np.isnan(values)], weights[~np.isnan(values)]
        check_density(values, weights)
        check_fails(check_density, values, np.ones((len(values), len(values))) / len(values))
        check_fails(check_density, values[values > 0], weights[values > 0] / weights[values > 0].sum())


# ---- 3.10 ---------------------------------------------------------------------------------------------------------


def check_operator(product, u, v):
    """H is one symmetric matrix: u'Hv = v'Hu, and a product has the same bits when it is repeated."""
    hu, hv = product(u), product(v)
    assert float(u @ hv) == pytest.approx(float(v @ hu), rel=1e-10)
    assert product(v).equal(hv)


def test_3_10_augmentation_inside_the_hessian_product():
    inputs, labels = images()
    weights = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    risk = ModelRisk(network(), (inputs, labels), dtype=torch.float64)
    u, v = torch.randn(2, len(risk.theta), generator=stream(0, "defects/3.10"), dtype=torch.float64)
    check_operator(lambda w: risk.hvps(risk.theta, weights, w[None])[0], u, v)

    draws = iter(range(100))

    def augmented(w):
        shift = next(draws) % 3
        moved = ModelRisk(network(), (inputs.roll(shift, 3), labels), dtype=torch.float64)
        return moved.hvps(moved.theta, weights, w[None])[0]

    check_fails(check_operator, augmented, u, v)


def test_3_10_data_that_change_between_evaluations_are_refused():
    class Augmenting(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()

        def forward(self, x):
            return self.model(x + torch.randn(x.shape))

    with pytest.raises(LandscapeError, match="two evaluations of the loss at the same weights differ"):
        network_risk(Augmenting())


@pytest.mark.parametrize("num_classes", [2, 100])
def test_3_10_number_of_classes_is_not_ten(num_classes):
    labels = torch.arange(2 * num_classes) % num_classes
    inputs = torch.randn(len(labels), 5, generator=stream(0, "defects/3.10"))
    risk = ModelRisk(nn.Linear(5, num_classes), (inputs, labels))
    result = measure_surface(risk, "classes", x=[-1, 1])
    assert result.sizes["lane"] == num_classes


# ---- 3.11 ---------------------------------------------------------------------------------------------------------


def check_noise(noise, sigma):
    assert abs(float(noise.std()) - sigma) < 5 * sigma / math.sqrt(2 * len(noise))


def test_3_11_variance_in_place_of_the_standard_deviation():
    sigma, points = 0.2, []

    def losses(t):
        points.append(t.detach().clone())
        return (t @ t)[None]

    risk = AnalyticRisk(losses, torch.zeros(10_000, dtype=torch.float64))
    points.clear()
    measure_perturbation(risk, "all", options=PerturbationOptions(radii=(1.0,), sigmas=(sigma,), num_draws=4, rhos=()))
    for noise in points[-4:]:
        check_noise(noise, sigma)
        check_fails(check_noise, noise * sigma, sigma)
        check_fails(check_noise, noise * math.sqrt(sigma) / sigma, sigma)


# ---- 3.12 ---------------------------------------------------------------------------------------------------------


def check_repeats(evaluate):
    assert evaluate() == evaluate()


def test_3_12_shuffling_loader():
    """A loader is read once: every grid point sees the same examples."""
    inputs, labels = images(30)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, labels),
        batch_size=5,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    risk = ModelRisk(network(), loader)
    d = random_directions(risk, num=1, seed=0, pair=0)
    check_repeats(lambda: measure_surface(risk, directions=d, x=[-1, 0.3]).loss.values.tolist())

    def two_batches():
        batches = [batch for batch, _ in zip(loader, range(2))]
        return [nn.functional.cross_entropy(network()(x), y).item() for x, y in batches]

    check_fails(check_repeats, two_batches)


# ---- the two other traps ------------------------------------------------------------------------------------------


def curvatures(activation, h):
    """Return v'Hv by automatic differentiation and by central differences of the surface."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), activation, nn.Linear(32, 3))
    for number, parameter in enumerate(model.parameters()):
        parameter.data.normal_(generator=stream(number, "defects/traps"))
    risk = ModelRisk(model, images(), dtype=torch.float64)
    d = random_directions(risk, num=1, seed=0, pair=0)[0]
    weights = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    exact = float(d @ risk.hvps(risk.theta, weights, d[None])[0])
    low, middle, high = measure_surface(risk, "all", directions=[d], x=[-h, 0, h]).loss.values[0, :, 0]
    return exact, (high - 2 * middle + low) / h**2


def check_agreement(exact, measured):
    assert measured == pytest.approx(exact, rel=1e-2)


def test_trap_kinks_carry_curvature_that_the_hessian_does_not_see():
    """The reason why curvature is compared on smooth activations only."""
    check_agreement(*curvatures(nn.Softplus(), 1e-3))
    check_fails(check_agreement, *curvatures(nn.ReLU(), 3e-2))


def test_trap_walking_in_place_drifts():
    """Points are computed from the centre: the last of many equals the one measured alone."""
    risk = network_risk()
    d = random_directions(risk, num=1, seed=0, pair=0)
    x = np.linspace(-1, 1, 101)
    result = measure_surface(risk, "all", directions=d, x=x)
    alone = measure_surface(risk, "all", directions=d, x=x[[0, -1]])
    assert result.loss.values[0, -1, 0] == alone.loss.values[0, -1, 0]
    walked = risk.theta - d[0]
    for step in np.diff(x):
        walked = walked + float(step) * d[0]
    assert not walked.equal((risk.theta.double() + d[0].double()).float())
