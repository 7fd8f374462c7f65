"""measure_spectrum on networks against dense autograd, scipy, PyHessian; no false saddle, no missed one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from spectrum_cases import (
    COUNTS,
    dense_hessian,
    digits,
    matrix_of,
    negative_energy_of,
    network_risk,
    orthogonal,
    quadratic,
    tanh_network,
)
from torch import nn

from landscape.models import build_model
from landscape.randomness import stream
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.spectrum import SpectrumOptions, find_extremes, measure_spectrum
from landscape.spectrum.lanczos import Lanczos, sphere

POOLED = [n / sum(COUNTS) for n in COUNTS]
LANES = {
    **{str(c): [float(k == c) for k in range(4)] for c in range(4)},
    "head": [1.0, 0, 0, 0],
    "medium": [0, 1.0, 0, 0],
    "tail": [0, 0, 5 / 7, 2 / 7],
    "all": POOLED,
}


@pytest.fixture(scope="module")
def exact():
    """Return the eigenvalues of every lane, ascending."""
    return {name: np.linalg.eigvalsh(dense_hessian(tanh_network(), *digits(), lane)) for name, lane in LANES.items()}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_lane_of_a_network_against_its_dense_hessian(exact, seed):
    # Twenty probes: with three, the error of the standard error itself exceeds five of them in 4 % of all cases.
    result = measure_spectrum(network_risk(), seed=seed, options=SpectrumOptions(num_probes=20, num_steps=20))
    assert list(result.lane.values) == list(LANES)
    for name, values in exact.items():
        lane = result.sel(lane=name)
        norm = np.abs(values).max()
        assert float(lane.lambda_min) == pytest.approx(values[0], abs=1e-9 * norm), name
        assert float(lane.lambda_max) == pytest.approx(values[-1], abs=1e-9 * norm), name
        assert float(lane.lambda_min_lower_bound) <= values[0], name
        assert abs(float(lane.trace) - values.sum()) <= 5 * float(lane.trace_stderr) + 1e-9 * norm, name
        error = abs(float(lane.negative_energy) - negative_energy_of(values))
        # Deflating Ritz pairs of residual 1e-3 |H| as exact adds a bias of that order to the energy.
        assert error <= 5 * float(lane.negative_energy_stderr) + 1e-3, name
        assert values[0] < 0
        assert lane.verdict in ("saddle", "slope")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_a_convnet_per_class_against_scipy(dtype, tolerance):
    """Our convnet with BatchNorm, 6,200 parameters: scipy's ARPACK on the same operator in float64."""
    images, labels = digits(dtype)
    torch.manual_seed(0)
    model = build_model("convnet", num_classes=4, in_channels=1, image_size=8).to(dtype)
    model.train()
    with torch.no_grad():
        for _ in range(10):
            model(images)
    risk = ModelRisk(model, (images, labels))
    result = measure_spectrum(risk, "classes", options=SpectrumOptions(num_probes=2, num_steps=2))
    double = risk.in_float64()
    size = len(risk.theta)
    for c in (0, 3):
        lane = torch.eye(4)[c : c + 1]
        with double.hessian(double.theta, lane) as product:

            def multiply(vector, product=product):
                return product(torch.as_tensor(vector.reshape(-1)).view(1, 1, -1))[0, 0].numpy()

            operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=multiply, dtype=np.float64)
            start = np.random.default_rng(0).standard_normal(size)
            ends = scipy.sparse.linalg.eigsh(operator, k=2, which="BE", v0=start, return_eigenvectors=False, tol=1e-9)
        lowest, largest = ends.min(), ends.max()
        got = result.isel(lane=c)
        assert lowest < 0
        assert float(got.lambda_max) == pytest.approx(largest, rel=tolerance)
        assert float(got.lambda_min) == pytest.approx(lowest, rel=tolerance)
        assert 0 < float(got.noise_floor) < 1e-4 * largest


def test_the_largest_eigenvalue_against_pyhessian(exact):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about reference cycles of backward(create_graph=True)
        from pyhessian import hessian as pyhessian_of

        torch.manual_seed(0)
        images, labels = digits(torch.float32)
        other = pyhessian_of(tanh_network(torch.float32), nn.CrossEntropyLoss(), data=(images, labels), cuda=False)
        (theirs,), _ = other.eigenvalues(maxIter=500, tol=1e-7)
        for parameter in other.params:
            parameter.grad = None
    ours = measure_spectrum(ModelRisk(tanh_network(torch.float32), (images, labels)), "all")
    # Power iteration that stops at successive changes of 1e-7 is good to about 1e-4 here.
    assert float(ours.lambda_max[0]) == pytest.approx(theirs, rel=1e-3)


def test_single_precision_agrees_with_double_and_says_how_well(exact):
    result = measure_spectrum(network_risk(torch.float32), "all")
    values = exact["all"]
    norm = np.abs(values).max()
    error = float(result.noise_floor[0]) + float(result.lambda_min_residual[0])
    assert abs(float(result.lambda_min[0]) - values[0]) <= error
    assert 1e-8 * norm < float(result.precision_gap[0]) < 1e-5 * norm


def test_a_subset_of_the_parameters():
    images, labels = digits()
    risk = ModelRisk(tanh_network(), (images, labels), params="head")
    lane = measure_spectrum(risk, "all", options=SpectrumOptions(num_probes=20)).isel(lane=0)
    block = dense_hessian(tanh_network(), images, labels, POOLED)[-24:, -24:]
    values = np.linalg.eigvalsh(block)
    assert float(lane.lambda_max) == pytest.approx(values[-1], rel=1e-10)
    assert abs(float(lane.trace) - np.trace(block)) <= 5 * float(lane.trace_stderr) + 1e-9
    assert lane.verdict == "no negative curvature"  # the last layer's loss is convex
    assert lane.attrs["num_parameters"] == 24


# ---- no false saddles, no missed ones ----------------------------------------------------------------------------

QUICK = SpectrumOptions(num_probes=2, num_steps=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_examples", [2, 5, 20, 80, 200])
def test_no_false_saddle_on_convex_problems(num_examples, dtype):
    """Softmax regression is convex: whatever the class, its size and the precision, nothing negative is certified.
    Redrawn augmentation, a single Gram-Schmidt pass or PyHessian's breakdown test all invent saddles here."""
    for repeat in range(10):
        generator = stream(repeat, f"convex/{num_examples}")
        inputs = torch.randn(num_examples + 30, 12, generator=generator, dtype=torch.float64)
        labels = torch.cat([torch.zeros(num_examples), torch.ones(20), 2 * torch.ones(10)]).long()
        model = nn.Linear(12, 3)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
        risk = ModelRisk(model, (inputs.float(), labels), dtype=dtype)
        lane = measure_spectrum(risk, "0", options=QUICK).isel(lane=0)
        assert lane.verdict == "no negative curvature", str(lane.evidence.item())
        assert float(lane.lambda_min) >= -1e-5 * float(lane.lambda_max)
        assert float(lane.lambda_min_lower_bound) <= 1e-6 * float(lane.lambda_max)  # rank-deficient: the truth is 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["low rank", "bulk"])
def test_planted_saddles_are_found(ratio, kind, dtype):
    size = 400
    rest = np.zeros(size - 1) if kind == "low rank" else np.linspace(0, 0.3, size - 1)
    rest[-8:] = np.linspace(0.5, 1, 8)
    spectrum = np.concatenate([[-ratio], rest])
    risk = quadratic([matrix_of(spectrum)], dtype=dtype)
    for seed in range(3):
        lane = measure_spectrum(risk, "all", options=QUICK, seed=seed).isel(lane=0)
        assert lane.verdict == "saddle", str(lane.evidence.item())
        # Certified by residual and noise, which are what the value is worth.
        error = float(lane.lambda_min_residual) + float(lane.noise_floor)
        assert abs(float(lane.lambda_min) + ratio) <= error
        assert error < ratio / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_negative_curvature_below_the_threshold_is_not_called_a_saddle(dtype):
    spectrum = np.concatenate([[-0.002], np.linspace(0, 1, 199)])
    lane = measure_spectrum(quadratic([matrix_of(spectrum)], dtype=dtype), "all").isel(lane=0)
    assert lane.verdict in ("no negative curvature", "undecided")
    assert float(lane.lambda_min_lower_bound) <= -0.002


def test_undecided_names_a_number_of_steps_that_decides():
    """A positive bulk that touches zero: too few steps say nothing; as many as the verdict asks for say enough."""
    diagonal = torch.linspace(0, 1, 3000, dtype=torch.float64)
    risk = AnalyticRisk(lambda x: (diagonal * x * x).sum()[None] / 2, torch.zeros(3000, dtype=torch.float64))
    for few in (4, 16, 40):
        short = SpectrumOptions(num_probes=2, num_steps=2, max_steps=few)
        lane = measure_spectrum(risk, "all", options=short).isel(lane=0)
        assert lane.verdict == "undecided"
        assert float(lane.lambda_min_lower_bound) < -0.01
        needed = int(lane.num_steps_to_decide)
        assert str(needed) in str(lane.evidence.item())
        assert few < needed < 150
        enough = SpectrumOptions(num_probes=2, num_steps=2, max_steps=needed)
        decided = measure_spectrum(risk, "all", options=enough).isel(lane=0)
        assert decided.verdict == "no negative curvature"
        assert -0.01 <= float(decided.lambda_min_lower_bound) <= 0


def test_undecided_never_asks_for_more_steps_than_there_are_dimensions():
    """The bound alone would ask for 155 steps at this threshold; thirty exhaust the space."""
    risk = quadratic([matrix_of(np.linspace(0.0, 1.0, 30))])
    options = {"num_probes": 2, "num_steps": 2, "threshold": 0.001}
    lane = measure_spectrum(risk, "all", options=SpectrumOptions(**options, max_steps=6)).isel(lane=0)
    assert lane.verdict == "undecided"
    assert int(lane.num_steps_to_decide) == 30
    decided = measure_spectrum(risk, "all", options=SpectrumOptions(**options, max_steps=30))
    assert decided.verdict[0] == "no negative curvature"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 2, 5, 25])
def test_a_low_rank_class_has_as_many_atoms_as_ranks(rank, dtype):
    factor = orthogonal(300)[:, :rank] * torch.linspace(1, 2, rank, dtype=torch.float64)
    risk = AnalyticRisk(lambda x: ((x @ factor.to(x.dtype)) ** 2).sum()[None] / 2, torch.zeros(300, dtype=dtype))
    found = find_extremes(risk, torch.ones(1), SpectrumOptions(), stream(0, "low rank"))
    noise = 1e-5 * found.lambda_max
    assert found.lambda_min >= -noise
    # A run stops as soon as both ends are certain, at the latest when the space is exhausted.
    assert (found.ritz.values > noise).sum() <= rank
    with risk.hessian(risk.theta, torch.ones(1, 1)) as product:
        whole = Lanczos(lambda v: product(v[:, None])[:, 0], sphere(1, 300, stream(0, "low rank")).to(dtype))
        whole.extend(60)
    assert (whole.ritz(0).values > noise).sum() == rank
    assert whole.ritz(0).is_exhausted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_a_gpu_finds_the_same_spectrum(dtype, tolerance):
    here = measure_spectrum(network_risk(dtype))
    there = measure_spectrum(ModelRisk(tanh_network(dtype), digits(dtype), groups=network_risk().groups, device="cuda"))
    for name in ("lambda_min", "lambda_max", "trace"):
        np.testing.assert_allclose(there[name], here[name], rtol=0, atol=tolerance * float(here.lambda_max.max()))
    assert there.verdict.values.tolist() == here.verdict.values.tolist()
