"""Methods with one perturbation per class: CC-SAM, first stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from landscape.directions import (
    ClassNorms,
    class_conditional_radii,
    class_norms,
    class_steps,
    gaussian,
    tree_norm,
)
from landscape.errors import LandscapeError
from landscape.optimizers.terms import Batch, Piece, Term, check_choice, check_option


@dataclass(frozen=True)
class CCSAM:
    r"""Class-conditional SAM, first stage: each class perturbs the classifier by its own gradient and radius.

    .. math::

        L = \tfrac1B \sum_i (1 - r)\, \ell_i(\theta) + r\, \ell^{\text{flat}}_i(\theta + \epsilon_{y_i}), \qquad
        \epsilon_c = \min(\nu r_c,\, m \|\theta\|_2)\, \frac{g_c}{\|g_c\|_2}, \qquad
        r_c = \sqrt{\frac{\|\theta\|_2}{2 \|g_c\|_2}}\; k^{1/4}\, (n_c - 1)^{-1/4}

    Here theta are the k parameters of the classifier (the model's head), g_c is the gradient of the mean of the
    closure's losses over the batch's examples of class c, and the flat losses are
    ``criterion(logits, labels)``. One forward and one backward pass through the backbone; all classes of the batch
    share a batched product with the head. The gradient with respect to the features goes through the perturbed
    classifier.

    Parameters
    ----------
    flat_ratio
        Share r of the flat loss; 0.3 is released for CIFAR-10-LT, 0.5 for CIFAR-100-LT.
    noise_ratio
        Factor nu of the radius: 1 is the paper's formula, 1e-6 the released configurations, which are thereby
        numerically unperturbed.
    max_relative_radius
        Bound m of the perturbation of each classifier tensor, in units of the classifier's norm; None: no bound.
    perturbation
        ``"full"``: the formula above. The two ablations of the authors' slides: ``"dir"``, the recommended direction at
        length 1 (whatever nu and m); ``"mag"``, a random direction, uniform on the sphere and drawn anew for each class
        and batch, at the recommended length.
    norms
        Norms of g_c: ``"per-tensor"``, weight and bias apart as in the release, each with its own radius; ``"joint"``, of
        the whole classifier, as the formula says. The norm of theta is joint in both (it was per tensor in the
        release's first version).

    Notes
    -----
    Source: Zhou et al., *Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed Recognition*, CVPR 2023,
    and its released code. The criterion must be the one that the closure applies to the head's output, and the head's
    output must be the model's output. With mixed examples the flat losses take ``labels``, as in the release.

    Differs from the paper and the release in:

    1. The defaults of ``noise_ratio`` and ``max_relative_radius``. With nu = 1 the radius is as long as the
       classifier's weights when training starts, and it grows like the inverse root of g_c while a class is fitted:
       small networks on long-tailed digits then end at chance, and at a learning rate of 0.1 even nu = 0.01
       diverges. A bound of 0.05 holds every nu; with nu = 0.01 only classes that are fitted reach it, so the radii
       still differ by class.
       Without a bound, ``noise_ratio=1`` is the paper and ``noise_ratio=1e-6`` the release.
    2. Classes of one example and zero gradients stay finite, see
       :func:`landscape.directions.class_conditional_ascent`.
    """

    flat_ratio: float = 0.3
    noise_ratio: float = 0.01
    max_relative_radius: float | None = 0.05
    perturbation: Literal["full", "dir", "mag"] = "full"
    norms: ClassNorms = "per-tensor"
    name: ClassVar[str] = "ccsam"

    def __post_init__(self) -> None:
        check_option(self, "flat_ratio", self.flat_ratio, maximum=1.0)
        check_option(self, "noise_ratio", self.noise_ratio)
        if self.max_relative_radius is not None:
            check_option(self, "max_relative_radius", self.max_relative_radius)
        check_choice(self, "perturbation", self.perturbation, ("full", "dir", "mag"))
        check_choice(self, "norms", self.norms, ("per-tensor", "joint"))

    @property
    def needs(self) -> frozenset[str]:
        """The head and the loss on it; random directions need noise."""
        always = frozenset({"labels", "class_counts", "head", "criterion"})
        return always | {"generator"} if self.perturbation == "mag" else always

    def terms(self, batch: Batch) -> list[Term]:
        """Return the mixture of the closure's losses and the flat ones, on one graph."""
        head, criterion, labels, counts = batch.task.head, batch.task.criterion, batch.labels, batch.task.class_counts
        assert head is not None
        assert criterion is not None
        assert labels is not None
        assert counts is not None
        params: dict[str, Tensor] = {name: p for name, p in head.named_parameters() if p.requires_grad}
        if not params:
            raise LandscapeError("ccsam perturbs the classifier, but no parameter of the head requires a gradient")
        # In pieces, each runs again for its own gradient: its graph must not stay while the others run.
        visits = [_visit(piece, head, keeps_graph=batch.is_shared) for piece in batch.ascent_pieces]
        slots, is_member = class_slots(labels, min(len(labels), len(counts)))
        gradients = class_gradients(
            head,
            params,
            batch.whole([visit.features.detach() for visit in visits]),
            batch.whole([visit.at_logits for visit in visits]),
            is_member,
        )
        slot_counts = counts.new_ones(len(is_member)).scatter(0, slots, counts[labels])
        steps = self._steps(list(gradients.values()), slot_counts, list(params.values()), batch.generator)

        def mixture(piece: Piece) -> Tensor:
            visit = visits[0] if batch.is_shared else _visit(piece, head)
            rows = slice(None) if batch.is_shared else piece.rows

            def perturbed_logits(step: list[Tensor]) -> Any:
                perturbed = {name: p + s for (name, p), s in zip(params.items(), step)}
                return functional_call(head, perturbed, (visit.features,))

            with torch.enable_grad():
                by_slot = vmap(perturbed_logits)(steps)  # (K, B, C)
                own = by_slot[slots[rows], torch.arange(len(visit.features), device=labels.device)]
                return (1 - self.flat_ratio) * visit.losses + self.flat_ratio * criterion(own, labels[rows])

        return [Term(losses=mixture)]

    def _steps(
        self, gradients: list[Tensor], counts: Tensor, params: list[Tensor], generator: torch.Generator
    ) -> list[Tensor]:
        """Return the perturbation of each slot, (K, *shape) per tensor; zero where the gradient is."""
        lengths = class_norms(gradients, self.norms)
        if self.perturbation == "dir":
            return class_steps(gradients, [torch.ones_like(length) for length in lengths], lengths)
        radii = [
            class_conditional_radii(
                length,
                counts,
                theta_norm=tree_norm(params),
                num_parameters=sum(p.numel() for p in params),
                noise_ratio=self.noise_ratio,
                max_relative_radius=self.max_relative_radius,
            )
            for length in lengths
        ]
        if self.perturbation == "full":
            return class_steps(gradients, radii, lengths)
        directions = gaussian(gradients, generator, sigma=1.0)
        radii = [radius * (length > 0) for radius, length in zip(radii, lengths)]
        return class_steps(directions, radii, class_norms(directions, self.norms))


@dataclass(frozen=True)
class Visit:
    """The head's call in one forward pass: features (B, d), losses (B,) and their gradient at the logits (B, C)."""

    features: Tensor
    losses: Tensor
    at_logits: Tensor


def _visit(piece: Piece, head: nn.Module, *, keeps_graph: bool = True) -> Visit:
    with recorded_call(head) as call:
        losses = piece.run()
    features, logits = call.get()
    if features.shape[0] != losses.shape[0]:
        raise LandscapeError(
            f"ccsam: the head saw {features.shape[0]} examples but the closure returned {losses.shape[0]} losses: "
            "evaluate the batch in one forward pass"
        )
    (at_logits,) = torch.autograd.grad(losses, logits, torch.ones_like(losses), retain_graph=True)  # (B, C)
    # In the weights' precision, whatever the passes run in: only the head follows.
    with torch.enable_grad():
        features = features.to(losses.dtype)
    if not keeps_graph:
        features, losses = features.detach(), losses.detach()
    return Visit(features, losses, at_logits.to(losses.dtype))


class HeadCall:
    """Features and logits of the head's one call during a closure."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []

    def get(self) -> tuple[Tensor, Tensor]:
        """Return the features (B, d) and logits (B, C) with their graph."""
        if len(self.calls) != 1:
            raise LandscapeError(
                f"ccsam expects the closure to call the model's head once, it was called {len(self.calls)} times: "
                "run one forward pass of the model that was given to build_optimizer"
            )
        return self.calls[0]


@contextmanager
def recorded_call(head: nn.Module) -> Iterator[HeadCall]:
    """Record the head's calls; the hook is removed whatever happens inside."""
    call = HeadCall()
    handle = head.register_forward_hook(lambda module, args, output: call.calls.append((args[0], output)))
    try:
        yield call
    finally:
        handle.remove()


def class_slots(labels: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Return the slot of each example, (B,), and which examples a slot holds, (K, B); no shape depends on the labels.

    The classes that occur get the slots 0, 1, ... in ascending order; slots that are left over hold no example.
    """
    ordered, order = labels.sort(stable=True)
    is_new = torch.cat([torch.zeros_like(ordered[:1], dtype=torch.bool), ordered[1:] != ordered[:-1]])
    slots = torch.empty_like(order).scatter(0, order, is_new.cumsum(0))
    return slots, slots == torch.arange(num_slots, device=labels.device).unsqueeze(1)


def class_gradients(
    head: nn.Module, params: dict[str, Tensor], features: Tensor, at_logits: Tensor, is_member: Tensor
) -> dict[str, Tensor]:
    """Return the gradient of each slot's mean loss with respect to the head's parameters: name -> (K, *shape).

    The losses come differentiated up to the logits; from there all slots share one batched product with the head.
    """
    members = is_member.to(at_logits.dtype)
    mean = members / members.sum(dim=1, keepdim=True).clamp_min(1)  # (K, B)
    pull_back = vjp(lambda p: functional_call(head, p, (features,)), {name: p.detach() for name, p in params.items()})[
        1
    ]
    (gradients,) = vmap(pull_back)(mean.unsqueeze(2) * at_logits)
    return gradients
