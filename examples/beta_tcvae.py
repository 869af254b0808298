"""beta-TC-VAE: a VAE with a penalty on the total correlation, the dependence between its latents.

Chen, Li, Grosse & Duvenaud 2018, Isolating Sources of Disentanglement in Variational Autoencoders,
arXiv:1802.04942. The loss (equation 4, alpha = gamma = 1) is the loss of a VAE plus (beta - 1) times the
total correlation KL(q(z) || prod_d q(z_d)), which is estimated by minibatch-weighted sampling (section 3.1).

    python examples/beta_tcvae.py --epochs 10 --limit 10000
"""

import argparse

import keras_ae  # before keras: it selects torch, unless KERAS_BACKEND is set

# isort: split
import keras
import numpy as np
from keras import ops
from scipy.special import logsumexp


@keras.saving.register_keras_serializable("examples")
class TCVAE(keras_ae.VAE):
    """A VAE with a term for the total correlation.

    Args:
        beta: the total weight of the total correlation; 1 is a VAE.
        dataset_size: number of training images.
        **kwargs: arguments of `VAE`.
    """

    terms = (*keras_ae.VAE.terms, "total_correlation")

    def __init__(self, *args, beta=6.0, dataset_size=60_000, **kwargs):
        super().__init__(*args, **kwargs)
        self.beta, self.dataset_size = beta, dataset_size

    def loss_terms(self, target, outputs):
        z, mean, log_var = (outputs[name] for name in ("latent", "mean", "log_var"))
        distance = (z[:, None] - mean[None]) ** 2 * ops.exp(-log_var)[None]
        log_q = -0.5 * (distance + log_var[None] + np.log(2 * np.pi))  # (N, N, D): z_i under x_j
        weights = np.log(self.dataset_size) + ops.log(ops.cast(ops.shape(z)[0], "float32"))
        joint = ops.logsumexp(ops.sum(log_q, axis=-1), axis=1) - weights
        marginals = ops.sum(ops.logsumexp(log_q, axis=1) - weights, axis=-1)
        return {**super().loss_terms(target, outputs), "total_correlation": joint - marginals}

    def term_weights(self):
        weights = super().term_weights()  # beta is annealed together with the KL term
        return {**weights, "total_correlation": (self.beta - 1.0) * weights["kl"]}

    def get_config(self):
        return {**super().get_config(), "beta": self.beta, "dataset_size": self.dataset_size}


def total_correlation(mean, log_var, seed=0):
    """The total correlation in nats of q(z), the mixture of N posteriors: (N, D), (N, D) -> float."""
    codes = mean + np.exp(0.5 * log_var) * np.random.default_rng(seed).normal(size=mean.shape)
    log_q = -0.5 * ((codes[:, None] - mean) ** 2 / np.exp(log_var) + log_var)
    joint, marginals = logsumexp(log_q.sum(-1), axis=1), logsumexp(log_q, axis=1).sum(-1)
    return float(np.mean(joint - marginals) + (mean.shape[1] - 1) * np.log(len(mean)))


def gaussian_total_correlation(mean, log_var, seed=0):
    """The total correlation of a Gaussian with the codes' covariance (Locatello et al. 2019): it is lower."""
    codes = mean + np.exp(0.5 * log_var) * np.random.default_rng(seed).normal(size=mean.shape)
    covariance = np.cov(codes, rowvar=False)
    return float(0.5 * (np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1]))


def main(epochs=10, limit=10_000, betas=(1.0, 6.0)):
    train, test = keras_ae.data.load_splits("mnist", limit=limit)
    print(f"{'beta':>5} {'total correlation':>18} {'Gaussian':>9} {'KL':>7} {'l1 per pixel':>13}")
    figures = {}
    for beta in betas:
        keras.utils.set_random_seed(0)
        arguments = {"latent_dim": 10, "backbone": "mlp", "reconstruction": "bce"}
        model = TCVAE(beta=beta, dataset_size=len(train.images), **arguments)
        model.compile(keras_ae.Adam(1e-3))
        model.fit(train.images, batch_size=128, epochs=epochs, verbose=0)
        images = test.images[:1000]
        mean, log_var = model.posterior(images)
        row = {
            "total_correlation": total_correlation(mean, log_var),
            "gaussian": gaussian_total_correlation(mean, log_var),
            "kl": float(keras_ae.evaluation.kl_per_latent(mean, log_var).sum()),
            **keras_ae.evaluation.reconstruction_error(images, model.reconstruct(images)),
        }
        columns = "{total_correlation:18.2f} {gaussian:9.3f} {kl:7.2f} {reconstruction_l1:13.4f}"
        print(f"{beta:5g}", columns.format(**row))
        figures[beta] = {**row, "model": model}
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    main(**vars(parser.parse_args()))
