"""Tests common observations about conditional VAEs. Each experiment gives a table of figures and a picture.

    python benchmarks/findings.py                 all of them, about 20 minutes on 2 cores
    python benchmarks/findings.py loss output     these two

Every row is a conditional VAE on MNIST: 784-512-256-10 latents unless it says otherwise, 4 epochs,
seed 0. The package's evaluation classifier judges 10,000 samples of it, 1,000 of each class. Pictures
go to docs/findings/, figures to docs/findings/NAME.json.
"""

import dataclasses
import json
import random
import sys
from pathlib import Path

import numpy as np

import keras_ae  # isort: skip  (first: it chooses the backend)
import keras
from keras import layers, ops

from keras_ae import building, checkpoints, data, pictures
from keras_ae.callbacks import StartEpoch
from keras_ae.classifier import evaluation_classifier
from keras_ae.evaluation import conditional_accuracy, frechet_distance
from keras_ae.feed import Feed
from keras_ae.models import CVAE
from keras_ae.settings import Settings

OUT = Path(__file__).parent.parent / "docs" / "findings"
BASE = Settings("cvae", backbone="mlp", latent_dim=10, epochs=4, kl_weight=1.0)


def change(**values):
    """The base settings with some of them changed."""
    return dataclasses.replace(BASE, **values)


class LinearOutput(CVAE):
    """A decoder whose pixels may be any number: there is no squashing function."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        logits = self.decoder.get_layer("reshape").output
        self.decoder = keras.Model(self.decoder.inputs, self.squash(logits), name="decoder")

    def squash(self, logits):
        return layers.Activation("linear", name="image")(logits)


class ClippedOutput(LinearOutput):
    """A decoder whose pixels are clipped to [0, 1]: there is no gradient outside."""

    def squash(self, logits):
        return ops.clip(logits, 0.0, 1.0)


class SharedHead(CVAE):
    """An encoder whose mean and log-variance are the output of the same layer."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        code = self.encoder.get_layer("mean").output
        outputs = {"mean": code, "log_var": layers.Activation("linear", name="same")(code)}
        self.encoder = keras.Model(self.encoder.inputs, outputs, name="encoder")


# name: [(row, settings, model class)]
EXPERIMENTS = {
    "loss": [
        ("l1", BASE, CVAE),
        ("mse", change(reconstruction="mse"), CVAE),
        ("bce", change(reconstruction="bce"), CVAE),
    ],
    "output": [
        ("sigmoid", BASE, CVAE),
        ("linear", BASE, LinearOutput),
        ("clipped", BASE, ClippedOutput),
    ],
    "optimizer": [
        ("Adam 0.001", BASE, CVAE),
        ("SGD 0.01", change(optimizer="sgd", learning_rate=0.01, lr_schedule="constant"), CVAE),
        # A common loss is the mean over 784 pixels: its gradient is 784 times smaller.
        (
            "SGD 0.01 on the mean",
            change(optimizer="sgd", learning_rate=0.01 / 784, lr_schedule="constant"),
            CVAE,
        ),
    ],
    "annealing": [
        ("none", change(kl_schedule="constant"), CVAE),
        ("linear", BASE, CVAE),
        ("cyclical", change(kl_schedule="cyclical"), CVAE),
    ],
    "heads": [
        ("two heads", BASE, CVAE),
        ("one shared layer", BASE, SharedHead),
        ("one shared layer, kl_weight 0.235", change(kl_weight=0.235), SharedHead),
    ],
    "kl_weight": [
        (f"{weight:g}", change(kl_weight=weight), CVAE) for weight in (0.1, 0.235, 0.5, 1, 3, 10)
    ],
    "backbone": [
        ("mlp", BASE, CVAE),
        ("conv", change(backbone="conv", learning_rate=None), CVAE),
    ],
}


def train(settings, model_class, images):
    """Train a model like `kae fit`, but without a run folder. Returns (model, history)."""
    random.seed(settings.seed)
    settings = building.settled(settings, images)
    classes = {"image_shape": images.images.shape[1:], "num_classes": images.num_classes}
    network = {f: getattr(settings, f) for f in ("latent_dim", "backbone", "reconstruction")}
    model = model_class(**classes, **network)
    feed = Feed(images.images, images.labels, settings.batch_size, settings.seed)
    model.compile(building.build_optimizer(settings, settings.epochs * len(feed)))
    history = model.fit(
        feed,
        epochs=settings.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[
            keras_ae.KLAnnealing(settings.kl_schedule, settings.kl_weight, settings.kl_warmup),
            StartEpoch(feed, settings.seed, checkpoints.Progress([]), print),
        ],
    )
    model.fit_prior((images.images, images.labels))
    return model, history.history


def judge(model, classifier, test, test_features):
    """Figures of a model's samples from both priors, and of its reconstructions."""
    labels = np.arange(10).repeat(1_000)
    rebuilt = model.reconstruct((test.images, test.labels))
    figures = {
        "l1 a pixel": np.abs(rebuilt - test.images / np.float32(255)).mean(),
        "kl": model.evaluate((test.images, test.labels), verbose=0, return_dict=True)["kl"],
        # How much the reconstructions of different images differ: 0 if all look the same.
        "spread": rebuilt.std(axis=0).mean() / (test.images / 255.0).std(axis=0).mean(),
    }
    for prior in ("normal", "fitted"):
        features, probabilities = classifier(model.sample(10_000, labels, prior=prior))
        figures[f"accuracy, {prior}"] = conditional_accuracy(probabilities, labels)[0]
        figures[f"FID, {prior}"] = frechet_distance(features, test_features)
    return {name: float(value) for name, value in figures.items()}


def run(name, train_data, test_data, classifier, done):
    """Run one experiment: print its table, and write its picture and figures to OUT."""
    test_features, _ = classifier(test_data.images)
    rows, strips = {}, []
    for row, settings, model_class in EXPERIMENTS[name]:
        key = (settings, model_class)
        if key not in done:
            model, history = train(settings, model_class, train_data)
            figures = judge(model, classifier, test_data, test_features)
            figures |= {"loss, first": history["loss"][0], "loss, last": history["loss"][-1]}
            samples = model.sample(20, np.arange(10).repeat(2))
            shown = (test_data.images[:20], test_data.labels[:20])
            done[key] = (figures, np.concatenate([model.reconstruct(shown), samples]))
        figures, images = done[key]
        rows[row] = figures
        strips.append(pictures.grid(images, columns=40, zoom=1))
    columns = list(next(iter(rows.values())))
    print(
        f"\n### {name}\n\n| | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|"
    )
    for row, figures in rows.items():
        cells = [f"{v:.1%}" if c.startswith("acc") else f"{v:.4g}" for c, v in figures.items()]
        print(f"| {row} | " + " | ".join(cells) + " |", flush=True)
    checkpoints.write_bytes(OUT / f"{name}.json", json.dumps(rows, indent=2) + "\n")
    with checkpoints.atomic(OUT / f"{name}.png") as path:
        pictures.stack(pictures.grid(test_data.images[:20], 40, zoom=1), *strips, gap=4).save(path)


def main(names):
    unknown = set(names) - set(EXPERIMENTS)
    if unknown:
        sys.exit(f"no experiment {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    train_data, test_data = data.load_splits("mnist", progress=print)
    classifier = evaluation_classifier(train_data, test_data)
    print(f"classifier: {classifier.accuracy:.2%} of the test images")
    done = {}  # the base settings are in most experiments, but are trained only once
    for name in names or EXPERIMENTS:
        run(name, train_data, test_data, classifier, done)


if __name__ == "__main__":
    main(sys.argv[1:])
