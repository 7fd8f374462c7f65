"""Surfaces of other tools, read, and ours written for other tools; loads no torch.

What is written is what was measured: no value is filled in, clipped, resampled or recentred.
"""

from __future__ import annotations

from landscape.exchange.goldstein import read_goldstein
from landscape.exchange.landscaper import write_landscaper
from landscape.exchange.selection import surface_group
from landscape.exchange.structured_grid import write_vts
from landscape.exchange.table import write_csv

__all__ = ["read_goldstein", "surface_group", "write_csv", "write_landscaper", "write_vts"]
