"""Each backend in a process of its own: three that train, and all five computing the same."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_ae import CVAE, Adam, checkpoints

pytestmark = pytest.mark.long
TRAINING = ("torch", "jax", "tensorflow")
NEEDS = {"numpy": "jax"}  # what a backend needs, where that is not the package of its name


def long(backend):
    """A parameter whose tests take long: each step is compiled."""
    return pytest.param(backend, marks=pytest.mark.long)


STEPS = 3 * 3  # epochs, and batches of 48, 48 and 24


@pytest.fixture(scope="module")
def checkpoint(once, digits):
    """A folder with a CVAE trained a little, its prior fitted, and the digits to run it on."""

    def make(folder):
        images, labels = digits[0][:120], digits[1][:120]
        np.savez(folder / "digits.npz", images=images, labels=labels)
        keras.utils.set_random_seed(2)
        model = CVAE((28, 28, 1), 4, "conv", (4, 8, 16))
        model.compile(Adam(5e-3))
        model.fit((images, labels), batch_size=16, epochs=4, verbose=0)
        model.fit_prior((images, labels))
        checkpoints.save_model(model, folder / "model.keras")

    return once("checkpoint-for-backends", make)


@pytest.fixture(scope="module")
def run_backend(once, checkpoint, mnist_dir, shared_tmp):
    """A function: (facts, folder of arrays) of a backend, from one run of the script a session."""

    def run(name):
        package = NEEDS.get(name, name)
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed")

        def make(folder):
            script = Path(__file__).with_name("backend_script.py")
            inputs = (checkpoint / "model.keras", checkpoint / "digits.npz", folder)
            environment = {
                **os.environ,
                "KERAS_BACKEND": name,
                "KAE_DATA_DIR": str(mnist_dir),
                "KAE_CACHE": str(shared_tmp / "cache"),
                "TF_NUM_INTRAOP_THREADS": "1",
                "TF_NUM_INTEROP_THREADS": "1",
            }
            done = subprocess.run(
                [sys.executable, script, *inputs], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-3000:]

        folder = once(f"backend-{name}", make)
        return json.loads((folder / "facts.json").read_text()), folder

    return run


@pytest.fixture(params=["torch", long("jax"), long("tensorflow")])
def trained(request, run_backend):
    return request.param, run_backend(request.param)[0]


@pytest.fixture(params=[long("jax"), long("tensorflow"), "numpy", "openvino"])
def other(request, run_backend):
    """A function: an array as torch computed it, and as another backend did."""
    return lambda name: [
        np.load(run_backend(backend)[1] / f"{name}.npy") for backend in ("torch", request.param)
    ]


def test_the_training_step_is_our_own(trained):
    backend, facts = trained
    assert facts["backend"] == backend
    assert facts["train_step"] == f"keras_ae.train_step.{backend}"


def test_fit_brings_the_reconstruction_down(trained):
    _, facts = trained
    history = facts["history"]
    assert facts["weights_moved"]
    assert set(history) == {
        f"{prefix}{name}"
        for prefix in ("", "val_")
        for name in ("loss", "reconstruction", "kl", "kl_weight")
    }
    assert history["reconstruction"][-1] < history["reconstruction"][0]


def test_annealing_takes_effect_at_every_step(trained):
    """The logs at a step are the mean over the steps of its epoch so far."""
    _, facts = trained
    weights = 0.6 * np.arange(STEPS).reshape(3, 3) / STEPS
    means = weights.cumsum(axis=1) / [1, 2, 3]
    np.testing.assert_allclose(facts["kl_weight"], means.ravel(), atol=1e-6)
    assert facts["kl_weight_at_the_end"] == pytest.approx(0.6)


def test_the_weight_of_a_step_is_in_the_loss_of_that_step(trained):
    """A weight that is frozen when a step is compiled shows here."""
    _, facts = trained
    first, both = facts["jump"]
    assert first["loss"] == pytest.approx(first["reconstruction"], rel=1e-5)
    kl_of_the_second = 2 * both["kl"] - first["kl"]
    added = both["loss"] - both["reconstruction"]
    assert added == pytest.approx(1000 * kl_of_the_second / 2, rel=1e-3)


def test_a_label_out_of_range_that_comes_in_a_batch_makes_the_loss_nan(trained):
    """From every kind of source, in training and in evaluation, by every loss."""
    losses = trained[1]["bad_labels"]
    assert len(losses) >= 5 and {len(pair) for pair in losses.values()} == {2}
    assert np.isnan(list(losses.values())).all(), losses


@pytest.mark.parametrize("ours", ["one", "sixteen"])
def test_our_loops_make_the_steps_of_keras_own(ours, trained):
    """52 steps an epoch, the last one of one image: an execution of 16 that is cut to 4."""
    facts = trained[1]["executions"]
    keras_own, ours, steps = facts["keras"], facts[ours], {"one": 1, "sixteen": 16}[ours]
    assert ours["calls"] == 2 * -(-52 // steps) and keras_own["calls"] == 2 * 52
    assert len(ours["losses"]) == (1 if steps == 1 else 4) and keras_own["losses"] == []
    assert ours["losses"][-1] == pytest.approx(ours["history"]["loss"][-1])
    for key, values in keras_own["history"].items():
        np.testing.assert_allclose(ours["history"][key], values, rtol=1e-5, err_msg=key)
    np.testing.assert_allclose(ours["predicted"], keras_own["predicted"], atol=1e-5)
    for weights, theirs in zip(ours["weights"], keras_own["weights"], strict=True):
        np.testing.assert_allclose(weights, theirs, rtol=1e-4, atol=1e-6)


def test_save_and_load_with_the_optimizer(trained):
    _, facts = trained
    assert facts["loaded_weights_are_the_same"] and facts["loaded_optimizer_is_the_same"]
    assert facts["iterations"] == STEPS
    assert facts["iterations_after_another_epoch"] == STEPS + 3


def test_a_resumed_run_is_the_uninterrupted_one(trained):
    backend, facts = trained
    assert facts["resumed_is_the_same"], "the weights differ"
    assert facts["epochs_in_history"] == 2
    assert facts["run_backend"] == backend


def test_one_seed_is_one_run(trained):
    assert trained[1]["one_seed_is_one_run"] == {"mlp": True, "conv": True}


def test_the_model_of_a_run_is_the_average_of_its_weights(trained):
    """Against a loop of its own over the weights after each step; the validation is the average's."""
    facts = trained[1]["averaging"]
    assert facts["steps"] == 5
    assert facts["off_by"] < 1e-6 < 1e-4 < facts["from_the_last_by"]
    assert facts["validated"] == pytest.approx(facts["loss_of_the_average"], rel=1e-5)
    assert facts["validated"] != pytest.approx(facts["loss_of_the_last"], rel=1e-4)


def test_a_resumed_run_has_the_average_of_the_unbroken_one(trained):
    facts = trained[1]["averaging"]["resumed"]
    assert [(run["epochs_done"], run["batches_done"]) for run in facts] == [
        (0, 16),
        (1, 0),
        (1, 16),
    ]
    for run in facts:
        assert run["same_weights"] and run["same_history"], run


@pytest.mark.parametrize("name", ["reconstructed", "codes"])
def test_one_checkpoint_predicts_alike(name, other):
    torch, theirs = other(name)
    assert torch.dtype == theirs.dtype == np.float32 and torch.shape == theirs.shape
    scale = max(1.0, np.abs(torch).max())
    assert np.abs(torch - theirs).max() <= 1e-5 * scale


def test_one_seed_samples_the_same_picture(other):
    torch, theirs = (np.rint(images * 255) for images in other("sample"))
    assert torch.shape == (20, 28, 28, 1)
    assert np.abs(torch - theirs).max() <= 1


@pytest.mark.parametrize("backend", ["torch", long("jax"), long("tensorflow"), "numpy"])
def test_predict_is_reconstruct(backend, run_backend):
    _, folder = run_backend(backend)
    predicted, rebuilt = (np.load(folder / f"{n}.npy") for n in ("predicted", "reconstructed"))
    assert np.abs(predicted - rebuilt).max() <= 1e-5


@pytest.mark.parametrize("backend", [long("jax"), long("tensorflow"), "numpy"])
def test_evaluate_agrees_but_for_the_noise_of_the_posterior(backend, run_backend):
    torch, theirs = (run_backend(name)[0]["evaluated"] for name in ("torch", backend))
    assert torch.keys() == theirs.keys() == {"loss", "reconstruction", "kl", "kl_weight"}
    assert theirs["kl"] == pytest.approx(torch["kl"], rel=1e-4)
    assert theirs["reconstruction"] == pytest.approx(torch["reconstruction"], rel=0.02)
