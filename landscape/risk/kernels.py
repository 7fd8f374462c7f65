"""Convolutions and batch norms whose second backward pass costs what it must."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from landscape.risk.formulas import FORMULAS, over_channels
from landscape.risk.likelihoods import LIKELIHOODS

aten = torch.ops.aten

# Stride, padding, dilation and groups of a convolution.
Geometry = tuple[list[int], list[int], list[int], int]


def _convolve(inputs: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    return aten.convolution(inputs, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)


def _convolve_backward(
    gradient: Tensor, inputs: Tensor, weight: Tensor, geometry: Geometry, mask: Sequence[bool]
) -> list[Tensor | None]:
    stride, padding, dilation, groups = geometry
    return aten.convolution_backward(
        gradient,
        inputs,
        weight,
        [weight.shape[0]] if mask[2] else None,
        stride,
        padding,
        dilation,
        False,
        [0] * len(stride),
        groups,
        list(mask),
    )


def _add(a: Tensor | None, b: Tensor) -> Tensor:
    if a is None:
        return b
    return a + b if torch.is_grad_enabled() else a.add_(b)  # both are fresh


def _dense(tensor: Tensor) -> Tensor:
    """Return images as the CPU's kernels read them without reordering: channels last.

    Other tensors of one example are made contiguous: where the gradient lies otherwise than the inputs, PyTorch's batch
    norm takes one for the other and gives a wrong gradient.
    """
    if tensor.device.type != "cpu":
        return tensor
    if tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.contiguous() if tensor.shape[0] == 1 else tensor


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.geometry = geometry
        return _convolve(inputs, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mask = ctx.needs_input_grad[:3]
        gradient = _dense(gradient)
        if torch.is_grad_enabled():
            parts = _ConvolutionBackward.apply(gradient, *ctx.saved_tensors, ctx.geometry, mask)
        else:
            inputs, weight = ctx.saved_tensors
            parts = _convolve_backward(gradient, inputs, weight, ctx.geometry, mask)
        return (*(part if needed else None for part, needed in zip(parts, mask)), None)


class _ConvolutionBackward(torch.autograd.Function):
    """The first backward pass; its own is four plain convolution kernels, none over swapped axes."""

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, inputs: Tensor, weight: Tensor, geometry: Geometry, mask: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, inputs, weight)
        ctx.geometry = geometry
        return tuple(_convolve_backward(gradient, inputs, weight, geometry, mask))

    @staticmethod
    def backward(
        ctx: Any, to_inputs: Tensor | None, to_weight: Tensor | None, to_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        gradient, inputs, weight = ctx.saved_tensors
        need_gradient, need_inputs, need_weight = ctx.needs_input_grad[:3]
        first = second = third = None
        if to_inputs is not None:
            to_inputs = _dense(to_inputs)
            if need_gradient:
                first = _convolve(to_inputs, weight, None, ctx.geometry)
            if need_weight:
                third = _convolve_backward(gradient, to_inputs, weight, ctx.geometry, (False, True, False))[1]
        if to_weight is not None:
            if need_gradient:
                first = _add(first, _convolve(inputs, to_weight, None, ctx.geometry))
            if need_inputs:
                second = _convolve_backward(gradient, inputs, to_weight, ctx.geometry, (True, False, False))[0]
        if to_bias is not None and need_gradient:
            spread = to_bias.view(-1, *[1] * (gradient.dim() - 2))
            first = _add(first, spread.expand_as(gradient))
        return first, second, third, None, None


def _normalise_backward(
    gradient: Tensor, inputs: Tensor, scale: Tensor, mean: Tensor, variance: Tensor, eps: float, mask: Sequence[bool]
) -> list[Tensor | None]:
    empty = mean.new_empty(0)
    return aten.native_batch_norm_backward(
        gradient, inputs, scale, mean, variance, empty, empty, False, eps, list(mask)
    )


class _Normalisation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(inputs, scale, mean, variance)
        ctx.eps = eps
        return aten.native_batch_norm(inputs, scale, shift, mean, variance, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mask = ctx.needs_input_grad[:3]
        inputs, scale, mean, variance = ctx.saved_tensors
        gradient = _dense(gradient)
        run = _NormalisationBackward.apply if torch.is_grad_enabled() else _normalise_backward
        parts = run(gradient, inputs, scale, mean, variance, ctx.eps, mask)
        return (*(part if needed else None for part, needed in zip(parts, mask)), None, None, None)


class _NormalisationBackward(torch.autograd.Function):
    """dx = g s / sigma, ds = sum g (x - mean) / sigma, dt = sum g; its own backward reuses the two fused kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        inputs: Tensor,
        scale: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        mask: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, inputs, scale, mean, variance)
        ctx.eps = eps
        return tuple(_normalise_backward(gradient, inputs, scale, mean, variance, eps, mask))

    @staticmethod
    def backward(
        ctx: Any, to_inputs: Tensor | None, to_scale: Tensor | None, to_shift: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        gradient, inputs, scale, mean, variance = ctx.saved_tensors
        need_gradient, need_inputs, need_scale = ctx.needs_input_grad[:3]
        first = second = third = None
        zero = torch.zeros_like(mean)
        if need_gradient and (to_scale is not None or to_shift is not None):
            # sum over what x is multiplied with: the same affine map with other coefficients
            own_scale = zero if to_scale is None else to_scale
            own_shift = zero if to_shift is None else to_shift
            first = aten.native_batch_norm(inputs, own_scale, own_shift, mean, variance, False, 0.0, ctx.eps)[0]
        if to_inputs is not None and need_gradient:
            to_inputs = _dense(to_inputs)
            slope = over_channels(scale * torch.rsqrt(variance + ctx.eps), inputs)
            first = to_inputs * slope if first is None else torch.addcmul(first, to_inputs, slope)
        wants_inputs = need_inputs and to_scale is not None
        if to_inputs is not None and need_scale:
            own_scale = zero if to_scale is None else to_scale
            mask = (wants_inputs, True, False)
            second, third, _ = _normalise_backward(gradient, to_inputs, own_scale, zero, variance, ctx.eps, mask)
        elif need_inputs and to_scale is not None:
            second, _, _ = _normalise_backward(
                gradient, inputs, to_scale, zero, variance, ctx.eps, (True, False, False)
            )
        return (first, second if wants_inputs else None, third, None, None, None, None)


class _LanesOfConvolutions(torch.autograd.Function):
    """Under vmap: the lanes' own weights as groups of one convolution, with the lanes' channels side by side."""

    generate_vmap_rule = False

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return _convolve(inputs, weight, bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
    ) -> tuple[Tensor, int]:
        stride, padding, dilation, groups = geometry
        size = info.batch_size
        weight = _lanes_first(weight, in_dims[1], size)
        bias = None if bias is None else _lanes_first(bias, in_dims[2], size).flatten()
        wide = (stride, padding, dilation, groups * size)
        out = _Convolution.apply(_side_by_side(inputs, in_dims[0], size), weight.flatten(0, 1), bias, wide)
        return out.unflatten(1, (size, -1)), 1


class _LanesOfNormalisations(torch.autograd.Function):
    """Under vmap: the lanes' channels side by side, each with its own coefficients."""

    generate_vmap_rule = False

    @staticmethod
    def forward(inputs: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
        return functional.batch_norm(inputs, mean, variance, scale, shift, False, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], inputs: Tensor, *others: Any) -> tuple[Tensor, int]:
        size = info.batch_size
        channels = [_lanes_first(t, dim, size).flatten() for t, dim in zip(others[:4], in_dims[1:5])]
        out = _Normalisation.apply(_side_by_side(inputs, in_dims[0], size), *channels, others[4])
        return out.unflatten(1, (size, -1)), 1


def _lanes_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _side_by_side(inputs: Tensor, dim: int | None, size: int) -> Tensor:
    """Return (rows, lanes * channels, ...)."""
    wide = inputs.unsqueeze(1).expand(-1, size, *inputs.shape[1:]) if dim is None else inputs.movedim(dim, 1)
    return _dense(wide.flatten(1, 2))


def _as_list(value: int | Sequence[int], length: int) -> list[int]:
    return [value] * length if isinstance(value, int) else list(value)


def _differentiates(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _under_transform() -> bool:
    """Whether vmap, jvp or grad of ``torch.func`` is at work: the autograd functions here know nothing of them."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def _over_lanes() -> bool:
    """Whether exactly one vmap is at work, and nothing else."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    is_map = len(stack) == 1 and stack[0].key() == torch._C._functorch.TransformType.Vmap
    return is_map and torch.autograd.forward_ad._current_level < 0


def _convolution(ordinary: Callable[..., Tensor], num_dims: int) -> Callable[..., Tensor]:
    def apply(
        input: Tensor,  # the ordinary function's keyword
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        plain = isinstance(padding, str) or input.dim() != num_dims + 2 or not weight.is_floating_point()
        over_lanes = _over_lanes()
        if plain or (not over_lanes and (_under_transform() or not _differentiates(input, weight, bias))):
            return ordinary(input, weight, bias, stride, padding, dilation, groups)
        geometry = (
            _as_list(stride, num_dims),
            _as_list(padding, num_dims),  # type: ignore[arg-type]
            _as_list(dilation, num_dims),
            groups,
        )
        if over_lanes:
            return _LanesOfConvolutions.apply(input, weight, bias, geometry)
        return _Convolution.apply(_dense(input), weight, bias, geometry)

    return apply


def _batch_norm(
    input: Tensor,  # the ordinary function's keyword
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    statistics = running_mean is not None and running_var is not None
    if training or not statistics or _differentiates(running_mean, running_var):
        return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    assert running_mean is not None  # narrowed above
    assert running_var is not None
    scale = torch.ones_like(running_mean) if weight is None else weight
    shift = torch.zeros_like(running_mean) if bias is None else bias
    if _over_lanes():
        return _LanesOfNormalisations.apply(input, scale, shift, running_mean, running_var, eps)
    if _under_transform():
        slope = scale * torch.rsqrt(running_var + eps)
        offset = shift - running_mean * slope
        return input * over_channels(slope, input) + over_channels(offset, input)
    if not _differentiates(input, scale, shift):
        return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _Normalisation.apply(_dense(input), scale, shift, running_mean, running_var, eps)


REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv1d: _convolution(torch.conv1d, 1),
    torch.conv2d: _convolution(torch.conv2d, 2),
    torch.conv3d: _convolution(torch.conv3d, 3),
    functional.batch_norm: _batch_norm,
    **FORMULAS,
    **LIKELIHOODS,
}


class TwiceDifferentiable(TorchFunctionMode):
    r"""While active, convolutions and evaluation-mode batch norms have cheap second derivatives.

    The ordinary second backward pass of a batch norm over running statistics differentiates a formula that was written
    for batch statistics: a third of a Hessian product of a residual network. Here it is what it is, an affine map

    .. math:: y = (x - \mu) s / \sigma + t

    with three fused kernels. The second backward of a convolution calls the kernels of the first with other operands,
    instead of convolutions over swapped axes, and images on a CPU are laid out channels last. Values and derivatives
    of every order are those of the ordinary functions to rounding. Whatever is not covered (training mode, no running
    statistics, padding by name) goes the ordinary way, so do convolutions under ``torch.func`` and forward-mode AD,
    where a batch norm becomes its affine map. Under one :func:`torch.func.vmap` alone, the mapped weights become the
    groups of one convolution. What PyTorch differentiates wrongly or once is its formula
    (:mod:`landscape.risk.formulas`). Likelihoods are those of :class:`landscape.risk.likelihoods.PreciseLikelihoods`.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))
