"""A million images from disk: memory and throughput against the same images in memory.

    python benchmarks/streaming.py            # about ten minutes of one core, 1.3 GB of disk

Makes a TFDS dataset of 17 copies of MNIST's training images (1,020,000), and then, each in a process of
its own: decodes it into the cache, trains one epoch with the images in memory (mapped), trains one epoch
with the images on disk, and measures the model. The dense network is trained, for which a batch is soonest
needed again. Memory is the highest resident set size, mapped pages included.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from keras_ae import data

COPIES = 17
FIT = ["fit", "cvae", "--dataset", "mnist_million", "--backbone", "mlp", "--epochs", "1",
       "--batch-size", "256", "--json"]  # fmt: skip
EVALUATE = """
import sys
from keras_ae import checkpoints, data, evaluation
from keras_ae.classifier import evaluation_classifier
classifier = evaluation_classifier(*data.load_splits("mnist"))  # the released one
train, test = data.load_splits("mnist_million")
model = checkpoints.load_model(sys.argv[1])
figures = evaluation.evaluate(model, train, test, samples=2000, classifier=classifier)
print('{"fid": %.2f, "seconds": %.0f}' % (figures["fid"], figures["seconds"]))
"""


def make_dataset(data_dir):
    """17 copies of MNIST's training records, and MNIST's test records, as one dataset."""
    mnist = data.prepare("mnist", data_dir).path
    folder = mnist.parents[1] / "mnist_million" / mnist.name
    folder.mkdir(parents=True)
    info = json.loads((mnist / "dataset_info.json").read_text())
    info["name"] = "mnist_million"
    for split in info["splits"]:
        shards = COPIES if split["name"] == "train" else 1
        (source,) = mnist.glob(f"*-{split['name']}.array_record-*")
        for i in range(shards):
            name = f"mnist_million-{split['name']}.array_record-{i:05d}-of-{shards:05d}"
            shutil.copyfile(source, folder / name)
        split["shardLengths"] *= shards
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for name in ("features.json", "label.labels.txt"):
        if (mnist / name).exists():
            shutil.copyfile(mnist / name, folder / name)


def measured(what, arguments, **environment):
    """Run Python in a process of its own: its output, and the highest memory of it in MB."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{what} failed"
    report = json.loads(output) if output else {}
    kept = {k: report[k] for k in ("images_per_second", "seconds", "fid") if k in report}
    print(f"{what:32} {usage.ru_maxrss / 1024:6.0f} MB  {kept}", flush=True)


def main():
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        root = Path(scratch)
        make_dataset(root / "data")
        places = {"KAE_DATA_DIR": str(root / "data"), "KAE_CACHE": str(root / "cache")}
        memory = {**places, "KAE_MEMORY": "64"}
        disk = {**places, "KAE_MEMORY": "0.25"}
        load = "from keras_ae import data; data.load_splits('mnist_million')"
        measured("decode into the cache", ["-c", load], **disk)
        for turn in (1, 2):
            for name, places in (("memory", memory), ("disk", disk)):
                out = ["--out", str(root / f"{name}{turn}")]
                measured(f"fit, images in {name} ({turn})", ["-m", "kae", *FIT, *out], **places)
        measured(
            "evaluate, images on disk", ["-c", EVALUATE, str(root / "disk1/model.keras")], **disk
        )


if __name__ == "__main__":
    print(f"this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    main()
