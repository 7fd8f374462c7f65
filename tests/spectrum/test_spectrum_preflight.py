"""What is refused before a spectrum, and what is not: an operator that is wrong, and one that only rounds."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from spectrum_cases import dense_hessian, digits, matrix_of, network_risk, quadratic, tanh_network
from torch import nn
from torch.nn import functional

from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.spectrum import SpectrumOptions, measure_spectrum
from landscape.spectrum.lane import find_extremes

QUICK = SpectrumOptions(num_probes=2, num_steps=2, num_bootstrap=0)
DTYPES = (torch.float32, torch.float64)


class Changed:
    """A risk whose products are changed on their way."""

    def __init__(self, risk, change):
        self._risk, self._change = risk, change

    def __getattr__(self, name):
        return getattr(self._risk, name)

    def in_float64(self):
        return Changed(self._risk.in_float64(), self._change)

    @contextmanager
    def hessian(self, theta, weights):
        with self._risk.hessian(theta, weights) as product:
            yield lambda vectors, lanes=None: self._change(vectors, product(vectors, lanes=lanes))


def redrawn(seed=0):
    """Multiply by H plus a small symmetric matrix (one number) that is drawn at every call."""
    generator = torch.Generator().manual_seed(seed)
    return lambda v, out: out + 1e-3 * torch.rand(1, generator=generator).to(v) * v


def skewed(v, out):
    """Add a fixed matrix that is not symmetric: a shift of the coordinates."""
    return out + 1e-2 * v.roll(1, -1)


def clipped(v, out):
    """A fixed function that is not linear."""
    return out + 1e-2 * v.abs()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("change", "check"), [(redrawn(), "repeat"), (skewed, "symmetry"), (clipped, "linearity")], ids=["r", "s", "l"]
)
def test_a_wrong_operator_is_refused_and_named(change, check, dtype):
    risk = network_risk(dtype)
    measure_spectrum(risk, "0", options=QUICK)
    with pytest.raises(LandscapeError, match=f"lane '0': the Hessian product fails the {check} check"):
        measure_spectrum(Changed(risk, change), "0", options=QUICK)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_asymmetry_that_the_first_two_vectors_miss_is_refused_at_the_end(dtype):
    """The antisymmetric part couples two coordinates of 200, weakly: 60 basis vectors see what two do not."""
    size, coupling = 200, 0.02
    matrix = matrix_of(np.concatenate([np.linspace(-1, 1, size - 2), [3.0, -2.0]]))
    skew = torch.zeros(size, size, dtype=torch.float64)
    skew[0, 1], skew[1, 0] = coupling, -coupling
    risk = quadratic([matrix], dtype=dtype)
    with pytest.raises(LandscapeError, match="symmetry check"):
        measure_spectrum(Changed(risk, lambda v, out: out + v @ skew.to(v)), "all", options=QUICK)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_that_loses_its_symmetry_during_the_run_is_refused(dtype):
    """What the first products showed does not hold for the later ones: all the run's vectors say so."""
    matrix = matrix_of(np.concatenate([np.linspace(-1, 1, 98), [3.0, -2.0]]))
    calls = [0]

    def later(v, out):
        calls[0] += 1
        return out if calls[0] < 12 else skewed(v, out)

    with pytest.raises(LandscapeError, match="the Hessian product fails the symmetry check"):
        measure_spectrum(Changed(quadratic([matrix], dtype=dtype), later), "all", options=QUICK)
    assert calls[0] > 20


@pytest.mark.parametrize("dtype", DTYPES)
def test_wrong_class_weights_are_refused(dtype):
    """The lane's own product counts class 0 twice; symmetric, linear, repeatable, and not the sum of its classes."""

    class Miscounted(Changed):
        @contextmanager
        def hessian(self, theta, weights):
            wrong = weights.clone()
            wrong[:, 0] *= 1.01
            with self._risk.hessian(theta, wrong) as product:
                yield product

        def in_float64(self):
            return Miscounted(self._risk.in_float64(), None)

        def hvps(self, theta, weights, vectors):
            return self._risk.hvps(theta, weights, vectors)

    with pytest.raises(LandscapeError, match=r"lane 'all': .* additivity check .* class counts"):
        measure_spectrum(Miscounted(network_risk(dtype), None), "all", options=QUICK)


@pytest.mark.parametrize("dtype", DTYPES)
def test_classes_that_cancel_are_no_reason_to_refuse(dtype):
    """The difference of two classes with nearly equal Hessians: its rounding is that of the classes."""
    a, b = matrix_of(np.linspace(0, 1, 60)), matrix_of(np.linspace(0, 1, 60) + 4e-3)
    risk = quadratic([a, b], dtype=dtype)
    lane = measure_spectrum(risk, {"difference": [1.0, -1.0]}, options=QUICK).isel(lane=0)
    assert float(lane.additivity_error) <= 500 * torch.finfo(dtype).eps
    assert float(lane.lambda_min) == pytest.approx(-4e-3, rel=1e-3)
    nothing = measure_spectrum(quadratic([a, a], dtype=dtype), {"nothing": [1.0, -1.0]}, options=QUICK).isel(lane=0)
    assert max(abs(float(nothing.lambda_min)), abs(float(nothing.lambda_max))) <= 10 * torch.finfo(dtype).eps
    assert str(nothing.verdict.item()) != "saddle"


def certain(margin, dtype, *, wrong=0):
    """Return the tanh network with its last layer turned up until the four images get the class ``wrong`` places after
    their own, by about ``margin``."""
    model = tanh_network()
    images, labels = digits(counts=(1, 1, 1, 1))
    with torch.no_grad():
        features = model[:4](images)
        target = margin * (functional.one_hot((labels + wrong) % 4, 4).double() - 0.5)
        both = torch.cat([features, torch.ones(4, 1, dtype=torch.float64)], 1)
        solution = torch.linalg.lstsq(both, target).solution
        model[4].weight.copy_(solution[:-1].T)
        model[4].bias.copy_(solution[-1])
    return model, images, labels, ModelRisk(model, (images, labels), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [0, 1], ids=["right", "wrong"])
@pytest.mark.parametrize("margin", [5.0, 12.0, 16.0, 20.0])
def test_a_class_of_which_the_network_is_certain_keeps_its_digits(margin, wrong, dtype):
    """p = 1 - 1e-8 has no digit left in float32, and 1 - p has none in p (1 - p): spelt with the other classes, the
    Hessian is as accurate as any. Against a dense Hessian in float64 of the loss in the same spelling."""
    model, images, _, risk = certain(margin, dtype, wrong=wrong)
    lane = measure_spectrum(risk, "0", options=QUICK).isel(lane=0)
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def loss(theta):
        parts = {name: part.view(p.shape) for (name, p), part in zip(named.items(), theta.split(sizes))}
        logits = torch.func.functional_call(model, parts, (images[:1],))[0]
        rest = torch.cat([logits[:wrong], logits[wrong + 1 :]]) - logits[wrong]
        return torch.log1p(rest.exp().sum()) + logits[wrong] - logits[0]

    theta = torch.cat([p.reshape(-1) for p in named.values()])
    exact = np.linalg.eigvalsh(torch.func.jacrev(torch.func.grad(loss))(theta).numpy())
    tolerance = 2e-5 if dtype == torch.float32 else 1e-9
    assert float(lane.lambda_max) == pytest.approx(exact[-1], rel=tolerance)
    assert float(lane.lambda_min) == pytest.approx(exact[0], rel=tolerance, abs=tolerance * exact[-1])
    assert float(lane.loss) == pytest.approx(margin if wrong else 0, abs=0.3 * margin if wrong else 4 * np.exp(-margin))
    for check in ("linearity", "symmetry"):
        assert float(lane[f"{check}_error"]) <= 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_curvature_below_the_smallest_squares_is_no_evidence(dtype):
    """A margin of 1200 leaves a Hessian of about 1e-261: nothing is refused, and nothing is negative."""
    _, _, _, risk = certain(1200.0, dtype)
    result = measure_spectrum(risk, "classes", options=QUICK)
    assert set(result.verdict.values) <= {"no negative curvature", "undecided"}
    assert (np.abs(result.lambda_min) < 1e-100).all()


def test_weights_that_are_not_finite_are_named():
    risk = network_risk()
    risk.theta[3] = torch.nan
    with pytest.raises(LandscapeError, match="lane 'lane': a Hessian product is not finite"):
        find_extremes(risk, torch.ones(4, dtype=torch.float64), QUICK, stream(0, "nan"))


class Dropped(nn.Dropout):
    """Drops in evaluation mode, too."""

    def forward(self, x):
        return functional.dropout(x, self.p, training=True)


def test_dropout_in_evaluation_mode_is_refused():
    model = tanh_network()
    model[3] = nn.Sequential(nn.Tanh(), Dropped(0.1))
    with pytest.raises(
        LandscapeError,
        match=r"first in layer '3\.1': every call draws from the random numbers of PyTorch; functional dropout",
    ):
        ModelRisk(model, digits())


class Fresh(Changed):
    """Products that build their graph anew, as a risk larger than its memory does."""

    def __init__(self, risk):
        super().__init__(risk, None)

    @contextmanager
    def hessian(self, theta, weights):
        def product(vectors, lanes=None):
            rows = weights if lanes is None else weights[list(lanes)]
            out = [self._risk.hvps(theta, rows, vectors[:, p]) for p in range(vectors.shape[1])]
            return torch.stack(out, 1)

        yield product


def test_fresh_graphs_of_a_fixed_network_pass():
    risk = network_risk()
    ours = measure_spectrum(Fresh(risk), "1", options=QUICK).isel(lane=0)
    exact = np.linalg.eigvalsh(dense_hessian(tanh_network(), *digits(), [0.0, 1, 0, 0]))
    assert float(ours.lambda_min) == pytest.approx(exact[0], rel=1e-9)


def test_a_parabola_that_float32_cannot_resolve_is_walked_in_float64():
    """On top of a loss of 1e4 a decrease of 2e-3 is below the rounding of float32, and the saddle was called a slope."""

    def loss(x):
        return (1e4 + x[0] ** 2 - 0.1 * x[1] ** 2 + x[1] ** 4)[None]

    risk = AnalyticRisk(loss, torch.zeros(2))
    assert str(measure_spectrum(risk, "all", options=QUICK).verdict.item()) == "saddle"
    own = SpectrumOptions(num_probes=2, num_steps=2, num_bootstrap=0, certify="own")
    assert str(measure_spectrum(risk, "all", options=own).verdict.item()) != "saddle"


def test_an_analytic_loss_of_a_certain_network_keeps_its_digits():
    """Cross-entropies in a toy loss are spelt as those of networks are."""
    inputs = torch.tensor([[0.5, -1.0, 2.0]])

    def loss(x):
        return functional.cross_entropy(40 * (inputs.to(x) @ x.view(3, 4)), torch.tensor([1]))[None]

    start = torch.zeros(12)
    start[[1, 5, 9]] = torch.tensor([0.1, -0.1, 0.1])
    values = [
        float(measure_spectrum(AnalyticRisk(loss, start.to(d)), "all", options=QUICK).lambda_max[0]) for d in DTYPES
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert 0 < values[1] < 0.1  # of 1600 |x|^2 p (1 - p)
