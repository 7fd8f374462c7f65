"""Figures of measured results: matplotlib for files, plotly for the page; they draw results and compute none."""

from __future__ import annotations

from landscape.figures.catalogue import CATALOGUE, Entry
from landscape.figures.differences import plot_difference
from landscape.figures.drawing import drawn_at
from landscape.figures.escapes import plot_curvature_split, plot_escape_matrix, plot_escapes
from landscape.figures.flatness import plot_curvature_against_loss, plot_flatness
from landscape.figures.layers import plot_layers, plot_matched
from landscape.figures.lines import plot_lines
from landscape.figures.overlaps import plot_layer_mass, plot_overlaps
from landscape.figures.perturbations import plot_fluctuation
from landscape.figures.planes import plot_contours, plot_eigen_plane, plot_surface_3d
from landscape.figures.quadratic import evaluate_quadratic, plot_quadratic
from landscape.figures.saving import save_comparison_figures, save_figures
from landscape.figures.scores import plot_accuracy, plot_history
from landscape.figures.sides import plot_batchnorm, plot_splits
from landscape.figures.spectra import plot_spectrum, plot_spectrum_map
from landscape.figures.verdicts import plot_curvature_against_gradient, plot_verdicts
from landscape.figures.views import views

__all__ = [
    "CATALOGUE",
    "Entry",
    "drawn_at",
    "evaluate_quadratic",
    "plot_accuracy",
    "plot_batchnorm",
    "plot_contours",
    "plot_curvature_against_gradient",
    "plot_curvature_against_loss",
    "plot_curvature_split",
    "plot_difference",
    "plot_eigen_plane",
    "plot_escape_matrix",
    "plot_escapes",
    "plot_flatness",
    "plot_fluctuation",
    "plot_history",
    "plot_layer_mass",
    "plot_layers",
    "plot_lines",
    "plot_matched",
    "plot_overlaps",
    "plot_quadratic",
    "plot_spectrum",
    "plot_spectrum_map",
    "plot_splits",
    "plot_surface_3d",
    "plot_verdicts",
    "save_comparison_figures",
    "save_figures",
    "views",
]
