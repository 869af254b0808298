"""Measures how time and memory of training grow with images, batch, image size, latents and classes.

    taskset -c 0 python benchmarks/scale.py              # twelve minutes, 0.8 GB of disk

Trains the default CVAE on torch, or on KERAS_BACKEND (conv, batches of 128, 10,000 images of 28x28, 16
latents, 10 classes), and changes one of these at a time. Each point has its own process, on one thread.
Prints tables and draws docs/scale.png.

Time is processor time. For a step, it is the median of five stretches of up to 16 steps; the first stretch is
not counted. An epoch of up to 10,000 images is timed as a whole. A longer epoch is the time to shuffle its order
plus its number of steps times the median step. Memory is the highest resident set size of the process.
"Streamed" images are in a file and are read batch by batch, as `kae fit` does above KAE_MEMORY. Images are
MNIST's, repeated. Pillow scales them to other sizes, and other numbers of classes are made from an image's
index: this measures cost, not what is learned.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEFAULT = {"images": 10_000, "batch": 128, "size": 28, "latents": 16, "classes": 10}
AXES = {
    "images": (1_000, 10_000, 100_000, 1_000_000),
    "batch": (16, 64, 128, 1024, 4096),
    "size": (28, 56, 112),
    "latents": (2, 16, 128),
    "classes": (2, 10, 100, 1000),
}
STRETCHES = 5
WHOLE = 10_000  # most images of an epoch that is timed as a whole
BLOCK = 10_000  # images that are made at a time


def made(rows, size, mnist):
    """MNIST's images, repeated and scaled: (n, size, size, 1) uint8."""
    import numpy as np
    from PIL import Image

    images = mnist.images[rows % len(mnist.images)]
    if size == 28:
        return images
    return np.stack(
        [np.asarray(Image.fromarray(i[..., 0]).resize((size, size)))[..., None] for i in images]
    )


def dataset(point, folder):
    """Images (an array, or `StoredImages`) and labels of a point."""
    import numpy as np

    from keras_ae import data

    mnist, _ = data.load_splits("mnist", progress=lambda line: None)
    n, size = point["images"], point["size"]
    shape = (n, size, size, 1)
    stored = point["streamed"] and data.StoredImages.create(Path(folder, "images.npy"), shape)
    images = stored or np.empty(shape, "uint8")
    for start in range(0, n, BLOCK):
        block = made(np.arange(start, min(start + BLOCK, n)), size, mnist)
        if stored:
            stored.write(start, block)
        else:
            images[start : start + BLOCK] = block
    rows = np.arange(n)
    if point["classes"] == DEFAULT["classes"]:
        return images, mnist.labels[rows % len(mnist.labels)]
    return images, rows * 2654435761 % 2**32 * point["classes"] // 2**32


def worker(point):
    """Train one point, and print its time and memory as JSON."""
    import keras

    import keras_ae
    from keras_ae.feed import Feed
    from keras_ae.fitting import steps_per_execution

    class Clock(keras.callbacks.Callback):
        """Seconds of each stretch of steps and of each epoch."""

        def __init__(self):
            super().__init__()
            self.step, self.epoch, self.order = [], [], []

        def on_epoch_begin(self, epoch, logs=None):
            self.began = time.process_time()
            feed.set_epoch(epoch)
            self.order.append(time.process_time() - self.began)

        def on_train_batch_begin(self, batch, logs=None):
            self.first, self.start = batch, time.process_time()

        def on_train_batch_end(self, batch, logs=None):
            steps = min(batch + 1, self.params["steps"]) - self.first
            self.step.append((time.process_time() - self.start) / steps)

        def on_epoch_end(self, epoch, logs=None):
            self.epoch.append(time.process_time() - self.began)

    with tempfile.TemporaryDirectory() as folder:
        images, labels = dataset(point, folder)
        batch, size = point["batch"], point["size"]
        feed, clock = Feed(images, labels, batch, 0), Clock()
        # If a step takes longer, a stretch has fewer steps.
        stretch = max(1, steps_per_execution(batch) * 28 * 28 // size**2)
        steps = min(len(feed), (1 + STRETCHES) * stretch)
        rest = {**point, "images": DEFAULT["images"], "streamed": False}
        whole = rest == {**DEFAULT, "streamed": False} and point["images"] <= WHOLE
        if whole:
            steps = len(feed)
        epochs = max(3 if whole else 1, math.ceil((1 + STRETCHES) * stretch / steps))
        model = keras_ae.CVAE((size, size, 1), point["latents"], num_classes=point["classes"])
        model.compile(keras_ae.Adam(1e-3), steps_per_execution=stretch)
        model.fit(
            feed, steps_per_epoch=steps, epochs=epochs, shuffle=False, verbose=0, callbacks=[clock]
        )
        step = statistics.median(clock.step[1:])
        order = statistics.median(clock.order)
        epoch = statistics.median(clock.epoch[1:]) if whole else order + len(feed) * step
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        figures = {"step": step, "order": order, "epoch": epoch, "whole": whole, "peak": peak}
    print(json.dumps({**point, **figures, "weights": model.count_params()}))


def points(axis):
    """The points of an axis: all other values have their defaults."""
    for value in AXES[axis]:
        for streamed in (False, True) if axis == "images" else (False,):
            yield {**DEFAULT, axis: value, "streamed": streamed}


def measured(point):
    limits = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), "1")
    limits |= {"TF_NUM_INTEROP_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    done = subprocess.run(
        [sys.executable, __file__, "--worker", json.dumps(point)],
        env={"KERAS_BACKEND": "torch", **os.environ, **limits, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def print_tables(results):
    print("| images | read from | ms a step | order of an epoch | an epoch | memory |")
    print("|---|---|---|---|---|---|")
    for r in results.get("images", []):
        epoch = f"{r['epoch']:.1f} s" + ("" if r["whole"] else " (from its steps)")
        place = "disk" if r["streamed"] else "memory"
        print(
            f"| {r['images']:,} | {place} | {1e3 * r['step']:.0f} | {1e3 * r['order']:.0f} ms | {epoch} "
            f"| {r['peak']:,.0f} MB |"
        )
    print("\n| | | ms a step | us an image | memory | weights |")
    print("|---|---|---|---|---|---|")
    for axis, rows in results.items():
        for r in rows if axis != "images" else ():
            print(
                f"| {axis} | {r[axis]} | {1e3 * r['step']:.0f} | {1e6 * r['step'] / r['batch']:.0f} "
                f"| {r['peak']:,.0f} MB | {r['weights']:,} |"
            )


def labelled(values):
    """The values for which a logarithmic axis has room for a label."""
    room, shown = 0.255 * math.log(values[-1] / values[0]), [values[0]]
    for value in values:
        if math.log(value / shown[-1]) > room:
            shown.append(value)
    return shown


def power_of_ten(value):
    return f"{value:,}" if value < 10_000 else f"$10^{len(str(value)) - 1}$"


def draw(results, path):
    """Draw a column for each axis: time above, memory below; grey lines show proportional growth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = {"size": "side of the images", "batch": "batch size", "images": "images"}
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(
        2, len(results), figsize=(13, 5), layout="constrained", squeeze=False
    )
    for (top, bottom), (axis, rows) in zip(panels.T, results.items()):
        shown = labelled(AXES[axis])
        for streamed, style in ((False, "o-"), (True, "s--")):
            mine = [r for r in rows if r["streamed"] == streamed]
            if not mine:
                continue
            x = [r[axis] for r in mine]
            time_of = "epoch" if axis == "images" else "step"
            scale = 1 if axis == "images" else 1e3
            color = "tab:orange" if streamed else "tab:blue"
            label = "from disk" if streamed else "in memory"
            top.plot(x, [scale * r[time_of] for r in mine], style, color=color, ms=4, label=label)
            bottom.plot(x, [r["peak"] for r in mine], style, color=color, ms=4)
            if not streamed and axis not in ("latents", "classes"):
                # Proportional to the number, or to the square of the side.
                power, last = (2 if axis == "size" else 1), scale * mine[-1][time_of]
                guide = [last * (value / x[-1]) ** power for value in x]
                name = "proportional to pixels" if axis == "size" else "proportional"
                top.plot(x, guide, ":", color="grey", lw=1.2, label=name)
        top.set_title(names.get(axis, axis))
        for panel in (top, bottom):
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xticks(shown, [power_of_ten(value) for value in shown])
            panel.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
            panel.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda y, _: f"{y:,g}"))
            panel.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
            panel.grid(alpha=0.25)
        if axis == "images":
            top.set_ylabel("seconds an epoch")
            bottom.set_ylabel("highest memory, MB")
        else:
            top.set_ylim(5, 5000)
        if axis == "batch":
            top.set_ylabel("ms a step")
        if axis in ("images", "size"):
            top.legend(frameon=False, fontsize=8)
        bottom.set_ylim(500, 3000)
        bottom.set_yticks([500, 1000, 2000])
    figure.savefig(path, dpi=110)
    print(f"\nwrote {path}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="docs/scale.png")
    parser.add_argument("--axes", nargs="+", default=AXES, choices=AXES)
    parser.add_argument(
        "--results",
        type=Path,
        help="a file to keep points in: those that are there are not measured again",
    )
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments.worker)
    file = arguments.results
    known = json.loads(file.read_text()) if file and file.exists() else []
    results = {axis: [] for axis in AXES if axis in arguments.axes}
    for axis, rows in results.items():
        for point in points(axis):
            row = next((r for r in known if point.items() <= r.items()), None)
            if row is None:
                known.append(row := measured(point))
                print(f"{point} {row['step'] * 1e3:.1f} ms", file=sys.stderr)
            if file:
                file.write_text(json.dumps(known))
            rows.append(row)
    print_tables(results)
    draw(results, arguments.out)


if __name__ == "__main__":
    main()
