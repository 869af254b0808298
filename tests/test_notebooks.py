"""The course: every notebook runs from its first cell to its last, small, and shows what its text says."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))

# What the text of a notebook claims, of the variables that it leaves behind.
CLAIMS = {
    "1-autoencoder": """
assert errors[2] > errors[8] > errors[32], errors
assert smear.reconstruct(test.images).std(axis=0).mean() < 0.02, "grey smears"
""",
    "2-vae": """
assert rows[-1]["reconstruction"] < rows[0]["reconstruction"]
assert rows[-1]["kl_weight"] > rows[0]["kl_weight"]
assert kl.sum(axis=1).mean() > 5 > 0.5 > kl_collapsed, "one collapses, the other does not"
""",
    "3-cvae": """
assert fitted > 0.8 and fitted > normal
assert heads["one head"] > heads["two heads"]
styles = judge(same_style)[1].argmax(axis=1)
assert (styles == range(10)).sum() >= 6, f"one style in every class: {styles}"
""",
    "4-own-images": """
error_of = lambda model: abs(test.images / 255 - model.reconstruct(model.inputs_of(test))).mean()
assert error_of(cvae) < error_of(narrow), "two latents are too few"
assert "resize" in refused
assert best.mean() > error(test.images, test.labels).mean(), "stars are odd"
""",
    "5-own-objective": """
assert nats["plain"] < 2 < 8 < nats["capacity"] < 12, nats
assert "must be (N,)" in refused
assert histories["weight 2"][-1]["sparsity"] < 0.6 * histories["weight 0"][-1]["sparsity"]
assert loaded.capacity == 10.0
""",
}


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, mnist_env, tmp_path, monkeypatch):
    monkeypatch.setenv("KAE_NOTEBOOK_IMAGES", "3000")
    monkeypatch.setenv("KAE_NOTEBOOK_EPOCHS", "10")
    root = str(path.parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CLAIMS[path.stem]))
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert any("iframe" in output.get("data", {}).get("text/html", "") for output in outputs)
    (page,) = tmp_path.glob("*.html")
    assert "Content-Security-Policy" in page.read_text(encoding="utf-8")


def test_there_are_five_of_which_each_has_an_exercise_and_what_goes_wrong():
    assert [path.stem for path in NOTEBOOKS] == list(CLAIMS)
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        for words in ("## Exercise", "**Solution.**", "What goes wrong", "## Play"):
            assert words in text, f"{path.name} lacks {words!r}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
