"""The fused Adam takes the steps of `keras.optimizers.Adam`."""

import keras
import numpy as np
import pytest

import keras_ae
from keras_ae.fast.adam import rate_at

torch = pytest.importorskip("torch")
torch_only = pytest.mark.skipif(keras.backend.backend() != "torch", reason="the kernel of torch")

ADAM_ARGUMENTS = [
    {"learning_rate": 2e-3},
    {"learning_rate": keras.optimizers.schedules.CosineDecay(0.0, 80, 0.1, "lr", 5e-3, 20)},
    {"learning_rate": 1e-3, "epsilon": 1e-3, "beta_1": 0.8, "beta_2": 0.95},
    {"learning_rate": 1e-3, "clipnorm": 0.5, "weight_decay": 1e-2},
    {"learning_rate": lambda: 2e-3, "beta_1": 0.8},
    {"learning_rate": 1e-3, "amsgrad": True},
    {"learning_rate": 1e-3, "gradient_accumulation_steps": 3},
]


def trained(optimizer, digits, epochs=10):
    """A VAE after 10 steps an epoch."""
    keras.utils.set_random_seed(1)
    vae = keras_ae.VAE((28, 28, 1), 4, "conv", (4, 8, 16))
    vae.compile(optimizer)
    vae.fit(digits[0][:160], batch_size=16, epochs=epochs, verbose=0, shuffle=False)
    return vae


@pytest.fixture
def fused_calls(monkeypatch):
    """Counts the calls of torch's fused kernel."""
    calls, kernel = [], torch._fused_adam_
    monkeypatch.setattr(torch, "_fused_adam_", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    return calls


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the kernel of tensorflow")
@pytest.mark.parametrize("arguments", ADAM_ARGUMENTS, ids=lambda a: "-".join(list(a)[1:]) or None)
def test_100_steps_within_a_graph_are_those_of_keras(arguments, monkeypatch):
    import tensorflow as tf

    kernel, calls = tf.raw_ops.ResourceApplyAdam, []
    monkeypatch.setattr(
        tf.raw_ops, "ResourceApplyAdam", lambda **kwargs: calls.append(1) or kernel(**kwargs)
    )
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype("float32") for shape in ((30, 7), (7,))]
    gradients = [
        [rng.standard_normal(w.shape).astype("float32") for w in weights] for _ in range(100)
    ]

    def end(optimizer):
        variables = [keras.Variable(w) for w in weights]
        optimizer.build(variables)
        step = tf.function(lambda *gradients: optimizer.apply(list(gradients), variables))
        for gradient in gradients:
            step(*map(tf.constant, gradient))
        return [keras.ops.convert_to_numpy(v) for v in (*variables, *optimizer.variables)]

    ends = end(keras_ae.Adam(**arguments)), end(keras.optimizers.Adam(**arguments))
    for ours, theirs in zip(*ends, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6, rtol=1e-5)
    assert bool(calls) != arguments.get("amsgrad", False)


@torch_only
@pytest.mark.parametrize("arguments", ADAM_ARGUMENTS, ids=lambda a: "-".join(list(a)[1:]) or None)
def test_100_steps_on_the_gradients_of_a_model_are_those_of_keras(arguments, digits):
    """Both are given the same gradients: training apart, rounding would grow from step to step."""
    vae = trained(keras_ae.Adam(**arguments), digits, epochs=0)
    twins = [keras.Variable(w) for w in vae.trainable_weights]
    theirs = keras.optimizers.Adam(**arguments)
    for step in range(100):
        loss = vae.compute_loss(digits[0][step * 16 : step * 16 + 16])
        gradients = torch.autograd.grad(loss, [w.value for w in vae.trainable_weights])
        with torch.no_grad():
            vae.optimizer.apply([g.clone() for g in gradients], vae.trainable_weights)
            theirs.apply([g.clone() for g in gradients], twins)
    for a, b in zip(vae.trainable_weights, twins, strict=True):
        np.testing.assert_allclose(
            *map(keras.ops.convert_to_numpy, (a, b)), atol=2e-6, rtol=1e-5, err_msg=a.path
        )


@torch_only
def test_a_single_step_is_that_of_keras_to_rounding():
    updated = []
    for make in (keras_ae.Adam, keras.optimizers.Adam):
        weight = keras.Variable(np.linspace(-1, 1, 7, dtype="float32"))
        optimizer = make(0.1)
        for k in (1.0, -2.0, 1e-4):
            gradient = keras.ops.convert_to_tensor(np.full(7, k, "float32"))
            optimizer.apply([gradient], [weight])
        updated.append(keras.ops.convert_to_numpy(weight))
    np.testing.assert_allclose(updated[0], updated[1], atol=5e-7)


@torch_only
def test_a_gradient_that_is_a_transposed_view_meets_its_own_weights():
    """As those of the convolutions are."""
    updated = []
    for make in (keras_ae.Adam, keras.optimizers.Adam):
        weight = keras.Variable(np.zeros((3, 5), "float32"))
        gradient = torch.linspace(-1, 1, 15, device=weight.value.device).reshape(5, 3).T
        make(0.1).apply([gradient], [weight])
        updated.append(keras.ops.convert_to_numpy(weight))
    np.testing.assert_allclose(updated[0], updated[1], rtol=1e-4)


@torch_only
def test_the_fused_kernel_takes_every_step(fused_calls, digits):
    """Fails if a release of Keras renames the private hook that the optimizer overrides."""
    trained(keras_ae.Adam(1e-3), digits, epochs=1)
    assert len(fused_calls) == 10


SCHEDULES = keras.optimizers.schedules


@pytest.mark.parametrize(
    "schedule",
    [
        SCHEDULES.CosineDecay(3e-3, 40),
        SCHEDULES.CosineDecay(3e-3, 40, alpha=0.2),
        SCHEDULES.CosineDecay(1e-4, 40, 0.1, warmup_target=3e-3, warmup_steps=10),
        SCHEDULES.CosineDecay(1e-4, 40, warmup_steps=10),
        SCHEDULES.ExponentialDecay(3e-3, 40, 0.5),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_rates_on_the_host_are_those_of_the_schedule(schedule):
    for step in (0, 1, 9, 10, 11, 30, 39, 40, 49, 50, 51, 1000):
        expected = float(schedule(step))
        assert rate_at(schedule, step) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@torch_only
def test_constraints_hold_after_every_step():
    weight = keras.Variable(np.full(5, 0.1, "float32"))
    weight.constraint = keras.constraints.NonNeg()
    optimizer = keras_ae.Adam(0.07)
    for _ in range(4):
        optimizer.apply([keras.ops.ones(5)], [weight])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), 0.0)


@torch_only
def test_variables_that_are_overwritten_with_their_gradient():
    """As the scales of layers in float8 are."""
    weight, scale = (keras.Variable(np.ones(3, "float32")) for _ in range(2))
    scale.overwrite_with_gradient = True
    optimizer = keras_ae.Adam(0.1)
    for _ in range(2):
        optimizer.apply([keras.ops.ones(3), 7.0 * keras.ops.ones(3)], [weight, scale])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(weight), 0.8, rtol=1e-4)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(scale), 7.0)


@torch_only
def test_amsgrad_is_left_to_keras(fused_calls, digits):
    trained(keras_ae.Adam(1e-3, amsgrad=True), digits, epochs=1)
    assert not fused_calls


@torch_only
def test_the_step_counter_is_loaded_with_the_state(digits, tmp_path):
    """With a counter that starts anew, the bias correction would make the next step far too large."""
    whole = trained(keras_ae.Adam(1e-3), digits, epochs=1)
    whole.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, keras_ae.Adam)
    gradients = [keras.ops.ones_like(w) for w in whole.trainable_weights]
    for model in (whole, loaded):
        model.optimizer.apply(gradients, model.trainable_weights)
    for a, b in zip(whole.trainable_weights, loaded.trainable_weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))


def test_config_is_that_of_adam():
    config = keras_ae.Adam(3e-3, beta_1=0.7).get_config()
    assert config == keras.optimizers.Adam(3e-3, beta_1=0.7, name=config["name"]).get_config()
