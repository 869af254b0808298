"""What users give as arrays."""

import numpy as np


def to_numpy(x, dtype=None):
    """An array, a list of numbers or a tensor of any framework, on any device, as a NumPy array."""
    if hasattr(x, "detach"):  # torch's: NumPy takes it neither from a GPU nor with its gradients
        x = x.detach().cpu()
    return np.asarray(x, dtype)
