"""One page in which anyone plays with a model: the networks run in the browser, from one HTML file.

What the page is made of lies in the folder `explore/` of the repository, `keras_ae/page/` of an
installation: HTML, CSS and modules of JavaScript, which `assemble` puts into one file with the data of a
model. Nothing is loaded from elsewhere, and the page's Content-Security-Policy allows no request.
"""

import base64
import dataclasses
import hashlib
import html
import io
import json
import re
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from keras_ae import graphs
from keras_ae.errors import UserError
from keras_ae.evaluation import kl_per_latent
from keras_ae.latents import principal_directions
from keras_ae.pictures import to_float, to_uint8
from keras_ae.priors import ClassMixture, StandardNormal

CODES = 2_000  # test images on the map at most
THUMBNAIL = 32  # pixels of the longer side of a thumbnail at most
PLAIN = 1024  # values of a thumbnail up to which it is a PNG
TESTED = 12  # codes and images by which the page checks itself at most …
TESTED_VALUES = 100_000  # … and pixels of these in all, of one at least
# Steps of a packed kernel in its standard deviation. A pixel's error is to stay below 1/255, a latent's of
# 1/100 of its standard deviation is not seen: the encoder is carried in fewer.
FINE = {"encoder": 256, "decoder": 1024}
FINE_CODES = 512  # likewise of codes and priors
SMALL = 2_000  # numbers up to which an array is carried as float32
ENTRY = "main.js"


def explore(model, test, title=None, seed=0, progress=lambda line: None, networks=None):
    """The page of a model.

    Args:
        model: AE, VAE or CVAE.
        test: test images, `keras_ae.data.ImageData`; a CVAE needs their labels. At most 2,000 of them, taken
            at random, are on the page.
        title: of the page; by default the kind of the model and the name of the dataset.
        seed: of the choice of images.
        progress: called with one line when there is something to tell.
        networks: of `describe`, where it has been called already.

    Returns:
        The HTML, a string: one file that needs no other and no network.

    Raises:
        graphs.Unsupported: for a layer that the page cannot run.
        UserError: there are no test images.
    """
    networks = networks or describe(model)
    if not len(test.images):
        raise UserError(f"{test.name} has no test images to show.")
    title = title or f"{type(model).__name__} of {test.name}"
    progress("encoding test images …")
    return assemble(title, {"title": title, **networks, **_data(model, test, seed)})


def describe(model):
    """Encoder and decoder of a model as graphs with packed arrays, ready for JSON.

    Raises:
        graphs.Unsupported: for a layer that the page cannot run.
    """
    return {role: packed_graph(getattr(model, role), fine) for role, fine in FINE.items()}


def packed_graph(network, fine=None):
    """The graph of a network (`graphs.describe`), its arrays packed.

    Args:
        fine: of `pack`, for kernels; all other arrays are float32. None for float32 kernels as well.
    """
    graph = graphs.describe(network)
    for operation in graph["operations"]:
        operation["arrays"] = {
            name: pack(array, fine if name == "kernel" else None)
            for name, array in operation["arrays"].items()
        }
    return graph


def pack(array, fine=None):
    """An array as the page carries it: deflated, in base64.

    Args:
        fine: steps in the array's standard deviation, rounded so that a step is a power of two: numbers
            become whole numbers of 16 bits that count steps, their low bytes before their high bytes. With
            512 a weight takes 11 bits deflated, where float16 takes 14. None, few numbers, and numbers
            that do not fit into 16 bits, for float32.
    """
    array = np.ascontiguousarray(array, "<f4")
    spread = float(array.std()) if fine and array.size > SMALL else 0.0
    if spread > 0 and np.isfinite(spread):
        step = 2.0 ** np.round(np.log2(spread / fine))
        counts = np.rint(array / step)
        if np.abs(counts).max() < 2**15:
            planes = counts.astype("<i2").view(np.uint8).reshape(-1, 2).T
            return {
                "shape": array.shape,
                "step": step,
                "data": _base64(_deflated(planes.tobytes())),
            }
    return {"shape": array.shape, "data": _base64(_deflated(array.tobytes()))}


def _deflated(content):
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush()


def _base64(content):
    return base64.b64encode(content).decode()


def _data(model, test, seed):
    """What the page shows besides the networks."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(test.images))[:CODES]
    rows.sort()
    images = np.asarray(test.images[rows])
    labels = None if test.labels is None else np.asarray(test.labels)[rows]
    inputs = model.inputs_of(dataclasses.replace(test, images=images, labels=labels))
    variational = hasattr(model, "posterior")
    mean, log_var = model.posterior(inputs) if variational else (model.encode(inputs), None)
    rebuilt = model.decode(mean, labels if model.num_classes else None)
    error = np.abs(to_float(images) - rebuilt).reshape(len(images), -1).mean(1)
    if variational:
        kl = 0.5 * (np.square(mean) + np.exp(log_var) - 1 - log_var).sum(1)
        carried = kl_per_latent(mean, log_var)
        centre, sigma = np.zeros(model.latent_dim), np.ones(model.latent_dim)
    else:
        kl, carried = None, mean.var(0, dtype="float64")
        centre, sigma = mean.mean(0), np.maximum(mean.std(0), 1e-6)
    names = model.names if model.num_classes else test.class_names
    return {
        "kind": type(model).__name__,
        "dataset": str(test.name),
        "image": list(model.image_shape),
        "ground": model.preparation.background if model.preparation else None,
        "latents": model.latent_dim,
        "classes": model.num_classes,
        "names": None if labels is None or names is None else [str(name) for name in names],
        "labels": None if labels is None else labels.tolist(),
        "codes": pack(mean, FINE_CODES),
        "error": pack(error),
        "kl": None if kl is None else pack(kl),
        "carried": [float(v) for v in carried],
        "centre": [float(v) for v in centre],
        "sigma": [float(v) for v in sigma],
        "plane": _plane(mean),
        "thumbnails": _thumbnails(images),
        "prior": _prior(model),
        "size": _usual_size(images),
        "tests": _tests(model, images, labels, mean, log_var, rng),
    }


def _plane(codes):
    """Where the map lies among the latents: its origin (D,) and its two directions (2, D)."""
    count = codes.shape[1]
    if count <= 2:
        directions, origin = np.eye(2, count), np.zeros(count)
        share = None
    else:
        directions, origin = principal_directions(codes)[:2], codes.mean(0, dtype="float64")
        along = (codes - origin) @ directions.T
        share = float(along.var(0).sum() / max(codes.var(0, dtype="float64").sum(), 1e-12))
    return {"origin": origin.tolist(), "directions": directions.tolist(), "share": share}


def _thumbnails(images):
    """The images side by side in one picture, 50 a row; large ones made smaller."""
    images = to_uint8(images)
    count, height, width, channels = images.shape
    factor = min(1.0, THUMBNAIL / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if channels not in (1, 3):  # as the page draws them
        images = (
            images[..., :3] if channels == 4 else images.mean(-1, keepdims=True).astype("uint8")
        )
    mode = "L" if images.shape[-1] == 1 else "RGB"
    columns = min(count, 50)
    sheet = Image.new(mode, (columns * size[0], -(-count // columns) * size[1]))
    for i, pixels in enumerate(images):
        tile = Image.fromarray(pixels[..., 0] if mode == "L" else pixels)
        if factor < 1:
            tile = tile.resize(size, Image.Resampling.BOX)
        sheet.paste(tile, (i % columns * size[0], i // columns * size[1]))
    file = io.BytesIO()
    if size[0] * size[1] * images.shape[-1] <= PLAIN:
        # Sixteen greys are enough for a thumbnail, and half as many bytes.
        if mode == "L":
            greys = Image.fromarray(np.rint(np.asarray(sheet) / 17).astype("uint8"))
            greys.putpalette(np.repeat(np.arange(16, dtype="uint8") * 17, 3).tobytes())
            sheet = greys
        sheet.save(file, "PNG", optimize=True, bits=4 if mode == "L" else 8)
        kind = "png"
    else:
        sheet.save(file, "JPEG", quality=80, optimize=True)
        kind = "jpeg"
    return {
        "type": f"image/{kind}",
        "data": _base64(file.getvalue()),
        "width": size[0],
        "height": size[1],
        "columns": columns,
    }


def _prior(model):
    """The fitted prior: its arrays, the name of one that the page cannot draw from, None for none."""
    prior = getattr(model, "prior", None)
    if prior is None or type(prior) is StandardNormal:
        return None
    if type(prior) is not ClassMixture:
        return {"unknown": type(prior).__name__}
    used = np.isfinite(prior.logits)
    log_weights = np.where(used, prior.logits, -1e30)
    weights = np.exp(log_weights - log_weights.max(-1, keepdims=True))
    rows, columns = np.tril_indices(model.latent_dim)
    return {
        "weights": (weights / weights.sum(-1, keepdims=True)).tolist(),
        "means": pack(prior.means, FINE_CODES),
        "cholesky": pack(prior.cholesky[..., rows, columns], FINE_CODES),
    }


def _usual_size(images):
    """The longer side of what is drawn in an image, as a share of the image's: the mean over images.

    None where images have no empty ground, such as photographs.
    """
    images = to_uint8(images[:500]).max(-1)
    inside = images > 64
    across, down = inside.any(1), inside.any(2)
    sides = []
    for columns, rows in zip(across, down):
        if columns.any():
            x, y = np.flatnonzero(columns), np.flatnonzero(rows)
            sides.append(max(np.ptp(x) + 1, np.ptp(y) + 1) / max(images.shape[1:]))
    edges = np.concatenate([images[:, [0, -1]].ravel(), images[:, :, [0, -1]].ravel()])
    return float(np.mean(sides)) if sides and (edges > 64).mean() < 0.05 else None


def _tests(model, images, labels, mean, log_var, rng):
    """Codes with their pixels and images with their codes, by Keras: what the page checks itself by."""
    count = max(2, min(TESTED, len(images), TESTED_VALUES // images[0].size))
    chosen = rng.permutation(len(images))[:count]
    codes = mean[chosen].astype("float32")
    far = rng.standard_normal((count, model.latent_dim)) * (
        1 if log_var is not None else mean.std(0)
    )
    codes[len(codes) // 2 :] = far[: len(codes) - len(codes) // 2]
    shares = None
    if model.num_classes:
        shares = np.eye(model.num_classes, dtype="float32")[labels[chosen]]
        shares[-1] = 1 / model.num_classes
    pixels = model.decode(codes, shares)
    return {
        "codes": pack(codes),
        "shares": None if shares is None else pack(shares),
        "pixels": pack(pixels),
        "images": _base64(to_uint8(images[chosen]).tobytes()),
        "labels": None if labels is None else labels[chosen].tolist(),
        "encoded": pack(mean[chosen]),
    }


# The assembly of the page.


def sources():
    """The folder with the page's HTML, CSS and modules."""
    package = Path(__file__).parent
    installed = package / "page"
    return installed if installed.is_dir() else package.parent / "explore"


IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?function|const|class|let)", re.MULTILINE)
TOP_LEVEL = re.compile(r"^(?:async )?(?:function\*?|const|class|let) (\w+)", re.MULTILINE)


def bundle(folder, entry=ENTRY):
    """Modules as one script: `entry` after all that it imports, without the words import and export.

    The modules keep to what this understands: named imports from "./file.js", exports where a name is
    declared, and no name at the top level of two modules.

    Raises:
        ValueError: for a module that does not.
    """
    found, parts, names = {}, [], {}

    def add(name, path):
        if name in path:
            raise ValueError(f"{name} imports itself: {' -> '.join([*path, name])}.")
        if name in found:
            return
        text = (Path(folder) / name).read_text(encoding="utf-8")
        for wanted, other in IMPORT.findall(text):
            add(other, [*path, name])
            wanted = [w.strip() for w in wanted.split(",") if w.strip()]
            if missing := [w for w in wanted if w not in found[other]]:
                raise ValueError(
                    f"{name} imports {', '.join(missing)}, which {other} does not export."
                )
        body = EXPORT.sub("", IMPORT.sub("", text))
        if rest := re.search(r"^(import|export)\b.*", body, re.MULTILINE):
            raise ValueError(f"{name}: {rest[0]!r} cannot be bundled.")
        for declared in TOP_LEVEL.findall(body):
            if declared in names:
                raise ValueError(f"{name} and {names[declared]} both declare {declared}.")
            names[declared] = name
        exported = re.compile(
            EXPORT.pattern + r"(?:async )?(?:function\*?|const|class|let) (\w+)", re.M
        )
        found[name] = set(exported.findall(text))
        parts.append(f"// {name}\n{body.strip()}\n")

    add(entry, [])
    return '"use strict";\n{\n' + "\n".join(parts) + "}\n"


def assemble(title, data):
    """The page: the template with title, style, program and data in it.

    Args:
        title: text, of any characters.
        data: what JSON can write. Its strings are text for the page, never markup.
    """
    folder = sources()
    style = (folder / "style.css").read_text(encoding="utf-8")
    program = "\n" + bundle(folder / "src")
    for name, text in (("style", style), ("script", program)):
        if re.search(rf"</{name}|<!--", text, re.IGNORECASE):
            raise ValueError(f"The page's {name} ends its own element.")
    policy = (
        f"default-src 'none'; script-src '{_hash(program)}'; style-src '{_hash(style)}'; "
        "img-src data: blob:; worker-src blob:; base-uri 'none'; form-action 'none'"
    )
    # Within a script no markup is read but that which ends it.
    content = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    slots = {
        "head": f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>",
        "scripts": f'<script type="application/json" id="data">{content}</script>\n'
        f'<script id="program">{program}</script>',
    }
    template = (folder / "index.html").read_text(encoding="utf-8")
    return re.sub(r"<!-- (\w+) -->", lambda match: slots[match[1]], template)


def _hash(text):
    return "sha256-" + _base64(hashlib.sha256(text.encode()).digest())
