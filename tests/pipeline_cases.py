"""The main job at a tenth of its size, and how its folders are read."""

from __future__ import annotations

from landscape import pipeline
from landscape.flatness import FlatnessOptions
from landscape.perturbation import PerturbationOptions
from landscape.pipeline import AnalysisSpec, RunSpec
from landscape.plan import Plan
from landscape.results import load_results
from landscape.spectrum import SpectrumOptions
from landscape.training import TrainSpec

TINY = Plan(
    spectrum=SpectrumOptions(num_probes=2, num_steps=6, max_steps=16),
    perturbation=PerturbationOptions(num_draws=4, sigmas=(0.01,), rhos=(0.05,), ascent_steps=2),
    line_points=5,
    line_pairs=1,
    plane_points=3,
    eigen_points=3,
    max_per_class=5,
    escape_lengths=2,
    flatness=FlatnessOptions(num_pairs=2, measures=("mean_increase",)),
)
TRAIN = TrainSpec(model="mlp", epochs=1, batch_size=64)
ANALYSIS = AnalysisSpec(preset="quick", lanes="tail,all")
RUN = RunSpec(TRAIN, ("sgd", "sam"), ANALYSIS)


def write_text(path, trees, context):
    path.write_text("\n".join(f"{key}: {value}" for key, value in context.items()))
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def groups_in(path):
    return {str(name): node.to_dataset() for name, node in load_results(path).children.items()}


def make_tiny(patch):
    """Measure a tenth, report in plain text, and draw nothing; return a list of what would be drawn."""
    drawn = []
    patch.setattr(pipeline, "write_report", write_text)
    patch.setattr(pipeline, "choose_plan", lambda preset: TINY)
    patch.setattr(pipeline.Drawing, "start", lambda self, out, files: drawn.append((out, dict(files))))
    return drawn
