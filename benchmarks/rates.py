"""Compares the rate of a training step with the processor's rate of matrix products. Prints a table.

    python benchmarks/rates.py                        torch, 28 to 128 pixels
    KERAS_BACKEND=jax python benchmarks/rates.py --sides 64

The processor's rate is that of NumPy's float32 matrix products of 2048 x 2048. It is measured between the
steps, in the same process and with the same number of threads. torch's `FlopCounterMode` counts the operations
of a step: matrix products and convolutions, forward and backward. On other backends a step does the same.
"""

import argparse
import contextlib
import io
import os
import statistics
import time


def gflops(size=2048):
    """Billions of operations per second in a float32 matrix product."""
    import numpy as np

    a, b = np.random.default_rng(0).random((2, size, size), "float32")
    start = time.perf_counter()
    a @ b
    return 2 * size**3 / (time.perf_counter() - start) / 1e9


def operations(model, images):
    """Billions of operations of a training step (matrix products, convolutions); None if not on torch."""
    import keras

    if keras.backend.backend() != "torch":
        return None
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model.train_on_batch(images)
    return counter.get_total_flops() / 1e9


def row(shape, size, batch, steps, rounds, dtype):
    """Measures and prints one line of the table."""
    import numpy as np

    import keras_ae

    model = keras_ae.VAE(shape, 128, size=size, dtype=dtype)
    model.compile(keras_ae.Adam(1e-3), steps_per_execution=steps)
    images = np.random.default_rng(0).integers(0, 256, (batch * steps, *shape), "uint8")

    def epoch():
        with contextlib.redirect_stdout(io.StringIO()):
            model.fit(images, batch_size=batch, verbose=0)

    counted = operations(model, images[:batch])
    epoch()
    seconds, rates = [], []
    for _ in range(rounds):
        rates.append(gflops())
        start = time.perf_counter()
        epoch()
        seconds.append((time.perf_counter() - start) / steps)
    step, rate = statistics.median(seconds), statistics.median(rates)
    side = "x".join(map(str, shape))
    share = (
        ""
        if counted is None
        else f"{counted:.1f} | {counted / step:.0f} | {rate:.0f} | {counted / step / rate:.0%}"
    )
    print(
        f"| {side} | {size} | {dtype} | {step * 1e3:.0f} | {batch / step:.0f} | {share or ' | | |'} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[28, 64, 128])
    parser.add_argument("--sizes", nargs="+", default=["base"])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "torch")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from kae.console import keep_memory

    keep_memory()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(
        f"{os.environ['KERAS_BACKEND']}, {threads} thread(s), batches of {arguments.batch}, VAE of 128 latents\n"
    )
    print(
        "| images | size | dtype | ms a step | images a second | Gflop a step | Gflop/s | matrix product | share |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for side in arguments.sides:
        for size in arguments.sizes:
            for dtype in arguments.dtypes:
                row(
                    (side, side, 3), size, arguments.batch, arguments.steps, arguments.rounds, dtype
                )


if __name__ == "__main__":
    main()
