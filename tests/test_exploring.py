"""The page of `kae explore`: what Python puts into it, and its layers against Keras' own."""

import json
import shutil
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from keras_ae import exploring, graphs
from keras_ae.layers import BatchNormalization, Conv2D, Conv2DTranspose, Dense

ROOT = Path(__file__).parent.parent
NODE = shutil.which("node")
MAP = (7, 6, 4)  # a small image


def through(*parts, shape=MAP):
    """A network of layers, one after the other."""
    x = image = keras.Input(shape, name="image")
    for part in parts:
        x = part(x)
    return keras.Model(image, x, name="network")


def residual():
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.BatchNormalization()(x)
    short = layers.Reshape((4, 2, 4, 2, 3))(image)
    short = layers.Permute((1, 3, 2, 4, 5))(short)
    short = layers.Reshape((4, 4, 12))(short)
    short = layers.Conv2D(6, 1)(short)
    x = layers.Activation("silu")(layers.Add()([x, short]))
    outputs = {
        "mean": layers.Dense(3)(layers.Flatten()(x)),
        "log_var": layers.Dense(3)(layers.GlobalAveragePooling2D()(x)),
    }
    return keras.Model(image, outputs, name="residual")


def merged(kind):
    image = keras.Input(MAP, name="image")
    parts = [layers.Conv2D(3, 1, name=f"part_{i}")(image) for i in range(2)]
    return keras.Model(image, kind()(parts), name="merged")


def nested():
    inner = through(Conv2D(5, 3, strides=2, padding="same"), layers.Flatten())
    image, label = keras.Input(MAP, name="image"), keras.Input((3,), name="label")
    x = layers.Concatenate()([inner(image), label])
    return keras.Model(
        [image, label], keras.Sequential([Dense(4), layers.ReLU()])(x), name="nested"
    )


def twice():
    shared = layers.Dense(4, name="shared")
    image = keras.Input((4,), name="image")
    x = layers.BatchNormalization()(shared(image))
    return keras.Model(image, shared(x), name="twice")


NETWORKS = {
    "dense": lambda: through(Dense(5, activation="silu"), shape=(9,)),
    "dense-on-maps": lambda: through(Dense(5)),
    "dense-no-bias-norm": lambda: through(
        Dense(8, use_bias=False), BatchNormalization(), shape=(9,)
    ),
    "dense-reshape-norm": lambda: through(
        Dense(12, use_bias=False), layers.Reshape((2, 2, 3)), BatchNormalization(), shape=(9,)
    ),
    "norm-first": lambda: through(
        layers.BatchNormalization(scale=False), layers.Conv2D(3, 3, padding="same")
    ),
    "norm-no-centre": lambda: through(layers.Conv2D(3, 3), layers.BatchNormalization(center=False)),
    **{
        f"conv-{k}-{s}-{padding}": lambda k=k, s=s, padding=padding: through(
            Conv2D(5, k, strides=s, padding=padding, activation="relu")
        )
        for k, s in [(1, 1), (2, 1), (3, 1), (3, 2), (4, 2), (5, 3), (2, 3)]
        for padding in ("same", "valid")
    },
    "conv-oblong": lambda: through(layers.Conv2D(2, (3, 2), strides=(1, 2), padding="same")),
    "conv-wider-than-image": lambda: through(layers.Conv2D(2, 9, padding="same")),
    **{
        f"deconv-{k}-{s}-{padding}": lambda k=k, s=s, padding=padding: through(
            Conv2DTranspose(5, k, strides=s, padding=padding)
        )
        for k, s in [(1, 1), (3, 1), (2, 2), (4, 2), (6, 3), (5, 1)]
        for padding in ("same", "valid")
    },
    "deconv-smaller-than-stride": lambda: through(
        layers.Conv2DTranspose(3, 2, strides=3, padding="valid")
    ),
    "deconv-3-2-valid": lambda: through(layers.Conv2DTranspose(3, 3, strides=2, padding="valid")),
    "deconv-oblong": lambda: through(
        layers.Conv2DTranspose(3, (2, 4), strides=(1, 2), padding="same")
    ),
    **{
        f"activation-{name}": lambda name=name: through(layers.Activation(name))
        for name in graphs.ACTIVATIONS
    },
    "activations": lambda: through(
        layers.LeakyReLU(0.3), layers.ReLU(max_value=0.5, negative_slope=0.1), layers.ELU(0.7)
    ),
    "softmax": lambda: through(layers.Softmax()),
    "flatten": lambda: through(layers.Flatten(), layers.Reshape((4, 42))),
    "permute": lambda: through(layers.Permute((3, 1, 2))),
    "repeat": lambda: through(layers.UpSampling2D((2, 3))),
    "pad": lambda: through(layers.ZeroPadding2D(((1, 2), (3, 0)))),
    "crop": lambda: through(layers.Cropping2D(((1, 2), (0, 3)))),
    **{
        f"{name}-{size}-{stride}-{padding}": lambda kind=kind, size=size, stride=stride, padding=padding: (
            through(kind(size, stride, padding), shape=(7, 7, 4) if size == 3 else (8, 6, 4))
        )
        for name, kind in (("max", layers.MaxPooling2D), ("average", layers.AveragePooling2D))
        for size, stride in ((2, 2), (3, 2))
        for padding in ("same", "valid")
    },
    "global-average": lambda: through(layers.GlobalAveragePooling2D()),
    "global-max": lambda: through(layers.GlobalMaxPooling2D(keepdims=True)),
    "identities": lambda: through(layers.Dropout(0.5), layers.GaussianNoise(1.0), layers.Flatten()),
    "rescaling": lambda: through(layers.Rescaling(2.0, offset=-1.0)),
    **{
        kind.__name__.lower(): lambda kind=kind: merged(kind)
        for kind in (*graphs.MERGES, layers.Concatenate)
    },
    "concatenate-rows": lambda: merged(lambda: layers.Concatenate(axis=1)),
    "residual": residual,
    "nested": nested,
    "twice": twice,
}


def shaken(network):
    """The network with weights that are no zeros and ones, such as those of a normalisation."""
    rng = np.random.default_rng(0)
    network.set_weights(
        [
            rng.uniform(0.5, 2.0, w.shape) if "variance" in v.path else rng.normal(0, 0.5, w.shape)
            for v, w in zip(network.weights, network.get_weights())
        ]
    )
    return network


@pytest.mark.skipif(NODE is None, reason="no node")
def test_each_layer_computes_what_keras_does(tmp_path):
    rng = np.random.default_rng(1)
    cases = []
    for name, build in NETWORKS.items():
        network = shaken(build())
        inputs = {t.name: rng.normal(0, 1, t.shape[1:]).astype("float32") for t in network.inputs}
        batches = [inputs[t.name][None] for t in network.inputs]
        outputs = network(batches if len(batches) > 1 else batches[0], training=False)
        outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
        cases.append(
            {
                "name": name,
                "graph": exploring.packed_graph(network),
                "inputs": {k: v.ravel().tolist() for k, v in inputs.items()},
                "outputs": {
                    k: keras.ops.convert_to_numpy(v).ravel().tolist() for k, v in outputs.items()
                },
            }
        )
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [NODE, "--test", str(ROOT / "explore" / "tests" / "layers.test.mjs")],
        env={"PATH": "", "CASES": str(tmp_path / "cases.json")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"# pass {len(cases)}" in done.stdout
