"""Denoising autoencoder: it takes damaged images and learns to reconstruct the clean ones.

Vincent, Larochelle, Bengio & Manzagol 2008, Extracting and Composing Robust Features with Denoising
Autoencoders, section 2.3: masking noise, which sets a share of the pixels to 0, and cross-entropy. This
needs no class of its own, only `fit(noisy, clean)`. An autoencoder that was trained without noise does
worse on the same damaged images.

    python examples/denoising.py --epochs 10 --limit 10000
"""

import argparse

import keras_ae  # before keras: it selects torch, unless KERAS_BACKEND is set

# isort: split
import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("examples")
def psnr(target, reconstruction):
    """Peak signal-to-noise ratio of each image in dB: two (N, H, W, C) in [0, 1] -> (N,)."""
    error = ops.mean((target - reconstruction) ** 2, axis=(1, 2, 3))
    return -10.0 * ops.log(ops.maximum(error, 1e-10)) / np.log(10.0)


def masked(images, share, seed):
    """Sets a random share of the images' pixels to 0."""
    kept = np.random.default_rng(seed).random(images.shape, dtype="float32") >= share
    return images * kept


def main(epochs=10, limit=10_000, share=0.5):
    train, test = keras_ae.data.load_splits("mnist", limit=limit)
    clean, unseen = train.images, test.images
    noisy, damaged = masked(clean, share, 0), masked(unseen, share, 1)
    before = float(ops.mean(psnr(unseen / np.float32(255), damaged / np.float32(255))))
    print(f"{'damaged images rebuilt by':28} {'PSNR in dB':>10} {'mae':>8}")
    print(f"{'nothing':28} {before:10.2f}")
    figures = {"nothing": {"psnr": before}}
    for name, given in (("an AE", clean), ("a denoising AE", noisy)):
        keras.utils.set_random_seed(0)
        model = keras_ae.AE(latent_dim=64, backbone="mlp", reconstruction="bce")
        model.compile(keras_ae.Adam(1e-3), metrics=[psnr, "mae"])
        model.fit(given, clean, batch_size=128, epochs=epochs, verbose=0)
        row = model.evaluate(damaged, unseen, batch_size=256, verbose=0, return_dict=True)
        print(f"{name:28} {row['psnr']:10.2f} {row['mae']:8.4f}")
        figures[name] = {**row, "model": model}
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    main(**vars(parser.parse_args()))
