"""Measures the cost of backups: time to write one, as a share of the time between two, and of an epoch.

python benchmarks/backups.py
"""

import statistics
import tempfile
import time
from pathlib import Path

import keras

from keras_ae import CVAE, Adam, callbacks, checkpoints


def main():
    model = CVAE()
    model.compile(Adam(1e-3))
    model.optimizer.build(model.trainable_variables)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(20):
            start = time.perf_counter()
            metrics = [keras.ops.convert_to_numpy(v) for v in model.metrics_variables]
            progress = checkpoints.Progress([], 0, 7, 1.0, metrics)
            checkpoints.write_backup(folder, model, progress)
            seconds.append(time.perf_counter() - start)
        size = Path(folder, "backup", "state.npz").stat().st_size
    write = statistics.median(seconds)
    print(
        f"a backup of `kae fit cvae`: {size / 2**20:.1f} MiB in {1000 * write:.0f} ms (median of 20)"
    )
    print(
        f"one every {callbacks.BACKUP_SECONDS:.0f} s: {write / callbacks.BACKUP_SECONDS:.2%} of the fit"
    )
    print(f"one an epoch of 13 s: {write / 13:.2%} of the fit")


if __name__ == "__main__":
    main()
