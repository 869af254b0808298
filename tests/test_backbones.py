"""Encoders and decoders of any shape, with and without a label."""

import keras
import numpy as np
import pytest

from keras_ae import backbones, inputs

SHAPES = [(28, 28, 1), (32, 32, 3), (20, 16, 1), (7, 5, 2), (1, 1, 1)]
each_backbone = pytest.mark.parametrize("backbone", backbones.BACKBONES)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@each_backbone
@shapes
@pytest.mark.parametrize("num_classes", [0, 4])
def test_shapes_and_range(backbone, shape, num_classes):
    common = {"backbone": backbone, "hidden": (4, 8, 16), "num_classes": num_classes}
    encoder = backbones.build_encoder(shape, 3, ("mean", "log_var"), **common)
    decoder = backbones.build_decoder(shape, 3, **common)
    label = [keras.ops.one_hot([0, 3], 4)] if num_classes else []
    codes = encoder([keras.ops.ones((2, *shape)), *label])
    assert {name: tuple(code.shape) for name, code in codes.items()} == {
        "mean": (2, 3),
        "log_var": (2, 3),
    }
    images = keras.ops.convert_to_numpy(decoder([codes["mean"] * 100, *label]))
    assert images.shape == (2, *shape)
    assert images.min() >= 0 and images.max() <= 1


@each_backbone
def test_inputs_are_named(backbone):
    encoder = backbones.build_encoder((8, 8, 1), 2, ("code",), backbone, (4, 8), num_classes=3)
    decoder = backbones.build_decoder((8, 8, 1), 2, backbone, (4, 8), num_classes=3)
    assert [tensor.name for tensor in encoder.inputs] == ["image", "label"]
    assert [tensor.name for tensor in decoder.inputs] == ["latent", "label"]


@each_backbone
def test_the_label_reaches_both_outputs(backbone):
    keras.utils.set_random_seed(0)
    encoder = backbones.build_encoder((8, 8, 1), 2, ("code",), backbone, (4, 8), num_classes=3)
    decoder = backbones.build_decoder((8, 8, 1), 2, backbone, (4, 8), num_classes=3)
    labels = np.eye(3, dtype="float32")
    codes = encoder([np.ones((3, 8, 8, 1), "float32"), labels])["code"]
    images = decoder([np.ones((3, 2), "float32"), labels])
    for output in map(keras.ops.convert_to_numpy, (codes, images)):
        assert np.abs(output[0] - output[1]).max() > 1e-4
        assert np.abs(output[1] - output[2]).max() > 1e-4


@each_backbone
def test_every_head_is_a_layer_of_its_own(backbone):
    encoder = backbones.build_encoder((8, 8, 1), 2, ("mean", "log_var"), backbone, (4, 8))
    mean, log_var = encoder.get_layer("mean"), encoder.get_layer("log_var")
    assert mean is not log_var and mean.kernel is not log_var.kernel
    outputs = encoder([np.ones((1, 8, 8, 1), "float32")])
    assert np.abs(np.subtract(*map(keras.ops.convert_to_numpy, outputs.values()))).max() > 1e-4


@each_backbone
def test_hidden_widths_are_what_was_asked(backbone):
    encoder = backbones.build_encoder((8, 8, 1), 2, ("code",), backbone, (6, 5, 7))
    if backbone == "mlp":
        widths = [encoder.get_layer(f"dense_{i}").units for i in range(3)]
    else:
        widths = [encoder.get_layer(f"conv_{i}").filters for i in range(2)]
        widths.append(encoder.get_layer("dense_0").units)
    assert widths == [6, 5, 7]


def test_the_centre_of_an_odd_image_stays_the_centre():
    """Cropping takes as much from either side: all pixels of the output depend on the code."""
    decoder = backbones.build_decoder((13, 9, 1), 2, "conv", (4, 4, 8))
    keras.utils.set_random_seed(1)
    codes = np.random.default_rng(0).normal(size=(64, 2)).astype("float32") * 5
    spread = keras.ops.convert_to_numpy(decoder([codes])).std(axis=0)
    assert spread.min() > 0


def test_one_hot():
    rows = keras.ops.convert_to_numpy(inputs.one_hot(np.array([2, 0], "uint8"), 3))
    assert rows.tolist() == [[0, 0, 1], [1, 0, 0]] and rows.dtype == np.float32
    rows = keras.ops.convert_to_numpy(inputs.one_hot(np.array([3, 1, -1]), 3))
    assert np.isnan(rows[[0, 2]]).all() and rows[1].tolist() == [0, 1, 0]


def test_the_output_stays_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        decoder = backbones.build_decoder((8, 8, 1), 2, "mlp", (4,))
    finally:
        keras.config.set_dtype_policy(before)
    assert keras.backend.standardize_dtype(decoder.output.dtype) == "float32"


@each_backbone
def test_blank_networks_have_weights_of_zeros_and_others_do_not(backbone):
    def largest(network, names=("kernel",)):
        arrays = [keras.ops.convert_to_numpy(w) for w in network.weights if w.name in names]
        return [abs(array).max() for array in arrays]

    arguments = {"backbone": backbone, "hidden": (4, 4, 8)}
    with backbones.zero_weights():
        encoder = backbones.build_encoder((8, 8, 1), 2, ("code",), **arguments)
        decoder = backbones.build_decoder((8, 8, 1), 2, **arguments)
    for network in (encoder, decoder):
        assert not any(largest(network, [w.name for w in network.weights]))
        assert len(keras.models.clone_model(network).weights) == len(network.weights)
    assert all(largest(backbones.build_decoder((8, 8, 1), 2, **arguments)))
