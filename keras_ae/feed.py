"""The batches of a run, in an order that depends only on the seed and the epoch."""

import keras
import numpy as np

from keras_ae import distributed, fast

WINDOW = 256 << 20  # bytes of images that are shuffled together
BLOCK = 128 << 10  # bytes of neighbouring images that stay together in a larger dataset


class Feed(keras.utils.PyDataset):
    """The batches of an epoch, in an order that depends only on the seed and the epoch.

    Keras shuffles with a random state that is in no checkpoint; this order is the same in a resumed run.

    Args:
        images: (N, H, W, C) uint8: an array, or `keras_ae.data.StoredImages`.
        labels: (N,) for a CVAE, else None.
        batch_size: images per batch; the last batch may be smaller.
        seed: of the order, and of the random pixels of `binarize`.
        binarize: set each pixel to 255 with the probability of its grey value, else to 0.
        shuffle: whether to shuffle the images; False keeps their order.
        augment: a `keras_ae.augmentation.Augment` that changes the images of a batch, or None.
    """

    def __init__(
        self, images, labels, batch_size, seed, binarize=False, shuffle=True, augment=None
    ):
        super().__init__()
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.seed, self.binarize, self.shuffle = seed, binarize, shuffle
        self.augment = augment
        self._devices = distributed.devices()  # asked here, as other threads may fetch the batches
        self.set_epoch(0)

    def set_epoch(self, epoch, first=0):
        """Set the order of this epoch (counted from 0), and skip the batches before `first`."""
        self.epoch, self.first = epoch, first
        n = len(self.images)
        if self.shuffle:
            self.order = epoch_order(n, self.images.nbytes // n, (self.seed, epoch))
        else:
            self.order = np.arange(n)

    def batches(self):
        """The argument for `fit`: this feed, or on tensorflow a dataset that gathers its batches in the graph."""
        if fast.ON and keras.backend.backend() == "tensorflow":
            from keras_ae.fast.gathering import gathered

            return gathered(self)
        return self

    @property
    def steps(self):
        """Number of batches of a whole epoch."""
        return -(-len(self.images) // self.batch_size)

    def __len__(self):
        return self.steps - self.first

    def rows(self, index):
        """The indices of the images in this process's share of a batch."""
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
        # Random numbers are drawn for the whole batch, so that all processes agree on them.
        images = self.augment(self.images[batch], seed)[mine] if self.augment else self.images[rows]
        if self.binarize:
            images = binarized(images, seed, len(batch), mine)
        return (images if self.labels is None else (images, self.labels[rows]),)


def epoch_order(n, row_bytes, seed):
    """A random order of n images of `row_bytes` bytes each: (n,) row numbers.

    A dataset of up to WINDOW bytes is shuffled as a whole. A larger one is cut into blocks of neighbours.
    The blocks are shuffled, then the images within each window of WINDOW bytes. So at any time training reads
    from only WINDOW bytes of the file, not from all over the disk. (TFDS has shuffled the file once already.)
    The order is the same for images in memory.
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
    """Binarize images at random: a pixel becomes 255 with the probability of its grey value, else 0.

    Images are whole numbers in 0..255 or floats in [0, 1]; the result is uint8. With `n` and `rows`, random
    numbers are drawn for n images, and `images` are the given rows of these.
    """
    shape = (n or len(images), *images.shape[1:])
    coins = np.random.default_rng(seed).random(shape, dtype="float32")[rows]
    white = 255.0 if images.dtype.kind in "iu" else 1.0
    return np.where(coins * white < images, np.uint8(255), np.uint8(0))
