"""How far a figure would move with other images: 95 % intervals by the bootstrap.

    values = ...                      # a figure an image
    mean_with_interval(values)        # its mean, [low, high]

Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 13.
"""

import numpy as np

RESAMPLES = 1_000  # of a mean
REDRAWN = 50  # times that a set of images is drawn anew for a distance, which costs more
NORMAL = 1.96  # standard errors to either side of 95 %


def mean_with_interval(values, seed=0):
    """The mean of values (N,), one an image, and the 95 % percentile interval [low, high] of its bootstrap.

    Returns:
        float, [float, float]; no interval, None, of fewer than two values.
    """
    from scipy.stats import bootstrap

    values = np.asarray(values, "float64")
    if len(values) < 2:
        return float(values.mean()), None
    drawn = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // len(values)),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(values.mean()), [float(end) for end in drawn.confidence_interval]


def around(estimate, resampled):
    """1.96 standard errors to either side of an estimate, from its bootstrap values; None of too few.

    For distances: a set drawn with repetition is farther from any other than the set itself, and the
    percentiles of its bootstrap would lie beside the estimate.
    """
    if len(resampled) < 2:
        return None
    reach = NORMAL * float(np.std(resampled, ddof=1))
    return [estimate - reach, estimate + reach]
