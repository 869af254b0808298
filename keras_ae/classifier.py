"""The classifier that evaluates samples: a small convolutional network, trained once for each dataset.

    classifier = evaluation_classifier(train, test)
    features, probabilities = classifier(images)

It is trained on the dataset, without the model that it evaluates. Its weights for MNIST are released with
the package; `python -m keras_ae.classifier` made them.
"""

import errno
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

from keras_ae import gpu, model_file
from keras_ae.backbones import LAST, in_policy
from keras_ae.data import GENUINE, load_splits
from keras_ae.data.cache import own_folder
from keras_ae.errors import UserError
from keras_ae.fast.adam import Adam
from keras_ae.files import atomic, shortened, sweep
from keras_ae.inference import in_memory
from keras_ae.pictures import to_float
from keras_ae.settings import released

FEATURES = 64
STEPS = 3750  # 8 epochs of MNIST
PIXELS = 28 * 28  # larger images get fewer STEPS, for the same amount of computation
LEAST_STEPS = 300
MOST_EPOCHS = 60  # limits the steps on small datasets
MINUTES = 10  # no classifier is trained that would take longer
TIMED = 20  # after this many steps the time of the training is estimated
BATCH = 128
LEARNING_RATE = 3e-3
SHIFT = 2  # pixels
VERSION = 1  # raise it when the network or its training changes
# Errors of the system that say nothing about a file's contents.
NO_DAMAGE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained network and its accuracy.

    Attributes:
        network: keras.Model: image (N, H, W, C) in [0, 1] -> {"features", "logits", "probabilities"}.
        accuracy: share of the test images that it classifies correctly, in [0, 1].
        origin: "released with keras-ae", "trained earlier" or "trained now".
    """

    network: keras.Model
    accuracy: float
    origin: str

    def __call__(self, images):
        return classify(self.network, images)


def classify(network, images):
    """Classify images (N, H, W, C), uint8 or float in [0, 1]: features (N, 64), probabilities (N, K)."""
    features, probabilities = [], []
    # A whole training set of floats may not fit in memory.
    step = in_memory(images.shape[1:], 10_000)
    for i in range(0, len(images), step):
        outputs = network.predict(to_float(images[i : i + step]), batch_size=500, verbose=0)
        features.append(outputs["features"])
        probabilities.append(outputs["probabilities"])
    return np.concatenate(features), np.concatenate(probabilities)


def accuracy(network, data) -> float:
    """Share of the images of an `ImageData` that a network classifies correctly."""
    _, probabilities = classify(network, data.images)
    return float((probabilities.argmax(-1) == data.labels).mean())


def evaluation_classifier(train, test, progress=None, seed=0, minutes=MINUTES) -> Classifier:
    """The classifier of a dataset: the released one (of a version that is known), or one from the cache or trained now.

    The training reports how long it will take, and stops if that is too long.

    The cache is KAE_CACHE, else XDG_CACHE_HOME/keras-ae, else ~/.cache/keras-ae. The key of an entry
    depends on the dataset's name, version, classes and shape, and on its images and labels.

    Args:
        train: `ImageData` to train on, the whole training set.
        test: `ImageData` to measure the accuracy of the classifier on.
        progress: called with one line whenever there is something to report.
        seed: of the classifier; other seeds give other classifiers, whose spread can be measured.
        minutes: how long the training may take.

    Raises:
        UserError: the dataset has no labels or one class; or the classifier must be trained, but the
            backend cannot train, or the training would take too long.
    """
    progress = progress or (lambda line: None)
    if train.labels is None or test.labels is None:
        raise UserError(f"{train.name} has no labels to train an evaluation classifier on")
    if train.num_classes < 2:
        raise UserError(f"{train.name} has one class, and a classifier needs two")
    name = shortened(f"classifier-{train.name}".replace("/", "-"))
    steps = steps_of(train)
    places = {}
    # Of another version, the images may be others.
    if not seed and f"{train.name}/{train.version}/train" in GENUINE:
        places["released with keras-ae"] = released(name) / "model.keras"
    why: Exception | None = None
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
        except (OSError, ValueError) as error:  # a ValueError: zip files know no year before 1980
            why = error
    if why is not None:
        progress(f"not kept ({why}): set KAE_CACHE to a folder that can be written")
    return Classifier(network, accuracy(network, test), "trained now")


@in_policy("float32")  # whatever precision the user's own models have
def build_classifier(image_shape, num_classes, seed=0):
    """Build a network: image (N, H, W, C) in [0, 1] -> {"features" (N, 64), "logits", "probabilities" (N, K)}.

    It has pairs of convolutions, the first of stride 2 and the second of stride 1, until the shorter side is
    8 pixels or less; then a dense layer of 64 features.
    """
    seeds = iter(range(100 * seed, 100 * seed + 100))

    def convolution(x, filters, size, strides, name):
        x = layers.Conv2D(
            filters,
            size,
            strides=strides,
            padding="same",
            use_bias=False,
            data_format=LAST,
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
    x = layers.Flatten(LAST, name="flatten")(x)
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
    """Training steps for an `ImageData`: mostly no more computation than for MNIST, whatever the image size."""
    height, width = train.images.shape[1:3]
    steps = round(STEPS * min(1, PIXELS / (height * width)))
    epochs = MOST_EPOCHS * max(1, len(train.images) // BATCH)
    return max(LEAST_STEPS, min(steps, epochs))


class TooLong(UserError):
    """The training of a classifier would take longer than allowed."""


class _Clock(keras.callbacks.Callback):
    """Reports after a few steps how long the training will take, and stops it if that is too long."""

    def __init__(self, steps, minutes, progress):
        super().__init__()
        self.steps, self.minutes, self.progress = steps, minutes, progress
        self.done = 0

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        if self.done == 1:  # the first step includes compilation, so it is not timed
            self.started = time.perf_counter()
        elif self.done == min(TIMED, self.steps):
            step = (time.perf_counter() - self.started) / (self.done - 1)
            minutes = self.steps * step / 60
            if self.minutes is not None and minutes > self.minutes:
                raise TooLong(
                    f"the evaluation classifier would take {minutes:.2g} minutes to train, more than the "
                    f"{self.minutes:g} of --classifier-minutes"
                )
            self.progress(
                "classifier: "
                + (f"{minutes:.0f} minutes" if minutes >= 2 else f"{60 * minutes:.0f} seconds")
            )


def train_classifier(train, seed=0, steps=STEPS, progress=None, minutes=None):
    """Train the classifier of a dataset from a seed; returns the network of `build_classifier`.

    The loss is the cross-entropy; Adam has a warm-up and a cosine decay; images are shifted by up to two
    pixels.

    Args:
        train: `ImageData` with labels.
        seed: of the weights, of the order of the images and of the shifts.
        steps: number of batches of up to 128 images.
        progress: called with one line after some steps, and then about ten times.
        minutes: how long it may take; None for no limit.

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
    # Compile a second model on the same layers: `network` is saved without an optimizer.
    with in_policy("float32"):
        trained = keras.Model(network.inputs, network.get_layer("logits").output)
    trained.compile(Adam(schedule), keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def report(epoch, logs):
        if 10 * epoch // epochs < 10 * (epoch + 1) // epochs:
            progress(f"classifier: epoch {epoch + 1}/{epochs}, loss {logs['loss']:.4f}")

    report = keras.callbacks.LambdaCallback(on_epoch_end=report)
    clock = _Clock(steps, minutes, progress)
    with gpu.repeatable():
        trained.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[report, clock])
    return network


def save(network, path):
    """Write the network to a .keras file, whole or not at all."""
    sweep(path.parent)
    with atomic(path) as temporary:
        network.save(temporary)


class _ShiftedBatches(keras.utils.PyDataset):
    """Batches of (images in [0, 1], labels), in a new order each epoch; each image is shifted at random."""

    def __init__(self, images, labels, seed, most=STEPS):
        super().__init__()
        self.images, self.labels, self.most = images, labels, most
        self.random = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        # Images left over by whole batches come in another epoch; a very large dataset is not seen in full.
        return max(1, min(len(self.images) // BATCH, self.most))

    def __getitem__(self, i):
        chosen = self.order[i * BATCH : (i + 1) * BATCH]
        images = self.images[chosen]
        around = ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))
        padded = np.pad(images, around, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:3], (1, 2))
        rows, columns = self.random.integers(0, 2 * SHIFT + 1, (2, len(chosen)))
        shifted = np.moveaxis(windows[np.arange(len(chosen)), rows, columns], 1, -1)
        return to_float(shifted), self.labels[chosen]

    def on_epoch_end(self):
        self.order = self.random.permutation(len(self.images))


def _fingerprint(data, steps=STEPS, seed=0):
    """A hash of 12 hex digits of the images (a sample), the labels, the classes and the training recipe."""
    recipe = (VERSION, data.images.shape, data.num_classes)
    if (steps, seed) != (STEPS, 0):
        recipe += (steps, seed)
    digest = hashlib.sha256(repr(recipe).encode())
    digest.update(np.ascontiguousarray(data.images[:: max(1, len(data.images) // 1000)]))
    digest.update(np.ascontiguousarray(data.labels))
    return digest.hexdigest()[:12]


def _load(path, data):
    """The network in a file, or None if the file is missing or does not fit the dataset.

    Anybody may have made the file, so only the weights are read from it; the network is built here.
    """
    if not path.is_file():
        return None
    network = build_classifier(data.images.shape[1:], data.num_classes)
    try:
        weights = _weights(path, network.count_params())
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")  # weights that do not fit also raise an error
            copy = Path(folder, "classifier.weights.h5")
            copy.write_bytes(weights)
            network.load_weights(copy)
        if not all(np.isfinite(w).all() for w in network.get_weights()):
            raise ValueError("it has weights that are no numbers")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_DAMAGE:
            raise UserError(
                f"the evaluation classifier in {path} cannot be read: {error.strerror}"
            ) from error
        return None  # damaged, or of another network: a new one is trained
    return network


def _weights(path, count):
    """The HDF5 file in a .keras file, with the same checks as for a model file."""
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
