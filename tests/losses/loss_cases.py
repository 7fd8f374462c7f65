"""Plain transcriptions of the losses in NumPy float64, example by example, and the counts of the long-tailed CIFARs."""

from __future__ import annotations

import math

import numpy as np

CIFAR10 = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
CIFAR100 = tuple(int(500 * 0.01 ** (c / 99)) for c in range(100))


def assert_rounds_to(values, expected, digits=3):
    """Compare with numbers printed to so many digits."""
    np.testing.assert_allclose(np.asarray(values), np.asarray(expected), rtol=0, atol=0.5000001 * 10**-digits)


def numpy_cross_entropy(z, y):
    z = z - z.max(axis=1, keepdims=True)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]


def numpy_log_softmax(z):
    z = z - z.max()
    return z - math.log(sum(math.exp(v) for v in z))


def numpy_weights(n, beta):
    w = (1 - beta) / (1 - beta**n)
    return len(n) * w / w.sum()


def numpy_focal(z, y, n, gamma=1.0, weights_inside=False, beta=0.9999):
    if not weights_inside:
        p = np.exp(z[np.arange(len(y)), y]) / np.exp(z).sum(axis=1)
        return -((1 - p) ** gamma) * np.log(p)
    ce = numpy_weights(n, beta)[y] * numpy_cross_entropy(z, y)
    return (1 - np.exp(-ce)) ** gamma * ce


def numpy_label_aware(
    z, y, n, smooth_head=0.3, smooth_tail=0.0, shape="concave", power=None, spread="all"
):  # quarter waves as the paper writes them, 3 pi / 2 included
    low, high = n.min(), n.max()
    losses = []
    for logits, label in zip(z, y):
        x = (n[label] - low) / (high - low)
        if shape == "concave":
            eps = smooth_tail + (smooth_head - smooth_tail) * math.sin(x * math.pi / 2)
        elif shape == "linear":
            eps = smooth_tail + (smooth_head - smooth_tail) * x
        elif shape == "convex":
            eps = smooth_head + (smooth_head - smooth_tail) * math.sin(1.5 * math.pi + x * math.pi / 2)
        else:
            eps = smooth_tail + (smooth_head - smooth_tail) * math.pow(x, power)
        log_p, num = numpy_log_softmax(logits), len(n)
        if spread == "all":
            targets = [(1 - eps) * (c == label) + eps / num for c in range(num)]
        else:
            targets = [1 - eps if c == label else eps / (num - 1) for c in range(num)]
        losses.append(-sum(t * v for t, v in zip(targets, log_p)))
    return np.array(losses)


def numpy_ldam(z, y, n, max_margin=0.5, scale=30.0, logits_scaled=False):
    m = 1 / np.sqrt(np.sqrt(n))
    m = m * (max_margin / m.max())
    z = z.copy()
    for i, c in enumerate(y):
        z[i, c] -= m[c] * (scale if logits_scaled else 1)
    return numpy_cross_entropy(z if logits_scaled else scale * z, y)


def numpy_vs(z, y, n, gamma=0.3, tau=1.0):
    delta = n**-gamma / (n**-gamma).min()
    return numpy_cross_entropy(z / delta + tau * np.log(n / n.sum()), y)


def numpy_rarity(n):
    m = np.log(n.max()) - np.log(n)
    return m / m.max()


def numpy_gcl(z, y, n, scale=30.0, margin=0.0, noise_mul=0.5, gamma=0.0, noise=0.0):
    z = z - noise_mul * np.abs(noise) * numpy_rarity(n)
    ce = numpy_cross_entropy(scale * (z - margin * np.eye(len(n))[y]), y)
    return (1 - np.exp(-ce)) ** gamma * ce


def numpy_angular(
    z, y, n, scale=30.0, margin=0.5, epsilon=0.1, easy_margin=False, gamma=0.0, noise=0.0
):  # with the angle itself
    noise = np.broadcast_to(np.abs(noise), z.shape)
    out = np.empty_like(z)
    for i, label in enumerate(y):
        for c in range(len(n)):
            angle = math.acos(z[i, c])
            turn = math.pi / 2 * epsilon * numpy_rarity(n)[c] * noise[i, c] + (margin if c == label else 0)
            if easy_margin:
                out[i, c] = math.cos(angle + turn) if angle < math.pi / 2 else z[i, c]
            else:
                out[i, c] = math.cos(angle + turn) if angle + turn < math.pi else z[i, c] - math.sin(turn)
    ce = numpy_cross_entropy(scale * out, y)
    return (1 - np.exp(-ce)) ** gamma * ce


def numpy_asymmetric(
    z, y, n, scale=20.0, margin=0.1, noise_mul=0.5, gamma_pos=0.0, gamma_neg=4.0, smoothing=0.1, noise=0.0
):  # p_t is p of the label and 1 - p of the others; the weight is (1 - p_t) to their power
    z = z - noise_mul * np.abs(noise) * numpy_rarity(n)
    losses = []
    for logits, label in zip(z, y):
        logits = logits.copy()
        logits[label] -= margin
        total = 0.0
        for c, log_p in enumerate(numpy_log_softmax(scale * logits)):
            p = math.exp(log_p)
            p_t, power = (p, gamma_pos) if c == label else (1 - p, gamma_neg)
            target = (1 - smoothing) * (c == label) + smoothing / len(n)
            total -= target * (1 - p_t) ** power * log_p
        losses.append(total)
    return np.array(losses)


TRANSCRIPTIONS = {
    "ce": lambda z, y, n: numpy_cross_entropy(z, y),
    "focal": numpy_focal,
    "label-aware": numpy_label_aware,
    "ldam": numpy_ldam,
    "balanced-softmax": lambda z, y, n: numpy_cross_entropy(z + np.log(n), y),
    "logit-adjusted": lambda z, y, n, tau=1.0: numpy_cross_entropy(z + tau * np.log(n / n.sum()), y),
    "cdt": lambda z, y, n, gamma=0.3: numpy_vs(z, y, n, gamma=gamma, tau=0.0),
    "vs": numpy_vs,
    "gcl": numpy_gcl,
    "gcl-angular": numpy_angular,
    "asymmetric-gcl": numpy_asymmetric,
}
