"""How radii follow the epoch: the published schedules, epoch by epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from optimizer_cases import build, closure_of, criterion, make_batch, make_model, weights

from landscape.errors import LandscapeError
from landscape.optimizers import SAM, FocalSAM, build_optimizer
from landscape.optimizers.radius import radius_at


def radii(rule, num_epochs):
    return [radius_at(rule, epoch, num_epochs) for epoch in range(num_epochs)]


def test_cifar_steps_are_the_released_ones():
    expected = [0.05] * 5 + [0.1] * 155 + [0.5] * 20 + [0.6] * 20
    assert radii(SAM(schedule="step"), 200) == expected


@pytest.mark.parametrize("steps", [(0.05, 0.1, 0.5, 0.5), (0.05, 0.1, 0.1, 0.2)], ids=["imagenet-lt", "inaturalist"])
def test_large_data_steps_are_the_released_ones(steps):
    expected = [steps[0]] * 5 + [steps[1]] * 55 + [steps[2]] * 15 + [steps[3]] * 15
    assert radii(SAM(schedule="step", rho_steps=steps, rho_epochs=(5, 60, 75)), 90) == expected


@pytest.mark.parametrize("num_epochs", [2, 90, 200])
def test_linear_interpolates_from_the_first_epoch_to_the_last(num_epochs):
    expected = np.interp(np.arange(1, num_epochs + 1), [1, num_epochs], [0.05, 0.8])
    np.testing.assert_allclose(radii(SAM(schedule="linear"), num_epochs), expected, rtol=1e-14)
    released = radii(SAM(schedule="linear-released"), num_epochs)
    assert released == [float(value) for value in expected.astype(np.float16)]
    assert released[0] != 0.05  # not a half


def test_linear_over_one_epoch_has_its_first_radius():
    assert radii(SAM(schedule="linear", rho_range=(0.3, 0.9)), 1) == [0.3]


def test_focal_sam_doubles_its_radius_in_the_last_fifth():
    assert radii(FocalSAM(schedule="step"), 200) == [0.1] * 160 + [0.2] * 40
    assert radii(FocalSAM(schedule="step", rho_epochs=(159,)), 200) == [0.1] * 159 + [0.2] * 41  # as released
    assert radii(FocalSAM(schedule="step", rho_steps=(1, 2), rho_epochs=(0.7,)), 10) == [1] * 7 + [2] * 3


def test_constant_is_rho_whatever_the_epoch():
    assert radius_at(SAM(rho=0.3), 7, None) == 0.3


@pytest.mark.parametrize("name", ["sam", "focal-sam"])
def test_the_step_uses_the_epochs_radius(name):
    model, (x, y) = make_model(), make_batch()
    optimizer = build(name, model, schedule="step", rho_steps=(0.1, 0.4), rho_epochs=(2,), base_options={"lr": 0.0})
    start, seen = weights(model), []

    def closure():
        seen.append((weights(model) - start).norm().item())
        return criterion(model(x), y)

    for epoch in (1, 2):
        optimizer.start_epoch(epoch, 4)
        optimizer.step(closure, labels=y)
    assert seen == pytest.approx([0.0, 0.1, 0.0, 0.4], rel=1e-12)


def test_only_a_schedule_needs_the_epoch():
    model, (x, y) = make_model(), make_batch()
    build_optimizer("sam", model.parameters(), rho=0.1).step(closure_of(model, x, y))
    with pytest.raises(LandscapeError, match="sam changes during training, but the epoch is not known"):
        build_optimizer("sam", model.parameters(), schedule="linear").step(closure_of(model, x, y))


def test_lists_and_texts_become_tuples():
    expected = SAM(schedule="step", rho_steps=(0.1, 0.2), rho_epochs=(3.0,))
    assert SAM(schedule="step", rho_steps="0.1,0.2", rho_epochs=3) == expected
    assert SAM(schedule="step", rho_steps=[0.1, 0.2], rho_epochs=[3]) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosine"}, "schedule must be one of constant, step, linear, linear-released, got 'cosine'"),
        ({"rho_steps": "0.1,x"}, "rho_steps must be finite numbers >= 0 such as 0.1,0.2, got '0.1,x'"),
        ({"rho_epochs": (-1, 2, 3)}, r"rho_epochs .* got \(-1, 2, 3\)"),
        ({"rho_steps": (0.1, 0.2)}, "one radius more than rho_epochs holds breakpoints, got 2 and 3"),
        ({"rho_range": 0.1}, r"rho_range must be the first and the last radius, got \(0.1,\)"),
    ],
)
def test_bad_schedules_are_named(options, message):
    with pytest.raises(LandscapeError, match=message):
        SAM(**options)


def test_a_scheduled_run_resumes(tmp_path):
    """The epoch is part of the optimizer's state, so the radius is."""
    model, (x, y) = make_model(), make_batch()
    optimizer = build("sam", model, schedule="linear")
    optimizer.start_epoch(3, 4)
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    optimizer.step(closure_of(model, x, y))
    other = make_model(seed=1)
    resumed = build("sam", other, schedule="linear")
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    resumed.step(closure_of(other, x, y))
    assert weights(other).equal(weights(model))
