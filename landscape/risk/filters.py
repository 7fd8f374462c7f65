"""What counts as one filter in every parameter tensor of a network, also where there is no convolution."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd

from landscape.directions import FilterDims
from landscape.models import NormedLinear

NORMALISATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Modules whose matrices and kernels are (out, ...): one filter per row of dimension 0.
ROW_MODULES = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
)
# The free tensors of relative positions are tables (positions, heads), as in Swin and BEiT.
POSITION_TABLE = re.compile(r"(relative_position_bias|rel_pos_bias|bias)_table$")
PARAMETRISED = re.compile(r"(?:^|(?<=\.))parametrizations\.(\w+)\.original(\d*)$")


def filter_dims_of(module: nn.Module) -> dict[str, FilterDims]:
    r"""Return for every parameter the dimension (or dimensions) that number its filters; the norm runs over the others.

    ============================================================  ===========================  =========================
    tensor                                                        one filter is                dimensions
    ============================================================  ===========================  =========================
    convolution, linear (packed attention, recurrent, patches)    the weights of one output    0
    transposed convolution (in, out / groups, ...)                the weights of one output;   1; (0, 1)
                                                                  with groups one kernel
    cosine head (features, classes)                               the weights of one class     1
    embedding (entries, d)                                        the vector of one entry      0
    prompts, class token, position embedding (..., tokens, d)     the vector of one token      all but the last
    table of relative positions (positions, heads)                the column of one head       1
    BatchNorm, LayerNorm, GroupNorm, RMSNorm, biases, free        nothing: a shift or scale,   ()
    tensors (..., 1) like layer scale, weight norm's g           unmoved by default           (0 if one-dimensional)
    ============================================================  ===========================  =========================

    A tensor's owner decides where its type is known; free parameters of other modules are judged by their shape: at most
    one dimension is a shift or scale, two are rows, three and more are vectors of tokens along the last dimension, unless
    the parameter is called ``weight`` and has four or more, which is a kernel. So prompts (layers, tokens, d), which the
    code of Li et al. would rescale per *layer* along dimension 0, are rescaled per token, and a position embedding
    (1, tokens, d) is not taken for a single filter.

    Parameters
    ----------
    module
        The network; tied parameters are judged where they first occur.

    Returns
    -------
    dict
        From parameter name to a dimension, a tuple of dimensions, or ().

    Examples
    --------
    >>> filter_dims_of(nn.TransformerEncoderLayer(4, 1))["self_attn.in_proj_weight"]  # (12, 4): one row per output
    0
    >>> filter_dims_of(nn.LayerNorm((2, 3)))["weight"]
    ()
    """
    owners, named = dict(module.named_modules()), dict(module.named_parameters())
    return {name: _filter_dims(name, parameter, owners, named) for name, parameter in named.items()}


def _filter_dims(
    name: str, parameter: Tensor, owners: Mapping[str, nn.Module], named: Mapping[str, Tensor]
) -> FilterDims:
    if parameter.dim() <= 1:
        return 0
    found = PARAMETRISED.search(name)
    path = name[: found.start()] + found[1] if found else name
    prefix, _, local = path.rpartition(".")
    if _is_magnitude(name, found, named):
        return ()
    owner, local = owners[prefix], re.sub(r"_(v|orig)$", "", local)
    if isinstance(owner, NORMALISATIONS):
        return ()
    if isinstance(owner, NormedLinear):
        return 1
    if isinstance(owner, _ConvTransposeNd):
        return 1 if owner.groups == 1 else (0, 1)
    if isinstance(owner, ROW_MODULES):
        return 0
    return _by_shape(local, parameter)


def _is_magnitude(name: str, found: re.Match[str] | None, named: Mapping[str, Tensor]) -> bool:
    """Whether this is weight normalisation's g, in torch's present form or its former."""
    if found is not None:
        return found[2] == "0" and name[:-1] + "1" in named
    return name.endswith("_g") and name[:-1] + "v" in named


def _by_shape(name: str, parameter: Tensor) -> FilterDims:
    if parameter.shape[-1] == 1 and not (name == "weight" and parameter.dim() >= 4):
        return ()
    if parameter.dim() == 2:
        return 1 if POSITION_TABLE.search(name) else 0
    if name == "weight" and parameter.dim() >= 4:
        return 0
    return tuple(range(parameter.dim() - 1))
