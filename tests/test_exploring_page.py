"""The page of `kae explore` in headless Chromium; what it draws, against Keras' own decoding."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from keras_ae import CVAE, explore, load_model, pictures
from keras_ae.data import ImageData
from keras_ae.settings import released

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NODE = shutil.which("node")
PLAYWRIGHT = ROOT / "explore" / "node_modules" / "playwright-core"
NAMES = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "“&amp;” <!--"]
GREYS = 2  # of 255 that a drawn pixel may be off

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
    pytest.mark.skipif(NODE is None, reason="no node"),
    pytest.mark.skipif(not PLAYWRIGHT.is_dir(), reason="no playwright-core: npm ci in explore/"),
]


def strong(model):
    """The model with larger weights, so that its images differ."""
    rng = np.random.default_rng(0)
    for network in (model.encoder, model.decoder):
        network.set_weights([w + rng.normal(0, 0.2, w.shape) for w in network.get_weights()])
    return model


@pytest.fixture(scope="module")
def seen(tmp_path_factory, digits):
    """The models by name, and what the tests in the browser noted: (name, hash, pixels) each."""
    folder = tmp_path_factory.mktemp("pages")
    images, labels = digits[0][:600], digits[1][:600]
    small = images[:200, 4:24, 6:24].repeat(3, -1)
    models = {name: load_model(released(name) / "model.keras") for name in ("ae", "cvae", "vae")}
    models["hostile"] = strong(
        CVAE((20, 18, 3), 2, "mlp", hidden=(16,), num_classes=3, class_names=NAMES)
    )
    for name, model in models.items():
        kinds = tuple("0123456789")
        test = ImageData("mnist", "3.0.1", "test", images, labels, kinds)
        title = None
        if name == "hostile":
            test = ImageData("x", "1", "test", small, labels[:200] % 3, tuple(NAMES))
            title = "</script><script>alert(3)</script>"
        (folder / f"{name}.html").write_text(explore(model, test, title), encoding="utf-8")
    (folder / "names.json").write_text(json.dumps(NAMES))
    pictures.grid(digits[0][7:8], zoom=3).save(folder / "photo.png")
    environment = {
        **os.environ, "PAGES": str(folder), "CHROMIUM": CHROMIUM, "PHOTO": str(folder / "photo.png")
    }  # fmt: skip
    done = subprocess.run(
        [NODE, "--test", "--test-reporter=spec", str(ROOT / "explore" / "tests" / "page.e2e.mjs")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    return models, json.loads((folder / "observations.json").read_text())


def test_every_control_works_by_mouse_and_by_keyboard(seen):
    _, notes = seen
    assert len(notes) > 40


def test_what_is_drawn_is_what_keras_decodes(seen):
    models, notes = seen
    for note in notes:
        model = models[note["name"]]
        state = dict(part.split("=") for part in note["hash"].split("&"))
        code = np.array(state["z"].split(","), "float32")
        shares = None
        if model.num_classes:
            shares = np.zeros((1, model.num_classes), "float32")
            if state["y"].startswith("c"):
                shares[0, int(state["y"][1:])] = 1
            else:
                shares[0] = np.array(state["y"].split(","), "float32")
        expected = np.rint(model.decode(code[None], shares)[0] * 255)
        drawn = np.array(note["pixels"]).reshape(*expected.shape[:2], 3)
        assert np.abs(drawn - expected).max() <= GREYS, note["name"]
        assert np.ptp(drawn) > 20
