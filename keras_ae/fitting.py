"""One run from settings to a run folder: data, model, callbacks, outputs."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import random
import signal
import statistics
import threading
import time
import zlib
from pathlib import Path

import keras
import numpy as np

from keras_ae import checkpoints, data, distributed, pictures, train_step
from keras_ae.annealing import KLAnnealing
from keras_ae.errors import UserError
from keras_ae.models import AE, CVAE, VAE
from keras_ae.networks import count_weights
from keras_ae.optimizers import Adam
from keras_ae.settings import Settings

MODEL_CLASSES = {"ae": AE, "vae": VAE, "cvae": CVAE}
IMAGES_PER_EXECUTION = 2048  # trained on between two calls of the callbacks
PICTURED = 20  # test images in the picture of an epoch
COPIES = 4  # of the weights while they are trained: themselves, gradients, two means of Adam
BACKUP_SECONDS = 60.0  # of training that a kill can cost, where an epoch takes longer
WINDOW = 256 << 20  # bytes of images that are shuffled at a time
BLOCK = 128 << 10  # bytes of images that stay neighbours in a larger set


class RunError(UserError):
    """A run that cannot start or go on."""


class Feed(keras.utils.PyDataset):
    """Batches of an epoch, in an order that is a function of the seed and the epoch alone.

    Keras shuffles by a state that no checkpoint holds; this order is the same in a resumed run.

    Args:
        images: (N, H, W, C) uint8: an array, or `keras_ae.data.StoredImages`.
        labels: (N,) for a CVAE, else None.
        batch_size: images a batch; the last one holds what is left.
        seed: of the order, and of the coins of `binarize`.
        binarize: draw each pixel, 0 or 255, as a coin of its grey value.
        shuffle: whether there is an order other than that of the images.
    """

    def __init__(self, images, labels, batch_size, seed, binarize=False, shuffle=True):
        super().__init__()
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.seed, self.binarize, self.shuffle = seed, binarize, shuffle
        self.set_epoch(0)

    def set_epoch(self, epoch, first=0):
        """Take the order of this epoch, from 0, without the batches before `first`."""
        self.epoch, self.first = epoch, first
        n = len(self.images)
        if self.shuffle:
            self.order = epoch_order(n, self.images.nbytes // n, (self.seed, epoch))
        else:
            self.order = np.arange(n)

    @property
    def steps(self):
        """Batches of a whole epoch."""
        return -(-len(self.images) // self.batch_size)

    def __len__(self):
        return self.steps - self.first

    def rows(self, index):
        """The numbers of the images of a batch: of this process's share of it."""
        return self._batch(index)[0]

    def _batch(self, index):
        start = (self.first + index) * self.batch_size
        rows = self.order[start : start + self.batch_size]
        mine = distributed.share(len(rows))
        return rows[mine], len(rows), mine

    def __getitem__(self, index):
        rows, whole, mine = self._batch(index)
        images = self.images[rows]
        if self.binarize:
            images = binarized(images, (self.seed, self.epoch, self.first + index), whole, mine)
        return (images if self.labels is None else (images, self.labels[rows]),)


def epoch_order(n, row_bytes, seed):
    """A random order of n images of so many bytes: (n,) row numbers.

    A set of up to WINDOW bytes is shuffled whole. A larger one is cut into blocks of neighbours, whose
    order is shuffled, and then window by window, so that at any time a training step reads from WINDOW
    bytes of the file and not from all over the disk. (TFDS has shuffled the file itself once.) In memory
    the order is the same.
    """
    random = np.random.default_rng(seed)
    window = max(1, WINDOW // row_bytes)
    if n <= window:
        return random.permutation(n)
    block = max(1, BLOCK // row_bytes)
    starts = random.permutation(np.arange(0, n, block))
    parts = []
    for i in range(0, len(starts), max(1, window // block)):
        rows = starts[i : i + max(1, window // block), None] + np.arange(block)
        parts.append(random.permutation(rows[rows < n]))
    return np.concatenate(parts)


def binarized(images, seed, n=None, rows=slice(None)):
    """Each pixel of uint8 images drawn as a coin that shows 255 with probability grey / 255.

    With `n` and `rows`, the images are these rows of n for which the coins are drawn.
    """
    shape = (n or len(images), *images.shape[1:])
    coins = np.random.default_rng(seed).random(shape, dtype="float32")[rows]
    return np.where(coins * 255.0 < images, np.uint8(255), np.uint8(0))


class Callbacks(keras.callbacks.CallbackList):
    """Keras' list of callbacks, which counts the batches of an epoch from its start, resumed or not."""

    def __init__(self, callbacks, feed, **kwargs):
        super().__init__(callbacks, steps=feed.steps, **kwargs)
        self.feed = feed

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(self.feed.first + batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        # Of the last execution of an epoch, Keras numbers the steps that it could have had.
        super().on_train_batch_end(min(self.feed.first + batch, self.feed.steps - 1), logs)


class StartEpoch(keras.callbacks.Callback):
    """Sets what an epoch draws from, and where a resumed one stood.

    These are the order of the images, the noise of the posterior, and the running means of the epoch.
    """

    def __init__(self, feed, seed, done):
        super().__init__()
        self.feed, self.seed, self.done = feed, seed, done

    def on_epoch_begin(self, epoch, logs=None):
        first = self.done.batches if epoch == self.done.epochs else 0
        self.feed.set_epoch(epoch, first)
        if hasattr(self.model, "seed_generator"):
            # (seed, calls so far): as if every step up to here had drawn its noise.
            step = epoch * self.feed.steps + first
            self.model.seed_generator.state.assign([self.seed, step])
        if first:  # Keras has just set the means back
            for variable, value in zip(
                self.model.metrics_variables, self.done.metrics, strict=True
            ):
                variable.assign(value)


class Stopwatch(keras.callbacks.Callback):
    """Seconds of the training steps of each epoch, without validation and pictures."""

    def __init__(self, done):
        super().__init__()
        self.seconds, self.done = [], done

    def on_epoch_begin(self, epoch, logs=None):
        before = self.done.seconds if epoch == self.done.epochs else 0.0
        self._start, self._running = time.perf_counter() - before, True

    def now(self):
        """Seconds of the epoch under way."""
        return time.perf_counter() - self._start

    def on_test_begin(self, logs=None):
        if self._running:
            self.seconds.append(self.now())
            self._running = False


class StopAtNaN(keras.callbacks.Callback):
    """Ends the run when its loss is no number any more, before anything is written."""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self._first = batch

    def on_train_batch_end(self, batch, logs=None):
        if np.isfinite(logs["loss"]):
            return
        # Which of the steps since the last call it was. A step of one's own may keep no losses.
        losses = [float(loss) for loss in self.model.execution.losses] or [logs["loss"]]
        batch = self._first + next(i for i, loss in enumerate(losses) if not np.isfinite(loss)) + 1
        step = self._epoch * self.params["steps"] + batch
        self._check(logs["loss"], f"at step {step} (epoch {self._epoch + 1}, batch {batch})")

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
    is ignored or handled already. After the last step of an epoch, the run ends with the epoch.
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
        if self.stopping and batch + 1 < self.params["steps"]:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        if self.stopping:
            raise KeyboardInterrupt


class EarlyStopping(keras.callbacks.EarlyStopping):
    """Keras' own, whose state is a function of the epochs so far: a resumed run stops where a whole one does.

    Args:
        done: the `Progress` that the run starts from.
        **kwargs: of `keras.callbacks.EarlyStopping`.
    """

    def __init__(self, done, **kwargs):
        super().__init__(**kwargs)
        self.rows = list(done.history)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        for epoch, row in enumerate(self.rows):
            super().on_epoch_end(epoch, row)

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append(logs)
        super().on_epoch_end(epoch, logs)

    def over(self):
        """Whether the epochs so far end the run."""
        self.model.stop_training = False
        self.on_train_begin()
        return self.model.stop_training


class SwapEMA(keras.callbacks.SwapEMAWeights):
    """Keras' own: the running average takes the place of the weights wherever the model is used.

    Args:
        done: the `Progress` that the run starts from. A backup at the end of an epoch has the average in
            the model and the weights in the optimizer.
    """

    def __init__(self, done):
        super().__init__(swap_on_epoch=True)
        self._ema_weights_in_model = done.epochs > 0 and not done.batches

    def set_model(self, model):
        super().set_model(model)
        # Keras would put the average, or what was swapped for it, into the model at the end of each
        # `fit`; a run that is resumed within an epoch has two.
        model.optimizer.finalize_variable_values = lambda variables: None

    def _finalize_ema_values(self):
        """Nothing: this is for what Keras does at the end of `fit`, and is not done here."""


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras' own, and the pictures of the epochs: for `fit(callbacks=…)`, written to the run folder.

    Raises:
        RunError: if tensorflow or tensorboard is not installed.
    """

    def __init__(self, folder):
        if not all(map(importlib.util.find_spec, ("tensorflow", "tensorboard"))):
            raise RunError(
                "TensorBoard needs tensorflow and tensorboard, on every backend: "
                "pip install 'keras-ae[tensorboard]'"
            )
        self.folder = Path(folder)
        super().__init__(str(self.folder / checkpoints.TENSORBOARD), write_graph=False)

    def on_train_begin(self, logs=None):
        self.set_model(self.model)  # opens files, which the end of a `fit` closes
        super().on_train_begin(logs)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        import tensorflow as tf

        picture = checkpoints.read_epochs(self.folder)[-1].convert("RGB")
        with self._val_writer.as_default():
            tf.summary.image("epoch", np.asarray(picture)[None], step=epoch)


class WriteRun(keras.callbacks.Callback):
    """Writes the run folder: model, history and picture after each epoch, and what `resume` needs.

    That backup is written after each epoch, every `BACKUP_SECONDS` within one, and at the step that a
    signal ends the run after.
    """

    def __init__(self, folder, history, test_inputs, shown, names, sample_labels, stopwatch, stop):
        super().__init__()
        self.folder, self.history, self.test_inputs = folder, history, test_inputs
        self.shown, self.names, self.sample_labels = shown, names, sample_labels
        self.stopwatch, self.stop, self._written = stopwatch, stop, time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        due = self.stop.stopping or time.monotonic() - self._written >= BACKUP_SECONDS
        if not due or batch + 1 == self.params["steps"]:  # the end of the epoch writes more
            return
        # A step that breaks the weights shows in the loss of the next one: the backup before it stays.
        if all(np.isfinite(weights).all() for weights in self.model.get_weights()):
            metrics = [keras.ops.convert_to_numpy(v) for v in self.model.metrics_variables]
            self._back_up(self._epoch, batch + 1, self.stopwatch.now(), metrics)

    def on_epoch_end(self, epoch, logs=None):
        check_there(self.folder)
        row = {"epoch": epoch + 1, **logs, "seconds": round(self.stopwatch.seconds[-1], 3)}
        self.history.append(row)
        model = self.model
        picture = picture_of(model, self.test_inputs, self.shown, self.names, self.sample_labels)
        with checkpoints.atomic(self.folder / "epochs" / f"{epoch + 1:03d}.png") as temporary:
            picture.save(temporary)
        checkpoints.save_model(model, self.folder / "model.keras")
        checkpoints.write_history(self.folder, self.history)
        # Last: an epoch that the backup names is written in full.
        self._back_up(epoch + 1)

    def _back_up(self, *position):
        check_there(self.folder)
        progress = checkpoints.Progress(self.history, *position)
        checkpoints.write_backup(self.folder, self.model, progress)
        self._written = time.monotonic()


def check_there(folder):
    """Refuse to write to a run folder that was removed: it would come back without what was in it."""
    if not folder.is_dir():
        raise RunError(f"The run folder {folder} is gone: it was removed or renamed meanwhile.")


def picture_of(model, inputs, originals, names, sample_labels):
    """Test images over their reconstructions; under them samples of N(0, I), the same latents always."""
    picture = pictures.pairs(originals, model.reconstruct(inputs), names=names)
    if not isinstance(model, VAE):
        return picture
    n = len(sample_labels) if sample_labels is not None else 40
    samples = model.sample(n, sample_labels, seed=0, prior="normal")
    if sample_labels is None:
        return pictures.stack(picture, pictures.grid(samples, columns=10))
    return pictures.stack(picture, pictures.class_rows(samples, sample_labels, model.names))


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
    heads = len(MODEL_CLASSES[settings.model].heads)
    classes = train.num_classes if settings.model == "cvae" else 0
    weights = count_weights(
        train.images.shape[1:],
        settings.latent_dim,
        heads,
        settings.backbone,
        settings.hidden,
        classes,
    )
    if COPIES * 4 * weights > (memory := total_memory()):
        raise RunError(
            f"This network has {weights:,} weights, whose training takes {COPIES * 4 * weights / 2**30:,.0f} "
            f"GiB of memory; there are {memory / 2**30:,.0f}. Try a smaller --hidden or --latent-dim."
        )
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(settings.dtype)
    try:
        return MODEL_CLASSES[settings.model](**arguments, name=settings.model)
    finally:
        keras.config.set_dtype_policy(before)


def total_memory():
    """Bytes of memory that this machine has; what it does not tell is no limit."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return math.inf


def build_optimizer(settings, total_steps):
    """The optimizer of some settings, with its learning-rate schedule over the whole run."""
    rate, schedules = settings.learning_rate, keras.optimizers.schedules
    if settings.lr_schedule == "onecycle":
        up = max(1, total_steps // 10)
        rate = schedules.CosineDecay(rate / 25, max(1, total_steps - up), 0.0, "lr", rate, up)
    elif settings.lr_schedule == "cosine":
        rate = schedules.CosineDecay(rate, total_steps)
    config = {"learning_rate": rate}
    if settings.ema is not None:
        config |= {"use_ema": True, "ema_momentum": settings.ema}
    if settings.optimizer == "adam":
        return Adam(**config)
    return keras.optimizers.get({"class_name": settings.optimizer, "config": config})


def steps_per_execution(batch_size):
    """Steps between two calls of the callbacks: up to 16, a second or so of a slow network.

    What Keras does there costs 1 to 3 of 14 ms a step of the mlp; see `keras_ae.train_step.execution`.
    Over several devices of jax Keras' own loop runs, which takes no KL weights ahead: 1.
    """
    if distributed.devices() > 1:
        return 1
    return max(1, min(16, IMAGES_PER_EXECUTION // batch_size))


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


def make_folder(folder):
    """Make a run folder that can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.write_bytes(folder / ".writable", b"")
        (folder / ".writable").unlink()
    except OSError as error:
        raise RunError(f"Cannot write to {folder}: {error.strerror}.") from error


def stretches(done, epochs):
    """The calls of Keras' `fit` that are left: (first epoch, epoch after the last, first batch).

    Keras asks once a `fit` how many batches an epoch has: the rest of an epoch has a `fit` of its own.
    """
    first = done.epochs
    if done.batches:
        yield first, first + 1, done.batches
        first += 1
    if first < epochs:
        yield first, epochs, 0


def facts_of(train, test):
    """What a run was trained on, with a checksum of labels and images: of every nth, from WINDOW bytes on."""
    checksum = 0
    for split in (train, test):
        step = 1 + split.images.nbytes // WINDOW
        for start in range(0, len(split.images), 8192 * step):
            images = split.images[start : start + 8192 * step : step]
            checksum = zlib.crc32(np.ascontiguousarray(images), checksum)
        if split.labels is not None:
            checksum = zlib.crc32(np.ascontiguousarray(split.labels), checksum)
    return {
        "name": train.name,
        "version": train.version,
        "train_images": len(train.images),
        "test_images": len(test.images),
        "crc32": f"{checksum:08x}",
    }


def describe(facts):
    """The facts of `facts_of` in a few words."""
    return (
        f"version {facts.get('version')}, {facts.get('train_images')} and {facts.get('test_images')} "
        f"images, checksum {facts.get('crc32')}"
    )


def fit(
    settings,
    folder,
    data_dir=None,
    resume=False,
    force=False,
    verbose="auto",
    report=print,
    callbacks=(),
):
    """Train a model by its settings and write a run folder.

    Args:
        settings: a `Settings`.
        folder: the run folder, see `keras_ae.checkpoints`.
        data_dir: where TFDS datasets lie; see `keras_ae.data`.
        resume: go on with the unfinished run in the folder.
        force: replace the run in the folder.
        verbose: of Keras' `fit`.
        report: is given lines that tell what happens.
        callbacks: further `keras.callbacks.Callback`s, called after an epoch is written. What they
            keep in memory is theirs to restore when a run is resumed.

    Returns:
        A dict: run, epochs, seconds, seconds_per_epoch (median, the training steps alone),
        images_per_second, history (a dict a epoch). None in a process of `torchrun` other than the first.

    Raises:
        RunError: if the run cannot start, or its loss is no longer a number.
        keras_ae.data.DataError: if there is no such dataset.
        keras_ae.checkpoints.CheckpointError: if another process is writing to the folder.
        KeyboardInterrupt: at Ctrl-C or SIGTERM; `resume` goes on after the last step.
        OSError: if the folder cannot be written to any more; what it holds stays whole.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.all_devices())
        lock = checkpoints.RunLock(folder)
        distributed.on_first(lambda: stack.enter_context(lock) and None)
        return _fit(settings, folder, data_dir, resume, force, verbose, report, callbacks, lock)


def _fit(settings, folder, data_dir, resume, force, verbose, report, further, lock):
    start = time.perf_counter()
    writes = distributed.rank() == 0  # of several processes, the first one
    run = distributed.on_first(lambda: claim(folder, resume, force))
    if resume and (other := differences(settings, Settings.from_dict(run["settings"]))):
        raise RunError(f"--resume goes on with the settings of the run; other {', '.join(other)}.")

    def load():
        return data.load_splits(
            settings.dataset, data_dir=data_dir, limit=settings.limit, progress=report
        )

    distributed.on_first(lambda: load() and None)  # prepares and decodes it once
    train, test = load()
    # What Keras' initialisers draw their seeds from. (keras.utils.set_random_seed would import
    # tensorflow, where there is one, for the same weights.)
    random.seed(settings.seed)
    model = build_model(settings, train)
    facts = facts_of(train, test)
    if resume and run.get("data", facts) != facts:
        raise RunError(
            f"{train.name} is not what the run in {folder} began with ({describe(run['data'])}; now "
            f"{describe(facts)}): put the dataset back, or start over with --force."
        )

    def take():
        make_folder(folder)  # now that nothing is missing for the run
        lock.take()
        claim(folder, resume, force)  # again: another run may have been here meanwhile
        checkpoints.clear(folder) if force else checkpoints.sweep(folder)

    distributed.on_first(take)
    conditional = isinstance(model, CVAE)
    feed = Feed(
        train.images,
        train.labels if conditional else None,
        settings.batch_size,
        settings.seed,
        settings.binarize,
    )
    model.compile(
        build_optimizer(settings, settings.epochs * feed.steps),
        steps_per_execution=steps_per_execution(settings.batch_size),
    )

    done = checkpoints.Progress([])
    if resume:
        done = distributed.on_first(lambda: checkpoints.read_backup(folder, model))
        within = f", step {done.batches} of {feed.steps}" if done.batches else ""
        report(f"resuming {folder} after epoch {done.epochs} of {settings.epochs}{within}")
    model.optimizer.build(model.trainable_variables)
    distributed.same([*model.variables, *model.optimizer.variables])
    run = {
        "finished": False,
        "settings": settings.to_dict(),
        "data": facts,
        "environment": {
            **environment(model),
            "streamed": isinstance(train.images, data.StoredImages),
            "processes": distributed.size(),
            "devices": distributed.devices(),
        },
    }
    if writes:
        checkpoints.write_run(folder, run)

    test_feed = Feed(
        test.images,
        test.labels if conditional else None,
        256,
        settings.seed,
        settings.binarize,
        shuffle=False,
    )
    shown = test.images[:PICTURED]
    if settings.binarize:
        shown = binarized(shown, settings.seed)
    history, stopwatch, stop = list(done.history), Stopwatch(done), StopAtSignal(report)
    callbacks = [
        StartEpoch(feed, settings.seed, done),
        StopAtNaN(),
        stopwatch,
        WriteRun(
            folder,
            history,
            (shown, test.labels[:PICTURED]) if conditional else shown,
            shown,
            None if test.labels is None else [test.class_names[y] for y in test.labels[:PICTURED]],
            np.arange(model.num_classes).repeat(10)[:400] if conditional else None,
            stopwatch,
            stop,
        ),
        *further,
        stop,
    ]
    if settings.ema is not None:
        callbacks.insert(0, SwapEMA(done))
    early = None
    if settings.early_stopping:
        early = EarlyStopping(
            done,
            monitor="val_loss",
            mode="min",
            patience=settings.early_stopping,
            start_from_epoch=settings.warmup_epochs,
        )
        callbacks.append(early)
    if isinstance(model, VAE):
        callbacks.insert(
            0, KLAnnealing(settings.kl_schedule, settings.kl_weight, settings.kl_warmup)
        )
    if not writes:
        # The first process writes; it sees a loss that is no number one step after any other.
        callbacks = [
            c for c in callbacks if not isinstance(c, WriteRun | StopAtNaN) and c not in further
        ]
    callbacks = Callbacks(
        callbacks,
        feed,
        add_history=True,
        add_progbar=verbose != 0,
        verbose=verbose,
        epochs=settings.epochs,
        model=model,
    )
    with stop:
        for start_epoch, end_epoch, batch in stretches(done, settings.epochs):
            if early and early.over():
                break
            feed.set_epoch(start_epoch, batch)
            model.fit(
                train_step.batches(feed),
                epochs=end_epoch,
                initial_epoch=start_epoch,
                shuffle=False,  # the feed has its order
                validation_data=test_feed,
                callbacks=callbacks,
                verbose=verbose,
            )
    if not writes:
        return None
    check_there(folder)
    if early and len(history) < settings.epochs:
        report(f"stopped early: no lower validation loss in {settings.early_stopping} epochs")
    if isinstance(model, VAE):
        report("fitting the prior to the codes of the training images")
        if conditional:
            model.fit_prior((train.images, train.labels), seed=settings.seed)
        else:
            model.fit_prior(train.images, train.labels, seed=settings.seed)
        check_there(folder)
        checkpoints.save_model(model, folder / "model.keras")
        run["prior"] = {"components": model.prior.components}

    seconds_per_epoch = statistics.median(row["seconds"] for row in history)
    result = {
        "run": str(folder),
        "epochs": len(history),
        "seconds": round(time.perf_counter() - start, 3),
        "seconds_per_epoch": seconds_per_epoch,
        "images_per_second": round(len(train.images) / max(seconds_per_epoch, 1e-9), 1),
        "history": history,
    }
    final = {k: v for k, v in result.items() if k not in ("run", "history")}
    checkpoints.write_run(folder, {**run, "finished": True, "final": {**history[-1], **final}})
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
