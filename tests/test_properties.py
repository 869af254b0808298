"""What holds for every schedule, grid, label and prior: drawn by hypothesis."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_ae import CVAE, VAE, KLAnnealing, pictures
from keras_ae.annealing import SCHEDULES, kl_weight_at
from keras_ae.backbones import count_weights
from keras_ae.inputs import one_hot
from keras_ae.priors import ClassMixture

schedules = st.sampled_from(sorted(SCHEDULES))
quick = settings(max_examples=50, deadline=None, derandomize=True)


@quick
@given(
    schedules, st.integers(1, 5000), st.floats(0, 100), st.floats(0.01, 1), st.integers(0, 10_000)
)
def test_the_weight_is_always_between_0_and_its_end(schedule, total, weight, warmup, step):
    value = kl_weight_at(step, total, schedule, weight, warmup)
    assert 0 <= value <= weight * (1 + 1e-12)
    if step >= warmup * total:
        assert value == pytest.approx(weight)


@quick
@given(
    st.sampled_from(["linear", "cosine", "sigmoid", "constant"]),
    st.integers(1, 500),
    st.floats(0.01, 1),
)
def test_the_weight_never_falls(schedule, total, warmup):
    weights = [kl_weight_at(step, total, schedule, 1.0, warmup) for step in range(total + 1)]
    assert all(a <= b + 1e-12 for a, b in zip(weights, weights[1:]))


@quick
@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.data())
def test_a_grid_shows_every_image_once(n, height, width, columns, data):
    """Each image is of one grey value of its own, and all of its pixels are there."""
    channels = data.draw(st.sampled_from([1, 3]))
    values = np.arange(1, n + 1, dtype="uint8")
    images = np.broadcast_to(values[:, None, None, None], (n, height, width, channels))
    picture = np.asarray(pictures.grid(images, columns))
    seen = picture.reshape(*picture.shape[:2], -1)[..., 0]
    counts = [int((seen == value).sum()) for value in values]
    assert len(set(counts)) == 1 and counts[0] % (height * width) == 0 and counts[0] > 0


@quick
@given(st.integers(1, 30), st.lists(st.integers(0, 29), max_size=20))
def test_one_hot_has_one_one_at_its_label(classes, labels):
    labels = np.array([label % classes for label in labels], "int32")
    rows = keras.ops.convert_to_numpy(one_hot(labels, classes))
    np.testing.assert_array_equal(rows, np.eye(classes)[labels])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_covariances_of_any_codes_are_positive_definite(data):
    """Codes that are all one, in a plane, far away, or huge; classes that are empty or of one code."""
    latents, classes = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    n = data.draw(st.integers(1, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = rng.standard_normal((n, latents))
    how = data.draw(st.sampled_from(["any", "one", "plane", "far", "huge", "tiny"]))
    scale = {"one": 0.0, "huge": 1e4, "tiny": 1e-8}.get(how, 1.0)
    codes = codes * scale + (1e3 if how == "far" else 0.0)
    if how == "plane":
        codes[:, 0] = codes[:, -1]
    labels = rng.integers(0, data.draw(st.integers(1, classes)), n)
    prior = ClassMixture.fit(codes, labels, classes, components=data.draw(st.sampled_from([(1,), (1, 3), (5,)])))  # fmt: skip
    factors = prior.cholesky
    assert np.isfinite(factors).all()
    assert (np.diagonal(factors, axis1=-2, axis2=-1) > 0).all()
    np.testing.assert_array_equal(np.triu(factors, 1), 0)
    eigenvalues = np.linalg.eigvalsh(
        factors.astype("float64") @ np.swapaxes(factors, -1, -2).astype("float64")
    )
    assert (eigenvalues > 0).all()
    drawn = prior.draw(20, np.arange(20) % classes)
    assert drawn.shape == (20, latents) and np.isfinite(drawn).all()
    assert np.isfinite(prior.log_prob(drawn, np.arange(20) % classes)).all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_weights_are_counted_as_they_are_built(data):
    backbone = data.draw(st.sampled_from(["conv", "mlp"]))
    shape = tuple(data.draw(st.integers(1, 12)) for _ in range(2)) + (data.draw(st.integers(1, 4)),)
    least = 2 if backbone == "conv" else 1
    hidden = tuple(data.draw(st.lists(st.integers(1, 6), min_size=least, max_size=4)))
    latents, classes = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 3))
    arguments = (shape, latents, backbone, hidden)
    model = CVAE(*arguments, num_classes=classes) if classes else VAE(*arguments)
    built = sum(int(np.prod(w.shape)) for w in [*model.encoder.weights, *model.decoder.weights])
    assert count_weights(shape, latents, 2, backbone, hidden, classes) == built


class TestLabelsOutOfRange:
    """Arrays of labels are refused; test_backends has what labels that come batch by batch do."""

    IMAGES = np.zeros((6, 8, 8, 1), "uint8")

    @pytest.fixture
    def cvae(self):
        model = CVAE((8, 8, 1), 2, "mlp", (4,), num_classes=3)
        model.compile("sgd")
        return model

    @pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
    @pytest.mark.parametrize("bad", [3, -1])
    def test_are_refused(self, method, bad, cvae):
        labels = np.array([0, 1, 2, 0, bad, 1])
        with pytest.raises(ValueError, match="Labels of this model are 0 to 2"):
            getattr(cvae, method)((self.IMAGES, labels), verbose=0)

    def test_are_refused_for_the_validation_too(self, cvae):
        good, bad = np.zeros(6, int), np.full(6, 7)
        with pytest.raises(ValueError, match="0 to 2"):
            cvae.fit((self.IMAGES, good), validation_data=((self.IMAGES, bad),), verbose=0)

    def test_labels_in_range_are_as_they_were(self, cvae):
        pair = (self.IMAGES, np.arange(6) % 3)
        cvae.fit(pair, validation_data=(pair,), verbose=0)
        assert np.isfinite(cvae.evaluate(pair, verbose=0, return_dict=True)["loss"])
        assert cvae.predict(pair, verbose=0).shape == (6, 8, 8, 1)


class TestEarlyChoices:
    """Losses of two epochs compare only once the weight of the KL term is what it stays."""

    IMAGES = np.zeros((4, 8, 8, 1), "uint8")

    def fit(self, *callbacks, epochs=4, **kwargs):
        model = VAE((8, 8, 1), 2, "mlp", (4,))
        model.compile("sgd")
        model.fit(self.IMAGES, epochs=epochs, verbose=0, callbacks=list(callbacks), **kwargs)

    @pytest.mark.parametrize(
        "choice",
        [
            lambda path: keras.callbacks.EarlyStopping("loss", patience=9),
            lambda path: keras.callbacks.EarlyStopping("loss", patience=9, start_from_epoch=1),
            lambda path: keras.callbacks.ModelCheckpoint(path, "loss", save_best_only=True),
        ],
    )
    def test_are_warned_of(self, choice, tmp_path):
        with pytest.warns(UserWarning, match="rises until epoch 2 of 4.*Shorten the warm-up"):
            self.fit(KLAnnealing(warmup=0.5), choice(tmp_path / "best.keras"))

    @pytest.mark.filterwarnings("error::UserWarning")
    @pytest.mark.parametrize(
        ("annealing", "choice"),
        [
            (KLAnnealing("constant"), keras.callbacks.EarlyStopping("loss")),
            (KLAnnealing(warmup=0.5), keras.callbacks.EarlyStopping("loss", start_from_epoch=2)),
            (KLAnnealing(), keras.callbacks.TerminateOnNaN()),
        ],
    )
    def test_other_callbacks_are_not(self, annealing, choice):
        self.fit(annealing, choice)
