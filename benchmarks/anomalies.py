"""Measures how well a VAE detects images of a kind that it was not trained on: AUROC of its scores.

    python benchmarks/anomalies.py [--images 12000] [--epochs 3] [--test 3000] [--digits 0,1,…] [--seed 0]

For each digit, a VAE is trained on the other nine digits and scores test images of all ten. The AUROC is how
often the left-out digit has a higher score than another digit (0.5 is chance). Last, a VAE of all digits
scores test images of Fashion-MNIST, if that is prepared (`kae data prepare fashion_mnist`), and of MNIST.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import keras_ae
from keras_ae import data, evaluation
from keras_ae.evaluation.scores import SCORES


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=12_000, help="training images of each run")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--test", type=int, default=3_000, help="test images of each dataset")
    parser.add_argument("--digits", default="0,1,2,3,4,5,6,7,8,9", help="left out, in turn")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    train, test = data.load_splits("mnist")
    test = test.first(options.test)

    print(f"| left out | {' | '.join(name.replace('_', ' ') for name in SCORES)} |")
    print("|---|" + "---|" * len(SCORES))
    rows = []
    for digit in map(int, options.digits.split(",")):
        model = trained(train.select(train.labels != digit), test, options)
        scores = keras_ae.score(model, test.images, seed=options.seed)
        odd = test.labels == digit
        rows.append([evaluation.auroc(scores[name][odd], scores[name][~odd]) for name in SCORES])
        show(digit, rows[-1])
    show("mean", [statistics.mean(column) for column in zip(*rows)])
    if data.is_prepared("fashion_mnist"):
        _, fashion = data.load_splits("fashion_mnist", limit=options.test)
        model = trained(train, test, options)
        usual, odd = (keras_ae.score(model, x.images, seed=options.seed) for x in (test, fashion))
        show("Fashion-MNIST", [evaluation.auroc(odd[name], usual[name]) for name in SCORES])
    print(
        f"\nkae fit vae --epochs {options.epochs} --seed {options.seed}, the first {options.images:,} images "
        f"without the digit, {options.test:,} test images; {time.perf_counter() - started:.0f} s in all"
    )


def trained(train, test, options):
    """Trains the default VAE on the first images."""
    settings = keras_ae.Settings(
        "vae", epochs=options.epochs, seed=options.seed, limit=options.images
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        keras_ae.fit(
            settings, run, verbose=0, report=lambda line: None, train=train, test=test.first(500)
        )
        return keras_ae.load_model(run)


def show(name, values):
    """Prints a row of the table."""
    print(f"| {name} | {' | '.join(f'{value:.3f}' for value in np.array(values))} |", flush=True)


if __name__ == "__main__":
    main()
