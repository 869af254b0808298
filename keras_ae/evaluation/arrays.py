"""What the other modules share: how arrays are gone through, a part at a time."""

BATCH = 1024  # images that a network sees at a time
CHUNK_VALUES = 8_000_000  # pixels or densities held at a time: 64 MB


def chunks(n, size):
    """Slices of range(n), of so many rows that rows of a given size make up CHUNK_VALUES at most."""
    rows = max(1, CHUNK_VALUES // size)
    return [slice(i, min(i + rows, n)) for i in range(0, n, rows)]


def images_and_labels(model, inputs):
    """Inputs of a model -> images, labels or None."""
    return inputs if model.num_classes else (inputs, None)


def rows_of(labels, rows):
    """Those rows of the labels, where there are any."""
    return None if labels is None else labels[rows]
