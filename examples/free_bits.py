"""Free bits: a VAE in which some KL divergence of each latent costs nothing, so that more latents are used.

Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling 2016, Improving Variational Inference with Inverse
Autoregressive Flow, arXiv:1606.04934, appendix C.8: the KL of each latent, averaged over the batch, counts as
a constant if it is smaller than that. With a large `kl_weight`, a VAE uses few latents; with free bits it
uses more.

    python examples/free_bits.py --epochs 10 --limit 10000
"""

import argparse

import keras_ae  # before keras: it selects torch, unless KERAS_BACKEND is set

# isort: split
import keras
from keras import ops


@keras.saving.register_keras_serializable("examples")
class FreeBitsVAE(keras_ae.VAE):
    """A VAE whose KL term is at least `free` nats per latent.

    Args:
        free: nats of each latent that cost nothing; 0 is a VAE.
        **kwargs: arguments of `VAE`.
    """

    def __init__(self, *args, free=0.5, **kwargs):
        super().__init__(*args, **kwargs)
        self.free = free

    def loss_terms(self, target, outputs):
        mean, log_var = outputs["mean"], outputs["log_var"]
        kl = 0.5 * (mean**2 + ops.exp(log_var) - 1.0 - log_var)  # (N, D)
        dear = ops.mean(kl, axis=0, keepdims=True) > self.free
        kl = ops.sum(ops.where(dear, kl, self.free), axis=-1)
        return {**super().loss_terms(target, outputs), "kl": kl}

    def get_config(self):
        return {**super().get_config(), "free": self.free}


def main(epochs=10, limit=10_000, kl_weight=20.0):
    train, test = keras_ae.data.load_splits("mnist", limit=limit)
    print(f"{'free nats':>9} {'active units':>13} {'KL':>7} {'l1 per pixel':>13}")
    figures = {}
    for free in (0.0, 0.5):
        keras.utils.set_random_seed(0)
        arguments = {"latent_dim": 16, "backbone": "mlp", "reconstruction": "bce"}
        model = FreeBitsVAE(free=free, kl_weight=kl_weight, **arguments)
        model.compile(keras_ae.Adam(1e-3))
        model.fit(train.images, batch_size=128, epochs=epochs, verbose=0)
        mean, log_var = model.posterior(test.images)
        rebuilt = model.reconstruct(test.images)
        row = {
            "active_units": keras_ae.evaluation.active_units(mean),
            "kl": float(keras_ae.evaluation.kl_per_latent(mean, log_var).sum()),
            **keras_ae.evaluation.reconstruction_error(test.images, rebuilt),
        }
        columns = "{active_units:13} {kl:7.2f} {reconstruction_l1:13.4f}"
        print(f"{free:9g}", columns.format(**row))
        figures[free] = {**row, "model": model}
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    main(**vars(parser.parse_args()))
