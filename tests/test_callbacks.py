"""Signals: what ends a run, and when. What the other callbacks do is seen in the runs of test_fitting."""

import contextlib
import os
import signal

import numpy as np
import pytest

from keras_ae import AE, VAE, callbacks, pictures, progress
from keras_ae.data import ImageData
from keras_ae.errors import RunError


def test_a_fit_of_data_whose_length_nobody_knows(capsys):
    model = VAE((8, 8, 1), 2, "mlp", (8,))
    model.compile("adam")
    images = np.random.default_rng(0).random((32, 8, 8, 1), "float32")

    def batches():
        yield images[:16], None
        yield images[16:], None

    with callbacks.StopAtSignal(lambda line: None) as stop:
        stop_at = [progress.ProgressLine(), callbacks.StopAtNaN(), stop]
        model.fit(batches(), epochs=1, verbose=0, callbacks=stop_at)
        assert "loss" in capsys.readouterr().out
        model.decoder.weights[0].assign(model.decoder.weights[0] * np.nan)
        with pytest.raises(RunError, match="became nan in epoch 1, batch 1"):
            model.fit(batches(), epochs=1, verbose=0, callbacks=stop_at)
        stop.stopping = True
        with pytest.raises(KeyboardInterrupt):
            model.fit(batches(), epochs=1, verbose=0, callbacks=[stop])


def test_ctrl_c_that_keras_swallows_ends_the_run_all_the_same():
    """A bare `except:` of Keras' functional models takes KeyboardInterrupt for a mismatch of inputs."""
    with callbacks.StopAtSignal(lambda line: None) as stop:
        stop.set_params({"steps": 9})
        stop.on_train_begin()
        stop.on_train_batch_end(0)
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.on_train_batch_end(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_signal_ends_a_run_at_once():
    with callbacks.StopAtSignal(lambda line: None) as stop:
        stop.on_train_begin()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_signals_that_come_again_of_themselves_do_not_insist():
    """A terminal that closes sends two, a limit of CPU time one a second."""
    said = []
    with callbacks.StopAtSignal(said.append) as stop:
        stop.on_train_begin()
        for number in (signal.SIGXCPU, signal.SIGXCPU, signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert stop.stopping and len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGQUIT)


@pytest.mark.parametrize("error", [OSError(5, "EIO"), RuntimeError("reentrant call")])
def test_a_message_that_cannot_be_said_does_not_end_a_step(error):
    def report(line):
        raise error

    with callbacks.StopAtSignal(report) as stop:
        stop.on_train_begin()
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.stopping


def test_a_signal_before_and_after_the_training_ends_the_run_at_once():
    for number in (signal.SIGTERM, signal.SIGHUP):
        with callbacks.StopAtSignal(lambda line: None) as stop:
            stop.on_train_begin()
            stop.training = False
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)


def test_a_signal_that_is_ignored_stays_so():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with callbacks.StopAtSignal(lambda line: None) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.stopping
    finally:
        signal.signal(signal.SIGHUP, before)


LOGS = {"loss": 31.23456, "reconstruction": 28.1, "kl": 24.7, "kl_weight": 0.1275}


@pytest.fixture
def run_of(capsys, monkeypatch):
    """A function: what a run of two epochs of 400 batches prints, in a terminal so wide, second by second."""

    def run(columns, verbose=1):
        monkeypatch.setenv("COLUMNS", str(columns))
        clock = iter(range(10_000))
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
        line = progress.ProgressLine(verbose)
        line.set_params({"epochs": 2, "steps": 400, "verbose": verbose})
        for epoch in range(2):
            line.on_epoch_begin(epoch)
            for batch in (0, 99, 199, 399):
                line.on_train_batch_begin(batch)
                line.on_train_batch_end(batch, LOGS)
            line.on_epoch_end(epoch, {**LOGS, **{f"val_{k}": v for k, v in LOGS.items()}})
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("columns", [30, 60, 80, 120])
def test_the_progress_line_fits_the_terminal(run_of, columns):
    out = run_of(columns)
    assert max(len(line) for line in out.replace("\r", "\n").split("\n")) < columns
    assert "\x1b" not in out and "\b" not in out
    updates = [line for line in out.split("\r") if "left" in line and "val_" not in line]
    assert len(updates) == 8 and all("loss 31.23" in line for line in updates) == (columns >= 60)
    assert ("kl_weight 0.1275" in updates[0]) == (columns >= 80)
    # all the figures at the end of an epoch, on as many lines as they take
    assert out.count("val_kl_weight") == 2


def test_the_time_left_is_that_of_the_whole_run(run_of):
    """Half of the batches have gone by in the five ticks of the clock that the first epoch took."""
    first = next(line for line in run_of(80, verbose=2).split("\n") if "val_loss" in line)
    assert first.startswith("400/400  6s  loss 31.23") and first.endswith("  5s left")


def test_figures_are_told_in_the_order_of_the_terms():
    logs = dict.fromkeys(["kl", "kl_weight", "loss", "val_kl", "reconstruction", "val_loss"], 1.0)
    names = [figure.split()[0] for figure in progress.figures_of(logs, ("reconstruction", "kl"))]
    assert names == ["loss", "reconstruction", "kl", "kl_weight", "val_loss", "val_kl"]


def test_where_nobody_looks_an_epoch_is_a_line(run_of):
    lines = run_of(40, verbose=2).splitlines()
    assert [line.split()[0] for line in lines] == ["Epoch", "400/400"] * 2
    assert not any("\r" in line for line in lines)


@pytest.mark.parametrize(
    ("model", "titles"),
    [
        (AE, ["test images over their reconstructions"]),
        (VAE, ["test images over their reconstructions", "samples of N(0, I)"]),
    ],
)
def test_the_rows_of_the_picture_of_an_epoch_are_named(model, titles, digits, monkeypatch):
    drawn = []

    def with_title(picture, title):
        drawn.append(title)
        return before(picture, title)

    before = pictures.with_title
    monkeypatch.setattr(pictures, "with_title", with_title)
    shown = ImageData("mnist", "", "test", digits[0][:4], digits[1][:4], tuple("0123456789"))
    small = model((28, 28, 1), 2, "mlp", (4,))
    picture = callbacks.picture_of(small, shown)
    assert drawn == titles
    rows = np.asarray(picture.convert("L"))[:22]  # of the first title
    assert (rows > 150).any() and (rows == pictures.BACKGROUND).mean() > 0.5


def test_a_line_that_nobody_reads_any_more_ends_the_run(monkeypatch):
    """As by `kae fit vae 2>&1 | head -1`: the run is kept up to this step."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed, callbacks.StopAtSignal(print) as stop:
        line = progress.ProgressLine(2, stop)
        line.set_params({"epochs": 2, "steps": 4})
        monkeypatch.setattr("sys.stdout", closed)
        line.on_epoch_begin(0)
        monkeypatch.undo()
        assert stop.due()
        with pytest.raises(BrokenPipeError):  # what is left in the file's buffer
            closed.flush()
        with contextlib.suppress(BrokenPipeError):
            closed.close()
