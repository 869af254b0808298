"""One run from settings to a run folder: data, model, callbacks, outputs."""

import dataclasses
import importlib.metadata
import random
import signal
import statistics
import threading
import time
from pathlib import Path

import keras
import numpy as np

from keras_ae import checkpoints, data, pictures
from keras_ae.annealing import KLAnnealing
from keras_ae.errors import UserError
from keras_ae.models import AE, CVAE, VAE
from keras_ae.optimizers import Adam
from keras_ae.settings import Settings

MODEL_CLASSES = {"ae": AE, "vae": VAE, "cvae": CVAE}
PICTURED = 20  # test images in the picture of an epoch


class RunError(UserError):
    """A run that cannot start or go on."""


class Feed(keras.utils.PyDataset):
    """Batches of an epoch, in an order that is a function of the seed and the epoch alone.

    Keras shuffles by a state that no checkpoint holds; this order is the same in a resumed run.

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,) for a CVAE, else None.
        batch_size: images a batch; the last one holds what is left.
        seed: of the order, and of the coins of `binarize`.
        binarize: draw each pixel, 0 or 255, as a coin of its grey value.
    """

    def __init__(self, images, labels, batch_size, seed, binarize=False):
        super().__init__()
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.seed, self.binarize = seed, binarize
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Take the order of this epoch, from 0."""
        self.epoch = epoch
        self.order = np.random.default_rng((self.seed, epoch)).permutation(len(self.images))

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        images = self.images[rows]
        if self.binarize:
            images = binarized(images, (self.seed, self.epoch, index))
        return (images if self.labels is None else (images, self.labels[rows]),)


def binarized(images, seed):
    """Each pixel of uint8 images drawn as a coin that shows 255 with probability grey / 255."""
    coins = np.random.default_rng(seed).random(images.shape, dtype="float32")
    return np.where(coins * 255.0 < images, np.uint8(255), np.uint8(0))


class StartEpoch(keras.callbacks.Callback):
    """Sets what an epoch draws from: the order of the images, and the noise of the posterior."""

    def __init__(self, feed, seed):
        super().__init__()
        self.feed, self.seed = feed, seed

    def on_epoch_begin(self, epoch, logs=None):
        self.feed.set_epoch(epoch)
        if hasattr(self.model, "seed_generator"):
            # (seed, calls so far): as if every step up to here had drawn its noise.
            self.model.seed_generator.state.assign([self.seed, epoch * len(self.feed)])


class Stopwatch(keras.callbacks.Callback):
    """Seconds of the training steps of each epoch, without validation and pictures."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._start, self._running = time.perf_counter(), True

    def on_test_begin(self, logs=None):
        if self._running:
            self.seconds.append(time.perf_counter() - self._start)
            self._running = False


class StopAtNaN(keras.callbacks.Callback):
    """Ends the run when its loss is no number any more, before anything is written."""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        step = self._epoch * self.params["steps"] + batch + 1
        self._check(logs["loss"], f"at step {step} (epoch {self._epoch + 1}, batch {batch + 1})")

    def on_epoch_end(self, epoch, logs=None):
        # What the last step of an epoch breaks shows in the validation first.
        step = (epoch + 1) * self.params["steps"]
        self._check(logs["val_loss"], f"after step {step} (validation of epoch {epoch + 1})")

    def _check(self, loss, when):
        if not np.isfinite(loss):
            raise RunError(
                f"The loss became {loss} {when}. The weights of the last whole epoch are kept, if "
                "there was one. Try a lower --learning-rate."
            )


class StopAtSignal(keras.callbacks.Callback):
    """Ends the run at Ctrl-C or SIGTERM after the step under way; the second signal ends it at once.

    An exception that a signal raises amid a step may be swallowed (Keras' functional models catch
    whatever comes while they check their inputs), or leave a lock held that the exit waits for. To be
    entered as a context around `fit`; outside of the main thread it does nothing, nor for a signal that
    is ignored or handled already.
    """

    def __init__(self, report):
        super().__init__()
        self.report, self.stopping, self._before = report, False, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler in (signal.default_int_handler, signal.SIG_DFL):
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number, frame):
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        self.report("stopping after this step; once more stops at once")

    def on_train_batch_end(self, batch, logs=None):
        if self.stopping:
            raise KeyboardInterrupt

    on_test_batch_end = on_train_batch_end

    def on_epoch_end(self, epoch, logs=None):
        self.on_train_batch_end(epoch)


class WriteEpoch(keras.callbacks.Callback):
    """After each epoch: backup, model, history and picture, in the run folder."""

    def __init__(self, folder, history, test_inputs, shown, sample_labels, stopwatch):
        super().__init__()
        self.folder, self.history, self.test_inputs = folder, history, test_inputs
        self.shown, self.sample_labels, self.stopwatch = shown, sample_labels, stopwatch

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1, **logs, "seconds": round(self.stopwatch.seconds[-1], 3)}
        self.history.append(row)
        model = self.model
        picture = picture_of(model, self.test_inputs, self.shown, self.sample_labels)
        with checkpoints.atomic(self.folder / "epochs" / f"{epoch + 1:03d}.png") as temporary:
            picture.save(temporary)
        checkpoints.save_model(model, self.folder / "model.keras")
        checkpoints.write_history(self.folder, self.history)
        # Last: an epoch that the backup names is written in full.
        checkpoints.write_backup(self.folder, model, epoch + 1, self.history)


def picture_of(model, inputs, originals, sample_labels):
    """Test images over their reconstructions; under them samples of N(0, I), the same latents always."""
    picture = pictures.pairs(originals, model.reconstruct(inputs))
    if not isinstance(model, VAE):
        return picture
    n = len(sample_labels) if sample_labels is not None else 40
    samples = model.sample(n, sample_labels, seed=0, prior="normal")
    return pictures.stack(picture, pictures.grid(samples, columns=10))


def build_model(settings, train):
    """The model of some settings for some data (see `keras_ae.data.ImageData`), not compiled."""
    if settings.model == "cvae" and train.labels is None:
        raise RunError(f"{train.name} has no labels, which a cvae needs; use `kae fit vae`.")
    arguments = {
        "image_shape": train.images.shape[1:],
        "latent_dim": settings.latent_dim,
        "backbone": settings.backbone,
        "hidden": settings.hidden,
        "reconstruction": settings.reconstruction,
    }
    if settings.model == "cvae":
        arguments |= {"num_classes": train.num_classes, "class_names": train.class_names}
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(settings.dtype)
    try:
        return MODEL_CLASSES[settings.model](**arguments, name=settings.model)
    finally:
        keras.config.set_dtype_policy(before)


def build_optimizer(settings, total_steps):
    """The optimizer of some settings, with its learning-rate schedule over the whole run."""
    rate, schedules = settings.learning_rate, keras.optimizers.schedules
    if settings.lr_schedule == "onecycle":
        up = max(1, total_steps // 10)
        rate = schedules.CosineDecay(rate / 25, max(1, total_steps - up), 0.0, "lr", rate, up)
    elif settings.lr_schedule == "cosine":
        rate = schedules.CosineDecay(rate, total_steps)
    if settings.optimizer == "adam":
        return Adam(rate)
    return keras.optimizers.get(
        {"class_name": settings.optimizer, "config": {"learning_rate": rate}}
    )


def claim(folder, resume, force):
    """Check that a run may be written to a folder. Returns its run.json, {} for a new run."""
    run = {} if force else checkpoints.read_run(folder)
    if resume and not run:
        raise RunError(f"There is no run in {folder} to resume.")
    if run.get("finished"):
        if resume:
            raise RunError(f"The run in {folder} is finished: nothing is left to resume.")
        raise RunError(
            f"{folder} holds a finished run; --force replaces it, --out writes elsewhere."
        )
    if run and not resume:
        raise RunError(
            f"{folder} holds an unfinished run; --resume goes on with it, --force replaces it."
        )
    return run


def make_folder(folder, force):
    """Make a run folder that can be written to; with `force`, remove the run in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.write_bytes(folder / ".writable", b"")
        (folder / ".writable").unlink()
        if force:
            checkpoints.clear(folder)
    except OSError as error:
        raise RunError(f"Cannot write to {folder}: {error.strerror}.") from error


def fit(settings, folder, data_dir=None, resume=False, force=False, verbose="auto", report=print):
    """Train a model by its settings and write a run folder.

    Args:
        settings: a `Settings`.
        folder: the run folder, see `keras_ae.checkpoints`.
        data_dir: where TFDS datasets lie; see `keras_ae.data`.
        resume: go on with the unfinished run in the folder.
        force: replace the run in the folder.
        verbose: of Keras' `fit`.
        report: is given lines that tell what happens.

    Returns:
        A dict: run, epochs, seconds, seconds_per_epoch (median, the training steps alone),
        images_per_second, history (a dict a epoch).

    Raises:
        RunError: if the run cannot start, or its loss is no longer a number.
        keras_ae.data.DataError: if there is no such dataset.
        KeyboardInterrupt: at Ctrl-C or SIGTERM; whole epochs are kept, and `resume` goes on after them.
    """
    start = time.perf_counter()
    folder = Path(folder)
    run = claim(folder, resume, force)
    if resume and (other := differences(settings, Settings.from_dict(run["settings"]))):
        raise RunError(f"--resume goes on with the settings of the run; other {', '.join(other)}.")
    train, test = data.load_splits(
        settings.dataset, data_dir=data_dir, limit=settings.limit, progress=report
    )
    # What Keras' initialisers draw their seeds from. (keras.utils.set_random_seed would import
    # tensorflow, where there is one, for the same weights.)
    random.seed(settings.seed)
    model = build_model(settings, train)
    make_folder(folder, force)  # now that nothing is missing for the run
    conditional = isinstance(model, CVAE)
    feed = Feed(
        train.images,
        train.labels if conditional else None,
        settings.batch_size,
        settings.seed,
        settings.binarize,
    )
    model.compile(build_optimizer(settings, settings.epochs * len(feed)))

    epochs_done, history = 0, []
    if resume:
        epochs_done, history = checkpoints.read_backup(folder, model)
        report(f"resuming {folder} after epoch {epochs_done} of {settings.epochs}")
    run = {
        "finished": False,
        "settings": settings.to_dict(),
        "data": {
            "name": train.name,
            "version": train.version,
            "train_images": len(train.images),
            "test_images": len(test.images),
        },
        "environment": environment(model),
    }
    checkpoints.write_run(folder, run)

    test_images = np.ascontiguousarray(test.images)
    if settings.binarize:
        test_images = binarized(test_images, settings.seed)
    shown = test_images[:PICTURED]
    stopwatch = Stopwatch()
    callbacks = [
        StartEpoch(feed, settings.seed),
        StopAtNaN(),
        stopwatch,
        WriteEpoch(
            folder,
            history,
            (shown, test.labels[:PICTURED]) if conditional else shown,
            shown,
            np.arange(model.num_classes).repeat(10)[:400] if conditional else None,
            stopwatch,
        ),
    ]
    if isinstance(model, VAE):
        callbacks.insert(
            0, KLAnnealing(settings.kl_schedule, settings.kl_weight, settings.kl_warmup)
        )
    if epochs_done < settings.epochs:
        with StopAtSignal(report) as stop:
            model.fit(
                feed,
                epochs=settings.epochs,
                initial_epoch=epochs_done,
                shuffle=False,  # the feed has its order
                validation_data=((test_images, test.labels) if conditional else test_images,),
                validation_batch_size=256,
                callbacks=[stop, *callbacks],
                verbose=verbose,
            )
    if isinstance(model, VAE):
        report("fitting the prior to the codes of the training images")
        if conditional:
            model.fit_prior((train.images, train.labels), seed=settings.seed)
        else:
            model.fit_prior(train.images, train.labels, seed=settings.seed)
        checkpoints.save_model(model, folder / "model.keras")
        run["prior"] = {"components": model.prior.components}

    seconds_per_epoch = statistics.median(row["seconds"] for row in history)
    result = {
        "run": str(folder),
        "epochs": settings.epochs,
        "seconds": round(time.perf_counter() - start, 3),
        "seconds_per_epoch": seconds_per_epoch,
        "images_per_second": round(len(train.images) / max(seconds_per_epoch, 1e-9), 1),
        "history": history,
    }
    final = {k: v for k, v in result.items() if k not in ("run", "history")}
    checkpoints.write_run(folder, {**run, "finished": True, "final": {**final, **history[-1]}})
    checkpoints.remove_backup(folder)
    return result


def environment(model):
    """Versions of the packages that made a run, the backend and the device."""
    backend = keras.backend.backend()
    packages = {"keras-ae", "keras", "numpy", "tensorflow-datasets", backend}
    return {
        "backend": backend,
        "device": str(getattr(model.encoder.weights[0].value, "device", "cpu")),
        "versions": {name: version(name) for name in sorted(packages)},
    }


def version(package):
    """The version of an installed package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def stored_settings(folder):
    """The settings of the run in a folder.

    Raises:
        RunError: if there is no run.
    """
    run = checkpoints.read_run(folder)
    if "settings" not in run:
        raise RunError(f"There is no run in {folder} to resume.")
    return Settings.from_dict(run["settings"])


def differences(settings, other):
    """Names of the settings in which two differ."""
    return [
        field.name
        for field in dataclasses.fields(Settings)
        if getattr(settings, field.name) != getattr(other, field.name)
    ]
