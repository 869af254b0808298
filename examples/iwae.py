"""IWAE: a VAE that is trained on the importance-weighted bound of k samples, which is a tighter bound.

Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders, arXiv:1509.00519, equation 8. Two models
are trained on binarised MNIST with the same number of steps. The model with k = 5 gives the test images a
higher log-likelihood than the model with k = 1, which is a VAE. Both are measured with the same bound of many
samples.

    python examples/iwae.py --epochs 10 --limit 10000
"""

import argparse

import keras_ae  # before keras: it selects torch, unless KERAS_BACKEND is set

# isort: split
import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("examples")
class IWAE(keras_ae.VAE):
    """A VAE that maximises the importance-weighted bound; its only term is minus this bound, in nats.

    Args:
        k: number of samples per image in training; 1 is a VAE.
        **kwargs: arguments of `VAE`.
    """

    terms = ("negative_bound",)

    def __init__(self, *args, k=5, reconstruction="bce", **kwargs):
        super().__init__(*args, reconstruction=reconstruction, **kwargs)
        self.k = k

    def forward(self, inputs, training=False, sample=False):
        if not sample:
            return super().forward(inputs, training)
        images, condition = self.network_inputs(inputs)
        heads = self.encoder(images, training=training)
        mean, log_var = (ops.cast(heads[name], "float32") for name in ("mean", "log_var"))
        rows, spread = ops.repeat(mean, self.k, axis=0), ops.repeat(log_var, self.k, axis=0)
        noise = keras.random.normal(ops.shape(rows), seed=self.seed_generator)
        codes = rows + ops.exp(0.5 * spread) * noise
        drawn = self.decoded(codes, condition, training)
        log_ratio = 0.5 * ops.sum(noise**2 + spread - codes**2, axis=-1)  # log p(z) - log q(z|x)
        first = {"latent": codes[:: self.k], "reconstruction": drawn["reconstruction"][:: self.k]}
        return {**first, "mean": mean, "log_var": log_var, "drawn": drawn, "log_ratio": log_ratio}

    def loss_terms(self, target, outputs):
        repeated = ops.repeat(target, self.k, axis=0)
        error = keras_ae.AE.loss_terms(self, repeated, outputs["drawn"])["reconstruction"]
        log_weights = ops.reshape(outputs["log_ratio"] - error, (-1, self.k))
        return {"negative_bound": np.log(self.k) - ops.logsumexp(log_weights, axis=1)}

    def term_weights(self):
        return {}

    def get_config(self):
        return {**super().get_config(), "k": self.k}


def binarized(images, seed):
    """Draws each pixel of uint8 images as 1 with the probability grey / 255, else as 0."""
    return (np.random.default_rng(seed).random(images.shape) < images / 255).astype("float32")


def main(epochs=10, limit=10_000, ks=(1, 5), samples=500, held_out=500):
    train, test = keras_ae.data.load_splits("mnist", limit=limit)
    images, unseen = binarized(train.images, 0), binarized(test.images[:held_out], 1)
    print(f"{'k':>3} {'log-likelihood':>15} {'elbo':>8} {'active units':>13}")
    figures = {}
    for k in ks:
        keras.utils.set_random_seed(0)
        model = IWAE(latent_dim=20, backbone="mlp", k=k)
        model.compile(keras_ae.Adam(1e-3))
        model.fit(images, batch_size=128, epochs=epochs, verbose=0)
        measure = keras_ae.evaluation
        row = {
            "log_likelihood": float(
                measure.importance_weighted_log_likelihood(model, unseen, samples).mean()
            ),
            "elbo": float(measure.elbo(model, unseen)[0].mean()),
            "active_units": measure.active_units(model.posterior(unseen)[0]),
        }
        print(f"{k:3}", "{log_likelihood:15.2f} {elbo:8.2f} {active_units:13}".format(**row))
        figures[k] = {**row, "model": model}
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    main(**vars(parser.parse_args()))
