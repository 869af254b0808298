"""Schedules against their formulas, at every step of real fits."""

import keras
import numpy as np
import pytest

from keras_ae import AE, VAE, KLAnnealing
from keras_ae.annealing import SCHEDULES, kl_weight_at

EPOCHS, STEPS, WEIGHT, WARMUP = 5, 3, 0.8, 0.6
FORMULAS = {
    "constant": lambda p: 1.0,
    "linear": lambda p: p,
    "cosine": lambda p: 0.5 - 0.5 * np.cos(np.pi * p),
    "sigmoid": lambda p: 0.5 + 0.5 * np.tanh(6 * p - 3) / np.tanh(3),
    "cyclical": lambda p: 1.0 if p >= 1 else min(1.0, 2 * (4 * p - np.floor(4 * p))),
}


class Recorder(keras.callbacks.Callback):
    """Notes the weight that the model holds during each step."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(float(self.model.kl_weight))


@pytest.fixture
def vae():
    model = VAE((28, 28, 1), 2, "mlp", (8,))
    model.compile(keras.optimizers.SGD(1e-4))
    return model


def fit(model, annealing, images, **kwargs):
    """Fit on 3 steps an epoch, the last one smaller; returns the weight at each step."""
    recorder = Recorder()
    arguments = {"epochs": EPOCHS, "batch_size": 16, "verbose": 0, **kwargs}
    model.fit(images[:40], callbacks=[annealing, recorder], **arguments)
    return recorder.weights


def expected(name, step):
    return WEIGHT * FORMULAS[name](min(1.0, step / (WARMUP * EPOCHS * STEPS)))


def test_formulas_are_given_for_all_schedules():
    assert set(FORMULAS) == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_its_formula_everywhere(name):
    for progress in np.linspace(0, 1, 201):
        assert SCHEDULES[name](progress) == pytest.approx(FORMULAS[name](progress), abs=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_ends_at_one_and_all_but_constant_start_at_zero(name):
    assert SCHEDULES[name](1.0) == 1.0
    assert SCHEDULES[name](0.0) == pytest.approx(1.0 if name == "constant" else 0.0, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_weight_at_every_step_of_a_fit(name, vae, digits):
    weights = fit(vae, KLAnnealing(name, WEIGHT, WARMUP), digits[0])
    wanted = [expected(name, step) for step in range(EPOCHS * STEPS)]
    np.testing.assert_allclose(weights, wanted, atol=1e-6)
    assert float(vae.kl_weight) == pytest.approx(WEIGHT)


@pytest.mark.parametrize("name", SCHEDULES)
def test_weight_by_epoch_stands_still_within_an_epoch(name, vae, digits):
    weights = fit(vae, KLAnnealing(name, WEIGHT, WARMUP, by="epoch"), digits[0])
    wanted = [expected(name, epoch * STEPS) for epoch in range(EPOCHS) for _ in range(STEPS)]
    np.testing.assert_allclose(weights, wanted, atol=1e-6)


def test_a_resumed_fit_goes_on_where_it_stood(vae, digits):
    whole = fit(vae, KLAnnealing("linear", WEIGHT), digits[0])
    resumed = fit(vae, KLAnnealing("linear", WEIGHT), digits[0], initial_epoch=3)
    assert resumed == whole[3 * STEPS :]


def test_a_fit_of_no_epochs_leaves_the_weight_alone(vae, digits):
    vae.kl_weight.assign(0.7)
    fit(vae, KLAnnealing(), digits[0], initial_epoch=EPOCHS)
    assert float(vae.kl_weight) == pytest.approx(0.7)


def test_a_checkpoint_of_an_epoch_holds_the_weight_that_the_epoch_reached(vae, digits, tmp_path):
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    vae.fit(digits[0][:40], epochs=4, verbose=0, callbacks=[KLAnnealing(), checkpoint])
    weights = [
        float(keras.saving.load_model(tmp_path / f"{e}.keras").kl_weight) for e in (1, 2, 3, 4)
    ]
    assert weights == [0.25, 0.5, 0.75, 1.0]


def test_logs_hold_the_mean_weight_of_the_steps(vae, digits):
    history = vae.fit(
        digits[0][:40],
        epochs=2,
        batch_size=16,
        validation_data=(digits[0][:8],),
        callbacks=[KLAnnealing()],
        verbose=0,
    ).history
    np.testing.assert_allclose(history["kl_weight"], [1 / 6, 4 / 6], atol=1e-6)


def test_the_weight_enters_the_loss_of_the_step(vae, digits):
    history = vae.fit(
        digits[0][:16], epochs=4, batch_size=16, callbacks=[KLAnnealing()], verbose=0
    ).history
    loss = np.add(history["reconstruction"], np.multiply(history["kl_weight"], history["kl"]))
    np.testing.assert_allclose(history["loss"], loss, rtol=1e-5)


def test_data_of_unknown_length_anneals_by_epoch():
    annealing = KLAnnealing()
    annealing.set_params({"epochs": 4, "steps": None})
    assert [annealing.value(e, b) for e in (0, 1, 3) for b in (0, 1, 7)] == [0] * 3 + [0.25] * 3 + [
        0.75
    ] * 3


def test_a_feed_without_end_anneals_by_step(vae, digits):
    def feed():
        while True:
            yield (digits[0][:16],)

    recorder = Recorder()
    vae.fit(feed(), epochs=4, steps_per_epoch=2, verbose=0, callbacks=[KLAnnealing(), recorder])
    np.testing.assert_allclose(recorder.weights, np.arange(8) / 8, atol=1e-6)


def test_kl_weight_at_is_pure_and_stays_at_the_weight():
    assert kl_weight_at(500, 100, "linear", 0.5, 0.2) == 0.5
    assert kl_weight_at(10, 100, "linear", 0.5, 0.2) == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "square"}, "linear, cosine, sigmoid, cyclical"),
        ({"weight": -0.1}, "weight must be 0 or more; got -0.1"),
        ({"weight": float("nan")}, "weight must be 0 or more"),
        ({"warmup": 0.0}, r"\(0, 1\]; got 0.0"),
        ({"warmup": 1.5}, "would never reach the full weight"),
        ({"by": "batch"}, "'step' or 'epoch'"),
    ],
)
def test_guards(arguments, message):
    with pytest.raises(ValueError, match=message):
        KLAnnealing(**arguments)


def test_a_model_without_kl_is_refused(digits):
    model = AE((28, 28, 1), 2, "mlp", (8,))
    model.compile("sgd")
    with pytest.raises(TypeError, match="AE has no kl_weight"):
        model.fit(digits[0][:16], verbose=0, callbacks=[KLAnnealing()])
