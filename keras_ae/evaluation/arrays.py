"""Functions that the other modules share, to process arrays in parts."""

BATCH = 1024  # images per batch of a network
CHUNK_VALUES = 8_000_000  # most pixels or densities that are held at a time: 64 MB


def chunks(n, size):
    """Cuts range(n) into slices of at most CHUNK_VALUES values (and at least 1 row), `size` per row."""
    rows = max(1, CHUNK_VALUES // size)
    return [slice(i, min(i + rows, n)) for i in range(0, n, rows)]


def images_and_labels(model, inputs):
    """Splits the inputs of a model into images, and labels (N,) or None."""
    if not model.num_classes:
        return inputs, None
    images, labels = inputs
    return images, model.class_labels(labels, len(images))


def rows_of(labels, rows):
    """These rows of the labels; None without labels."""
    return None if labels is None else labels[rows]
