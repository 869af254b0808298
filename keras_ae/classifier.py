"""The classifier that judges samples: a small convolutional network, trained once for each dataset.

    classifier = evaluation_classifier(train, test)
    features, probabilities = classifier(images)

It sees the dataset and nothing of the model that it judges. For MNIST its weights are released with
the package, made by `python -m keras_ae.classifier`.
"""

import hashlib
import sys
import tempfile
import time
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers

from keras_ae import model_file
from keras_ae.data import load_splits
from keras_ae.data.cache import own_folder
from keras_ae.errors import UserError
from keras_ae.fast.adam import Adam
from keras_ae.files import atomic
from keras_ae.pictures import to_float
from keras_ae.settings import released

FEATURES = 64
STEPS = 3750  # eight epochs of MNIST
PIXELS = 28 * 28  # of an image that gets all of STEPS; larger ones get fewer, for the same work
LEAST_STEPS = 300
MOST_EPOCHS = 60  # of few images
MINUTES = 10  # a classifier whose training would take longer is not trained
TIMED = 20  # steps after which it is known how long
BATCH = 128
LEARNING_RATE = 3e-3
SHIFT = 2  # pixels
VERSION = 1  # to be raised when the network or its training changes


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained network and how well it does.

    Attributes:
        network: keras.Model: image (N, H, W, C) in [0, 1] -> {"features", "logits", "probabilities"}.
        accuracy: share of the test images that it classifies as labelled, in [0, 1].
        origin: "released with keras-ae", "trained earlier" or "trained now".
    """

    network: keras.Model
    accuracy: float
    origin: str

    def __call__(self, images):
        return classify(self.network, images)


def classify(network, images):
    """Images (N, H, W, C), uint8 or float in [0, 1] -> features (N, 64), probabilities (N, K)."""
    features, probabilities = [], []
    for i in range(0, len(images), 10_000):  # as floats, a training set may not fit into memory
        outputs = network.predict(to_float(images[i : i + 10_000]), batch_size=500, verbose=0)
        features.append(outputs["features"])
        probabilities.append(outputs["probabilities"])
    return np.concatenate(features), np.concatenate(probabilities)


def accuracy(network, data) -> float:
    """Share of the images of an `ImageData` that a network classifies as labelled."""
    _, probabilities = classify(network, data.images)
    return float((probabilities.argmax(-1) == data.labels).mean())


def evaluation_classifier(train, test, progress=None, seed=0, minutes=MINUTES) -> Classifier:
    """The classifier of a dataset: released, or from the cache, or trained now and put there.

    The training says how long it will take, and is given up where that is too long.

    The cache is KAE_CACHE, else XDG_CACHE_HOME/keras-ae, else ~/.cache/keras-ae. Its key holds the
    dataset's name, version, classes and shape, and what the images are.

    Args:
        train: `ImageData` to train on, whole.
        test: `ImageData` for the accuracy that the classifier states.
        progress: called with one line when there is something to tell.
        seed: of the classifier; another seed is another classifier, for the spread between them.
        minutes: that the training may take.

    Raises:
        UserError: the dataset has no labels or one class; or the classifier has to be trained, and the
            backend cannot train, or the training would take too long.
    """
    progress = progress or (lambda line: None)
    if train.labels is None or test.labels is None:
        raise UserError(f"{train.name} has no labels to train an evaluation classifier on")
    if train.num_classes < 2:
        raise UserError(f"{train.name} has one class, and a classifier needs two")
    name = f"classifier-{train.name}".replace("/", "-")
    steps = steps_of(train)
    places = {} if seed else {"released with keras-ae": released(name) / "model.keras"}
    why = None
    try:
        cached = (
            own_folder("classifiers")
            / f"{name}-{train.version}-{_fingerprint(train, steps, seed)}.keras"
        )
        places["trained earlier"] = cached
    except OSError as error:
        why = error
    for origin, path in places.items():
        network = _load(path, train)
        if network is not None:
            return Classifier(network, accuracy(network, test), origin)

    if keras.backend.backend() not in ("torch", "jax", "tensorflow"):
        raise UserError(
            f"the {keras.backend.backend()} backend cannot train the evaluation classifier of "
            f"{train.name}: evaluate once with KERAS_BACKEND=torch, which keeps it"
        )
    which = "a second" if seed else "the"
    progress(
        f"training {which} evaluation classifier of {train.name}, once: {steps:,} steps of up to {BATCH} "
        f"images, {minutes:g} minutes at most"
    )
    network = train_classifier(train, seed, steps, progress, minutes)
    if why is None:
        try:
            save(network, cached)
        except OSError as error:
            why = error
    if why is not None:
        progress(f"not kept ({why}): set KAE_CACHE to a folder that can be written")
    return Classifier(network, accuracy(network, test), "trained now")


def build_classifier(image_shape, num_classes, seed=0):
    """image (N, H, W, C) in [0, 1] -> {"features" (N, 64), "logits", "probabilities" (N, K)}.

    Pairs of convolutions, the first of each of stride 2, until the shorter side is 8 pixels or less;
    then a dense layer of 64 features.
    """
    seeds = iter(range(100 * seed, 100 * seed + 100))

    def convolution(x, filters, size, strides, name):
        x = layers.Conv2D(
            filters,
            size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer=keras.initializers.HeNormal(next(seeds)),
            name=name,
        )(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    x = image = keras.Input(image_shape, name="image")
    filters, size, i = 32, 5, 0
    while i == 0 or min(x.shape[1:3]) > 8:
        x = convolution(x, filters, size, 2, f"conv_{i}")
        x = convolution(x, filters, 3, 1, f"conv_{i + 1}")
        filters, size, i = 64, 3, i + 2
    x = layers.Flatten(name="flatten")(x)
    initializer = keras.initializers.HeNormal(next(seeds))
    features = layers.Dense(
        FEATURES, activation="relu", kernel_initializer=initializer, name="features"
    )(x)
    initializer = keras.initializers.GlorotUniform(next(seeds))
    logits = layers.Dense(num_classes, kernel_initializer=initializer, name="logits")(features)
    probabilities = layers.Softmax(name="probabilities")(logits)
    outputs = {"features": features, "logits": logits, "probabilities": probabilities}
    return keras.Model(image, outputs, name="classifier")


def steps_of(train):
    """Steps of the classifier of an `ImageData`: the work of MNIST's at most, whatever the images' size."""
    height, width = train.images.shape[1:3]
    steps = round(STEPS * min(1, PIXELS / (height * width)))
    epochs = MOST_EPOCHS * max(1, len(train.images) // BATCH)
    return max(LEAST_STEPS, min(steps, epochs))


class TooLong(UserError):
    """The training of a classifier would take longer than it may."""


class _Clock(keras.callbacks.Callback):
    """Says after a few steps how long all will take, and gives up where that is too long."""

    def __init__(self, steps, minutes, progress):
        super().__init__()
        self.steps, self.minutes, self.progress = steps, minutes, progress
        self.done = 0

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        if self.done == 1:  # which compiled what there is to compile
            self.started = time.perf_counter()
        elif self.done == min(TIMED, self.steps):
            step = (time.perf_counter() - self.started) / (self.done - 1)
            minutes = self.steps * step / 60
            if self.minutes is not None and minutes > self.minutes:
                raise TooLong(
                    f"the evaluation classifier would take {minutes:.0f} minutes to train, more than the "
                    f"{self.minutes:g} of --classifier-minutes"
                )
            self.progress(
                "classifier: "
                + (f"{minutes:.0f} minutes" if minutes >= 2 else f"{60 * minutes:.0f} seconds")
            )


def train_classifier(train, seed=0, steps=STEPS, progress=None, minutes=None):
    """Train the classifier of a dataset from a seed: a network as of `build_classifier`.

    Cross-entropy, Adam with a warm-up and a cosine decay, images shifted by up to two pixels.

    Args:
        train: `ImageData` with labels.
        seed: of the weights, of the order and of the shifts.
        steps: batches of up to 128 images.
        progress: called with one line after some steps, and then ten times.
        minutes: that it may take; None for as long as it takes.

    Raises:
        TooLong: it would take longer.
    """
    progress = progress or (lambda line: None)
    network = build_classifier(train.images.shape[1:], train.num_classes, seed)
    batches = _ShiftedBatches(train.images, train.labels, seed, steps)
    epochs = max(1, round(steps / len(batches)))
    steps = epochs * len(batches)
    warmup = steps // 10
    schedule = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE / 10, steps - warmup, warmup_target=LEARNING_RATE, warmup_steps=warmup
    )
    # The network itself stays without an optimizer, and is saved without one.
    trained = keras.Model(network.inputs, network.get_layer("logits").output)
    trained.compile(Adam(schedule), keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def report(epoch, logs):
        if 10 * epoch // epochs < 10 * (epoch + 1) // epochs:
            progress(f"classifier: epoch {epoch + 1}/{epochs}, loss {logs['loss']:.4f}")

    report = keras.callbacks.LambdaCallback(on_epoch_end=report)
    clock = _Clock(steps, minutes, progress)
    trained.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[report, clock])
    return network


def save(network, path):
    """Write the network to a .keras file, in one step."""
    with atomic(path) as temporary:
        network.save(temporary)


class _ShiftedBatches(keras.utils.PyDataset):
    """Batches of (images in [0, 1], labels) in a new order each epoch, each image shifted at random."""

    def __init__(self, images, labels, seed, most=STEPS):
        super().__init__()
        self.images, self.labels, self.most = images, labels, most
        self.random = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        # What is left over comes in another epoch; of very many images not all are seen.
        return max(1, min(len(self.images) // BATCH, self.most))

    def __getitem__(self, i):
        chosen = self.order[i * BATCH : (i + 1) * BATCH]
        images = self.images[chosen]
        around = ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))
        padded = np.pad(images, around, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:3], (1, 2))
        rows, columns = self.random.integers(0, 2 * SHIFT + 1, (2, len(chosen)))
        shifted = np.moveaxis(windows[np.arange(len(chosen)), rows, columns], 1, -1)
        return shifted / np.float32(255), self.labels[chosen]

    def on_epoch_end(self):
        self.order = self.random.permutation(len(self.images))


def _fingerprint(data, steps=STEPS, seed=0):
    """Twelve digits that change with the images, the labels, the classes or the recipe."""
    recipe = (VERSION, data.images.shape, data.num_classes)
    if (steps, seed) != (STEPS, 0):
        recipe += (steps, seed)
    digest = hashlib.sha256(repr(recipe).encode())
    digest.update(np.ascontiguousarray(data.images[:: max(1, len(data.images) // 1000)]))
    digest.update(np.ascontiguousarray(data.labels))
    return digest.hexdigest()[:12]


def _load(path, data):
    """The network in a file, or None if there is none that fits the dataset.

    Of the file, which anybody may have made, the weights alone are read: the network is ours.
    """
    if not path.is_file():
        return None
    network = build_classifier(data.images.shape[1:], data.num_classes)
    try:
        weights = _weights(path, network.count_params())
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")  # of weights that do not fit: the error says it
            copy = Path(folder, "classifier.weights.h5")
            copy.write_bytes(weights)
            network.load_weights(copy)
        if not all(np.isfinite(w).all() for w in network.get_weights()):
            raise ValueError("it has weights that are no numbers")
    except Exception:  # damaged, or of another network: it is made anew
        return None
    return network


def _weights(path, count):
    """The HDF5 file in a .keras file, checked as that of any model file."""
    size = path.stat().st_size
    if size > 4 * count + model_file.OVERHEAD:
        raise ValueError(f"it has {size:,} bytes for {count:,} weights")
    with zipfile.ZipFile(path) as archive:
        model_file._check_members(archive.infolist(), size)
        weights = archive.read(model_file.WEIGHTS)
    model_file._check_hdf5(weights)
    return weights


if __name__ == "__main__":
    train, test = load_splits("mnist")
    network = train_classifier(train, progress=lambda line: print(line, file=sys.stderr))
    path = released("classifier-mnist") / "model.keras"
    save(network, path)
    print(f"wrote {path}: {accuracy(network, test):.2%} of {len(test.images):,} test images")
