"""Verdicts on problems whose answer is known: no false saddle among 50 convex ones, none missed among 50 planted ones.

    python -m analyses.benchmarks.verdicts --out CSV [--problems 50]

Convex: softmax regressions on digits and on normal features, 2 to 500 images per class, untrained to interpolating, with
and without weight decay in training (never in the curvature), features of equal and of very unequal scale; a class and the
whole are judged with default options (but for the bootstrap over images, which no verdict looks at).

Saddles: nonlinear networks at exact critical points with |lambda_min| / lambda_max from 1e-3 to 1, by construction:

- *zero branch* (``ModelRisk``): a linear classifier of 4 x 4 pixels at its optimum, beside a branch V phi(U x) of all 64
  with U = V = 0, as residual branches are initialised. The gradient is zero, and the Hessian is that of the classifier
  and [[0, M], [M', 0]] with M = phi'(0) mean (p - y) x' for every hidden unit: lambda_min = -|M|. The scale of x sets it.
- *zero weights* (``ModelRisk``): the same without the classifier, biases at the log frequencies of the classes.
- *planted direction* (``AnalyticRisk``): a trained tanh network's loss, tilted and bent so that the weights are a minimum,
  and less mu / 2 along one random direction, with a quartic that bounds it; mu follows from the secular equation.

A run may take the steps after which the bound (Kuczynski and Wozniakowski) promises a Ritz value below the threshold,
``steps_to_exclude((ratio - threshold) / (1 + ratio), n, failure_probability)``, and no more. The threshold is 0.01, or half
of the ratio where that is less.
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from landscape.data import load_dataset
from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.risk import AnalyticRisk, ClassRisk, ModelRisk
from landscape.spectrum import SpectrumOptions, measure_spectrum
from landscape.spectrum.certificate import steps_to_exclude
from landscape.spectrum.options import Until

NUM_PROBLEMS = 50
DTYPES = (torch.float32, torch.float64)
MODES: tuple[Until, ...] = ("converged", "verdict")
DEFAULT_THRESHOLD = SpectrumOptions().threshold
# Iterations of full-batch L-BFGS: untrained, barely, well, and as far as it goes.
DEGREES = (0, 3, 30, 300)
SPREADS = (1.0, 30.0, 1000.0)  # of feature scales: the largest over their mean
NOISY_LABELS = 0.2


@dataclass(frozen=True)
class Result:
    """One measurement of one problem.

    ``ratio`` is the exact |lambda_min| / lambda_max (0 for a convex problem), ``lambda_min`` the measured one in units of
    the measured lambda_max, ``prediction`` the steps that were allowed (0 for the default); ``verdict`` is that of the
    class under study (convex) or of the whole (saddles), ``verdict_whole`` that of all classes together.
    """

    kind: str
    problem: int
    description: str
    num_parameters: int
    images: int
    dtype: str
    until: str
    ratio: float
    threshold: float
    lambda_min: float
    prediction: int
    steps: int
    products: int
    verdict: str
    verdict_whole: str
    is_right: bool


def digit_pixels() -> tuple[Tensor, Tensor]:
    """Return all digits as (N, 1, 8, 8) in [-1, 1], float64, and their labels."""
    data = load_dataset("digits-lt", imbalance_ratio=1.0)
    images = torch.cat([data.train.images, data.test.images])
    labels = torch.cat([data.train.labels, data.test.labels])
    return images.double() / 8 - 1, labels


def minimise(model: nn.Module, inputs: Tensor, labels: Tensor, *, iterations: int, decay: float = 0.0) -> None:
    """Train by full-batch L-BFGS on the mean cross-entropy, plus decay / 2 |theta|^2."""
    if not iterations:
        return
    parameters = list(model.parameters())
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=iterations, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        loss = loss + decay / 2 * sum(p.square().sum() for p in parameters)
        loss.backward()
        return loss

    optimizer.step(closure)


# ---- convex -----------------------------------------------------------------------------------------------------------


def convex_problem(index: int, total: int) -> tuple[str, nn.Module, Tensor, Tensor]:
    """Return a description, a linear classifier, its inputs and labels."""
    generator = stream(index, "verdicts/convex")
    images = round(2 * 250 ** (index / max(total - 1, 1)))
    pixels, labels = digit_pixels()
    is_digits = index % 2 == 0 and images <= 170
    if is_digits:
        rows = torch.cat([torch.nonzero(labels == c)[:, 0][:images] for c in range(10)])
        inputs, labels = pixels[rows].flatten(1), labels[rows]
        num_classes = 10
    else:
        num_classes = 3 + index % 5
        labels = torch.arange(num_classes).repeat_interleave(images)
        centres = torch.randn(num_classes, 40, generator=generator, dtype=torch.float64)
        inputs = 0.5 * centres[labels] + torch.randn(len(labels), 40, generator=generator, dtype=torch.float64)
    spread = SPREADS[index % 3]
    inputs = inputs * torch.logspace(-1, 1, inputs.shape[1], base=spread, dtype=torch.float64)
    iterations, decay = DEGREES[index % 4], (0.0, 1e-3)[(index // 4) % 2]
    model = nn.Linear(inputs.shape[1], num_classes).double()
    with torch.no_grad():
        draws = torch.randn(model.weight.shape, generator=generator, dtype=torch.float64)
        model.weight.copy_(0.3 * draws / inputs.norm(dim=1).mean())
        model.bias.zero_()
    minimise(model, inputs, labels, iterations=iterations, decay=decay)
    source = "digits" if is_digits else f"{num_classes} normal classes"
    text = f"softmax regression, {source}, {iterations} iterations, decay {decay:g}, feature scales {1 / spread:g} to {spread:g}"
    return text, model, inputs, labels


def convex_results(index: int, total: int) -> Iterator[Result]:
    """Judge one class, the next one for the next problem, and the whole."""
    text, model, inputs, labels = convex_problem(index, total)
    images = int((labels == 0).sum())
    c = index % (int(labels.max()) + 1)
    for dtype in DTYPES:
        risk = ModelRisk(model, (inputs, labels), dtype=dtype)
        for until in MODES:
            options = SpectrumOptions(until=until, num_bootstrap=0)
            common = ("convex", index, text, len(risk.theta), images, _name(dtype), until, 0.0, options.threshold)
            yield _measured(risk, [str(c), "all"], options, common, prediction=0)


# ---- planted saddles --------------------------------------------------------------------------------------------------


class ZeroBranch(nn.Module):
    """Logits b + W pool(x) + V phi(scale U x), with the branch at zero."""

    def __init__(self, num_classes: int, hidden: int, activation: nn.Module, *, has_base: bool) -> None:
        super().__init__()
        self.base = nn.Linear(16, num_classes) if has_base else None
        self.bias = nn.Parameter(torch.zeros(num_classes)) if not has_base else None
        self.inner, self.outer = nn.Linear(64, hidden, bias=False), nn.Linear(hidden, num_classes, bias=False)
        self.activation = activation
        self.register_buffer("scale", torch.ones(()))
        nn.init.zeros_(self.inner.weight)
        nn.init.zeros_(self.outer.weight)

    def linear_part(self, x: Tensor) -> Tensor:
        """Return the logits without the branch."""
        if self.base is not None:
            return self.base(functional.avg_pool2d(x, 2).flatten(1))
        assert self.bias is not None
        return self.bias.expand(len(x), -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_part(x) + self.outer(self.activation(self.inner(self.scale * x.flatten(1))))


ACTIVATIONS: tuple[tuple[type[nn.Module], float], ...] = ((nn.Tanh, 1.0), (nn.GELU, 0.5), (nn.SiLU, 0.5))  # phi'(0)


def noisy(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """Return labels some of which are drawn anew, so that no network fits them and optima are finite."""
    is_drawn = torch.rand(len(labels), generator=generator) < NOISY_LABELS
    return torch.where(is_drawn, torch.randint(num_classes, labels.shape, generator=generator), labels)


def zero_branch(index: int, ratio: float) -> tuple[str, ModelRisk]:
    """Return a network at its saddle, float64."""
    generator = stream(index, "verdicts/branch")
    num_classes, hidden = 4 + index % 7, (4, 8, 16)[index % 3]
    has_base = index % 5 != 0
    pixels, labels = digit_pixels()
    rows = torch.cat([torch.nonzero(labels == c)[:, 0][: 80 + 10 * (index % 8)] for c in range(num_classes)])
    inputs, labels = pixels[rows], labels[rows]
    labels = noisy(labels, num_classes, generator)
    activation, slope = ACTIVATIONS[index % 3]
    model = ZeroBranch(num_classes, hidden, activation(), has_base=has_base).double()
    if has_base:
        assert model.base is not None
        nn.init.zeros_(model.base.weight)
        nn.init.zeros_(model.base.bias)
        linear = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), model.base)
        minimise(linear, inputs, labels, iterations=2000)
    else:
        assert model.bias is not None
        with torch.no_grad():
            model.bias.copy_((torch.bincount(labels, minlength=num_classes) / len(labels)).log())
    with torch.no_grad():
        p = model.linear_part(inputs).softmax(1)
        residuals = p - functional.one_hot(labels, num_classes)
        mixed = float(torch.linalg.matrix_norm(residuals.T @ inputs.flatten(1), 2)) / len(labels) * slope
        features = torch.ones(len(labels), 1, dtype=torch.float64)
        if has_base:
            features = torch.cat([functional.avg_pool2d(inputs, 2).flatten(1), features], 1)
        blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        size = num_classes * features.shape[1]
        convex = torch.einsum("nf,nab,ng->afbg", features, blocks, features).reshape(size, size)
        model.scale.fill_(ratio * float(torch.linalg.eigvalsh(convex)[-1]) / len(labels) / mixed)
    text = (
        f"zero {'branch' if has_base else 'weights'}, {hidden} {activation.__name__}, {num_classes} classes of digits"
    )
    return text, ModelRisk(model, (inputs, labels))


def planted_direction(index: int, ratio: float) -> tuple[str, AnalyticRisk]:
    """Return a trained network's loss with a planted direction, float64."""
    generator = stream(index, "verdicts/planted")
    hidden, num_classes = 6 + 2 * (index % 6), 4 + index % 7
    pixels, labels = digit_pixels()
    rows = torch.cat([torch.nonzero(labels == c)[:, 0][:30] for c in range(num_classes)])
    inputs, labels = functional.avg_pool2d(pixels[rows], 2).flatten(1), noisy(labels[rows], num_classes, generator)
    model = nn.Sequential(nn.Linear(16, hidden), nn.Tanh(), nn.Linear(hidden, num_classes)).double()
    with torch.no_grad():
        for p in model.parameters():
            draws = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(draws / p[0].numel() ** 0.5 if p.dim() > 1 else 0 * draws)
    minimise(model, inputs, labels, iterations=(5, 20, 60)[index % 3])
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]
    centre = torch.cat([p.reshape(-1) for p in named.values()])

    def network(theta: Tensor) -> Tensor:
        parts = {name: part.view(p.shape) for (name, p), part in zip(named.items(), theta.split(sizes))}
        return functional.cross_entropy(functional_call(model, parts, (inputs.to(theta),)), labels)

    slope = torch.func.grad(network)(centre)
    matrix = torch.func.jacrev(torch.func.grad(network), chunk_size=64)(centre)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    shift = float(-values[0])
    direction = torch.randn(len(centre), generator=generator, dtype=torch.float64)
    direction /= direction.norm()
    bent, squares = values + shift, (vectors.T @ direction).square()
    top = float(bent[-1])
    for _ in range(20):  # lambda solves 1 = mu sum z^2 / (d - lambda); the largest eigenvalue moves a little with mu
        lowest = -ratio * top
        depth = 1 / float((squares / (bent - lowest)).sum())
        z = squares.sqrt()
        top = float(torch.linalg.eigvalsh(torch.diag(bent) - depth * torch.outer(z, z))[-1])

    def losses(theta: Tensor) -> Tensor:
        delta = theta - centre.to(theta)
        along = delta @ direction.to(theta)
        bowl = shift / 2 * delta @ delta - depth / 2 * along**2 - lowest / 4 * along**4
        return (network(theta) - delta @ slope.to(theta) + bowl)[None]

    text = f"planted direction, tanh network of {hidden} units, {num_classes} classes of digits"
    return text, AnalyticRisk(losses, centre)


def saddle_problem(index: int, total: int) -> tuple[str, float, ClassRisk]:
    """Return a description, the exact ratio and the risk in float64."""
    ratio = 10.0 ** (-3 + 3 * index / max(total - 1, 1))
    text, risk = (zero_branch if index % 2 == 0 else planted_direction)(index, ratio)
    return text, ratio, risk


def predicted_steps(ratio: float, threshold: float, num_parameters: int) -> int:
    """Return the steps after which a Ritz value lies below -threshold lambda_max, up to the failure probability."""
    fraction = (ratio - threshold) / (1 + ratio)
    return min(num_parameters, steps_to_exclude(fraction, num_parameters, SpectrumOptions().failure_probability))


def in_dtype(risk: ClassRisk, dtype: torch.dtype) -> ClassRisk:
    """Return a float64 risk in another precision."""
    if dtype == torch.float64:
        return risk
    if isinstance(risk, AnalyticRisk):
        return AnalyticRisk(risk._function, risk.theta.to(dtype))
    assert isinstance(risk, ModelRisk)
    return ModelRisk(risk._model, (risk._examples.inputs, risk._examples.labels), dtype=dtype)


def saddle_results(index: int, total: int) -> Iterator[Result]:
    """Judge the whole within the predicted number of steps."""
    text, ratio, exact = saddle_problem(index, total)
    threshold = min(DEFAULT_THRESHOLD, ratio / 2)
    steps = predicted_steps(ratio, threshold, len(exact.theta))
    images = int(exact.class_counts.sum()) if isinstance(exact, ModelRisk) else 0
    for dtype in DTYPES:
        risk = in_dtype(exact, dtype)
        for until in MODES:
            options = SpectrumOptions(until=until, threshold=threshold, max_steps=steps, num_bootstrap=0)
            common = ("saddle", index, text, len(risk.theta), images, _name(dtype), until, ratio, threshold)
            yield _measured(risk, ["all"], options, common, prediction=steps)


# ---- the run ----------------------------------------------------------------------------------------------------------


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _measured(risk: ClassRisk, lanes: list[str], options: SpectrumOptions, common: tuple, *, prediction: int) -> Result:
    is_convex = common[0] == "convex"
    try:
        found = measure_spectrum(risk, lanes, options=options)
    except LandscapeError as error:
        return Result(*common, np.nan, prediction, 0, 0, f"error: {error}", "", False)
    verdicts = [str(v) for v in found.verdict.values]
    first = found.isel(lane=0)
    right = "saddle" not in verdicts if is_convex else verdicts == ["saddle"]
    right = right and (is_convex or int(first.num_steps_extremes) <= prediction)
    return Result(
        *common,
        float(first.lambda_min / first.lambda_max),
        prediction,
        int(first.num_steps_extremes),
        int(first.num_hvps),
        verdicts[0],
        verdicts[-1],
        right,
    )


def summarise(results: list[Result]) -> Iterator[str]:
    """Yield one line per kind, precision and mode."""
    for kind in ("convex", "saddle"):
        for dtype in map(_name, DTYPES):
            for until in MODES:
                rows = [r for r in results if (r.kind, r.dtype, r.until) == (kind, dtype, until)]
                if not rows:
                    continue
                counts: dict[str, int] = {}
                for verdict in [r.verdict for r in rows] + [r.verdict_whole for r in rows if kind == "convex"]:
                    counts[verdict[:40]] = counts.get(verdict[:40], 0) + 1
                line = f"{kind}, {dtype}, until={until}: {sum(r.is_right for r in rows)} of {len(rows)} right; {counts}"
                if kind == "saddle":
                    shares = [r.steps / r.prediction for r in rows]
                    line += f"; steps / predicted: median {np.median(shares):.2f}, largest {max(shares):.2f}"
                    errors = [abs(r.lambda_min / r.ratio + 1) for r in rows]
                    line += f"; ratio / exact - 1: median {np.median(errors):.1e}, largest {max(errors):.1e}"
                else:
                    line += f"; smallest lambda_min / lambda_max {min(r.lambda_min for r in rows):.1e}"
                yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=NUM_PROBLEMS)
    given = parser.parse_args()
    start, results = time.perf_counter(), []
    for judge in (convex_results, saddle_results):
        for index in range(given.problems):
            results += judge(index, given.problems)
            wrong = [r for r in results if r.problem == index and not r.is_right]
            for r in wrong:
                print(f"  wrong: {r}", flush=True)
        print(f"{judge.__name__}: {time.perf_counter() - start:.0f} s", flush=True)
    versions = {"torch": metadata.version("torch"), "numpy": metadata.version("numpy"), "machine": platform.machine()}
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*asdict(results[0]), *versions])
        writer.writeheader()
        for r in results:
            row = asdict(r) | {"ratio": f"{r.ratio:.6g}", "threshold": f"{r.threshold:.6g}"}
            writer.writerow(row | {"lambda_min": f"{r.lambda_min:.6g}"} | versions)
    print(*summarise(results), sep="\n")


if __name__ == "__main__":
    main()
