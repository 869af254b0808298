"""Checks that one seed gives one picture on all backends: prints a table of (trained on) x (run on).

    python benchmarks/runtimes.py

Trains a small CVAE on torch, jax and tensorflow, and draws the same 40 digits from each checkpoint on
every Keras backend and with every exported sampler. The reference is the picture that the backend of
training draws. A cell is the largest difference of a pixel in [0, 1] from it; one grey level is 0.0039.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TRAINED_ON = ("torch", "jax", "tensorflow")
BACKENDS = ("torch", "jax", "tensorflow", "numpy", "openvino")
N, SEED = 40, 7
LABELS = np.arange(N) % 10

SAMPLE = f"""
import sys
import numpy as np
import keras_ae
model = keras_ae.load_model(sys.argv[1])
np.save(sys.argv[2], model.sample({N}, np.arange({N}) % 10, seed={SEED}))
"""


def run_onnx(path, inputs):
    """Runs ONNX Runtime. Like the next functions, it takes a file and a dict of arrays, and returns the
    only output."""
    import onnxruntime

    return onnxruntime.InferenceSession(path).run(None, inputs)[0]


def run_torch(path, inputs):
    """Runs torch without Keras: an ExportedProgram takes its inputs in the order of the metadata."""
    import torch

    with torch.no_grad():
        return torch.export.load(path).module()(*map(torch.tensor, inputs.values())).numpy()


def run_openvino(path, inputs):
    """Runs OpenVINO in float32; by default it computes in bfloat16 if the CPU can."""
    import openvino

    return openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)[0]


def run_saved_model(path, inputs):
    """Runs TensorFlow without Keras."""
    import tensorflow as tf

    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    (output,) = signature(**{k: tf.constant(v) for k, v in inputs.items()}).values()
    return output.numpy()


def run_litert(path, inputs):
    """Runs the LiteRT interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    (output,) = Interpreter(str(path)).get_signature_runner()(**inputs).values()
    return output


RUNTIMES = {
    "onnx": run_onnx,
    "torch": run_torch,
    "openvino": run_openvino,
    "saved_model": run_saved_model,
    "litert": run_litert,
}
PATHS = {
    "onnx": "sampler.onnx",
    "torch": "sampler.pt2",
    "openvino": "sampler.xml",
    "saved_model": "sampler",
    "litert": "sampler.tflite",
}


def sampler_inputs(n, labels, latent_dim, seed):
    """The random numbers of `model.sample(n, labels, seed)` as inputs of a CVAE's exported sampler."""
    rng = np.random.default_rng(seed)
    return {
        "noise": rng.standard_normal((n, latent_dim), dtype="float32"),
        "uniform": rng.random(n).astype("float32"),
        "label": np.asarray(labels, "int64"),
    }


def run(backend, *command):
    """Run Python with a backend; if it fails, print its errors and exit."""
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{backend} {command[:4]} failed:\n{done.stderr}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", default="3000", help="training images")
    parser.add_argument("--epochs", default="2")
    arguments = parser.parse_args()
    columns = [*BACKENDS, *(f"file: {name}" for name in RUNTIMES)]
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for trained in TRAINED_ON:
            checkpoint = f"{folder}/{trained}"
            size = ["--limit", arguments.limit, "--epochs", arguments.epochs]
            run(trained, "-m", "kae", "fit", "cvae", "--quiet", *size, "--out", checkpoint)
            pictures = {}
            for backend in BACKENDS:
                run(
                    backend,
                    "-c",
                    SAMPLE,
                    f"{checkpoint}/model.keras",
                    f"{checkpoint}/{backend}.npy",
                )
                pictures[backend] = np.load(f"{checkpoint}/{backend}.npy")
            inputs = sampler_inputs(N, LABELS, 16, SEED)
            for name, runtime in RUNTIMES.items():
                path = Path(checkpoint, "exported", PATHS[name])
                what = ["--format", name, "--part", "sampler", "--out", path]
                run(trained, "-m", "kae", "export", checkpoint, *map(str, what))
                pictures[f"file: {name}"] = runtime(path, inputs)
            assert not [c for c in columns if pictures[c].shape != (N, 28, 28, 1)]
            rows[trained] = [abs(pictures[c] - pictures[trained]).max() for c in columns]
            print(f"{trained}: done", file=sys.stderr)
    print("| run on | " + " | ".join(f"trained on {name}" for name in rows) + " |")
    print("|---" * (len(rows) + 1) + "|")
    for i, column in enumerate(columns):
        print(f"| {column} | " + " | ".join(f"{row[i]:.1e}" for row in rows.values()) + " |")


if __name__ == "__main__":
    main()
