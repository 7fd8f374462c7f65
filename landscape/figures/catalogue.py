"""Every figure that files and pages hold: its name, the results it needs, and one sentence on how to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from landscape.figures.differences import plot_difference
from landscape.figures.escapes import plot_curvature_split, plot_escape_matrix, plot_escapes
from landscape.figures.flatness import plot_curvature_against_loss, plot_flatness
from landscape.figures.layers import plot_layers, plot_matched
from landscape.figures.lines import plot_lines
from landscape.figures.overlaps import plot_layer_mass, plot_overlaps
from landscape.figures.perturbations import plot_fluctuation
from landscape.figures.planes import plot_contours, plot_eigen_plane, plot_surface_3d
from landscape.figures.quadratic import plot_quadratic
from landscape.figures.scores import plot_accuracy
from landscape.figures.sides import plot_batchnorm, plot_splits
from landscape.figures.spectra import plot_spectrum, plot_spectrum_map
from landscape.figures.verdicts import plot_curvature_against_gradient, plot_verdicts


@dataclass(frozen=True)
class Entry:
    """One figure: file name, group of the results, function and its options, and how to read it."""

    name: str
    group: str
    plot: Callable[..., Any]
    reading: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: str = ""  # a variable that not every result has
    single: bool = True  # for one checkpoint
    compared: bool = True  # for several on shared axes
    on_page: bool = True


_PLANE = (
    "Bowls around the cross are minima of that lane; a steep side means a nearby change of the weights costs a lot."
)

CATALOGUE: tuple[Entry, ...] = (
    Entry(
        "accuracy",
        "accuracy",
        plot_accuracy,
        "Higher is better; the gap between head and tail is the problem under study.",
    ),
    Entry(
        "accuracy-classes",
        "accuracy",
        plot_accuracy,
        "Classes from most to fewest training images.",
        {"lanes": "classes"},
        compared=False,
    ),
    Entry(
        "verdicts",
        "spectrum",
        plot_verdicts,
        "One row per class or group, one column per optimizer; the words are explained in the glossary.",
        on_page=False,
    ),
    Entry(
        "spectrum",
        "spectrum",
        plot_spectrum,
        "Mass left of zero is negative curvature; compare how far head and tail reach to either side, the "
        "bars on top give the ends "
        "with their residuals.",
    ),
    Entry(
        "spectrum-classes",
        "spectrum",
        plot_spectrum,
        "The same densities class by class, head first, on one scale.",
        {"lanes": "classes", "by": "lane"},
    ),
    Entry(
        "spectrum-map",
        "spectrum",
        plot_spectrum_map,
        "A row per class, head at the top: bright cells hold many eigenvalues, the triangle is λmin, the "
        "square is λmax.",
    ),
    Entry(
        "curvature-against-gradient",
        "spectrum",
        plot_curvature_against_gradient,
        "Negative curvature usually grows with the gradient, that is with how badly a class is fitted; only "
        "what lies off the line is "
        "a property of the optimizer.",
    ),
    Entry(
        "curvature-against-loss",
        "spectrum",
        plot_curvature_against_loss,
        "A class that is fitted with confidence is flat by that alone: compare classes and optimizers at equal loss, by "
        "their distance from the line.",
    ),
    Entry(
        "curvature-split",
        "spectrum",
        plot_curvature_split,
        "Blue is the curvature that the loss has through the network's first derivatives, rust the network's own: a "
        "saddle needs the second to win. An interval over images that reaches zero means that other images might "
        "not show it.",
        needs="gauss_newton_curvature",
        compared=False,
    ),
    Entry(
        "escapes",
        "spectrum",
        plot_escapes,
        "Read along a row: a way out for that lane is blue on its own column; red cells are what it costs the others. "
        "The right panel spends the same step on plain gradient descent.",
        needs="escape_along_v",
        compared=False,
    ),
    Entry(
        "overlaps",
        "spectrum",
        plot_overlaps,
        "Near 1: two lanes share the direction; near 0: each has its own. v_max usually follows a class's mean gradient.",
        needs="overlap_v_min",
        compared=False,
    ),
    Entry(
        "layer-mass",
        "spectrum",
        plot_layer_mass,
        "Bright cells are the layers whose weights the most negative direction moves.",
        needs="v_min_mass",
        compared=False,
    ),
    Entry(
        "layers",
        "layers",
        plot_layers,
        "Each layer's own block of the Hessian: a layer whose λmin comes near the whole's holds the negative curvature "
        "by itself; where none does, it lies between layers.",
        compared=False,
    ),
    Entry(
        "matched",
        "matched",
        plot_matched,
        "Every class on the same number of images: what still separates head from tail is not the sample size.",
        compared=False,
    ),
    Entry(
        "fluctuation",
        "perturbation",
        plot_fluctuation,
        "Each point is the change of the loss under one random change of the weights; wide clouds and high "
        "means are fragile classes, "
        "the bars below show the worst change found.",
    ),
    Entry(
        "fluctuation-gaussian",
        "perturbation",
        plot_fluctuation,
        "The same with plain Gaussian noise of a fixed size on every weight, not scaled to the filters.",
        {"variable": "gaussian_loss_increase"},
        needs="gaussian_loss_increase",
        on_page=False,
    ),
    Entry(
        "fluctuation-own-loss",
        "perturbation",
        plot_fluctuation,
        "The same with the loss that the model was trained on; its scale differs from cross-entropy.",
        {"variable": "own_loss_increase"},
        needs="own_loss_increase",
        compared=False,
        on_page=False,
    ),
    Entry(
        "escape-matrix",
        "escape",
        plot_escape_matrix,
        "Read along a row: blue under 'own' is a way out for that class; red further right is what it costs a group. "
        "The bars say how much it gains, against plain descent of the same length, and how far away that is.",
    ),
    Entry(
        "flatness",
        "flatness",
        plot_flatness,
        "Every measure in a panel of its own: compare lanes within a panel; where measures disagree about head and tail, "
        "flatness by itself says nothing.",
    ),
    Entry(
        "flatness-against-loss",
        "flatness",
        plot_curvature_against_loss,
        "The mean increase under noise against the loss it starts from: only what lies off the line can be called sharpness.",
        {"variable": "mean_increase"},
        needs="mean_increase",
    ),
    Entry(
        "lines",
        "surface_line",
        plot_lines,
        "The loss along straight lines through the weights (at 0); narrow valleys are sharp, the bands show "
        "how much directions, images and training seeds differ.",
    ),
    Entry(
        "lines-classes",
        "surface_line",
        plot_lines,
        "The same, a panel per class from head (blue) to tail (rust).",
        {"lanes": "classes"},
        compared=False,
    ),
    Entry(
        "lines-error",
        "surface_line",
        plot_lines,
        "The share of wrong answers along the same lines: what a change of the weights does to decisions.",
        {"variable": "error"},
        needs="error",
        on_page=False,
    ),
    Entry(
        "lines-margin",
        "surface_line",
        plot_lines,
        "The margin of the true class along the same lines; below zero most answers are wrong.",
        {"variable": "margin"},
        needs="margin",
        on_page=False,
    ),
    Entry(
        "lines-batchnorm",
        "surface_line",
        plot_batchnorm,
        "Left the network as it is deployed, right with its BatchNorm statistics recomputed at every point: what is lost "
        "on the left only is lost to stale statistics.",
        needs="recalibrated_loss",
    ),
    Entry(
        "lines-splits",
        "surface_line",
        plot_splits,
        "Left the images trained on, right images held out: a minimum of the first need not be one of the second.",
        needs="held_out_loss",
    ),
    Entry(
        "quadratic",
        "surface_line",
        plot_quadratic,
        "Dashed the parabola of the exact derivatives at the weights, dotted the one fitted within r: where they part, the "
        "Hessian at the weights says little about the loss at a distance.",
        needs="fitted_curvature",
        compared=False,
    ),
    Entry(
        "contours",
        "surface",
        plot_contours,
        _PLANE
        + " All surfaces share one colour scale; beside those of one checkpoint stand the standard error over images "
        "and the spread over direction pairs.",
        {"errors": None},
    ),
    Entry(
        "contours-relative",
        "surface",
        plot_contours,
        "The same minus the loss at the weights: shape alone, without the level.",
        {"relative": True},
        on_page=False,
    ),
    Entry(
        "contours-error",
        "surface",
        plot_contours,
        "The share of wrong answers on the same plane.",
        {"variable": "error", "errors": None},
        needs="error",
        on_page=False,
    ),
    Entry(
        "contours-margin",
        "surface",
        plot_contours,
        "The margin of the true class on the same plane; below zero most answers are wrong.",
        {"variable": "margin", "errors": None},
        needs="margin",
        on_page=False,
    ),
    Entry(
        "contours-batchnorm",
        "surface",
        plot_batchnorm,
        "Left the network as it is deployed, right with its BatchNorm statistics recomputed at every point.",
        needs="recalibrated_loss",
    ),
    Entry(
        "contours-splits",
        "surface",
        plot_splits,
        "Left the images trained on, right images held out, on one scale.",
        needs="held_out_loss",
    ),
    Entry(
        "surface-3d",
        "surface",
        plot_surface_3d,
        "The same planes in space; drag to turn them. Heights share one scale.",
    ),
    Entry(
        "eigen-plane",
        "surface_eigen",
        plot_eigen_plane,
        "The plane of most negative and most positive curvature of one lane: if the loss falls along the "
        "horizontal axis while the "
        "other lanes hardly change, there is a way out that random planes do not show.",
        {"errors": None},
    ),
    Entry(
        "difference",
        "surface_difference",
        plot_difference,
        "Blue: the first checkpoint's loss is lower there; cells with a stroke are open, their interval contains zero.",
        needs="loss_difference",
        compared=False,
    ),
    Entry(
        "difference-lines",
        "surface_line_difference",
        plot_difference,
        "Below zero the first checkpoint's loss is lower; strokes mark where the interval contains zero.",
        needs="loss_difference",
        compared=False,
    ),
)

# Headings of a page, by the group of the results.
SECTIONS = {
    "accuracy": "Accuracy",
    "spectrum": "Curvature",
    "layers": "Curvature layer by layer",
    "matched": "Curvature on equally many images",
    "perturbation": "Random and worst-case changes of the weights",
    "escape": "Ways out",
    "flatness": "Flatness",
    "surface_line": "Lines through the weights",
    "surface": "Planes through the weights",
    "surface_eigen": "The plane of extreme curvature",
    "surface_difference": "Differences of two checkpoints",
    "surface_line_difference": "Differences of two checkpoints",
}


def available(results: Mapping[str, xr.DataTree], entry: Entry) -> dict[str, xr.Dataset]:
    """Return ``{name: Dataset}`` for the results that hold what the figure needs; a plane one point wide is none."""
    found = {}
    for name, tree in results.items():
        if entry.group in tree.children:
            dataset = tree[entry.group].to_dataset()
            is_narrow = "beta" in dataset.dims and min(dataset.sizes["beta"], dataset.sizes.get("alpha", 0)) < 2
            if dataset.data_vars and not is_narrow and (not entry.needs or entry.needs in dataset):
                found[name] = dataset
    return found
