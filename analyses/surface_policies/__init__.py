"""How far a surface depends on the BatchNorm policy, and what its random slices do not show: a toy study with intervals.

Remake with ``python -m analyses.surface_policies --out DIR`` (under five minutes on one core): the small BatchNorm
network on long-tailed digits (134 images down to 4), eight seeds, trained for 15 epochs (its rarest classes not fitted
yet) and for 60. ``results.csv`` and ``conclusions.csv`` beside this file are the committed results; the text and the
figures are in ``docs/surfaces.md``.
"""
