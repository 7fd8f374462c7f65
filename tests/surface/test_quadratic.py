"""Quadratic models of surfaces: derivatives against closed forms and dense autograd, fits against known quadratics."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from landscape.errors import LandscapeError
from landscape.figures.quadratic import evaluate_quadratic
from landscape.losses import LOSSES, build_loss
from landscape.randomness import numpy_stream, stream
from landscape.results import load_results, save_results, validate
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.risk import taylor as taylor_terms
from landscape.risk.augmented import RedrawnRisk
from landscape.surface import measure_surface, random_directions
from landscape.surface.directional import PER_CLASS, PER_EXAMPLE, directional_derivatives
from landscape.surface.fit import fit_quadratic, fit_widest
from landscape.surface.quadratic import fitted_models, quadratic_models

COUNTS = (7, 5, 3, 1)  # the last class has one image
GROUPS = {"head": (0,), "medium": (1,), "tail": (2, 3)}
F64 = torch.float64


def normal(*shape, name="x"):
    return torch.randn(*shape, generator=stream(0, f"quadratic/{name}"), dtype=F64)


def labels():
    return torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS)).flip(0)


def images(channels=1):
    return normal(sum(COUNTS), channels, 4, 4, name="images") + labels()[:, None, None, None]


class Cube(nn.Module):
    def forward(self, x):
        return x**3 / 3


class CubeByHand(torch.autograd.Function):
    """x^3 / 3 without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3 / 3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x**2


class OpaqueCube(nn.Module):
    def forward(self, x):
        return CubeByHand.apply(x)


def network(activation=nn.Tanh):
    """Convolution, BatchNorm with statistics of its own, activation, two linear layers: smooth but for ReLU."""
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), activation(), nn.Flatten(), nn.Linear(12, 5), activation()]
    model = nn.Sequential(*layers, nn.Linear(5, 4)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.6 * normal(*parameter.shape, name=name))
        model[1].running_mean.copy_(torch.linspace(-0.5, 0.5, 3))
        model[1].running_var.copy_(torch.linspace(0.5, 2.0, 3))
    return model.eval()


def risk_of(model=None, **options):
    return ModelRisk(model or network(), (images(), labels()), groups=GROUPS, **options)


def directions(risk, num=2):
    return [normal(risk.theta.numel(), name=f"d{k}") for k in range(num)]


def dense(model, example):
    """Return the gradient (n,) and Hessian (n, n) of one example's cross-entropy by nested reverse differentiation."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]
    image, label = images()[example : example + 1], labels()[example : example + 1]

    def loss(theta):
        parts = {name: part.view(p.shape) for (name, p), part in zip(named.items(), theta.split(sizes))}
        return functional.cross_entropy(functional_call(model, parts, (image,)), label)

    theta = torch.cat([p.reshape(-1) for p in named.values()])
    gradient = torch.func.grad(loss)
    return gradient(theta), torch.func.jacrev(gradient)(theta)


def close(a, b, rtol=1e-9, atol=1e-11):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


# ---- derivatives: closed forms -----------------------------------------------------------------------------------


def test_quadratics_and_cubics_in_closed_form():
    a = normal(5, 5, name="A")
    matrix, b = a + a.T, normal(5, name="b")
    cubic = normal(5, name="cubic")
    risk = AnalyticRisk(lambda t: torch.stack([t @ matrix @ t / 2 + b @ t, (cubic @ t) ** 3]), normal(5, name="theta"))
    along = directions(risk, 3)
    found = directional_derivatives(risk, along)
    assert set(found) == {"loss"}
    terms, theta = found["loss"], risk.theta
    assert terms.route == PER_CLASS
    stacked = torch.stack(along)
    close(terms.value, risk.losses(theta), rtol=1e-12)
    close(terms.slope[:, 0], stacked @ (matrix @ theta + b), rtol=1e-12)
    close(terms.curvature[:, :, 0], stacked @ matrix @ stacked.T, rtol=1e-12, atol=1e-12)
    close(terms.slope[:, 1], 3 * (cubic @ theta) ** 2 * (stacked @ cubic), rtol=1e-12)
    close(terms.curvature[:, :, 1], 6 * (cubic @ theta) * torch.outer(stacked @ cubic, stacked @ cubic), rtol=1e-12)
    assert bool(terms.slope_stderr.isnan().all())
    assert bool(terms.curvature_stderr.isnan().all())


def test_nested_product_of_many_outputs_in_closed_form():
    x, a, b = normal(3, 4, name="nested")
    value, at_a, at_b, mixed = taylor_terms.nested_product(lambda t: torch.stack([t.prod(), (t**4).sum()]), x, a, b)
    others = [torch.stack([x[[k for k in range(4) if k not in (i, j)]].prod() for j in range(4)]) for i in range(4)]
    hessian = torch.stack(others).fill_diagonal_(0)
    close(value, [x.prod(), (x**4).sum()])
    for slope, d in ((at_a, a), (at_b, b)):
        close(slope, [(x.prod() / x) @ d, 4 * (x**3) @ d])
    close(mixed, [a @ hessian @ b, 12 * (x**2 * a) @ b])


# ---- derivatives: dense autograd and Hessian products ------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_every_example_against_its_dense_hessian(chunk_size):
    model, risk = network(), risk_of(chunk_size=chunk_size)
    along = directions(risk)
    terms = directional_derivatives(risk, along)["loss"]
    assert terms.route == PER_EXAMPLE
    order, stacked = torch.argsort(labels(), stable=True).tolist(), torch.stack(along)
    found = [dense(model, example) for example in order]
    slopes = torch.stack([stacked @ g for g, _ in found], -1)
    curvatures = torch.stack([stacked @ h @ stacked.T for _, h in found], -1)
    close(terms.example_slope, slopes)
    close(terms.example_curvature, curvatures)
    classes = torch.tensor(COUNTS).cumsum(0).tolist()
    for c, (start, stop) in enumerate(zip([0, *classes], classes)):
        for mean, error, rows in (
            (terms.slope, terms.slope_stderr, slopes),
            (terms.curvature, terms.curvature_stderr, curvatures),
        ):
            part = rows[..., start:stop].numpy()
            close(mean[..., c], part.mean(-1))
            if COUNTS[c] == 1:
                assert bool(error[..., c].isnan().all())
            else:
                close(error[..., c], part.std(-1, ddof=1) / np.sqrt(COUNTS[c]))


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_class_means_equal_gradients_and_hessian_products_for_every_loss(loss):
    built = build_loss(loss, COUNTS)
    built.name = loss
    risk, plain = risk_of(loss=built), risk_of()
    along = directions(risk)
    found = directional_derivatives(risk, along)
    assert set(found) == ({"loss"} if loss == "ce" else {"loss", "own_loss"})
    stacked = torch.stack(along)
    for name, reference in (("loss", plain), ("own_loss", risk)):
        if name not in found:
            continue
        eye = torch.eye(4, dtype=F64)
        close(found[name].value, reference.losses(reference.theta))
        close(found[name].slope, stacked @ reference.gradients(reference.theta, eye).T)
        for j, d in enumerate(along):
            products = reference.hvps(reference.theta, eye, d.expand(4, -1))
            close(found[name].curvature[:, j], stacked @ products.T)


def test_many_directions_have_all_mixed_terms():
    risk = risk_of()
    along = directions(risk, 3)
    terms, swapped = (directional_derivatives(risk, given)["loss"] for given in (along, along[::-1]))
    close(terms.curvature, swapped.curvature.flip(0, 1))
    total = directional_derivatives(risk, [along[0] + 2 * along[1] - along[2]])["loss"]
    t = torch.tensor([1.0, 2.0, -1.0], dtype=F64)
    close(total.slope[0], t @ terms.slope)
    close(total.curvature[0, 0], torch.einsum("i,ijc,j->c", t, terms.curvature, t))


@pytest.mark.parametrize("loss", ["ce", "ldam"])
def test_an_operation_without_forward_derivative_gives_the_same_numbers_class_by_class(loss, caplog):
    built = build_loss(loss, COUNTS)
    built.name = loss
    opaque, open_ = risk_of(network(OpaqueCube), loss=built), risk_of(network(Cube), loss=built)
    along = directions(open_)
    with caplog.at_level(logging.INFO, logger="landscape.surface.directional"):
        whole = directional_derivatives(opaque, along)
    assert "Hessian products instead" in caplog.text
    single = directional_derivatives(open_, along)
    assert set(whole) == set(single) == ({"loss"} if loss == "ce" else {"loss", "own_loss"})
    for name, terms in whole.items():
        assert (terms.route, single[name].route) == (PER_CLASS, PER_EXAMPLE)
        assert terms.example_slope is None
        assert bool(terms.slope_stderr.isnan().all())
        for field in ("value", "slope", "curvature"):
            close(getattr(terms, field), getattr(single[name], field))


def test_batch_statistics_are_differentiated_lane_by_lane():
    rows = torch.nonzero(labels() < 3)[:, 0]  # a class of one image has no variance
    risk = ModelRisk(network(), (images()[rows], labels()[rows]), batchnorm="batch")
    along = directions(risk, 1)
    terms = directional_derivatives(risk, along)["loss"]
    assert terms.route == PER_CLASS
    step = 1e-3
    left, centre, right = (
        torch.stack([risk.lane_losses(risk.theta + s * along[0], torch.eye(4)[c : c + 1])[0] for c in range(3)])
        for s in (-step, 0.0, step)
    )
    # Central differences: errors of the order of step^2 times third and fourth derivatives.
    close(terms.slope[0, :3], (right - left) / (2 * step), rtol=1e-3, atol=1e-3)
    close(terms.curvature[0, 0, :3], (right - 2 * centre + left) / step**2, rtol=1e-3, atol=1e-2)
    assert bool(terms.slope[:, 3].isnan().all())


def test_draws_of_an_image_count_as_one_image():
    twice = images().repeat_interleave(2, 0) + 0.1 * normal(2 * sum(COUNTS), 1, 4, 4, name="draws")
    risk = ModelRisk(network(), (twice, labels().repeat_interleave(2)), draws_per_example=2)
    terms = directional_derivatives(risk, directions(risk, 1))["loss"]
    per_image = terms.example_curvature[0, 0].view(-1, 2).mean(1)[:7].numpy()
    close(terms.curvature[0, 0, 0], per_image.mean())
    close(terms.curvature_stderr[0, 0, 0], per_image.std(ddof=1) / np.sqrt(7))


def test_single_precision_agrees_to_its_rounding():
    risk = risk_of()
    along = directions(risk)
    single = directional_derivatives(ModelRisk(network().float(), (images().float(), labels())), along)["loss"]
    exact = directional_derivatives(risk, along)["loss"]
    # 1e-7 per operation, some hundreds of them, in sums of terms of both signs.
    close(single.slope, exact.slope, rtol=1e-4, atol=1e-4)
    close(single.curvature, exact.curvature, rtol=1e-4, atol=1e-3)
    assert single.curvature.dtype == F64


def test_nothing_is_touched():
    risk = risk_of()
    theta, state = risk.theta.clone(), torch.get_rng_state()
    first = directional_derivatives(risk, directions(risk))["loss"]
    with torch.no_grad():
        again = directional_derivatives(risk, directions(risk))["loss"]
    assert first.curvature.equal(again.curvature)
    assert risk.theta.equal(theta)
    assert not risk.theta.requires_grad
    assert torch.get_rng_state().equal(state)
    assert risk.loss_name == "ce"


def test_wrong_directions_and_risks_are_refused():
    risk = risk_of()
    n = risk.theta.numel()
    with pytest.raises(LandscapeError, match="at least one direction"):
        directional_derivatives(risk, [])
    with pytest.raises(LandscapeError, match=rf"expected directions of shape \({n},\), got \(3,\)"):
        directional_derivatives(risk, [torch.ones(3)])
    with pytest.raises(LandscapeError, match="not finite"):
        directional_derivatives(risk, [torch.full((n,), torch.nan)])
    with pytest.raises(LandscapeError, match="batchnorm 'frozen'"):
        directional_derivatives(risk.with_batchnorm("recalibrate"), directions(risk))
    with pytest.raises(LandscapeError, match="a quadratic model needs a fixed function"):
        directional_derivatives(RedrawnRisk(risk, lambda x, g: x), directions(risk))


# ---- fits --------------------------------------------------------------------------------------------------------


def grid(x, y):
    a, b = np.meshgrid(x, y, indexing="ij")
    return np.stack([a.ravel(), b.ravel()], 1)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("radius", [0.7, 3.0])
def test_an_exact_quadratic_is_recovered_with_and_without_the_weights_on_the_grid(centre, radius):
    x = np.linspace(-1, 1, 9 if centre else 10)
    points = grid(x, 0.5 * x)
    a, b = points.T
    values = np.stack([3 - a + 2 * b + 4 * a**2 - 3 * a * b + b**2, 1e4 + 0 * a], 1)
    fit = fit_quadratic(points, values, radius=radius, aspect=0.5)
    close(fit.centre, [3, 1e4], atol=1e-10)
    close(fit.slope[:, 0], [-1, 2], atol=1e-10)
    close(fit.curvature[:, :, 0], [[8, -3], [-3, 2]], atol=1e-9)
    close(fit.curvature[:, :, 1], 0, atol=1e-9)
    close(fit.residual, 0, atol=1e-10)
    inside = (a**2 + (b / 0.5) ** 2 <= radius**2).sum() - centre
    assert fit.num_points.tolist() == [inside, inside]
    assert fit.radius.tolist() == [radius, radius]


def test_coefficients_of_a_cubic_are_those_of_the_normal_equations():
    t = np.linspace(-1, 2, 13)
    y = 1 + t**3
    fit = fit_quadratic(t, y, radius=1.6)
    kept = t[(abs(t) <= 1.6) & (t != 0)]
    design = np.stack([kept, kept**2 / 2], 1)
    expected, squares, *_ = np.linalg.lstsq(design, kept**3, rcond=None)
    covariance = np.linalg.inv(design.T @ design) * squares[0] / (len(kept) - 2)
    close([fit.slope[0, 0], fit.curvature[0, 0, 0]], expected)
    close([fit.slope_stderr[0, 0], fit.curvature_stderr[0, 0, 0]], np.sqrt(np.diag(covariance)))
    close(fit.residual[0], np.sqrt(squares[0] / len(kept)))
    assert fit.centre[0] == 1.0
    assert fit.centre_stderr[0] == 0.0


def test_standard_errors_cover_under_noise():
    """Nominal 95 % of Student's t with 10 degrees of freedom; 1000 lanes: 5 of their own errors are 3.4 %."""
    t = np.linspace(-1, 1, 13)
    noise = numpy_stream(0, "quadratic/noise").normal(size=(13, 1000))
    noise[6] = 0.0  # the surface is evaluated exactly; at the weights the increase is 0 by definition
    fit = fit_quadratic(t, (2 * t + 3 * t**2 / 2)[:, None] + 0.1 * noise, radius=1.0)
    for estimate, error, truth in (
        (fit.slope[0], fit.slope_stderr[0], 2.0),
        (fit.curvature[0, 0], fit.curvature_stderr[0, 0], 3.0),
    ):
        covered = abs(estimate - truth) <= 2.228 * error
        assert abs(covered.mean() - 0.95) < 0.034
    offset = np.delete(np.arange(13), 6)
    fit = fit_quadratic(t[offset], (1 + 2 * t + 3 * t**2 / 2)[offset, None] + 0.1 * noise[offset], radius=1.0)
    assert abs((abs(fit.centre - 1) <= 2.262 * fit.centre_stderr).mean() - 0.95) < 0.034


def test_the_widest_radius_is_where_the_quadratic_ends():
    t = np.linspace(-2, 2, 81)
    kinked = t**2 + 20 * np.maximum(abs(t) - 1, 0)
    noisy_centre = t**2 + 1e-3 * np.sin(200 * t)  # small radii fail, larger ones hold
    cliff = np.where(abs(t) < 1.5, t**2, np.inf)
    walls = np.where(t == 2.0, np.nan, t**2)
    columns = np.stack([t**2, kinked, noisy_centre, cliff, walls, np.full_like(t, np.nan), np.zeros_like(t)], 1)
    fit = fit_widest(t, columns)
    close(fit.radius, [2, 1, 2, 1.45, 2, np.nan, 2])
    close(fit.curvature[0, 0, :5], 2, rtol=1e-3)
    assert fit.num_points.tolist() == [80, 40, 80, 58, 79, 0, 80]
    rough = numpy_stream(0, "quadratic/rough").normal(size=81)
    assert np.isnan(fit_widest(t, rough).radius[0])
    assert fit_widest(t, kinked, limit=0.2).radius[0] > 1


def test_too_few_or_collinear_points_are_not_fitted():
    t = np.linspace(-1, 1, 5)
    assert np.isfinite(fit_quadratic(t, t**2, radius=1.0).curvature).all()
    assert np.isnan(fit_quadratic(t, t**2, radius=0.6).curvature).all()  # two points beside the weights
    line_on_a_plane = np.stack([np.linspace(-1, 1, 21), np.linspace(-1, 1, 21)], 1)
    assert np.isnan(fit_quadratic(line_on_a_plane, line_on_a_plane[:, 0] ** 2, radius=2.0).curvature).all()
    with pytest.raises(LandscapeError, match="positive radius and aspect, got 0 and 1"):
        fit_quadratic(t, t, radius=0)
    with pytest.raises(LandscapeError, match="positive limit"):
        fit_widest(t, t, limit=-1)
    with pytest.raises(LandscapeError, match="finite offsets"):
        fit_quadratic(np.zeros((4, 3)), np.zeros(4), radius=1)
    with pytest.raises(LandscapeError, match="each of 5 points"):
        fit_quadratic(t, np.zeros(4), radius=1)


# ---- models of a surface -----------------------------------------------------------------------------------------


def test_a_plane_of_known_quadratics_is_reproduced_exactly_through_saving_and_loading(tmp_path):
    a = normal(3, 3, 3, name="matrices")
    matrices, b = a + a.transpose(1, 2), normal(3, 3, name="slopes")
    risk = AnalyticRisk(
        lambda t: torch.einsum("i,cij,j->c", t, matrices, t) / 2 + b @ t + 5,
        torch.zeros(3, dtype=F64),
        class_counts=[6, 3, 1],
        groups={"head": (0,), "tail": (1, 2)},
    )
    along = directions(risk)
    x, y = np.linspace(-1, 2, 7), np.linspace(-0.4, 0.8, 5)
    plane = measure_surface(risk, kind="plane", directions=along, x=x, y=y)
    models = quadratic_models(plane, risk, along)
    loaded = load_results(save_results({"surface": models}, tmp_path / "r.nc"))["surface"].to_dataset()
    weights = {"head": [1, 0, 0], "tail": [0, 0.75, 0.25], "all": [0.6, 0.3, 0.1]}
    for dataset in (models, loaded):
        validate("surface", dataset)
        assert dataset.axis.values.tolist() == dataset.other_axis.values.tolist() == ["alpha", "beta"]
        for lane in dataset.lane.values:
            for kind in ("autograd", "fitted"):
                close(evaluate_quadratic(dataset, lane, kind=kind), dataset.loss.sel(lane=lane)[0])
        for lane, row in weights.items():
            close(dataset.slope.sel(lane=lane)[0], torch.stack(along) @ b.T @ torch.tensor(row, dtype=F64))
        assert json.loads(dataset.attrs["quadratic_derivatives"]) == {"loss": PER_CLASS}
    assert models.attrs["fitted_aspect"] == pytest.approx(0.4)
    beta, alpha = np.meshgrid(y, x, indexing="ij")
    inside = evaluate_quadratic(quadratic_models(plane, risk, along, radius=1.5), "all", kind="fitted")
    np.testing.assert_array_equal(np.isfinite(inside), alpha**2 + (beta / 0.4) ** 2 <= 1.5**2)


def test_lanes_combine_classes_and_their_errors():
    risk = risk_of()
    pairs = [random_directions(risk, num=1, seed=0, pair=p) for p in range(2)]
    line = measure_surface(risk, num_pairs=2, x=np.linspace(-0.5, 0.5, 11))
    models = quadratic_models(line, risk, pairs)
    shares = np.array(COUNTS) / sum(COUNTS)
    for pair, axes in enumerate(pairs):
        terms = directional_derivatives(risk, axes)["loss"]
        at = models.isel(pair=pair)
        for name in ("slope", "curvature"):
            of_classes = getattr(terms, name).reshape(-1).numpy()
            errors = getattr(terms, f"{name}_stderr").reshape(-1).numpy()
            close(at[name].sel(lane="all").values.ravel(), of_classes @ shares)
            close(at[name].sel(lane=list(risk.class_names)).values.ravel(), of_classes)
            assert np.isnan(at[f"{name}_stderr"].sel(lane=["all", "tail", "3"])).all()  # the class of one image
            close(at[f"{name}_stderr"].sel(lane="head").values.ravel(), errors[:1])
    mixed = measure_surface(risk, {"mix": [0.5, 0.5, 0, 0]}, x=[-1, 0, 1], num_pairs=2)
    with pytest.raises(LandscapeError, match="'mix' is a mixture"):
        quadratic_models(mixed, risk, pairs)
    mixed = quadratic_models(mixed, risk, pairs, lanes={"mix": [0.5, 0.5, 0, 0]})
    terms = directional_derivatives(risk, pairs[0])["loss"]
    close(mixed.slope_stderr[0, 0, 0], np.linalg.norm(terms.slope_stderr[0, :2].numpy()) / 2)


def test_the_model_is_of_the_loss_that_is_shown_and_of_the_own_loss():
    loss = build_loss("vs", COUNTS)
    loss.name = "vs"
    risk, plain = risk_of(loss=loss), risk_of()
    along = directions(risk, 1)
    x = np.linspace(-1e-3, 1e-3, 11)
    models = quadratic_models(measure_surface(risk, directions=along, x=x), risk, along)
    reference = quadratic_models(measure_surface(plain, directions=along, x=x), plain, along)
    for name in ("slope", "curvature", "fitted_slope", "centre"):
        close(models[name], reference[name])
        assert float(abs(models[f"own_{name}"] - models[name]).min()) > 1e-6
    # Smooth, and 1e-3 away: a fit sees the derivatives up to terms of third order.
    for prefix in ("", "own_"):
        close(models[f"{prefix}fitted_slope"], models[f"{prefix}slope"], rtol=1e-3, atol=1e-3)
        close(models[f"{prefix}fitted_curvature"], models[f"{prefix}curvature"], rtol=1e-2, atol=1e-2)


def test_held_out_images_have_models_of_their_own():
    risk = risk_of()
    held_out = ModelRisk(network(), (images() + 0.3, labels()), groups=GROUPS)
    along = directions(risk, 1)
    x = np.linspace(-0.1, 0.1, 9)
    line, other = (measure_surface(r, directions=along, x=x) for r in (risk, held_out))
    both = line.assign(held_out_loss=other["loss"], recalibrated_loss=other["loss"] * 2)
    models = quadratic_models(both, risk, along, held_out=held_out)
    reference = quadratic_models(other, held_out, along)
    for name in ("slope", "curvature", "fitted_curvature", "fitted_radius"):
        np.testing.assert_array_equal(models[f"held_out_{name}"], reference[name])
    assert "recalibrated_fitted_slope" in models
    assert "recalibrated_slope" not in models


def test_kinks_part_the_two_models_and_both_are_stated():
    """The trap: the sum of many hinges is piecewise linear, of no curvature at any point, and a parabola at a distance."""
    places = torch.linspace(-1, 1, 101, dtype=F64) + 0.005

    def hinges(t):
        return torch.relu(t[0] - places).mean()[None]

    risk = AnalyticRisk(hinges, torch.zeros(1, dtype=F64))
    line = measure_surface(risk, "all", directions=[torch.ones(1)], x=np.linspace(-0.8, 0.8, 33))
    models = quadratic_models(line, risk, [torch.ones(1)])
    assert models.curvature.item() == 0.0
    # mean of relu(t - place) over places of density 1/2: second derivative 1/2
    assert models.fitted_curvature.item() == pytest.approx(0.5, rel=0.02)
    assert models.fitted_radius.item() == pytest.approx(0.8)
    assert (models.fitted_curvature - models.curvature).item() > 20 * models.fitted_curvature_stderr.item()
    assert "kinks" in models.attrs["quadratic_caveat"]
    assert "0.02 of the range" in models.attrs["fitted_radius_rule"]


def test_holes_are_left_out_of_fits():
    t = AnalyticRisk(lambda t: (t**2).sum()[None], torch.zeros(2, dtype=F64))
    along = list(torch.eye(2, dtype=F64))
    plane = measure_surface(t, "all", kind="plane", directions=along, x=np.linspace(-1, 1, 9), y=np.linspace(-1, 1, 9))
    plane["loss"][0, 0, 0] = 1e9
    plane["done"][0, 0, 0] = False
    models = quadratic_models(plane, t, along)
    close(models.fitted_curvature[0, :, :, 0], 2 * np.eye(2), atol=1e-9)
    assert int(models.fitted_points[0, 0]) == 79
    assert float(models.fitted_radius[0, 0]) == pytest.approx(np.sqrt(2))


def test_a_given_radius_holds_for_all_lanes_and_recalibrated_surfaces_are_only_fitted():
    risk = risk_of()
    along = directions(risk, 1)
    line = measure_surface(risk, directions=along, x=np.linspace(-1, 1, 21), batchnorm="recalibrate")
    models = quadratic_models(line, risk, along, radius=0.5)
    assert "slope" not in models
    assert models.attrs["fitted_radius_rule"] == "given"
    assert (models.fitted_radius == 0.5).all()
    assert (models.fitted_points == 10).all()


def test_what_does_not_belong_together_is_refused():
    risk = risk_of()
    along = directions(risk, 2)
    line = measure_surface(risk, directions=along[:1], x=[-1, 0, 1])
    with pytest.raises(LandscapeError, match=r"expected the 1 direction\(s\) of each of the 1 pair\(s\).*got \[2\]"):
        quadratic_models(line, risk, along)
    with pytest.raises(LandscapeError, match="of norm"):
        quadratic_models(line, risk, [3 * along[0]])
    with pytest.raises(LandscapeError, match="at the weights, the risk"):
        quadratic_models(line, ModelRisk(network(), (images() + 3, labels()), groups=GROUPS), along[:1])
    loss = build_loss("focal", COUNTS)
    loss.name = "focal"
    with pytest.raises(LandscapeError, match="measured with objective ce, the risk has focal"):
        quadratic_models(line, risk_of(loss=loss), along[:1])
    with pytest.raises(LandscapeError, match="expected a loss on a line or plane, got done"):
        fitted_models(line[["done"]])
    with pytest.raises(LandscapeError, match="expected the lanes of the surface"):
        quadratic_models(line, risk, along[:1], lanes="all")
