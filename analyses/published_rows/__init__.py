"""Short trainings of published recipes on CIFAR-10-LT at ratio 100, their accuracies by group beside the published ones.

Remake with ``python -m analyses.published_rows --data-dir CIFAR --out DIR --epochs N``. ``results.csv`` beside this file is
the committed result: the last epoch of every run, with the machine, the epochs and the seed. A killed run goes on where it
stopped. What the short length changes, and why, is said in ``docs/recipes.md``.
"""
