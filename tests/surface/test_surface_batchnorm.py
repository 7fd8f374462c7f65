"""Surfaces with BatchNorm statistics recomputed at every point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from surface_cases import Net, images, labels, risk_of, toy
from torch import nn

from landscape.errors import LandscapeError
from landscape.risk import ModelRisk
from landscape.surface import measure_surface, random_directions


def test_recalibrated_surface_is_finite_different_and_close_to_frozen_at_the_centre():
    risk = risk_of()
    frozen, recalibrated = (
        measure_surface(risk, kind="plane", x=np.linspace(-1, 1, 5), y=np.linspace(-1, 1, 3), batchnorm=policy)
        for policy in ("frozen", "recalibrate")
    )
    for result in (frozen, recalibrated):
        assert np.isfinite(result.loss).all()
    centre = {"alpha": 0.0, "beta": 0.0}
    # The running average over 40 epochs of the same 40 images, momentum 0.1, has forgotten its start to 0.9^40 = 1.5 %.
    np.testing.assert_allclose(recalibrated.loss.sel(centre), frozen.loss.sel(centre), atol=0.05)
    assert float(abs(recalibrated.loss - frozen.loss).max()) > 0.05
    assert frozen.attrs["batchnorm"] == "frozen"
    assert "recalibrated on 40 examples" in recalibrated.attrs["batchnorm"]


def test_recalibration_is_what_training_mode_would_compute():
    risk = risk_of()
    d = random_directions(risk, num=1, seed=0, pair=0)[0]
    result = measure_surface(risk, "classes", directions=[d], x=[0.0, 0.7], batchnorm="recalibrate")
    model = Net()
    for parameter, value in zip(
        model.parameters(), risk.layout.unflatten((risk.theta.double() + 0.7 * d.double()).float())
    ):
        parameter.data.copy_(value)
    torch.optim.swa_utils.update_bn([images()], model)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(model.eval()(images()), labels(), reduction="none")
    expected = [float(losses[labels() == c].double().mean()) for c in range(3)]
    np.testing.assert_allclose(result.loss.sel(alpha=0.7)[0], expected, rtol=1e-5)


def test_recalibration_needs_batchnorm_and_a_known_policy():
    plain = ModelRisk(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (images(), labels()))
    with pytest.raises(LandscapeError, match="'recalibrate': the model has no BatchNorm"):
        measure_surface(plain, batchnorm="recalibrate")
    with pytest.raises(LandscapeError, match="'recalibrate': this risk is not a network's; use 'frozen'"):
        measure_surface(toy(), batchnorm="recalibrate")
    with pytest.raises(LandscapeError, match="unknown BatchNorm policy 'recalibrated': did you mean 'recalibrate'"):
        measure_surface(risk_of(), batchnorm="recalibrated")
