"""The batches of a run, in an order that is a function of the seed and the epoch alone."""

import keras
import numpy as np

from keras_ae import distributed, fast

WINDOW = 256 << 20  # bytes of images that are shuffled at a time
BLOCK = 128 << 10  # bytes of images that stay neighbours in a larger set


class Feed(keras.utils.PyDataset):
    """Batches of an epoch, in an order that is a function of the seed and the epoch alone.

    Keras shuffles by a state that no checkpoint holds; this order is the same in a resumed run.

    Args:
        images: (N, H, W, C) uint8: an array, or `keras_ae.data.StoredImages`.
        labels: (N,) for a CVAE, else None.
        batch_size: images a batch; the last one holds what is left.
        seed: of the order, and of the coins of `binarize`.
        binarize: draw each pixel, 0 or 255, as a coin of its grey value.
        shuffle: whether there is an order other than that of the images.
        augment: a `keras_ae.augmentation.Augment` that changes the images of a batch; None to leave them.
    """

    def __init__(
        self, images, labels, batch_size, seed, binarize=False, shuffle=True, augment=None
    ):
        super().__init__()
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.seed, self.binarize, self.shuffle = seed, binarize, shuffle
        self.augment = augment
        self._devices = distributed.devices()  # of the thread that trains; others fetch batches
        self.set_epoch(0)

    def set_epoch(self, epoch, first=0):
        """Take the order of this epoch, from 0, without the batches before `first`."""
        self.epoch, self.first = epoch, first
        n = len(self.images)
        if self.shuffle:
            self.order = epoch_order(n, self.images.nbytes // n, (self.seed, epoch))
        else:
            self.order = np.arange(n)

    def batches(self):
        """What to give to `fit`: the feed itself, or on tensorflow what gathers its batches in the graph."""
        if fast.ON and keras.backend.backend() == "tensorflow":
            from keras_ae.fast.gathering import gathered

            return gathered(self)
        return self

    @property
    def steps(self):
        """Batches of a whole epoch."""
        return -(-len(self.images) // self.batch_size)

    def __len__(self):
        return self.steps - self.first

    def rows(self, index):
        """The numbers of the images of a batch: of this process's share of it."""
        rows, mine = self._batch(index)
        return rows[mine]

    def _batch(self, index):
        start = (self.first + index) * self.batch_size
        rows = self.order[start : start + self.batch_size]
        mine = distributed.local_rows(len(rows), self._devices)
        return rows, mine

    def __getitem__(self, index):
        batch, mine = self._batch(index)
        rows, seed = batch[mine], (self.seed, self.epoch, self.first + index)
        # What is drawn is drawn for the images of all processes.
        images = self.augment(self.images[batch], seed)[mine] if self.augment else self.images[rows]
        if self.binarize:
            images = binarized(images, seed, len(batch), mine)
        return (images if self.labels is None else (images, self.labels[rows]),)


def epoch_order(n, row_bytes, seed):
    """A random order of n images of so many bytes: (n,) row numbers.

    A set of up to WINDOW bytes is shuffled whole. A larger one is cut into blocks of neighbours, whose
    order is shuffled, and then window by window, so that at any time a training step reads from WINDOW
    bytes of the file and not from all over the disk. (TFDS has shuffled the file itself once.) In memory
    the order is the same.
    """
    random = np.random.default_rng(seed)
    window = max(1, WINDOW // row_bytes)
    if n <= window:
        return random.permutation(n)
    block = max(1, BLOCK // row_bytes)
    starts = random.permutation(np.arange(0, n, block))
    parts = []
    for i in range(0, len(starts), max(1, window // block)):
        rows = starts[i : i + max(1, window // block), None] + np.arange(block)
        parts.append(random.permutation(rows[rows < n]))
    return np.concatenate(parts)


def binarized(images, seed, n=None, rows=slice(None)):
    """Each pixel of uint8 images drawn as a coin that shows 255 with probability grey / 255.

    With `n` and `rows`, the images are these rows of n for which the coins are drawn.
    """
    shape = (n or len(images), *images.shape[1:])
    coins = np.random.default_rng(seed).random(shape, dtype="float32")[rows]
    return np.where(coins * 255.0 < images, np.uint8(255), np.uint8(0))
