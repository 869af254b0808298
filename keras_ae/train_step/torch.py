"""The training step on torch: eager, gradients by autograd."""

import ctypes
import functools
import sys

import keras
import torch

from keras_ae import distributed
from keras_ae.tracking import results


@functools.cache
def keep_memory():
    """Have glibc keep up to 256 MB of freed memory, where the next step needs as much again.

    By default it hands the gradients back to the system at the end of each step and gets them anew,
    page by page: 1.7 of 14 ms of a step of the mlp. Does nothing with other C libraries.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
        mallopt(trim_threshold, 256 << 20)
        mallopt(mmap_threshold, 32 << 20)  # the highest allowed


class StepMixin:
    def make_train_function(self, force=False):
        keep_memory()
        return super().make_train_function(force)

    def train_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        loss = self.compute_loss(x, sample_weight=sample_weight, training=True)
        variables = self.trainable_variables
        loss, n = self.optimizer.scale_loss(loss), 1
        if several := distributed.size() > 1:
            # The sum over the images of each process, for the mean over those of all.
            n = len(keras.tree.flatten(x)[0])
            loss = loss * n
        gradients = torch.autograd.grad(loss, [v.value for v in variables], allow_unused=True)
        with torch.no_grad():
            if several:
                pairs = zip(gradients, variables)
                gradients = [torch.zeros_like(v.value) if g is None else g for g, v in pairs]
                gradients = distributed.weighted_mean(gradients, n)
            self.optimizer.apply(gradients, variables)
        return results(self.metrics)

    def test_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.compute_loss(x, sample_weight=sample_weight, training=False)
        return results(self.metrics)

    def get_metrics_result(self):
        """Called at the end of an epoch: over the images of all processes, where there are several."""
        if distributed.size() == 1:
            return super().get_metrics_result()
        totals = distributed.total([value for m in self.metrics for value in (m.total, m.count)])
        return {m.name: totals[2 * i] / totals[2 * i + 1] for i, m in enumerate(self.metrics)}
