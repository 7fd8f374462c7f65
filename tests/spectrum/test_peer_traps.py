"""What other Hessian tools get wrong, asked of ours; where it is cheap, the defect is shown beside it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from spectrum_cases import dense_hessian, digits, matrix_of, network_risk, quadratic, tanh_network
from torch import nn

from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.spectrum import Lanczos, SpectrumOptions, measure_spectrum
from landscape.spectrum.bridge import PyHessianSettings, bridged, run_pyhessian
from landscape.spectrum.pyhessian import measure_with_pyhessian


def draw(*shape, name="x"):
    return torch.randn(*shape, generator=stream(0, f"test/{name}"), dtype=torch.float64)


def one(risk, lane="0", **options):
    """Return the spectrum of one lane."""
    return measure_spectrum(risk, lane, options=SpectrumOptions(**{"num_probes": 2, "num_steps": 10, **options})).isel(
        lane=0
    )


class Logits(nn.Module):
    """A softmax regression: the Hessian of its cross-entropy is positive semidefinite, of rank <= n (C - 1)."""

    def __init__(self, size: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(num_classes, size, name="regression").float() / size**0.5)

    def forward(self, inputs):
        return inputs @ self.weight.T


def regression(num_examples, *, size=40, num_classes=10, dtype=torch.float32):
    model = Logits(size, num_classes).to(dtype)
    inputs = draw(num_examples, size, name="inputs").to(dtype)
    return ModelRisk(model, (inputs, torch.zeros(num_examples, dtype=torch.int64)))


# ---- products ---------------------------------------------------------------------------------------------------------


def test_ragged_chunks_add_up_to_the_whole():
    """A mean of batch means is 27 % off for batches of 32 and 8; ours weighs every example alike."""
    images, labels = digits(counts=(40, 3, 3, 3))
    risk = ModelRisk(tanh_network(), (images, labels), chunk_size=40)
    lane, vector = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64), draw(1, 109)
    exact = torch.tensor(dense_hessian(tanh_network(), images, labels, [1.0, 0.0, 0.0, 0.0])) @ vector[0]

    def rows_product(start, stop):
        part = ModelRisk(tanh_network(), (images[start:stop], labels[start:stop]))
        return part.hvps(part.theta, lane, vector)[0]

    first, last = rows_product(0, 32), rows_product(32, 40)
    torch.testing.assert_close(32 / 40 * first + 8 / 40 * last, exact, rtol=1e-12, atol=1e-12 * float(exact.norm()))
    for size in (32, 8, 7):
        with risk.hessian(risk.theta, lane, chunk_size=size) as product:
            found = product(vector[:, None])[0, 0]
        assert float((found - exact).norm() / exact.norm()) < 1e-12
    unweighted = (first + last) / 2
    assert float((unweighted - exact).norm() / exact.norm()) > 0.01  # the defect is visible on these data


def test_classes_of_different_sizes_add_up_to_all():
    risk = network_risk()
    vectors = draw(1, 1, 109).expand(4, 1, 109)
    weights = risk.class_counts.double() / risk.class_counts.sum()
    with risk.hessian(risk.theta, torch.eye(4, dtype=torch.float64)) as product:
        parts = product(vectors)[:, 0]
    whole = risk.hvps(risk.theta, weights[None], vectors[0])[0]
    assert float((weights @ parts - whole).norm() / whole.norm()) < 1e-12


def test_risks_in_a_list_do_not_accumulate():
    """PyHessian's objects share ``.grad``: the second in a list is the sum of both."""
    import pyhessian

    images, labels = digits()
    model, vector = tanh_network(), draw(109)
    exact = [
        torch.tensor(dense_hessian(tanh_network(), images, labels, np.eye(4)[c].tolist())) @ vector for c in (0, 1)
    ]
    risks = [ModelRisk(model, (images[labels == c], labels[labels == c])) for c in (0, 1)]
    lanes = torch.eye(4, dtype=torch.float64)
    for c, risk in enumerate(risks):
        torch.testing.assert_close(risk.hvps(risk.theta, lanes[c : c + 1], vector[None])[0], exact[c])
    with risks[0].hessian(risks[0].theta, lanes[:1]) as first, risks[1].hessian(risks[1].theta, lanes[1:2]) as second:
        torch.testing.assert_close(second(vector[None, None])[0, 0], exact[1])
        torch.testing.assert_close(first(vector[None, None])[0, 0], exact[0])
    assert all(p.grad is None for p in model.parameters())
    for c in (0, 1):  # a copy of its own for each run keeps the backend from it too
        found = measure_with_pyhessian(risks[c], c, settings=PyHessianSettings(num_steps=30))
        top = np.linalg.eigvalsh(dense_hessian(tanh_network(), images, labels, np.eye(4)[c].tolist()))[-1]
        assert float(found["lambda_max"]) == pytest.approx(top, rel=1e-4)
    with bridged(torch.float64):
        both = [
            pyhessian.hessian(model, nn.CrossEntropyLoss(), data=(images[labels == c], labels[labels == c]), cuda=False)
            for c in (0, 1)
        ]
        parts = [
            part.view(p.shape) for part, p in zip(vector.split([p.numel() for p in both[1].params]), both[1].params)
        ]
        product = pyhessian.hessian_vector_product(both[1].gradsH, both[1].params, parts)
    cumulative = torch.cat([part.reshape(-1) for part in product])
    torch.testing.assert_close(cumulative, exact[0] + exact[1])
    for p in model.parameters():
        p.grad = None


def test_unused_parameters_have_zero_curvature():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = tanh_network(), nn.Linear(3, 2, dtype=torch.float64)

        def forward(self, images):
            return self.used(images)

    with_idle = ModelRisk(Idle(), digits())
    result, expected = one(with_idle), one(network_risk())
    assert float(result["lambda_min"]) == pytest.approx(float(expected["lambda_min"]), rel=1e-6)
    assert float(result["lambda_max"]) == pytest.approx(float(expected["lambda_max"]), rel=1e-6)


# ---- scale and sign ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_a_scaled_loss_scales_the_spectrum(scale):
    """A constant added to a norm makes PyHessian's extremes 80 % too small at 1e-6."""
    matrices = [matrix_of(np.concatenate([[-0.5, 4.0, 3.0], np.linspace(0, 1, 57)]))]
    gradient = 1e-4 * draw(60, name="g")
    plain, scaled = (
        one(quadratic(matrices, gradient=gradient)),
        one(quadratic(matrices, gradient=gradient, scale=scale)),
    )
    for name in ("lambda_min", "lambda_max", "trace", "gradient_norm"):
        assert float(scaled[name]) / scale == pytest.approx(float(plain[name]), rel=1e-6), name
    assert float(scaled["negative_energy"]) == pytest.approx(float(plain["negative_energy"]), rel=1e-6)
    assert scaled["verdict"].item() == plain["verdict"].item() == "saddle"


def test_the_backend_shows_that_scale_trap():
    risk = network_risk(torch.float32)

    class Scaled(nn.Module):
        def forward(self, logits, labels):
            return 1e-6 * nn.functional.cross_entropy(logits, labels)

    images, labels = digits(torch.float32)
    settings = PyHessianSettings(num_steps=30)
    with_constant = run_pyhessian(tanh_network(torch.float32), Scaled(), (images, labels), settings=settings)
    plain = run_pyhessian(tanh_network(torch.float32), nn.CrossEntropyLoss(), (images, labels), settings=settings)
    assert with_constant.ritz_value.max() / 1e-6 < 0.8 * plain.ritz_value.max()
    assert float(one(risk, "all")["lambda_max"]) == pytest.approx(plain.ritz_value.max(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_are_found_where_they_have_the_same_size(dtype):
    """Power iteration has no dominant eigenvalue here and returns anything in between."""
    matrix = matrix_of(np.concatenate([[-2.0, 2.0], np.linspace(-0.3, 0.3, 78)]))
    result = one(quadratic([matrix], dtype=dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    assert float(result["lambda_min"]) == pytest.approx(-2.0, rel=tolerance)
    assert float(result["lambda_max"]) == pytest.approx(2.0, rel=tolerance)
    assert result["verdict"].item() == "saddle"
    vector = draw(80, name="power")
    quotients = []
    for _ in range(30):
        vector = vector / vector.norm()
        quotients.append(float(vector @ matrix @ vector))
        vector = matrix @ vector
    assert abs(abs(quotients[-1]) - 2.0) > 0.05


def test_a_negative_trace_is_estimated_like_any_other():
    """PyHessian compares the change with the signed mean and stops after two probes."""
    spectrum = np.concatenate([-np.linspace(0.1, 3.0, 290), np.linspace(0.0, 1.0, 10)])
    risk = quadratic([matrix_of(spectrum)])
    negative = one(risk, num_probes=8, num_steps=20)
    positive = one(quadratic([-matrix_of(spectrum)]), num_probes=8, num_steps=20)
    error = abs(float(negative["trace"]) - spectrum.sum())
    assert float(negative["trace_stderr"]) > 0
    assert error < 5 * float(negative["trace_stderr"])
    assert float(negative["trace_stderr"]) < 0.1 * abs(spectrum.sum())
    assert 0.2 < float(negative["trace_stderr"]) / float(positive["trace_stderr"]) < 5

    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(300))
            self.register_buffer("matrix", matrix_of(spectrum).float())

        def forward(self, inputs):
            return (self.weight @ self.matrix @ self.weight / 2) * inputs

    mean = run_pyhessian(Bowl(), lambda z, y: z.mean(), (torch.ones(2, 1), torch.zeros(2)))
    assert len(mean.trace_samples) == 2


# ---- breakdown and low rank -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["zero", "identity", "rank one", "two values"])
def test_exact_breakdown_gives_exact_numbers(dtype, name):
    """curvlinops divides by the coupling and returns NaN."""
    size = 30
    values = {
        "zero": np.zeros(size),
        "identity": np.ones(size),
        "rank one": np.eye(size)[0] * 5,
        "two values": np.repeat([-1.0, 2.0], size // 2),
    }[name]
    matrix = torch.diag(torch.tensor(values)) if name != "two values" else matrix_of(values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = one(quadratic([matrix], dtype=dtype), num_probes=8)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert float(result["lambda_min"]) == pytest.approx(values.min(), abs=tolerance * 5)
    assert float(result["lambda_max"]) == pytest.approx(values.max(), abs=tolerance * 5)
    # How often each of two values occurs is estimated; a single atom on a flat rest is exact.
    slack = 5 * float(result["trace_stderr"]) if name == "two values" else tolerance * 100
    assert float(result["trace"]) == pytest.approx(values.sum(), abs=slack)
    kept = np.isfinite(result["ritz_value"].values)
    assert kept.any(axis=1).all()
    weights = np.where(kept, result["ritz_weight"].values, 0.0).sum(axis=1)
    np.testing.assert_allclose(weights, 1.0, rtol=1e-5)
    if values.min() == 0:
        assert float(result["negative_energy"]) < 1e-6
    assert result["verdict"].item() == ("saddle" if values.min() < 0 else "no negative curvature")


def lanczos_atoms(risk, num_steps):
    """Return Ritz values and weights of one run, and the number of nodes that stand out from rounding."""
    size = len(risk.theta)
    row = torch.eye(10, dtype=torch.float64)[:1]
    with risk.hessian(risk.theta, row) as product:
        run = Lanczos(lambda v: product(v[:, None])[:, 0], draw(1, size, name="start").to(risk.theta))
        run.extend(min(num_steps, size))
    ritz = run.ritz(0)
    largest = np.abs(ritz.values).max()
    return ritz, int((np.abs(ritz.values) > 1e-5 * largest).sum()), largest


@pytest.mark.parametrize("num_examples", [1, 2])
def test_the_rank_of_a_few_samples_is_counted_and_nothing_is_negative(num_examples):
    """PyHessian's float32 run on one sample of rank 9 returns -7.6 where the spectrum is [0, 3.7]."""
    risk = regression(num_examples)
    exact = np.linalg.eigvalsh(
        dense_hessian(
            Logits(40, 10).double(), draw(num_examples, 40, name="inputs").float().double(),
            torch.zeros(num_examples, dtype=torch.int64), np.eye(10)[0].tolist(),
        )
    )  # fmt: skip
    rank = int((exact > 1e-9 * exact[-1]).sum())
    assert rank == 9 * num_examples  # on the hyperplane that softmax leaves
    ritz, num_atoms, largest = lanczos_atoms(risk, 60)
    assert num_atoms == rank
    assert ritz.values.min() >= -1e-5 * largest
    np.testing.assert_allclose(ritz.values[-rank:], exact[-rank:], rtol=1e-3, atol=1e-6 * largest)
    result = one(risk, "0", max_steps=60)
    assert result["verdict"].item() == "no negative curvature"
    assert float(result["lambda_min"]) >= -1e-5 * float(result["lambda_max"])


def test_the_backend_shows_the_low_rank_trap():
    found = measure_with_pyhessian(regression(1), 0)
    assert found["lambda_min"] < -1e-2 * found["lambda_max"]
