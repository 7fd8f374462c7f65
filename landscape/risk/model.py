"""A network's risk split by class."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.risk.arithmetic import differentiation, random_states_kept
from landscape.risk.batchnorm import (
    BatchNormPolicy,
    calibration_batches,
    describe,
    recalibrate,
    require_batch,
    require_layers,
)
from landscape.risk.copies import cast, copied
from landscape.risk.custom import require_first_derivatives, require_second_derivatives
from landscape.risk.differentiability import require_twice_differentiable, second_derivative_explained
from landscape.risk.evaluation import class_means, lane_means, require_one_pass
from landscape.risk.examples import Examples, Transform, as_model_inputs, read_examples
from landscape.risk.gauss_newton import curvature_parts, gauss_newton_products
from landscape.risk.inputs import Inputs, Stored, as_inputs, moved, num_entries, num_rows, rows_of
from landscape.risk.intake import (
    PerExampleLoss,
    count_outputs,
    first_attributes,
    intake_explained,
    loss_in,
    names_of,
    place_of,
    prepared,
    require_counts,
    resolve_loss,
)
from landscape.risk.kernels import TwiceDifferentiable
from landscape.risk.lanes import require_members
from landscape.risk.likelihoods import losses_of
from landscape.risk.network import Network, measured_graph
from landscape.risk.passes import (
    Pass,
    default_chunk_size,
    default_memory_budget,
    lane_chunks,
    lane_passes,
    lanes_apart,
    shared_passes,
    support,
)
from landscape.risk.products import Chunk, ChunkedHessian, lane_bytes
from landscape.risk.proof import prove_deterministic
from landscape.risk.protocol import HessianProduct
from landscape.risk.reach import examined
from landscape.risk.strategies import Strategy


class ModelRisk:
    """Class losses of a classifier on fixed data, as functions of its (chosen) parameters.

    The model is copied, put into evaluation mode (BatchNorm uses its running statistics, dropout is off) and never
    touched again; the data are sorted by class and stay on the device. Losses are per example; sums per class
    accumulate in float64 and are divided once, by the class count. The constructor proves that two evaluations
    agree (in bits, or in float64 to rounding) and that another chunking agrees to rounding; if not, it refuses.

    Parameters
    ----------
    model
        Maps inputs (B, ...) to logits (B, C), or to an object or collection that holds them (``logits``, or the one entry
        that fits the classes). A compiled or data-parallel wrapper is taken off.
    data
        ``(inputs, labels)`` tensors, a :class:`landscape.data.Split`, or an iterable of such batches, read once. Inputs
        may be a dictionary of tensors, which the model takes as keywords.
    loss
        A name in :data:`landscape.losses.LOSSES`, or a callable (logits (B, C), labels (B,)) -> (B,) per example.
    params
        ``"all"``, ``"prompts+head"`` or another choice of :func:`landscape.layout.choose_parameters`.
    transform
        Optional map (stored inputs, dtype) -> model inputs, applied chunk by chunk.
    dtype
        ``torch.float32`` (default: the model's own) or ``torch.float64``.
    device
        Where to compute; by default where the model is.
    class_names, train_counts, groups
        Names of the classes, training examples per class (for losses that need them; by default the counts of
        ``data``) and the head, medium and tail classes.
    calibration
        Stored inputs (M, ...) over which :meth:`with_batchnorm` recomputes BatchNorm statistics; by default the
        examples under study.
    memory_budget
        Bytes for the retained graphs of Hessian products; by default a quarter of what is free, on a CPU 4 GiB at most.
    chunk_size
        Examples per forward pass; by default from the measured size of the activations.
    draws_per_example
        How many rows of ``data`` are draws (augmentations) of one example, the same for all; ``class_counts`` counts
        examples, not rows, and a class loss is the mean over both.
    batchnorm
        ``"frozen"`` (running statistics) or ``"batch"`` (those of each lane's examples), see :meth:`with_batchnorm`.

    Raises
    ------
    LandscapeError
        If the data, labels, loss or parameters do not fit, a weight is not finite, or evaluations are not repeatable.

    Examples
    --------
    >>> model = nn.Linear(2, 3, bias=False)
    >>> with torch.no_grad():
    ...     _ = model.weight.zero_()
    >>> risk = ModelRisk(model, (torch.ones(4, 2), torch.tensor([0, 0, 1, 2])))
    >>> [round(value, 4) for value in risk.losses(risk.theta).tolist()]  # log 3 at zero weights
    [1.0986, 1.0986, 1.0986]
    """

    @intake_explained()
    @differentiation()
    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        loss: str | PerExampleLoss = "ce",
        params: str = "all",
        transform: Transform | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        class_names: Sequence[str] | None = None,
        train_counts: Sequence[int] | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
        calibration: Stored | None = None,
        memory_budget: int | None = None,
        chunk_size: int | None = None,
        draws_per_example: int = 1,
        batchnorm: BatchNormPolicy = "frozen",
        attributes: Mapping[str, object] | None = None,
    ) -> None:
        require_counts(chunk_size=chunk_size, memory_budget=memory_budget, draws_per_example=draws_per_example)
        self._model = prepared(model, dtype, device)
        self.dtype, self.device = place_of(self._model)
        inputs, labels = read_examples(data)
        first_two = moved(rows_of(inputs, slice(0, 2)), self.device)  # two, for a layer that wants more than one
        with random_states_kept(self.device):
            known = class_names or int(labels.max()) + 1
            num_outputs, self._output = count_outputs(self._model, first_two, transform, self.dtype, known)
        self._examples = Examples.of(inputs, labels, num_classes=num_outputs, device=self.device, transform=transform)
        self.draws_per_example = draws_per_example
        self.class_counts = self._examples.counts_of(draws_per_example)
        self.class_names = names_of(num_outputs, class_names)
        self.groups = {name: tuple(members) for name, members in (groups or {}).items()}
        require_members(self.groups, num_outputs)
        self.train_counts = tuple(train_counts) if train_counts is not None else tuple(self.class_counts.tolist())
        self.loss_name, self.loss = resolve_loss(loss, self.train_counts, device=self.device, dtype=self.dtype)
        require_layers(self._model, batchnorm)
        self.policy: BatchNormPolicy = batchnorm
        if batchnorm == "batch":
            require_batch(self.class_names, len(labels), len(labels))
        self._use(Network.of(self._model, params, uses_batch_statistics=batchnorm == "batch", output=self._output))
        self._chunk_size, self._memory_budget = chunk_size, memory_budget
        self._flaw = ""  # why its derivatives are not to be believed
        self._known: dict[str, object] = {}  # measured sizes and times of products
        self._calibration = self._examples.inputs if calibration is None else moved(as_inputs(calibration), self.device)
        with random_states_kept(self.device):
            graph = measured_graph(self.theta, self.per_example, len(labels))
        self._bytes_per_example, self._once, self._custom = graph
        self.attributes: dict[str, object] = first_attributes(self, params) | dict(attributes or {})
        self._params = params
        with random_states_kept(self.device):
            prove_deterministic(self)
            require_first_derivatives(self)
            self._flaw, unused = examined(self)
        self.attributes |= unused

    def _use(self, network: Network) -> None:
        self._network, self.layout, self.theta = network, network.layout, network.theta

    @property
    def inputs_per_example(self) -> int:
        """Numbers in one stored input."""
        return num_entries(self._examples.inputs)

    @property
    def chunk_size(self) -> int:
        """Examples per forward pass with gradients."""
        return self._chunk_size or default_chunk_size(self.device, self._bytes_per_example)

    @property
    def memory_budget(self) -> int:
        """Bytes for retained graphs."""
        return default_memory_budget(self.device) if self._memory_budget is None else self._memory_budget

    def in_float64(self) -> ModelRisk:
        """Return the same risk in float64: the measure of what rounding does to this one."""
        return self if self.dtype == torch.float64 else self._sibling(self._examples, torch.float64)

    def with_batchnorm(self, policy: BatchNormPolicy) -> ModelRisk:
        """Return the same risk under another BatchNorm policy.

        ``"frozen"``: the checkpoint's running statistics everywhere, the function that is deployed. ``"batch"``: the
        statistics of all examples of a lane, as in training with that lane as the batch; an exact function of theta,
        derivatives included, but not the same for a class alone and within a group: ``is_additive`` is False, and
        :meth:`lane_losses` replaces weighted sums of class losses. ``"recalibrate"``: :meth:`evaluate` and
        :meth:`losses` first recompute running statistics at theta over the calibration inputs; gradients and
        Hessians, which would have to differentiate through them, are refused.

        Raises
        ------
        LandscapeError
            For an unknown policy, one that needs layers which the model does not have, or (``"frozen"``) layers
            without running statistics.
        """
        require_layers(self._model, policy)
        clone = self._sibling(self._examples, self.dtype, policy)
        if "batch" in (self.policy, policy) and policy != "recalibrate":
            with random_states_kept(self.device):
                prove_deterministic(clone)
        return clone

    @property
    def is_additive(self) -> bool:
        """Whether a lane is the weighted sum of its classes: always, but where its examples share batch statistics."""
        return self.policy != "batch"

    def _buffers_at(self, theta: Tensor) -> dict[str, Tensor]:
        if self.policy != "recalibrate":
            return self._network.buffers
        batches = calibration_batches(self._calibration)
        inputs = (as_model_inputs(batch, self._examples.transform, self.dtype) for batch in batches)
        return recalibrate(self._model, self._network.parameters_at(theta), inputs)

    def restricted(self, rows: Tensor) -> ModelRisk:
        """Return the same risk on some rows of the class-sorted examples (ascending), each of them an example."""
        clone = self._sibling(self._examples.subset(rows), self.dtype)
        clone.draws_per_example, clone.class_counts = 1, clone._examples.counts
        return clone

    def with_inputs(self, inputs: Inputs) -> ModelRisk:
        """Return the same risk on other stored inputs (N, ...) in the place of the class-sorted ones; copies nothing."""
        clone = copy.copy(self)
        clone._examples = replace(self._examples, inputs=inputs)
        return clone

    @differentiation()
    def _sibling(self, examples: Examples, dtype: torch.dtype, policy: BatchNormPolicy | None = None) -> ModelRisk:
        clone = copy.copy(self)
        clone.dtype = dtype
        clone.policy = policy or self.policy
        clone._model = cast(copied(self._model), dtype)
        clone._examples = examples
        clone.loss = loss_in(dtype, self.loss)
        clone._use(
            Network.of(clone._model, self._params, uses_batch_statistics=not clone.is_additive, output=self._output)
        )
        clone.theta = self.theta.to(dtype)
        if dtype != self.dtype:  # its products are few, and this risk's graphs may be kept beside its own
            clone._memory_budget = self.memory_budget // 4
        clone._bytes_per_example = self._bytes_per_example * dtype.itemsize // self.dtype.itemsize
        clone.attributes = {
            **self.attributes,
            "dtype": str(dtype).removeprefix("torch."),
            "batchnorm": describe(clone.policy, num_rows(self._calibration)),
        }
        return clone

    @property
    def labels(self) -> Tensor:
        """(N,) int64 classes of the rows, ascending, on the device."""
        return self._examples.labels

    @property
    def file_rows(self) -> Tensor:
        """(N,) each row's place in the data as given."""
        return self._examples.order

    def row_chunks(self) -> Iterator[slice]:
        """Yield the rows of all examples in chunks that fit a forward pass with gradients."""
        return self._examples.chunks(range(len(self.class_names)), self.chunk_size)

    def logits(self, theta: Tensor, rows: slice, buffers: dict[str, Tensor] | None = None) -> Tensor:
        """Return the logits (rows, C) at theta."""
        return self._network.logits(theta, self._examples.read(rows, self.dtype), buffers)

    def per_example(self, theta: Tensor, rows: slice) -> Tensor:
        """Return the per-example losses (rows,) at theta, differentiable."""
        return self.losses_of(self.logits(theta, rows), rows)

    def losses_of(self, logits: Tensor, rows: slice) -> Tensor:
        """Return the per-example losses (rows,) of logits (rows, C), differentiable."""
        return losses_of(self.loss, logits, self.labels[rows], self.loss_name)

    def losses(self, theta: Tensor, classes: Sequence[int] | None = None) -> Tensor:
        """Return (C,) float64 mean losses; NaN for classes not asked for or without examples."""
        return self.evaluate(theta, classes)["loss"]

    def lane_losses(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return (B,) float64: the loss of lanes (B, C), which :meth:`gradients` and :meth:`hessian` differentiate."""
        return lane_means(self, theta, weights)

    def evaluate(self, theta: Tensor, classes: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return ``loss``, ``cross_entropy`` and ``accuracy``, each (C,) float64, from one forward pass.

        With ``batchnorm="batch"`` every class is a batch of its own.
        """
        return class_means(self, theta, classes)

    @differentiation()
    def gradients(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return (B, n): row b is the gradient of ``sum_c weights[b, c] L_c``; one forward pass serves all rows."""
        evaluated, passes = self._passes_of(weights)
        point = theta.detach().clone().requires_grad_()
        out = torch.zeros(len(weights), len(theta), dtype=torch.float64, device=self.device)
        for rows, shares in passes:
            with TwiceDifferentiable():  # right first derivatives, too: see landscape.risk.kernels._dense
                losses = evaluated.per_example(point, rows)
            if not losses.requires_grad:  # the model does not use the chosen parameters
                continue
            for lane, coefficients in shares:
                (part,) = torch.autograd.grad(losses, point, coefficients, retain_graph=True, materialize_grads=True)
                out[lane] += part
        return out.to(self.dtype)

    def _require_derivatives(self) -> None:
        if self._flaw:
            raise LandscapeError(self._flaw)
        if self.policy == "recalibrate":
            raise LandscapeError("derivatives need batchnorm 'frozen': recalibrated statistics depend on the weights")

    def _passes_of(self, weights: Tensor) -> tuple[ModelRisk, list[Pass]]:
        self._require_derivatives()
        if self.is_additive:
            return self, shared_passes(self._examples, weights, self.chunk_size, self.dtype)
        evaluated, chunks = self._chunks_of(weights)
        return evaluated, lane_passes(chunks)

    def _chunks_of(self, weights: Tensor, chunk_size: int | None = None) -> tuple[ModelRisk, list[Chunk]]:
        """Return the work of lanes (B, C), cut into chunks, and the risk whose rows and per-example losses they name."""
        self._require_derivatives()
        with differentiation():
            if self.is_additive:
                return self, lane_chunks(self._examples, weights, chunk_size or self.chunk_size, self.dtype)
            for row in weights:
                require_one_pass(self, support(self._examples, row), chunk_size)
            evaluated = copy.copy(self)
            evaluated._examples, chunks = lanes_apart(self._examples, weights, self.dtype)
        return evaluated, chunks

    def hvps(self, theta: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
        """Return (B, n): row b is ``sum_c weights[b, c] H_c vectors[b]``."""
        with self.hessian(theta, weights) as product:
            return product(vectors[:, None])[:, 0]

    def product_bytes(self, weights: Tensor) -> list[int]:
        """Return for each of the lanes (B, C) the bytes that its graphs take while :meth:`hessian` keeps them."""
        evaluated, chunks = self._chunks_of(weights)
        return lane_bytes(evaluated.per_example, self.theta, chunks, num_lanes=len(weights), known=self._known)

    @contextmanager
    def hessian(
        self, theta: Tensor, weights: Tensor, *, chunk_size: int | None = None, strategy: Strategy = "auto"
    ) -> Iterator[HessianProduct]:
        """Give a product (B, P, n) -> (B, P, n); see :class:`landscape.risk.products.ChunkedHessian`."""
        evaluated, chunks = self._chunks_of(weights, chunk_size)
        require_twice_differentiable(self._once)
        require_second_derivatives(self)
        with second_derivative_explained(self.per_example, self.theta, len(self._examples.labels)):
            product = ChunkedHessian(
                evaluated.per_example,
                theta,
                chunks,
                budget=self.memory_budget,
                strategy=strategy,
                joint=self.is_additive,
                known=self._known,
                inputs_per_example=self.inputs_per_example,
            )
            try:
                yield product
            finally:
                product.close()

    def gauss_newton(self, theta: Tensor, weights: Tensor) -> AbstractContextManager[HessianProduct]:
        """Give a product (B, P, n) -> (B, P, n) with the Gauss-Newton matrices of lanes (B, C).

        G = sum_i c_i J_i' (d2 loss_i / dz_i2) J_i with z_i the logits and J_i their Jacobian, for any loss that acts on
        the logits of one example; see :class:`landscape.risk.gauss_newton.ChunkedGaussNewton`.
        """
        return gauss_newton_products(self, theta, weights)

    def curvature_split(self, theta: Tensor, weights: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return v'Hv, v'Gv and v'Fv, each (B,) float64, of lanes (B, C) along vectors (B, n); H = G + F.

        G is the Gauss-Newton part. F, the network's own curvature weighted by the slopes of the loss, is the only
        source of negative curvature where the loss is convex in the logits.
        """
        return curvature_parts(self, theta, weights, vectors)
