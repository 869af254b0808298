"""The training step on torch: eager, gradients by autograd."""

import keras
import torch


class StepMixin:
    def train_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        loss = self.compute_loss(x, sample_weight=sample_weight, training=True)
        variables = self.trainable_variables
        gradients = torch.autograd.grad(
            self.optimizer.scale_loss(loss), [v.value for v in variables], allow_unused=True
        )
        with torch.no_grad():
            self.optimizer.apply(gradients, variables)
        return self.get_metrics_result()

    def test_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.compute_loss(x, sample_weight=sample_weight, training=False)
        return self.get_metrics_result()
