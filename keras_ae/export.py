"""Export a model to the formats of other runtimes: ONNX, torch, OpenVINO, SavedModel, LiteRT.

Each part of a model is written as one graph from named inputs to one named output, for any batch size:

part         inputs                        output
encoder      image [, label]               code, the mean of the posterior
decoder      latent [, label]              image
autoencoder  image [, label]               reconstruction, from the mean of the posterior
sampler      noise, uniform [, label]      image, with the fitted prior in the graph

image    (N, H, W, C) float32 in [0, 1], like reconstruction; divide uint8 pixels by 255
label    (N,) int64, 0 to K - 1, for a CVAE
latent   (N, D) float32, like code
noise    (N, D) float32, standard normal
uniform  (N,) float32 in [0, 1): chooses the component of the prior; only if a mixture was fitted

The file contains this description as JSON: see `describe`.
"""

import contextlib
import ctypes
import dataclasses
import errno
import io
import json
import logging
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import keras
from keras import ops

from keras_ae import __version__, checkpoints, telemetry
from keras_ae.data import cache
from keras_ae.errors import UserError, need
from keras_ae.files import UNFINISHED, keep_mode, name_anew, shortened, sync
from keras_ae.inference import check_memory, memory_of_one
from keras_ae.inputs import one_hot
from keras_ae.programs import command_of
from keras_ae.settings import EXPORT_PARTS, EXPORT_SUFFIXES

OLD = "replaced"  # name of the old folder while a new one takes its place
METADATA = "keras_ae"  # key of the metadata; as a file, it is named keras_ae.json
# The files and folders of a SavedModel that `export` wrote.
SAVED_MODEL = re.compile(
    rf"saved_model\.pb|fingerprint\.pb|{METADATA}\.json|assets|variables(/variables\.(index|data-[\w-]+))?"
)


class ExportError(UserError):
    """The model lacks the part, the export failed, or the path is taken."""


TRACED = 3  # images that a part is traced with; torch would treat a batch size of 0 or 1 as fixed


@dataclasses.dataclass(frozen=True)
class Format:
    """The backend that writes a format, and the packages that this needs."""

    backend: str
    packages: tuple[str, ...]


FORMATS = {
    "onnx": Format("torch", ("torch", "onnx", "onnxscript")),
    "torch": Format("torch", ("torch",)),
    "openvino": Format("torch", ("torch", "openvino")),
    "saved_model": Format("tensorflow", ("tensorflow",)),
    "litert": Format("tensorflow", ("tensorflow",)),
}


def export(model, path, format="onnx", part="decoder", force=False, report=print, modules=()):
    """Write a part of a model, in float32, for another runtime.

    If the running backend cannot write the format, another process with the right backend does it.

    Args:
        model: an AE, VAE or CVAE.
        path: the file to write (for "saved_model" the folder), with the suffix of the format.
            "openvino" also writes the weights, to a .bin file beside it.
        format: "onnx", "torch" (an ExportedProgram), "openvino", "saved_model" or "litert".
        part: "decoder", "encoder", "autoencoder" or "sampler".
        force: replace an existing file or folder.
        report: called with lines that say what happens.
        modules: names of the modules that register classes or losses of your own, or one name, for that other
            process.

    Returns:
        The files or the folder written, a list of `Path`.

    Raises:
        ValueError: the format or part is unknown, or the path has another suffix.
        UserError: a package is missing, or the network would take more memory than is allowed.
        ExportError: the path is taken, the model has no such part, or the writing failed.
    """
    path = Path(path)
    check(path, format, part, force)
    check_memory(TRACED * memory_of_one(model), f"{TRACED} images in this network")
    if part == "sampler" and not hasattr(model, "prior"):
        raise ExportError("An ae has no prior to sample from: export another part, or a vae.")
    if model.dtype_policy.name != "float32":
        # Of half precision, other runtimes lack some operations.
        model = checkpoints.float32_copy(model)
    writer = FORMATS[format]
    # Write beside the target and move when complete, so that a kill never leaves half a file there.
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    with temporary_folder(path) as temporary:
        made = temporary / "new" / path.name
        made.parent.mkdir()
        if keras.backend.backend() == writer.backend and on_cpu(model):
            try:
                with quiet():
                    WRITERS[format](build_part(model, part), describe(model, part), made)
            except (OSError, MemoryError, ExportError):
                raise
            except Exception as error:  # on a full disk, these packages raise all sorts of errors
                why = str(error).strip().partition("\n")[0] or type(error).__name__
                if shutil.disk_usage(made.parent).free < 1 << 20:
                    why = os.strerror(errno.ENOSPC)
                raise ExportError(f"{writer.backend} could not write {format}: {why}") from error
        else:
            here = keras.backend.backend()
            if here == writer.backend:
                report(
                    f"{format} is written by a process on the CPU, so that it runs without a GPU"
                )
            else:
                report(f"{here} hands the writing of {format} to {writer.backend}")
            hand_over(model, made, format, part, modules)
        sync(made.parent)
        check(path, format, part, force)  # again: another command may have written there meanwhile
        # The graph last, after its weights.
        files = sorted(made.parent.iterdir(), key=lambda new: new.name == path.name)
        for new in filter(Path.is_file, files):
            # A large graph has its weights in a file of another name.
            taken = path.parent / new.name
            if taken.is_dir():
                raise ExportError(f"{taken} is a folder, and the export has a file of that name.")
            keep_mode(taken, new)
        # A kill between the moves must not leave an old graph over new weights.
        if force and len(files) > 1:
            path.unlink(missing_ok=True)
        inodes = [new.stat().st_ino for new in files]
        written = []
        try:
            for new in files:
                written.append(move(new, path.parent / new.name, force))
            return written
        except OSError as error:
            for half, inode in zip(written if not force else (), inodes):
                if half.exists() and half.stat().st_ino == inode:  # nobody replaced it
                    half.unlink()
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            taken = error.filename2 or error.filename
            raise ExportError(f"{taken} exists; --force replaces it.") from error


@contextlib.contextmanager
def temporary_folder(path):
    """A context with a hidden folder beside a path, which is locked until the context ends."""
    folder = path.with_name(f"{_half(path)}-{secrets.token_hex(8)}")
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    try:
        cache.lock(handle)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _half(path):
    """How the name of the hidden folder of an export begins."""
    return UNFINISHED + shortened(path.name)


def check(path, format, part, force):
    """Check the arguments of `export` before the work starts.

    Raises:
        ValueError, UserError: as `export`.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {format!r}.")
    if path.name in ("", ".."):
        raise ExportError(f"{path} has no name: give that of a file or folder to be made.")
    if part not in EXPORT_PARTS:
        raise ValueError(f"part must be one of {', '.join(EXPORT_PARTS)}; got {part!r}.")
    suffix = EXPORT_SUFFIXES[format]
    if suffix and path.suffix != suffix:
        raise ValueError(f"A file of format {format} ends in {suffix}; got {path}.")
    need(f"Writing {format}", *FORMATS[format].packages)
    if suffix and path.is_dir():
        raise ExportError(f"{path} is a folder; give a file.")
    if not suffix and path.exists() and not (path / "saved_model.pb").is_file():
        raise ExportError(f"{path} is no SavedModel: it is left as it is; give another path.")
    held = [entry.relative_to(path).as_posix() for entry in path.rglob("*")] if not suffix else []
    if others := [name for name in held if not SAVED_MODEL.fullmatch(name)]:
        raise ExportError(
            f"{path} holds {min(others)}, which is no part of a SavedModel: give another path."
        )
    # Last: what is refused with --force as well is said at once.
    for taken in (path, path.with_suffix(".bin")) if format == "openvino" else (path,):
        if os.path.lexists(taken) and not force:
            raise ExportError(f"{taken} exists; --force replaces it.")


def build_part(model, part):
    """Make a Functional model of a part: named inputs, one output. See the docstring of this module."""
    classes = model.num_classes
    label = [keras.Input((), dtype="int64", name="label")] if classes else []
    if part in ("encoder", "autoencoder"):
        image = keras.Input(model.image_shape, name="image")
        outputs = model.forward((image, *label) if classes else image)
        output = outputs["latent" if part == "encoder" else "reconstruction"]
        return keras.Model([image, *label], output, name=part)
    name = "latent" if part == "decoder" else "noise"
    inputs = [latent := keras.Input((model.latent_dim,), name=name)]
    if part == "sampler":
        uniform = keras.Input((), name="uniform") if model.prior.uses_uniform else None
        inputs += [] if uniform is None else [uniform]
        try:
            latent = model.prior.graph(latent, uniform, *label)
        except NotImplementedError as error:
            raise ExportError(
                f"A {model.prior.describe()} prior has no graph to export: export the decoder."
            ) from error
    condition = [one_hot(label[0], classes)] if classes else []
    image = model.decoded(latent, condition)["reconstruction"]
    return keras.Model([*inputs, *label], image, name=part)


def describe(model, part):
    """The metadata of the file: a dict of plain values that tells a program how to use the part."""
    image = f"(N, {', '.join(map(str, model.image_shape))}) float32 in [0, 1]"
    code = f"(N, {model.latent_dim}) float32"
    inputs = {
        "encoder": {"image": image},
        "autoencoder": {"image": image},
        "decoder": {"latent": code},
        "sampler": {"noise": f"{code}, standard normal"},
    }[part]
    if part == "sampler" and model.prior.uses_uniform:
        inputs["uniform"] = "(N,) float32 in [0, 1), chooses a component of the prior"
    if model.num_classes:
        inputs["label"] = f"(N,) int64, 0 to {model.num_classes - 1}; of any other, NaN or an error"
    return {
        "producer": f"keras-ae {__version__}",
        "model": type(model).__name__,
        "part": part,
        "inputs": inputs,
        "outputs": {
            "encoder": {"code": code},
            "autoencoder": {"reconstruction": image},
            "decoder": {"image": image},
            "sampler": {"image": image},
        }[part],
        "class_names": list(getattr(model, "class_names", None) or ()),
    }


def on_cpu(model):
    """Whether a model's weights are in CPU memory: a graph exported from a GPU runs only on a GPU."""
    device = getattr(model.decoder.weights[0].value, "device", "cpu")
    return "cpu" in str(device).lower()


# The program that the process with another backend runs.
HAND_OVER = """
import importlib
from keras_ae import checkpoints, export
source, path, format, part, *modules = sys.argv[1:]
for module in modules:
    importlib.import_module(module)
export.export(checkpoints.load_model(source, trusted=True), path, format, part)
"""


def hand_over(model, path, format, part, modules=()):
    """Start a process with the backend of the format, on the CPU, that writes a part of a model."""
    backend = FORMATS[format].backend
    if model.quantization is not None:
        raise ExportError(
            f"A quantized model is handed to no other process: export it by KERAS_BACKEND={backend} on a CPU "
            "(CUDA_VISIBLE_DEVICES=), or before quantize()."
        )
    source = path.parent.parent / "model.keras"
    checkpoints.save_model(model, source)
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONWARNINGS": "ignore",
    }
    modules = [modules] if isinstance(modules, str) else modules
    command = command_of(HAND_OVER, source, path, format, part, *modules)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ExportError(f"{backend} could not write {format}: {last}")


def move(new, target, force):
    """Move a complete file or folder to `target`; returns `target`.

    With `force` it replaces what is there; without, OSError if another command wrote there just now.
    """
    if not force and new.is_file():
        name_anew(new, target)
        return target
    if force and new.is_dir() and target.exists():
        if exchange(new, target):  # the old folder is removed with the temporary folder
            return target
        # This takes two steps. If the process ends between them, `sweep` puts the old folder back.
        old = new.with_name(OLD)
        try:
            os.replace(target, old)
            os.replace(new, target)
        except BaseException:  # Ctrl-C as well
            if old.exists() and not target.exists():
                os.replace(old, target)
            raise
        return target
    os.replace(new, target)
    return target


def exchange(a, b):
    """Exchange two folders in one step. Returns False if the system cannot do this."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not on Linux
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(a), here, os.fsencode(b), swap) == 0


def sweep(path):
    """Clean up after a killed export to a path: remove its files, and put back an old folder it had moved."""
    name = re.compile(rf"{re.escape(_half(path))}-[0-9a-f]{{16}}")
    for left in path.parent.iterdir():
        if not name.fullmatch(left.name) or not left.is_dir():
            continue
        try:
            # One that is empty may belong to a process that has yet to lock it.
            young = left.stat().st_mtime > time.time() - 60
            if not (left / "new").is_dir() and (young or any(left.iterdir())):
                continue
            handle = os.open(left, os.O_RDONLY)
        except FileNotFoundError:  # the process has ended
            continue
        try:
            if cache.lock(handle):
                if (left / "new" / OLD / "saved_model.pb").is_file() and not path.exists():
                    os.replace(left / "new" / OLD, path)
                shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(handle)


@contextlib.contextmanager
def quiet():
    """A context that hides the warnings of the exporters about their own internals, and what they print."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def output_name(about):
    """The name of a part's output, from the dict that `describe` returned."""
    return next(iter(about["outputs"]))


def write_torch(net, about, path):
    """Write an ExportedProgram; to use it: `torch.export.load(path).module()(*inputs)`."""
    import torch

    program, file = exported_program(net), io.BytesIO()
    torch.export.save(program, file, extra_files={f"{METADATA}.json": json.dumps(about)})
    path.write_bytes(file.getvalue())  # not by torch, which ends the process if the disk is full


def write_onnx(net, about, path):
    """Write an ONNX file with torch's exporter."""
    import torch

    program = torch.onnx.export(
        exported_program(net),
        dynamo=True,
        verbose=False,
        input_names=list(about["inputs"]),
        output_names=[output_name(about)],
    )
    program.model.metadata_props[METADATA] = json.dumps(about)
    program.save(str(path))


def write_openvino(net, about, path):
    """Write an OpenVINO IR: the graph to `path`, and the weights to a .bin file beside it."""
    telemetry.off()
    import openvino

    program = openvino.convert_model(exported_program(net))
    for port, name in zip(program.inputs, about["inputs"]):
        port.get_tensor().set_names({name})
    program.outputs[0].get_tensor().set_names({output_name(about)})
    program.set_rt_info(json.dumps(about), METADATA)
    openvino.save_model(program, path, compress_to_fp16=False)


def exported_program(net):
    """A Functional model as a `torch.export.ExportedProgram` with a dynamic batch size."""
    import torch

    class Part(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, *inputs):
            return self.net(list(inputs))

    batch = torch.export.Dim("batch", min=1, max=2**20)
    example = tuple(ops.ones((TRACED, *t.shape[1:]), dtype=t.dtype) for t in net.inputs)
    shapes = tuple({0: batch} for _ in example)
    with torch.no_grad():
        program = torch.export.export(Part().eval(), example, dynamic_shapes=(shapes,))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it contains paths of this machine
    # A file has their shapes, and not their numbers, which are as many as those of the images.
    one = tuple(torch.zeros((), dtype=t.dtype, device=t.device).expand(t.shape) for t in example)
    program.example_inputs = one, {}
    return program


def write_saved_model(net, about, path):
    """Write a SavedModel folder; its signature `serving_default` has named inputs and outputs."""
    import tensorflow as tf

    signature = [tf.TensorSpec(t.shape, t.dtype, t.name) for t in net.inputs]
    archive = keras.export.ExportArchive()
    archive.track(net)
    archive.add_endpoint(
        "serving_default",
        lambda *inputs: {output_name(about): net(list(inputs), training=False)},
        input_signature=signature,
    )
    archive.write_out(path, verbose=False)
    (path / f"{METADATA}.json").write_text(json.dumps(about))


def write_litert(net, about, path):
    """Write a LiteRT (TensorFlow Lite) file, with the metadata in a zip at its end, as usual for LiteRT."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory(dir=path.parent.parent) as folder:
        write_saved_model(net, about, Path(folder) / "model")
        converter = tf.lite.TFLiteConverter.from_saved_model(str(Path(folder) / "model"))
        path.write_bytes(converter.convert())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(f"{METADATA}.json"), json.dumps(about))


WRITERS = {
    "onnx": write_onnx,
    "torch": write_torch,
    "openvino": write_openvino,
    "saved_model": write_saved_model,
    "litert": write_litert,
}
