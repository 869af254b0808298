"""The likelihood's own scale."""

import keras
import numpy as np
import pytest
from scipy import stats

from keras_ae.scale import LEAST, MOMENTUM, likeliest_scale, running_scale


@pytest.mark.parametrize("name", ["l1", "mse"])
def test_it_is_the_scale_of_the_likeliest_distribution(name):
    rng = np.random.default_rng(0)
    errors = rng.laplace(scale=0.1, size=(50, 200))
    terms = np.abs(errors) if name == "l1" else np.square(errors)
    term = keras.ops.convert_to_tensor(terms.sum(1).mean().astype("float32"))
    scale = float(likeliest_scale(term, name, 200))
    if name == "l1":
        fitted = stats.laplace.fit(errors.ravel(), floc=0)[1]
    else:
        fitted = 2 * stats.norm.fit(errors.ravel(), floc=0)[1] ** 2
    assert scale == pytest.approx(fitted, rel=1e-5)


def test_it_has_a_floor_and_bce_has_none():
    zero = keras.ops.convert_to_tensor(0.0)
    assert float(likeliest_scale(zero, "l1", 10)) == pytest.approx(LEAST)
    assert float(likeliest_scale(zero, "bce", 10)) == 1.0


def test_the_first_batch_counts_whole():
    first, second = (keras.ops.convert_to_tensor(v) for v in (0.4, 0.2))
    scale = running_scale(keras.ops.convert_to_tensor(0.0), first)
    assert float(scale) == pytest.approx(0.4)
    expected = 0.4 * MOMENTUM + 0.2 * (1 - MOMENTUM)
    assert float(running_scale(scale, second)) == pytest.approx(expected)
