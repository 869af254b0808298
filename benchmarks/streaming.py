"""Compares a million images read from disk with the same images in memory: memory and throughput.

    python benchmarks/streaming.py            # about ten minutes of one core, 1.3 GB of disk

Makes a TFDS dataset of 17 copies of MNIST's training images (1,020,000). Then, each in its own process:
decodes it into the cache; trains 600 steps with the images in memory (mapped) and 600 with the images on
disk, in turns; fits the prior; and evaluates. It trains the dense network, whose steps are shortest, so
that it needs batches fastest. Memory is the highest resident set size, including mapped pages.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from keras_ae import data

TIMES_REPEATED = 17
STEPS = 600  # of 3,985 in an epoch
PEAK = """
import resource
def peak():
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
LOAD = """
from keras_ae import data
train, test = data.load_splits("mnist_million")
print({"images": len(train.images), "MB": peak()})
"""
FIT = """
import sys, time
import keras_ae
from keras_ae import checkpoints, data, fitting
from keras_ae.feed import Feed
steps, path = int(sys.argv[1]), sys.argv[2]
train, test = data.load_splits("mnist_million")
settings = fitting.Settings("cvae", "mnist_million", "mlp", latent_dim=16, epochs=15, batch_size=256, kl_weight=0.5)
settings = building.settled(settings)
model = building.build_model(settings, train)
model.compile(building.build_optimizer(settings, steps))
feed = Feed(train.images, train.labels, 256, 0)
model.fit(feed, steps_per_epoch=20, shuffle=False, verbose=0)
feed.set_epoch(1)
start, cpu = time.perf_counter(), time.process_time()
model.fit(feed, steps_per_epoch=steps, shuffle=False, verbose=0)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
report = {"images a second": round(256 * steps / seconds)}
report |= {"CPU ms a step": round(1000 * cpu / steps, 2), "MB, training": peak()}
test_feed = Feed(test.images, test.labels, 256, 0, shuffle=False)
model.evaluate(test_feed, verbose=0)
if path != "-":
    model.fit_prior((train.images, train.labels))
    checkpoints.save_model(model, path)
print(report | {"MB, with the prior": peak()})
"""
EVALUATE = """
import sys
from keras_ae import checkpoints, data, evaluation
from keras_ae.classifier import evaluation_classifier
classifier = evaluation_classifier(*data.load_splits("mnist"))  # the released one
train, test = data.load_splits("mnist_million")
model = checkpoints.load_model(sys.argv[1])
figures = evaluation.evaluate(model, train, test, samples=1000, limit=2000, classifier=classifier)
print({"seconds": round(figures["seconds"]), "MB": peak()})
"""


def make_dataset(data_dir):
    """Make a dataset of 17 copies of MNIST's training records, and of MNIST's test records."""
    mnist = data.prepare("mnist", data_dir).path
    folder = mnist.parents[1] / "mnist_million" / mnist.name
    folder.mkdir(parents=True)
    info = json.loads((mnist / "dataset_info.json").read_text())
    info["name"] = "mnist_million"
    for split in info["splits"]:
        shards = TIMES_REPEATED if split["name"] == "train" else 1
        (source,) = mnist.glob(f"*-{split['name']}.array_record-*")
        for i in range(shards):
            name = f"mnist_million-{split['name']}.array_record-{i:05d}-of-{shards:05d}"
            shutil.copyfile(source, folder / name)
        split["shardLengths"] *= shards
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for name in ("features.json", "label.labels.txt"):
        if (mnist / name).exists():
            shutil.copyfile(mnist / name, folder / name)


def measured(what, script, *arguments, **environment):
    """Run a script in its own process, and print its output, which includes its highest memory."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK + script, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    print(f"{what:22} {done.stdout.strip()}", flush=True)


def main():
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        root = Path(scratch)
        make_dataset(root / "data")
        places = {"KAE_DATA_DIR": str(root / "data"), "KAE_CACHE": str(root / "cache")}
        memory, disk = ({**places, "KAE_MEMORY": gib} for gib in ("64", "0.25"))
        measured("decode into the cache", LOAD, **disk)
        measured("start from the cache", LOAD, **disk)
        for turn in range(3):
            measured("images in memory", FIT, STEPS, "-", **memory)
            measured("images on disk", FIT, STEPS, root / "x.keras" if turn == 2 else "-", **disk)
        measured("evaluate, from disk", EVALUATE, root / "x.keras", **disk)


if __name__ == "__main__":
    main()
