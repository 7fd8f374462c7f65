"""The published plots of the field under their names, each saying what is public of it and what is ours."""

from landscape.reconstruction.registry import RECONSTRUCTIONS, Reconstruction
from landscape.reconstruction.writing import reconstruct

__all__ = ["RECONSTRUCTIONS", "Reconstruction", "reconstruct"]
