"""How the network of a run is executed: memory layout, compilation, synchronised normalisation.

Rules decide, never timing, so that a run and its continuation compute with the same kernels.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from landscape.errors import LandscapeError
from landscape.threads import SMALL_BATCH

BACKEND = "inductor"
MOST_PARTS = 256


def lay_out(model: nn.Module, *, num_inputs: int, device: torch.device, precision: str) -> nn.Module:
    """Return the model with the weights of 2-D convolutions in the layout in which its batches are fastest.

    Channels last: on a CPU where a batch has ``SMALL_BATCH`` numbers or more, on a GPU in half precision. Activations
    follow the weights, in training and in evaluation; checkpoints are stored contiguously.
    """
    has_convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
    is_faster = num_inputs >= SMALL_BATCH if device.type == "cpu" else precision != "float32"
    if has_convolutions and is_faster:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def compile_network(model: nn.Module, head: nn.Module | None, device: torch.device) -> None:
    """Let ``torch.compile`` run the model from now on, in place: the names in its state dict stay.

    Parameters
    ----------
    model
        The network.
    head
        A module whose calls somebody watches, which a compiled network would hide: the parts without it are compiled
        one by one. None: the network as a whole.
    device
        Where it runs.

    Raises
    ------
    LandscapeError
        If nothing can compile here.
    """
    _require_compiler(device)
    for part in [model] if head is None else _parts_without(model, head):
        # Module.compile leaves modules alone whose forward is torch's own (Linear, Sequential): our function does not.
        part._compiled_call_impl = torch.compile(_call_of(part), backend=BACKEND)


def _call_of(module: nn.Module) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        return module._call_impl(*args, **options)

    return call


def _parts_without(model: nn.Module, head: nn.Module) -> list[nn.Module]:
    if model is head:
        return []
    parts: list[nn.Module] = []
    for child in model.children():
        holds_head = any(module is head for module in child.modules())
        parts += _parts_without(child, head) if holds_head else [child]
    return parts


def _require_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise LandscapeError(
                "cannot compile for a GPU: triton is not installed; install it, or leave out --compile"
            )
        return
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else ["g++", "clang++", "c++", "cl"])):
        raise LandscapeError(
            f"cannot compile for a CPU: no C++ compiler found ({named or 'g++, clang++'}); "
            "install one, name it in CXX, or leave out --compile"
        )


@contextmanager
def compiling(is_compiled: bool) -> Iterator[None]:
    """Train with a compiled network inside: several backward passes may go through one graph."""
    if not is_compiled:
        yield
        return
    from torch._functorch import config  # the one switch for it; the error message of torch names it

    # Parts of a network that are compiled one by one count as recompilations of one function.
    with config.patch(donated_buffer=False), torch._dynamo.config.patch(recompile_limit=MOST_PARTS):
        try:
            yield
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().splitlines()[0]
            raise LandscapeError(f"the network cannot be compiled here ({reason}): leave out --compile") from error


def run_eagerly(is_wanted: bool = True) -> AbstractContextManager[Any]:
    """Run compiled networks uncompiled inside."""
    return torch.compiler.set_stance("force_eager") if is_wanted else nullcontext()
