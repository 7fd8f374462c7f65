"""The learning rates of the released code, epoch by epoch: closed forms, and torch's schedulers stepped as released."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim import lr_scheduler

from landscape.errors import LandscapeError
from landscape.training import SCHEDULES, TrainSpec, learning_rate
from landscape.training.schedules import STEPPED


def rates(schedule, num_epochs, lr=0.1, **options):
    return [learning_rate(schedule, epoch, num_epochs=num_epochs, lr=lr, **options) for epoch in range(num_epochs)]


def stepped_before(make, num_epochs, lr=0.1):
    """Return the rate of each epoch where the scheduler is stepped before the epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, seen = make(optimizer), []
    for _ in range(num_epochs):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_ccsam_warms_up_from_a_third_and_is_one_epoch_ahead():
    ours = rates("ccsam", 200)
    assert ours[:5] == pytest.approx([0.1 * (1 / 3 + 2 / 3 * t / 5) for t in (1, 2, 3, 4, 5)], rel=1e-14)
    assert [ours[e] for e in (4, 158, 159, 178, 179, 199)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])

    def chained(optimizer):
        warmup = lr_scheduler.LinearLR(optimizer, 1 / 3, total_iters=5)
        return lr_scheduler.ChainedScheduler([warmup, lr_scheduler.MultiStepLR(optimizer, [160, 180], gamma=0.1)])

    assert ours == pytest.approx(stepped_before(chained, 200), rel=1e-12)


@pytest.mark.parametrize("num_epochs", [10, 70, 200])
def test_shifted_cosines(num_epochs):
    def cosine(optimizer):
        return lr_scheduler.CosineAnnealingLR(optimizer, num_epochs)

    shifted = stepped_before(cosine, num_epochs)
    assert rates("cosine-shifted", num_epochs) == pytest.approx(shifted, abs=1e-12)
    assert rates("cosine-shifted", num_epochs)[-1] == 0
    gnm = rates("cosine-gnm", num_epochs)
    assert gnm[0] == gnm[1] == 0.1
    assert gnm[2:] == pytest.approx(shifted[: num_epochs - 2], abs=1e-12)


def test_gcl_stage2_is_a_fifth_of_a_cosine():
    ours = rates("gcl-stage2", 30)
    assert ours == pytest.approx([0.1 * 0.1 * (1 + math.cos(math.pi * e / 30)) for e in range(30)], rel=1e-14)
    assert (ours[0], ours[15]) == pytest.approx((0.02, 0.01))


def test_steps_are_multistep_by_default_and_torchs():
    assert rates("steps", 200, warmup=5) == pytest.approx(rates("multistep", 200), rel=1e-14)
    ours = rates("steps", 150, milestones=[100, 120], of=150)  # LPF-SGD
    assert ours == pytest.approx([0.1] * 100 + [0.01] * 20 + [0.001] * 30)
    assert rates("steps", 20, milestones=(320, 360), of=400) == pytest.approx([0.1] * 16 + [0.01] * 2 + [0.001] * 2)
    assert rates("steps", 4, milestones=[0, 100], factor=0.01) == pytest.approx([1e-3, 1e-3, 1e-5, 1e-5])


def test_cosine_after_a_warm_up():
    ours = rates("cosine-warmup", 100)
    assert ours[:10] == pytest.approx([0.01 * e for e in range(1, 11)])
    assert ours[10:] == pytest.approx([0.05 * (1 + math.cos(math.pi * e / 90)) for e in range(90)])
    assert rates("cosine-warmup", 90, warmup=1, of=90)[:2] == [0.1, 0.1]
    assert rates("cosine-warmup", 30, warmup=0) == rates("cosine", 30)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_epochs", [1, 2, 7, 230])
def test_every_schedule_stays_within_the_base_rate(schedule, num_epochs):
    ours = rates(schedule, num_epochs)
    assert all(0 <= rate <= 0.1 for rate in ours)
    peak = ours.index(max(ours))
    if schedule in STEPPED:
        assert ours == sorted(ours[: peak + 1]) + sorted(ours[peak + 1 :], reverse=True)


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ("cosine", {"warmup": 3}, r"unknown option of schedule 'cosine' 'warmup': known: \(none\)"),
        ("steps", {"milestone": [3]}, "unknown option of schedule 'steps' 'milestone': did you mean 'milestones'"),
        ("steps", {"milestones": 160}, "expected milestones such as 160,180, got 160"),
        ("steps", {"milestones": [160, "late"]}, "expected milestones to be finite and >= 0, got 'late'"),
        ("steps", {"factor": -0.1}, r"expected factor to be finite and >= 0, got -0\.1"),
        ("steps", {"of": 0}, "expected of to be finite and >= 0, got 0"),
        ("cosine-warmup", {"warmup": 100}, "the warm-up of 100 epochs leaves none to train"),
    ],
)
def test_bad_options(schedule, options, message):
    with pytest.raises(LandscapeError, match=message):
        TrainSpec(schedule=schedule, schedule_options=options)
