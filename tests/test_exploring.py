"""The page of `kae explore`: what Python puts into it, and its layers against Keras' own."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from kae.main import cli
from keras import layers
from keras.layers import BatchNormalization, Conv2D, Conv2DTranspose, Dense
from PIL import Image

import keras_ae
from keras_ae import AE, CVAE, VAE, ClassMixture, exploring, graphs, latents
from keras_ae.data import ImageData
from keras_ae.errors import UserError
from keras_ae.evaluation import kl_per_latent
from keras_ae.priors import StandardNormal
from keras_ae.resampling import Down, Up
from keras_ae.settings import released

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
    "down-each": lambda: through(Down(4)),
    "down-two": lambda: through(Down(8)),
    "up-each": lambda: through(Up(4)),
    "up-two": lambda: through(Up(2)),
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


def shaken(network, kernels=True):
    """The network with weights that are no zeros and ones, such as those of a normalisation."""
    rng = np.random.default_rng(0)

    def new(variable, value):
        if "variance" in variable.path or "gamma" in variable.path:
            return rng.uniform(0.5, 2.0, value.shape)
        if "kernel" in variable.path and not kernels:
            return value
        return rng.normal(0, 0.5 if kernels else 0.1, value.shape)

    network.set_weights([new(v, w) for v, w in zip(network.weights, network.get_weights())])
    return network


def node(test, **environment):
    """Run a file of explore/tests in Node.js. Returns how many of its tests passed, and fails if one did not."""
    if NODE is None:
        pytest.skip("no node")
    done = subprocess.run(
        [NODE, "--test", "--test-reporter=tap", str(ROOT / "explore" / "tests" / test)],
        env={"PATH": "", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.search(r"^# pass (\d+)", done.stdout, re.MULTILINE)[1])


def test_each_layer_computes_what_keras_does(tmp_path):
    rng = np.random.default_rng(1)
    cases = []
    for name, build in NETWORKS.items():
        network = shaken(build())
        inputs = {t.name: rng.normal(0, 1, t.shape[1:]).astype("float32") for t in network.inputs}
        batches = [inputs[t.name][None] for t in network.inputs]
        outputs = network(batches if len(batches) > 1 else batches[0], training=False)
        outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
        outputs = {k: keras.ops.convert_to_numpy(v) for k, v in outputs.items()}
        cases.append(
            {
                "name": name,
                "graph": exploring.packed_graph(network),
                "inputs": {k: v.ravel().tolist() for k, v in inputs.items()},
                "outputs": {k: v.ravel().tolist() for k, v in outputs.items()},
            }
        )
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    assert node("layers.test.mjs", CASES=str(tmp_path / "cases.json")) == len(cases)


def kinds(network):
    return [operation["op"] for operation in graphs.describe(network)["operations"]]


def test_batch_norm_is_folded_where_it_can_be():
    assert kinds(shaken(NETWORKS["dense-no-bias-norm"]())) == ["dense"]
    assert kinds(shaken(NETWORKS["dense-reshape-norm"]())) == ["dense", "reshape"]
    assert kinds(shaken(NETWORKS["norm-first"]())) == ["affine", "conv"]
    assert "affine" in kinds(twice())  # whose kernel is used again, without the normalisation
    for name, build in BACKBONE_MODELS.items():
        model = build()
        found = kinds(model.encoder) + kinds(model.decoder)
        scaled = [layer for layer in model.encoder.layers if isinstance(layer, layers.Rescaling)]
        assert found.count("affine") == len(scaled), name


class Doubled(layers.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


def swish(x):
    return x


REFUSED = {
    "attention": (layers.Reshape((42, 4)), layers.Attention(name="looking")),
    "DepthwiseConv2D": (layers.DepthwiseConv2D(3, name="looking"),),
    "Doubled": (Doubled(3, name="looking"),),
    "channels_first": (layers.Conv2D(3, 1, data_format="channels_first", name="looking"),),
    "groups": (layers.Conv2D(4, 1, groups=2, name="looking"),),
    "dilated": (layers.Conv2D(4, 2, dilation_rate=2, name="looking"),),
    "output_padding": (layers.Conv2DTranspose(4, 3, strides=2, output_padding=1, name="looking"),),
    "last axis": (layers.BatchNormalization(axis=1, name="looking"),),
    "activation is mish": (layers.Dense(3, activation="mish", name="looking"),),
    "activation is swish": (layers.Activation(swish, name="looking"),),
    "bilinear": (layers.UpSampling2D(2, interpolation="bilinear", name="looking"),),
    "unevenly": (layers.AveragePooling2D(2, padding="same", name="looking"),),
    "threshold": (layers.ReLU(threshold=0.5, name="looking"),),
    "LSTM": (layers.Reshape((42, 4)), layers.LSTM(3, name="looking")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_layer_that_the_page_cannot_run_is_named(what):
    try:
        if what == "attention":
            x = image = keras.Input(MAP, name="image")
            first, last = REFUSED[what]
            x = first(x)
            network = keras.Model(image, last([x, x]), name="network")
        else:
            network = through(*REFUSED[what])
    except (ValueError, NotImplementedError) as error:  # a backend that cannot either
        pytest.skip(str(error))
    with pytest.raises(graphs.Unsupported) as caught:
        graphs.describe(network)
    message = str(caught.value)
    assert "\n" not in message and "the layer looking of the network" in message
    assert what.lower() in message.lower()


def test_an_operation_that_is_no_layer_and_a_model_that_is_no_graph_are_named():
    image = keras.Input((4,), name="image")
    with pytest.raises(graphs.Unsupported, match="a Sin"):
        graphs.describe(keras.Model(image, keras.ops.sin(image)))

    class Plain(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(graphs.Unsupported, match="plain is no Functional"):
        graphs.describe(Plain(name="plain"))
    with pytest.raises(graphs.Unsupported, match="no fixed shape"):
        graphs.describe(through(layers.Conv2D(2, 3), shape=(None, None, 1)))


# Arrays


def unpack(packed):
    content = zlib.decompress(base64.b64decode(packed["data"]), -15)
    if "step" not in packed:
        return np.frombuffer(content, "<f4").reshape(packed["shape"])
    low, high = np.frombuffer(content, np.uint8).reshape(2, -1)
    counts = np.stack([low, high], 1).copy().view("<i2")[:, 0]
    return (counts * packed["step"]).reshape(packed["shape"])


def test_many_numbers_are_rounded_to_steps_and_few_are_kept():
    rng = np.random.default_rng(0)
    for scale in (1e-6, 0.1, 1e4):
        array = rng.normal(0, scale, (70, 80)).astype("float32")
        packed = exploring.pack(array, 512)
        assert np.abs(unpack(packed) - array).max() <= packed["step"] / 2 <= scale / 512
        assert len(packed["data"]) < 0.6 * array.nbytes * 4 / 3
        for kept in (exploring.pack(array), exploring.pack(array[:9], 512)):
            np.testing.assert_array_equal(unpack(kept), array[: len(unpack(kept))])
    far = np.append(np.zeros(50_000), 1e9)  # what does not fit into 16 bits
    np.testing.assert_array_equal(unpack(exploring.pack(far, 512)), far.astype("float32"))
    np.testing.assert_array_equal(unpack(exploring.pack(np.ones(3000), 512)), np.ones(3000))


# The file


def part(page, kind):
    """What is in the element of data or program."""
    return re.search(rf'<script [^>]*id="{kind}">(.*?)</script>', page, re.DOTALL)[1]


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "<!--", "{{data}}"]


def split(images, labels=None, names=None):
    return ImageData("some", "1.0.0", "test", images, labels, names)


@pytest.fixture(scope="module")
def hostile(images_of, digits):
    names = (*HOSTILE, "\u2028 & \\")
    model = CVAE((9, 8, 3), 2, "mlp", hidden=(8,), num_classes=5, class_names=names)
    test = split(images_of((9, 8, 3), 60), digits[1][:60] % 5, names)
    return keras_ae.explore(model, test, title="</title><script>alert(3)</script>"), names


def test_names_and_titles_are_text(hostile):
    page, names = hostile
    assert json.loads(part(page, "data"))["names"] == list(names)
    tags = [tag for tag, _ in Tags(page).found]
    assert tags.count("script") == 2 and tags.count("title") == 1
    assert not {"img", "iframe", "a", "form", "object"} & set(tags)
    assert "<title>&lt;/title&gt;&lt;script&gt;" in page


def test_it_is_one_file_whose_policy_allows_nothing_else(hostile):
    page, _ = hostile
    found = Tags(page).found
    policy = next(
        a["content"] for _, a in found if a.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and "connect-src" not in rules
    for kind, content in (
        ("script", re.search(r'<script id="program">(.*?)</script>', page, re.DOTALL)[1]),
        ("style", re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]),
    ):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    # The policy is before whatever it is to hold for, and no element asks for a file.
    assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<script")
    assert all(a.get("href", "data:,") == "data:," and "src" not in a for _, a in found)
    assert page.index('<meta charset="utf-8"') < 200


def test_modules_are_joined_or_refused(tmp_path):
    def bundled(**modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.js").write_text(text)
        return exploring.bundle(tmp_path)

    a = 'import { two } from "./b.js";\nexport async function one() {\n  return two;\n}\n'
    main = 'import {\n  one,\n  three,\n} from "./a.js";\none(three);\n'
    joined = bundled(main=main, a=a + "export class three {}\n", b="export const two = 2;\n")
    assert (
        joined.index("const two") < joined.index("async function one") < joined.index("one(three)")
    )
    assert "import" not in joined and "export" not in joined
    for reason, modules in {
        "three, which a.js does not export": {"a": a},
        "both declare one": {
            "a": a + "export class three {}\n",
            "b": "export const two = 2, one = 1;\n",
        },
        "imports itself": {"b": 'import { one } from "./a.js";\nexport const two = 2;\n'},
        "cannot be bundled": {"b": "export default 2;\nexport const two = 2;\n"},
    }.items():
        if reason == "both declare one":
            modules["b"] = "const one = 1;\nexport const two = 2;\n"
        with pytest.raises(ValueError, match=reason):
            bundled(
                **({"b": "export const two = 2;\n", "a": a + "export class three {}\n"} | modules)
            )


# Models


BACKBONE_MODELS = {
    "ae-conv": lambda: AE((28, 28, 1), 3, "conv", hidden=(4, 8, 16)),
    "vae-conv-odd": lambda: VAE((13, 18, 3), 5, "conv", hidden=(4, 6, 8, 16)),
    "vae-mlp-rgba": lambda: VAE((6, 9, 4), 1, "mlp", hidden=(8,)),
    "cvae-conv": lambda: CVAE((16, 16, 3), 2, "conv", hidden=(4, 16), num_classes=10),
    "cvae-mlp-one-class": lambda: CVAE((7, 5, 1), 4, "mlp", hidden=(8, 8), num_classes=1),
    "vae-no-labels": lambda: VAE((12, 12, 2), 20, "conv", hidden=(4, 16)),
    "ae-large": lambda: AE((48, 64, 3), 4, "conv", hidden=(4, 4, 8)),
}


def images_for(shape, n):
    rng = np.random.default_rng(0)
    height, width, channels = shape
    y, x = np.mgrid[:height, :width]
    centres = rng.uniform(0.2, 0.8, (n, 2, 1, 1, channels)) * [[[[height]]], [[[width]]]]
    far = (y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2
    return (255 * np.exp(-far / (0.05 * height * width))).astype("uint8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A folder of pages of models of every kind and of odd shapes, with weights that are not those of a start."""
    folder = tmp_path_factory.mktemp("pages")
    for name, build in BACKBONE_MODELS.items():
        model = build()
        for network in (model.encoder, model.decoder):
            shaken(network, kernels=False)
        labels = None if name == "vae-no-labels" else np.arange(50) % 10
        if name == "cvae-mlp-one-class":
            labels = np.zeros(50, "int64")
        names = None if labels is None else tuple("abcdefghij")
        test = split(images_for(model.image_shape, 50), labels, names)
        if name == "vae-conv-odd":
            model.fit_prior(test.images)
        (folder / f"{name}.html").write_text(keras_ae.explore(model, test), encoding="utf-8")
    return folder


def test_every_model_computes_what_keras_does(pages):
    assert node("page.test.mjs", PAGES=str(pages)) == len(BACKBONE_MODELS)


def test_the_data_of_each_kind_of_model(pages):
    data = {p.stem: json.loads(part(p.read_text("utf-8"), "data")) for p in pages.iterdir()}
    assert {name: d["kind"] for name, d in data.items()} == {
        name: name.partition("-")[0].upper() for name in BACKBONE_MODELS
    }
    assert data["ae-conv"]["kl"] is None and data["ae-conv"]["prior"] is None
    assert min(data["ae-conv"]["sigma"]) > 0
    assert data["vae-conv-odd"]["sigma"] == [1.0] * 5
    assert len(data["vae-conv-odd"]["prior"]["weights"]) == 1
    assert data["vae-mlp-rgba"]["prior"] is None
    assert data["vae-no-labels"]["labels"] is None and data["vae-no-labels"]["names"] is None
    assert data["ae-large"]["thumbnails"]["width"] == 32
    assert data["ae-large"]["thumbnails"]["height"] == 24
    assert data["cvae-conv"]["names"] == [str(i) for i in range(10)]
    for d in data.values():
        picture = Image.open(io.BytesIO(base64.b64decode(d["thumbnails"]["data"])))
        assert picture.width == d["thumbnails"]["columns"] * d["thumbnails"]["width"]


@pytest.mark.long
def test_the_released_models_fit_into_four_megabytes(digits):
    """And `describe`, `kae explore`'s first step, takes each of them."""
    model = keras_ae.load_model(released("cvae") / "model.keras")
    test = ImageData("mnist", "3.0.1", "test", *digits, tuple("0123456789"))
    page = keras_ae.explore(model, test)
    assert len(page.encode()) <= 4_000_000
    data = json.loads(part(page, "data"))
    assert len(data["labels"]) == 2_000 and data["carried"] == [v for v in data["carried"] if v > 0]
    # One seed is one page.
    assert keras_ae.explore(model, test) == page
    for name in ("vae", "ae"):
        exploring.describe(keras_ae.load_model(released(name) / "model.keras"))


def test_test_images_are_taken_at_random(digits):
    """Not the first, which may be of one class."""
    model = AE((28, 28, 1), 3, "mlp", hidden=(8,))
    order = np.argsort(digits[1], kind="stable")[:6000]
    data = json.loads(
        part(keras_ae.explore(model, split(digits[0][order], digits[1][order])), "data")
    )
    assert set(data["labels"]) == set(digits[1][order])


def test_without_test_images_there_is_no_page():
    with pytest.raises(UserError, match="some has no test images"):
        keras_ae.explore(AE((4, 4, 1), 2, "mlp"), split(np.zeros((0, 4, 4, 1), "uint8")))


def test_a_prior_of_ones_own_is_named(digits):
    class Mine(StandardNormal):
        pass

    model = VAE((28, 28, 1), 3, "mlp", hidden=(8,), prior=Mine(3))
    data = json.loads(part(keras_ae.explore(model, split(digits[0][:20])), "data"))
    assert data["prior"] == {"unknown": "Mine"}


# Paths, plane and priors in JavaScript


def test_the_space_is_that_of_the_library(tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.normal(0, [3, 1, 2, 1, 1], (40, 5)).astype("float32")
    plane = exploring._plane(codes)
    paths = []
    for arc in (True, False):
        for start, end in [
            *zip(codes[:4], codes[4:8]),
            (codes[0], -codes[0]),
            (codes[0], 2 * codes[0]),
        ]:
            found = latents.path(start, end, 7, arc)
            ends = {"start": start.tolist(), "end": end.tolist()}
            paths.append({**ends, "arc": arc, "path": found.tolist()})
    points, _ = latents.embed(codes)

    def arrays(prior):
        weights = np.exp(prior.logits - prior.logits.max(-1, keepdims=True))
        triangle = np.tril_indices(prior.latent_dim)
        return {
            "weights": (weights / weights.sum(-1, keepdims=True)).tolist(),
            "means": prior.means.ravel().tolist(),
            "cholesky": prior.cholesky[..., triangle[0], triangle[1]].ravel().tolist(),
        }

    def mixture(latent_dim):
        prior = ClassMixture(latent_dim, 2, 3)
        prior.logits = rng.normal(0, 1, prior.logits.shape)
        prior.means = rng.normal(0, 1, prior.means.shape).astype("float32")
        factors = np.tril(rng.normal(0, 0.5, prior.cholesky.shape))
        factors[..., range(latent_dim), range(latent_dim)] = rng.uniform(0.5, 1, prior.means.shape)
        prior.cholesky = factors.astype("float32")
        return prior

    flat = mixture(2)
    x, y = np.meshgrid((np.arange(160) + 0.5) / 20 - 4, 4 - (np.arange(160) + 0.5) / 20)
    grid = np.stack([x, y], -1).reshape(-1, 2)
    density = {
        **arrays(flat),
        "bounds": {"left": -4, "right": 4, "bottom": -4, "top": 4},
        "columns": 160,
        "rows": 160,
        "densities": [np.exp(flat.log_prob(grid, np.full(len(grid), y))).tolist() for y in (0, 1)],
    }
    solid = mixture(3)
    drawn = solid.draw(200_000, np.ones(200_000, "int64")).astype("float64")
    mean, log_variance = rng.normal(0, 1, (2, 5))
    cases = {
        "codes": codes.tolist(),
        "plane": plane,
        "points": points.tolist(),
        "paths": paths,
        "density": density,
        "draws": {
            **arrays(solid),
            "mean": drawn.mean(0).tolist(),
            "covariance": np.cov(drawn.T).tolist(),
        },
        "kl": {
            "mean": mean.tolist(),
            "logVariance": log_variance.tolist(),
            "kl": kl_per_latent(mean[None], log_variance[None]).tolist(),
        },
    }
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    assert node("space.test.mjs", CASES=str(tmp_path / "cases.json")) == 6


def test_an_address_is_a_state():
    assert node("state.test.mjs") > 20


# The command


@pytest.fixture
def kae(mnist_env, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli, list(map(str, arguments)), prog_name="kae")


@pytest.mark.long
def test_the_command_writes_a_page_and_replaces_none_unasked(kae, tmp_path):
    done = kae("explore", "vae")
    assert (done.exit_code, done.stdout) == (0, "samples/vae-explore.html\n"), done.output
    done = kae("explore", "ae", "--out", "mine.html", "--json")
    about = json.loads(done.stdout)
    assert about["dataset"] == "mnist" and about["out"] == "mine.html"
    assert about["bytes"] == (tmp_path / "mine.html").stat().st_size
    done = kae("explore", "ae", "--out", "mine.html")
    assert done.exit_code == 1 and "mine.html exists; --force replaces it." in done.stderr
    assert kae("explore", "ae", "--out", "mine.html", "--force").exit_code == 0
    assert kae("explore", "ae", "--out", "mine.png").exit_code == 2
    assert kae("report", "vae").exit_code == 0
    assert '<a href="./vae-explore.html">' in (tmp_path / "samples" / "vae.html").read_text()


def test_the_command_names_a_layer_that_the_page_cannot_run(kae, tmp_path):
    image = keras.Input((28, 28, 1), name="image")
    code = layers.Dense(3)(layers.Flatten()(layers.DepthwiseConv2D(3, name="deep")(image)))
    model = AE((28, 28, 1), 3, "mlp", encoder=keras.Model(image, code))
    keras_ae.checkpoints.save_model(model, tmp_path / "own.keras")
    done = kae("--import", "json", "explore", "own.keras", "--out", "page.html")
    assert done.exit_code == 1 and done.stdout == "" and not (tmp_path / "page.html").exists()
    line = done.stderr.strip().splitlines()[-1]
    assert (
        line.startswith("Error: The page cannot run the layer deep of the") and "Depthwise" in line
    )


@pytest.mark.skipif(not (ROOT / "explore" / "node_modules" / "eslint").is_dir(), reason="no npm ci")
def test_style():
    for program in (["prettier", "--check"], ["eslint"]):
        command = [str(ROOT / "explore" / "node_modules" / ".bin" / program[0]), *program[1:], "."]
        done = subprocess.run(command, cwd=ROOT / "explore", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
