"""Flattening operators in the first, the second or both stages of long-tailed recipes: CC-SAM's bar chart, redrawn.

Remake with ``python -m analyses.flattening_stages --out DIR``, by default on the long-tailed digits (minutes on one core);
``--dataset cifar10-lt --data-dir D --epochs 200 --seeds 3`` is the setting of the chart. ``results.csv`` has one row per
training; ``changes.csv`` and ``flattening-stages.png`` the accuracies minus those of the recipe without an operator at the
same seed, over seeds.

Public of the original (Zhou et al., *Class-Conditional Sharpness-Aware Minimization*, CVPR 2023) are the labels: SWA, SN, GP
and MP in stage 1, 2 or both, on cRT, M2m, LDAM-DRW, MiSLAS and GCL, and an axis of accuracy changes. Ours are all settings
(every operator has its published defaults), the seeds and error bars, SWA in either stage, and what the stages of LDAM-DRW
and M2m are: the epochs before the deferred rule and those after it, with momentum anew. Operators act on the weights that a
stage trains: MP on the last weight in a second stage that trains the classifier alone, and SWA follows the learning rates
of the second stage. SN in stage 2 begins by dividing trained weights by their norms: in a second stage of few steps the
running statistics of BatchNorm have not followed when the accuracy is measured, so short trials make it look bad.

The committed tables, and ``docs/images/flattening-stages.png``: ``--epochs 30 --second-epochs 10 --seeds 8`` on the digits.
What they show is said in ``docs/recipes.md``.
"""
