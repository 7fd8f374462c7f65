"""Augmentation: frozen draws are the average of risks built by hand; redrawn ones are no function, and say so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from risk_cases import COUNTS, digits, draw, fill, smooth_mlp, unit
from torch import nn

from landscape.data import Groups, load_dataset
from landscape.data.augmentation import TRANSFORMS, frozen_draws
from landscape.data.dataset import Split
from landscape.errors import LandscapeError
from landscape.loading import CheckpointSource, LoadedCheckpoint, risk_of
from landscape.perturbation import measure_perturbation
from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.risk.augmented import RedrawnRisk, require_fixed
from landscape.spectrum.lanczos import Lanczos, sphere
from landscape.surface import measure_surface

SHIFT = TRANSFORMS["shift"]
R = 3
LANES = torch.tensor([unit(4, 0), unit(4, 3), [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)


def stored() -> Split:
    return Split(*digits())


def frozen_split(seed: int = 0) -> tuple[Split, torch.Tensor]:
    split = stored()
    draws = SHIFT.draw(R * len(split), stream(seed, "draws")).view(-1, len(split), R)
    return frozen_draws(split, SHIFT, draws), draws


def frozen_risk(seed: int = 0, **options) -> ModelRisk:
    return ModelRisk(smooth_mlp(), frozen_split(seed)[0], draws_per_example=R, **options)


def redrawn_risk(seed: int = 0, model: nn.Module | None = None, **options) -> RedrawnRisk:
    return RedrawnRisk(ModelRisk(model or smooth_mlp(), stored(), **options), SHIFT.redraw, seed=seed)


def linear() -> nn.Module:
    return fill(nn.Sequential(nn.Flatten(), nn.Linear(64, 4).double()))


# ---- frozen -----------------------------------------------------------------------------------------------------


def singles() -> list[ModelRisk]:
    """Return the risks of draw 0, draw 1, ... alone."""
    split, (_, draws) = stored(), frozen_split()
    return [ModelRisk(smooth_mlp(), (SHIFT.apply(split.images, draws[:, :, r]), split.labels)) for r in range(R)]


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_frozen_is_the_mean_of_the_risks_of_its_draws(chunk_size):
    risk, parts = frozen_risk(chunk_size=chunk_size), singles()
    theta = risk.theta
    vectors = draw(len(LANES), 2, len(theta))

    def require_mean(value, of_one):
        torch.testing.assert_close(value, torch.stack([of_one(p) for p in parts]).mean(0), rtol=1e-12, atol=1e-12)

    for name, values in risk.evaluate(theta).items():
        require_mean(values, lambda p, name=name: p.evaluate(theta)[name])
    require_mean(risk.losses(theta), lambda p: p.losses(theta))
    require_mean(risk.gradients(theta, LANES), lambda p: p.gradients(theta, LANES))

    def products(p):
        with p.hessian(theta, LANES) as product:
            return product(vectors)

    require_mean(products(risk), products)
    assert not torch.allclose(risk.losses(theta), parts[0].losses(theta), rtol=1e-3)


def test_frozen_counts_images_not_draws():
    risk = frozen_risk()
    assert tuple(risk.class_counts.tolist()) == COUNTS
    assert tuple(risk.in_float64().class_counts.tolist()) == COUNTS
    rows = torch.arange(R * COUNTS[0])
    alone = risk.restricted(rows)  # each row is an example of its own
    assert alone.class_counts.tolist() == [R * COUNTS[0], 0, 0, 0]
    torch.testing.assert_close(alone.losses(risk.theta)[0], risk.losses(risk.theta)[0], rtol=1e-12, atol=0)
    with pytest.raises(LandscapeError, match=r"draws_per_example: expected a number that divides .* got 2"):
        ModelRisk(smooth_mlp(), stored(), draws_per_example=2)
    with pytest.raises(LandscapeError, match="got 0"):
        ModelRisk(smooth_mlp(), stored(), draws_per_example=0)


def test_frozen_classes_add_up():
    risk = frozen_risk()
    vectors = draw(1, len(risk.theta)).expand(4, -1)
    weights = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    parts = risk.hvps(risk.theta, torch.eye(4, dtype=torch.float64), vectors)
    whole = risk.hvps(risk.theta, weights[None], vectors[:1])[0]
    torch.testing.assert_close((weights[:, None] * parts).sum(0), whole, rtol=1e-12, atol=1e-12)


def test_frozen_draws_follow_the_seed():
    first, again, other = (frozen_risk(seed) for seed in (0, 0, 1))
    assert torch.equal(first.losses(first.theta), again.losses(again.theta))
    assert bool((first.losses(first.theta) != other.losses(other.theta)).all())


# ---- redrawn ----------------------------------------------------------------------------------------------------


def test_a_redrawn_product_never_repeats_and_a_redrawn_run_does():
    vectors = draw(len(LANES), 1, 119)

    def run(seed):
        risk = redrawn_risk(seed)
        with risk.hessian(risk.theta, LANES) as product:
            products = torch.stack([product(vectors), product(vectors)])
        values = torch.stack([risk.losses(risk.theta), risk.evaluate(risk.theta)["loss"]])
        return products, values, torch.stack([risk.gradients(risk.theta, LANES) for _ in range(2)])

    first, again, other = run(0), run(0), run(1)
    for a, b, c in zip(first, again, other):
        assert torch.equal(a, b)
        assert not torch.allclose(a, c, rtol=1e-3)
        assert not torch.allclose(a[0], a[1], rtol=1e-3)


def test_a_redrawn_product_is_that_of_the_hessian_of_one_draw():
    """Every lane and vector of a call sees the same images, so one call is exactly linear."""
    risk = redrawn_risk()
    vectors = draw(1, 2, len(risk.theta))
    both = torch.cat([vectors, vectors.sum(1, keepdim=True)], 1)
    with risk.hessian(risk.theta, LANES) as product:
        out = product(both.expand(len(LANES), -1, -1))
        few = product(both.expand(2, -1, -1), lanes=[2, 0])
    torch.testing.assert_close(out[:, 0] + out[:, 1], out[:, 2], rtol=1e-10, atol=1e-12)
    assert few.shape == (2, 3, len(risk.theta))
    mean = redrawn_risk().drawn()
    with mean.hessian(risk.theta, LANES) as fixed:  # call 0 of the same seed
        torch.testing.assert_close(fixed(both.expand(len(LANES), -1, -1)), out, rtol=1e-10, atol=1e-12)


def test_the_mean_of_redrawn_products_is_the_mean_over_all_shifts():
    """A shift has nine equally likely draws, so the expectation is a finite sum, the frozen risk of all of them."""
    split = stored()
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    draws = grid[:, None].expand(2, len(split), 9)
    exact = ModelRisk(smooth_mlp(), frozen_draws(split, SHIFT, draws), draws_per_example=9)
    theta, u = exact.theta, sphere(1, 119, stream(0, "u"))
    lane = LANES[1:2]
    num = 300
    risk = redrawn_risk()
    with risk.hessian(theta, lane) as product:
        sample = torch.stack([(product(u[None])[0] * u).sum() for _ in range(num)])
    curvature = float((exact.hvps(theta, lane, u) * u).sum())
    stderr = float(sample.std()) / num**0.5
    assert abs(float(sample.mean()) - curvature) < 5 * stderr
    losses = torch.stack([risk.losses(theta) for _ in range(num)])
    error = (losses.mean(0) - exact.losses(theta)).abs()
    assert bool((error < 5 * losses.std(0) / num**0.5).all())
    assert float(losses.std(0).min()) > 0


def test_redrawing_leaves_the_callers_random_state_and_model_alone():
    model = smooth_mlp()
    before, weights = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    risk = redrawn_risk(model=model)
    risk.losses(risk.theta)
    risk.hvps(risk.theta, LANES, draw(len(LANES), len(risk.theta)))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_only_the_classes_asked_for_are_drawn_and_named():
    risk = redrawn_risk()
    losses = risk.losses(risk.theta, [3])
    assert losses.isnan().tolist() == [True, True, True, False]
    assert risk.is_fixed is False
    assert risk.attributes["augmentation"] == "redraw"
    assert risk.attributes["augment_seed"] == 0
    named = RedrawnRisk(ModelRisk(smooth_mlp(), stored(), attributes={"augmentation": "redraw, shift"}), SHIFT.redraw)
    assert named.attributes["augmentation"] == "redraw, shift"
    assert risk.in_float64() is risk
    single = RedrawnRisk(ModelRisk(smooth_mlp(torch.float32), stored()), SHIFT.redraw)
    exact = single.in_float64()
    assert (exact.theta.dtype, exact.attributes["dtype"]) == (torch.float64, "float64")
    # The clone goes on with the streams of the original: no draw is used twice.
    assert not torch.allclose(single.losses(single.theta), exact.losses(exact.theta), rtol=1e-3)


# ---- what it does to Lanczos ------------------------------------------------------------------------------------


def ritz_ends(risk, lane) -> tuple[float, float]:
    start = sphere(1, len(risk.theta), stream(0, "start"))
    with risk.hessian(risk.theta, lane) as product:
        run = Lanczos(lambda v: product(v[:, None])[:, 0], start)
        run.extend(30)
        values = run.ritz(0).values
    return float(values[0]), float(values[-1])


@pytest.mark.parametrize("c", range(4))
def test_a_convex_model_gets_negative_eigenvalues_from_redrawn_images_only(c):
    lane = LANES.new_tensor([unit(4, c)])
    low, high = ritz_ends(ModelRisk(linear(), stored()), lane)
    assert low >= -1e-10 * high
    frozen = ModelRisk(linear(), frozen_split()[0], draws_per_example=R)
    low, high = ritz_ends(frozen, lane)
    assert low >= -1e-10 * high
    low, high = ritz_ends(redrawn_risk(model=linear()), lane)
    assert low < -0.01 * high


def test_redrawn_products_are_far_from_symmetric():
    def defect(risk):
        starts = draw(2, len(risk.theta))
        lane = LANES[1:2]
        with risk.hessian(risk.theta, lane) as product:
            u, v = (product(x[None, None])[0, 0] for x in starts)
            of_u, of_v = (product(x[None, None])[0, 0] for x in (u, v))
        return float((u @ of_v - v @ of_u).abs() / (u.norm() * of_v.norm()))

    assert defect(frozen_risk()) < 1e-10
    assert defect(redrawn_risk()) > 1e-3


# ---- refusals ---------------------------------------------------------------------------------------------------


def test_what_needs_a_function_refuses_a_redrawn_risk():
    risk = redrawn_risk()
    match = "needs a fixed function, got augmentation redrawn at every evaluation: choose --augment none or frozen"
    with pytest.raises(LandscapeError, match=f"a surface {match}"):
        measure_surface(risk, "all")
    with pytest.raises(LandscapeError, match=f"a perturbation analysis {match}"):
        measure_perturbation(risk, "all")
    require_fixed(frozen_risk(), "a surface")


def test_named_inputs_are_not_redrawn():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 4)

        def forward(self, pixels):
            return self.linear(pixels)

    images, labels = digits(dtype=torch.float32)
    risk = ModelRisk(Named(), [({"pixels": images.flatten(1)}, labels)])
    with pytest.raises(LandscapeError, match="expected inputs in one tensor, got named tensors"):
        RedrawnRisk(risk, SHIFT.redraw)


# ---- every training transform -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "none"])
def test_every_transform_is_analysed_frozen_and_redrawn(name):
    images = torch.randint(0, 256, (24, 3, 16, 16), generator=stream(0, "test/pictures"), dtype=torch.uint8)
    split = Split(images, torch.arange(4).repeat_interleave(6))
    rgb = {
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "class_names": tuple("abcd"),
        "pixel_max": 255,
        "groups": Groups("none", {}),
    }
    data = replace(load_dataset("digits-lt"), train=split, test=split, augmentation=name, **rgb)
    model = fill(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)))
    checkpoint = type(
        "File", (), {"sha256": "0", "other_container": None, "spec": None, "state_dict": {}, "path": "x"}
    )()
    loaded = LoadedCheckpoint(checkpoint, model, data, {})

    def losses(choice, **options):
        risk = risk_of(loaded, CheckpointSource("x.pt", device="cpu", augment=choice, augment_draws=2, **options))
        assert name in risk.attributes["augmentation"] or choice == "none"
        return risk, risk.losses(risk.theta)

    risk, frozen = losses("frozen")
    assert torch.equal(frozen, losses("frozen")[1])
    draws = TRANSFORMS[name].draw(48, stream(0, "augment/frozen/train")).view(-1, 24, 2)
    by_hand = frozen_draws(split, TRANSFORMS[name], draws)
    ce = nn.functional.cross_entropy(model(data.normalise(by_hand.images)), by_hand.labels, reduction="none")
    torch.testing.assert_close(frozen, ce.detach().view(4, 12).mean(1).double(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(frozen, losses("none")[1], rtol=1e-3)
    few, of_few = losses("frozen", max_per_class=2)
    torch.testing.assert_close(of_few, ce.detach().view(4, 12)[:, :4].mean(1).double(), rtol=1e-5, atol=1e-6)
    redrawn, first = losses("redraw")
    assert bool((redrawn.losses(redrawn.theta) != first).any())
    assert (risk.class_counts.tolist(), few.class_counts.tolist()) == ([6] * 4, [2] * 4)
