"""Lanczos runs on fixed, frozen and redrawn images of one class, and how far the products are from a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import nn
from torch.nn import functional

from landscape.data import Batches, Dataset, Split, load_dataset, long_tailed_counts
from landscape.data.augmentation import find_transform, frozen_draws
from landscape.loading import AugmentChoice, load_risk
from landscape.models import build_model
from landscape.randomness import stream
from landscape.risk import ClassRisk, HessianProduct, ModelRisk
from landscape.risk.augmented import RedrawnRisk
from landscape.spectrum.lanczos import Lanczos, Matvec, sphere

NUM_DRAWS = 4
# Which Lanczos runs on which data, and after how many steps it is read; 100 is the published number.
RUNS: dict[str, dict[str, tuple[int, ...]]] = {
    "none": {"two-pass": (40, 100), "released": (40, 100)},
    "frozen": {"two-pass": (40,)},
    "redraw": {"two-pass": (40, 100), "released": (40, 100)},
}
CIFAR_RUNS: dict[AugmentChoice, dict[str, tuple[int, ...]]] = {
    "none": {"two-pass": (40,)},
    "frozen": {"two-pass": (40,)},
    "redraw": {"two-pass": (40,), "released": (40,)},
}
# Epochs of training on augmented batches of 64, rate 0.05 with momentum 0.9, divided by ten for the last quarter.
EPOCHS = 200
CONVEX_COUNTS = (150, 120, 90, 60, 45, 15, 12, 9, 5, 5)
CIFAR_STATISTICS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
CIFAR_PER_CLASS = 50


@dataclass(frozen=True)
class Row:
    """One Lanczos run.

    ``lambda_min`` and ``lambda_max`` are the extreme Ritz values; ``repeat_defect`` is |Hv - (Hv)'| / |Hv| of the same
    product taken twice, ``symmetry_defect`` |u'Hv - v'Hu| / |H| with |H| from the Ritz values and unit vectors u, v in
    the range of H: what a check before the run sees.
    """

    model: str
    class_name: str
    num_examples: int
    augmentation: str
    lanczos: str
    num_steps: int
    seed: int
    lambda_min: float
    lambda_max: float
    ratio: float
    repeat_defect: float
    symmetry_defect: float
    loss: float
    gradient_norm: float


def two_pass(matvec: Matvec, start: torch.Tensor, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the diagonal and off-diagonal of the tridiagonal matrix of the package's own Lanczos."""
    run = Lanczos(matvec, start)
    run.extend(num_steps)
    pairs = run.ritz(0)
    matrix = (pairs.coordinates * pairs.values) @ pairs.coordinates.T
    return np.diag(matrix), np.diag(matrix, 1)


def released(matvec: Matvec, start: torch.Tensor, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the same of the recurrence in PyHessian and the code released with the paper.

    It differs in three points: 1. the coupling beta is the norm before the orthogonalisation, which does not update it;
    2. one Gram-Schmidt pass; 3. the next vector is divided by its norm plus 1e-6.
    """
    basis = [functional.normalize(start, dim=1)]
    alphas: list[float] = []
    betas: list[float] = []
    for step in range(num_steps):
        image = matvec(basis[-1])
        alphas.append(float((image * basis[-1]).sum()))
        image = image - alphas[-1] * basis[-1]
        if step:
            image = image - betas[-1] * basis[-2]
        betas.append(float(torch.linalg.vector_norm(image)))
        for vector in basis:
            image = image - (image * vector).sum() * vector
        basis.append(image / (torch.linalg.vector_norm(image) + 1e-6))
    return np.array(alphas), np.array(betas[:-1])


LANCZOS = {"two-pass": two_pass, "released": released}


def run_class(
    risk: ClassRisk, c: int, *, model: str, augmentation: str, seed: int, runs: Mapping[str, Sequence[int]]
) -> Iterator[Row]:
    """Yield one row per Lanczos and number of steps for one class."""
    weights = functional.one_hot(torch.tensor([c]), len(risk.class_names)).double()
    theta = risk.theta
    gradient_norm = float(torch.linalg.vector_norm(risk.gradients(theta, weights)[0]))
    loss = float(risk.losses(theta, [c])[c])
    start = sphere(1, len(theta), stream(seed, f"redrawn/start/class={c}")).to(theta)
    with risk.hessian(theta, weights) as product:
        for lanczos, steps in runs.items():
            alphas, betas = LANCZOS[lanczos](lambda v: product(v[:, None])[:, 0], start, max(steps))
            for num_steps in steps:
                # A leading block is the matrix of the shorter run.
                values = eigvalsh_tridiagonal(alphas[:num_steps], betas[: num_steps - 1])
                low, high = float(values[0]), float(values[-1])
                repeat, symmetry = _defects(product, theta, max(abs(low), abs(high)), seed)
                yield Row(
                    model=model,
                    class_name=risk.class_names[c],
                    num_examples=int(risk.class_counts[c]),
                    augmentation=augmentation,
                    lanczos=lanczos,
                    num_steps=num_steps,
                    seed=seed,
                    lambda_min=low,
                    lambda_max=high,
                    ratio=max(-low, 0.0) / high,
                    repeat_defect=repeat,
                    symmetry_defect=symmetry,
                    loss=loss,
                    gradient_norm=gradient_norm,
                )


def _defects(product: HessianProduct, theta: torch.Tensor, norm: float, seed: int) -> tuple[float, float]:
    """Return how far two equal products differ, and how far u'Hv is from v'Hu, u and v in the range of H."""
    starts = sphere(2, len(theta), stream(seed, "redrawn/check")).to(theta)
    u, v = (functional.normalize(product(x[None, None])[0, 0], dim=0) for x in starts)
    of_u, of_v, again = (product(x[None, None])[0, 0] for x in (u, v, v))
    repeat = float(torch.linalg.vector_norm(of_v - again) / torch.linalg.vector_norm(of_v))
    return repeat, float((u @ of_v - v @ of_u).abs()) / norm


# ---- digits -------------------------------------------------------------------------------------------------------


def digits(counts: Sequence[int]) -> Dataset:
    """Return the digits with the first ``counts[c]`` images of each class for training, shifted by up to one pixel."""
    whole = load_dataset("digits-lt")
    images = torch.cat([whole.train.images, whole.test.images])
    labels = torch.cat([whole.train.labels, whole.test.labels])
    rows = torch.cat([torch.nonzero(labels == c)[:n, 0] for c, n in enumerate(counts)])
    return replace(whole, train=Split(images[rows], labels[rows]), augmentation="shift")


def train(model: nn.Module, dataset: Dataset, *, seed: int) -> nn.Module:
    """Train with plain cross-entropy on augmented batches, as in ``EPOCHS``."""
    batches = Batches(dataset, batch_size=64, device="cpu", augment=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=2e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3 * EPOCHS // 4])
    model.train()
    for epoch in range(EPOCHS):
        for images, labels in batches.epoch(stream(seed, f"redrawn/epoch={epoch}")):
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def softmax_regression() -> nn.Module:
    """Return an untrained linear classifier of 8 x 8 images; its loss is convex."""
    head = nn.Linear(64, 10)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(nn.Flatten(), head)


def risks_of(model: nn.Module, dataset: Dataset, *, seed: int) -> Iterator[tuple[str, ClassRisk]]:
    """Yield the three risks of a network on the training images: as stored, frozen draws, redrawn."""
    transform = find_transform(dataset)
    plain = ModelRisk(model, dataset.train, transform=dataset.normalise, class_names=dataset.class_names)
    yield "none", plain
    num = len(dataset.train)
    draws = transform.draw(num * NUM_DRAWS, stream(seed, "redrawn/frozen")).view(-1, num, NUM_DRAWS)
    frozen = frozen_draws(dataset.train, transform, draws)
    yield (
        "frozen",
        ModelRisk(
            model,
            frozen,
            transform=dataset.normalise,
            class_names=dataset.class_names,
            draws_per_example=NUM_DRAWS,
        ),
    )
    yield "redraw", RedrawnRisk(plain, transform.redraw, seed=seed)


def study_digits(name: str, *, num_seeds: int, classes: Sequence[int] | None = None) -> Iterator[Row]:
    """Yield the rows of ``softmax regression`` or ``convnet``: every seed trains a network and starts a run of its own."""
    counts = CONVEX_COUNTS if name == "softmax regression" else long_tailed_counts(150, 10, 50, "exponential")
    dataset = digits(counts)
    for seed in range(num_seeds):
        if name == "softmax regression":
            model = softmax_regression()
        else:
            model = build_model(name, num_classes=10, in_channels=1, image_size=8, seed=seed)
        train(model, dataset, seed=seed)
        for augmentation, risk in risks_of(model, dataset, seed=seed):
            for c in range(10) if classes is None else classes:
                yield from run_class(risk, c, model=name, augmentation=augmentation, seed=seed, runs=RUNS[augmentation])


# ---- CIFAR-10-LT --------------------------------------------------------------------------------------------------


def study_cifar(
    checkpoint: Path, data_dir: Path, *, classes: Sequence[int], seed: int = 0, device: str = "auto"
) -> Iterator[Row]:
    """Yield the rows of a ResNet-20 trained on the first images of each class: 50 of each, 40 steps, one frozen draw."""
    for augmentation, runs in CIFAR_RUNS.items():
        risk = load_risk(
            checkpoint,
            model="resnet20",
            dataset="cifar10",  # in file order, as the network's training images are the first of each class
            data_dir=data_dir,
            max_per_class=CIFAR_PER_CLASS,
            augment=augmentation,
            augment_draws=1,
            augment_seed=seed,
            device=device,
            **CIFAR_STATISTICS,
        )
        for c in classes:
            yield from run_class(risk, c, model="resnet20", augmentation=augmentation, seed=seed, runs=runs)
