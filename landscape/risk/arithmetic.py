"""The arithmetic in which a risk is evaluated: full precision, twice differentiable, whatever the caller has set."""

from __future__ import annotations

import importlib
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def _precision_switches() -> list[Any]:
    """Return the objects whose ``fp32_precision`` decides about TF32 and bfloat16 in products of float32."""
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    owners = [(torch.backends.cuda, "matmul"), (cudnn, "conv"), (cudnn, "rnn")]
    owners += [(mkldnn, "matmul"), (mkldnn, "conv"), (mkldnn, "rnn")]
    return [getattr(owner, name) for owner, name in owners if hasattr(owner, name)]


@contextmanager
def _full_precision() -> Iterator[None]:
    # PyTorch has an old and a new interface to the same settings and raises where they disagree, so both are set, the
    # old one first, and both are put back; what cannot be read because the caller mixed them is left to the new one.
    old: list[tuple[Callable[[Any], None], Any]] = []
    with suppress(RuntimeError):
        old.append((torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()))
    with suppress(RuntimeError):
        old.append((partial(setattr, torch.backends.cudnn, "allow_tf32"), torch.backends.cudnn.allow_tf32))
    switches = _precision_switches()
    new = [switch.fp32_precision for switch in switches]
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for put_back, value in old:
            put_back(value)
        for switch, precision in zip(switches, new):
            switch.fp32_precision = precision


@contextmanager
def precise_arithmetic() -> Iterator[None]:
    """Give deterministic, full-precision kernels that can be differentiated twice, and put the settings back after.

    TF32 noise (about 1e-3) would swamp a ratio |lambda_min| / lambda_max of 0.01, and so would the bfloat16 products
    of autocast or of a lowered matmul precision; the fused attention kernels have no second derivative.
    """
    cudnn, attention = torch.backends.cudnn, torch.backends.mha
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    has_fast_path = attention.get_fastpath_enabled()
    try:
        cudnn.benchmark, cudnn.deterministic = False, True
        # The fast path is taken without gradients only, and gives other outputs at masked positions.
        attention.set_fastpath_enabled(False)
        with (
            _full_precision(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = benchmark, deterministic
        attention.set_fastpath_enabled(has_fast_path)


@contextmanager
def differentiation() -> Iterator[None]:
    """Give precise arithmetic that records graphs, also where the caller has switched gradients off."""
    with torch.inference_mode(False), torch.enable_grad(), precise_arithmetic():
        yield


@cache
def load_forward_mode() -> None:
    """Do once what the first dual number does: compile formulas, by an interface of which PyTorch itself warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch._decomp.decompositions_for_jvp")


@contextmanager
def created_in(dtype: torch.dtype) -> Iterator[None]:
    """Give what a model in float64 creates while it runs (a first hidden state, a grid) its dtype, where float32 is usual."""
    before = torch.get_default_dtype()
    if (before, dtype) != (torch.float32, torch.float64):
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Put the global random states of PyTorch, NumPy and Python back after, whatever was drawn."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the global state is the point
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def has_recurrence(model: nn.Module) -> bool:
    """Whether the model holds a recurrent layer with a fused kernel."""
    return any(isinstance(layer, nn.RNNBase) for layer in model.modules())


@contextmanager
def plain_recurrence() -> Iterator[None]:
    """Run recurrent layers step by step: cuDNN's have no second derivative, oneDNN's no forward derivative.

    It is enough around the forward pass, which chooses the kernels of the backward passes too.
    """
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    enabled = cudnn.enabled, mkldnn.enabled
    try:
        cudnn.enabled, mkldnn.enabled = False, False
        yield
    finally:
        cudnn.enabled, mkldnn.enabled = enabled


@contextmanager
def plain_checkpointing() -> Iterator[None]:
    """Let ``torch.utils.checkpoint`` keep what it would recompute.

    It would recompute with the weights that the module holds then, not those at which the loss was evaluated, and in
    its re-entrant form it has no second derivative. Chunks bound the memory here.
    """
    module = torch.utils.checkpoint
    plain = {
        "_checkpoint_without_reentrant_generator": _keeping_everything,
        "_checkpoint_without_reentrant_generator_impl": _keeping_everything,  # its name from 2.15 on
        "CheckpointFunction": _KeepingEverything,
    }
    own = {name: getattr(module, name) for name in plain if hasattr(module, name)}
    try:
        for name in own:
            setattr(module, name, plain[name])
        yield
    finally:
        for name, value in own.items():
            setattr(module, name, value)


def _keeping_everything(*_: Any, **__: Any) -> Iterator[None]:
    yield


class _KeepingEverything:
    @staticmethod
    def apply(function: Callable[..., Any], _: bool, *args: Any) -> Any:
        return function(*args)
