"""Training: the specification of a run, the published schedules, the one training loop and the one evaluation loop."""

from landscape.training.estimate import estimate_training, untrained_checkpoint
from landscape.training.evaluation import Evaluation, evaluate
from landscape.training.loop import Progress, train
from landscape.training.methods import METHODS
from landscape.training.objective import Objective
from landscape.training.schedules import SCHEDULES, learning_rate
from landscape.training.second_stages import SECOND_STAGES, read_history, split_stages, two_stages
from landscape.training.setup import resolve_device
from landscape.training.spec import TrainSpec
from landscape.training.stages import Stage, epochs_done, training_stages

__all__ = [
    "METHODS",
    "SCHEDULES",
    "SECOND_STAGES",
    "Evaluation",
    "Objective",
    "Progress",
    "Stage",
    "TrainSpec",
    "epochs_done",
    "estimate_training",
    "evaluate",
    "learning_rate",
    "read_history",
    "resolve_device",
    "split_stages",
    "train",
    "training_stages",
    "two_stages",
    "untrained_checkpoint",
]
