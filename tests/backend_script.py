"""What test_backends.py runs once in a process of its own for each backend; not a test itself.

    KERAS_BACKEND=jax python backend_script.py MODEL.keras DIGITS.npz FOLDER

Writes FOLDER/facts.json and arrays for the tests to judge.
"""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

from keras_ae import CVAE, VAE, Adam, KLAnnealing, checkpoints, data, fitting
from keras_ae.feed import Feed
from keras_ae.settings import Settings

TRAINING = ("torch", "jax", "tensorflow")


class Recorder(keras.callbacks.Callback):
    """Notes the weight of the KL term that each step used, by the mean that the logs hold."""

    def __init__(self):
        super().__init__()
        self.means = []

    def on_train_batch_end(self, batch, logs=None):
        self.means.append(float(logs["kl_weight"]))


def arrays(model):
    return [keras.ops.convert_to_numpy(w) for w in model.weights]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def predicting(model, inputs, folder):
    """On every backend: what one checkpoint computes."""
    np.save(folder / "reconstructed.npy", model.reconstruct(inputs))
    np.save(folder / "codes.npy", model.encode(inputs))
    np.save(folder / "sample.npy", model.sample(20, np.arange(20) % 10, seed=7))
    if keras.backend.backend() == "openvino":  # Keras does not evaluate there
        return {}
    np.save(folder / "predicted.npy", model.predict(inputs, verbose=0))
    model.compile()
    logs = model.evaluate(inputs, batch_size=32, verbose=0, return_dict=True)
    return {"evaluated": {name: float(value) for name, value in logs.items()}}


def training(images, labels, folder):
    """Where Keras trains: fit, evaluate, save, load, anneal."""
    inputs = (images, labels)
    keras.utils.set_random_seed(1)
    model = CVAE((28, 28, 1), 4, "conv", (4, 8, 16))
    model.compile(Adam(2e-3))
    before, recorder = arrays(model), Recorder()
    history = model.fit(
        inputs, epochs=3, batch_size=48, validation_data=(inputs,), verbose=0,
        callbacks=[KLAnnealing(weight=0.6), recorder],
    ).history  # fmt: skip
    model.save(folder / "compiled.keras")
    loaded = keras.saving.load_model(folder / "compiled.keras")
    state = [
        [keras.ops.convert_to_numpy(v) for v in m.optimizer.variables] for m in (model, loaded)
    ]
    facts = {
        "train_step": type(model).train_step.__module__,
        "history": {name: [float(v) for v in values] for name, values in history.items()},
        "kl_weight": recorder.means,
        "kl_weight_at_the_end": float(model.kl_weight),
        "weights_moved": not same(before, arrays(model)),
        "loaded_weights_are_the_same": same(arrays(model), arrays(loaded)),
        "loaded_optimizer_is_the_same": same(*state),
        "iterations": int(loaded.optimizer.iterations),
    }
    loaded.fit(inputs, batch_size=48, verbose=0)
    facts["iterations_after_another_epoch"] = int(loaded.optimizer.iterations)
    return facts


class Jump(keras.callbacks.Callback):
    """Weights 0 and 1000 in turn; notes the logs after each step."""

    def __init__(self):
        super().__init__()
        self.logs = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.kl_weight.assign(1000.0 * (batch % 2))

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append({name: float(value) for name, value in logs.items()})


def jumping(images):
    """Two steps of a model that does not move, with other weights of the KL term."""
    model, jump = VAE((28, 28, 1), 2, "mlp", (8,)), Jump()
    model.compile(keras.optimizers.SGD(0.0))
    model.fit(images[:64], batch_size=32, verbose=0, callbacks=[jump])
    return jump.logs


class KerasVAE(VAE):
    """Through Keras' own loop around single steps, with the weight assigned by the callback."""

    def make_train_function(self, force=False):
        keras.Model.make_train_function(self, force)


def executions(images):
    """103 steps of Keras' own loop, and of ours with several steps an execution."""
    facts = {}
    for name, kind, steps in [("keras", KerasVAE, 1), ("one", VAE, 1), ("sixteen", VAE, 16)]:
        keras.utils.set_random_seed(2)
        model, recorder = kind((28, 28, 1), 3, "mlp", (16, 8)), Recorder()
        model.compile(Adam(2e-3), steps_per_execution=steps)
        feed = Feed(images, None, 2, seed=3)
        source = feed if name == "keras" else feed.batches()
        history = model.fit(
            source, epochs=2, shuffle=False, verbose=0, callbacks=[KLAnnealing(), recorder],
            validation_data=(images[:50],), validation_batch_size=16,
        ).history  # fmt: skip
        facts[name] = {
            "history": {key: [float(v) for v in values] for key, values in history.items()},
            "losses": [float(loss) for loss in model.inner_steps.losses],
            "weights": [w.ravel().tolist() for w in arrays(model)],
            "calls": len(recorder.means),
            "predicted": model.predict(images[:50], batch_size=16, verbose=0)
            .ravel()[::97]
            .tolist(),
        }
    return facts


def bad_labels(images, labels):
    """Losses of training and of evaluation where a label that came in a batch is out of range."""
    # In no first batch, which is looked at: neither in the order of the feed nor in that of the images.
    order = Feed(images, labels, 16, seed=0).order
    wrong = order[16:][order[16:] >= 16][0]
    feed = Feed(images, np.where(np.arange(len(labels)) == wrong, 10, labels), 16, seed=0)
    sources = {"PyDataset": lambda: feed, "generator": lambda: (feed[i] for i in range(len(feed)))}
    if importlib.util.find_spec("torch"):
        import torch

        tensors = torch.utils.data.TensorDataset(*map(torch.tensor, (feed.images, feed.labels)))
        loader = torch.utils.data.DataLoader(
            tensors, 16, collate_fn=lambda rows: (tuple(map(torch.stack, zip(*rows))),)
        )
        sources["DataLoader"] = lambda: loader
    if importlib.util.find_spec("tensorflow"):
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices(((feed.images, feed.labels),)).batch(16)
        sources["tf.data"] = lambda: dataset
    others = [(*case, "PyDataset") for case in (("mlp", "mse"), ("mlp", "bce"), ("conv", "l1"))]
    facts, kind = {}, None
    for *wanted, source in [*(("mlp", "l1", name) for name in sources), *others]:
        if wanted != kind:  # else the model before, which is compiled
            kind, (backbone, reconstruction) = wanted, wanted
            model = CVAE((28, 28, 1), 2, backbone, (4, 8), reconstruction)
            model.compile(keras.optimizers.SGD(1e-3))
            fresh = model.get_weights()
        data = sources[source]
        model.set_weights(fresh)
        facts[f"{backbone} {reconstruction} {source}"] = [
            float(model.evaluate(data(), verbose=0, return_dict=True)["loss"]),
            float(model.fit(data(), verbose=0).history["loss"][0]),
        ]
    return facts


class Collect(keras.callbacks.Callback):
    """Keeps the weights that each call of the steps leaves."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        weights = self.model.trainable_variables
        self.weights.append([np.array(keras.ops.convert_to_numpy(w)) for w in weights])


class Terminate(keras.callbacks.Callback):
    """Sends this process a SIGTERM where some steps of an epoch begin."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.moment = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.moment:
            os.kill(os.getpid(), signal.SIGTERM)


def averaging(folder):
    """Runs with a running average of the weights: against a loop of its own, and resumed."""
    small = {"backbone": "mlp", "hidden": (16, 8), "latent_dim": 3, "limit": 50}

    def fit(settings, name, *callbacks, **kwargs):
        fitting.fit(settings, folder / name, verbose=0, report=lambda line: None,
                    callbacks=callbacks, **kwargs)  # fmt: skip
        history = checkpoints.read_history(folder / name)
        return history, checkpoints.load_model(folder / name / "model.keras")

    _, test = data.load_splits("mnist", limit=50)
    # A step an epoch, so that the weights after each step are seen on every backend.
    settings, collect = Settings("ae", batch_size=2048, epochs=5, ema=0.8, **small), Collect()
    history, model = fit(settings, "average", collect)
    average = collect.weights[0]
    for weights in collect.weights[1:]:
        average = [0.8 * a + 0.2 * w for a, w in zip(average, weights, strict=True)]
    saved = [keras.ops.convert_to_numpy(w) for w in model.trainable_variables]
    model.compile()
    logs = model.evaluate(test.images, verbose=0, return_dict=True)
    for variable, last in zip(model.trainable_variables, collect.weights[-1], strict=True):
        variable.assign(last)
    of_the_last = model.evaluate(test.images, verbose=0, return_dict=True)

    # 25 steps an epoch, in calls of 16 and 9. Stopped after 16, after 25, and after 25 + 16.
    settings, resumed = Settings("vae", batch_size=2, epochs=2, ema=0.99, **small), []
    whole, model = fit(settings, "unbroken")
    for epoch, batch in ((0, 0), (0, 16), (1, 0)):
        name = f"stopped-{epoch}-{batch}"
        try:
            fit(settings, name, Terminate(epoch, batch))
        except KeyboardInterrupt:
            with np.load(folder / name / "backup" / "state.npz") as backup:
                about = json.loads(str(backup["about"]))
            rows, again = fit(settings, name, resume=True)
            for row in (*rows, *whole):
                row.pop("seconds", None)
            resumed.append(
                {
                    "epochs_done": about["epochs_done"],
                    "batches_done": about["batches_done"],
                    "same_weights": same(arrays(model), arrays(again)),
                    "same_history": rows == whole,
                }
            )
    return {
        "steps": len(collect.weights),
        "off_by": max(float(np.abs(a - s).max()) for a, s in zip(average, saved, strict=True)),
        "from_the_last_by": max(
            float(np.abs(w - s).max()) for w, s in zip(collect.weights[-1], saved, strict=True)
        ),
        "validated": history[-1]["val_loss"],
        "loss_of_the_average": logs["loss"],
        "loss_of_the_last": of_the_last["loss"],
        "resumed": resumed,
    }


class Killed(BaseException):
    pass


def resuming(folder):
    """A run that is cut after its first epoch and resumed is the uninterrupted one."""
    settings = Settings(
        "vae", backbone="mlp", hidden=(16, 8), latent_dim=3, limit=50, batch_size=16, epochs=2,
        augment=("flip", "shift"), kl_weight="auto",
    )  # fmt: skip

    def fit(name, **kwargs):
        return fitting.fit(settings, folder / name, verbose=0, report=lambda line: None, **kwargs)

    fit("whole")
    write = checkpoints.write_backup

    def write_and_die(folder, model, progress):
        write(folder, model, progress)
        if progress.epochs:
            raise Killed

    checkpoints.write_backup = write_and_die
    try:
        fit("cut")
    except Killed:
        checkpoints.write_backup = write
    fit("cut", resume=True)
    models = [checkpoints.load_model(folder / name / "model.keras") for name in ("whole", "cut")]
    return {
        "resumed_is_the_same": same(*map(arrays, models)),
        "epochs_in_history": len((folder / "cut" / "history.csv").read_text().splitlines()) - 1,
        "run_backend": checkpoints.read_run(folder / "cut")["environment"]["backend"],
    }


def fitting_twice(folder):
    """Whether two runs of one seed are the same bit for bit, whatever else drew numbers before."""
    facts = {}
    for backbone in ("mlp", "conv"):
        settings = Settings(
            "cvae",
            backbone=backbone,
            hidden=(4, 8),
            latent_dim=3,
            limit=50,
            batch_size=16,
            epochs=2,
        )
        weights = []
        for i in range(2):
            keras.utils.set_random_seed(i)
            run = folder / f"{backbone}-{i}"
            fitting.fit(settings, run, verbose=0, report=lambda line: None)
            weights.append(arrays(checkpoints.load_model(run / "model.keras")))
        facts[backbone] = same(*weights)
    return facts


# The callbacks here that stop a run are called once an execution, as those of a run are.
fitting.steps_per_execution = lambda batch_size, *_: max(1, min(16, 2048 // batch_size))


def main(model, digits, folder):
    folder, digits = Path(folder), np.load(digits)
    images, labels = digits["images"], digits["labels"]
    facts = {"backend": keras.backend.backend()}
    facts |= predicting(checkpoints.load_model(model), (images, labels), folder)
    if facts["backend"] in TRAINING:
        facts |= training(images, labels, folder)
        facts["jump"] = jumping(images)
        facts["bad_labels"] = bad_labels(images[:48], labels[:48])
        facts["executions"] = executions(np.tile(images, (2, 1, 1, 1))[:103])
        facts |= resuming(folder)
        facts["one_seed_is_one_run"] = fitting_twice(folder)

        facts["averaging"] = averaging(folder)
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
