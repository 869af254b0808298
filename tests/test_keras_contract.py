"""What any Keras model promises, kept by every model with every backbone, on every backend.

`Contract` is written once and inherited. What does not depend on the model or on its networks is tested
once, below.
"""

import gc
import json
import os
import random
import signal
import threading
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from keras import ops
from test_models import certain

import keras_ae
from keras_ae import (
    AE,
    CVAE,
    VAE,
    Adam,
    KLAnnealing,
    Settings,
    checkpoints,
    classifier,
    evaluation,
    export,
    fast,
)
from keras_ae.data.arrays import splits_of_arrays
from keras_ae.errors import RunError
from keras_ae.inputs import one_hot, unit_range
from keras_ae.losses import bce
from keras_ae.priors import ClassMixture, Prior, StandardNormal
from keras_ae.resampling import Conv2DTranspose

SHAPE, LATENTS, CLASSES = (28, 28, 1), 3, 10
WIDTHS = {"conv": (4, 8, 16), "mlp": (16, 8)}
TORCH = keras.backend.backend() == "torch"
N, BATCH = 20 if TORCH else 16, 8  # images: batches of 8, 8 and 4; jax would compile for 4 as well
STEPS = -(-N // BATCH)
several_steps = pytest.mark.skipif(TORCH and not fast.ON, reason="Keras has one on torch")
torch_only = pytest.mark.skipif(not TORCH, reason="torch calls forward hooks")


def array(tensor):
    return np.array(ops.convert_to_numpy(tensor))


def arrays(variables):
    return [array(variable) for variable in variables]


def same(ours, theirs):
    return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))


def close(ours, theirs, **tolerance):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-4, "atol": 1e-6, **tolerance})


def compiled(model, **kwargs):
    model.compile(keras.optimizers.SGD(1e-4), **kwargs)
    return model


def quietly(function, *arguments):
    """Call what warns of layers that Keras does not quantize, and collects garbage for each that it does."""
    gc.freeze()  # which takes a second with all that is imported
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*arguments)
    finally:
        gc.unfreeze()


class Batches(keras.utils.PyDataset):
    def __init__(self, *parts):
        super().__init__()
        self.parts = parts

    def __len__(self):
        return STEPS

    def __getitem__(self, i):
        return rows_of(self.parts, slice(i * BATCH, (i + 1) * BATCH))


def rows_of(parts, rows):
    return keras.tree.map_structure(lambda part: part[rows], tuple(parts))


class Counter(keras.callbacks.Callback):
    """Counts the batches that a callback is told of."""

    def __init__(self):
        super().__init__()
        self.begun, self.ended = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.begun.append(batch)

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append(batch)


class Contract:
    """The tests of a model with a backbone: a subclass says which."""

    model: type
    backbone: str

    def make(self, **kwargs):
        """A small model, the same one at each call."""
        keras.utils.set_random_seed(3)
        return self.model(SHAPE, LATENTS, self.backbone, WIDTHS[self.backbone], **kwargs)

    def compiled(self, **kwargs):
        return compiled(certain(self.make()), **kwargs)

    @pytest.fixture
    def x(self, digits):
        """What `fit` takes: images, or images and labels."""
        images, labels = digits[0][:N], digits[1][:N]
        return (images, labels) if self.model.num_classes_needed else images

    def images(self, x):
        return x[0] if isinstance(x, tuple) else x

    def with_images(self, x, images):
        return (images, x[1]) if isinstance(x, tuple) else images

    def formula(self, model, x, target=None):
        """Each term of each image, by NumPy, of what encoder and decoder alone make of it."""
        images = self.images(x).astype("float32") / np.float32(255)
        condition = [np.eye(CLASSES, dtype="float32")[x[1]]] if isinstance(x, tuple) else []
        heads = model.encoder.predict([images, *condition], verbose=0)
        code = heads["code"] if "code" in heads else heads["mean"]
        rebuilt = model.decoder.predict([code, *condition], verbose=0)
        target = images if target is None else target / 255
        terms = {"reconstruction": np.abs(rebuilt - target).reshape(N, -1).sum(-1)}
        if "mean" in heads:
            mean, log_var = heads["mean"], heads["log_var"]
            terms["kl"] = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(-1)
        return {**terms, "loss": sum(terms.values()), "rebuilt": rebuilt}

    def restart(self, model, weights):
        model.set_weights(weights)
        if hasattr(model, "seed_generator"):
            model.seed_generator.state.assign([5, 0])

    # Files and configs

    def test_config_round_trip(self, x):
        model = self.make(reconstruction="mse")
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
        for copy in (
            keras.saving.deserialize_keras_object(config),
            type(model).from_config(model.get_config()),
            keras.models.clone_model(model),
        ):
            assert type(copy) is type(model)
            assert json.dumps(copy.get_config()) == json.dumps(model.get_config())
            assert [w.path for w in copy.weights] == [w.path for w in model.weights]
            copy.set_weights(model.get_weights())
            close([copy.predict(x, verbose=0)], [model.predict(x, verbose=0)])

    def test_saving(self, x, tmp_path):
        model = compiled(self.make())
        model.compile(Adam(1e-3))
        model.fit(x, batch_size=BATCH, verbose=0)
        model.save(tmp_path / "model.keras")
        model.save_weights(tmp_path / "model.weights.h5")
        with pytest.raises(ValueError, match="is saved to a .keras file; got .*model.h5"):
            model.save(tmp_path / "model.h5")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert same(arrays(model.weights), arrays(loaded.weights))
        assert same(arrays(model.optimizer.variables), arrays(loaded.optimizer.variables))
        weights = self.make()
        weights.load_weights(tmp_path / "model.weights.h5")
        ours = keras_ae.load_model(tmp_path / "model.keras")
        for other in (loaded, weights, ours):
            assert type(other) is type(model)
            close([other.predict(x, verbose=0)], [model.predict(x, verbose=0)])
        loaded.fit(x, batch_size=BATCH, verbose=0)
        assert int(loaded.optimizer.iterations) == 2 * STEPS

    def test_mixed_precision(self, x, tmp_path):
        model = compiled(self.make(dtype="mixed_bfloat16"))
        model.save(tmp_path / "model.keras")
        for other in (
            model,
            keras.saving.load_model(tmp_path / "model.keras"),
            keras.models.clone_model(model),
            type(model).from_config(model.get_config()),
        ):
            for network in (other.encoder, other.decoder):
                inner = network.get_layer("dense_0")
                assert inner.compute_dtype == "bfloat16" and inner.kernel.dtype == "float32"
            assert other.dtype_policy.name == "mixed_bfloat16"
            assert all(network.dtype == "float32" for network in other.trainable_variables)
        assert keras.config.dtype_policy().name == "float32"
        output = model.predict(x, verbose=0)
        assert output.dtype == np.float32 and 0 <= output.min() <= output.max() <= 1
        exact = type(model).from_config(model.get_config() | {"dtype": "float32"})
        exact.set_weights(model.get_weights())
        error = np.abs(exact.predict(x, verbose=0) - output).max()
        assert 0 < error < 0.1, "nothing was computed in bfloat16"
        assert np.isfinite(model.fit(x, batch_size=BATCH, verbose=0).history["loss"]).all()

    def test_compute_output_shape(self, x):
        model = self.make()
        shapes = keras.tree.map_structure(lambda part: tuple(part.shape), x)
        assert model.compute_output_shape(shapes) == model.predict(x, verbose=0).shape
        unknown = [(None, *SHAPE), (None,)] if isinstance(x, tuple) else (None, *SHAPE)
        assert model.compute_output_shape(unknown) == (None, *SHAPE)
        symbolic = keras.tree.map_structure(
            lambda part: keras.KerasTensor((None, *part.shape[1:]), str(part.dtype)), x
        )
        assert tuple(model(symbolic).shape) == (None, *SHAPE)

    @pytest.mark.parametrize("called", [False, True], ids=["before_a_call", "after_a_call"])
    def test_int8(self, x, called, tmp_path):
        model = self.make()
        exact = self.make().predict(x, verbose=0)
        if called:
            model.predict(x, verbose=0)
            model.encode(x)
            model.reconstruct(x)
        quietly(model.quantize, "int8")
        dense = [
            layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense)
        ]
        assert len(dense) >= 4
        assert all(
            layer.quantization_mode == "int8"
            and keras.backend.standardize_dtype(layer._kernel.dtype) == "int8"
            for layer in dense
        )
        for rebuilt in (model.predict(x, verbose=0), model.reconstruct(x)):
            assert 0 < np.abs(rebuilt - exact).max() < 0.1
        close([model.reconstruct(x)], [model.predict(x, verbose=0)])
        model.save(tmp_path / "int8.keras")
        loaded = quietly(keras.saving.load_model, tmp_path / "int8.keras")
        close([loaded.predict(x, verbose=0)], [model.predict(x, verbose=0)])
        with pytest.raises(checkpoints.CheckpointError, match="keras.saving.load_model reads it"):
            keras_ae.load_model(tmp_path / "int8.keras")

    def test_export_after_a_call(self, x, tmp_path):
        model = self.make()
        model.predict(x, verbose=0)
        if TORCH:
            onnxruntime = pytest.importorskip("onnxruntime")
            model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
            session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
            parts = [self.images(x).astype("float32") / np.float32(255)]
            parts += [x[1].astype("float32")] if isinstance(x, tuple) else []
            names = [node.name for node in session.get_inputs()]
            rebuilt = session.run(None, dict(zip(names, parts)))[0]
        else:
            tensorflow = pytest.importorskip("tensorflow")
            model.export(tmp_path / "model", verbose=False)
            artifact = tensorflow.saved_model.load(tmp_path / "model")
            floats = self.images(x).astype("float32") / np.float32(255)
            parts = self.with_images(x, floats)
            if isinstance(parts, tuple):
                parts = [parts[0], parts[1].astype("float32")]
            rebuilt = array(artifact.serve(parts))
        close([rebuilt], [model.predict(x, verbose=0)], atol=1e-5)

    # Weights of images

    def test_sample_weights_of_zero_leave_the_weights_unmoved(self, x):
        model = compiled(self.make())
        for arguments in ((x,), (x, self.images(x))):
            before = arrays(model.trainable_variables)
            for weights in (np.zeros(N), np.zeros((N, 1), "float32")):
                kwargs = {"batch_size": BATCH, "verbose": 0, "sample_weight": weights}
                assert model.fit(*arguments, **kwargs).history["loss"] == [0.0]
            assert same(before, arrays(model.trainable_variables))
        model.fit(x, batch_size=BATCH, verbose=0)
        assert not same(before, arrays(model.trainable_variables))

    def test_sample_weights_weigh_the_loss_of_each_image(self, x):
        model = self.compiled()
        weights = np.random.default_rng(0).random(N).astype("float32")
        terms = self.formula(model, x)
        for given in (weights, weights[:, None]):
            logs = model.evaluate(x, sample_weight=given, verbose=0, return_dict=True)
            for name in (*model.terms, "loss"):
                assert logs[name] == pytest.approx((terms[name] * weights).mean(), rel=2e-4)
        with pytest.raises(ValueError, match=r"must be \(N,\), a number an image"):
            model.evaluate(x, sample_weight=np.ones((N, 2)), verbose=0)
        with pytest.raises(ValueError, match=r"must be an array \(N,\), .* got a list"):
            model.evaluate(x, sample_weight=[1.0] * N, verbose=0)

    def test_a_sample_weight_of_two_is_an_image_twice(self, x):
        model, once = compiled(self.make()), np.arange(N) % 2
        start = model.get_weights()
        fit = {"batch_size": N, "shuffle": False, "verbose": 0}
        self.restart(model, start)
        model.fit(x, sample_weight=2.0 * np.ones(N), **fit)
        twice = arrays(model.trainable_variables)
        self.restart(model, start)
        model.optimizer.learning_rate = 2e-4
        model.fit(x, sample_weight=np.ones((N, 1)), **fit)
        close(twice, arrays(model.trainable_variables), atol=1e-5)
        self.restart(model, start)
        model.fit(x, **fit)
        close(twice, arrays(model.trainable_variables), atol=1e-5)
        self.restart(model, start)
        model.fit(x, sample_weight=once, **fit)
        other = arrays(model.trainable_variables)
        assert not all(np.allclose(a, b, atol=1e-7) for a, b in zip(twice, other))

    # Where batches come from

    def sources(self, x, weights=None):
        """The batches of x in everything that Keras takes them from, by name: functions that make it."""
        import tensorflow as tf
        import torch

        pair = isinstance(x, tuple)
        parts = x if pair else (x,)
        if weights is not None:
            parts = (*x, weights) if pair else (x, x, weights)

        def generator():
            while True:
                yield from (Batches(*parts)[i] for i in range(STEPS))

        tensors = [torch.from_numpy(part) for part in parts]
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), BATCH)
        slices = parts if len(parts) > 1 else parts[0]
        return {
            "tf.data": tf.data.Dataset.from_tensor_slices(slices).batch(BATCH),
            "DataLoader": loader,
            "PyDataset": Batches(*parts),
            "generator": generator(),
        }

    @pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
    def test_every_source_trains_to_the_same_weights(self, x, weighted):
        model = compiled(self.make())
        start = model.get_weights()
        weights = np.linspace(0.1, 2.0, N, dtype="float32") if weighted else None
        self.restart(model, start)
        model.fit(x, sample_weight=weights, batch_size=BATCH, shuffle=False, verbose=0)
        expected = model.get_weights()
        assert not same(start, expected)
        for name, source in self.sources(x, weights).items():
            self.restart(model, start)
            model.fit(source, steps_per_epoch=STEPS, shuffle=False, verbose=0)
            for ours, theirs in zip(model.get_weights(), expected):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)

    def test_every_source_is_predicted_evaluated_and_encoded(self, x):
        model = self.compiled()
        rebuilt, codes = model.predict(x, verbose=0), model.encode(x)
        loss = self.formula(model, x)["loss"].mean()
        for name, source in self.sources(x).items():
            if name == "generator":  # which has no end
                continue
            close([model.predict(source, verbose=0)], [rebuilt])
            close([model.reconstruct(source)], [rebuilt])
            close([model.encode(source)], [codes], atol=1e-5)
            logs = model.evaluate(source, verbose=0, return_dict=True)
            assert logs["loss"] == pytest.approx(loss, rel=2e-4), name

    def test_prior_of_every_source(self, x):
        if not issubclass(self.model, VAE):
            assert not hasattr(self.model, "fit_prior")
            return
        model = self.make()
        labels = np.arange(4) if isinstance(x, tuple) else None
        model.fit_prior(x)
        expected = model.sample(4, labels)
        for name, source in self.sources(x).items():
            if name != "generator":
                model.fit_prior(source)
                close([model.sample(4, labels)], [expected], atol=1e-3)

    def test_number_types(self, x):
        model = self.compiled()
        expected = model.predict(x, verbose=0)
        loss = model.evaluate(x, verbose=0, return_dict=True)["loss"]
        images = self.images(x)
        for dtype in ("uint8", "int8", "int64", "int32", "uint16", "float64", "float32", "float16"):
            given = images // 2 if dtype == "int8" else images
            given = given.astype(dtype)
            if "float" in dtype:
                given /= 255
            if dtype == "int8":
                continue
            given = self.with_images(x, given)
            tolerance = 2e-3 if dtype == "float16" else 1e-5
            close([model.predict(given, verbose=0)], [expected], atol=tolerance)
            close([model.reconstruct(given)], [expected], atol=tolerance)
            again = model.evaluate(given, verbose=0, return_dict=True)["loss"]
            assert again == pytest.approx(loss, rel=2e-3 if dtype == "float16" else 1e-4), dtype
        binary = self.with_images(x, images > 127)
        assert np.isfinite(model.fit(binary, verbose=0).history["loss"]).all()

    @pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
    def test_numbers_on_another_scale_are_refused(self, x, dtype):
        model = self.compiled()
        factor = 10 if dtype == "int64" else 1
        wrong = self.with_images(x, self.images(x).astype(dtype) * factor)
        uses = [model.fit, model.evaluate, model.predict, model.reconstruct, model.encode]
        if hasattr(model, "fit_prior"):
            uses.append(model.fit_prior)
        none = self.with_images(x, self.images(x) * np.nan)
        for use in uses:
            for given in (wrong, none):
                with pytest.raises(ValueError, match="Rescale them, or give uint8"):
                    use(given)
        with pytest.raises(ValueError, match="Rescale them"):
            model.fit(x, validation_data=(wrong,), verbose=0)
        with pytest.raises(ValueError, match="Rescale them"):
            model.fit(Batches(wrong), verbose=0)

    # What fit takes besides

    def test_validation_data(self, x):
        model = self.compiled()
        forms = {"images": x, "tuple": (x,), "target": (x, self.images(x))}
        forms["weights"] = (x, None, np.ones(N))
        forms |= self.sources(x)
        if isinstance(x, tuple):
            del forms["images"]
            forms |= {"pair": x, "pair and weights": (*x, np.ones(N))}
        for name, form in forms.items():
            steps = {"validation_steps": STEPS} if name == "generator" else {}
            history = model.fit(x, validation_data=form, verbose=0, **steps).history
            assert {f"val_{key}" for key in history if "val_" not in key} <= set(history), name
            loss = self.formula(model, x)["loss"].mean()
            assert history["val_loss"][0] == pytest.approx(loss, rel=1e-3), name
        history = model.fit(x, validation_split=0.25, verbose=0).history
        assert np.isfinite(history["val_loss"][0])

    def test_wrong_validation_data_is_refused_before_the_first_step(self, x):
        model = self.compiled()
        wrong = self.with_images(x, self.images(x).transpose(0, 3, 1, 2))
        with pytest.raises(ValueError, match=r"must be \(N, 28, 28, 1\); got \(\d+, 1, 28, 28\)"):
            model.fit(x, validation_data=(wrong,), verbose=0)
        assert int(model.optimizer.iterations) == 0

    def test_metrics_are_of_target_and_reconstruction(self, x):
        weights = np.linspace(0, 2, N, dtype="float32")
        model = self.compiled(metrics=["mae"], weighted_metrics=["mse"])
        rebuilt = self.formula(model, x)["rebuilt"]
        error = rebuilt - self.images(x) / 255
        kwargs = {"verbose": 0, "return_dict": True, "batch_size": N}
        logs = model.evaluate(x, **kwargs)
        names = [name for name in model.metrics_names if name != "compile_metrics"]
        assert names[: 1 + len(model.terms)] == ["loss", *model.terms]
        assert logs["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
        assert logs["mse"] == pytest.approx(np.square(error).mean(), rel=1e-4)
        logs = model.evaluate(x, sample_weight=weights, **kwargs)
        assert logs["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
        weighted = (np.square(error).reshape(N, -1).mean(-1) * weights).sum() / weights.sum()
        assert logs["mse"] == pytest.approx(weighted, rel=1e-4)
        flipped = self.images(x)[:, ::-1]
        logs = model.evaluate(x, flipped, **kwargs)
        assert logs["mae"] == pytest.approx(np.abs(rebuilt - flipped / 255).mean(), rel=1e-4)
        history = model.fit(x, validation_data=(x,), verbose=0).history
        assert history["mae"][0] > 0.01 and history["val_mae"][0] > 0.01

    def test_targets(self, x):
        """`fit(noisy, clean)` minimises the distance to the clean images."""
        model = self.compiled()
        model.compile(keras.optimizers.SGD(1e-6))
        clean = np.ascontiguousarray(self.images(x)[:, ::-1])
        terms = self.formula(model, x, clean)
        logs = model.evaluate(x, clean, verbose=0, return_dict=True)
        for name in (*model.terms, "loss"):
            assert logs[name] == pytest.approx(terms[name].mean(), rel=2e-4)
        bias = model.decoder.get_layer("pixels").bias
        start, h = array(bias), 0.01
        values = []
        for step in (h, -h):
            bias.assign(start + step)
            values.append(float(model.compute_loss(x, clean)))
        bias.assign(start)
        fit = model.fit(x, clean, batch_size=N, verbose=0)
        assert fit.history["reconstruction"][0] == pytest.approx(
            terms["reconstruction"].mean(), rel=0.1
        )
        slope = (values[0] - values[1]) / (2 * h)
        moved = (array(bias).astype("float64") - start).sum() / -1e-6
        assert moved == pytest.approx(slope, rel=0.05)
        floats = (clean / 255).astype("float32")
        again = model.evaluate(x, floats, verbose=0, return_dict=True)
        expected = self.formula(model, x, clean)["loss"].mean()
        assert again["loss"] == pytest.approx(expected, rel=2e-4)
        with pytest.raises(ValueError, match="Targets of an? .* must be"):
            model.fit(x, clean[:, :14], verbose=0)

    def test_a_loss_of_keras_is_refused(self):
        with pytest.raises(ValueError, match="give reconstruction= to its constructor"):
            self.make().compile("adam", loss="mse")
        with pytest.raises(ValueError, match="override term_weights"):
            self.make().compile("adam", loss_weights=[1.0])

    def test_a_metric_with_the_name_of_a_term_is_refused(self):
        term = self.make().terms[-1]
        with pytest.raises(ValueError, match=f"A metric called '{term}' would hide"):
            self.make().compile("adam", metrics=["mae", keras.metrics.MeanSquaredError(name=term)])

    def test_images_of_another_shape_are_refused(self, x):
        model = self.compiled()
        images = self.images(x)
        for wrong in (
            images.transpose(0, 3, 1, 2),
            images[..., 0],
            np.repeat(images, 3, -1),
            images[:, :14],
        ):
            given = self.with_images(x, wrong)
            for use in (model.fit, model.evaluate, model.predict, model.encode, model.reconstruct):
                with pytest.raises(ValueError, match=r"must be \(N, 28, 28, 1\); got \("):
                    use(given)

            def generator(given=given):
                while True:
                    yield (given,)

            for source in (Batches(given), generator()):
                with pytest.raises(ValueError, match=r"must be \(N, 28, 28, 1\); got \("):
                    model.fit(source, steps_per_epoch=1, verbose=0)
        square = self.with_images(x, np.resize(images[..., 0], (28, 28, 28)))
        if isinstance(x, tuple):
            square = square[0], np.resize(x[1], 28)
        with pytest.raises(ValueError, match=r"must be \(N, 28, 28, 1\); got \(28, 28, 28\)"):
            model.fit(square, batch_size=28, verbose=0)
        assert int(model.optimizer.iterations) == 0

    # Layers

    @torch_only
    def test_forward_hooks_fire(self, x):
        model, fired = self.compiled(), []
        parts = {
            "model": model,
            "encoder": model.encoder,
            "decoder": model.decoder.get_layer("pixels"),
            "dense": model.encoder.get_layer("dense_0"),
        }
        for name, part in parts.items():
            part.register_forward_hook(lambda *_, name=name: fired.append(name))
        uses = {
            "fit": lambda: model.fit(x, verbose=0),
            "evaluate": lambda: model.evaluate(x, verbose=0),
            "predict": lambda: model.predict(x, verbose=0),
            "call": lambda: model(x),
        }
        for use, run in uses.items():
            fired.clear()
            run()
            assert set(fired) == set(parts), use

    def test_a_replaced_activation_acts_everywhere(self, x):
        if isinstance(x, tuple):
            x = x[0], np.full(N, 3)
        model = self.compiled()
        before = model.predict(x, verbose=0), model.encode(x), model.reconstruct(x)
        dense, pixels = model.encoder.get_layer("dense_0"), model.decoder.get_layer("pixels")
        dense.activation = dead
        compiled(model)  # as Keras asks for after a change
        after = model.predict(x, verbose=0), model.encode(x), model.reconstruct(x)
        for old, new in zip(before, after):
            assert np.abs(old - new).max() > 1e-4
            assert np.abs(new - new[:1]).max() < 1e-6, "all images are alike to the encoder"
        loss = model.evaluate(x, verbose=0, return_dict=True)["loss"]
        assert loss == pytest.approx(self.formula(model, x)["loss"].mean(), rel=2e-4)
        kernel, bias = array(dense.kernel), array(pixels.bias)
        model.fit(x, verbose=0)
        assert np.array_equal(kernel, array(dense.kernel)), "it had a gradient"
        assert not np.array_equal(bias, array(pixels.bias))

    def test_frozen_layers_stay(self, x):
        model = self.make()
        model.encoder.trainable = False
        compiled(model)
        before = model.encoder.get_weights(), model.decoder.get_weights()
        model.fit(x, verbose=0)
        assert same(before[0], model.encoder.get_weights())
        assert not same(before[1], model.decoder.get_weights())

    # Callbacks and steps

    def test_callbacks_see_every_batch(self, x):
        counter = Counter()
        self.compiled().fit(x, batch_size=BATCH, epochs=2, verbose=0, callbacks=[counter])
        assert counter.begun == counter.ended == [*range(STEPS)] * 2

    @several_steps
    def test_several_steps_an_execution_are_the_same_steps(self, x):
        weights, losses = [], []
        for steps in (1, 2):
            model = compiled(self.make(), steps_per_execution=steps)
            self.restart(model, model.get_weights())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of an execution that is not full
                fit = model.fit(x, batch_size=BATCH, shuffle=False, verbose=0, epochs=2)
            losses.append(fit.history["loss"])
            weights.append(model.get_weights())
        close(*weights, atol=1e-5)
        close(*losses)

    def test_train_on_batch_and_its_siblings(self, x):
        model = self.compiled()
        pair = (x, None) if isinstance(x, tuple) else (x,)
        logs = model.test_on_batch(*pair, return_dict=True)
        assert logs["loss"] == pytest.approx(self.formula(model, x)["loss"].mean(), rel=2e-4)
        assert set(model.train_on_batch(*pair, return_dict=True)) == set(logs)
        close([model.predict_on_batch(x)], [model.predict(x, verbose=0)])


def dead(x):
    """An activation through which nothing comes, and no gradient."""
    return x * 0.0


class Pairs:
    """What a model of images with labels promises besides."""

    def test_labels_of_every_form(self, x):
        model = self.compiled()
        images, labels = x
        one_hot = np.eye(CLASSES, dtype="float32")[labels]
        forms = [labels, labels[:, None], labels.astype("uint8"), labels.astype("float32"), one_hot]
        for form in forms:
            compiled(model)  # tensorflow's traces of one rank do not take the other
            loss = self.formula(model, x)["loss"].mean()
            for arguments in (((images, form),), (images, form), ([images, form],)):
                logs = model.evaluate(*arguments, verbose=0, return_dict=True)
                assert logs["loss"] == pytest.approx(loss, rel=2e-4)
            close([model.encode((images, form))], [model.encode(x)])
            assert np.isfinite(model.fit(images, form, verbose=0).history["loss"][0])
            loss = self.formula(model, x)["loss"].mean()
            for source in self.sources((images, form)).values():
                logs = model.evaluate(source, steps=STEPS, verbose=0, return_dict=True)
                assert logs["loss"] == pytest.approx(loss, rel=2e-4)

    def test_class_weights_are_sample_weights(self, x):
        model = compiled(self.make())
        images, labels = x
        start, by_class = model.get_weights(), {k: 0.2 * k for k in range(CLASSES)}
        weights = 0.2 * labels.astype("float32")
        fit = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
        results = []
        for arguments, more in (
            ((x,), {"sample_weight": weights}),
            ((x,), {"class_weight": by_class}),
            ((images, labels), {"class_weight": by_class}),
            ((images, labels[:, None]), {"class_weight": by_class}),
            ((images, np.eye(CLASSES)[labels]), {"class_weight": by_class}),
            ((Batches(images, labels),), {"class_weight": by_class}),
        ):
            self.restart(model, start)
            history = model.fit(*arguments, **more, **fit).history
            results.append((history["loss"][0], model.get_weights()))
        self.restart(model, start)
        model.fit(x, **fit)
        pairs = zip(results[0][1], model.get_weights())
        assert not all(np.allclose(a, b, atol=1e-7) for a, b in pairs)
        for loss, ours in results[1:]:
            assert loss == pytest.approx(results[0][0], rel=1e-4)
            close(ours, results[0][1], atol=1e-5)

    def test_noisy_images_with_labels(self, x):
        model = self.compiled()
        images, labels = x
        clean = np.ascontiguousarray(images[:, ::-1])
        loss = self.formula(model, x, clean)["loss"].mean()
        logs = model.evaluate((images, labels), clean, verbose=0, return_dict=True)
        assert logs["loss"] == pytest.approx(loss, rel=2e-4)

    def test_wrong_labels_are_refused(self, x):
        model, (images, labels) = self.compiled(), x
        with pytest.raises(ValueError, match=r"fit\(\(images, labels\)\)"):
            model.fit(images, verbose=0)
        for wrong in (labels + 1, labels - 1, labels[:, None] + 1):
            with pytest.raises(ValueError, match="0 to 9"):
                model.fit((images, wrong), verbose=0)
        with pytest.raises(ValueError, match=r"one-hot; got"):
            model.fit((images, np.ones((N, 4), "float32")), verbose=0)


AE.num_classes_needed = VAE.num_classes_needed = False
CVAE.num_classes_needed = True


class TestAEOfConv(Contract):
    model, backbone = AE, "conv"


class TestAEOfMlp(Contract):
    model, backbone = AE, "mlp"


class TestVAEOfConv(Contract):
    model, backbone = VAE, "conv"


class TestVAEOfMlp(Contract):
    model, backbone = VAE, "mlp"


class TestCVAEOfConv(Pairs, Contract):
    model, backbone = CVAE, "conv"


class TestCVAEOfMlp(Pairs, Contract):
    model, backbone = CVAE, "mlp"


# An objective of the user's


@keras.saving.register_keras_serializable("contract")
class TCVAE(keras_ae.VAE):
    terms = (*keras_ae.VAE.terms, "total_correlation")

    def loss_terms(self, target, outputs):
        spread = ops.sum(ops.abs(outputs["latent"]), axis=-1)
        return {**super().loss_terms(target, outputs), "total_correlation": spread}

    def term_weights(self):
        return {**super().term_weights(), "total_correlation": 5.0}


def mlp(model=VAE, **kwargs):
    keras.utils.set_random_seed(3)
    return model(SHAPE, LATENTS, "mlp", (16, 8), **kwargs)


class TestObjective:
    def test_a_term_is_trained_tracked_and_weighed(self, digits):
        model, x = compiled(certain(mlp(TCVAE))), digits[0][:N]
        spread = np.abs(model.encode(x)).sum(-1).mean()
        logs = model.evaluate(x, verbose=0, return_dict=True)
        names = ["loss", "reconstruction", "kl", "total_correlation", "kl_weight"]
        assert model.metrics_names == names and set(logs) == set(names)
        assert logs["total_correlation"] == pytest.approx(spread, rel=1e-3)
        total = logs["reconstruction"] + logs["kl"] + 5.0 * logs["total_correlation"]
        assert logs["loss"] == pytest.approx(total, rel=1e-4)
        history = model.fit(
            x, batch_size=BATCH, verbose=0, validation_data=(x,), callbacks=[KLAnnealing()]
        ).history
        assert "val_total_correlation" in history and history["kl_weight"][0] < 0.5

    def test_its_weight_is_what_it_is_minimised_by(self, digits):
        class Heavy(TCVAE):
            weight = 1000.0

            def term_weights(self):
                return {**super().term_weights(), "total_correlation": self.weight}

        class Weightless(Heavy):
            weight = 0.0

        reached = {}
        for made in (Heavy, Weightless):
            model = mlp(made)
            model.compile(Adam(1e-2))
            history = model.fit(digits[0][:N], epochs=15, verbose=0).history
            reached[made] = history["total_correlation"][-1]
        assert reached[Heavy] < 0.5 * reached[Weightless]

    def test_it_is_saved_and_loaded(self, digits, tmp_path):
        model = mlp(TCVAE)
        model.fit_prior(digits[0][:N])
        checkpoints.save_model(model, tmp_path / "model.keras")
        for load in (keras.saving.load_model, keras_ae.load_model):
            loaded = load(tmp_path / "model.keras")
            assert type(loaded) is TCVAE
            assert np.array_equal(loaded.sample(3), model.sample(3))

    def test_a_run_of_it(self, digits, tmp_path):
        arguments = {"train": digits[0][:50], "test": digits[0][50:80]}
        settings, counter = Settings("vae", epochs=2, batch_size=16), Counter()
        keras_ae.fit(
            settings, tmp_path / "run", model=mlp(TCVAE), callbacks=[counter], verbose=0,
            report=lambda line: None, **arguments,
        )  # fmt: skip
        rows = checkpoints.read_history(tmp_path / "run")
        assert len(rows) == 2 and "val_total_correlation" in rows[0]
        assert type(keras_ae.load_model(tmp_path / "run")) is TCVAE
        assert counter.begun == counter.ended == [0, 1, 2, 3] * 2

    def test_a_term_that_is_not_named_is_refused(self, digits):
        class Unnamed(VAE):
            def loss_terms(self, target, outputs):
                return {**super().loss_terms(target, outputs), "extra": outputs["latent"][:, 0]}

        class Missing(VAE):
            terms = (*VAE.terms, "extra")

        class Weighed(VAE):
            def term_weights(self):
                return {**super().term_weights(), "extra": 2.0}

        class Scalar(TCVAE):
            def loss_terms(self, target, outputs):
                spread = ops.mean(outputs["latent"])
                return {**super().loss_terms(target, outputs), "total_correlation": spread}

        class Short(TCVAE):
            def loss_terms(self, target, outputs):
                return {**super().loss_terms(target, outputs), "total_correlation": ops.ones((3,))}

        class Vector(TCVAE):
            def term_weights(self):
                return {**super().term_weights(), "total_correlation": ops.ones((7,))}

        class Nothing(TCVAE):
            def term_weights(self):
                return {**super().term_weights(), "total_correlation": None}

        class Number(TCVAE):
            def loss_terms(self, target, outputs):
                return {**super().loss_terms(target, outputs), "total_correlation": 1.0}

        class NoTerms(TCVAE):
            def loss_terms(self, target, outputs):
                return None

        class NoWeights(TCVAE):
            def term_weights(self):
                return None

        class Blind(TCVAE):
            def forward(self, inputs, training=False, sample=False):
                outputs = super().forward(inputs, training, sample)
                return {name: x for name, x in outputs.items() if name != "reconstruction"}

        for model, message in (
            (Unnamed, "loss_terms of Unnamed returned .*extra"),
            (Missing, "its `terms` are reconstruction, kl, extra"),
            (Weighed, "'extra', which is none of its terms"),
            (Scalar, r"'total_correlation' must be \(N,\)"),
            (Short, r"'total_correlation' must be \(N,\), a number an image; got \(3,\)"),
            (Vector, r"weight of the term 'total_correlation' must be a scalar; got \(7,\)"),
            (Nothing, "weight of the term 'total_correlation' must be a scalar; got None"),
            (Number, r"'total_correlation' must be \(N,\), a number an image; got \(\)"),
            (NoTerms, "loss_terms of NoTerms must return a dict.*got a NoneType"),
            (NoWeights, "term_weights of NoWeights must return a dict.*got a NoneType"),
            (Blind, "forward of Blind must return a dict with 'reconstruction'"),
        ):
            with pytest.raises(ValueError, match=message):
                compiled(mlp(model)).fit(digits[0][:N], verbose=0)

    @pytest.mark.parametrize("term", ["loss", "kl_weight", "kl", "epoch", "val_kl"])
    def test_a_term_of_a_name_that_is_taken_is_refused(self, term):
        class Named(VAE):
            terms = (*VAE.terms, term)

        with pytest.raises(
            ValueError, match=f"Named has a term '{term}', which names something else"
        ):
            mlp(Named)

    def test_settings_of_a_term_that_is_not_there_are_refused(self, digits, tmp_path):
        class Bound(VAE):
            terms = ("bound",)

            def loss_terms(self, target, outputs):
                return {"bound": sum(super().loss_terms(target, outputs).values())}

            def term_weights(self):
                return {}

        settings = Settings("vae", epochs=1, kl_weight=2.0)
        images = {"train": digits[0][:32], "test": digits[0][32:64]}
        with pytest.raises(ValueError, match="Bound has no term kl, which kl_weight is for"):
            keras_ae.fit(settings, tmp_path / "run", model=mlp(Bound), verbose=0, **images)

    @pytest.mark.parametrize("steps", [1, pytest.param(2, marks=several_steps)])
    def test_losses_of_ones_own_count(self, steps, digits):
        class Lossy(VAE):
            @property
            def losses(self):
                return [*super().losses, 1000.0 * ops.ones(())]

        model = compiled(mlp(Lossy), steps_per_execution=steps)
        assert model.fit(digits[0][:N], batch_size=BATCH, verbose=0).history["loss"][0] > 1000.0

    def test_call_is_not_to_be_overridden(self):
        with pytest.raises(TypeError, match=r"override forward\(inputs, training, sample\)"):

            class Called(VAE):
                def call(self, inputs):
                    return inputs


@keras.saving.register_keras_serializable("contract")
class Inverted(VAE):
    """A model that overrides its one path."""

    def forward(self, inputs, training=False, sample=False):
        outputs = super().forward(inputs, training, sample)
        return {
            **outputs,
            "latent": -outputs["latent"],
            "reconstruction": 1.0 - outputs["reconstruction"],
        }


@pytest.mark.parametrize("reconstruction", ["l1", "bce"])
def test_a_forward_of_ones_own_is_the_only_path(digits, tmp_path, reconstruction):
    x = digits[0][:N]
    model = compiled(certain(mlp(Inverted, reconstruction=reconstruction)))
    plain = certain(mlp(VAE, reconstruction=reconstruction))
    for made in (model, plain):
        made.decoder.get_layer("pixels").bias.assign(np.full(784, -2.0))
    rebuilt = 1 - plain.predict(x, verbose=0)
    close([model.predict(x, verbose=0), model.reconstruct(x)], [rebuilt] * 2, atol=1e-5)
    close([array(model(x))], [rebuilt], atol=1e-5)
    close([model.encode(x)], [-plain.encode(x)], atol=1e-5)
    floats = (x / 255).astype("float32")
    if reconstruction == "l1":
        error = np.abs(floats - rebuilt).reshape(N, -1).sum(-1).mean()
    else:
        error = array(bce(floats, rebuilt)).mean()
    logs = model.evaluate(x, verbose=0, return_dict=True)
    assert logs["reconstruction"] == pytest.approx(error, rel=1e-3)
    history = model.fit(x, batch_size=N, verbose=0, validation_data=(x,)).history
    assert history["reconstruction"][0] == pytest.approx(error, rel=1e-3)
    # The bias of the pixels now falls where the images are bright.
    assert history["val_reconstruction"][0] < error
    rebuilt, floats = model.predict(x, verbose=0), np.asarray(x / 255, "float32")
    if TORCH and export.on_cpu(model):  # from a GPU another process writes, which has no `Inverted`
        import torch

        export.export(model, tmp_path / "model.pt2", "torch", "autoencoder")
        program = torch.export.load(tmp_path / "model.pt2").module()
        exported = program(torch.from_numpy(floats)).detach().numpy()
    else:
        exported = array(export.build_part(model, "autoencoder")([floats]))
    close([exported], [rebuilt], atol=1e-5)


@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.skipif(not TORCH, reason="forks"))]
)
def test_a_loader_is_looked_at_and_draws_as_if_it_had_not_been(workers, digits):
    torch = pytest.importorskip("torch")
    images = torch.from_numpy(digits[0][:64].astype("float32"))

    def loader():
        rows = torch.utils.data.TensorDataset(images)
        return torch.utils.data.DataLoader(
            rows, 16, shuffle=True, generator=torch.Generator().manual_seed(1), num_workers=workers
        )

    looked = loader()
    with pytest.raises(ValueError, match="Rescale them"):
        compiled(mlp()).fit(looked, verbose=0)
    assert torch.equal(next(iter(looked))[0], next(iter(loader()))[0])


# Losses and layers of the user's networks


@keras.saving.register_keras_serializable("contract")
class Charged(keras.layers.Layer):
    """A layer that adds a loss."""

    def call(self, x):
        self.add_loss(3.0 * ops.mean(ops.square(x)))
        return x


def own_encoder(heads=("code",), charged=False, regularizer=None, classes=0):
    image = keras.Input(SHAPE, name="image")
    label = [keras.Input((classes,), name="label")] if classes else []
    x = keras.layers.Flatten()(image)
    x = keras.layers.Concatenate()([x, *label]) if label else x
    x = keras.layers.Dense(8, kernel_regularizer=regularizer, name="first")(x)
    x = Charged(name="charged")(x) if charged else x
    return keras.Model(
        [image, *label], {head: keras.layers.Dense(LATENTS, name=head)(x) for head in heads}
    )


@pytest.mark.parametrize("model", [AE, VAE, CVAE])
class TestAddedLosses:
    def make(self, model, **kwargs):
        keras.utils.set_random_seed(3)
        classes = CLASSES if model is CVAE else 0
        encoder = own_encoder(model.heads, classes=classes, **kwargs)
        return certain(model(SHAPE, LATENTS, "mlp", (8,), encoder=encoder))

    def data(self, model, digits):
        return digits[0][:N] if model is not CVAE else (digits[0][:N], digits[1][:N])

    def test_they_count_in_the_loss(self, model, digits):
        x = self.data(model, digits)
        made = compiled(self.make(model, charged=True, regularizer="l2"))
        logs = made.evaluate(x, batch_size=N, verbose=0, return_dict=True)
        made(x)
        added = float(sum(map(float, made.losses)))
        assert added > 0.05
        terms = sum(logs[name] for name in made.terms)
        assert logs["loss"] == pytest.approx(terms + added, rel=1e-4)
        assert logs["loss"] - terms > 0.05
        history = made.fit(x, batch_size=N, epochs=2, verbose=0).history
        assert history["loss"][0] == pytest.approx(logs["loss"], rel=1e-3)

    @pytest.mark.parametrize("steps", [1, pytest.param(2, marks=several_steps)])
    def test_they_count_in_the_gradient(self, model, steps, digits):
        x, moved = self.data(model, digits), {}
        for kind, arguments in (
            ("plain", {}),
            ("regularized", {"regularizer": keras.regularizers.L2(0.5)}),
            ("charged", {"charged": True}),
        ):
            made = compiled(self.make(model, **arguments), steps_per_execution=steps)
            kernel = made.encoder.get_layer("first").kernel
            start = array(kernel)
            made.optimizer.learning_rate = 1e-3
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made.fit(x, batch_size=N, verbose=0)
            moved[kind] = (array(kernel) - start).astype("float64")
        # The gradient of 0.5 |w|^2 is w, and the rate 1e-3.
        np.testing.assert_allclose(moved["regularized"] - moved["plain"], -1e-3 * start, atol=2e-6)
        assert np.abs(moved["charged"] - moved["plain"]).max() > 1e-5


def test_activity_regularizers_count(digits):
    image = keras.Input(SHAPE, name="image")
    x = keras.layers.Dense(4, activity_regularizer="l2", name="first")(
        keras.layers.Flatten()(image)
    )
    encoder = keras.Model(image, {"code": keras.layers.Dense(LATENTS, name="code")(x)})
    made = compiled(AE(SHAPE, LATENTS, "mlp", (8,), encoder=encoder))
    logs = made.evaluate(digits[0][:N], batch_size=N, verbose=0, return_dict=True)
    assert logs["loss"] > logs["reconstruction"] + 1e-4
    history = made.fit(digits[0][:N], batch_size=N, verbose=0).history
    assert history["loss"][0] > history["reconstruction"][0] + 1e-4


LAYERS = {
    "dilation": lambda: keras.layers.Conv2D(4, 3, padding="same", dilation_rate=2),
    "groups": lambda: keras.layers.Conv2D(4, 3, padding="same", groups=2),
    "strides": lambda: keras.layers.Conv2D(4, (2, 5), strides=(3, 2), padding="same"),
    "valid": lambda: keras.layers.Conv2D(4, 3, activation="tanh"),
    "channels_first": lambda: keras.layers.BatchNormalization(axis=1),
    "no_scale": lambda: keras.layers.BatchNormalization(scale=False),
    "no_center": lambda: keras.layers.BatchNormalization(center=False),
    "ours_channels_first": lambda: keras_ae.backbones.BatchNormalization(axis=1),
    "transposed": lambda: keras.layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
    "transposed_valid": lambda: keras.layers.Conv2DTranspose(4, 3, strides=2),
    "dropout": lambda: keras.layers.Dropout(0.0),
    "prelu": lambda: keras.layers.PReLU(),
    "no_bias": lambda: keras.layers.Conv2D(4, 1, use_bias=False, activation="gelu"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_any_layer_computes_what_keras_computes(name, digits):
    """The code and the trained weights of a network with such a layer, against Keras' own fit."""
    x = (digits[0][:N] / 255).astype("float32")

    def network():
        keras.utils.set_random_seed(3)
        image = keras.Input(SHAPE, name="image")
        y = keras.layers.Conv2D(4, 3, strides=2, padding="same")(image)
        y = keras.layers.Flatten()(LAYERS[name]()(y))
        return keras.Model(image, {"code": keras.layers.Dense(LATENTS, name="code")(y)})

    encoder, reference = network(), network()
    keras.utils.set_random_seed(4)
    model = AE(SHAPE, LATENTS, "mlp", (8,), "mse", encoder=encoder)
    decoder = keras.models.clone_model(model.decoder)
    decoder.set_weights(model.decoder.get_weights())
    inputs = keras.Input(SHAPE)
    plain = keras.Model(inputs, decoder(reference(inputs)["code"]))
    plain.compile(keras.optimizers.SGD(1e-3 * 784), "mse")
    model.compile(keras.optimizers.SGD(1e-3))
    close([model.encode(x)], [reference.predict(x, verbose=0)["code"]], atol=1e-5)
    for made, arguments in ((model, (x,)), (plain, (x, x))):
        made.fit(*arguments, batch_size=BATCH, shuffle=False, verbose=0)
    close(model.encoder.get_weights(), reference.get_weights(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 4, "strides": 2, "padding": "same", "use_bias": False},
        {"kernel_size": (5, 3), "padding": "same", "activation": "tanh"},
        {"kernel_size": 3, "strides": 2, "padding": "same"},
        {"kernel_size": 4, "strides": 2},
    ],
    ids=["ours", "longer", "uneven", "valid"],
)
def test_our_transposing_layer_learns_what_that_of_keras_learns(options):
    x = np.random.default_rng(0).normal(size=(8, 7, 5, 2)).astype("float32")

    def trained(kind):
        keras.utils.set_random_seed(3)
        image = keras.Input((7, 5, 2))
        y = keras.layers.Conv2D(3, 3, padding="same")(image)
        model = keras.Model(image, kind(4, **options)(y))
        model.compile(keras.optimizers.SGD(0.1), "mse")
        target = np.random.default_rng(1).normal(size=(8, *model.output_shape[1:]))
        model.fit(x, target, 4, epochs=3, shuffle=False, verbose=0)
        return model

    ours, theirs = trained(Conv2DTranspose), trained(keras.layers.Conv2DTranspose)
    close(ours.get_weights(), theirs.get_weights(), rtol=1e-4, atol=1e-6)
    close([ours.predict(x, verbose=0)], [theirs.predict(x, verbose=0)], rtol=1e-4, atol=1e-5)


# One thing each


@pytest.mark.skipif(not (TORCH and fast.ON), reason="Keras' own predict calls it")
def test_predict_calls_nothing_that_the_next_keras_lacks(digits, monkeypatch):
    gone = "_should_torch_compile"  # in 3.16
    for base in keras.Model.__mro__:
        if gone in vars(base):
            monkeypatch.delattr(base, gone)
    assert compiled(mlp()).predict(digits[0][:N], verbose=0).shape == (N, *SHAPE)


@pytest.mark.parametrize("before", [0, 2])
def test_adam_follows_its_counter_under_a_schedule(before, digits):
    x, moved = digits[0][:N], []
    for optimizer in (Adam, keras.optimizers.Adam):
        model = mlp(AE)
        model.compile(optimizer(keras.optimizers.schedules.CosineDecay(1e-2, 100)))
        for _ in range(before):
            model.fit(x, batch_size=N, verbose=0)
        model.optimizer.build(model.trainable_variables)
        model.optimizer.iterations.assign(95)
        start = arrays(model.trainable_variables)
        model.fit(x, batch_size=N, verbose=0)
        assert int(model.optimizer.iterations) == 96
        moved.append([a - b for a, b in zip(arrays(model.trainable_variables), start)])
    close(*moved, rtol=1e-2, atol=1e-6)
    assert max(np.abs(change).max() for change in moved[0]) < 1e-3


def test_threads_do_not_share_how_networks_are_built(digits, tmp_path):
    model, path, done = mlp(), tmp_path / "model.keras", threading.Event()
    checkpoints.save_model(model, path)
    failures = []

    def load_and_save():
        try:
            while not done.is_set():
                checkpoints.save_model(keras_ae.load_model(path), tmp_path / "copy.keras")
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=load_and_save)
    thread.start()
    try:
        made = [VAE(SHAPE, 2, "mlp", (8,)) for _ in range(20)]
    finally:
        done.set()
        thread.join()
    assert not failures
    kernels = [w for one in made for w in one.trainable_variables if w.path.endswith("kernel")]
    assert all(np.abs(array(kernel)).max() > 0 for kernel in kernels)
    assert same(arrays(keras_ae.load_model(tmp_path / "copy.keras").weights), arrays(model.weights))


def test_a_run_changes_no_state_of_the_process(digits, tmp_path, monkeypatch):
    """The umask and the seeds of others are not its own."""

    def refuse(*arguments):
        raise AssertionError("the state of the process was changed")

    monkeypatch.setattr(os, "umask", refuse)
    monkeypatch.setattr(keras.utils, "set_random_seed", refuse)
    drawn = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        keras_ae.fit(
            Settings("vae", epochs=1, backbone="mlp", hidden=(8,)), tmp_path / str(seed), verbose=0,
            train=digits[0][:40], test=digits[0][:20], report=lambda line: None,
        )  # fmt: skip
        drawn.append((random.random(), np.random.random()))
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]
    weights = [arrays(keras_ae.load_model(tmp_path / seed).weights) for seed in "12"]
    assert same(*weights)


@keras.saving.register_keras_serializable("contract")
def huber(target, reconstruction):
    """A loss of the user's, which stands for no likelihood."""
    difference = ops.abs(reconstruction - target)
    return ops.sum(ops.where(difference < 0.1, 5 * difference**2, difference), axis=(1, 2, 3))


def test_a_loss_without_a_likelihood_has_no_elbo(digits):
    model = compiled(certain(mlp(reconstruction=huber)))
    x, difference = (
        digits[0][:N],
        np.abs(model.predict(digits[0][:N], verbose=0) - digits[0][:N] / 255),
    )
    expected = np.where(difference < 0.1, 5 * difference**2, difference).sum() / N
    logs = model.evaluate(x, verbose=0, return_dict=True)
    assert logs["reconstruction"] == pytest.approx(expected, rel=1e-3)
    train, test = splits_of_arrays(x, x, "digits")
    figures = evaluation.evaluate(model, train, test, samples=0, importance_samples=3)
    assert figures["elbo"] is figures["likelihood"] is figures["log_likelihood"] is None
    assert "no likelihood" in figures["reasons"]["elbo"]
    assert figures["kl"] > 0


@keras.saving.register_keras_serializable("contract")
class Shell(Prior):
    """A prior of the user's: codes of length `radius`."""

    sizes = ("latent_dim",)

    def __init__(self, latent_dim, radius=2.0, **kwargs):
        super().__init__(**kwargs)
        self.latent_dim, self.radius = latent_dim, radius

    def draw(self, n, labels=None, seed=0):
        noise = np.random.default_rng(seed).standard_normal((n, self.latent_dim), dtype="float32")
        return self.radius * noise / np.linalg.norm(noise, axis=1, keepdims=True)

    def get_config(self):
        return {**super().get_config(), "latent_dim": self.latent_dim, "radius": self.radius}


class TestArraysThatDoNotFit:
    """Each is refused in a sentence of ours, and not by whatever the backend says of shapes."""

    @pytest.mark.parametrize(
        "codes", [np.zeros(2), np.zeros((2, LATENTS + 1)), np.zeros((2, LATENTS, 1)), 0.0]
    )
    def test_codes_of_another_shape(self, codes):
        with pytest.raises(ValueError, match=rf"Codes must be \(N, {LATENTS}\)"):
            mlp().decode(codes)

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
    def test_codes_that_are_no_numbers(self, value):
        with pytest.raises(ValueError, match="Codes must be finite"), np.errstate(over="ignore"):
            mlp().decode(np.full((2, LATENTS), value))

    @pytest.mark.parametrize("labels", [np.zeros(5, int), None, 1])
    @pytest.mark.parametrize("method", ["encode", "reconstruct", "posterior", "fit_prior"])
    def test_labels_of_another_number_of_images(self, labels, method, digits):
        with pytest.raises(
            ValueError, match="a row for each image|Labels must be|There are 8 images|needs a label"
        ):
            getattr(mlp(CVAE), method)((digits[0][:8], labels))

    @pytest.mark.parametrize("method", ["fit", "evaluate"])
    def test_labels_as_a_list(self, method, digits):
        with pytest.raises(ValueError, match="y must be an array or a tensor; got a list"):
            getattr(compiled(mlp(CVAE)), method)(digits[0][:8], [0] * 8, verbose=0)

    def test_labels_as_floats_fit_a_prior(self, digits):
        models = [mlp(CVAE), mlp(CVAE)]
        for model, kind in zip(models, ("int64", "float32")):
            model.fit_prior((digits[0][:100], digits[1][:100].astype(kind)))
        np.testing.assert_array_equal(*(model.prior.means for model in models))

    @pytest.mark.parametrize("wrong", [0.5, np.nan])
    def test_labels_between_classes_fit_no_prior(self, wrong, digits):
        with pytest.raises(ValueError, match="numbers of classes"):
            mlp().fit_prior(digits[0][:N], labels=digits[1][:N] + wrong)

    def test_a_prior_of_no_codes(self):
        with pytest.raises(ValueError, match="no codes"):
            mlp().fit_prior(np.zeros((0, *SHAPE), "uint8"))

    def test_a_run_of_two_channels(self, tmp_path):
        images = np.zeros((8, 8, 8, 2), "uint8")
        with pytest.raises(ValueError, match="1, 3 or 4 channels; these images have 2"):
            keras_ae.fit(Settings("vae", epochs=1), tmp_path, train=images, test=images)


def test_a_run_says_what_model_and_reconstruction_of_ones_own_it_trained(digits, tmp_path):
    """Where the settings, which hold names of registries, say "vae" and "l1"."""
    settings = Settings("vae", epochs=1, batch_size=32)
    for folder, model in (
        ("own", TCVAE((28, 28, 1), LATENTS, "mlp", (8,), reconstruction=huber)),
        ("plain", mlp()),
    ):
        keras_ae.fit(
            settings,
            tmp_path / folder,
            model=model,
            train=digits[0][:64],
            test=digits[0][64:80],
            verbose=0,
        )
    found = checkpoints.find_checkpoint(tmp_path / "own")
    assert found.run["own"] == {"model": "TCVAE", "reconstruction": "huber"}
    assert found.described["reconstruction"] == "huber" and found.settings["reconstruction"] == "l1"
    assert "own" not in checkpoints.read_run(tmp_path / "plain")


def test_a_prior_of_ones_own_is_called_by_its_name(digits, tmp_path):
    model = mlp(prior=Shell(LATENTS, 3.0))
    train, test = splits_of_arrays(digits[0][:N], digits[0][:N], "digits")
    figures = evaluation.evaluate(model, train, test, samples=5)
    assert figures["prior"] == "Shell"
    with pytest.raises(export.ExportError, match="Shell.*no graph to export"):
        export.build_part(model, "sampler")
    model.save(tmp_path / "model.keras")
    for load in (keras.saving.load_model, keras_ae.load_model):
        loaded = load(tmp_path / "model.keras")
        assert isinstance(loaded.prior, Shell) and loaded.prior.radius == 3.0
        assert np.array_equal(loaded.sample(4), model.sample(4))


@keras.saving.register_keras_serializable("contract")
class FittedShell(Shell):
    """One that is fitted: its radius is the mean length of the codes."""

    @classmethod
    def fit(cls, codes, labels=None, num_classes=1, seed=0, **kwargs):
        return cls(codes.shape[1], float(np.linalg.norm(codes, axis=1).mean()), **kwargs)


@pytest.mark.parametrize("model", [VAE, CVAE])
def test_a_prior_of_ones_own_is_fitted_as_it_says(model, digits):
    fitted, labels = mlp(model, prior=FittedShell(LATENTS)), digits[1][:N]
    if model is CVAE:
        fitted.fit_prior((digits[0][:N], labels))
    else:
        fitted.fit_prior(digits[0][:N], labels)
    assert type(fitted.prior) is FittedShell and 0 < fitted.prior.radius != 2.0
    stays = mlp(model, prior=Shell(LATENTS))
    with pytest.raises(NotImplementedError, match="Shell has no `fit`: it stays"):
        stays.fit_prior((digits[0][:N], labels) if model is CVAE else digits[0][:N])


@keras.saving.register_keras_serializable("contract")
class Unfinished(Shell):
    """One whose methods return what they must not."""

    @classmethod
    def fit(cls, codes, labels=None, num_classes=1, seed=0, **kwargs):
        return None

    def draw(self, n, labels=None, seed=0):
        return super().draw(n + 1, labels, seed)

    def log_prob(self, codes, labels=None):
        return np.zeros((len(codes), 1))


def test_methods_of_a_prior_that_return_something_else(digits):
    model, images = mlp(prior=Unfinished(LATENTS)), digits[0][:N]
    with pytest.raises(ValueError, match="must be a keras_ae.priors.Prior.*got NoneType"):
        model.fit_prior(images)
    assert type(model.prior) is Unfinished
    for draw in (lambda: model.sample(3), lambda: keras_ae.latents.manifold(model, 2, 2)):
        with pytest.raises(ValueError, match=r"draw of Unfinished must return \d+ codes"):
            draw()
    likelihood = evaluation.importance_weighted_log_likelihood
    for measure in (
        lambda: keras_ae.score(model, images),
        lambda: likelihood(model, images, 2, prior="fitted"),
    ):
        with pytest.raises(ValueError, match="log_prob of Unfinished must return a number for"):
            measure()


@pytest.mark.parametrize("prior", [Shell, FittedShell])
def test_a_run_keeps_a_prior_of_ones_own(prior, digits, tmp_path):
    lines = []
    keras_ae.fit(
        Settings("vae", epochs=1, batch_size=32), tmp_path / "run", model=mlp(prior=prior(LATENTS)),
        train=digits[0][:64], test=digits[0][64:80], verbose=0, report=lines.append,
    )  # fmt: skip
    loaded = keras_ae.load_model(tmp_path / "run").prior
    assert type(loaded) is prior
    assert (loaded.radius == 2.0) == (prior is Shell) == any("stays" in line for line in lines)


def test_set_prior_copies(digits):
    fitted, other, third = mlp(), mlp(), mlp()
    fitted.fit_prior(digits[0][:200])
    other.set_prior(fitted.prior)
    third.set_prior(fitted.prior)
    before = other.sample(4)
    assert np.array_equal(before, fitted.sample(4))
    fitted.prior.means += 5.0
    assert np.array_equal(other.sample(4), before)
    assert not np.array_equal(fitted.sample(4), before)
    other.prior.means += 1.0
    assert np.array_equal(third.sample(4), before)
    with pytest.raises(ValueError, match="must be a keras_ae.priors.Prior"):
        other.set_prior("normal")


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
@pytest.mark.parametrize("model", [VAE, CVAE])
def test_load_weights_brings_the_prior(model, suffix, digits, tmp_path):
    fitted, other, plain = mlp(model), mlp(model), mlp(model)
    x, labels = digits[0][:200], None
    if model is CVAE:
        x, labels = (x, digits[1][:200]), np.arange(4)
    fitted.fit_prior(x)
    for made, name in ((fitted, "fitted"), (plain, "plain")):
        path = tmp_path / f"{name}{suffix}"
        made.save(path) if suffix == ".keras" else made.save_weights(path)
    other.load_weights(tmp_path / f"fitted{suffix}")
    assert np.array_equal(other.sample(4, labels), fitted.sample(4, labels))
    other.load_weights(tmp_path / f"plain{suffix}")
    assert isinstance(other.prior, StandardNormal)
    assert np.array_equal(other.sample(4, labels), plain.sample(4, labels))


class ClassMeans(Prior):
    """A prior of the user's with an array."""

    arrays = ("means",)

    def __init__(self, latent_dim, **kwargs):
        super().__init__(**kwargs)
        self.means = np.full((2, latent_dim), 3.0, "float32")


@keras.saving.register_keras_serializable("contract")
class Normalised(VAE):
    """A model with a layer of its own, whose name comes before that of a prior."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = keras.layers.BatchNormalization()
        self.extra.build((None, self.latent_dim))


def test_load_weights_drops_no_prior_without_a_word(digits, tmp_path):
    path = tmp_path / "own.weights.h5"
    model = mlp(prior=ClassMeans(LATENTS))
    model.save_weights(path)
    with pytest.raises(ValueError, match=r"a ClassMeans as its prior, with arrays of \(2, "):
        mlp().load_weights(path)
    other = mlp(prior=ClassMeans(LATENTS))
    other.prior.means[:] = 0.0
    other.load_weights(path)
    assert np.array_equal(other.prior.means, model.prior.means)
    fitted, plain = mlp(Normalised), mlp(Normalised)
    fitted.fit_prior(digits[0][:N])
    fitted.save_weights(path)
    plain.load_weights(path)
    assert np.array_equal(plain.sample(4), fitted.sample(4))


def test_a_saturated_pixel_is_learned():
    """The gradient of bce at a logit of -20 where the image is white is -1, not 0."""
    model = AE(SHAPE, LATENTS, "mlp", (8,), reconstruction="bce")
    pixels = model.decoder.get_layer("pixels")
    pixels.kernel.assign(np.zeros(pixels.kernel.shape))
    for logit, value, gradient in ((-20.0, 255, -1.0), (20.0, 0, 1.0), (0.0, 255, -0.5)):
        pixels.bias.assign(np.full(pixels.bias.shape, logit))
        pixels.kernel.trainable = False
        model.compile(keras.optimizers.SGD(1.0))
        loss = model.fit(np.full((1, *SHAPE), value, "uint8"), verbose=0).history["loss"][0]
        np.testing.assert_allclose(logit - array(pixels.bias), gradient, rtol=1e-4)
        expected = 784 * np.log1p(np.exp(20.0 if logit else 0.0))
        assert loss == pytest.approx(expected, rel=1e-4)


def test_the_decoder_is_asked_for_its_image_where_bce_takes_logits(digits):
    """Whatever is done to the sigmoid at its end, or to the decoder, is seen."""
    x, model = digits[0][:N], compiled(certain(mlp(reconstruction="bce")))
    image = model.decoder.get_layer("image")
    image.activation = half
    compiled(model)
    codes = model.encode(x)
    rebuilt = model.decoder.predict(codes, verbose=0)
    assert rebuilt.max() <= 0.5
    close([model.predict(x, verbose=0), model.reconstruct(x)], [rebuilt, rebuilt], atol=1e-5)
    error = array(bce((x / 255).astype("float32"), rebuilt)).mean()
    logs = model.evaluate(x, verbose=0, return_dict=True)
    assert logs["reconstruction"] == pytest.approx(error, rel=1e-3)
    latent = keras.Input((LATENTS,), name="latent")
    flat = keras.layers.Dense(784, "sigmoid", bias_initializer="ones")(latent)
    model.decoder = keras.Model(latent, keras.layers.Reshape(SHAPE)(flat))
    compiled(model)
    rebuilt = model.decoder.predict(codes, verbose=0)
    close([model.predict(x, verbose=0), model.reconstruct(x)], [rebuilt, rebuilt], atol=1e-5)


@torch_only
def test_hooks_of_a_decoder_fire_where_bce_takes_logits(digits):
    model, fired = compiled(mlp(reconstruction="bce")), []
    model.fit(digits[0][:N], verbose=0)
    for part in (model.decoder, model.decoder.get_layer("image")):
        part.register_forward_hook(lambda part, *_: fired.append(part.name))
    for use in (model.fit, model.evaluate, model.predict):
        fired.clear()
        use(digits[0][:N], verbose=0)
        assert set(fired) == {"decoder", "image"}


def half(x):
    return 0.5 * ops.sigmoid(x)


class Secret(keras.Model):
    """An encoder of a class that is registered nowhere."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flatten, self.code = keras.layers.Flatten(), keras.layers.Dense(LATENTS)

    def call(self, image):
        return {"code": self.code(self.flatten(image))}

    def get_config(self):
        return super().get_config()


class SecretPrior(Shell):
    pass


def test_from_config_takes_custom_objects(digits):
    model = AE(SHAPE, LATENTS, "mlp", (8,), encoder=Secret())
    copy = AE.from_config(model.get_config(), custom_objects={"Secret": Secret})
    copy.set_weights(model.get_weights())
    close([copy.encode(digits[0][:N])], [model.encode(digits[0][:N])])
    vae = mlp(prior=SecretPrior(LATENTS), reconstruction=huber)
    copy = VAE.from_config(vae.get_config(), {"SecretPrior": SecretPrior, "huber": huber})
    assert type(copy.prior) is SecretPrior and copy.reconstruction is huber
    with pytest.raises((TypeError, ValueError), match="Secret"):
        AE.from_config(model.get_config())


@pytest.mark.parametrize("kind", ["float32", "U", object])
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "encode", "fit_prior"])
def test_labels_that_are_no_numbers_are_refused_beside_images(method, kind, digits):
    images, labels = digits[0][:N], digits[1][:N]
    labels = labels / 3 if kind == "float32" else labels.astype("U").astype(kind)
    with pytest.raises(ValueError, match="Labels are the numbers of classes, 0 to 9; got"):
        getattr(compiled(mlp(CVAE)), method)((images, labels.reshape(-1, 1)))


def test_class_weights_need_batches_that_have_the_labels_apart(digits):
    class Pairs(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            rows = slice(8 * i, 8 * i + 8)
            return ((digits[0][rows], digits[1][rows]),)

    with pytest.raises(ValueError, match=r"class_weight needs batches of \(images, labels\)"):
        compiled(mlp(CVAE)).fit(Pairs(), class_weight={0: 2.0}, verbose=0)
    with pytest.raises(ValueError, match="y must be an array"):
        compiled(mlp(CVAE)).fit(digits[0][:8], [0] * 8, class_weight={0: 2.0}, verbose=0)


@pytest.mark.parametrize("model", [AE, VAE])
def test_labels_for_a_model_without_classes_are_refused(model):
    model, code = mlp(model), np.zeros(LATENTS)
    codes = np.random.default_rng(0).normal(size=(9, LATENTS))
    for call in (
        lambda: model.decode(codes, 3),
        lambda: keras_ae.latents.interpolate(model, code, code, labels=(1, 2)),
        lambda: keras_ae.latents.manifold(model, 2, 2, label=3, codes=codes),
        lambda: keras_ae.latents.traversals(model, code, [0], codes, label=3),
    ):
        with pytest.raises(ValueError, match="has no classes: it takes no label"):
            call()


def test_labels_of_every_form_for_codes_and_figures(digits):
    model, images = mlp(CVAE), digits[0][:N]
    labels = digits[1][:N]
    codes = model.encode((images, labels))
    forms = (labels[:, None], np.eye(CLASSES, dtype="float32")[labels])
    decoded, scores = model.decode(codes, labels), evaluation.score(model, (images, labels))
    bounds = evaluation.elbo(model, (images, labels))[0]
    weighted = evaluation.importance_weighted_log_likelihood(model, (images, labels), 2)
    for form in forms:
        np.testing.assert_allclose(model.decode(codes, form), decoded, atol=1e-6)
        for name, found in evaluation.score(model, (images, form)).items():
            np.testing.assert_allclose(found, scores[name], rtol=1e-5)
        np.testing.assert_allclose(evaluation.elbo(model, (images, form))[0], bounds, rtol=1e-5)
        again = evaluation.importance_weighted_log_likelihood(model, (images, form), 2)
        np.testing.assert_allclose(again, weighted, rtol=1e-5)
    fitted = []
    for form in (labels, *forms):
        vae = mlp(VAE)
        vae.set_weights(mlp(VAE).get_weights() if not fitted else fitted[0].get_weights())
        vae.fit_prior(images, form)
        fitted.append(vae)
    for vae in fitted[1:]:
        np.testing.assert_allclose(vae.prior.means, fitted[0].prior.means, atol=1e-5)


def test_a_single_class():
    model, codes = mlp(CVAE, num_classes=1), np.random.default_rng(0).normal(size=(3, LATENTS))
    decoded = model.decode(codes, 0)
    for labels in (np.zeros(3, int), np.zeros((3, 1), int), np.ones((3, 1), "float32")):
        np.testing.assert_array_equal(model.decode(codes, labels), decoded)
    assert len(keras_ae.latents.interpolate(model, *codes[:2], 4, labels=0)) == 4


def test_one_class_for_both_ends():
    model, ends = mlp(CVAE), np.random.default_rng(0).normal(size=(2, LATENTS))
    of = [keras_ae.latents.interpolate(model, *ends, 3, labels) for labels in (3, (3, 3))]
    np.testing.assert_array_equal(*of)
    for labels in (None, (1, 10), (-1, 2), (1, 2, 3)):
        with pytest.raises(ValueError, match="0 to 9|There are 2 images and 3 labels"):
            keras_ae.latents.interpolate(model, *ends, 3, labels)
    with pytest.raises(ValueError, match="An AE has no prior"):
        keras_ae.latents.manifold(mlp(AE), 2, 2)


def test_no_images_have_no_scores(digits):
    for model in (AE, VAE, CVAE):
        scores = evaluation.score(mlp(model), digits[0][:0])
        assert scores and all(len(values) == 0 for values in scores.values())
    assert len(evaluation.elbo(mlp(VAE), digits[0][:0])[0]) == 0


def test_lists_of_images_are_refused(digits, tmp_path):
    images = list(digits[0][:3])
    with pytest.raises(keras_ae.errors.UserError, match="one array of images"):
        evaluation.score(mlp(VAE), images)
    with pytest.raises(ValueError, match="one array of images"):
        keras_ae.fit(Settings("vae", epochs=1), tmp_path, train=images, test=images)


@pytest.mark.parametrize("prior", ["Fitted", None, 3])
def test_a_prior_of_an_unknown_name_is_refused(prior, digits):
    model = mlp(VAE)
    for call in (
        lambda: model.sample(2, prior=prior),
        lambda: evaluation.importance_weighted_log_likelihood(model, digits[0][:2], 1, prior=prior),
    ):
        with pytest.raises(
            ValueError, match="prior must be 'fitted' or 'normal', or a prior layer"
        ):
            call()
    if prior is not None:
        with pytest.raises(ValueError, match="must be a keras_ae.priors.Prior"):
            mlp(VAE, prior=prior)


def test_a_prior_that_does_not_fit_is_refused():
    vae, cvae = mlp(VAE), mlp(CVAE)
    for model, prior in (
        (vae, ClassMixture(LATENTS, CLASSES)),
        (cvae, ClassMixture(LATENTS, 1)),
        (vae, StandardNormal(LATENTS + 1)),
    ):
        for call in (model.set_prior, lambda prior: model.sample(1, None, prior=prior)):  # noqa: B023
            with pytest.raises(ValueError, match="cannot draw from it"):
                call(prior)
        with pytest.raises(ValueError, match="cannot draw from it"):
            mlp(type(model), prior=prior)


@keras.saving.register_keras_serializable("contract")
class OneGaussian(ClassMixture):
    """A mixture of the user's that is always of one Gaussian."""

    @classmethod
    def fit(cls, codes, labels=None, num_classes=1, seed=0, **kwargs):
        prior = cls(codes.shape[1], **kwargs)
        prior.means[0, 0] = codes.mean(0)
        return prior


def test_a_mixture_of_ones_own_is_fitted_by_its_own_fit(digits):
    model = mlp(VAE, prior=OneGaussian(LATENTS))
    model.fit_prior(digits[0][:N], digits[1][:N])
    assert type(model.prior) is OneGaussian


def test_networks_in_half_precision_give_arrays_in_full(digits):
    policy = "mixed_bfloat16"
    image, latent = keras.Input(SHAPE, name="image"), keras.Input((2,), name="latent")
    flat = keras.layers.Flatten(dtype=policy)(image)
    encoder = keras.Model(image, {"code": keras.layers.Dense(2, dtype=policy)(flat)})
    pixels = keras.layers.Dense(784, activation="sigmoid", dtype=policy)(latent)
    decoder = keras.Model(latent, keras.layers.Reshape(SHAPE, dtype=policy)(pixels))
    ae, images = AE(SHAPE, 2, encoder=encoder, decoder=decoder), digits[0][:8]
    codes = ae.encode(images)
    compiled(ae).fit(images, verbose=0)
    made = (codes, ae.decode(codes), ae.reconstruct(images), ae.predict(images, verbose=0))
    assert [x.dtype for x in made] == ["float32"] * 4
    assert array(ae(images)).dtype == "float32"


def test_nothing_to_train(digits):
    """As in Keras, a warning; on tensorflow and jax, the figures alone."""
    model = compiled(mlp(VAE))
    model.trainable = False
    before = model.get_weights()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = model.fit(digits[0][:8], verbose=0).history
    assert history["loss"][0] > 0 and same(before, model.get_weights())


def test_a_generator_is_not_read_ahead_at_each_evaluation(digits):
    model = mlp(AE)
    model.compile(Adam(1e-3), metrics=["mae"], steps_per_execution=8 if not TORCH or fast.ON else 1)
    model.evaluate(digits[0][:8], verbose=0)  # builds the metrics
    seen = []

    def generator():
        for i in range(10):
            seen.append(i)
            yield (digits[0][4 * i : 4 * i + 4],)

    of = model.evaluate(generator(), verbose=0, steps=10 if not TORCH else None, return_dict=True)
    whole = model.evaluate(digits[0][:40], batch_size=4, verbose=0, return_dict=True)
    assert of["mae"] == pytest.approx(whole["mae"], rel=1e-4) and len(seen) == 10


def test_a_model_after_its_run_is_any_other(digits, tmp_path):
    model, seen = mlp(VAE), []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(batch)
    )
    settings = Settings("vae", epochs=1, batch_size=8)
    keras_ae.fit(
        settings, tmp_path / "run", model=model, train=digits[0][:40], test=digits[0][:20],
        callbacks=[callback], verbose=0, report=lambda line: None,
    )  # fmt: skip
    assert seen == [0, 1, 2, 3, 4]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Your input ran out of data")
        assert len(model.predict(digits[0][:40], batch_size=8, verbose=0)) == 40
    assert model.steps_per_execution == 1


@pytest.mark.parametrize("labels", ["Flags", ["a", "b", "c"], [None] * 3, 2.5])
def test_labels_that_are_no_numbers_are_refused(labels):
    with pytest.raises(ValueError, match="0 to 9"):
        mlp(CVAE).sample(3, labels=labels)


def test_settings_refuse_arrays_briefly(digits):
    with pytest.raises(ValueError, match="dataset must be a name; got a ndarray") as error:
        Settings("vae", dataset=digits[0])
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "option", [("--kl-weight", "3"), ("--kl-schedule", "cosine"), ("--kl-warmup", "0.5")]
)
def test_an_ae_has_no_kl_weight_to_set(option, tmp_path, monkeypatch):
    from kae.main import cli

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["fit", "ae", *option])
    assert done.exit_code == 2 and "ae" in done.output and "kl" in done.output.lower()
    assert not list(tmp_path.iterdir())


def test_modules_are_attributes():
    for name in ("evaluation", "latents", "report", "objective", "losses", "priors", "backbones"):
        assert getattr(keras_ae, name).__name__ == f"keras_ae.{name}"
    assert set(keras_ae.__all__) <= set(dir(keras_ae))


def test_released_weights_are_known_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = keras_ae.load_model("cvae")
    assert type(model) is CVAE
    assert model.sample(2, [5, 5]).max() > 0.9


class Foreign(keras.Model):
    """A model of somebody else's, with a weight of that name."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.kl_weight = self.add_weight((), "ones", trainable=False, name="kl_weight")
        self.seen = []

    def call(self, x):
        return self.dense(x) * self.kl_weight


@pytest.mark.parametrize("schedule", ["linear", "constant", lambda progress: progress**2])
@pytest.mark.parametrize("by", ["step", "epoch"])
def test_annealing_of_a_model_of_others(schedule, by):
    x, seen = np.ones((12, 4), "float32"), []
    model = Foreign()
    model.compile("sgd", "mse")

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(float(array(self.model.kl_weight)))

    annealing = KLAnnealing(schedule, weight=2.0, by=by)
    fit = {"batch_size": 4, "epochs": 2, "verbose": 0, "callbacks": [annealing, Watch()]}
    model.fit(x, x[:, :2], **fit)
    steps = np.arange(6) if by == "step" else np.array([0, 0, 0, 3, 3, 3])
    progress = {"linear": steps / 6, "constant": np.ones(6)}
    expected = progress[schedule] if isinstance(schedule, str) else (steps / 6) ** 2
    np.testing.assert_allclose(seen, 2.0 * expected, atol=1e-6)
    assert float(array(model.kl_weight)) == pytest.approx(2.0)

    def generator():
        while True:
            yield x[:4], x[:4, :2]

    model.fit(generator(), steps_per_epoch=3, epochs=2, verbose=0, callbacks=[annealing])


def test_a_model_without_images_as_target_has_no_classes_to_weigh(digits):
    for model in (AE, VAE):
        with pytest.raises(ValueError, match="no classes to weigh: give sample_weight"):
            compiled(mlp(model)).fit(digits[0][:N], class_weight={0: 1.0}, verbose=0)
        with pytest.raises(ValueError, match="Leave labels out"):
            compiled(mlp(model)).fit(digits[0][:N], digits[1][:N], verbose=0)


def test_the_program_of_the_readme_runs(digits, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "README.md").read_text()
    block = page.partition("```python\n")[2].partition("```")[0]
    assert 'load_splits("mnist")' in block and "epochs=10" in block
    splits = splits_of_arrays(digits[0][:128], digits[0][128:160], "mnist")
    monkeypatch.setattr(keras_ae.data, "load_splits", lambda name: splits)
    monkeypatch.chdir(tmp_path)
    exec(block.replace("epochs=10", "epochs=1"), {})
    assert (tmp_path / "vae.keras").is_file() and (tmp_path / "digits.png").is_file()


def test_a_decoder_whose_logits_are_not_seen_is_told():
    """One that ends in Activation("sigmoid") has them, within a Sequential too; a Dense of sigmoids has not."""

    def decoder(*layers):
        return keras.Sequential([keras.Input((LATENTS,)), *layers])

    pixels, image = int(np.prod(SHAPE)), keras.layers.Reshape(SHAPE)
    ends_so = decoder(keras.layers.Dense(pixels), image, keras.layers.Activation("sigmoid"))
    within = decoder(keras.layers.Dense(pixels, activation="sigmoid"), keras.layers.Reshape(SHAPE))
    codes = np.random.default_rng(0).normal(size=(3, LATENTS)).astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = VAE(SHAPE, LATENTS, "mlp", (8,), reconstruction="bce", decoder=ends_so)
        VAE(SHAPE, LATENTS, "mlp", (8,), decoder=within)
    image, logits = model.decoded(keras.ops.convert_to_tensor(codes), [])["logits"]
    np.testing.assert_allclose(array(keras.ops.sigmoid(logits)), model.decode(codes), atol=1e-6)
    with pytest.warns(UserWarning, match="does not end in Activation"):
        VAE(SHAPE, LATENTS, "mlp", (8,), reconstruction="bce", decoder=within)


def test_a_generator_that_ran_out_is_told(digits):
    model = compiled(mlp())
    batches = ((digits[0][i : i + 4],) for i in range(0, 8, 4))
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(batches, epochs=2, verbose=0)


class Told(VAE):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        assert y.shape == y_pred.shape
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**logs, "mine": ops.mean(y_pred) * 0 + 3.0}


def test_what_compute_metrics_returns_is_logged(digits):
    for metrics in ([], ["mae"]):
        model = compiled(mlp(Told), metrics=metrics)
        history = model.fit(digits[0][:8], validation_data=digits[0][8:16], verbose=0).history
        assert history["mine"] == history["val_mine"] == [3.0]
        assert {"loss", "kl", "val_loss", *metrics} <= history.keys()


class Silent(VAE):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        super().compute_metrics(x, y, y_pred, sample_weight)


def test_a_compute_metrics_that_returns_nothing(digits):
    history = compiled(mlp(Silent)).fit(digits[0][:8], verbose=0).history
    assert {"loss", "kl"} <= history.keys()


def test_what_forward_returns_is_taken_for_metrics(digits):
    model = compiled(mlp(), metrics=["mae"])
    model.evaluate(digits[0][:4], verbose=0)  # builds the metrics
    images = ops.convert_to_tensor(digits[0][:4])
    outputs = model(images, return_outputs=True)
    logs = model.compute_metrics(images, None, outputs)
    assert float(logs["mae"]) > 0


@pytest.mark.parametrize("what", ["regularizer", "call"])
def test_a_decoder_that_does_more_than_its_sigmoid_is_asked_where_bce_takes_logits(what, digits):
    latent = keras.Input((LATENTS,))
    x = keras.layers.Reshape(SHAPE)(keras.layers.Dense(28 * 28)(latent))
    last = keras.layers.Activation("sigmoid")
    decoder = keras.Model(latent, last(x))
    if what == "regularizer":
        last.activity_regularizer = keras.regularizers.L1(0.1)
    else:
        decoder.call = lambda *args, **kwargs: type(decoder).call(decoder, *args, **kwargs) * 0
    with pytest.warns(UserWarning, match="computed from the decoder's probabilities"):
        model = compiled(mlp(AE, decoder=decoder, reconstruction="bce"))
    logs = model.test_on_batch(digits[0][:4], return_dict=True)
    if what == "regularizer":
        penalty = 0.1 * np.abs(model.predict(digits[0][:4], verbose=0)).sum() / 4
        assert logs["loss"] - logs["reconstruction"] == pytest.approx(penalty, rel=1e-4)
    else:
        assert model.predict(digits[0][:4], verbose=0).max() == 0


def test_a_part_that_is_quantized_by_itself_is_not_saved_without_a_word(tmp_path):
    model = mlp()
    quietly(lambda: model.decoder.quantize("int8"))
    with pytest.raises(ValueError, match="quantized as a whole"):
        model.save(tmp_path / "model.keras")


def test_kl_weight_is_set_by_assignment(digits, tmp_path):
    model = compiled(mlp())
    before = model.test_on_batch(digits[0][:4], return_dict=True)
    model.kl_weight = 0.5
    after = model.test_on_batch(digits[0][:4], return_dict=True)
    assert float(after["kl_weight"]) == 0.5 != float(before["kl_weight"])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.scale_of_likelihood() == model.scale_of_likelihood() == 0.5
    model.fit(digits[0][:8], callbacks=[KLAnnealing("constant", 0.25)], verbose=0)
    assert model.scale_of_likelihood() == 0.25
    with pytest.raises(ValueError, match="kl_weight must be 0 or more"):
        model.kl_weight = -1
    n = len(model.variables)
    with pytest.raises(ValueError, match="assign a number"):
        model.kl_weight = mlp().kl_weight
    assert len(model.variables) == n


def test_the_average_of_a_run_is_any_other_of_keras(digits, tmp_path):
    settings = Settings("vae", epochs=2, batch_size=8, limit=None, ema=0.5, kl_weight=0.1)
    model = mlp()
    keras_ae.fit(settings, tmp_path / "run", model=model, train=digits[0][:16], test=digits[0][16:20], verbose=0, report=lambda line: None)  # fmt: skip
    assert same(
        arrays(model.trainable_variables), arrays(model.optimizer._model_variables_moving_average)
    )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    counter = Counter()
    if keras.backend.backend() == "jax":  # where Keras' own `fit` fails with an average
        return
    for trained in (model, again):
        trained.fit(digits[0][:16], batch_size=8, callbacks=[counter], verbose=0, shuffle=False)
        averages = arrays(trained.optimizer._model_variables_moving_average)
        assert same(arrays(trained.trainable_variables), averages)  # Keras' own end of `fit`
    assert counter.ended == [0, 1] * 2


@pytest.mark.parametrize("steps", [1, pytest.param(2, marks=several_steps)])
def test_a_layer_as_activation_knows_that_it_trains(steps, digits):
    image = keras.Input(SHAPE)
    inner = keras.layers.BatchNormalization()
    code = keras.layers.Dense(LATENTS, activation=inner)(keras.layers.Flatten()(image))
    model = compiled(mlp(AE, encoder=keras.Model(image, code)), steps_per_execution=steps)
    model.fit(digits[0][:16], batch_size=4, verbose=0)
    assert not np.array_equal(array(inner.moving_mean), np.zeros(LATENTS))


def test_a_stateless_call_changes_nothing(digits):
    model = AE(SHAPE, LATENTS, "conv", WIDTHS["conv"])
    before = model.get_weights()
    trainable, others = (
        [v.value for v in s] for s in (model.trainable_variables, model.non_trainable_variables)
    )
    images = ops.convert_to_tensor(digits[0][:4])
    _, after = model.stateless_call(trainable, others, images, training=True)
    assert same(model.get_weights(), before)
    moved = [not np.array_equal(array(a), array(b)) for a, b in zip(others, after)]
    assert any(moved)


class Sometimes(AE):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = keras.metrics.Mean(name="extra")

    def on_terms(self, terms, sample_weight, training):
        if not training:
            self.extra.update_state(2.0)


def test_a_mean_of_nothing_is_0(digits):
    model = compiled(mlp(Sometimes))
    assert float(model.train_on_batch(digits[0][:4], return_dict=True)["extra"]) == 0
    assert float(model.test_on_batch(digits[0][:4], return_dict=True)["extra"]) == 2


def test_an_activity_regularizer_of_the_whole_is_refused():
    with pytest.raises(ValueError, match="A VAE takes no activity_regularizer: give it to a layer"):
        VAE(activity_regularizer="l2")


def test_images_are_channels_last_whatever_keras_is_told(digits):
    reference = AE(SHAPE, LATENTS, "conv", WIDTHS["conv"])
    keras.config.set_image_data_format("channels_first")
    try:
        model = AE(SHAPE, LATENTS, "conv", WIDTHS["conv"])
        model.set_weights(reference.get_weights())
        ours = model.predict(digits[0][:4], verbose=0)
        network = classifier.build_classifier(SHAPE, CLASSES)
    finally:
        keras.config.set_image_data_format("channels_last")
    close([ours], [reference.predict(digits[0][:4], verbose=0)])
    assert [w.shape for w in network.weights] == [
        w.shape for w in classifier.build_classifier(SHAPE, CLASSES).weights
    ]


@torch_only
def test_batches_are_moved_to_the_device_of_the_model():
    import torch

    with keras.device("meta"):
        assert unit_range(torch.zeros(2, 2)).device.type == "meta"
        assert one_hot(torch.zeros(2, dtype=torch.int64), 3).device.type == "meta"


@torch_only
def test_unfreezing_asks_for_a_new_optimizer(digits):
    model = mlp(AE)
    model.encoder.trainable = False
    model.compile(Adam())
    model.fit(digits[0][:8], verbose=0)
    model.encoder.trainable = True
    with pytest.raises((KeyError, ValueError), match="(?i)unknown variable|recreate"):
        model.fit(digits[0][:8], verbose=0)


@pytest.mark.parametrize("form", ["column", "one_hot"])
def test_a_prior_is_fitted_to_batches_with_labels_of_every_form(form, digits):
    labels = np.arange(N) % 2
    given = labels[:, None] if form == "column" else np.eye(2)[labels]
    model = mlp()
    model.fit_prior(Batches(digits[0][:N]), given, seed=0)
    ours = model.prior.means
    model.fit_prior(digits[0][:N], labels, seed=0)
    close([ours], [model.prior.means])


def test_weights_that_do_not_fit_leave_the_prior(digits, tmp_path):
    mlp(VAE, size="small").save_weights(tmp_path / "other.weights.h5")
    model = VAE(SHAPE, LATENTS, "mlp", (5,))
    model.fit_prior(digits[0][:20])
    before = model.prior
    with pytest.raises(ValueError):
        model.load_weights(tmp_path / "other.weights.h5")
    assert model.prior is before


class Late(CVAE):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.late = keras.layers.Dense(1, kernel_initializer="zeros")

    def forward(self, inputs, training=False, sample=False):
        outputs = super().forward(inputs, training, sample)
        return {**outputs, "reconstruction": outputs["reconstruction"] + self.late(outputs["mean"])[:, None, None]}  # fmt: skip


def test_a_layer_that_is_built_by_the_first_batch(digits):
    model = compiled(mlp(Late))
    model.fit(digits[0][:8], np.arange(8), verbose=0)
    assert model.late.built


def test_a_decoder_that_ends_in_an_operation(digits):
    latent = keras.Input((LATENTS,))
    x = keras.layers.Reshape(SHAPE)(keras.layers.Dense(28 * 28)(latent))
    with pytest.warns(UserWarning, match="computed from the decoder's probabilities"):
        model = mlp(AE, decoder=keras.Model(latent, ops.sigmoid(x)), reconstruction="bce")
    compiled(model).fit(digits[0][:8], verbose=0)


@pytest.mark.parametrize("lock", ["build", "quantize"])
def test_a_model_that_keras_locked_takes_a_prior(lock, digits, tmp_path):
    fitted = mlp()
    fitted.fit_prior(digits[0][:50])
    fitted.save_weights(tmp_path / "fitted.weights.h5")
    model = mlp()
    if lock == "build":
        model.build((None, *SHAPE))
        model.load_weights(tmp_path / "fitted.weights.h5")
    else:
        quietly(lambda: model.quantize("int8"))
        model.set_prior(fitted.prior)
    assert np.array_equal(model.prior.means, fitted.prior.means)
    model.fit_prior(digits[0][:50])
    with pytest.raises(ValueError):  # it is locked as before
        model.another = keras.layers.Dense(1)


@keras.saving.register_keras_serializable("test_keras_contract")
class TwoOptimizers(VAE):
    def compile(self, generator, other):
        super().compile(generator)
        self.other = other

    def compute_loss(self, x, y, y_pred, sample_weight):
        return super().compute_loss(x, y, y_pred, sample_weight) + 1


def test_a_compile_and_a_compute_loss_of_ones_own(digits, tmp_path):
    model = mlp(TwoOptimizers)
    model.compile(keras.optimizers.SGD(1e-4), keras.optimizers.SGD(1e-4))
    logs = model.train_on_batch(digits[0][:4], return_dict=True)
    parts = float(logs["reconstruction"]) + float(logs["kl"])
    assert float(logs["loss"]) == pytest.approx(parts + 1, rel=1e-5)
    model.evaluate(digits[0][:4], verbose=0)
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="method is custom"):
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert same(loaded.get_weights(), model.get_weights())


def test_evaluation_trains_no_scale_through_a_compute_loss_of_ones_own(digits):
    model = mlp(TwoOptimizers, kl_weight="auto")
    model.compile(keras.optimizers.SGD(1e-4), keras.optimizers.SGD(1e-4))
    model.fit(digits[0][:8], verbose=0)
    before = float(model.likelihood_scale)
    model.evaluate(digits[0][8:16], verbose=0)
    assert float(model.likelihood_scale) == before > 0
    model.fit(digits[0][:8], verbose=0)
    assert float(model.likelihood_scale) != before


@keras.saving.register_keras_serializable("contract")
class Nameless(VAE):
    """Logs its loss by another name."""

    def get_metrics_result(self):
        logs = dict(super().get_metrics_result())
        return {"total": logs.pop("loss"), **logs}


def test_a_model_that_logs_no_loss(digits, tmp_path):
    history = compiled(mlp(Nameless), steps_per_execution=1).fit(digits[0][:8], verbose=0).history
    assert history["total"][0] > 0
    settings = Settings("vae", epochs=1, batch_size=8, limit=None, kl_weight=0.1)
    with pytest.raises(RunError, match="Nameless logs no 'loss'"):
        keras_ae.fit(settings, tmp_path / "run", model=mlp(Nameless), train=digits[0][:16], test=digits[0][16:20], verbose=0, report=lambda line: None)  # fmt: skip


def test_frozen_networks_stay_frozen_in_a_file(digits, tmp_path):
    model = mlp(VAE)
    model.encoder.trainable = False
    compiled(model).fit(digits[0][:8], verbose=0)
    model.save(tmp_path / "model.keras")
    for load in (keras_ae.load_model, keras.saving.load_model):
        loaded = load(tmp_path / "model.keras")
        before = loaded.encoder.get_weights()
        compiled(loaded).fit(digits[0][:8], verbose=0)
        assert not loaded.encoder.trainable and loaded.decoder.trainable
        assert same(loaded.encoder.get_weights(), before)
    assert "frozen" not in mlp(VAE).get_config()


def test_a_learning_rate_that_ended_with_the_run_is_told(digits, tmp_path):
    model, x = mlp(VAE), digits[0][:16]
    settings = Settings("vae", epochs=1, batch_size=8, limit=None, kl_weight=0.1)
    more = {"model": model, "train": x, "test": x, "verbose": 0, "report": lambda line: None}
    with warnings.catch_warnings(action="error", category=UserWarning):
        keras_ae.fit(settings, tmp_path / "run", **more)
    with pytest.warns(UserWarning, match="The learning rate is 0.* compile the model anew"):
        model.fit(x, verbose=0)
    with warnings.catch_warnings(action="error", category=UserWarning):
        compiled(model).fit(x, verbose=0)


def test_lora_and_shared_layers_are_told_before_a_model_is_copied(tmp_path):
    lora, shared = mlp(VAE), keras.layers.Dense(8)
    for layer in lora.encoder.layers:
        if isinstance(layer, keras.layers.Dense):
            layer.enable_lora(2)
    with pytest.raises(checkpoints.CheckpointError, match="has other weights.*merges LoRA"):
        checkpoints.save_model(lora, tmp_path / "model.keras")
    image, code = keras.Input((4, 4, 1)), keras.Input((8,))
    heads = [keras.layers.Dense(8)(shared(keras.layers.Reshape((16,))(image))) for _ in range(2)]
    encoder = keras.Model(image, heads)
    grown = keras.layers.Dense(16)(code)
    pixels = keras.layers.Dense(16, "sigmoid")(shared(grown))
    tied = VAE((4, 4, 1), 8, encoder=encoder, decoder=keras.Model(code, keras.layers.Reshape((4, 4, 1))(pixels)))  # fmt: skip
    with pytest.raises(checkpoints.CheckpointError, match="share no layer"):
        checkpoints.save_model(tied, tmp_path / "tied.keras")


def test_a_fit_that_was_interrupted_leaves_no_weight_of_the_kl_term_to_the_next(digits):
    class Breaks(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            raise RuntimeError("mine")

    model, x = compiled(mlp(VAE)), digits[0][:16]
    with pytest.raises(RuntimeError, match="mine"):
        model.fit(x, verbose=0, callbacks=[KLAnnealing(), Breaks()])
    model.kl_weight = 2.0
    assert model.fit(x, verbose=0).history["kl_weight"] == [2.0]


def test_what_goes_wrong_in_a_step_costs_no_weights(digits):
    """jax is given the arrays of the weights at each step, and Keras alone would lose them."""
    x = digits[0][:32].astype("float32") / 255

    def breaks():
        yield from ((x[:8],), (x[8:16],))
        raise OSError("a picture that cannot be read")

    def works():
        return model.predict(x, verbose=0).shape == x.shape and model.get_weights()

    steps = 8 if fast.ON or not TORCH else 1  # Keras alone takes one on torch
    model = compiled(mlp(VAE), steps_per_execution=steps)
    with pytest.raises(Exception, match="a picture"):  # tensorflow has a class of its own for it
        model.fit(breaks(), verbose=0)
    assert works()
    for act in ("fit", "evaluate", "predict"):
        with pytest.raises(Exception, match="20"):
            batches = [(x[:8],), (x[8:16, :20],)]
            getattr(model, act)((batch for batch in batches), verbose=0)
        assert works()
    weights = [w + 1 for w in model.get_weights()]
    model.set_weights(weights)
    with pytest.raises(Exception, match="20"):
        model.predict_on_batch(x[:8, :20])
    assert same(model.get_weights(), weights)
    with pytest.raises(ValueError, match="compile"):
        mlp(VAE).fit(x, verbose=0)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of jax alone")
def test_ctrl_c_in_a_step_of_jax_waits_for_its_end():
    from keras_ae.fast.executions_jax import keeping

    class Model:
        pass

    model = Model()

    def step(state):
        signal.raise_signal(signal.SIGINT)
        return "logs", [part + 1 for part in state]

    with pytest.raises(KeyboardInterrupt):
        keeping(model, step)([1, 2, 3, 4])
    assert list(model._jax_state.values()) == [2, 3, 4, 5]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
