"""One run, from its settings to a run folder: data, model, callbacks, outputs."""

import contextlib
import dataclasses
import os
import statistics
import time
from pathlib import Path

import keras
import numpy as np

from keras_ae import checkpoints, data, distributed, evaluation, fast
from keras_ae.annealing import KLAnnealing, warn_of_early_choices
from keras_ae.augmentation import Augment, check_images
from keras_ae.building import (
    as_stored,
    build_model,
    build_optimizer,
    check_trainable,
    in_dtype,
    refuse_kl_settings,
    settings_of,
    settled,
)
from keras_ae.callbacks import (
    BackUp,
    Callbacks,
    EarlyStopping,
    StartEpoch,
    StopAtNaN,
    StopAtSignal,
    StopTogether,
    Stopwatch,
    SwapEMA,
    TensorBoard,
    WriteRun,
    check_callbacks,
    check_there,
    forgetful,
    go_on,
    inode_of,
)
from keras_ae.data.arrays import splits_of_arrays
from keras_ae.errors import NotFinite, RunError
from keras_ae.feed import Feed, binarized
from keras_ae.inference import batch_in_memory, in_memory
from keras_ae.inputs import check_range
from keras_ae.models import AE, MODELS
from keras_ae.overfitting import COMPARED, error_of, parted
from keras_ae.priors import PRIORS
from keras_ae.progress import ProgressLine, numbers_of
from keras_ae.provenance import (
    check_origin,
    check_own,
    data_facts,
    described,
    environment_of,
    origin_of,
    own_parts,
    same_data,
)
from keras_ae.resuming import (
    check_folder,
    differences,
    make_folder,
    read_progress,
    remaining_fits,
)
from keras_ae.settings import Settings

# Most images, and pixels of them, that are trained on between two calls of the callbacks, which see signals.
IMAGES_PER_EXECUTION = 2048
PIXELS_PER_EXECUTION = 1 << 23
PICTURED = 20  # test images in the picture of an epoch
BRIGHT = 1000  # training images among which some must be brighter than 1 of 255


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
        callbacks: more `keras.callbacks.Callback`s, called after an epoch is written. In a resumed run, a
            `ModelCheckpoint` of the best epoch and a `CSVLogger` go on; others must restore their own state, and
            see an epoch in which the run stopped again. One that sets the learning rate needs the settings
            `lr_schedule="constant"`.
        model: a model of your own to train, not compiled: an `AE` or a subclass. It keeps its own
            `latent_dim`, `backbone`, `size`, `hidden`, `reconstruction` and `dtype`, and its `kl_weight` if
            the settings give none. None builds the model from the settings.
        train, test: your own images, both or neither: arrays (N, H, W, C), uint8 or float in [0, 1],
            pairs (images, labels), or `keras_ae.data.ImageData`. None for the images of `settings.dataset`.
        start: a checkpoint to start from: a run, a .keras file or a name, see
            `checkpoints.find_checkpoint`. Its `latent_dim`, `backbone`, `hidden` and `reconstruction` are
            then used. The KL weight rises from 0 again, unless the settings say `kl_schedule="constant"`, as
            `kae fit --from` does. None to start with new weights; a resumed run keeps its own start.
        trusted: argument of `checkpoints.load_model`, for `start`.

    Returns:
        A dict: run, epochs, seconds (of this call; for the time before a resumption see the history),
        seconds_per_epoch (median, training steps only), images_per_second, history (a dict per epoch).
        None in a process of `torchrun` other than the first.

    Raises:
        RunError: the run cannot start, or its loss became NaN or infinite.
        ValueError: the settings do not fit the model or the callbacks, train is given without test, or both
            start and model are given.
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
        # One, several or None, as in Keras' `fit`.
        self.user_callbacks = [] if callbacks is None else keras.tree.flatten(callbacks)
        writes_curves = any(isinstance(x, TensorBoard) for x in self.user_callbacks)
        self.claims_curves = writes_curves  # whether those in the folder are all the run's
        # These raise errors now.
        if not isinstance(settings, Settings):
            raise ValueError(f"settings are a keras_ae.Settings; got {settings!r:.60}.")
        settled(settings)
        check_callbacks(self.user_callbacks, settings, self.folder)
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
        self.measured = {}  # figures of the weights at the end, if they are not those of the last epoch
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
        first = self.train.first(in_memory(self.train.images.shape[1:], BRIGHT)).images
        if first.dtype.kind in "iu" and first.max() <= 1:
            self.report(
                f"the first images of {self.train.name} are of 0 and 1 where white is 255, and so all but black: give masks as "
                "booleans or as floats, or in files as 0 and 255"
            )
        if self.settings.augment:
            check_images(self.settings.augment, self.train)
        self.facts = data_facts(self.train, self.test)
        before = self.record.get("data", self.facts)
        if self.resume and not same_data(before, self.facts, self.train, self.test):
            raise RunError(
                f"{self.train.name} is not what the run in {self.folder} began with "
                f"({described(before)}; now {described(self.facts)}): put the dataset back (--dataset, its folder), or start "
                "over with --force."
            )

    def make_model(self, model, start, trusted):
        """Take the model that was given, load the one to start from, or build one from the settings."""
        if start is not None and model is not None:
            raise ValueError("Give a model, or a checkpoint to start from.")
        given = model
        if not isinstance(model, AE | None):
            raise ValueError(f"A run trains an AE, or a subclass; got a {type(model).__name__}.")
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
        if distributed.size() > 1 and model is not None and model.overridden("train_step"):
            raise ValueError(
                f"The train_step of {type(model).__name__} is its own, and may sum no gradients over processes: train it in one."
            )
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
            asked, self.settings = self.settings, settings_of(self.settings, model)
            weight = self.settings.kl_weight
            if given is not None and asked.kl_weight is None and weight not in (None, "auto"):
                now, then = f"{weight:g}", f"{model.kl_weight_at_start:g}"  # float32, and as given
                if now != then:
                    self.report(
                        f"kl_weight {now}, which the model has now; it was made with {then}"
                    )
        self.settings = settled(self.settings, self.train)
        # The dataset may have moved; `load_data` compared its contents.
        other = differences(self.settings, stored) if self.resume else []
        if other := [name for name in other if name != "dataset"]:
            raise RunError(
                f"--resume goes on with the settings of the run; other {', '.join(other)}."
            )
        self.model = build_model(self.settings, self.train) if model is None else model
        self.own = own_parts(self.model, self.settings)
        if self.resume:
            check_own(self.record.get("own", {}), self.own, self.folder)
        if self.origin is not None or self.of_dataset:  # of arrays it is what the user made it
            self.model.preparation = self.train.preparation
        for images in (self.train, self.test):
            self.model.check_data(images)
        if frozen := self.model.frozen_networks:
            self.report(f"frozen, and not trained: {', '.join(frozen)}")
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
            others = set(self.curves) - set(self.replaced)
            if self.claims_curves and others and not self.record.get("tensorboard"):
                self.claims_curves = False
                self.report(
                    f"curves of no run known stay in {self.folder / 'tensorboard'}: TensorBoard shows them as well"
                )
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
            other = ", a run that replaces the one in that folder" if self.replaced else ""
            self.report(f"resuming {folder} after epoch {whole}{within}{other}")
            before = self.record.get("environment", {}).get("backend")
            if before not in (None, now := keras.backend.backend()):
                self.report(
                    f"it was last begun on {before}, and goes on on {now}: not bit for bit the same"
                )
            if begun := own_optimizers(model):
                self.report(f"the backup keeps one optimizer: {', '.join(begun)} begins anew")
            over = self.done.ended or not self.done.epochs
            if begun := [] if over else forgetful(self.user_callbacks):
                self.report(f"{', '.join(begun)} begins anew, and knows of no epoch before")
        model.optimizer.build(model.trainable_variables)
        distributed.broadcast([*model.variables, *model.optimizer.variables])
        self.history = list(self.done.history)

    def begin(self):
        """Write run.json and a first backup: from now on a run without one has lost it."""
        if not self.writes:
            return
        check_there(self.folder, self.inode)
        self.write_record(False)
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
        # Without this entry, curves in the folder are not the run's.
        if self.claims_curves or self.record.get("tensorboard"):
            more["tensorboard"] = True
        self.record = {
            "finished": finished,
            "settings": self.settings.to_dict(),
            **({"own": self.own} if self.own else {}),
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
        self.end(callbacks)

    def end(self, callbacks):
        """Tell the callbacks that the training is over, and keep what those of the user changed then."""
        model = self.model
        if not self.done.ended:
            before = model.get_weights() if self.user_callbacks else []
            callbacks.end()

            def kept():
                now = model.get_weights() if before else []
                same = all(np.array_equal(*pair, equal_nan=True) for pair in zip(before, now))
                self.backup.save(len(self.history), ended=True, changed=not same)
                return not same

            # The other processes may have been given no callbacks.
            changed = distributed.on_first(kept)
            self.done = dataclasses.replace(self.done, ended=True, changed=changed)
        self.stop.training = False  # what a signal ends now is in the backup
        if self.done.changed:
            self.report(
                "a callback changed the weights after the last epoch, and the final figures of validation are of these"
            )
            distributed.broadcast(model.variables)
            logs = model.evaluate(self.test_feed, verbose=0, return_dict=True)
            self.measured = {f"val_{name}": value for name, value in numbers_of(logs).items()}
        if self.stop.stopping:  # by a signal of the last epoch, or of its callbacks' end
            raise KeyboardInterrupt

    def _callbacks(self):
        settings, done, model = self.settings, self.done, self.model
        stopwatch = Stopwatch(done)
        callbacks = []
        if "kl" in model.terms:
            weight = 1.0 if settings.kl_weight == "auto" else settings.kl_weight
            callbacks.append(KLAnnealing(settings.kl_schedule, weight, settings.kl_warmup))
            if self.writes and not done.ended:
                warn_of_early_choices([*callbacks, *self.user_callbacks], settings.epochs)
        if settings.ema is not None:
            self.ema = SwapEMA(done)
            callbacks.append(self.ema)
        callbacks += [StartEpoch(self.feed, settings.seed, done, self.report), stopwatch]
        if self.writes:  # this process sees a NaN loss one step after any other process
            where, shown = (self.folder, self.place), (self.history, self.shown)
            written = WriteRun(*where, *shown, stopwatch, self.replaced, self.inode)
            self.backup = BackUp(written, stopwatch, self.stop)
            if self.resume:
                go_on(self.user_callbacks, self.history, self.report)
            callbacks += [StopAtNaN(), written, *self.user_callbacks]
        if settings.early_stopping:
            self.early = EarlyStopping(
                done,
                monitor="val_loss",
                mode="min",
                patience=settings.early_stopping,
                start_from_epoch=settings.warmup_epochs,
            )
            callbacks.append(self.early)
        if self.writes:
            callbacks.append(self.backup)
        if distributed.size() > 1:
            callbacks.append(StopTogether())
        callbacks.append(self.stop)  # after all that may end the training
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
        early = self.early
        if early and len(history) < settings.epochs and (early.stopped_epoch or early.over()):
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
                way = (
                    "The run has diverged: start over (--force) with a lower --learning-rate."
                    if type(model.prior) in PRIORS.values()
                    else f"Mend the fit of {type(model.prior).__name__}, and resume the run."
                )
                raise RunError(f"{str(error).rstrip('.')}. {way}") from error
            if hasattr(model.prior, "components"):
                more["prior"] = {"components": model.prior.components}
        check_there(self.folder, self.inode)
        # Both may be missing where a run goes on after its last epoch, and the backup, which has them, goes.
        checkpoints.save_model(model, self.folder / "model.keras")
        checkpoints.write_history(self.folder, history)
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
        self.write_record(
            True, **more, final={**history[-1], **self.measured, **figures, **measured}
        )
        checkpoints.remove_backup(self.folder)
        return {"run": str(self.folder), **figures, "history": history}


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
        name = train.name if isinstance(train, data.ImageData) else "arrays"
    train, test = splits_of_arrays(train, test, name)
    if (channels := train.images.shape[-1]) not in (1, 3, 4):
        raise ValueError(
            f"A run draws pictures, of 1, 3 or 4 channels; these images have {channels}. `model.fit` takes any."
        )
    check_range(train.images, "Training images")
    check_range(test.images, "Test images")
    return name, train if settings.limit is None else train.select(slice(settings.limit)), test


def load_splits(settings, data_dir, report):
    """The training and test images of a dataset. The first process prepares it, for all processes."""

    def load():
        return data.load_splits(
            settings.dataset, data_dir=data_dir, limit=settings.limit, progress=report
        )

    distributed.on_first(lambda: load() and None)
    return load()


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


def own_optimizers(model):
    """Names of the optimizers of a user's model, beside that of `compile`."""
    return [
        name
        for name, value in vars(model).items()
        if isinstance(value, keras.optimizers.Optimizer) and value is not model.optimizer
    ]


def steps_per_execution(batch_size, callbacks=(), model=None):
    """Number of steps between two calls of the callbacks: up to 16, a few seconds on two cores.

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
    images = IMAGES_PER_EXECUTION
    if model is not None:
        height, width, _ = model.image_shape
        images = min(images, PIXELS_PER_EXECUTION // (height * width))
    return max(1, min(16, images // batch_size))
