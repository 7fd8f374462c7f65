"""What every example gives at many points of weight space: the forward pass alone, as fast as the machine runs it.

Inputs stay on the device as the model reads them, weights are written in place, BatchNorm with fixed statistics is
folded into the convolutions, convolutional networks run channels-last, on a CPU convolutions add and rectify in one
kernel, and on a GPU the pass is captured and replayed.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.errors import unknown_name
from landscape.losses import cross_entropy
from landscape.memory import available_memory, keep_freed_memory
from landscape.risk.arithmetic import plain_checkpointing, precise_arithmetic, random_states_kept
from landscape.risk.batchnorm import calibration_batches, recalibrate
from landscape.risk.copies import copied
from landscape.risk.examples import as_model_inputs
from landscape.risk.folding import Pair, find_pairs, fold
from landscape.risk.fusion import fused
from landscape.risk.inputs import Inputs, call_with, logits_in, num_rows, rows_of
from landscape.risk.likelihoods import losses_of
from landscape.risk.model import ModelRisk
from landscape.risk.replay import Replayed

logger = logging.getLogger(__name__)

Precision = Literal["exact", "preview"]

# Bytes of the largest activation of a chunk. On a CPU more does not stay in the caches, and allocations of more than
# 32 MB come from the system page by page: a ResNet-20 was 2.5 times slower at 512 images than at 64 to 256.
CPU_ACTIVATION_BYTES = 8 << 20
GPU_ACTIVATION_BYTES = 256 << 20
MAX_CHUNK = 4096
# Inputs stay as the model reads them if that takes at most this share of the free memory.
RESIDENT_SHARE = 0.25
# Logits may differ by this share of the largest one between the plain and the folded network: rounding, in float32.
FOLDING_TOLERANCE = 1e-3

QUANTITIES = ("loss", "own_loss", "error", "margin")


def require_precision(name: str) -> None:
    """Raise LandscapeError for a name that is no precision."""
    if name not in get_args(Precision):
        raise unknown_name("precision", name, get_args(Precision))


class PointEvaluator:
    """Losses, errors and margins of single examples at any theta, from the weights of one risk.

    Parameters
    ----------
    risk
        The network, its examples and its loss. Nothing of it is changed.
    classes
        Which classes' examples are evaluated; by default all that have some.
    precision
        ``"exact"``, the risk's own dtype, or ``"preview"``: convolutions and products in bfloat16, losses in float32.

    Attributes
    ----------
    rows
        (M,) the evaluated rows of the risk's class-sorted examples, ascending.
    labels
        (M,) their classes.
    folding_error
        Largest difference of a logit between the plain and the folded network, as a share of the largest logit.

    Notes
    -----
    Values agree with :meth:`ModelRisk.evaluate` to rounding (about 1e-6 in float32), and a point evaluated twice gives
    the same bits. Which kernels run is decided by rules, never by timing, so that a resumed run finds the same ones.
    """

    @torch.no_grad()
    def __init__(
        self, risk: ModelRisk, *, classes: Sequence[int] | None = None, precision: Precision = "exact"
    ) -> None:
        require_precision(precision)
        keep_freed_memory()
        self._risk, self._precision = risk, precision
        self.device, self._dtype = risk.device, torch.bfloat16 if precision == "preview" else risk.dtype
        counts = risk._examples.counts
        wanted = [c for c in (range(len(counts)) if classes is None else classes) if counts[c] > 0]
        offsets = risk._examples.offsets
        self.classes = tuple(sorted(wanted))
        self.rows = torch.cat([torch.arange(offsets[c], offsets[c + 1]) for c in self.classes])
        self.labels = risk.labels[self.rows.to(risk.device)]
        self._is_2d = any(isinstance(layer, nn.Conv2d) for layer in risk._model.modules())
        with precise_arithmetic(), random_states_kept(risk.device):
            self._plain = self._private_copy()
            few = self._as_read(self._stored(slice(0, 2)), risk.dtype)
            self.chunk_size = self._largest_chunk(few)
            self._is_fused = False
            self._pairs, self.folding_error = self._foldable()
            self._folded, self._targets = self._prepared()
            self._chunks = list(_even(len(self.rows), self.chunk_size))
            self._inputs = self._resident()
            self._calibration: list[Inputs] | None = None
        self._replayed = Replayed(self._forward) if self.device.type == "cuda" else None

    # The network.

    def _private_copy(self) -> nn.Module:
        module = copied(self._risk._model).requires_grad_(False)
        return module.to(memory_format=torch.channels_last) if self._is_2d else module  # type: ignore[call-overload]

    def _tensors(self, theta: Tensor, buffers: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        network = self._risk._network
        return {**(buffers or network.buffers), **network.parameters_at(theta)}

    def _foldable(self) -> tuple[list[Pair], float]:
        """Return the pairs whose folding leaves the logits alone, and what rounding it adds; verified off the centre."""
        rows = slice(0, min(8, len(self.rows)))
        inputs = self._as_read(self._stored(rows), self._risk.dtype)
        with plain_checkpointing():
            pairs = find_pairs(self._plain, lambda: call_with(self._plain, inputs))
        theta = self._risk.theta * (1 + 0.05 * torch.cos(torch.arange(len(self._risk.theta), device=self.device)))
        expected = self._risk._network.logits(theta.to(self._risk.dtype), inputs)
        ways = [(pairs, True), (pairs, False), ([], True), ([], False)] if pairs else [([], True), ([], False)]
        for candidates, is_fused in ways:
            try:
                module, targets = self._assembled(candidates, self._risk.dtype, is_fused=is_fused)
                _place(self._tensors(theta.to(self._risk.dtype)), candidates, targets)
                with plain_checkpointing():
                    found = logits_in(call_with(module, inputs), self._risk._network.output)
                error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
            except (AttributeError, RuntimeError, TypeError) as problem:
                logger.debug("not folded (%d pairs, fused %s): %s", len(candidates), is_fused, problem)
                continue
            if error <= FOLDING_TOLERANCE or not (candidates or is_fused):
                self._is_fused = is_fused
                return list(candidates), error
        return [], 0.0

    def _assembled(
        self, pairs: Sequence[Pair], dtype: torch.dtype, *, is_fused: bool
    ) -> tuple[nn.Module, dict[str, Tensor]]:
        module = self._private_copy()
        fold(module, pairs)
        module = module.to(dtype)
        module = (fused(module, self.device) if is_fused else None) or module
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return module, named

    def _prepared(self) -> tuple[nn.Module, dict[str, Tensor]]:
        module, targets = self._assembled(self._pairs, self._dtype, is_fused=self._is_fused)
        _place(self._tensors(self._risk.theta), self._pairs, targets)
        return module, targets

    # The examples.

    def _stored(self, rows: slice) -> Inputs:
        return rows_of(self._risk._examples.inputs, self.rows[rows].to(self.device))

    def _as_read(self, stored: Inputs, dtype: torch.dtype) -> Inputs:
        inputs = as_model_inputs(stored, self._risk._examples.transform, self._risk.dtype)
        return _laid_out(inputs, dtype, self._is_2d)

    def _largest_chunk(self, few: Inputs) -> int:
        sizes = _LargestOutput(num_rows(few))
        with sizes, plain_checkpointing():
            call_with(self._plain, few)
        budget = GPU_ACTIVATION_BYTES if self.device.type == "cuda" else CPU_ACTIVATION_BYTES
        return max(1, min(MAX_CHUNK, budget // max(sizes.bytes_per_row, 1)))

    def _resident(self) -> list[Inputs] | None:
        """Return the chunks' inputs as the model reads them, or None where they do not fit."""
        first = self._as_read(self._stored(slice(0, 1)), self._dtype)
        tensors = list(first.values()) if isinstance(first, dict) else [first]
        size = sum(t.numel() * t.element_size() for t in tensors) * len(self.rows)
        if size > RESIDENT_SHARE * available_memory(self.device):
            return None
        return [self._as_read(self._stored(rows), self._dtype) for rows in self._chunks]

    def _read(self, number: int) -> Inputs:
        if self._inputs is not None:
            return self._inputs[number]
        return self._as_read(self._stored(self._chunks[number]), self._dtype)

    # Evaluation.

    @torch.no_grad()
    def buffers_at(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the buffers with BatchNorm statistics recomputed at theta over the risk's calibration inputs."""
        if self._calibration is None:
            risk = self._risk
            stored = calibration_batches(risk._calibration)
            self._calibration = [self._as_read(batch, risk.dtype) for batch in stored]
        with precise_arithmetic():
            return recalibrate(self._plain, self._risk._network.parameters_at(theta), self._calibration)

    @torch.no_grad()
    def __call__(self, theta: Tensor, buffers: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return per-example values (M,) float64 on the device: loss, own_loss where it differs, error and margin.

        Parameters
        ----------
        theta
            The point (n,), in the risk's dtype.
        buffers
            Those of :meth:`buffers_at`; by default the risk's own.
        """
        with precise_arithmetic(), plain_checkpointing():
            _place(self._tensors(theta, buffers), self._pairs, self._targets)
            run = self._replayed or self._forward
            parts = [run(self._read(k), self.labels[rows]) for k, rows in enumerate(self._chunks)]
        values = torch.cat(parts, 1)
        return dict(zip(self.names, values))

    @property
    def names(self) -> tuple[str, ...]:
        """What is evaluated: ``loss`` (plain cross-entropy), ``own_loss`` unless it is that, ``error``, ``margin``."""
        return tuple(name for name in QUANTITIES if name != "own_loss" or self._risk.loss_name != "ce")

    def _forward(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """Return (quantities, rows) float64."""
        logits = logits_in(call_with(self._folded, inputs), self._risk._network.output).to(self._risk.dtype)
        plain = cross_entropy(logits, labels).double()
        own = logits.gather(1, labels[:, None])[:, 0]
        others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        margin = (own - others).double()
        # An answer is wrong unless the class's logit is the first largest one, as argmax has it.
        wrong = (logits.argmax(1) != labels).double()
        rows = {"loss": plain, "error": torch.where(plain.isnan(), plain, wrong), "margin": margin}
        if self._risk.loss_name != "ce":
            rows["own_loss"] = losses_of(self._risk.loss, logits, labels, self._risk.loss_name).double()
        return torch.stack([rows[name] for name in self.names])


@torch.no_grad()
def _place(tensors: dict[str, Tensor], pairs: Sequence[Pair], targets: dict[str, Tensor]) -> None:
    """Write the weights of a point into a module's own tensors, in place."""
    values = dict(tensors)
    for pair in pairs:
        weight, bias = pair.weights(tensors)
        values[f"{pair.convolution}.weight"], values[f"{pair.convolution}.bias"] = weight, bias
    names = [name for name in targets if name in values]
    torch._foreach_copy_([targets[name] for name in names], [values[name] for name in names])


def _laid_out(inputs: Inputs, dtype: torch.dtype, is_2d: bool) -> Inputs:
    def lay(tensor: Tensor) -> Tensor:
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        return tensor.contiguous(memory_format=torch.channels_last) if is_2d and tensor.dim() == 4 else tensor

    return {name: lay(t) for name, t in inputs.items()} if isinstance(inputs, dict) else lay(inputs)


def _even(num: int, size: int) -> Iterator[slice]:
    """Yield ranges of at most ``size`` that cover ``num`` rows evenly: no tiny last one."""
    pieces = -(-num // size)
    edges = [num * k // pieces for k in range(pieces + 1)]
    yield from (slice(*pair) for pair in itertools.pairwise(edges))


class _LargestOutput(TorchDispatchMode):
    """Sees every operation and keeps the bytes per row of the largest result that has one row per example."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self._num = num
        self.bytes_per_row = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dim() > 1 and out.shape[0] == self._num:
            self.bytes_per_row = max(self.bytes_per_row, out.numel() * out.element_size() // self._num)
        return out


@dataclass(frozen=True)
class ClassSums:
    """Sums over the examples of each class, in float64 and in a fixed order."""

    offsets: Tensor  # (K + 1,) where the evaluated classes begin
    index: tuple[int, ...]  # which of the C classes they are
    num_classes: int

    @classmethod
    def of(cls, evaluator: PointEvaluator, num_classes: int) -> ClassSums:
        """Return the sums over an evaluator's rows."""
        counts = torch.bincount(evaluator.labels.cpu(), minlength=num_classes)[list(evaluator.classes)]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        return cls(offsets.to(evaluator.device), evaluator.classes, num_classes)

    def means(self, values: Tensor) -> Tensor:
        """Return (Q, C) float64 means of values (Q, M), NaN for classes without examples."""
        sums = torch.segment_reduce(values.T.contiguous(), "sum", offsets=self.offsets, axis=0).T
        out = torch.full((len(values), self.num_classes), torch.nan, dtype=torch.float64, device=values.device)
        out[:, list(self.index)] = sums / self.offsets.diff()
        return out
