"""VQ-VAE: an autoencoder whose code consists of a few entries of a learnt codebook.

van den Oord, Vinyals & Kavukcuoglu 2017, Neural Discrete Representation Learning, arXiv:1711.00937,
equation 3. Codes of a few bits reconstruct images nearly as well as codes of real numbers with the same
networks. Many entries of the codebook stay in use: its perplexity, exp of the entropy of its entries, does
not fall to 1.

    python examples/vq_vae.py --epochs 10 --limit 10000
"""

import argparse

import keras_ae  # before keras: it selects torch, unless KERAS_BACKEND is set

# isort: split
import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("examples")
class VQVAE(keras_ae.AE):
    """An AE whose code is cut into vectors, each of which becomes its nearest neighbour in a codebook."""

    terms = (*keras_ae.AE.terms, "codebook", "commitment")

    def __init__(self, *args, entries=64, width=4, **kwargs):
        super().__init__(*args, **kwargs)
        self.entries, self.width = entries, width  # latent_dim must be a multiple of the width
        self.codebook = self.add_weight((entries, width), "random_normal", name="codebook")

    def forward(self, inputs, training=False, sample=False):
        images, condition = self.network_inputs(inputs)
        code = ops.cast(self.encoder(images, training=training)["code"], "float32")
        vectors = ops.reshape(code, (-1, self.width))
        book = ops.convert_to_tensor(self.codebook)
        distance = ops.sum(book**2, axis=-1) - 2.0 * ops.matmul(vectors, ops.transpose(book))
        entry = ops.take(book, ops.argmin(distance, axis=-1), axis=0)
        entry = ops.reshape(entry, (-1, self.latent_dim))
        # Straight-through estimator: the value of the entry, with the gradient of the code.
        latent = ops.stop_gradient(entry) + (code - ops.stop_gradient(code))
        decoded = self.decoded(latent, condition, training)
        return {"latent": latent, "code": code, "entry": entry, **decoded}

    def loss_terms(self, target, outputs):
        code, entry = outputs["code"], outputs["entry"]
        codebook = ops.sum((ops.stop_gradient(code) - entry) ** 2, axis=-1)
        commitment = ops.sum((code - ops.stop_gradient(entry)) ** 2, axis=-1)
        terms = {"codebook": codebook, "commitment": commitment}
        return {**super().loss_terms(target, outputs), **terms}

    def term_weights(self):
        return {"commitment": 0.25}

    def get_config(self):
        return {**super().get_config(), "entries": self.entries, "width": self.width}


def perplexity(codes, width):
    """The perplexity of codes (N, D) of `encode`: the number of entries in use if all were used equally."""
    _, counts = np.unique(codes.reshape(-1, width), axis=0, return_counts=True)
    return float(np.exp(-np.sum(counts / counts.sum() * np.log(counts / counts.sum()))))


def main(epochs=10, limit=10_000, entries=(4, 64)):
    train, test = keras_ae.data.load_splits("mnist", limit=limit)
    print(f"{'entries':>8} {'bits an image':>14} {'perplexity':>11} {'l1 per pixel':>13}")
    figures = {}
    for size in (*entries, None):
        keras.utils.set_random_seed(0)
        arguments = {"latent_dim": 64, "backbone": "mlp", "reconstruction": "bce"}
        model = VQVAE(entries=size, **arguments) if size else keras_ae.AE(**arguments)
        model.compile(keras_ae.Adam(1e-3))
        model.fit(train.images, batch_size=128, epochs=epochs, verbose=0)
        l1 = np.abs(model.reconstruct(test.images) - test.images / 255).mean()
        figures[size] = {"l1": float(l1), "model": model}
        if size:
            used = figures[size]["perplexity"] = perplexity(model.encode(test.images), model.width)
            print(f"{size:8} {64 // model.width * np.log2(size):14g} {used:11.1f} {l1:13.4f}")
        else:
            print(f"{'none: AE':>8} {64 * 32:14g} {'':11} {l1:13.4f}")
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    main(**vars(parser.parse_args()))
