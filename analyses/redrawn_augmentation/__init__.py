"""What augmentation redrawn at every Hessian product does to Lanczos: negative eigenvalues that no matrix has.

Remake with ``python -m analyses.redrawn_augmentation --out DIR`` (under three minutes on one core): softmax regression,
which is convex, and a small convolutional network, both on long-tailed digits. ``--checkpoint FILE --data-dir DIR`` adds a
ResNet-20 trained on CIFAR-10-LT. ``results.csv`` beside this file holds the committed results; the text and the figure
are in ``docs/augmentation.md``.
"""
