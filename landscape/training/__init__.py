"""Training: the specification of a run, the published schedules, the one training loop and the one evaluation loop."""

from landscape.training.estimate import estimate_training, untrained_checkpoint
from landscape.training.evaluation import Evaluation, evaluate
from landscape.training.loop import Progress, train
from landscape.training.methods import METHODS
from landscape.training.objective import Objective
from landscape.training.schedules import SCHEDULES, learning_rate
from landscape.training.setup import resolve_device
from landscape.training.spec import TrainSpec
from landscape.training.stages import Stage, training_stages

__all__ = [
    "METHODS",
    "SCHEDULES",
    "Evaluation",
    "Objective",
    "Progress",
    "Stage",
    "TrainSpec",
    "estimate_training",
    "evaluate",
    "learning_rate",
    "resolve_device",
    "train",
    "training_stages",
    "untrained_checkpoint",
]
