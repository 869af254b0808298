"""The callbacks of a run: where it stands, what ends it, what it writes. `KLAnnealing` has a module of its own."""

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np

from keras_ae import checkpoints, pictures
from keras_ae.errors import RunError, need
from keras_ae.files import atomic

REDRAWN_SECONDS = 0.2  # between two updates of the progress line
BACKUP_SECONDS = 60.0  # of training that a kill can cost, where an epoch takes longer

# What asks a run to stop: a person, a shell, a terminal that closes, a cluster's warning, a limit of CPU time.
STOPPING = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGXCPU")
INSISTENT = STOPPING[:3]  # of these a second one is meant; the others come again of themselves


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
        losses = [float(loss) for loss in self.model.inner_steps.losses] or [logs["loss"]]
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
    """Ends the run at Ctrl-C or a signal of STOPPING after the step under way; a second one ends it at once.

    An exception that a signal raises amid a step may be swallowed (Keras' functional models catch
    whatever comes while they check their inputs), or leave a lock held that the exit waits for. To be
    entered as a context around a run; before and after the training, a signal is a KeyboardInterrupt at
    once. Outside of the main thread it does nothing, nor for a signal that is ignored or handled
    already. After the last step of an epoch, the run ends with the epoch.
    """

    def __init__(self, report):
        super().__init__()
        self.report, self.stopping, self.training, self._before = report, False, False, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for name in STOPPING:
                number = getattr(signal, name, None)  # Windows has some of them
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
        if self.stopping:
            if signal.Signals(number).name in INSISTENT:
                raise KeyboardInterrupt
            return
        self.stopping = True
        if not self.training:
            raise KeyboardInterrupt
        # Its terminal may be gone, or just being written to.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self.report("stopping after this step; once more stops at once")

    def on_train_begin(self, logs=None):
        self.training = True

    def on_train_end(self, logs=None):
        self.training = False

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


class ProgressLine(keras.callbacks.Callback):
    """Progress as Keras prints it, in one line that fits the terminal, with the time left for the run.

    Of the figures there are as many as fit, in the order of the model's terms. At the end of an epoch they
    are all told, in as many lines as they take.

    Args:
        verbose: 1 or "auto" rewrites the line as the epoch goes; 2 prints at the end of an epoch alone.
    """

    def __init__(self, verbose=1):
        super().__init__()
        self.rewrites = verbose in (1, True, "auto")
        self._first = self._shown = None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._began = epoch, time.monotonic()
        self._print(f"Epoch {epoch + 1}/{self.params['epochs']}\n")

    def on_train_batch_begin(self, batch, logs=None):
        # Of this process: what was done before the run was resumed took another's time.
        if self._first is None:
            self._first = self._steps_until(batch), time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        if not self.rewrites or (self._shown is not None and now - self._shown < REDRAWN_SECONDS):
            return
        self._shown = now
        steps = self.params["steps"]
        left = f"{duration(self._seconds_left(batch + 1, now))} left"
        line = progress_line(batch + 1, steps, self._figures(logs), left, terminal_width() - 1)
        self._print(f"\r{line}")

    def on_epoch_end(self, epoch, logs=None):
        now = time.monotonic()
        width = terminal_width() - 1
        parts = [f"{self.params['steps']}/{self.params['steps']}", duration(now - self._began)]
        parts += self._figures(logs)
        if epoch + 1 < self.params["epochs"]:
            parts.append(f"{duration(self._seconds_left(self.params['steps'], now))} left")
        clear = "\r" + " " * width + "\r" if self.rewrites else ""
        self._print(clear + wrapped(parts, width if self.rewrites else None) + "\n")

    def _figures(self, logs):
        return figures_of(logs, getattr(self.model, "terms", ()))

    def _steps_until(self, batch):
        return self._epoch * self.params["steps"] + batch

    def _seconds_left(self, batches, now):
        """Of the whole run, at the pace of this process so far: steps, validations and what is written."""
        before, began = self._first
        done = self._steps_until(batches)
        left = self.params["epochs"] * self.params["steps"] - done
        return (now - began) / max(1, done - before) * left

    @staticmethod
    def _print(text):
        print(text, end="", flush=True)


def figures_of(logs, terms=()):
    """The logs of Keras as words, "loss 31.24": the loss, its terms in their order, the rest, the validation's."""
    places = {name: i for i, name in enumerate(("loss", *terms))}

    def place(name):
        return name.startswith("val_"), places.get(name.removeprefix("val_"), len(places))

    return [f"{name} {float(logs[name]):.4g}" for name in sorted(logs or {}, key=place)]


def progress_line(step, steps, figures, left, width):
    """Steps, as many figures as fit, the time left, and a bar of what room remains; `width` letters exactly."""
    head = f"{step:{len(str(steps))}}/{steps}"
    room = width - len(head) - len(left) - 2
    shown = ""
    for figure in figures:
        if len(shown) + len(figure) + 2 > room:
            break
        shown += f"  {figure}"
    bar, length = "", min(20, room - len(shown) - 2)
    if length >= 5:
        done = length * step // steps
        bar = "  " + "=" * done + "." * (length - done)
    return f"{head}{bar}{shown}  {left}"[:width].ljust(width)


def wrapped(parts, width):
    """Parts with two spaces between them, in lines of a width; None is one line."""
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]}  {part}" if lines[-1] else part
        if width is None or len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(f"  {part}")
    return "\n".join(lines)


def duration(seconds):
    """12s, 3:05 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}" if minutes else f"{seconds}s"


def terminal_width():
    """Columns of the terminal that progress is printed to; 80 where it is none that tells."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return shutil.get_terminal_size().columns


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras' own, and the pictures of the epochs: for `fit(callbacks=…)`, written to the run folder.

    Raises:
        UserError: if tensorflow or tensorboard is not installed.
    """

    def __init__(self, folder):
        need("TensorBoard, on every backend,", "tensorflow", "tensorboard")
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
    signal ends the run after. A run that replaces another one does so at the end of its first epoch;
    until then its backups are in `place`.

    Args:
        replaced: the files of the run that is replaced.
    """

    def __init__(self, folder, place, history, shown, stopwatch, stop, replaced=()):
        super().__init__()
        self.folder, self.place, self.replaced = folder, place, replaced
        self.history, self.shown = history, shown
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
        picture = picture_of(model, self.shown)
        path = self.folder / "epochs" / f"{epoch + 1:03d}.png"
        with atomic(path) as temporary:
            picture.save(temporary)
        checkpoints.save_model(model, self.folder / "model.keras")
        checkpoints.write_history(self.folder, self.history)
        before, self.place = self.place, self.folder
        # Last: an epoch that the backup names is written in full.
        self._back_up(epoch + 1)
        if before != self.folder:
            checkpoints.take_place(self.folder, [p for p in self.replaced if p != path])

    def _back_up(self, *position):
        check_there(self.folder)
        progress = checkpoints.Progress(self.history, *position)
        checkpoints.write_backup(self.place, self.model, progress)
        self._written = time.monotonic()


def check_there(folder):
    """Refuse to write to a run folder that was removed: it would come back without what was in it."""
    if not folder.is_dir():
        raise RunError(f"The run folder {folder} is gone: it was removed or renamed meanwhile.")


def picture_of(model, shown):
    """Test images (`ImageData`) over their reconstructions; under them samples of N(0, I), the same latents always."""
    names = None if shown.labels is None else [shown.class_names[y] for y in shown.labels]
    rebuilt = model.reconstruct(model.inputs_of(shown))
    picture = pictures.with_title(
        pictures.pairs(shown.images, rebuilt, names=names), "test images over their reconstructions"
    )
    if not hasattr(model, "sample"):
        return picture
    labels = np.arange(model.num_classes).repeat(10)[:400] if model.num_classes else None
    n = 40 if labels is None else len(labels)
    samples = model.sample(n, labels, seed=0, prior="normal")
    if labels is None:
        drawn = pictures.grid(samples, columns=10)
    else:
        drawn = pictures.class_rows(samples, labels, model.names)
    return pictures.stack(picture, pictures.with_title(drawn, "samples of N(0, I)"))
