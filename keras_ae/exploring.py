"""A single HTML file in which anyone can play with a model; its networks run in the browser.

The sources of the page (HTML, CSS and JavaScript modules) are in the folder `explore/` of the repository, or
`keras_ae/page/` of an installation. `assemble` puts them into one file, together with the data of a model.
The page loads nothing from elsewhere, and its Content-Security-Policy allows no request.
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
from keras_ae.evaluation.evidence import kl_per_code
from keras_ae.inference import check_finite, in_memory
from keras_ae.latents import principal_directions
from keras_ae.pictures import to_float, to_uint8
from keras_ae.priors import ClassMixture, StandardNormal

CODES = 2_000  # most test images on the map
THUMBNAIL = 32  # most pixels of the longer side of a thumbnail
PLAIN = 1024  # thumbnails are PNG up to this many values each, else JPEG
TESTED = 12  # most codes and images by which the page checks itself …
TESTED_VALUES = 100_000  # … and most values of these images (but at least 2 images)
# Packed kernels are quantized, with this many steps per standard deviation of the kernel. The error of a pixel must
# stay below 1/255. An error of 1/100 of a latent's standard deviation is invisible, so the encoder has fewer.
FINE = {"encoder": 256, "decoder": 1024}
FINE_CODES = 512  # the same for codes and priors
SMALL = 2_000  # an array of up to this many numbers is stored as float32
ENTRY = "main.js"


def explore(model, test, title=None, seed=0, progress=lambda line: None, networks=None):
    """Make the interactive page of a model.

    Args:
        model: AE, VAE or CVAE.
        test: test images, `keras_ae.data.ImageData`; a CVAE needs their labels. The page shows at most 2,000
            of them, chosen at random.
        title: of the page; by default the kind of the model and the name of the dataset.
        seed: of the choice of images.
        progress: called with one line whenever there is something to report.
        networks: the result of `describe`, if it has been called already.

    Returns:
        The HTML, a string: one file that needs no other file and no internet.

    Raises:
        graphs.Unsupported: the page cannot run one of the layers.
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
        graphs.Unsupported: the page cannot run one of the layers.
    """
    return {role: packed_graph(getattr(model, role), fine) for role, fine in FINE.items()}


def packed_graph(network, fine=None):
    """The graph of a network (`graphs.describe`) with packed arrays.

    Args:
        fine: argument of `pack` for kernels; all other arrays are float32. None for float32 kernels too.
    """
    graph = graphs.describe(network)
    for operation in graph["operations"]:
        operation["arrays"] = {
            name: pack(array, fine if name == "kernel" else None)
            for name, array in operation["arrays"].items()
        }
    return graph


def pack(array, fine=None):
    """Pack an array for the page: deflate and base64.

    Args:
        fine: number of steps per standard deviation of the array; a step is rounded to a power of two. Each
            number becomes a 16-bit integer that counts steps; all low bytes come before all high bytes. With
            512, a deflated weight takes 11 bits; as float16 it would take 14. The array stays float32 if this
            is None, if it has few numbers, or if they do not fit into 16 bits.
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
    """The data of the page other than its title and networks, as a dict for JSON."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(test.images))[: in_memory(test.images.shape[1:], CODES)]
    rows.sort()
    images = np.asarray(test.images[rows])
    labels = None if test.labels is None else np.asarray(test.labels)[rows]
    inputs = model.inputs_of(dataclasses.replace(test, images=images, labels=labels))
    variational = hasattr(model, "posterior")
    mean, log_var = model.posterior(inputs) if variational else (model.encode(inputs), None)
    rebuilt = model.decode(mean, labels if model.num_classes else None)
    error = np.abs(to_float(images) - rebuilt).reshape(len(images), -1).mean(1)
    if variational:
        kl = kl_per_code(mean, log_var)
        check_finite([kl], "The KL divergences of some images")
        kl, carried = kl.sum(1), kl.mean(0)
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
    """The plane of the map in latent space: its origin (D,), its two directions (2, D), its share of the variance."""
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
    """One picture of all images side by side, 50 per row; large images are scaled down."""
    images = to_uint8(images)
    count, height, width, channels = images.shape
    factor = min(1.0, THUMBNAIL / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if channels not in (1, 3):  # converted in the way the page draws them
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
        # 16 grey levels are enough for a thumbnail and halve its bytes.
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
    """The fitted prior as a dict: its arrays, or its name if the page cannot draw from it. None if unfitted."""
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
    """The longer side of the object in an image, as a share of the image's longer side: the mean over images.

    None if the images have no empty background, like photographs.
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
    """Codes with their pixels, and images with their codes, as Keras computes them: the page's self-test."""
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


# Assembling the page


def sources():
    """The folder with the page's HTML, CSS and modules."""
    package = Path(__file__).parent
    installed = package / "page"
    return installed if installed.is_dir() else package.parent / "explore"


IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?function|const|class|let)", re.MULTILINE)
TOP_LEVEL = re.compile(r"^(?:async )?(?:function\*?|const|class|let) (\w+)", re.MULTILINE)


def bundle(folder, entry=ENTRY):
    """Join JavaScript modules into one script, without import and export; imported modules come first.

    The modules may use only this: named imports from "./file.js", and `export` in front of a declaration. No
    two modules may declare the same name at their top level.

    Raises:
        ValueError: a module breaks one of these rules.
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
    """Make the page: fill title, style, program and data into the template.

    Args:
        title: text; any characters are safe.
        data: values that JSON can store. The page treats their strings as text, never as markup.
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
    # A browser reads no markup in a script but its end tag, so escaping "<" is enough.
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
