"""Times starting and sampling, compared with the import of Keras alone and a decoder call alone.

    python benchmarks/sampling.py start
    python benchmarks/sampling.py images

`start` measures the processor time of whole processes, which take turns; a cell is the median. If several
backends are installed, `import keras` with one may import others; for "alone", the others are hidden. `images`
times `sample` of the released CVAE and its decoder alone on the same codes, in several processes per backend.
Ratios are medians of the rounds; those of `images` have quartiles.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from training import cell

BACKENDS = ("torch", "jax", "tensorflow")
BATCHES = (1, 64, 4096)

# Hides packages as if they were not installed. Python runs this first, as sitecustomize.py.
HIDE = """
import os
from importlib.machinery import PathFinder
find, hidden = PathFinder.find_spec, os.environ["HIDDEN"].split()
PathFinder.find_spec = lambda name, *rest: None if name in hidden else find(name, *rest)
"""

# Times loading a prepared dataset from the cache, after the imports.
DATA = """
import time
from keras_ae import data
start = time.perf_counter()
train, test = data.load_splits("mnist", progress=lambda line: None)
print(time.perf_counter() - start, train.images.sum(dtype="int64") > 0)
"""


def processor(command, environment):
    """Runs a process; returns its processor time in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start(arguments):
    python = sys.executable

    def row(*cells):
        print("| " + " | ".join(cells) + " |", flush=True)

    def measure(name, command, against, goal, difference=False, **variables):
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | variables
        times = [[], []]
        for i in range(arguments.rounds + 1):
            for seconds, one in zip(times, (command, against)):
                taken = processor([python, *one], environment) if one else 0.0
                if i:  # the first round only fills the system's caches
                    seconds.append(taken)
        ours, theirs = map(statistics.median, times)
        compared = ""
        if against and difference:
            compared = f"+ {statistics.median(a - b for a, b in zip(*times)):.2f} s"
        elif against:
            compared = f"{statistics.median(a / b for a, b in zip(*times)):.2f} x"
        row(name, f"{ours:.2f} s", f"{theirs:.2f} s" if against else "", compared, goal)

    row("what", "processor", "`import keras`", "compared", "goal")
    row(*["---"] * 5)

    measure("`kae --help`", ["-m", "kae", "--help"], None, "0.25 s")
    measure("`kae fit --help`", ["-m", "kae", "fit", "--help"], None, "")
    keras = ["-c", "import keras"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(HIDE)
        sample = ["-m", "kae", "sample", "cvae", "5", "--out", f"{folder}/five.png", "--force"]
        for backend in arguments.backends:
            others = " ".join(b for b in BACKENDS if b != backend)
            path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
            alone = {"KERAS_BACKEND": backend, "PYTHONPATH": path, "HIDDEN": others}
            name = f"`kae sample cvae 5`, {backend}"
            measure(name, sample, keras, "1.3 x", KERAS_BACKEND=backend)
            measure(f"{name} alone", sample, keras, "1.3 x", **alone)
            ours = ["-c", "import keras, keras_ae.models, keras_ae.annealing"]
            name = f"`import keras_ae` and the models, {backend} alone"
            measure(name, ours, keras, "+ 0.15 s", difference=True, **alone)
    done = [
        subprocess.run([python, "-c", DATA], capture_output=True, text=True, check=True).stdout
        for _ in range(arguments.rounds + 1)
    ]
    seconds = statistics.median(float(line.split()[0]) for line in done[1:])
    row("second start of a prepared dataset", f"{seconds:.3f} s (clock)", "", "", "0.1 s")


def images(arguments):
    print(
        "| backend | batch | images a second | bare decoder | time / bare decoder |\n"
        + "|---" * 5
        + "|"
    )
    for backend in arguments.backends:
        environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, __file__, "worker", "--rounds", str(arguments.rounds)]
        seconds = {n: {"ours": [], "bare": []} for n in BATCHES}
        for _ in range(arguments.processes):
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            for line in done.stdout.splitlines():
                if line.startswith("{"):
                    row = json.loads(line)
                    for name, values in seconds[row["batch"]].items():
                        values.extend(row[name])
        for n, of in seconds.items():
            ours, bare = (statistics.median(of[name]) for name in ("ours", "bare"))
            ratio = cell(of["ours"], of["bare"])
            cells = (backend, n, f"{n / ours:,.0f}", f"{n / bare:,.0f}", ratio)
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def bare_decoder(model):
    """A function from NumPy codes and one-hot labels to NumPy images, as direct as the backend allows."""
    import keras

    decoder, backend = model.decoder, keras.backend.backend()
    if backend == "torch":
        import torch

        def call(inputs):
            with torch.no_grad():
                return decoder([torch.from_numpy(x) for x in inputs]).numpy()

        return call
    if backend == "jax":
        import jax
        import numpy as np

        variables = (decoder.trainable_variables, decoder.non_trainable_variables)
        weights = [[jax.numpy.array(v.value) for v in group] for group in variables]
        compiled = jax.jit(
            lambda weights, inputs: decoder.stateless_call(*weights, inputs, training=False)[0]
        )
        return lambda inputs: np.asarray(compiled(weights, inputs))
    import tensorflow as tf

    compiled = tf.function(lambda inputs: decoder(inputs, training=False))
    return lambda inputs: compiled([tf.constant(x) for x in inputs]).numpy()


def worker(arguments):
    import numpy as np

    import keras_ae
    from keras_ae.checkpoints import find_checkpoint

    model = keras_ae.load_model(find_checkpoint("cvae", root="nowhere").path)
    bare = bare_decoder(model)
    for n in BATCHES:
        labels = np.arange(n) % model.num_classes
        codes = model.prior.draw(n, labels, 0)
        inputs = [codes, np.eye(model.num_classes, dtype="float32")[labels]]
        pieces = [[x[i : i + 256] for x in inputs] for i in range(0, n, 256)]
        contenders = {
            "ours": lambda n=n, labels=labels: model.sample(n, labels, seed=0),
            "bare": lambda pieces=pieces: np.concatenate([bare(piece) for piece in pieces]),
        }
        seconds = {name: [] for name in contenders}
        for i in range(arguments.rounds + 2):
            for name, sample in contenders.items():
                repeats = max(1, 256 // n)
                start = time.process_time()
                for _ in range(repeats):
                    sample()
                if i > 1:  # the first two rounds compile and fill caches
                    seconds[name].append((time.process_time() - start) / repeats)
        print(json.dumps({"batch": n, **seconds}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("start", "images", "worker"))
    parser.add_argument("--rounds", type=int, default=5, help="of each process")
    parser.add_argument("--processes", type=int, default=5, help="of `images`, a backend")
    parser.add_argument("--backends", nargs="+", default=BACKENDS)
    arguments = parser.parse_args()
    {"start": start, "images": images, "worker": worker}[arguments.what](arguments)


if __name__ == "__main__":
    main()
