"""The checks pass for real networks in both precisions, and catch every kind of operator that is not a Hessian."""

from __future__ import annotations

import pytest
import torch
from risk_cases import COUNTS, digits, digits_convnet, draw, smooth_mlp
from torch import nn

from landscape.errors import LandscapeError
from landscape.models import build_model
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.risk.augmented import RedrawnRisk
from landscape.risk.preflight import check_additivity, check_difference, check_product, require_proven

POOLED = [n / sum(COUNTS) for n in COUNTS]
LANES = torch.tensor([POOLED, [0.0, 0.0, 0.0, 1.0], [0.3, 0.0, 0.7, 0.0]], dtype=torch.float64)
NAMES = ("all", "3", "two")


def resnet(dtype: torch.dtype) -> nn.Module:
    return build_model("resnet20", num_classes=4, in_channels=1, image_size=8).to(dtype)


def errors_of(risk, weights=LANES):
    u, v = draw(2, len(weights), len(risk.theta), name="probes", dtype=risk.theta.dtype)
    with risk.hessian(risk.theta, weights) as product:
        errors = check_product(product, u, v)
    return errors | {"additivity": check_additivity(risk, risk.theta, weights, u)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("build", [smooth_mlp, digits_convnet, resnet])
def test_real_networks_pass(build, dtype):
    """Bit-equal, and the rest to rounding: additivity to 1e-6 and 1e-12."""
    risk = ModelRisk(build(dtype), digits(dtype=dtype))
    errors = errors_of(risk)
    assert errors["repeat"].tolist() == [0.0, 0.0, 0.0]
    assert (errors["additivity"] <= (1e-6 if dtype == torch.float32 else 1e-12)).all()
    assert all(values.dtype == torch.float64 for values in errors.values())
    require_proven(errors, NAMES, dtype)


def test_numbers_of_a_known_operator():
    """A + s B with B skew: u'(A + sB)v - v'(A + sB)u = 2 s u'Bv; a constant c breaks linearity by a |c|."""
    a = torch.diag(torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64))
    skew = torch.tensor([[0, 1.0, 0], [-1.0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    u, v = torch.eye(3, dtype=torch.float64)[:2]
    matrix = a + 0.1 * skew
    errors = check_product(lambda x, lanes=None: x @ matrix.T, u[None], v[None])
    sizes = matrix[:, 0].norm() + matrix[:, 1].norm()
    assert float(errors["symmetry"][0]) == pytest.approx(float(0.2 / sizes), rel=1e-14)
    assert float(errors["linearity"][0]) < 1e-15
    constant = torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64)
    errors = check_product(lambda x, lanes=None: x @ a.T + constant, u[None], v[None])
    hu, hv = a[0] + constant, a[1] + constant
    assert float(errors["linearity"][0]) == pytest.approx(float(0.75 * 0.5 / (hu.norm() + 0.75 * hv.norm())), rel=1e-12)
    assert float(errors["repeat"][0]) == 0.0


def test_a_zero_matrix_passes():
    risk = AnalyticRisk(lambda x: torch.stack([x.sum(), x[0]]), torch.ones(3, dtype=torch.float64))
    errors = errors_of(risk, torch.eye(2, dtype=torch.float64))
    assert all(values.tolist() == [0.0, 0.0] for values in errors.values())
    require_proven(errors, ("a", "b"), torch.float64)


def test_redrawn_data_are_caught():
    base = ModelRisk(smooth_mlp(), digits())
    risk = RedrawnRisk(base, lambda x, g: x + 0.1 * torch.randn(x.shape, generator=g, dtype=x.dtype))
    errors = errors_of(risk)
    for check in ("repeat", "symmetry", "linearity", "additivity"):
        with pytest.raises(LandscapeError, match=f"lane 'all': .* {check} check by .*augmentation redrawn"):
            require_proven({check: errors[check]}, NAMES, torch.float64)


class HalfDetached(torch.autograd.Function):
    """x^3 whose backward pass forgets that its factor depends on x: right gradients, no error, another Hessian."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * gradient


class Cubes(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(64, 3), nn.Linear(3, 4)

    def forward(self, x):
        return self.out(HalfDetached.apply(self.first(x.flatten(1))))


def test_a_hessian_with_a_symmetric_part_left_out_is_seen_by_differences_alone():
    """The operation raises nothing and its products are symmetric; smooth networks agree to 1e-6 (h^2 and eps / h)."""
    torch.manual_seed(0)
    wrong, right = ModelRisk(Cubes().double(), digits()), ModelRisk(smooth_mlp(), digits())
    with pytest.raises(LandscapeError, match="'HalfDetached': its backward pass is not the second derivative"):
        errors_of(wrong)
    require_proven(errors_of(wrong), NAMES, torch.float64)  # symmetric and linear; refused once is said
    for risk, is_right in ((wrong, False), (right, True)):
        error = check_difference(risk, risk.theta, LANES, draw(3, len(risk.theta), name="probes"))
        assert bool((error < 1e-6).all()) == is_right
        assert bool((error > 1e-2).all()) != is_right


@pytest.mark.parametrize(
    ("check", "spoil"),
    [
        ("symmetry", lambda h, x: h + 1e-3 * x.cumsum(2)),
        ("linearity", lambda h, x: h + 1e-3 * h * torch.linalg.vector_norm(h, dim=2, keepdim=True)),
        ("linearity", lambda h, x: h.abs()),
    ],
    ids=["asymmetric", "grows with the vector", "absolute value"],
)
def test_operators_that_are_no_matrices_are_caught(check, spoil):
    """Asymmetric: as of a second-order surrogate that drops terms on one side. Only the lane concerned is named."""
    risk = ModelRisk(smooth_mlp(), digits())
    u, v = draw(2, 3, len(risk.theta), name="probes")
    with risk.hessian(risk.theta, LANES) as product:

        def spoilt(vectors, lanes=None):
            right = product(vectors)
            right[1] = spoil(right, vectors)[1]
            return right

        errors = check_product(spoilt, u, v)
    with pytest.raises(LandscapeError, match=f"lane '3': the Hessian product fails the {check} check by .* likelihood"):
        require_proven({check: errors[check]}, NAMES, torch.float64)
    require_proven({key: values[[0, 2]] for key, values in errors.items()}, ("all", "two"), torch.float64)


def test_a_wrong_class_weight_is_caught():
    """A lane that divides by the wrong count: off by 2 % in one class."""

    class Wrong:
        def __init__(self, risk):
            self.inner, self.class_counts = risk, risk.class_counts

        def hvps(self, theta, weights, vectors):
            spoilt = weights.double().clone()
            spoilt[(weights != 0).sum(1) > 1, 0] *= 1.02
            return self.inner.hvps(theta, spoilt, vectors)

    risk = ModelRisk(smooth_mlp(), digits())
    u = draw(3, len(risk.theta), name="probes")
    errors = check_additivity(Wrong(risk), risk.theta, LANES, u)
    assert errors[1] < 1e-15
    assert 1e-3 < float(errors[0]) < 0.02
    with pytest.raises(LandscapeError, match=r"lane 'all': .* additivity check by .* weights that do not belong"):
        require_proven({"additivity": errors}, NAMES, torch.float64)


def test_batch_statistics_do_not_add_up_and_numbers_that_are_not_finite_do_not_pass():
    risk = ModelRisk(smooth_mlp(), digits(), batchnorm="batch")
    errors = errors_of(risk)
    require_proven({key: values for key, values in errors.items() if key != "additivity"}, NAMES, torch.float64)
    with pytest.raises(LandscapeError, match="additivity"):
        require_proven(errors, NAMES, torch.float64)
    with pytest.raises(LandscapeError, match=r"lane 'all': .* symmetry check by nan"):
        require_proven({"symmetry": torch.tensor([torch.nan, 0.0, 0.0])}, NAMES, torch.float64)
