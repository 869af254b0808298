"""How much a figure would change with other images: 95 % intervals by the bootstrap.

    values = ...                      # one value per image
    mean_with_interval(values)        # their mean, [low, high]

Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 13.
"""

import numpy as np

RESAMPLES = 1_000  # bootstrap resamples for a mean
REDRAWN = 50  # bootstrap resamples for a distance (fewer, because a distance is slow to compute)
NORMAL = 1.96  # a 95 % interval extends this many standard errors to either side


def mean_with_interval(values, seed=0):
    """The mean of values (N,), one per image, and its 95 % percentile bootstrap interval [low, high].

    Returns:
        float, [float, float]; with fewer than two values, the interval is None.
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
    """An estimate minus and plus 1.96 standard errors, from its bootstrap values; None for fewer than two.

    This is for distances. A bootstrap resample is farther from another set than the original set is, so
    the percentiles of the bootstrap would not lie around the estimate.
    """
    if len(resampled) < 2:
        return None
    reach = NORMAL * float(np.std(resampled, ddof=1))
    return [estimate - reach, estimate + reach]
