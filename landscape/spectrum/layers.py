"""Spectra of a lane's diagonal blocks, a layer each: where in the network the curvature sits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from landscape.layout import ParameterLayout
from landscape.randomness import stream
from landscape.results import Journal, keep_block, savable, versions
from landscape.risk import ClassRisk, GroupAverage, HessianProduct, LaneChoice, Lanes, ModelRisk, lanes_of
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.augmented import require_fixed
from landscape.risk.layers import layer_hessian
from landscape.spectrum.agreement import join_probes
from landscape.spectrum.extremes import find_extremes_of
from landscape.spectrum.lanczos import sphere
from landscape.spectrum.lane import ends_record, interval_record
from landscape.spectrum.options import SpectrumOptions
from landscape.spectrum.sampling import LEVEL, sample_densities

Progress = Callable[[int, int, str], None]
# Products with the block of some parameter tensors: (names, (P, n_block)) -> (P, n_block).
BlockProduct = Callable[[Sequence[str], Tensor], Tensor]

# What the engine of whole spectra records and a block has no use for: lists over ranks, and checks over classes.
LEFT_OUT = ("additivity_error",)


def layers_of(layout: ParameterLayout) -> dict[str, tuple[str, ...]]:
    """Return the parameter tensors of each layer, in the order of the layout.

    Examples
    --------
    >>> layers_of(ParameterLayout.of({"a.weight": torch.ones(1), "a.bias": torch.ones(1), "b.weight": torch.ones(1)}))
    {'a': ('a.weight', 'a.bias'), 'b': ('b.weight',)}
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, layer in zip(layout.names, layout.layers):
        found[layer] = (*found.get(layer, ()), name)
    return found


class BlockRisk:
    """A lane's risk as a function of some of its parameter tensors, the others held: what the eigensolvers ask for.

    Only the products differ from those of the whole risk; ``exact`` gives them in float64, from one graph for all
    blocks.
    """

    is_additive = False  # one lane, not its classes

    def __init__(
        self,
        risk: ClassRisk,
        names: Sequence[str],
        product: BlockProduct,
        exact: Callable[[], tuple[ClassRisk, BlockProduct]],
    ) -> None:
        self._risk, self._names, self._product, self._exact = risk, list(names), product, exact
        parts = risk.layout.named(risk.theta)
        self.theta = torch.cat([parts[name].reshape(-1) for name in names])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._risk, name)

    @contextmanager
    def hessian(self, theta: Tensor, weights: Tensor) -> Iterator[HessianProduct]:
        """Give the products (1, P, n_block) -> (1, P, n_block)."""
        yield lambda vectors, lanes=None: self._product(self._names, vectors[0])[None]

    def in_float64(self) -> BlockRisk:
        """Return the same block in float64."""
        risk, product = self._exact()
        return BlockRisk(risk, self._names, product, self._exact)


@contextmanager
def block_products(risk: ClassRisk, row: Tensor) -> Iterator[BlockProduct]:
    """Give products with the diagonal blocks of one lane's Hessian (weights ``row`` (C,)).

    A network's share the first backward pass (:func:`landscape.risk.layers.layer_hessian`); any other risk multiplies by
    its whole Hessian and keeps the block.
    """
    if isinstance(risk, ModelRisk):
        with layer_hessian(risk, risk.theta, row[None]) as product:
            yield product
        return
    numbers = risk.layout.named(torch.arange(len(risk.theta), device=risk.theta.device))
    with risk.hessian(risk.theta, row[None]) as whole:

        def restricted(names: Sequence[str], vectors: Tensor) -> Tensor:
            block = torch.cat([numbers[name].reshape(-1) for name in names])
            spread = vectors.new_zeros(len(vectors), len(risk.theta))
            spread[:, block] = vectors
            return whole(spread[None])[0][:, block]

        yield restricted


@savable
@precise_arithmetic()
def measure_layers(
    risk: ClassRisk,
    lanes: LaneChoice | None = None,
    *,
    options: SpectrumOptions | None = None,
    seed: int = 0,
    group_average: GroupAverage = "examples",
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    r"""Measure the spectrum of every layer's diagonal block of the Hessian, for each lane.

    A layer is the parameters that one module owns (weight and bias together; the pair of a BatchNorm layer is a layer of
    its own). For every block :math:`H_{ll}` an extreme run and deflated probes as in
    :func:`landscape.spectrum.measure.measure_spectrum`. By Cauchy's interlacing theorem
    :math:`\lambda_{\min}(H) \le \lambda_{\min}(H_{ll})` and :math:`\lambda_{\max}(H_{ll}) \le \lambda_{\max}(H)`: a layer
    whose own :math:`\lambda_{\min}` comes near the whole's holds the negative curvature by itself, and where none does it
    lies between layers. Traces add up to the trace of the whole.

    Parameters
    ----------
    risk, seed, group_average
        As for ``measure_spectrum``; streams are named by lane and layer.
    lanes
        Every class, every group and the whole by default.
    options
        Cost and thresholds, of every block by itself: ``budget`` is products with one block. One eigenpair at either end,
        no context.
    journal
        Where finished blocks are kept.
    progress
        Called as ``progress(done, total, text)`` after each block.

    Returns
    -------
    xarray.Dataset
        Over (lane, layer): ``lambda_min``, ``lambda_max`` with ``_residual`` and ``_error``, ``lambda_min_lower_bound``,
        ``trace``, ``negative_energy``, ``negative_mass`` with ``_stderr``, ``_low`` and ``_high``,
        ``index_lower_bound``, ``noise_floor``, ``precision_gap``, ``num_hvps`` (products with that block) and the errors
        of the operator's checks; over (layer): ``num_parameters``; over (lane): ``num_examples``.

    Raises
    ------
    LandscapeError
        For an unknown or empty lane, a product that is not finite, or an operator that is not one fixed symmetric matrix.

    Notes
    -----
    Blockwise spectra from one first backward pass: Zhang et al., *Why Transformers Need Adam: A Hessian Perspective*,
    NeurIPS 2024.
    """
    require_fixed(risk, "a spectrum per layer")
    chosen = lanes_of(risk, lanes, group_average=group_average)
    settings = replace(options or SpectrumOptions(), num_extremes=1, context=False)
    layers = layers_of(risk.layout)
    records: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for name, row in zip(chosen.names, chosen.weights):
        with _lane_blocks(risk, row) as block_of:
            for layer, parameters in layers.items():
                records[name, layer] = keep_block(
                    journal,
                    f"layers/lane={name}/layer={layer}",
                    lambda r=row, p=parameters, what=f"layers/{name}/{layer}": _measure_block(
                        block_of(p), r, settings, seed=seed, name=what
                    ),
                )
                if progress is not None:
                    progress(len(records), len(chosen) * len(layers), f"spectrum of {layer} for {name}")
    return _assemble(risk, chosen, layers, records).assign_attrs(
        {
            **risk.attributes,
            "kind": "layers",
            "seed": seed,
            "group_average": group_average,
            "normalization": "none: mean loss per lane, curvature per squared weight",
            "lower_bound_probability": 1 - settings.failure_probability,
            "interval_level": LEVEL,
            "num_parameters": len(risk.theta),
            "versions": versions(),
            **{f"option_{key}": value for key, value in asdict(settings).items()},
        }
    )


@contextmanager
def _lane_blocks(risk: ClassRisk, row: Tensor) -> Iterator[Callable[[Sequence[str]], BlockRisk]]:
    """Give the block risks of one lane; no graph is made before a product is asked for."""
    with ExitStack() as stack:
        opened: dict[bool, tuple[ClassRisk, BlockProduct]] = {}

        def products(in_float64: bool) -> tuple[ClassRisk, BlockProduct]:
            if in_float64 not in opened:
                which = risk.in_float64() if in_float64 else risk
                opened[in_float64] = which, stack.enter_context(block_products(which, row))
            return opened[in_float64]

        yield lambda names: BlockRisk(risk, names, products(False)[1], lambda: products(True))


def _measure_block(
    block: BlockRisk, row: Tensor, options: SpectrumOptions, *, seed: int, name: str
) -> dict[str, np.ndarray]:
    size, weights, where = len(block.theta), row[None], name.removeprefix("layers/")
    start = sphere(1, size, stream(seed, f"{name}/extremes"))
    density = None
    with block.hessian(block.theta, weights) as product:
        [extremes] = find_extremes_of(block, product, weights, start, names=[where], options=options)
        if options.until == "converged":
            generators = [lambda what: stream(seed, f"{name}/{what}")]
            [density] = sample_densities(block.theta, product, [extremes], options, generators)
            [extremes] = join_probes(block, product, weights, [extremes], [density], names=[where], options=options)
    out = {
        **ends_record(extremes),
        **interval_record(density),
        "num_hvps": extremes.num_hvps + (density.num_hvps if density is not None else 0),
    }
    values = {key: np.asarray(value) for key, value in out.items() if key not in LEFT_OUT}
    return {key: value for key, value in values.items() if value.ndim == 0}


def _assemble(
    risk: ClassRisk,
    lanes: Lanes,
    layers: dict[str, tuple[str, ...]],
    records: dict[tuple[str, str], dict[str, np.ndarray]],
) -> xr.Dataset:
    sizes = dict(zip(risk.layout.names, risk.layout.sizes))
    keys = next(iter(records.values())).keys()
    table = {key: [[records[lane, layer][key].item() for layer in layers] for lane in lanes.names] for key in keys}
    dataset = xr.Dataset({key: (("lane", "layer"), np.array(values)) for key, values in table.items()})
    dataset["num_parameters"] = ("layer", np.array([sum(sizes[name] for name in names) for names in layers.values()]))
    dataset["num_examples"] = ("lane", np.asarray(lanes.num_examples))
    for key in ("lambda_min", "lambda_max", "trace"):
        dataset[key].attrs["units"] = "loss per squared weight"
    return dataset.assign_coords(
        lane=list(lanes.names),
        lane_kind=("lane", list(lanes.kinds)),
        lane_group=("lane", list(lanes.groups)),
        layer=list(layers),
    )
