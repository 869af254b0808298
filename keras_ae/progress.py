"""The progress of a training, in one line that fits the terminal."""

import os
import shutil
import sys
import time

import keras

from keras_ae.errors import RunError

REDRAWN_SECONDS = 0.2  # between two updates of the line


class ProgressLine(keras.callbacks.Callback):
    """Prints progress like Keras, in one line that fits the terminal, with the time left for the run.

    The line shows as many figures as fit, in the order of the model's terms. At the end of an epoch all
    figures are printed, on as many lines as needed.

    Args:
        verbose: 1 or "auto" updates the line during an epoch; 2 prints only at the end of an epoch.
        stop: a `StopAtSignal`, which ends the run when the line cannot be printed any more, as in `| head -1`.
    """

    def __init__(self, verbose=1, stop=None):
        super().__init__()
        self.stop = stop
        self.rewrites = verbose in (1, True, "auto")
        self._first = self._shown = None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._began = epoch, time.monotonic()
        self._print(f"Epoch {epoch + 1}/{self.params['epochs']}\n")

    def on_train_batch_begin(self, batch, logs=None):
        # Time only the steps of this process, not those before the run was resumed.
        if self._first is None and self.params["steps"]:
            self._first = self._steps_until(batch), time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        now, steps = time.monotonic(), self.params["steps"]
        too_soon = self._shown is not None and now - self._shown < REDRAWN_SECONDS
        if not self.rewrites or too_soon or steps is None:  # of data of unknown length
            return
        self._shown = now
        left = f"{duration(self._seconds_left(batch + 1, now))} left"
        line = progress_line(batch + 1, steps, self._figures(logs), left, terminal_width() - 1)
        self._print(f"\r{line}")

    def on_epoch_end(self, epoch, logs=None):
        now = time.monotonic()
        width = terminal_width() - 1
        steps = self.params["steps"]
        parts = [f"{steps}/{steps}"] if steps else []
        parts += [duration(now - self._began), *self._figures(logs)]
        if steps and epoch + 1 < self.params["epochs"]:
            parts.append(f"{duration(self._seconds_left(steps, now))} left")
        clear = "\r" + " " * width + "\r" if self.rewrites else ""
        self._print(clear + wrapped(parts, width if self.rewrites else None) + "\n")

    def _figures(self, logs):
        return figures_of(logs, getattr(self.model, "terms", ()))

    def _steps_until(self, batch):
        return self._epoch * self.params["steps"] + batch

    def _seconds_left(self, batches, now):
        """Seconds left of the run, at this process's pace so far, which includes validation and writing."""
        before, began = self._first
        done = self._steps_until(batches)
        left = self.params["epochs"] * self.params["steps"] - done
        return (now - began) / max(1, done - before) * left

    def _print(self, text):
        try:
            print(text, end="", flush=True)
        except OSError:
            if self.stop is None:
                raise
            self.stop.stopping = True


def figures_of(logs, terms=()):
    """Keras' logs as texts like "loss 31.24": the loss, its terms in order, the rest; then those of validation."""
    places = {name: i for i, name in enumerate(("loss", *terms))}

    def place(name):
        return name.startswith("val_"), places.get(name.removeprefix("val_"), len(places))

    numbers = numbers_of(logs or {})
    return [f"{name} {numbers[name]:.4g}" for name in sorted(numbers, key=place)]


def progress_line(step, steps, figures, left, width):
    """Steps, a bar if there is room, as many figures as fit, and the time left; exactly `width` characters."""
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
    """Join parts with two spaces, wrapped to lines of a width; None for a single line."""
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]}  {part}" if lines[-1] else part
        if width is None or len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(f"  {part}")
    return "\n".join(lines)


def duration(seconds):
    """Format seconds as 12s, 3:05 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}" if minutes else f"{seconds}s"


def terminal_width():
    """Columns of the terminal that progress is printed to; 80 if that is unknown."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return shutil.get_terminal_size().columns


def numbers_of(logs):
    """The figures of an epoch as plain numbers.

    Raises:
        RunError: one is no number.
    """
    numbers = {}
    for name, value in logs.items():
        try:
            numbers[name] = value if type(value) in (int, float) else float(value)
        except (TypeError, ValueError):
            what = f"got {value!r:.60}"
            raise RunError(f"The figure {name} of an epoch must be a number; {what}.") from None
    return numbers
