"""Arrays of the user's own as the images of a dataset."""

import numpy as np

from keras_ae.data.reading import ImageData


def splits_of_arrays(train, test, name):
    """Training and test images of the user's own as a pair of `ImageData`.

    Args:
        train, test: images (N, H, W, C), whole numbers in 0..255 or floats in [0, 1]; pairs of them and
            labels (N,) or (N, 1); or `ImageData`, which stay as they are.
        name: of the dataset, for those that have none.

    Raises:
        ValueError: images or labels are of another shape, or there are none.
    """
    splits = [_arrays(images, what) for images, what in ((train, "train"), (test, "test"))]
    labels = [split[1] for split in splits if isinstance(split, tuple) and split[1] is not None]
    names = None
    if labels:
        names = tuple(map(str, range(1 + int(max(part.max() for part in labels)))))
    return tuple(
        split
        if isinstance(split, ImageData)
        else ImageData(name, "", what, split[0], split[1], None if split[1] is None else names)
        for split, what in zip(splits, ("train", "test"))
    )


def _arrays(images, what):
    """An `ImageData`, or (images, labels or None) as arrays, checked."""
    if isinstance(images, ImageData):
        return images
    images, labels = images if isinstance(images, tuple | list) else (images, None)
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"{what} images must be (N, H, W, C); got {images.shape}.")
    if labels is None:
        return images, None
    labels = np.asarray(labels)
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"{what} labels must be whole numbers from 0 on, one for each of the {len(images)} images; "
            f"got {labels.dtype} {labels.shape}."
        )
    return images, labels.astype("int32")
