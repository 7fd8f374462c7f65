"""PyHessian as a backend: right where it is right, bridged without a trace, refused where it would fail or mislead."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from spectrum_cases import COUNTS, GROUPS, dense_hessian, digits, network_risk, tanh_network, toy
from torch import nn

from landscape.errors import LandscapeError
from landscape.risk import ModelRisk
from landscape.spectrum.bridge import PyHessianSettings, bridged, run_pyhessian
from landscape.spectrum.pyhessian import measure_spectrum_with_pyhessian, measure_with_pyhessian, rows_of_lane

LANE = [0.0, 1.0, 0.0, 0.0]
SHORT = PyHessianSettings(num_steps=12)


class Quadratic(nn.Module):
    """Logits whose first entry is x'Ax / 2 in the weights: with the identity as loss the Hessian is A."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.weight = nn.Parameter(torch.zeros(len(matrix), dtype=matrix.dtype))

    def forward(self, inputs):
        value = self.weight @ self.matrix @ self.weight / 2
        return value * torch.ones(len(inputs), 2, dtype=inputs.dtype)


def first_logit(logits, labels):
    return logits[:, 0]


def quadratic_risk(values, dtype=torch.float64):
    matrix = torch.diag(torch.tensor(values, dtype=dtype))
    return ModelRisk(
        Quadratic(matrix), (torch.ones(6, 1, dtype=dtype), torch.tensor([0, 0, 0, 1, 1, 1])), loss=first_logit
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_closed_form_of_a_quadratic(dtype, batch_size):
    values = [-3.0, -1.0, 0.5, 2.0, 7.0]
    found = measure_with_pyhessian(quadratic_risk(values, dtype), 1, batch_size=batch_size)
    # its vectors are 1e-6 too short by the constant in its normalisation, whatever the precision
    np.testing.assert_allclose(np.sort(found["ritz_value"][0]), values, rtol=3e-5)
    np.testing.assert_allclose(found["ritz_weight"], 0.2, rtol=2e-4)  # a Rademacher start has equal parts in each
    assert found["trace"] == pytest.approx(5.5, rel=1e-5)  # exact for a diagonal matrix
    assert found["pyhessian_top_eigenvalue"] == pytest.approx(7.0, rel=1e-2)
    assert found["lambda_min"] == found["ritz_value"].min()
    assert found["lambda_max"] == found["ritz_value"].max()


def test_its_tridiagonal_matrix_is_not_rounded_to_float32():
    with bridged(torch.float64):
        assert torch.zeros(2).dtype == torch.float64
    assert torch.zeros(2).dtype == torch.float32


def test_agrees_with_the_dense_hessian_of_a_network():
    exact = np.linalg.eigvalsh(dense_hessian(tanh_network(), *digits(), LANE))
    found = measure_with_pyhessian(network_risk(), 1, settings=PyHessianSettings(num_steps=40))
    assert found["lambda_max"] == pytest.approx(exact[-1], rel=1e-4)
    assert found["lambda_min"] == pytest.approx(exact[0], rel=2e-3)
    assert found["loss"] == pytest.approx(float(network_risk().losses(network_risk().theta)[1]))
    top = exact[np.abs(exact).argmax()]
    assert abs(float(found["pyhessian_top_eigenvalue"]) - top) <= float(found["pyhessian_top_residual"]) + 1e-4 * abs(
        top
    )


def test_batches_and_one_batch_are_the_same_operator_with_the_same_draws():
    risk = network_risk()
    lane = torch.tensor([1.0, 0.0, 0.0, 0.0])
    one, cut = (measure_with_pyhessian(risk, lane, settings=SHORT, batch_size=size) for size in (None, 8))  # 8 + 8 + 4
    np.testing.assert_allclose(one["ritz_value"], cut["ritz_value"], rtol=1e-4, atol=1e-6)
    assert one["trace"] == pytest.approx(float(cut["trace"]), rel=1e-5)


def test_a_group_pools_its_examples_and_other_mixtures_are_refused():
    risk = network_risk()
    pooled = torch.tensor([0.0, 0.0, 5 / 7, 2 / 7], dtype=torch.float64)
    assert rows_of_lane(risk, pooled).tolist() == list(range(30, 37))
    found = measure_with_pyhessian(risk, pooled, settings=PyHessianSettings(num_steps=40))
    exact = np.linalg.eigvalsh(dense_hessian(tanh_network(), *digits(), pooled.tolist()))
    assert found["lambda_max"] == pytest.approx(exact[-1], rel=1e-4)
    with pytest.raises(LandscapeError, match=r"'even'.*0\.5, 0\.5"):
        rows_of_lane(risk, torch.tensor([0.0, 0.0, 0.5, 0.5]), name="even")


def test_products_are_counted_where_they_are_taken():
    calls = []

    class Watched(nn.Linear):
        def forward(self, inputs):
            calls.append(len(inputs))
            return super().forward(inputs)

    torch_model = Watched(3, 2, dtype=torch.float64)
    with torch.no_grad():
        torch_model.weight.copy_(torch.arange(6.0).view(2, 3) / 3)
    inputs = torch.eye(3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0])
    loader = [(inputs, labels)]  # PyHessian evaluates the model once per product and batch
    output = run_pyhessian(torch_model, nn.CrossEntropyLoss(), loader, settings=PyHessianSettings(num_steps=5))
    assert output.num_hvps["density"] == 5
    assert output.num_hvps["trace"] == len(output.trace_samples)
    assert sum(output.num_hvps.values()) == len(calls)
    calls.clear()
    single = run_pyhessian(torch_model, nn.CrossEntropyLoss(), loader[0], settings=PyHessianSettings(num_steps=5))
    assert single.num_hvps["density"] == 5
    assert len(calls) == 2  # the check of its parameters, and the graph that all products share


def test_nothing_of_it_stays_behind():
    import pyhessian

    module = __import__("sys").modules["pyhessian.hessian"]
    model = tanh_network(torch.float32).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    names = ("eig", "get_default_dtype", "set_default_dtype")
    kept = {name: getattr(torch, name, None) for name in names}
    product, states = (
        module.hessian_vector_product,
        (torch.get_rng_state(), random.getstate(), np.random.get_state()[1]),  # noqa: NPY002
    )
    images, labels = digits(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_pyhessian(model, nn.CrossEntropyLoss(), (images, labels), settings=SHORT)
    assert model.training
    assert all(p.grad is None and p.requires_grad and torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(getattr(torch, name, None) is kept[name] for name in names)
    assert torch.get_default_dtype() == torch.float32
    assert module.hessian_vector_product is product
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
    assert pyhessian.hessian is module.hessian


def test_the_bridge_is_taken_down_after_a_failure():
    before = torch.eig
    with pytest.raises(KeyError), bridged():
        raise KeyError
    assert torch.eig is before
    with pytest.raises(RuntimeError, match="removed"):
        torch.eig(torch.eye(2))  # what PyHessian would meet without the bridge


def test_the_bridge_speaks_the_old_convention():
    matrix = torch.tensor([[2.0, 1.0, 0.0], [1.0, 0.0, 3.0], [0.0, 3.0, -1.0]])
    with bridged():
        values, vectors = torch.eig(matrix, eigenvectors=True)
    assert values.shape == (3, 2)
    assert values[:, 1].tolist() == [0, 0, 0]
    torch.testing.assert_close(vectors @ torch.diag(values[:, 0]) @ vectors.T, matrix)


def test_seeds_decide_the_draws():
    risk = network_risk()
    first, again, other = (measure_with_pyhessian(risk, 1, settings=SHORT, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first["ritz_value"], again["ritz_value"])
    assert not np.array_equal(first["ritz_value"], other["ritz_value"])
    risk.theta = risk.theta * 1.5  # it is measured where the risk stands, not where the model stood
    moved = measure_with_pyhessian(risk, 1, settings=SHORT, seed=0)
    assert moved["loss"] != first["loss"]
    assert abs(float(moved["lambda_max"]) - float(first["lambda_max"])) > 1e-3


def test_an_unused_parameter_is_one_line():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(64, 4), nn.Linear(3, 3)

        def forward(self, inputs):
            return self.used(inputs.flatten(1))

    risk = ModelRisk(Half(), digits(torch.float32), groups=GROUPS)
    for size in (None, 8):
        with pytest.raises(LandscapeError, match=r"'idle\.weight' \(2 in all\)"):
            measure_with_pyhessian(risk, 0, batch_size=size)
    chosen = ModelRisk(Half(), digits(torch.float32), params="^used")
    assert np.isfinite(measure_with_pyhessian(chosen, 0, settings=SHORT)["lambda_max"])


@pytest.mark.parametrize("bad", [{"num_steps": 1}, {"num_probes": 0}, {"max_iterations": 0}, {"tolerance": 0.0}])
def test_settings_are_checked(bad):
    with pytest.raises(LandscapeError, match=str(next(iter(bad.values())))):
        PyHessianSettings(**bad)


def test_a_dataset_of_lanes():
    risk = network_risk()
    dataset = measure_spectrum_with_pyhessian(
        risk, "classes,tail", settings=PyHessianSettings(num_steps=8, num_probes=2, max_iterations=10)
    )
    assert dict(dataset.sizes) == {"lane": 5, "probe": 2, "step": 8}
    assert dataset.attrs["backend"] == "pyhessian"
    assert dataset["num_examples"].values.tolist() == [*COUNTS, 7]
    assert set(dataset["verdict"].values.tolist()) == {"undecided"}
    assert np.isnan(dataset["lambda_min_residual"]).all()
    assert dataset["lambda_min"].values == pytest.approx(dataset["ritz_value"].min(("probe", "step")).values)
    with pytest.raises(LandscapeError, match="AnalyticRisk"):
        measure_spectrum_with_pyhessian(toy(lambda x, y: x * y, 0.0, 0.0))
