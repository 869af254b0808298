"""InfoVAE: a VAE that pulls the distribution of all codes towards the prior, and each posterior less.

Zhao, Song & Ermon 2017, InfoVAE: Information Maximizing Variational Autoencoders, arXiv:1706.02262, equation 6:
the KL term has the weight 1 - alpha. A divergence of q(z) from p(z) has the weight alpha + lambda - 1; here it
is the maximum mean discrepancy (MMD, section 3.2). alpha = 0 and lambda = 1 is a VAE. With the same `kl_weight`,
the codes of an InfoVAE have more information about the image than those of a VAE. A VAE with a lower weight
has that, too, but its codes follow the prior less.

    python examples/info_vae.py --epochs 10 --limit 10000
"""

import argparse

import keras_ae  # before keras: it selects torch, unless KERAS_BACKEND is set

# isort: split
import keras
import numpy as np
from keras import ops


def mmd(codes, others):
    """Squared maximum mean discrepancy of (N, D) and (M, D) under a Gaussian kernel: a scalar."""

    def kernel(a, b):
        distance = ops.sum((a[:, None] - b[None]) ** 2, axis=-1)
        return ops.mean(ops.exp(-distance / a.shape[1]))

    return kernel(codes, codes) + kernel(others, others) - 2.0 * kernel(codes, others)


@keras.saving.register_keras_serializable("examples")
class InfoVAE(keras_ae.VAE):
    """A VAE with a term for the MMD of its codes from the prior.

    Args:
        alpha: share of the KL term that is left out, in [0, 1].
        scale: lambda of the paper.
        **kwargs: arguments of `VAE`.
    """

    terms = (*keras_ae.VAE.terms, "mmd")

    def __init__(self, *args, alpha=0.9, scale=100.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.alpha, self.scale = alpha, scale

    def loss_terms(self, target, outputs):
        codes = outputs["latent"]
        drawn = keras.random.normal(ops.shape(codes), seed=self.seed_generator)
        of_each = mmd(codes, drawn) * ops.ones_like(codes[:, 0])  # one value for the batch
        return {**super().loss_terms(target, outputs), "mmd": of_each}

    def term_weights(self):
        kl = super().term_weights()["kl"]
        return {"kl": (1.0 - self.alpha) * kl, "mmd": (self.alpha + self.scale - 1.0) * kl}

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "scale": self.scale}


def main(epochs=10, limit=10_000, kl_weight=20.0):
    train, test = keras_ae.data.load_splits("mnist", limit=limit)
    images = test.images[:2000]
    print(f"{'':11} {'information':>12} {'KL':>7} {'MMD':>8} {'l1 per pixel':>13}")
    figures = {}
    vae, info = {"alpha": 0.0, "scale": 1.0}, {"alpha": 0.9, "scale": 100.0}
    rows = {"VAE": (vae, 1.0), "VAE, weaker": (vae, 0.1), "InfoVAE": (info, 1.0)}
    for name, (penalty, share) in rows.items():
        keras.utils.set_random_seed(0)
        arguments = {"latent_dim": 10, "backbone": "mlp", "reconstruction": "bce", **penalty}
        model = InfoVAE(kl_weight=share * kl_weight, **arguments)
        model.compile(keras_ae.Adam(1e-3))
        model.fit(train.images, batch_size=128, epochs=epochs, verbose=0)
        mean, log_var = model.posterior(images)
        noise, prior = np.random.default_rng(0).normal(size=(2, *mean.shape)).astype("float32")
        row = {
            "information": keras_ae.evaluation.mutual_information(mean, log_var),
            "kl": float(keras_ae.evaluation.kl_per_latent(mean, log_var).sum()),
            "mmd": float(mmd(mean + np.exp(0.5 * log_var) * noise, prior)),
            **keras_ae.evaluation.reconstruction_error(images, model.reconstruct(images)),
        }
        columns = "{information:12.2f} {kl:7.2f} {mmd:8.4f} {reconstruction_l1:13.4f}"
        print(f"{name:11}", columns.format(**row))
        figures[name] = {**row, "model": model}
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    main(**vars(parser.parse_args()))
