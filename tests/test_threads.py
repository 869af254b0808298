"""Several threads at once do what one does after the other: building, training, drawing, saving, loading."""

import threading

import keras
import numpy as np
import pytest

from keras_ae import CVAE, VAE, checkpoints, fitting
from keras_ae.backbones import seeded_weights
from keras_ae.data import ImageData
from keras_ae.settings import Settings

pytestmark = pytest.mark.long
THREADS = 4


def at_once(function):
    """What a function returns for 0 … THREADS - 1, each called in a thread of its own, all at the same time."""
    results, errors, together = {}, [], threading.Barrier(THREADS)

    def call(i):
        try:
            together.wait(60)
            results[i] = function(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    if errors:
        raise errors[0]
    return [results[i] for i in range(THREADS)]


def weights(model):
    return [w.copy() for w in model.get_weights()]


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def built(i):
    with seeded_weights(i):
        return CVAE(
            (12, 12, 1),
            2,
            "conv",
            (4, 8, 8),
            num_classes=3,
            dtype=["float32", "mixed_bfloat16"][i % 2],
        )


def test_models_are_built_as_by_one_thread():
    expected = [weights(built(i)) for i in range(THREADS)]
    for _ in range(3):
        models = at_once(built)
        assert_equal(map(weights, models), expected)
        assert [m.decoder.layers[1].compute_dtype for m in models] == ["float32", "bfloat16"] * 2


def test_files_are_loaded_as_by_one_thread_and_no_later_model_is_blank(tmp_path):
    for i in range(THREADS):
        checkpoints.save_model(built(i), tmp_path / f"{i}.keras")

    def load(i):
        return [weights(checkpoints.load_model(tmp_path / f"{i}.keras")) for _ in range(4)]

    at_once_loaded = at_once(load)
    for i, loaded in enumerate(at_once_loaded):
        assert_equal(loaded, [weights(built(i))] * 4)
    kernels = [w for w in VAE((12, 12, 1), 2).get_weights() if w.ndim > 1]
    assert all(np.count_nonzero(w) > w.size / 2 for w in kernels)


def test_a_model_is_drawn_from_and_saved_by_many(tmp_path):
    """The same one, and others are built meanwhile."""
    model, images = built(0), np.zeros((9, 12, 12, 1), np.uint8)
    drawn, before = [model.sample(9, 1, seed=i) for i in range(THREADS)], weights(model)
    codes = model.encode((images, np.arange(9) % 3))

    def work(i):
        parts = []
        for k in range(4):
            parts.append(model.sample(9, 1, seed=i))
            checkpoints.save_model(model, tmp_path / f"{i}.keras")
            np.testing.assert_array_equal(model.encode((images, np.arange(9) % 3)), codes)
            assert_equal([weights(checkpoints.load_model(tmp_path / f"{i}.keras"))], [before])
            built(k)
        return parts

    assert_equal(at_once(work), [[images] * 4 for images in drawn])


@pytest.fixture(scope="module")
def toy():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (64, 12, 12, 1), np.uint8)
    return ImageData(
        "toy", "1.0.0", "train", images, (np.arange(64) % 3).astype("int32"), ("a", "b", "c")
    )


def test_runs_are_those_of_one_thread(toy, tmp_path):
    def run(i, where):
        settings = Settings(
            ["vae", "cvae"][i % 2],
            backbone="mlp",
            hidden=(8,),
            latent_dim=2,
            batch_size=16,
            epochs=2,
            seed=i,
        )
        folder = tmp_path / f"{where}-{i}"
        fitting.fit(settings, folder, verbose=0, report=lambda line: None, train=toy, test=toy)
        model = checkpoints.load_model(folder)
        pictures = [path.read_bytes() for path in sorted((folder / "epochs").iterdir())]
        return [
            *weights(model),
            *(getattr(model.prior, name) for name in model.prior.arrays),
        ], pictures

    expected = [run(i, "alone") for i in range(THREADS)]
    for (ours, shown), (theirs, pictures) in zip(at_once(lambda i: run(i, "thread")), expected):
        assert_equal([ours], [theirs])
        assert shown == pictures


def test_a_fit_in_a_thread_and_a_fit_in_another(toy):
    """Of Keras' own interface."""

    def fit(i):
        model = built(0)
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit((toy.images, toy.labels), epochs=2, batch_size=16, shuffle=False, verbose=0)
        return len(model.history.history["loss"]), model.count_params()

    assert at_once(fit) == [fit(0)] * THREADS
