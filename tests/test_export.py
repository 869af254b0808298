"""Exports, loaded back by their own runtimes and compared with the model on real images."""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_ae import AE, CVAE, VAE, Adam, ClassMixture, checkpoints, errors, export
from keras_ae.settings import EXPORT_PARTS, EXPORT_SUFFIXES

BACKEND = keras.backend.backend()
BENCHMARK = runpy.run_path(Path(__file__).parents[1] / "benchmarks" / "runtimes.py")
RUNTIMES, sampler_inputs = BENCHMARK["RUNTIMES"], BENCHMARK["sampler_inputs"]
PACKAGES = {
    "onnx": ("onnxruntime", *export.FORMATS["onnx"].packages),
    "torch": ("torch",),
    "openvino": ("openvino", "torch"),
    "saved_model": ("tensorflow",),
    "litert": ("tensorflow", "ai_edge_litert"),
}
# Every part in the formats that the backend of these tests writes itself. A format that it hands on to
# another is the same code in another process, whose own run tests the parts.
SLOW = ("saved_model", "litert")
CASES = [
    pytest.param(format, part, marks=[pytest.mark.long] if format in SLOW else [])
    for format in EXPORT_SUFFIXES
    for part in EXPORT_PARTS
    if part == "sampler" or export.FORMATS[format].backend == BACKEND
]


@pytest.fixture(scope="module")
def cvae(digits):
    images, labels = digits[0][:600], digits[1][:600]
    model = CVAE(latent_dim=8, hidden=(8, 8, 32))
    if BACKEND in ("torch", "jax", "tensorflow"):
        model.compile(Adam(2e-3))
        model.fit((images, labels), epochs=1, verbose=0)
    # Several Gaussians a class, as a whole run has: so few images would give one.
    codes = model.encode((images, labels))
    model.set_prior(ClassMixture.fit(codes, labels, 10, components=(3,)))
    assert model.prior.components == 3
    return model


def needs(*packages):
    for package in packages:
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed")


def inputs_and_truth(model, part, digits, n=5):
    """Inputs of a part by name, and what the model itself makes of them."""
    unit, labels = digits[0][:n] / np.float32(255), digits[1][:n]
    if part == "sampler":
        return sampler_inputs(n, labels, model.latent_dim, 7), model.sample(n, labels, seed=7)
    if part == "encoder":
        return {"image": unit, "label": labels}, model.encode((unit, labels))
    if part == "autoencoder":
        return {"image": unit, "label": labels}, model.reconstruct((unit, labels))
    latent = np.random.default_rng(0).standard_normal((n, model.latent_dim), dtype="float32")
    return {"latent": latent, "label": labels}, model.decode(latent, labels)


@pytest.mark.parametrize(("format", "part"), CASES)
def test_file_gives_what_the_model_gives(cvae, digits, tmp_path, format, part):
    needs(*PACKAGES[format])
    path = tmp_path / f"model{EXPORT_SUFFIXES[format]}"
    said = []
    export.export(cvae, path, format, part, report=said.append)
    writer = export.FORMATS[format].backend
    if writer != BACKEND:
        assert said == [f"{BACKEND} hands the writing of {format} to {writer}"]
    elif export.on_cpu(cvae):
        assert said == []
    else:
        assert said == [
            f"{format} is written by a process on the CPU, so that it runs without a GPU"
        ]
    for n in (1, 5):  # any batch size
        inputs, truth = inputs_and_truth(cvae, part, digits, n)
        np.testing.assert_allclose(RUNTIMES[format](path, inputs), truth, atol=1e-4)
    about = metadata(path, format)
    assert about["part"] == part and list(about["inputs"]) == list(inputs)
    assert "int64, 0 to 9" in about["inputs"]["label"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def metadata(path, format):
    """The metadata that a file carries, read as a program without keras-ae would."""
    if format == "onnx":
        import onnx

        (entry,) = onnx.load(path).metadata_props
        return json.loads(entry.value)
    if format == "torch":
        import torch

        extra = {"keras_ae.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["keras_ae.json"])
    if format == "openvino":
        import openvino

        return json.loads(openvino.Core().read_model(path).get_rt_info("keras_ae").astype(str))
    if format == "saved_model":
        return json.loads((path / "keras_ae.json").read_text())
    return json.loads(zipfile.ZipFile(path).read("keras_ae.json"))


@pytest.mark.parametrize(
    ("format", "part"), [case for case in CASES if case.values[1] in ("decoder", "sampler")]
)
def test_a_label_out_of_range_gives_no_image(cvae, digits, tmp_path, format, part):
    """NaN in the rows of such labels; a sampler may fail instead."""
    needs(*PACKAGES[format])
    path = tmp_path / f"model{EXPORT_SUFFIXES[format]}"
    export.export(cvae, path, format, part, report=lambda line: None)
    inputs, truth = inputs_and_truth(cvae, part, digits, 4)
    for label in (-1, 10, 1000):
        inputs["label"] = digits[1][:4].copy()
        inputs["label"][[1, 3]] = label
        if part == "sampler" and label >= 10 and format != "openvino":
            with pytest.raises(Exception, match="ndex|indices"):
                RUNTIMES[format](path, inputs)
            continue
        images = RUNTIMES[format](path, inputs)
        assert np.isnan(images[[1, 3]]).all()
        np.testing.assert_allclose(images[[0, 2]], truth[[0, 2]], atol=1e-4)


@pytest.mark.parametrize("model", ["ae", "vae", "vae, not fitted", "cvae, not fitted"])
@pytest.mark.parametrize("part", EXPORT_PARTS)
def test_parts_of_other_models(digits, model, part):
    if model == "ae" and part == "sampler":
        pytest.skip("an ae has no sampler")
    built = {"a": AE, "v": VAE, "c": CVAE}[model[0]](backbone="mlp", hidden=(16,), latent_dim=3)
    unit, labels = digits[0][:4] / np.float32(255), digits[1][:4]
    conditional = [labels] if model[0] == "c" else []
    given = (unit, labels) if conditional else unit
    if model == "vae":
        built.fit_prior(digits[0][:100])
    drawn = sampler_inputs(4, [], 3, 7)
    latent = drawn["noise"]
    inputs, truth = {
        "encoder": ([unit], built.encode(given)),
        "autoencoder": ([unit], built.reconstruct(given)),
        "decoder": ([latent], built.decode(latent, *conditional)),
        "sampler": (
            [latent, drawn["uniform"]] if model == "vae" else [latent],
            built.sample(4, *conditional, seed=7) if model != "ae" else None,
        ),
    }[part]
    net = export.build_part(built, part)
    about = export.describe(built, part)
    assert [tensor.name for tensor in net.inputs] == list(about["inputs"])
    output = keras.ops.convert_to_numpy(net([*inputs, *conditional]))
    np.testing.assert_allclose(output, truth, atol=1e-5)


def test_no_images_of_the_trace_are_in_the_file(cvae, tmp_path):
    """Those of 8192 x 8192 pixels would be 800 MB."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt2"
    export.export(cvae, path, "torch")
    examples, _ = torch.export.load(path).example_inputs
    assert all(len(x) == 3 and x.untyped_storage().nbytes() <= 8 for x in examples)


def test_nothing_is_overwritten_without_force(cvae, tmp_path):
    path = tmp_path / "model.pt2"
    path.write_text("mine")
    with pytest.raises(export.ExportError, match="--force"):
        export.export(cvae, path, "torch")
    folder = tmp_path / "photographs"
    folder.mkdir()
    for force in (False, True):
        with pytest.raises(export.ExportError, match="no SavedModel"):
            export.export(cvae, folder, "saved_model", force=force)
    (tmp_path / "weights.bin").write_text("mine")
    with pytest.raises(export.ExportError, match="weights.bin exists"):
        export.export(cvae, tmp_path / "weights.xml", "openvino")
    assert path.read_text() == "mine" and not list(folder.iterdir())


@pytest.mark.parametrize("name", [".", "..", ""])
def test_an_export_has_a_name(name, cvae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("saved_model.pb").touch()
    for force in (False, True):
        with pytest.raises(export.ExportError, match="has no name: give that"):
            export.export(cvae, name, "saved_model", force=force)


def test_a_file_that_force_replaces_keeps_its_permissions(cvae, tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "model.xml"
    for file in (path, path.with_suffix(".bin")):
        file.write_text("old")
        file.chmod(0o600)
    export.export(cvae, path, "openvino", force=True)
    assert [file.stat().st_mode & 0o777 for file in tmp_path.iterdir()] == [0o600] * 2


def test_a_kill_between_two_files_leaves_no_old_graph_over_new_weights(cvae, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    path = tmp_path / "model.xml"
    path.write_text("old")
    path.with_suffix(".bin").write_text("old")

    def move(new, target, force):
        if target == path:
            raise KeyboardInterrupt
        return moved(new, target, force)

    moved = export.move
    monkeypatch.setattr(export, "move", move)
    with pytest.raises(KeyboardInterrupt):
        export.export(cvae, path, "openvino", force=True)
    assert not path.exists() and path.with_suffix(".bin").read_bytes() != b"old"


def test_a_folder_in_the_place_of_the_weights_costs_no_old_graph(cvae, tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "model.xml"
    path.write_text("old")
    path.with_suffix(".bin").mkdir()
    with pytest.raises(export.ExportError, match="model.bin is a folder"):
        export.export(cvae, path, "openvino", force=True)
    assert path.read_text() == "old"


@pytest.mark.parametrize("format", ["torch", "openvino", "saved_model"])
def test_what_another_command_wrote_meanwhile_stays(format, cvae, tmp_path, monkeypatch):
    path = tmp_path / f"model{export.EXPORT_SUFFIXES[format]}"
    move = export.move

    def moved(new, target, force):
        if format == "saved_model":
            path.mkdir()
            (path / "saved_model.pb").write_text("theirs")
        else:
            path.write_text("theirs")
        return move(new, target, force)

    def written(net, about, path):
        path.mkdir() if format == "saved_model" else path.write_text("ours")
        if format == "openvino":
            path.with_suffix(".bin").write_text("ours")

    monkeypatch.setattr(export, "move", moved)
    monkeypatch.setitem(export.WRITERS, format, written)
    monkeypatch.setattr(export, "hand_over", lambda model, path, *_: written(None, None, path))
    with pytest.raises(export.ExportError, match=r"model.* exists; --force replaces it"):
        export.export(cvae, path, format)
    found = path / "saved_model.pb" if format == "saved_model" else path
    assert found.read_text() == "theirs" and list(tmp_path.iterdir()) == [path]


def test_force_keeps_what_lies_in_a_saved_model_of_others(cvae, tmp_path):
    (tmp_path / "saved_model.pb").touch()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(export.ExportError, match="notes.txt"):
        export.export(cvae, tmp_path, "saved_model", force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["variables/notes.txt", "assets/photo.png"])
def test_force_keeps_what_lies_deeper_in_a_saved_model(name, cvae, tmp_path):
    (tmp_path / "saved_model.pb").touch()
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(export.ExportError, match=name):
        export.export(cvae, tmp_path, "saved_model", force=True)
    assert (tmp_path / name).read_text() == "mine"


def test_force_replaces_a_saved_model(tmp_path):
    target, new = tmp_path / "model", tmp_path / "t" / "new" / "model"
    for folder, content in ((target, "old"), (new, "new")):
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").write_text(content)
    assert export.move(new, target, force=True) == target
    assert (target / "saved_model.pb").read_text() == "new"


MODULE = """
import keras, keras_ae

@keras.saving.register_keras_serializable("mine")
class Mine(keras_ae.VAE):
    pass
"""


@pytest.mark.skipif(BACKEND != "torch", reason="another process, of float32, writes it")
def test_a_model_of_half_precision_is_written_in_float32(tmp_path):
    needs(*PACKAGES["onnx"])
    model = VAE(latent_dim=2, backbone="mlp", hidden=(4,), dtype="mixed_bfloat16")
    (written,) = export.export(model, tmp_path / "model.onnx")
    codes = np.ones((2, 2), "float32")
    ours = RUNTIMES["onnx"](written, {"latent": codes})
    np.testing.assert_allclose(ours, model.decode(codes), atol=1e-2)
    assert model.dtype_policy.name == "mixed_bfloat16"


def test_a_quantized_model_is_not_handed_on(tmp_path):
    model = AE(latent_dim=2, backbone="mlp", hidden=(4,))
    model.quantize("int8")
    format = "saved_model" if BACKEND != "tensorflow" else "torch"
    needs(*PACKAGES[format])
    path = tmp_path / f"model{EXPORT_SUFFIXES[format]}"
    with pytest.raises(export.ExportError, match="quantized model.*KERAS_BACKEND="):
        export.export(model, path, format)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("modules", [["model_of_mine"], "model_of_mine"], ids=["list", "name"])
def test_a_model_of_ones_own_is_handed_on_with_its_module(modules, tmp_path, monkeypatch):
    needs(*PACKAGES["saved_model"])
    (tmp_path / "model_of_mine.py").write_text(MODULE)
    (tmp_path / "sitecustomize.py").write_text("open('run', 'w')")  # of somebody, and not asked for
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    monkeypatch.delitem(sys.modules, "model_of_mine", raising=False)
    model = importlib.import_module("model_of_mine").Mine(backbone="mlp", hidden=(4,))
    (written,) = export.export(model, tmp_path / "m", "saved_model", modules=modules)
    codes = np.zeros((2, model.latent_dim), "float32")
    ours = RUNTIMES["saved_model"](written, {"latent": codes})
    np.testing.assert_allclose(ours, model.decode(codes), atol=1e-4)
    assert not (tmp_path / "run").exists()


def test_half_of_an_export_is_taken_back_where_there_are_no_links(cvae, tmp_path, monkeypatch):
    """Another command takes the second of two names between the moves."""
    path, move = tmp_path / "model.onnx", export.move

    def written(net, about, path):
        path.write_text("ours")
        path.with_name("model.onnx.data").write_text("ours")

    def moved(new, target, force):
        if target == path:
            path.write_text("theirs")
        return move(new, target, force)

    def no_links(*paths):
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(export, "move", moved)
    monkeypatch.setitem(export.WRITERS, "onnx", written)
    monkeypatch.setattr(export, "hand_over", lambda model, path, *_: written(None, None, path))
    with pytest.raises(export.ExportError, match="model.onnx exists"):
        export.export(cvae, path)
    assert path.read_text() == "theirs" and list(tmp_path.iterdir()) == [path]


def test_a_missing_package_is_named_with_what_installs_it(cvae, tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "installed", lambda name: False)
    with pytest.raises(
        errors.UserError, match="needs torch and onnx and onnxscript: pip install torch onnx"
    ):
        export.export(cvae, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_bad_arguments_are_one_line_and_exit_2(cvae, tmp_path):
    checkpoints.save_model(AE(backbone="mlp", hidden=(8,)), tmp_path / "ae.keras")
    for arguments in (
        ["ae.keras", "--format", "torch", "--out", "model.onnx"],
        ["ae.keras", "--format", "torch", "--part", "sampler"],
        ["ae.keras", "--format", "pdf"],
    ):
        done = kae("export", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("Error: ")
        assert "Traceback" not in done.stderr


@pytest.mark.long
def test_the_name_of_a_run_with_a_point_is_whole(tmp_path):
    (tmp_path / "kl_weight-0.02").mkdir()
    checkpoints.save_model(AE(backbone="mlp", hidden=(8,)), tmp_path / "kl_weight-0.02/model.keras")
    for where in ("kl_weight-0.02", "kl_weight-0.02/model.keras"):
        done = kae("export", where, "--format", "torch", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "exports").iterdir()}
    assert names == {"kl_weight-0.02-decoder.pt2", "model-decoder.pt2"}


def test_the_program_in_the_documentation_draws_the_picture_of_the_seed(cvae, tmp_path):
    needs(*PACKAGES["onnx"], "PIL")
    text = (Path(__file__).parents[1] / "docs" / "runtimes.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in program.splitlines() if line]) <= 15
    export.export(cvae, tmp_path / "sampler.onnx", "onnx", "sampler", report=lambda line: None)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    from PIL import Image

    drawn = np.asarray(Image.open(tmp_path / "fives.png")).astype(float)
    expected = np.hstack(cvae.sample(64, 5, seed=7)[:8, ..., 0]) * 255
    assert abs(drawn - expected).max() <= 1


def kae(*arguments, backend=BACKEND, cwd=None):
    """Run `kae` in a process of its own."""
    environment = os.environ | {"KERAS_BACKEND": backend}
    command = [sys.executable, "-m", "kae", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
