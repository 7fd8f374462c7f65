"""Figures of measured results: matplotlib for files, plotly for the page; they draw results and compute none."""

from __future__ import annotations

from landscape.figures.catalogue import CATALOGUE, Entry
from landscape.figures.escapes import plot_curvature_split, plot_escapes
from landscape.figures.flatness import plot_curvature_against_loss, plot_flatness
from landscape.figures.layers import plot_layers, plot_matched
from landscape.figures.overlaps import plot_layer_mass, plot_overlaps
from landscape.figures.perturbations import plot_fluctuation
from landscape.figures.saving import save_comparison_figures, save_figures
from landscape.figures.scores import plot_accuracy, plot_history
from landscape.figures.spectra import plot_spectrum, plot_spectrum_map
from landscape.figures.surfaces import plot_contours, plot_eigen_plane, plot_lines, plot_surface_3d
from landscape.figures.verdicts import plot_curvature_against_gradient, plot_verdicts

__all__ = [
    "CATALOGUE",
    "Entry",
    "plot_accuracy",
    "plot_contours",
    "plot_curvature_against_gradient",
    "plot_curvature_against_loss",
    "plot_curvature_split",
    "plot_eigen_plane",
    "plot_escapes",
    "plot_flatness",
    "plot_fluctuation",
    "plot_history",
    "plot_layer_mass",
    "plot_layers",
    "plot_lines",
    "plot_matched",
    "plot_overlaps",
    "plot_spectrum",
    "plot_spectrum_map",
    "plot_surface_3d",
    "plot_verdicts",
    "save_comparison_figures",
    "save_figures",
]
