"""The report: one page that holds everything, read by a parser and by a real browser."""

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_ae import AE, CVAE, VAE, checkpoints, pictures, report
from keras_ae.data import ImageData
from keras_ae.errors import UserError

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
SECTIONS = ["Figures", "Settings", "Training", "Epochs", "Reconstructions", "Samples",
            "Manifold", "Interpolation", "Latents", "Codes"]  # fmt: skip


@pytest.fixture(scope="module", params=[AE, VAE, CVAE])
def page(request, digits, tmp_path_factory):
    """The kind of a model and the page of a run of it."""
    folder = tmp_path_factory.mktemp("run")
    kind = request.param
    arguments = {} if kind is not CVAE else {"num_classes": 10}
    model = kind((28, 28, 1), latent_dim=3, backbone="mlp", hidden=(8,), **arguments)
    history = [
        {"epoch": i, "loss": 9.0 / i, "val_loss": 10.0 / i, "seconds": 1.0} for i in (1, 2, 3)
    ]
    checkpoints.write_history(folder, history)
    (folder / "epochs").mkdir()
    for i in (1, 2):
        pictures.grid(digits[0][i : i + 4]).save(folder / "epochs" / f"00{i}.png")
    run = {"settings": {"model": "<script>alert(1)</script>"}}
    images = ImageData(
        "mnist", "3.0.1", "test", digits[0][:80], digits[1][:80], tuple("0123456789")
    )
    found = checkpoints.Checkpoint(folder / "model.keras", run, "path")
    beside = {"explore": 'a "page".html'} if kind is CVAE else {}
    return kind, report.report(found, model, images, **beside)


class Reader(HTMLParser):
    """Collects tags and headings; complains of a tag that is closed out of turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.headings = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in ("script", "link", "iframe")
        if tag == "img":
            self.sources.append(attributes["src"])
        elif tag == "h2":
            self.headings.append(attributes["id"])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_it_has_every_section_and_needs_nothing_else(page):
    kind, text = page
    reader = Reader(text)
    expected = [s.lower() for s in SECTIONS if kind is not AE or s != "Samples"]
    assert reader.headings == expected
    assert all(source.startswith("data:image/") for source in reader.sources)
    links = re.findall(r'href="(?!#)([^"]*)', text)
    # The page to play with is the one other file, where it is there.
    assert links == (["a &quot;page&quot;.html"] if kind is CVAE else [])
    assert ("<code>kae explore</code>" in text) == (kind is not CVAE)
    assert "&lt;script&gt;" in text


def test_its_pictures_are_whole(page):
    _, text = page
    kinds = []
    for source in Reader(text).sources:
        kind, data = re.fullmatch(r"data:image/([a-z+]+);base64,(.*)", source).groups()
        kinds.append(kind)
        if kind != "svg+xml":
            image = Image.open(io.BytesIO(base64.b64decode(data)))
            assert np.ptp(np.asarray(image.convert("L"))) > 50
        if kind == "gif":
            assert image.n_frames == 2
    assert kinds.count("gif") == 1 and kinds.count("svg+xml") == 4


def test_it_has_no_path_of_the_machine_that_made_it(page, tmp_path_factory):
    _, text = page
    assert re.search(r"<p>run\d+, seed 0\.", text)  # the folder's own name, and none above it
    plots = re.findall(r"data:image/svg\+xml;base64,([^\"]*)", text)
    drawn = "".join(base64.b64decode(plot).decode() for plot in plots)
    for path in (tmp_path_factory.getbasetemp().parent, Path.home(), Path.cwd()):
        assert plots and str(path) not in text + drawn


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_too_few_test_images_are_told(digits, tmp_path):
    model = AE((28, 28, 1), latent_dim=3, backbone="mlp", hidden=(8,))
    images = ImageData("one", "1.0.0", "test", digits[0][:1], None, None)
    found = checkpoints.Checkpoint(tmp_path / "model.keras", {}, "path")
    with pytest.raises(UserError, match="3 test images or more; one has 1"):
        report.report(found, model, images)


def test_a_browser_shows_it(page, tmp_path):
    _, text = page
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,6000",
               f"--screenshot={tmp_path / 'shot.png'}", (tmp_path / "page.html").as_uri()]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    assert shot.shape == (6000, 1000, 3)
    # Text at the top, the grounds of grids, and the first colour of plots, far down as well.
    assert (shot[:100] < 100).all(-1).any()
    grids = (shot == pictures.BACKGROUND).all(-1)
    plots = (np.abs(shot - [31, 119, 180]) < 3).all(-1)
    assert grids.sum() > 20_000 and plots.sum() > 5_000
    assert np.flatnonzero(plots.any(1)).max() > 2_500
