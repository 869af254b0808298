"""One run from settings to a run folder: data, model, callbacks, outputs."""

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import random
import statistics
import time
import zlib
from pathlib import Path

import keras
import numpy as np

from keras_ae import checkpoints, data, distributed, train_step
from keras_ae.annealing import KLAnnealing
from keras_ae.callbacks import (
    Callbacks,
    EarlyStopping,
    StartEpoch,
    StopAtNaN,
    StopAtSignal,
    Stopwatch,
    SwapEMA,
    WriteRun,
    check_there,
)
from keras_ae.errors import RunError
from keras_ae.feed import WINDOW, Feed, binarized
from keras_ae.models import AE, CVAE, VAE
from keras_ae.networks import count_weights
from keras_ae.optimizers import Adam
from keras_ae.settings import Settings

MODEL_CLASSES = {"ae": AE, "vae": VAE, "cvae": CVAE}
IMAGES_PER_EXECUTION = 2048  # trained on between two calls of the callbacks
PICTURED = 20  # test images in the picture of an epoch
COPIES = 4  # of the weights while they are trained: themselves, gradients, two means of Adam


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
    Where Keras spreads the batches over devices, its own loop runs, which takes no KL weights ahead: 1.
    """
    if distributed.by_keras():
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


def read_progress(folder, model, steps):
    """What `checkpoints.read_backup` reads, for epochs of so many steps."""
    done = checkpoints.read_backup(folder, model)
    step = done.epochs * steps + done.batches
    if done.batches >= steps or int(model.optimizer.iterations) != step:
        raise RunError(
            f"The backup in {folder} was made at no step of this run; start over with --force."
        )
    return done


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
        A dict: run, epochs, seconds (of this call: those before a resumption are in the history),
        seconds_per_epoch (median, the training steps alone), images_per_second, history (a dict a epoch).
        None in a process of `torchrun` other than the first.

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
        done = distributed.on_first(lambda: read_progress(folder, model, feed.steps))
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
