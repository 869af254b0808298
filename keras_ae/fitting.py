"""One run, from its settings to a run folder: data, model, callbacks, outputs."""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import statistics
import tempfile
import time
import zlib
from pathlib import Path

import keras
import numpy as np

from keras_ae import checkpoints, data, distributed, evaluation, fast
from keras_ae.annealing import KLAnnealing
from keras_ae.augmentation import Augment, check_images
from keras_ae.backbones import BACKBONES, count_weights, seeded_weights, zero_weights
from keras_ae.callbacks import (
    Callbacks,
    EarlyStopping,
    ProgressLine,
    StartEpoch,
    StopAtNaN,
    StopAtSignal,
    StopTogether,
    Stopwatch,
    SwapEMA,
    WriteRun,
    check_there,
    inode_of,
)
from keras_ae.data.arrays import splits_of_arrays
from keras_ae.errors import NotFinite, RunError, total_memory
from keras_ae.evaluation.evidence import reconstruction_term
from keras_ae.fast.adam import Adam
from keras_ae.feed import WINDOW, Feed, binarized
from keras_ae.inference import batch_in_memory, in_memory, memory_of_training
from keras_ae.inputs import check_range
from keras_ae.model_file import JSON_BYTES, MOST_NUMBERS
from keras_ae.models import MODELS
from keras_ae.recommended import RECOMMENDED, recommended
from keras_ae.settings import Settings, has_kl

IMAGES_PER_EXECUTION = 2048  # most images that are trained on between two calls of the callbacks
PICTURED = 20  # test images in the picture of an epoch
COMPARED = 200  # training and test images whose errors are compared at the end of a run
# Overfitting: smallest ratio of the test error to the training error, and to the test error of an earlier epoch.
GAP, RISE = (
    1.25,
    1.02,
)
COPIES_IN_TRAINING = 4  # memory in units of the weights: weights, gradients, two moments of Adam
# Settings that a user's own model has already fixed.
OF_THE_MODEL = ("latent_dim", "backbone", "size", "hidden", "reconstruction", "dtype")


def fit(
    settings,
    folder,
    data_dir=None,
    resume=False,
    force=False,
    verbose="auto",
    report=print,
    callbacks=(),
    model=None,
    train=None,
    test=None,
    start=None,
    trusted=False,
):
    """Train a model by its settings and write a run folder.

    Args:
        settings: a `Settings`.
        folder: the run folder, see `keras_ae.checkpoints`.
        data_dir: the folder of TFDS datasets; see `keras_ae.data`.
        resume: continue the unfinished run in the folder.
        force: replace the run in the folder; the old run stays until the new one has its first epoch.
        verbose: of Keras' `fit`.
        report: called with lines that say what happens.
        callbacks: more `keras.callbacks.Callback`s, called after an epoch is written. They must restore
            their own state when a run is resumed.
        model: a model of your own to train, not compiled: an `AE` or a subclass. It keeps its own
            `latent_dim`, `backbone`, `size`, `hidden`, `reconstruction` and `dtype`, and its `kl_weight` if
            the settings give none. None builds the model from the settings.
        train, test: your own images, both or neither: arrays (N, H, W, C), uint8 or float in [0, 1],
            pairs (images, labels), or `keras_ae.data.ImageData`. None for the images of `settings.dataset`.
        start: a checkpoint to start from: a run, a .keras file or a name, see
            `checkpoints.find_checkpoint`. Its `latent_dim`, `backbone`, `hidden` and `reconstruction` are
            then used. None to start with new weights; a resumed run keeps its own start.
        trusted: argument of `checkpoints.load_model`, for `start`.

    Returns:
        A dict: run, epochs, seconds (of this call; for the time before a resumption see the history),
        seconds_per_epoch (median, training steps only), images_per_second, history (a dict per epoch).
        None in a process of `torchrun` other than the first.

    Raises:
        RunError: the run cannot start, or its loss became NaN or infinite.
        ValueError: the settings do not fit the model, train is given without test, or both start and model
            are given.
        keras_ae.data.DataError: there is no such dataset.
        keras_ae.checkpoints.CheckpointError: another process is writing to the folder.
        KeyboardInterrupt: at Ctrl-C or a signal of `keras_ae.callbacks.STOPPING`; `resume` continues after
            the last step.
        OSError: the folder can no longer be written to; its files stay whole.
    """
    run = Run(settings, folder, resume, force, verbose, report, callbacks)
    with run.stop, run.alone(), run.undone():
        run.load_data(data_dir, train, test)
        run.make_model(model, start, trusted)
        run.prepare_folder()
        run.compile()
        run.restore()
        run.begin()
        run.train_epochs()
        return run.finish()


class Run:
    """A run in progress; `fit` calls its methods from top to bottom.

    Attributes:
        settings: the `Settings`; all of them have values once there is a model.
        folder: of the run.
        train, test: `keras_ae.data.ImageData`.
        model: the model.
        feed: the training batches.
        done: the `checkpoints.Progress` that the run starts from.
        history: a dict for each epoch so far.
    """

    def __init__(self, settings, folder, resume, force, verbose, report, callbacks):
        self.settings, self.folder = settings, Path(folder)
        self.resume, self.force, self.verbose, self.report = resume, force, verbose, report
        self.user_callbacks = list(callbacks)
        settled(settings)  # raises an error now if they are wrong
        checkpoints.check_clock()
        self.started = time.perf_counter()
        self.lock = checkpoints.RunLock(self.folder)
        self.writes = distributed.rank() == 0  # only the first of several processes writes
        self.stop = StopAtSignal(report)
        # The folder of run.json and backup, the files of a run that is replaced, and TensorBoard's before this run.
        self.place, self.replaced, self.curves = self.folder, [], []
        self.inode = None  # of the folder, in the process that writes
        self.source = None  # the folder of the dataset, if it has no name
        self.done, self.history = checkpoints.Progress([]), []
        self.origin = None  # entry of run.json about the checkpoint that the run starts from

    @contextlib.contextmanager
    def alone(self):
        """A context in which no other process writes to the folder, and all devices are used."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(distributed.all_devices())
            distributed.on_first(lambda: stack.enter_context(self.lock) and None)
            self.record = distributed.on_first(
                # How many epochs there will be may not be known yet; `prepare_folder` checks again.
                lambda: check_folder(
                    self.folder, self.settings.epochs or 0, self.resume, self.force
                )
            )
            yield

    @contextlib.contextmanager
    def undone(self):
        """A context that removes a new run if it fails before it has replaced the run in its folder."""
        try:
            yield
        except (KeyboardInterrupt, OSError, MemoryError, distributed.LostWorker):
            raise  # `resume` can continue it
        except BaseException:
            here = inode_of(self.folder) == self.inode  # else another folder has this name now
            taken = self.history and checkpoints.place_of(self.folder) == self.folder
            if here and self.place != self.folder and not (taken or self.resume):
                checkpoints.remove_next(self.folder)
                curves = set(checkpoints.curves_of(self.folder))
                # On Windows, TensorBoard still has its file open.
                with contextlib.suppress(PermissionError):
                    checkpoints.remove(curves - set(self.curves))
            raise

    def load_data(self, data_dir, train, test):
        """Take the images that were given, or read the dataset. A dataset given by its folder goes by its own name
        from then on."""
        self.of_dataset = train is None or getattr(train, "preparation", None) is not None
        asked = data.lasting_name(self.settings.dataset, data_dir) if train is None else ""
        if self.resume and os.path.isabs(asked) and not os.path.isdir(asked):
            raise RunError(
                f"The dataset of the run is not in {asked} any more: say --dataset, its folder."
            )
        name, self.train, self.test = images_of(self.settings, data_dir, train, test, self.report)
        if os.path.isabs(asked):
            self.source, name = asked, self.train.name
        self.settings = dataclasses.replace(self.settings, dataset=name)
        if self.settings.augment:
            check_images(self.settings.augment, self.train)
        self.facts = data_facts(self.train, self.test)
        if self.resume and (before := self.record.get("data", self.facts)) != self.facts:
            raise RunError(
                f"{self.train.name} is not what the run in {self.folder} began with "
                f"({described(before)}; now {described(self.facts)}): put the dataset back, or start "
                "over with --force."
            )

    def make_model(self, model, start, trusted):
        """Take the model that was given, load the one to start from, or build one from the settings."""
        if start is not None and model is not None:
            raise ValueError("Give a model, or a checkpoint to start from.")
        given = model
        if model is not None and "kl" not in model.terms:
            refuse_kl_settings(self.settings, model)
        if self.resume:
            self.origin = self.record.get("from")
            check_origin(self.folder, self.origin, start)
            if self.origin is not None:
                place = checkpoints.place_of(self.folder)
                if not (checkpoints.has_start(place) or checkpoints.has_backup(place)):
                    raise RunError(
                        f"The run in {self.folder} was killed before it began: give the command that began it again, "
                        "without --resume."
                    )
                model = checkpoints.load_start(place, trusted)
        elif start is not None:
            found = checkpoints.find_checkpoint(start)
            model = checkpoints.load_model(found.path, trusted)
            check_start(found, model, self.settings, self.train)
            self.origin = origin_of(found)
            self.report(f"starting from {found.path}")
        if self.origin is not None:
            model = in_dtype(model, self.settings.dtype)
        if self.resume:
            stored = checkpoints.settings_of(self.record, self.folder)
            if "size" not in self.record["settings"]:
                raise RunError(
                    f"The run in {self.folder} was begun by keras-ae 0.1, whose networks were others: finish "
                    "it there, or start over with --force."
                )
            self.settings = as_stored(self.settings, stored)
        if model is not None:
            self.settings = settings_of(self.settings, model)
        self.settings = settled(self.settings, self.train)
        # The dataset may have moved; `load_data` compared its contents.
        other = differences(self.settings, stored) if self.resume else []
        if other := [name for name in other if name != "dataset"]:
            raise RunError(
                f"--resume goes on with the settings of the run; other {', '.join(other)}."
            )
        self.model = build_model(self.settings, self.train) if model is None else model
        if self.resume:
            check_own(self.record.get("own", {}), own_parts(self.model, self.settings), self.folder)
        if self.origin is not None or self.of_dataset:  # of arrays it is what the user made it
            self.model.preparation = self.train.preparation
        for images in (self.train, self.test):
            self.model.check_data(images)
        check_trainable(self.model, min(self.settings.batch_size, len(self.train.images)))
        if given is not None:
            checkpoints.check_kept(given)

    def prepare_folder(self):
        """Make the folder, once the run has everything it needs. A run that is replaced stays for now."""

        def prepare():
            make_folder(self.folder)
            self.lock.acquire()
            self.inode = inode_of(self.folder)
            # Check again: another run may have written here in the meantime.
            check_folder(self.folder, self.settings.epochs, self.resume, self.force)
            checkpoints.sweep_run(self.folder)
            if self.resume:
                self.place = checkpoints.place_of(self.folder)
            if self.place == self.folder:
                # The run in it was given up, or took its place.
                checkpoints.remove_next(self.folder)
            there = checkpoints.strangers(self.folder, 0) or checkpoints.files_of(self.folder)
            if there and not self.resume:
                self.place = self.folder / checkpoints.NEXT
            if self.place != self.folder:
                self.replaced = checkpoints.files_of(self.folder)
            self.curves = checkpoints.curves_of(self.folder)
            if self.origin is not None and not self.resume:
                if self.place == self.folder:
                    self.write_record(False)  # first, so that the file below belongs to a known run
                checkpoints.save_start(self.place, self.model)

        distributed.on_first(prepare)

    def compile(self):
        """Make the batches, and compile the model with its optimizer for their number of steps."""
        settings = self.settings
        augment = Augment(settings.augment) if settings.augment else None
        self.feed = self._feed(self.train, settings.batch_size, augment=augment)
        # All processes take equal batches, however much memory each has.
        validated = distributed.on_first(lambda: batch_in_memory(self.model, 256))
        self.test_feed = self._feed(self.test, validated, shuffle=False)
        optimizer = build_optimizer(settings, settings.epochs * self.feed.steps)
        steps = steps_per_execution(settings.batch_size, self.user_callbacks, self.model)
        self.model.compile(optimizer, steps_per_execution=steps)
        shown = self.test.first(in_memory(self.model.image_shape, PICTURED))
        drawn = binarized(shown.images, settings.seed) if settings.binarize else shown.images
        self.shown = dataclasses.replace(shown, images=drawn)

    def _feed(self, images, batch_size, shuffle=True, augment=None):
        inputs = self.model.inputs_of(images)
        images, labels = inputs if isinstance(inputs, tuple) else (inputs, None)
        settings = self.settings
        return Feed(images, labels, batch_size, settings.seed, settings.binarize, shuffle, augment)

    def restore(self):
        """Load the last backup of a resumed run; then give all processes the same weights."""
        model, folder, steps = self.model, self.folder, self.feed.steps
        if self.resume:
            self.done = distributed.on_first(lambda: read_progress(self.place, model, steps))
            batches_done = self.done.batches
            within = f", step {batches_done} of {steps}" if batches_done else ""
            whole = f"{self.done.epochs} of {self.settings.epochs}"
            self.report(f"resuming {folder} after epoch {whole}{within}")
        model.optimizer.build(model.trainable_variables)
        distributed.broadcast([*model.variables, *model.optimizer.variables])
        self.history = list(self.done.history)

    def begin(self):
        """Write run.json and a first backup: from now on a run without one has lost it."""
        if not self.writes:
            return
        check_there(self.folder, self.inode)
        self.write_record(False)
        if self.place != self.folder and self.done.epochs:
            # It ended its first epoch, and was killed before it took the place of the run before.
            checkpoints.write_history(self.place, self.history)
            checkpoints.take_place(self.folder, self.replaced)
            self.place = self.folder
        if not (self.resume and checkpoints.has_backup(self.place)):
            checkpoints.write_backup(self.place, self.model, self.done)

    def write_record(self, finished, **more):
        """Write run.json."""
        if not self.writes:
            return
        environment = {
            **environment_of(self.model),
            "streamed": isinstance(self.train.images, data.StoredImages),
            "processes": distributed.size(),
            "devices": distributed.devices(),
        }
        # Keep the earlier environments of a run that was resumed in another one.
        before, earlier = self.record.get("environment"), self.record.get("earlier_environments")
        earlier = earlier if isinstance(earlier, list) else []
        if before not in (None, environment):
            earlier = [*earlier, {"epochs": self.done.epochs, **before}]
        if earlier:
            more["earlier_environments"] = earlier
        self.record = {
            "finished": finished,
            "settings": self.settings.to_dict(),
            **({"own": own} if (own := own_parts(self.model, self.settings)) else {}),
            "data": self.facts,
            "environment": environment,
            **({} if self.origin is None else {"from": self.origin}),
            **more,
        }
        place = self.folder if finished else self.place
        # First, so that the file below belongs to a known run.
        checkpoints.write_run(place, self.record)
        if not finished:
            checkpoints.write_source(place, self.source)

    def train_epochs(self):
        """Train for the remaining epochs."""
        self.early = None
        callbacks = self._callbacks()
        for start_epoch, end_epoch, batch in remaining_fits(self.done, self.settings.epochs):
            if self.early and self.early.over():
                break
            self.feed.set_epoch(start_epoch, batch)
            self.model.fit(
                self.feed.batches(),
                epochs=end_epoch,
                initial_epoch=start_epoch,
                shuffle=False,  # the feed has its own order
                validation_data=self.test_feed,
                callbacks=callbacks,
                verbose=self.verbose,
            )
            if self.model.stop_training:  # by a callback, perhaps in the rest of an epoch
                break

    def _callbacks(self):
        settings, done, model = self.settings, self.done, self.model
        stopwatch = Stopwatch(done)
        callbacks = []
        if "kl" in model.terms:
            weight = 1.0 if settings.kl_weight == "auto" else settings.kl_weight
            callbacks.append(KLAnnealing(settings.kl_schedule, weight, settings.kl_warmup))
        if settings.ema is not None:
            self.ema = SwapEMA(done)
            callbacks.append(self.ema)
        callbacks += [StartEpoch(self.feed, settings.seed, done), stopwatch]
        if self.writes:  # this process sees a NaN loss one step after any other process
            shown, where = (self.history, self.shown), (self.folder, self.place)
            write = WriteRun(*where, *shown, stopwatch, self.stop, self.replaced, self.inode)
            callbacks += [StopAtNaN(), write, *self.user_callbacks]
        if distributed.size() > 1:
            callbacks.append(StopTogether())
        callbacks.append(self.stop)
        if settings.early_stopping:
            self.early = EarlyStopping(
                done,
                monitor="val_loss",
                mode="min",
                patience=settings.early_stopping,
                start_from_epoch=settings.warmup_epochs,
            )
            callbacks.append(self.early)
        if self.verbose != 0:
            callbacks.append(ProgressLine(self.verbose, self.stop))
        return Callbacks(
            callbacks,
            self.feed,
            add_history=True,
            add_progbar=False,
            verbose=self.verbose,
            epochs=settings.epochs,
            model=model,
        )

    def finish(self):
        """Fit the prior, write the model and the final figures. Returns the result of `fit`."""
        if not self.writes:
            return None
        check_there(self.folder, self.inode)
        settings, history, model = self.settings, self.history, self.model
        if self.early and len(history) < settings.epochs:
            self.report(
                f"stopped early: no lower validation loss in {settings.early_stopping} epochs"
            )
        more = {}
        if hasattr(model, "fit_prior"):
            self.report("fitting the prior to the codes of the training images")
            try:
                model.fit_prior(*model.prior_inputs_of(self.train), seed=settings.seed)
            except NotImplementedError as error:  # a prior of the user's own that cannot be fitted
                self.report(str(error))
            except ValueError as error:
                raise RunError(
                    f"{str(error).rstrip('.')}. The run has diverged: start over (--force) with a lower --learning-rate."
                ) from error
            check_there(self.folder, self.inode)
            checkpoints.save_model(model, self.folder / "model.keras")
            if hasattr(model.prior, "components"):
                more["prior"] = {"components": model.prior.components}
        if parted(history, settings):  # by means over an epoch, in which the weights still changed
            most = in_memory(model.image_shape, COMPARED)
            measured = [error_of(model, x.first(most)) for x in (self.train, self.test)]
            if advice := parted(history, settings, measured):
                self.report(advice)
        seconds_per_epoch = statistics.median(row["seconds"] for row in history)
        figures = {
            "epochs": len(history),
            "seconds": round(time.perf_counter() - self.started, 3),
            "seconds_per_epoch": seconds_per_epoch,
            "images_per_second": round(len(self.train.images) / max(seconds_per_epoch, 1e-9), 1),
        }
        # From now on it is any other Keras model, whose callbacks see every batch.
        if settings.ema is not None:
            self.ema.finish(model)
        model.steps_per_execution = model._compile_config.config["steps_per_execution"] = 1
        model.train_function = model.test_function = model.predict_function = None
        try:
            measured = evaluation.final_figures(model, self.test, settings.seed, settings.binarize)
        except NotFinite as error:  # the loss of a model of the user's own may do without
            self.report(f"no final figures: {error}")
            measured = {}
        check_there(self.folder, self.inode)
        self.write_record(True, **more, final={**history[-1], **figures, **measured})
        checkpoints.remove_backup(self.folder)
        return {"run": str(self.folder), **figures, "history": history}


def error_of(model, images):
    """The mean reconstruction term of the images of an `ImageData`, in evaluation mode and without noise."""
    rebuilt = model.reconstruct(model.inputs_of(images))
    return float(reconstruction_term(model, images.images, rebuilt).mean())


def parted(history, settings, measured=None):
    """A warning if the model overfits: if test images are reconstructed worse than training images. Else None.

    That is so if the error of test images is more than `GAP` times that of training images, or more than
    `RISE` times its lowest value so far while the error of training images has fallen since then.

    `measured`: the errors of training and test images at the end, if not those of the last epoch.
    """
    rows = [row for row in history if {"reconstruction", "val_reconstruction"} <= row.keys()]
    if not rows or rows[-1]["reconstruction"] <= 0:
        return None
    best, last = min(rows, key=lambda row: row["val_reconstruction"]), rows[-1]
    train, test = last["reconstruction"], last["val_reconstruction"]
    rises = test > RISE * best["val_reconstruction"] and train < best["reconstruction"]
    if measured is not None:
        train, test = measured
    if train <= 0 or test <= train or (test < GAP * train and not rises):
        return None
    lowest = f", and was {best['val_reconstruction']:.4g} in epoch {best['epoch']}" if rises else ""
    early = "--early-stopping 5"
    if settings.warmup_epochs >= settings.epochs:
        early += " --kl-warmup 0.5"
    return (
        f"test images are rebuilt worse than training images: their {settings.reconstruction} is {test:.4g} an "
        f"image, {test / train - 1:.0%} above {train:.4g}{lowest}; more images help, or --augment flip,shift "
        f"where that leaves them what they are, or {early}"
    )


def images_of(settings, data_dir, train, test, report):
    """The images of a run, those that were given or those of its dataset: (name, training images, test images).

    Raises:
        ValueError: one of both is missing, or they are no images to draw and to train on.
    """
    if (train is None) != (test is None):
        raise ValueError("Give both train and test, or neither.")
    name = settings.dataset
    if train is None:
        return name, *load_splits(settings, data_dir, report)
    if name == Settings("vae").dataset:  # the user gave no name for these arrays
        name = getattr(train, "name", "arrays")
    train, test = splits_of_arrays(train, test, name)
    if (channels := train.images.shape[-1]) not in (1, 3, 4):
        raise ValueError(
            f"A run draws pictures, of 1, 3 or 4 channels; these images have {channels}. `model.fit` takes any."
        )
    check_range(train.images, "Training images")
    check_range(test.images, "Test images")
    return name, train if settings.limit is None else train.first(settings.limit), test


def load_splits(settings, data_dir, report):
    """The training and test images of a dataset. The first process prepares it, for all processes."""

    def load():
        return data.load_splits(
            settings.dataset, data_dir=data_dir, limit=settings.limit, progress=report
        )

    distributed.on_first(lambda: load() and None)
    return load()


def settings_of(settings, model):
    """The settings for a run with a user's own model: values that the model has fixed are taken from it.

    Raises:
        ValueError: the settings contradict the model, or the model is no kind of `settings.model`.
    """
    base = MODELS[settings.model]
    if not isinstance(model, base):
        raise ValueError(
            f"Settings({settings.model!r}) are for a {base.__name__}; got a {type(model).__name__}."
        )
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    decided = {name: model.get_config()[name] for name in OF_THE_MODEL if name != "dtype"}
    decided["dtype"] = model.dtype_policy.name
    if not isinstance(decided["reconstruction"], str):  # a function of the user's
        decided["reconstruction"] = defaults["reconstruction"]
    for name, value in decided.items():
        if getattr(settings, name) not in (defaults[name], value):
            raise ValueError(
                f"The model has {name} {value!r}, and the settings {getattr(settings, name)!r}: leave it "
                "out of the settings."
            )
    if (weight := getattr(model, "kl_weight_at_start", None)) is not None:
        # For a trained model, this is the weight at the end of its annealing.
        weight = weight if weight == "auto" else float(keras.ops.convert_to_numpy(model.kl_weight))
        asked = settings.kl_weight
        if asked is not None and asked != weight and "auto" in (asked, weight):
            raise ValueError(
                f"The model has kl_weight {weight!r}, and the settings {asked!r}: leave it out of the "
                "settings."
            )
        decided["kl_weight"] = weight if asked is None else asked
    return dataclasses.replace(settings, **decided)


def own_parts(model, settings):
    """What of a model the settings, which hold names of registries, cannot say: {part: name} of the user's parts."""
    own = {}
    if type(model) is not MODELS[settings.model]:
        own["model"] = type(model).__name__
    named = model.get_config()["reconstruction"]
    if not isinstance(named, str):  # a function that is in no registry
        own["reconstruction"] = model.reconstruction.__name__
    return own | {name: type(getattr(model, name)).__name__ for name in model.custom_networks}


def check_own(before, own, folder):
    """Check that a run is resumed with a model whose own parts are those, by name, that it began with.

    Raises:
        RunError: they are others.
    """
    if own == before:
        return
    parts = ", ".join(f"the {part} {name}" for part, name in before.items())
    raise RunError(
        f"The run in {folder} began with {parts} of its maker's own: in Python, give keras_ae.fit that model (model=)."
        if parts
        else f"The run in {folder} began with no model of its maker's own: leave model= out."
    )


def refuse_kl_settings(settings, model):
    """Refuse KL settings for a model of the user's whose loss has no KL divergence.

    Raises:
        ValueError: the settings weigh a KL divergence.
    """
    if given := settings.kl_settings():
        raise ValueError(
            f"The loss of {type(model).__name__} has no term kl, which {given[0]} is for: leave it out of the settings."
        )


def check_start(found, model, settings, train):
    """Check that a run may start from a checkpoint: it needs the same kind of model and the same classes.

    Raises:
        ValueError: the checkpoint is of another kind of model.
        RunError: its classes differ from those of the dataset.
    """
    kinds = {cls: name for name, cls in MODELS.items()}
    kind = kinds.get(type(model), type(model).__name__)
    if type(model) is not MODELS[settings.model]:
        raise ValueError(f"{found.path} is of the model {kind}, not {settings.model}.")
    if model.num_classes and train.class_names and tuple(model.names) != tuple(train.class_names):
        raise RunError(
            f"{found.path} knows the classes {', '.join(model.names)}; those of {train.name} are "
            f"{', '.join(train.class_names)}. A vae or an ae can go on from other images."
        )


def origin_of(found):
    """The entry of run.json for the `checkpoints.Checkpoint` that a run starts from."""
    final, path = found.run.get("final", {}), found.path.absolute()
    return {
        # The name only, not the path.
        "name": path.parent.name if path.name == "model.keras" else path.name,
        "crc32": checksum_of(path),
        "dataset": found.settings.get("dataset"),
        "epochs": final.get("epochs"),
    }


def checksum_of(path):
    """The CRC-32 of a file, as stored in run.json."""
    return f"{zlib.crc32(path.read_bytes()):08x}"


def check_origin(folder, origin, start):
    """Check that a run is not resumed from another checkpoint than it started from.

    Raises:
        RunError: the checkpoints differ.
    """
    if start is None:
        return
    path = checkpoints.find_checkpoint(start).path
    if origin is None or origin.get("crc32") != checksum_of(path):
        began = (
            "did not start from a checkpoint"
            if origin is None
            else f"started from {origin.get('name')} as it was then"
        )
        raise RunError(f"The run in {folder} {began}: --resume goes on with it; leave --from out.")


def in_dtype(model, dtype):
    """A loaded model, which is float32, converted to the precision of a run."""
    if dtype == model.dtype_policy.name or model.custom_networks:
        return model
    with zero_weights():
        other = type(model).from_config({**model.get_config(), "dtype": dtype})
    other.set_weights(model.get_weights())
    if hasattr(model, "prior"):
        other.set_prior(model.prior)
    return other


def settled(settings, train=None):
    """Fill in the settings that follow from other settings, and from the training images if given.

    Raises:
        ValueError: the backbone does not take these widths.
    """
    backbone = BACKBONES.find(settings.backbone)
    shape = (28, 28, 1) if train is None else train.images.shape[1:]
    backbone.widths_of(shape, settings.size, settings.hidden)
    found = {"learning_rate": backbone.learning_rate}
    if train is not None:
        found |= recommended(train.name, shape, len(train.images))
    if not has_kl(settings.model):
        found.pop("kl_weight", None)
    return filled(settings, found)


def as_stored(settings, stored):
    """Fill in the settings that follow from the images with the values of a stored run."""
    return filled(settings, {name: getattr(stored, name) for name in RECOMMENDED})


def filled(settings, values):
    """Settings in which these values replace None."""
    missing = {name: value for name, value in values.items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, **missing)


def build_model(settings, train):
    """Build the model of some settings for training data (`keras_ae.data.ImageData`), not compiled."""
    model = MODELS[settings.model]
    arguments = model.arguments_for(train) | {
        name: getattr(settings, name) for name in OF_THE_MODEL
    }
    if settings.kl_weight == "auto":
        arguments["kl_weight"] = "auto"
    weights = count_weights(
        arguments["image_shape"],
        settings.latent_dim,
        len(model.heads),
        settings.backbone,
        settings.hidden,
        arguments.get("num_classes", 0),
        settings.size,
    )
    needed = COPIES_IN_TRAINING * 4 * weights
    if needed > (memory := total_memory()):
        raise RunError(
            f"This network has {weights:,} weights, whose training takes {needed / 2**30:,.0f} "
            f"GiB of memory; there are {memory / 2**30:,.0f}. Try a smaller --hidden or --latent-dim."
        )
    with seeded_weights(settings.seed):
        return model(**arguments, name=settings.model)


def check_trainable(model, images):
    """Check that a model can make a training step of so many images.

    Raises:
        RunError: all its weights are frozen, or the step would take more memory than the machine has.
    """
    if not model.trainable_variables:
        raise RunError(
            "The model has nothing to train: all its weights are frozen (trainable=False)."
        )
    if math.prod(model.image_shape) > MOST_NUMBERS:
        raise RunError(
            f"Images of {' x '.join(map(str, model.image_shape))} have more than {MOST_NUMBERS:,} numbers, which no "
            "model file may: import them smaller (--resize)."
        )
    if len(json.dumps(getattr(model, "class_names", None))) > JSON_BYTES // 2:
        raise RunError(
            f"The names of {model.num_classes:,} classes are longer than a model file may hold: shorten them."
        )
    needed = memory_of_training([model.encoder, model.decoder], images)
    if needed > (memory := total_memory()):
        raise RunError(
            f"A step of {images:,} images takes {needed / 2**30:,.0f} GiB of memory; there are "
            f"{memory / 2**30:,.0f}. Try a smaller --batch-size or --hidden."
        )
    # The fit of a prior holds a few matrices, in double precision, of a row and a column for each latent.
    matrices = 4 * 8 * model.latent_dim**2
    if "kl" in model.terms and matrices > memory:
        raise RunError(
            f"The prior of {model.latent_dim:,} latents takes {matrices / 2**30:,.0f} GiB of memory; there are "
            f"{memory / 2**30:,.0f}. Try a smaller --latent-dim."
        )


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


def steps_per_execution(batch_size, callbacks=(), model=None):
    """Number of steps between two calls of the callbacks: up to 16, about a second for a slow network.

    It is 1 if a user's callback has a hook for batches, if the levers (`fast.ON`) are off, or if Keras
    spreads the batches over devices, or on tensorflow for a model that logs more than its metrics: then Keras'
    own loop runs, which takes no KL weights in advance.
    """
    hooks = ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end")
    of_keras = keras.callbacks.Callback
    every_batch_wanted = any(
        hook in vars(callback)  # of a LambdaCallback
        or getattr(type(callback), hook, None) is not getattr(of_keras, hook)
        for callback in callbacks
        if not isinstance(callback, keras.callbacks.TensorBoard)
        for hook in hooks
    )
    of_tensorflow = keras.backend.backend() == "tensorflow"
    logs_more = of_tensorflow and model is not None and model.logs_more
    if every_batch_wanted or logs_more or not fast.ON or distributed.by_keras():
        return 1
    return max(1, min(16, IMAGES_PER_EXECUTION // batch_size))


def check_folder(folder, epochs, resume, force):
    """Check that a run of `epochs` epochs may be written to a folder. Returns its run.json, {} for a new run."""
    folders = ("backup", "epochs")
    inner = [f"{checkpoints.NEXT}/{name}" for name in folders]
    for name in (*folders, checkpoints.NEXT, *inner, "tensorboard"):
        if (folder / name).is_symlink():  # files of another run, or of nobody's, may lie behind it
            raise RunError(f"{folder / name} is a link: remove it, or --out writes elsewhere.")
        if name != "tensorboard" and (folder / name).exists() and not (folder / name).is_dir():
            raise RunError(
                f"{folder / name} is no folder, and a run has one there: move it away, or --out writes elsewhere."
            )
    files = [folder / name for name in (*checkpoints.ALWAYS, *checkpoints.BACKUP)]
    files += [
        folder / checkpoints.NEXT / name for name in (*checkpoints.ALWAYS, *checkpoints.BACKUP)
    ]
    for path in [*files, *checkpoints.pictures_of(folder)]:
        if path.is_dir():
            raise RunError(
                f"{path} is a folder, and a run has a file there: move it away, or --out writes elsewhere."
            )
    checkpoints.settle(folder)
    place = checkpoints.place_of(folder)
    record = {} if force else checkpoints.read_run(place if resume else folder)
    if resume and not record:
        raise RunError(f"There is no run in {folder} to resume.")
    if record and not record.get("finished") and lost_backup(folder):
        raise RunError(
            f"The backup of the unfinished run in {folder}, which --resume needs, is missing: "
            + checkpoints.way_on(folder)
        )
    if not resume and record and checkpoints.died_early(folder, record):
        record, place = {}, folder  # it is begun anew
    begun = (
        ""
        if place == folder
        else ", and the beginning of its successor, which --resume goes on with"
    )
    if record.get("finished"):
        if place == folder or not resume:
            checkpoints.remove_backup(folder)  # a kill at the very end of a run leaves its backup
        if resume:
            raise RunError(f"The run in {folder} is finished: nothing is left to resume.")
        raise RunError(
            f"{folder} holds a finished run{begun}; --force replaces it, --out writes elsewhere."
        )
    if not resume and (record or not force and place != folder):
        raise RunError(
            f"{folder} holds an unfinished run; --resume goes on with it, --force replaces it."
        )
    if not record and not force and (taken := checkpoints.strangers(folder, epochs)):
        name = taken[0].relative_to(folder)
        raise RunError(
            f"{folder} holds a {name} that no run there wrote; --out writes elsewhere, --force replaces it."
        )
    return record


def lost_backup(folder):
    """Whether the run that `resume` would continue has trained, and has no backup any more."""
    if checkpoints.place_of(folder) != Path(folder) or not checkpoints.has_trained(folder):
        return False
    return not (checkpoints.has_backup(folder) or checkpoints.unsettled(folder))


def can_resume(folder):
    """Whether there is an unfinished run in a folder, whose run.json is not damaged and whose other files are there."""
    place = checkpoints.place_of(folder)
    try:
        record = checkpoints.read_run(place)
    except checkpoints.CheckpointError:
        return False
    if not record or record.get("finished") or lost_backup(folder):
        return False
    started = checkpoints.has_start(place) or checkpoints.unsettled(folder)
    return record.get("from") is None or started


def make_folder(folder):
    """Make a run folder, and check that it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunError(f"Cannot write to {folder}: {error.strerror}.") from error


def read_progress(folder, model, steps):
    """As `checkpoints.read_backup`, and check that the backup fits epochs of `steps` steps."""
    done = checkpoints.read_backup(folder, model)
    step = done.epochs * steps + done.batches
    if done.batches >= steps or keras.ops.convert_to_numpy(model.optimizer.iterations) != step:
        raise RunError(
            f"The backup in {folder} was made at no step of this run: {checkpoints.way_on(folder)}"
        )
    return done


def remaining_fits(done, epochs):
    """The calls of Keras' `fit` that remain: (first epoch, epoch after the last, first batch).

    Keras asks only once per `fit` how many batches an epoch has, so the rest of a stopped epoch needs its own
    `fit`.
    """
    first = done.epochs
    if done.batches:
        yield first, first + 1, done.batches
        first += 1
    if first < epochs:
        yield first, epochs, 0


def data_facts(train, test):
    """Facts about the data of a run, with a checksum of labels and images (for large data, of every nth image)."""
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


def described(facts):
    """A short text for the result of `data_facts`."""
    return (
        f"version {facts.get('version')}, {facts.get('train_images')} and {facts.get('test_images')} "
        f"images, checksum {facts.get('crc32')}"
    )


def environment_of(model):
    """The backend, the device and the package versions of a run."""
    backend = keras.backend.backend()
    packages = {"keras-ae", "keras", "numpy", "tensorflow-datasets", backend}
    return {
        "backend": backend,
        "device": str(getattr(model.encoder.weights[0].value, "device", "cpu")),
        "versions": {name: version(name) for name in sorted(packages)},
    }


def version(package):
    """The version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def stored_settings(folder):
    """The settings of the run that `resume` would continue. A dataset without a name is given by its folder.

    Raises:
        RunError: there is no run.
    """
    place = checkpoints.place_of(folder)
    record = checkpoints.read_run(place)
    if not record:
        raise RunError(f"There is no run in {folder} to resume.")
    settings = checkpoints.settings_of(record, place)
    source = checkpoints.read_source(place)
    if source is None and checkpoints.unsettled(folder):
        source = checkpoints.read_source(Path(folder) / checkpoints.NEXT)
    return settings if source is None else dataclasses.replace(settings, dataset=source)


def differences(settings, other):
    """Names of the fields in which two settings differ."""
    return [
        field.name
        for field in dataclasses.fields(Settings)
        if getattr(settings, field.name) != getattr(other, field.name)
    ]
