"""Compares this library with others and the Keras example on MNIST: same training time, same classifier.

    python3 -m venv others && others/bin/pip install -e . pythae multivae
    others/bin/python benchmarks/others.py                 a quarter of an hour on one core
    others/bin/python benchmarks/others.py --epochs 1 keras-ae-vae keras.io

Each contender is a process on one thread. Ours is `keras_ae.fit` with its defaults for --epochs, everything
included: validation, pictures, saving and the prior. Each of the others may train for as much processor time as
ours took; the time to fit their samplers is not counted. All have 16 latents and batches of 128, and their
defaults otherwise:

    keras.io    the convolutional VAE of https://keras.io/examples/generative/vae/ (F. Chollet), rewritten here:
                Conv2D 32 and 64 of stride 2, Dense 16, sums of Bernoulli likelihood and KL, Adam; N(0, I)
    pythae      pythae.models.VAE with its own networks (784-512 and back), its trainer and Adam at 1e-3; sampled by
                its GaussianMixtureSampler, and by its NormalSampler in a row of its own
    multivae    multivae.models.CVAE with the label as the conditioning modality, its own networks and trainer, Adam
                at 1e-3; N(0, I)

The evaluation classifier of this package, which no contender uses in training, judges 10,000 samples of each: FID of
its features from those of the training images, the share of samples that it classifies with confidence 0.9 or more,
and, if a digit was requested, the share of samples that show it.
"""

import argparse
import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SAMPLES, LATENTS, BATCH = 10_000, 16, 128
NEEDS = {"pythae": "pythae", "pythae-normal": "pythae", "multivae": "multivae"}


class TimeIsUp(Exception):
    """Ends the training of another library."""


def digits():
    """Training images (N, 28, 28, 1) uint8 and their labels."""
    from keras_ae import data

    train, _ = data.load_splits("mnist")
    return train.images, train.labels


def asked():
    """The digits that conditional models have to draw."""
    return np.arange(SAMPLES) % 10


def ours(model, epochs):
    import keras_ae

    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        settings = keras_ae.Settings(model, epochs=epochs)
        keras_ae.fit(settings, folder, verbose=0, report=lambda line: None)
        seconds = time.process_time() - start
        network = keras_ae.load_model(folder)
    labels = asked() if model == "cvae" else None
    return network.sample(SAMPLES, labels, seed=0), seconds, epochs


def keras_io(seconds):
    """A short version of the example: the same layers, losses and optimizer."""
    import keras
    from keras import layers, ops

    keras.utils.set_random_seed(0)
    image = keras.Input((28, 28, 1))
    x = layers.Conv2D(32, 3, activation="relu", strides=2, padding="same")(image)
    x = layers.Conv2D(64, 3, activation="relu", strides=2, padding="same")(x)
    x = layers.Dense(16, activation="relu")(layers.Flatten()(x))
    encoder = keras.Model(image, [layers.Dense(LATENTS)(x), layers.Dense(LATENTS)(x)])
    code = keras.Input((LATENTS,))
    x = layers.Reshape((7, 7, 64))(layers.Dense(7 * 7 * 64, activation="relu")(code))
    x = layers.Conv2DTranspose(64, 3, activation="relu", strides=2, padding="same")(x)
    x = layers.Conv2DTranspose(32, 3, activation="relu", strides=2, padding="same")(x)
    decoder = keras.Model(
        code, layers.Conv2DTranspose(1, 3, activation="sigmoid", padding="same")(x)
    )

    class Example(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = encoder, decoder
            self.noise = keras.random.SeedGenerator(0)

        def call(self, images):
            mean, log_var = self.encoder(images)
            noise = keras.random.normal(ops.shape(mean), seed=self.noise)
            kl = -0.5 * ops.sum(1 + log_var - ops.square(mean) - ops.exp(log_var), axis=1)
            self.add_loss(ops.mean(kl))
            return self.decoder(mean + ops.exp(0.5 * log_var) * noise)

    def reconstruction(target, output):
        return ops.sum(keras.losses.binary_crossentropy(target, output), axis=(1, 2))

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if time.process_time() - start > seconds:
                raise TimeIsUp

    images = digits()[0].astype("float32") / 255
    model = Example()
    model.compile(keras.optimizers.Adam(), loss=reconstruction)
    start = time.process_time()
    with contextlib.suppress(TimeIsUp):
        model.fit(images, images, batch_size=BATCH, epochs=1000, verbose=0, callbacks=[Watch()])
    spent = time.process_time() - start
    latents = np.random.default_rng(0).standard_normal((SAMPLES, LATENTS), dtype="float32")
    epochs = int(model.optimizer.iterations) * BATCH / len(images)
    return decoder.predict(latents, batch_size=500, verbose=0), spent, epochs


def watch(callback, seconds):
    """A callback for pythae or multivae that counts steps and ends the training when its time is up."""

    class Watch(callback):
        steps = 0

        def on_train_begin(self, training_config, **kwargs):
            self.start = time.process_time()

        def on_train_step_end(self, training_config, **kwargs):
            self.steps += 1
            self.spent = time.process_time() - self.start
            if self.spent > seconds:
                raise TimeIsUp

    return Watch()


# Settings of the trainers of pythae and MultiVae. They train until the time is up.
TRAINER = {
    "num_epochs": 1000,
    "learning_rate": 1e-3,
    "no_cuda": True,
    "per_device_train_batch_size": BATCH,
}


def pythae(seconds, mixture=True):
    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.samplers import GaussianMixtureSampler, NormalSampler
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    images, labels = digits()
    pixels = torch.tensor(images.transpose(0, 3, 1, 2)).float() / 255
    torch.manual_seed(0)
    model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENTS))
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(output_dir=folder, **TRAINER)
        clock = watch(TrainingCallback, seconds)
        data = BaseDataset(pixels, torch.tensor(labels))
        trainer = BaseTrainer(model, data, training_config=config, callbacks=[clock])
        with contextlib.suppress(TimeIsUp):
            trainer.train()
    model.eval()
    torch.manual_seed(0)
    sampler = GaussianMixtureSampler(model) if mixture else NormalSampler(model)
    if mixture:
        sampler.fit(train_data=pixels)
    drawn = sampler.sample(num_samples=SAMPLES, batch_size=500).detach().numpy()
    return drawn.reshape(-1, 28, 28, 1), clock.spent, clock.steps * BATCH / len(images)


def multivae(seconds):
    without_what_its_datasets_need()
    import torch
    from multivae.data.datasets.base import MultimodalBaseDataset
    from multivae.models import CVAE, CVAEConfig
    from multivae.trainers import BaseTrainer, BaseTrainerConfig
    from multivae.trainers.base.callbacks import TrainingCallback

    images, labels = digits()
    pixels = torch.tensor(images.transpose(0, 3, 1, 2)).float() / 255
    one_hot = torch.eye(10)
    torch.manual_seed(0)
    shapes = {"image": (1, 28, 28), "label": (10,)}
    model = CVAE(CVAEConfig(["label"], "image", shapes, LATENTS))
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(output_dir=folder, **TRAINER)
        clock = watch(TrainingCallback, seconds)
        data = MultimodalBaseDataset({"image": pixels, "label": one_hot[torch.tensor(labels)]})
        trainer = BaseTrainer(model, data, training_config=config, callbacks=[clock])
        with contextlib.suppress(TimeIsUp):
            trainer.train()
    model.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        condition = {"label": one_hot[torch.tensor(asked())]}
        drawn = model.decode(model.generate_from_prior(condition)).reconstruction
    return (
        drawn.clamp(0, 1).numpy().reshape(-1, 28, 28, 1),
        clock.spent,
        clock.steps * BATCH / len(images),
    )


def without_what_its_datasets_need():
    """Let multivae be imported without the packages that only its own data sets and metrics need."""
    from importlib.machinery import ModuleSpec
    from unittest.mock import MagicMock

    names = ("torchvision", "pandas", "nltk", "torchmetrics")
    missing = [name for name in names if importlib.util.find_spec(name) is None]

    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in missing:
                return ModuleSpec(name, self, is_package=True)
            return None

        def create_module(self, spec):
            return MagicMock(__spec__=spec, __path__=[], __name__=spec.name)

        def exec_module(self, module):
            """Does nothing: a MagicMock already has every attribute."""

    sys.meta_path.append(Finder())


CONTENDERS = {
    "keras-ae-vae": lambda budget, epochs: ours("vae", epochs),
    "keras-ae-cvae": lambda budget, epochs: ours("cvae", epochs),
    "keras.io": lambda budget, epochs: keras_io(budget),
    "pythae": lambda budget, epochs: pythae(budget),
    "pythae-normal": lambda budget, epochs: pythae(budget, mixture=False),
    "multivae": lambda budget, epochs: multivae(budget),
}
CONDITIONAL = ("keras-ae-cvae", "multivae")


def judged(name, images):
    """The figures of samples (N, 28, 28, 1), float in [0, 1]."""
    from keras_ae import classifier, data, evaluation

    train, test = data.load_splits("mnist")
    judge = classifier.evaluation_classifier(train, test)
    real, _ = judge(train.images)
    features, probabilities = judge(images)
    figures = {
        "FID": evaluation.frechet_distance(real, features),
        "confident": float((probabilities.max(-1) >= 0.9).mean()),
    }
    if name in CONDITIONAL:
        figures["asked"] = float((probabilities.argmax(-1) == asked()).mean())
    return figures


def run(name, budget, epochs):
    """Run a contender in its own process, and judge its samples in this one."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {**os.environ, **threads, "KERAS_BACKEND": "torch"}
    print(f"{name} …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.npz"
        command = [sys.executable, __file__, name, "--contender", file, "--budget", budget]
        command = [*map(str, command), "--epochs", str(epochs)]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        with np.load(file) as made:
            facts = {"seconds": float(made["seconds"]), "epochs": float(made["epochs"])}
            return facts | judged(name, made["images"])


def row(name, facts):
    cells = [name, f"{facts['seconds']:.0f}", f"{facts['epochs']:.1f}", f"{facts['FID']:.1f}"]
    cells += [f"{facts['confident']:.1%}", f"{facts['asked']:.1%}" if "asked" in facts else ""]
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=", ".join(CONTENDERS))
    parser.add_argument("--epochs", type=int, default=1, help="of ours, whose time all have")
    parser.add_argument("--budget", type=float, help="seconds of the others, in place of ours")
    parser.add_argument("--contender", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(CONTENDERS):
        parser.error(f"no contender {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    if arguments.contender:
        (name,) = arguments.names
        images, seconds, epochs = CONTENDERS[name](arguments.budget, arguments.epochs)
        np.savez(arguments.contender, images=images, seconds=seconds, epochs=epochs)
        return None
    rows = ["| | processor seconds | epochs | FID | confident | asked digit |", "|---" * 6 + "|"]
    budget = arguments.budget
    for name in arguments.names or CONTENDERS:
        if not importlib.util.find_spec(NEEDS.get(name, "keras")):
            print(f"{name} is not installed: left out", file=sys.stderr)
            continue
        if budget is None and not name.startswith("keras-ae"):
            parser.error("give --budget, or a contender of ours first, whose time the others have")
        facts = run(name, budget or 0.0, arguments.epochs)
        if name.startswith("keras-ae"):
            budget = arguments.budget or facts["seconds"]
        rows.append(row(name, facts))
        print(rows[-1], file=sys.stderr, flush=True)
    return print("\n".join(rows))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
