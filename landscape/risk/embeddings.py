"""Embeddings that are differentiated twice: PyTorch's bags have no second derivative, its sparse gradients no sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from landscape.errors import LandscapeError


def has_special_embeddings(model: nn.Module) -> bool:
    """Whether the model holds embeddings whose gradient is not an ordinary dense one."""
    return any(
        isinstance(layer, nn.EmbeddingBag)
        or (isinstance(layer, nn.Embedding) and (layer.sparse or layer.scale_grad_by_freq))
        for layer in model.modules()
    )


def _embedding(
    input: Tensor,  # the ordinary function's keyword
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    return functional.embedding(input, weight, padding_idx, max_norm, norm_type)


def _embedding_bag(
    input: Tensor,  # the ordinary function's keyword
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """The sum, mean or maximum of the rows of each bag (B, L); entries that pad count nowhere."""
    if input.dim() != 2 or offsets is not None:
        raise LandscapeError(
            "an EmbeddingBag got its bags one after the other (offsets), which has no second derivative in PyTorch: feed it "
            "(batch, length) numbers, padded to one length (padding_idx)"
        )
    rows = functional.embedding(input, weight, padding_idx)  # (B, L, features)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[..., None].to(rows.dtype)
    counts = torch.ones_like(input) if padding_idx is None else (input != padding_idx % len(weight)).to(input.dtype)
    if mode == "max":
        highest = rows.masked_fill(counts[..., None] == 0, -torch.inf).amax(1)
        return highest.masked_fill(counts.sum(1, keepdim=True) == 0, 0.0)
    total = (rows * counts[..., None].to(rows.dtype)).sum(1)
    return total if mode == "sum" else total / counts.sum(1, keepdim=True).clamp_min(1).to(rows.dtype)


REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.embedding: _embedding,
    functional.embedding_bag: _embedding_bag,
}


class PlainEmbeddings(TorchFunctionMode):
    """While active, embeddings and their bags are made of operations with dense derivatives of every order.

    The same values, and the derivative of the loss: where PyTorch's divides rows by how often they are used
    (``scale_grad_by_freq``), that is a rule of training, left out here.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))
