"""Exact traces of class Hessians against dense Hessians, and where they must be refused."""

from __future__ import annotations

import pytest
import torch
from risk_cases import COUNTS, dense_hessian, digits, draw, fill, smooth_mlp, unit
from torch import nn

from landscape.errors import LandscapeError
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.risk import traces as module
from landscape.risk.traces import hessian_traces
from landscape.spectrum import SpectrumOptions, measure_spectrum

X, Y = digits()
CLASSES = range(len(COUNTS))


class Residual(nn.Module):
    """Convolutions, frozen BatchNorm, a residual sum, max pooling, two linear layers: piecewise linear in each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.hidden = nn.Linear(48, 6)
        self.head = nn.Linear(6, len(COUNTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x.view(-1, 1, 8, 8))))
        x = torch.max_pool2d(x + torch.relu(self.second(x)), 2)
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Tied(nn.Module):
    """One weight used twice: quadratic in it although every layer is linear."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Linear(64, 64, bias=False)
        self.head = nn.Linear(64, len(COUNTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.square(torch.relu(self.square(x.flatten(1))))))


def residual(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = fill(Residual()).to(dtype)
    model.norm.running_mean.copy_(draw(3, name="mean"))
    model.norm.running_var.copy_(draw(3, name="variance").abs() + 0.5)
    return model.eval()


def true_traces(model: nn.Module, risk: ModelRisk) -> torch.Tensor:
    """Return the traces of the dense class Hessians, by products with every unit vector."""
    identity = torch.eye(len(risk.theta), dtype=risk.theta.dtype)
    out = []
    for c in CLASSES:
        row = torch.tensor([unit(len(COUNTS), c)], dtype=torch.float64)
        with risk.hessian(risk.theta, row, strategy="fresh") as product:
            out.append(torch.cat([product(part[None])[0] for part in identity.split(64)]).double().trace())
    return torch.stack(out)


# In evaluation gcl is ldam without margins, cdt is vs without shifts, and label-aware a sum of cross-entropies.
@pytest.mark.parametrize("name", ["ce", "focal", "ldam", "gcl-angular"])
def test_traces_of_losses_against_dense_hessians(name):
    risk = ModelRisk(residual(), (X, Y), loss=name, train_counts=COUNTS)
    values, errors = hessian_traces(risk, CLASSES)
    expected = true_traces(residual(), risk)
    assert ((values - expected).abs() <= errors).all()
    assert (errors <= 0.02 * expected.abs() + 1e-9).all()


def test_exact_to_rounding_when_no_direction_is_left_out(monkeypatch):
    monkeypatch.setattr(module, "NEGLIGIBLE", 0.0)
    monkeypatch.setattr(module, "CPU_NUMBERS", 3 * 400)
    model = nn.Sequential(nn.Flatten(), fill(nn.Linear(64, 5)), nn.ReLU(), fill(nn.Linear(5, len(COUNTS)))).double()
    risk = ModelRisk(model, (X, Y))
    values, _ = hessian_traces(risk, [0, 2])
    for c in (0, 2):
        expected = dense_hessian(model, X, Y, unit(len(COUNTS), c)).trace()
        assert float(values[c]) == pytest.approx(float(expected), rel=1e-12)
    assert values[[1, 3]].isnan().all()


def test_errors_cover_float32():
    risk = ModelRisk(residual(torch.float32), (X.float(), Y))
    (values, errors), (truth, _) = hessian_traces(risk, CLASSES), hessian_traces(risk.in_float64(), CLASSES)
    assert ((values - truth).abs() <= errors).all()


@pytest.mark.parametrize("gain", [1.0, 4.0, 16.0, 64.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_errors_cover_the_directions_left_out(gain, dtype, monkeypatch):
    """From open classes to confident ones, where most directions are left out: the error holds, and is below 2 %."""
    model = residual(torch.float64)
    with torch.no_grad():
        model.head.weight.mul_(gain)
    risk = ModelRisk(model.to(dtype), (X.to(dtype), Y))
    values, errors = hessian_traces(risk, CLASSES)
    monkeypatch.setattr(module, "NEGLIGIBLE", 0.0)
    truth, _ = hessian_traces(risk.in_float64(), CLASSES)
    assert ((values - truth).abs() <= errors).all()
    assert (errors <= 0.02 * truth.abs()).all()


@pytest.mark.parametrize("params", ["head", "second|hidden"])
def test_subsets_of_the_parameters(params):
    risk = ModelRisk(residual(), (X, Y), params=params)
    values, errors = hessian_traces(risk, CLASSES)
    assert ((values - true_traces(residual(), risk)).abs() <= errors).all()


@pytest.mark.parametrize("model", [smooth_mlp, lambda: fill(Tied()).double()], ids=["tanh", "tied weights"])
def test_networks_that_bend_in_a_tensor_are_not_exact(model):
    risk = ModelRisk(model(), (X, Y))
    assert hessian_traces(risk, CLASSES) is None
    with pytest.raises(LandscapeError, match="'exact' needs a network"):
        measure_spectrum(risk, "0", options=SpectrumOptions(trace="exact", context=False))
    assert float(measure_spectrum(risk, "0", options=SpectrumOptions(context=False)).trace_stderr[0]) > 0


def test_refused_where_lanes_share_statistics_or_classes_are_many(monkeypatch):
    assert hessian_traces(ModelRisk(residual(), (X, Y), batchnorm="batch"), CLASSES) is None
    monkeypatch.setattr(module, "MOST_CLASSES", 3)
    assert hessian_traces(ModelRisk(residual(), (X, Y)), CLASSES) is None


def test_spectra_take_the_exact_trace_of_classes_groups_and_all():
    risk = ModelRisk(residual(), (X, Y), groups={"head": (0, 1), "tail": (2, 3)})
    few = {"num_probes": 1, "num_steps": 4, "context": False}
    found = measure_spectrum(risk, options=SpectrumOptions(**few))
    values, errors = hessian_traces(risk, CLASSES)
    by_class = dict(zip(risk.class_names, values.tolist()))
    shares = torch.tensor(COUNTS, dtype=torch.float64)
    expected = {**by_class, "all": float((shares * values).sum() / shares.sum())}
    for name, members in risk.groups.items():
        pooled = shares[list(members)]
        expected[name] = float((pooled * values[list(members)]).sum() / pooled.sum())
    for lane in found.lane.values:
        one = found.sel(lane=lane)
        assert float(one.trace) == pytest.approx(expected[str(lane)], rel=1e-10)
        assert float(one.trace_low) <= expected[str(lane)] <= float(one.trace_high)
    difference = measure_spectrum(risk, {"d": [1.0, -1.0, 0.0, 0.0]}, options=SpectrumOptions(**few, trace="exact"))
    assert float(difference.trace[0]) == pytest.approx(float(values[0] - values[1]), rel=1e-10)
    assert float(difference.trace_stderr[0]) == pytest.approx(float(errors[0] + errors[1]), rel=1e-6)
    probed = measure_spectrum(risk, "0", options=SpectrumOptions(**few, trace="probes"))
    assert float(probed.trace[0]) != float(found.trace[0])
    assert abs(float(probed.trace[0]) - expected[risk.class_names[0]]) < 6 * float(probed.trace_stderr[0])


def test_probes_serve_toy_losses_budgets_and_xtrace():
    risk = ModelRisk(residual(), (X, Y))
    exact = float(hessian_traces(risk, [0])[0][0])
    for options in ({"budget": 60}, {"num_traces": 3}):
        found = measure_spectrum(risk, "0", options=SpectrumOptions(context=False, **options))
        assert float(found.trace[0]) != exact
    toy = AnalyticRisk(lambda x: (x[0] ** 2 - 3 * x[1] ** 2)[None], torch.zeros(2, dtype=torch.float64))
    assert float(measure_spectrum(toy, "all").trace[0]) == pytest.approx(-4.0)


@pytest.mark.parametrize(
    "options", [{"trace": "sum"}, {"trace": "exact", "num_traces": 2}, {"trace": "exact", "until": "verdict"}]
)
def test_wrong_choices_are_refused(options):
    with pytest.raises(LandscapeError, match="trace"):
        SpectrumOptions(**options)
