"""Features to compare sets of images: patches of the images, or features of the user's own network."""

import contextlib
import io
import math
import subprocess

import numpy as np
from scipy.ndimage import convolve1d

from keras_ae.errors import NotFinite, UserError, need
from keras_ae.evaluation.arrays import chunks
from keras_ae.files import open_file
from keras_ae.inference import check_memory, images_at_a_time
from keras_ae.inputs import check_range
from keras_ae.pictures import to_float
from keras_ae.programs import command_of

SIDE = 7  # pixels of a patch's side
COARSEST = 14  # fewest pixels of the shorter side of the last level
PATCHES = 16  # patches per image and level
SMOOTH = np.array([1, 4, 6, 4, 1]) / 16
BATCH = 64  # images at a time in an ONNX file that takes any number
TRIED = 60  # seconds that an ONNX file may take for its first image
COPIES = 4  # of the images in memory while they are scaled and fed
SPANS = {  # Image.NominalPixelRange of ONNX: values of black and white
    "nominalrange_0_255": (0, 255),
    "normalized_0_1": (0, 1),
    "normalized_1_1": (-1, 1),
    "nominalrange_16_235": (16, 235),
}
# The program that runs an ONNX file for its first image.
TRIAL = """
import io
import numpy as np
import onnxruntime
path, pixels, features = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
try:
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {pixels: np.load(io.BytesIO(sys.stdin.buffer.read()))}
    found = np.asarray(session.run([features], feed)[0], "float32")
except Exception as error:
    sys.exit(str(error).partition("\\n")[0])
np.save(sys.stdout.buffer, found)
"""


def laplacian_pyramid(images):
    """Splits images into levels, from fine to coarse details; the last level is the coarsest image.

    The image is smoothed and halved. A level is the image minus the halved copy, enlarged again. The same
    is then done with the halved copy, as long as the shorter side keeps 14 pixels or more. To get the
    image back, start with the coarsest level, and repeatedly enlarge and add the next finer level.

    Args:
        images: (N, H, W, C), uint8 or float in [0, 1].

    Returns:
        A list of (N, h, w, C) float32.

    References:
        Burt & Adelson 1983, The Laplacian Pyramid as a Compact Image Code.
    """
    image, levels = to_float(images), []
    while math.ceil(min(image.shape[1:3]) / 2) >= COARSEST:
        small = _smoothed(image)[:, ::2, ::2]
        levels.append(image - enlarged(small, image.shape))
        image = small
    return [*levels, image]


def enlarged(small, shape):
    """Enlarges a level to twice its size, cut to a shape (N, H, W, C)."""
    large = np.zeros(shape, "float32")
    large[:, ::2, ::2] = small
    return 4 * _smoothed(large)


def _smoothed(images):
    for axis in (1, 2):
        images = convolve1d(images, SMOOTH, axis=axis, mode="mirror")
    return images


def laplacian_patches(images, patches=PATCHES, seed=0):
    """Cuts patches of 7 x 7 pixels at random places from each level of the images' pyramids.

    Args:
        images: (N, H, W, C), uint8 or float in [0, 1].
        patches: number of patches of each image and level.
        seed: seed of the places.

    Returns:
        For each level, finest first, (N, patches, 7 * 7 * C) float32.

    Raises:
        ValueError: the images are on another scale.

    References:
        Karras et al. 2018, Progressive Growing of GANs, arXiv:1710.10196, section 5.
    """
    check_range(images, strict=False)
    random = np.random.default_rng(seed)
    parts = []
    for rows in chunks(len(images), 4 * images[0].size):
        parts.append([_cut(x, patches, random) for x in laplacian_pyramid(images[rows])])
    return [np.concatenate(level) for level in zip(*parts)]


def _cut(level, patches, random):
    n, height, width, channels = level.shape
    side = min(SIDE, height, width)
    windows = np.lib.stride_tricks.sliding_window_view(level, (side, side), (1, 2))
    top = random.integers(0, height - side + 1, (n, patches))
    left = random.integers(0, width - side + 1, (n, patches))
    chosen = windows[np.arange(n)[:, None], top, left]
    return chosen.reshape(n, patches, channels * side * side)


def normalised(levels, reference, channels):
    """Normalises each channel of each level with the mean and standard deviation of the reference.

    Karras et al. normalise each set by itself, which hides differences of brightness and contrast.
    """
    result = []
    for level, other in zip(levels, reference, strict=True):
        values = other.reshape(*other.shape[:2], channels, -1).astype("float64")
        mean = values.mean((0, 1, 3))[:, None]
        deviation = np.maximum(values.std((0, 1, 3)), 1e-6)[:, None]
        scaled = (level.reshape(*level.shape[:2], channels, -1) - mean) / deviation
        result.append(scaled.reshape(level.shape).astype("float32"))
    return result


class OnnxFeatures:
    """Computes features of images with a network in an ONNX file, such as Inception or DINOv2.

    The file says the size, the channels and their axis, and the type of its one input. It also says the
    range of the values if it has the key Image.NominalPixelRange of the ONNX standard. Otherwise, whole
    numbers are 0 to 255 and floats are in [0, 1]; any other normalisation must be part of the network.
    The features are the first output with two axes, (N, F).

    Args:
        path: path of the file.
        image_shape: (H, W, C) of the images. They are scaled to the size that the file asks for.

    Raises:
        UserError: onnxruntime is not installed, the file cannot be read or run, its inputs or outputs do
            not fit, or its images would take too much memory.
        OSError: there is no such file.
    """

    def __init__(self, path, image_shape):
        need("An ONNX file", "onnxruntime")
        import onnxruntime

        self.path = path
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        optimized = options.graph_optimization_level
        # At first without optimizations: they compute constants, which no time limit would end.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = self._session(options)
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise UserError(f"{path} must take one array of images (N, C, H, W) or (N, H, W, C).")
        self.input, shape = inputs[0].name, inputs[0].shape
        last = shape[3] in (1, 3) and shape[1] not in (1, 3)
        self.axis = 3 if last else 1  # axis of the channels
        self.channels = shape[self.axis]
        if self.channels not in (1, 3):
            raise UserError(f"{path} takes images of {self.channels} channels, and not of 1 or 3.")
        sides = shape[1:3] if last else shape[2:4]
        self.size = tuple(
            side if isinstance(side, int) else own for side, own in zip(sides, image_shape)
        )
        if min(*self.size, shape[0] if isinstance(shape[0], int) else 1) < 1:
            raise UserError(f"{path} takes no images, or images without pixels.")
        one = math.prod(self.size) * self.channels * 4 * COPIES
        self.fixed = isinstance(shape[0], int)
        self.batch = shape[0] if self.fixed else min(BATCH, images_at_a_time(one))
        check_memory(self.batch * one, f"{self.batch:,} images as {path} takes them")
        kinds = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(float16)": "float16"}
        if inputs[0].type not in kinds:
            raise UserError(f"{path} takes {inputs[0].type}, and no floats or bytes.")
        self.dtype = kinds[inputs[0].type]
        known = self.session.get_modelmeta().custom_metadata_map
        known = {key.lower(): value.lower() for key, value in known.items()}
        stated = known.get("image.nominalpixelrange")
        if stated is not None and stated not in SPANS:
            raise UserError(f"{path} asks for values of the range {stated!r}, which is not known.")
        self.stated = stated is not None
        default = "nominalrange_0_255" if self.dtype == "uint8" else "normalized_0_1"
        self.span = SPANS[stated or default]
        self.flipped = known.get("image.bitmappixelformat") == "bgr8"
        flat = [o.name for o in self.session.get_outputs() if len(o.shape) == 2]
        if not flat:
            raise UserError(f"{path} has no output (N, F) to be features.")
        self.output = flat[0]
        # A network that does not run, or does not end, is found before the work. (Noise, as some divide by the
        # contrast.)
        noise = np.random.default_rng(0).integers(0, 256, (1, *image_shape), "uint8")
        self._compute(noise, self._tried)
        options.graph_optimization_level = optimized
        # Folding constants may take for ever in a branch that the trial did not take.
        self.session = self._session(options, disabled_optimizers=["ConstantFolding"])

    def _session(self, options, **more):
        import onnxruntime

        open_file(self.path).close()  # onnxruntime would wait for a pipe
        with self._explained():
            return onnxruntime.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"], **more
            )

    def describe(self):
        """Describes the network's input and output in one line."""
        height, width = self.size
        layout = "channels last" if self.axis == 3 else "channels first"
        whence = "as the file says" if self.stated else "as the file says no range"
        black, white = self.span
        return (
            f"{self.path}: {height}x{width}, {self.channels} channel{'s' * (self.channels > 1)}"
            f"{', BGR' if self.flipped else ''}, {layout}, {self.dtype} from {black} to {white} "
            f"({whence}); features: its output {self.output}"
        )

    def __call__(self, images):
        """Computes features (N, F) float32 of images (N, H, W, C), uint8 or float in [0, 1].

        Raises:
            UserError: the network does not run, or does not give a row of features for each image.
            NotFinite: some features are NaN or infinite.
            ValueError: the images are on another scale.
        """
        check_range(images, strict=False)
        return self._compute(images, self._run)

    def _run(self, pixels):
        return np.asarray(self.session.run([self.output], {self.input: pixels})[0], "float32")

    def _tried(self, pixels):
        """Does as `_run`, in a process that can be stopped: onnxruntime does not end amid an operator."""
        sent = io.BytesIO()
        np.save(sent, pixels)
        command = command_of(TRIAL, self.path, self.input, self.output)
        done = subprocess.run(command, input=sent.getvalue(), capture_output=True, timeout=TRIED)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise RuntimeError((said or f"exit code {done.returncode}").splitlines()[-1])
        return np.load(io.BytesIO(done.stdout))

    def _compute(self, images, run):
        """Computes features with a function that runs the network."""
        parts = []
        for start in range(0, len(images), self.batch):
            part = to_float(images[start : start + self.batch])
            n = len(part)
            if self.batch > n and self.fixed:
                part = np.concatenate([part, np.repeat(part[-1:], self.batch - n, axis=0)])
            pixels = self._prepared(part)
            with self._explained():
                features = run(pixels)
            if features.ndim != 2 or len(features) != len(part) or not features.size:
                raise UserError(
                    f"{self.path} gave an output of {features.shape} for {len(part)} images, and no features."
                )
            width = features.shape[1]
            # Comparing them takes some six matrices of float64.
            check_memory(6 * 8 * width**2, f"a comparison of {width:,} features")
            if not np.isfinite(features).all():
                raise NotFinite(f"{self.path} gave features that are no finite numbers.")
            parts.append(features[:n])
        return np.concatenate(parts)

    @contextlib.contextmanager
    def _explained(self):
        """Says in one line what onnxruntime, which has exceptions of its own, reports of the file."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            why = str(error).partition("\n")[0]
            if isinstance(error, subprocess.TimeoutExpired):
                why = f"its first image took more than {TRIED} seconds"
            raise UserError(f"{self.path} is no ONNX file that can be run: {why}") from error

    def _prepared(self, images):
        images = images[..., :3]
        if images.shape[-1] != self.channels:
            grey = images.mean(-1, keepdims=True)
            images = grey if self.channels == 1 else np.repeat(grey, 3, axis=-1)
        if images.shape[1:3] != self.size:
            images = np.stack([_resized(image, self.size) for image in images])
        if self.flipped:
            images = images[..., ::-1]
        black, white = self.span
        images = black + (white - black) * images
        if self.dtype == "uint8":
            images = np.rint(images)
        if self.axis == 1:
            images = np.moveaxis(images, -1, 1)
        return np.ascontiguousarray(images.astype(self.dtype))


def _resized(image, size):
    """Scales a float image (H, W, C) to a size (height, width), per channel, with Pillow's bicubic filter."""
    from PIL import Image

    channels = [
        np.asarray(Image.fromarray(channel).resize(size[::-1], Image.Resampling.BICUBIC))
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, axis=-1).clip(0, 1)
