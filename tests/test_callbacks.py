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
        stop.on_train_batch_end(0)
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.on_train_batch_end(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_signal_ends_a_run_at_once():
    with callbacks.StopAtSignal(lambda line: None):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
