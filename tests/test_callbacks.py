"""Signals: what ends a run, and when. What the other callbacks do is seen in the runs of test_fitting."""

import contextlib
import os
import signal

import pytest

from keras_ae import callbacks


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
            stop.on_train_end()
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
