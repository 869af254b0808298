"""The callbacks of a run: its progress, its end, and its files. `KLAnnealing` is in `keras_ae.annealing`."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import keras
import numpy as np

from keras_ae import checkpoints, distributed, pictures
from keras_ae.annealing import KLAnnealing
from keras_ae.data.images import opened
from keras_ae.errors import RunError, need, printable
from keras_ae.files import atomic
from keras_ae.inference import in_memory
from keras_ae.progress import numbers_of

BACKUP_SECONDS = 60.0  # between two backups in an epoch: a kill costs at most so much training

# Signals that ask a run to stop. They come from a user, a shell, a terminal that closes, a cluster that warns
# of the end of a job, or a limit on CPU time.
STOPPING = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
INSISTENT = STOPPING[:3]  # a second one ends the run at once; the others repeat by themselves


class Callbacks(keras.callbacks.CallbackList):
    """Keras' list of callbacks for a run, of which the rest of a resumed epoch is a `fit` of its own.

    It counts batches from the start of an epoch. The training begins with the first `fit`, and ends at `end`.
    """

    def __init__(self, callbacks, feed, **kwargs):
        super().__init__(callbacks, steps=feed.steps, **kwargs)
        self.feed, self.begun, self._logs = feed, False, None

    def on_train_begin(self, logs=None):
        if self.begun:
            return
        self.begun = True
        optimizer, seeds = self._model.optimizer, checkpoints.seeds_of(self._model)
        rates = [v for v in optimizer.variables if v.name == "learning_rate"]
        self._before, before = _values(seeds), _values(rates)
        super().on_train_begin(logs)
        # A rate that is set at the beginning of the training is no more that of the backup.
        self._before += [(v, x) for (v, x), (_, now) in zip(before, _values(rates)) if x == now]

    def on_train_end(self, logs=None):
        self._logs = logs

    def end(self):
        """End the training, if it began."""
        if self.begun:
            super().on_train_end(self._logs)

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        if self.feed.first:
            # What lowers the learning rate or draws numbers here did so in a resumed epoch before its backup.
            for variable, value in self._before:
                variable.assign(value)

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(self.feed.first + batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        # After the last execution of an epoch, Keras may report a batch number beyond the last batch.
        super().on_train_batch_end(min(self.feed.first + batch, self.feed.steps - 1), logs)


def _values(variables):
    return [(v, np.array(keras.ops.convert_to_numpy(v))) for v in variables]


class StartEpoch(keras.callbacks.Callback):
    """Sets the random state of each epoch, and restores the state of a resumed epoch.

    This state is the order of the images, the noise of the posterior, and the running means of the epoch.
    """

    def __init__(self, feed, seed, done, report):
        super().__init__()
        self.feed, self.seed, self.done, self.report = feed, seed, done, report

    def on_epoch_begin(self, epoch, logs=None):
        first = self.done.batches if epoch == self.done.epochs else 0
        self.feed.set_epoch(epoch, first)
        if first:  # the noise goes on from the backup, and Keras has just reset the means
            variables, means = self.model.metrics_variables, self.done.metrics
            if [v.shape for v in variables] == [m.shape for m in means]:
                for variable, value in zip(variables, means):
                    variable.assign(value)
            else:  # a metric of the user's makes its variables at its first step
                self.report(
                    f"the training figures of epoch {epoch + 1} are of the rest of its steps"
                )
        elif hasattr(self.model, "seed_generator"):
            # (seed, steps so far), in whatever process these were.
            # (As an array: torch keeps these bits in int32, which is too small for the number.)
            state = np.array([self.seed, epoch * self.feed.steps], "uint32")
            self.model.seed_generator.state.assign(state)


class Stopwatch(keras.callbacks.Callback):
    """Measures the seconds of training steps in each epoch, without validation and pictures."""

    def __init__(self, done):
        super().__init__()
        self.seconds, self.done = [], done

    def on_epoch_begin(self, epoch, logs=None):
        before = self.done.seconds if epoch == self.done.epochs else 0.0
        self._start, self._running = time.perf_counter() - before, True

    def now(self):
        """Seconds of the current epoch so far."""
        return time.perf_counter() - self._start

    def on_test_begin(self, logs=None):
        if self._running:
            self.seconds.append(self.now())
            self._running = False


class StopAtNaN(keras.callbacks.Callback):
    """Ends the run when its loss is NaN or infinite, before anything is written."""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self._first = batch

    def on_train_batch_end(self, batch, logs=None):
        if "loss" not in logs:
            raise _missing(self.model, "loss")
        if np.isfinite(logs["loss"]):
            return
        # Find the first bad step since the last call. A user's own train step may record no losses.
        losses = [float(loss) for loss in self.model.inner_steps.losses] or [logs["loss"]]
        bad = [i for i, loss in enumerate(losses) if not np.isfinite(loss)]
        batch = (
            self._first + (bad or [len(losses) - 1])[0] + 1
        )  # finite ones may have no finite mean
        self._check(logs["loss"], f"in epoch {self._epoch + 1}, batch {batch}")

    def on_epoch_end(self, epoch, logs=None):
        # If the last step of an epoch breaks the weights, the validation loss shows it first.
        if "val_loss" in logs:
            self._check(logs["val_loss"], f"in the validation of epoch {epoch + 1}")

    def _check(self, loss, when):
        if not np.isfinite(loss):
            raise RunError(
                f"The loss became {loss} {when}. The weights of the last whole epoch are kept, if "
                "there was one. Try a lower --learning-rate."
            )


def _missing(model, name):
    kind = type(model).__name__
    return RunError(f"{kind} logs no {name!r}, which a run writes down: log it as well")


class StopAtSignal(keras.callbacks.Callback):
    """Ends the run after the steps under way at Ctrl-C or a signal of STOPPING; a second one ends it at once.

    A signal must not raise an exception inside a step: the exception may be lost (Keras' functional models
    catch everything while they check their inputs), or leave a lock held that the exit waits for. Enter
    this as a context around a run; before and after the training, a signal raises KeyboardInterrupt at
    once. It does nothing outside the main thread, or for a signal that is ignored or already handled. A
    signal in the last step of an epoch ends the run after that epoch.
    """

    def __init__(self, report):
        super().__init__()
        self.report, self.stopping, self.training, self._before = report, False, False, {}
        self._signalled, self._due = False, None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for name in STOPPING:
                number = getattr(signal, name, None)  # Windows has only some of them
                if number is None:
                    continue
                handler = signal.getsignal(number)
                if handler in (signal.default_int_handler, signal.SIG_DFL):
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number, frame):
        if self._signalled:
            if signal.Signals(number).name in INSISTENT:
                raise KeyboardInterrupt
            return
        self.stopping = self._signalled = True
        if not self.training:
            raise KeyboardInterrupt
        # Printing fails if the terminal is gone, or if the signal came in the middle of a print.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self.report("stopping after the steps under way; once more stops at once")

    def due(self):
        """Whether the run ends after this step: one answer for all who ask, so that a backup is made before."""
        if self._due is None:
            self._due = self.stopping
        return self._due

    def on_train_begin(self, logs=None):
        self.training = True

    def on_train_batch_end(self, batch, logs=None):
        due, self._due = self.due(), None
        steps = self.params["steps"]  # None where Keras does not know how many there will be
        if due and (steps is None or batch + 1 < steps):
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        # After the last epoch, the other callbacks first see the end of the training.
        last = self.model.stop_training or epoch + 1 == self.params["epochs"]
        if self.stopping and not last:
            raise KeyboardInterrupt


class StopTogether(keras.callbacks.Callback):
    """Ends the run in all processes if a callback of the first one, which may be the user's, ends it."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = distributed.on_first(lambda: bool(self.model.stop_training))


class EarlyStopping(keras.callbacks.EarlyStopping):
    """Keras' own, but a resumed run stops at the same epoch as an uninterrupted one.

    For this, its state is computed again from all epochs so far.

    Args:
        done: the `Progress` that the run starts from.
        **kwargs: arguments of `keras.callbacks.EarlyStopping`.
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
        """Whether the run ends after the epochs so far."""
        self.model.stop_training = False
        self.on_train_begin()
        return self.model.stop_training


def check_callbacks(callbacks, settings, folder):
    """Refuse callbacks that a run in a folder cannot do with.

    Raises:
        ValueError: one is none of Keras', changes the learning rate where a schedule does, does what the run itself
            does, or writes to a file of the run.
    """
    ours = [os.path.realpath(folder / name) for name in (*checkpoints.ALWAYS, *checkpoints.BACKUP)]
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise ValueError(f"callbacks are keras.callbacks.Callback; got {callback!r:.60}.")
        name = type(callback).__name__
        for file in (getattr(callback, "filepath", None), getattr(callback, "filename", None)):
            if isinstance(file, str | os.PathLike) and os.path.realpath(file) in ours:
                raise ValueError(f"The run itself writes {file}: give the {name} another file.")
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise ValueError(
                f"A run keeps its own backup, which resume=True goes on with: leave {name} out."
            )
        if isinstance(callback, KLAnnealing):
            raise ValueError(
                f"The settings of a run say how its KL weight rises (kl_schedule, kl_weight, kl_warmup): leave {name} out."
            )
        if isinstance(callback, keras.callbacks.SwapEMAWeights):
            raise ValueError(f"The setting ema of a run averages its weights: leave {name} out.")
        of_the_rate = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)
        if isinstance(callback, of_the_rate) and settings.lr_schedule != "constant":
            raise ValueError(
                f"{name} sets the learning rate, and so does the schedule {settings.lr_schedule!r} of this run: give the "
                'settings lr_schedule="constant".'
            )


def go_on(callbacks, history, report):
    """Make Keras' own callbacks of a user go on in a resumed run, where they keep or add to a file.

    A `ModelCheckpoint` of the best epoch knows the best one so far, and a `CSVLogger` adds to its file, which has an
    epoch in whose end the run died twice.

    Raises:
        ValueError: a `ModelCheckpoint` has no mode that says what is best, or its figure is in no history.
    """
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger):
            callback.append = True
        if not isinstance(callback, keras.callbacks.ModelCheckpoint):
            continue
        if not callback.save_best_only or not history:
            continue
        path = str(callback.filepath)
        here = "{" not in path and "://" not in path
        if here and not os.path.exists(path):
            report(f"{path} is not there: its best epoch is looked for anew")
            continue
        best = {"min": min, "max": max}.get(callback.mode)
        if best is None and callback.monitor in ("loss", "val_loss"):
            best = min
        values = [row[callback.monitor] for row in history if callback.monitor in row]
        if callback.best is not None:
            values.append(callback.best)
        if best is None or not values:
            need = "an initial_value_threshold, the best so far," if best else 'mode="min" or "max"'
            raise ValueError(
                f"The ModelCheckpoint of {callback.monitor} needs {need} in a resumed run."
            )
        callback.best = best(values)


def forgetful(callbacks):
    """The names of Keras' own callbacks whose decision depends on epochs that they have seen."""
    kinds = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau)
    return [type(callback).__name__ for callback in callbacks if isinstance(callback, kinds)]


class SwapEMA(keras.callbacks.SwapEMAWeights):
    """Keras' own: the running average replaces the weights wherever the model is used.

    Args:
        done: the `Progress` that the run starts from. In a backup from the end of an epoch, the average is
            in the model and the weights are in the optimizer.
    """

    def __init__(self, done):
        super().__init__(swap_on_epoch=True)
        self._ema_weights_in_model = done.epochs > 0 and not done.batches

    def set_model(self, model):
        super().set_model(model)
        # At the end of each `fit`, Keras would copy the average (or the weights swapped with it) into the
        # model. A run that is resumed within an epoch calls `fit` twice.
        model.optimizer.finalize_variable_values = lambda variables: None

    def _finalize_ema_values(self):
        """Does nothing: Keras uses this hook at the end of `fit`; see `set_model`."""

    def finish(self, model):
        """Leave the model of a finished run as Keras does: the average is its weights, and the start of the next average."""
        super().set_model(model)
        vars(model.optimizer).pop("finalize_variable_values", None)
        super()._finalize_ema_values()


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras' own, with the pictures of the epochs. It writes to the run folder; use it in `fit(callbacks=…)`.

    Raises:
        UserError: tensorflow or tensorboard is not installed, or there is a file where its folder would be.
        OSError: a file cannot be written.
    """

    def __init__(self, folder):
        need("TensorBoard, on every backend,", "tensorflow", "tensorboard")
        self.folder = Path(folder)
        curves = self.folder / checkpoints.TENSORBOARD
        if curves.exists() and not curves.is_dir():
            raise RunError(f"{curves} is no folder, and the curves would be in one: move it away.")
        super().__init__(str(curves), write_graph=False)

    def on_train_begin(self, logs=None):
        with self._writing():
            super().on_train_begin(logs)

    def on_epoch_end(self, epoch, logs=None):
        import tensorflow as tf

        with opened(self.folder / "epochs" / f"{epoch + 1:03d}.png") as image:
            picture = image.convert("RGB")
        with self._writing():
            super().on_epoch_end(epoch, logs)
            with self._val_writer.as_default():
                tf.summary.image("epoch", np.asarray(picture)[None], step=epoch)

    def on_train_end(self, logs=None):
        with self._writing():
            super().on_train_end(logs)

    @contextlib.contextmanager
    def _writing(self):
        """Turns the errors of tensorflow's writers, which are no OSErrors, into OSErrors."""
        import tensorflow as tf

        try:
            yield
        except tf.errors.OpError as error:
            raise OSError(f"TensorBoard's files cannot be written: {error.message}") from error


class WriteRun(keras.callbacks.Callback):
    """Writes the run folder after each epoch: model, history and picture.

    A run that replaces another one does so at the end of its first epoch; until then its files are in `place`.

    Args:
        replaced: the files of the run that is replaced.
        inode: `inode_of` the folder.
    """

    def __init__(self, folder, place, history, shown, stopwatch, replaced, inode):
        super().__init__()
        self.folder, self.place, self.replaced, self.inode = folder, place, replaced, inode
        self.history, self.shown, self.stopwatch = history, shown, stopwatch

    def on_epoch_end(self, epoch, logs=None):
        check_there(self.folder, self.inode)
        if self.place != self.folder and checkpoints.place_of(self.folder) != self.place:
            raise RunError(
                f"{self.place / 'run.json'} was removed meanwhile, and with it the run that was to replace the one in "
                f"{self.folder}: give the same command again."
            )
        if "val_loss" not in logs:
            raise _missing(self.model, "val_loss")
        for name in logs:
            if name in ("epoch", "seconds") or not name.isprintable():
                raise RunError(
                    f"{type(self.model).__name__} logs {printable(name)!r}, which the history cannot hold: give that figure another name."
                )
        row = {"epoch": epoch + 1, **numbers_of(logs)}
        row["seconds"] = round(self.stopwatch.seconds[-1], 3)
        if self.history and (odd := row.keys() ^ self.history[0].keys()):
            raise RunError(
                f"{', '.join(sorted(odd))}: logged in epoch {epoch + 1} or before it, and not in both. The figures "
                "of a run are the same in every epoch."
            )
        self.history.append(row)
        model = self.model
        picture = picture_of(model, self.shown)
        check_there(self.folder, self.inode)
        with atomic(self.place / "epochs" / f"{epoch + 1:03d}.png") as temporary:
            picture.save(temporary)
        check_there(self.folder, self.inode)
        checkpoints.save_model(model, self.place / "model.keras")
        check_there(self.folder, self.inode)
        checkpoints.write_history(self.place, self.history)
        if self.place != self.folder:
            # From now on this is the run of the folder, and a kill is put right by the next `fit`.
            self.place = self.folder
            checkpoints.take_place(self.folder, self.replaced)


class BackUp(keras.callbacks.Callback):
    """Writes the backup for `resume`: after each epoch, every `BACKUP_SECONDS` within one, and at a signal.

    It comes after the user's callbacks: what they change is in it, and an epoch in whose end the run died is
    trained again for them. That of the last epoch has to wait for the end of the training, see `fitting.Run.end`.

    Args:
        written: the `WriteRun`.
    """

    def __init__(self, written, stopwatch, stop):
        super().__init__()
        self.written, self.stopwatch, self.stop = written, stopwatch, stop
        self._saved = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        due = self.stop.due() or time.monotonic() - self._saved >= BACKUP_SECONDS
        if not due or batch + 1 == self.params["steps"]:  # the end of the epoch writes more
            return
        # If a step broke the weights, only the loss of the next step shows it: keep the older backup then.
        if all(np.isfinite(weights).all() for weights in self.model.get_weights()):
            metrics = [keras.ops.convert_to_numpy(v) for v in self.model.metrics_variables]
            self.save(self._epoch, batch + 1, self.stopwatch.now(), metrics)

    def on_epoch_end(self, epoch, logs=None):
        if not (self.model.stop_training or epoch + 1 == self.params["epochs"]):
            self.save(epoch + 1)

    def save(self, *position, **end):
        """Write a backup: whole epochs, and steps, their seconds and their means in the one after."""
        run = self.written
        check_there(run.folder, run.inode)
        progress = checkpoints.Progress(run.history, *position, **end)
        checkpoints.write_backup(run.place, self.model, progress)
        self._saved = time.monotonic()


def inode_of(folder):
    """The number of a folder in its file system, which it keeps when it is renamed; None if it is gone."""
    return folder.stat().st_ino if folder.is_dir() else None


def check_there(folder, inode):
    """Check that the run folder is still there: writing would change another one, or make a new one."""
    if inode_of(folder) != inode:
        raise RunError(f"The run folder {folder} is gone: it was removed or renamed meanwhile.")
    inner = [
        part / name for part in (folder, folder / checkpoints.NEXT) for name in ("epochs", "backup")
    ]
    for path in (folder / checkpoints.NEXT, *inner):
        if path.is_symlink():
            raise RunError(
                f"{path} became a link meanwhile, and nothing is written behind it: remove the link, and resume the run."
            )


def picture_of(model, shown):
    """Test images (`ImageData`), their reconstructions, and samples of N(0, I), always from the same latents."""
    names = None if shown.labels is None else [shown.class_names[y] for y in shown.labels]
    rebuilt = model.reconstruct(model.inputs_of(shown))
    picture = pictures.with_title(
        pictures.pairs(shown.images, rebuilt, names=names), "test images over their reconstructions"
    )
    if not hasattr(model, "sample"):
        return picture
    n = in_memory(model.image_shape, min(400, 10 * model.num_classes) or 40)
    labels = np.arange(model.num_classes).repeat(10)[:n] if model.num_classes else None
    samples = model.sample(n, labels, seed=0, prior="normal")
    if labels is None:
        drawn = pictures.grid(samples, columns=10)
    else:
        drawn = pictures.class_rows(samples, labels, model.names)
    return pictures.stack(picture, pictures.with_title(drawn, "samples of N(0, I)"))
