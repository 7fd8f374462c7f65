"""The published plots by name: what each imitates, what of it is public, and what is ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from landscape.reconstruction import plots
from landscape.reconstruction.plots import DEFAULT_POINTS, NUM_LINES, NUM_RANDOM, RADII, Made, Settings
from landscape.risk import ClassRisk


@dataclass(frozen=True)
class Reconstruction:
    """One published plot.

    Attributes
    ----------
    imitates, paper
        The plot and where it was published.
    public
        What is known of how it was made.
    ours
        What is not, and what we do instead; every figure and caption says so.
    title
        The short form of both, "Reconstruction of ...: ... ours".
    make
        Measures named risks and draws the figures.
    num_evaluations
        Of one checkpoint, from the points per axis that were asked for.
    """

    imitates: str
    paper: str
    public: str
    ours: str
    title: str
    make: Callable[[Mapping[str, ClassRisk], Settings], Made]
    num_evaluations: Callable[[int | None], int]


RECONSTRUCTIONS: dict[str, Reconstruction] = {
    "ccsam-fluctuation": Reconstruction(
        imitates="the loss of a trained model that is perturbed at random five times, ERM beside LDAM-DRW, MiSLAS and GCL",
        paper="Zhou et al., Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed Recognition, CVPR 2023",
        public="five random perturbations of each model; no code, no scale and no loss were published. A configuration key "
        "that nothing reads says 'gaussian, variance 1e-3'",
        ours="draws: Gaussian of variance 1e-3 on every weight, and filter-normalised of relative radius 0.05, 0.1 and 0.2; "
        "plain cross-entropy for all models, because the own losses of LDAM and GCL (scale 30) fluctuate more by their "
        "scale alone, and the own loss beside it; five draws as points, their mirror images in the results",
        title="Reconstruction of CC-SAM's five random perturbations: draws, scale and loss are ours",
        make=plots.fluctuation,
        num_evaluations=lambda points: 2 * NUM_RANDOM * (len(RADII) + 1),
    ),
    "ccsam-line": Reconstruction(
        imitates="the one-dimensional local loss landscape beside those perturbations",
        paper="Zhou et al., Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed Recognition, CVPR 2023",
        public="that it is one-dimensional; no code, direction, range or loss were published",
        ours="filter-normalised random directions (Li et al., NeurIPS 2018), 51 points of [-1, 1], plain cross-entropy for "
        "all models and the own loss beside it, five directions for the spread, BatchNorm as stated, no augmentation",
        title="Reconstruction of CC-SAM's 1-D loss landscape: direction, range and loss are ours",
        make=plots.line,
        num_evaluations=lambda points: NUM_LINES * (points or DEFAULT_POINTS["line"]),
    ),
    "gnm-surface": Reconstruction(
        imitates="the loss surfaces of CE, CE+SAM and CE+GNM from the side and, in bands, from the top",
        paper="Li et al., Improving Visual Prompt Tuning by Gaussian Neighborhood Minimization for Long-Tailed Visual "
        "Recognition, NeurIPS 2024, figures 1 and 3 beside the released code (ViT-B/16, CIFAR-100-LT)",
        public="the figures, no script; their make matches tomgoldstein/loss-landscape with x = y = -1:1:51, weights, filter "
        "normalisation, biases and normalisation layers ignored",
        ours="grid and normalisation of that tool; plain cross-entropy, no fresh noise or augmentation per grid point (the "
        "published contours are ragged), one scale of bands for all models, the same draws for all, and a panel relative "
        "to the loss at the weights, because lower is not flatter; tensors of more than two dimensions are normalised "
        "along their first",
        title="Reconstruction of GNM's loss surfaces: objective, bands and directions are ours",
        make=plots.gnm_surface,
        num_evaluations=lambda points: (points or DEFAULT_POINTS["plane"]) ** 2,
    ),
    "imbsam-head-tail": Reconstruction(
        imitates="loss surfaces in space of head and tail classes under SGD, SAM and ImbSAM",
        paper="Zhou et al., ImbSAM: A Closer Look at Sharpness-Aware Minimization in Class-Imbalanced Recognition, ICCV 2023",
        public="a stylised figure; no code of it, and no statement of axes, range or loss",
        ours="all: filter-normalised random plane on [-1, 1], plain cross-entropy pooled over the images of the head and of "
        "the tail classes, one scale for all models, absolute and relative to the weights",
        title="Reconstruction of ImbSAM's head and tail surfaces: everything measured is ours",
        make=plots.head_tail_3d,
        num_evaluations=lambda points: (points or DEFAULT_POINTS["head and tail"]) ** 2,
    ),
    "focal-sam-head-tail": Reconstruction(
        imitates="contours of the loss of head and tail classes",
        paper="Li et al., Focal-SAM: Focal Sharpness-Aware Minimization for Long-Tailed Classification, ICML 2025, figure 1",
        public="the figure; no code of it",
        ours="filter-normalised random plane on [-1, 1], plain cross-entropy pooled over the images of the head and of the "
        "tail classes, one colour scale for all models, absolute and relative to the weights",
        title="Reconstruction of Focal-SAM's head and tail contours: plane, range, loss are ours",
        make=plots.head_tail_contours,
        num_evaluations=lambda points: (points or DEFAULT_POINTS["head and tail"]) ** 2,
    ),
}
