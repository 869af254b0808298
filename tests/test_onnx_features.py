"""The features of an ONNX file that is made here: what it is fed and what comes back."""

import os
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from keras_ae.errors import UserError
from keras_ae.evaluation import OnnxFeatures, features


def write(path, shape, kind=TensorProto.FLOAT, metadata=None, batch="N"):
    """An ONNX file that gives its input back as a row: the features are what it was fed."""
    inputs = [helper.make_tensor_value_info("pixels", kind, [batch, *shape])]
    outputs = [
        helper.make_tensor_value_info("map", TensorProto.FLOAT, [batch, *shape]),
        helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [batch, None]),
    ]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["map"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["map"], ["pooled"], axis=1),
    ]
    graph = helper.make_graph(nodes, "features", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata:
        helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)


def test_floats_of_channels_first_are_in_0_1(images, tmp_path):
    network = OnnxFeatures(write(tmp_path / "f.onnx", [3, "H", "W"]), (4, 6, 3))
    expected = np.moveaxis(images / 255, -1, 1).reshape(5, -1)
    np.testing.assert_allclose(network(images), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"floats in \[0, 1\]"):
        network(images.astype("float32"))
    said = network.describe()
    assert "4x6, 3 channels, channels first, float32 from 0 to 1" in said and "no range" in said


def test_the_range_and_the_order_that_the_file_states(images, tmp_path):
    stated = {"Image.NominalPixelRange": "Normalized_1_1", "Image.BitmapPixelFormat": "Bgr8"}
    network = OnnxFeatures(write(tmp_path / "f.onnx", [4, 6, 3], metadata=stated), (4, 6, 3))
    expected = (images[..., ::-1] / 127.5 - 1).reshape(5, -1)
    np.testing.assert_allclose(network(images), expected, atol=1e-6)
    assert "BGR, channels last, float32 from -1 to 1 (as the file says)" in network.describe()


def test_bytes_grey_to_colour_a_fixed_batch_and_another_size(tmp_path):
    grey = np.full((5, 4, 6, 1), 51, np.uint8)
    path = write(tmp_path / "f.onnx", [3, 8, 8], TensorProto.UINT8, batch=2)
    features = OnnxFeatures(path, (4, 6, 1))(grey)
    assert features.shape == (5, 3 * 8 * 8) and (features == 51).all()


def network(path, shape, nodes, *constants, rank=2):
    """An ONNX file of some nodes from `pixels` to `features`."""
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", *shape])]
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N"] * rank)]
    graph = helper.make_graph(nodes, "features", inputs, outputs, initializer=list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_a_network_that_does_not_run_is_found_at_once(tmp_path):
    node, number = helper.make_node, helper.make_tensor
    flat = node("Flatten", ["pixels"], ["flat"], axis=1)
    three = number("three", TensorProto.FLOAT, [3], [1, 2, 3])
    path = network(
        tmp_path / "sum.onnx",
        [3, 4, 6],
        [flat, node("Add", ["flat", "three"], ["features"])],
        three,
    )
    with pytest.raises(UserError, match="no ONNX file that can be run"):
        OnnxFeatures(path, (4, 6, 3))

    undefined = [flat, node("Neg", ["flat"], ["minus"]), node("Log", ["minus"], ["features"])]
    with pytest.raises(UserError, match="no finite numbers"):
        OnnxFeatures(network(tmp_path / "nan.onnx", [3, 4, 6], undefined), (4, 6, 3))

    one_row = [flat, node("ReduceSum", ["flat", "axis"], ["features"], keepdims=1)]
    axis = number("axis", TensorProto.INT64, [1], [0])
    path = network(tmp_path / "row.onnx", [3, 4, 6], one_row, axis)
    assert OnnxFeatures(path, (4, 6, 3)) is not None  # one image is one row
    with pytest.raises(UserError, match=r"output of \(1, 72\) for 5 images"):
        OnnxFeatures(path, (4, 6, 3))(np.zeros((5, 4, 6, 3), np.uint8))


def test_a_network_that_does_not_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "TRIED", 1)
    node, number, value = helper.make_node, helper.make_tensor, helper.make_tensor_value_info
    inside = [("i", TensorProto.INT64), ("go", TensorProto.BOOL), ("v", TensorProto.FLOAT)]
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Add", ["v", "v"], ["sum"])],
        "body",
        [value(name, kind, None if name == "v" else []) for name, kind in inside],
        [value("on", TensorProto.BOOL, []), value("sum", TensorProto.FLOAT, None)],
    )
    path = network(
        tmp_path / "loop.onnx",
        [3, 4, 6],
        [
            node("Flatten", ["pixels"], ["flat"], axis=1),
            node("Loop", ["times", "true", "flat"], ["features"], body=body),
        ],
        number("times", TensorProto.INT64, [], [2**62]),
        number("true", TensorProto.BOOL, [], [True]),
    )
    with pytest.raises(UserError, match="more than 1 seconds"):
        OnnxFeatures(path, (4, 6, 3))


def test_an_operator_that_does_not_end_is_stopped(tmp_path, monkeypatch):
    """The largest value of each window of 1000 x 1000 pixels: a long time in one operator."""
    monkeypatch.setattr(features, "TRIED", 2)
    node = helper.make_node
    nodes = [
        node("GlobalMaxPool", ["pixels"], ["one"]),
        node("Expand", ["one", "shape"], ["wide"]),
        node("MaxPool", ["wide"], ["windows"], kernel_shape=[1000, 1000]),
        node("GlobalMaxPool", ["windows"], ["most"]),
        node("Flatten", ["most"], ["features"], axis=1),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [1, 3, 2000, 2000])
    start = time.monotonic()
    with pytest.raises(UserError, match="more than 2 seconds"):
        OnnxFeatures(network(tmp_path / "slow.onnx", [3, 4, 6], nodes, shape), (4, 6, 3))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("batch, sides", [("N", [60_000, 60_000]), ("N", [0, 8]), (0, [8, 8])])
def test_images_of_no_size_or_of_too_much(batch, sides, tmp_path, monkeypatch):
    monkeypatch.setenv("KAE_MEMORY", "1")
    with pytest.raises(UserError, match="KAE_MEMORY|without pixels"):
        OnnxFeatures(write(tmp_path / "f.onnx", [3, *sides], batch=batch), (4, 6, 3))


def test_features_too_many_to_compare(tmp_path, monkeypatch):
    monkeypatch.setenv("KAE_MEMORY", "1")
    path = write(tmp_path / "wide.onnx", (3, 50, 50))
    with pytest.raises(UserError, match="a comparison of 7,500 features would be about"):
        OnnxFeatures(path, (50, 50, 3))


def test_what_is_no_network_of_features(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        OnnxFeatures(tmp_path / "none.onnx", (4, 6, 3))
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(OSError, match="no regular file"):
        OnnxFeatures(tmp_path / "pipe.onnx", (4, 6, 3))
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(UserError, match="no ONNX file"):
        OnnxFeatures(tmp_path / "text.onnx", (4, 6, 3))
    with pytest.raises(UserError, match="5 channels"):
        OnnxFeatures(write(tmp_path / "five.onnx", [5, 8, 8]), (4, 6, 3))
    stated = {"Image.NominalPixelRange": "Normalized_7"}
    with pytest.raises(UserError, match="normalized_7"):
        OnnxFeatures(write(tmp_path / "odd.onnx", [3, 8, 8], metadata=stated), (4, 6, 3))
