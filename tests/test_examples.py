"""Each example runs, shows what its paper says, and makes models that the rest of the package takes."""

import ast
import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_ae

ROOT = Path(__file__).parent.parent
EXAMPLES = {  # what `main` is called with
    "beta_tcvae": {"epochs": 8},
    "vq_vae": {"epochs": 10},
    "iwae": {"epochs": 10, "samples": 100, "held_out": 100},
    "info_vae": {"epochs": 10},
    "denoising": {"epochs": 16},
    "free_bits": {"epochs": 5},
}

# Every example runs once, for all tests of this file.
pytestmark = pytest.mark.long


@functools.cache
def module_of(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(mnist_dir, shared_tmp):
    """A function: what the `main` of an example returned, which runs once."""
    done = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAE_DATA_DIR", str(mnist_dir))
        patch.setenv("KAE_CACHE", str(shared_tmp / "cache"))

        def get(name):
            if name not in done:
                done[name] = module_of(name).main(limit=2000, **EXAMPLES[name])
            return done[name]

        yield get


def test_every_example_is_here():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


def test_beta_tcvae_lowers_total_correlation(run):
    vae, tcvae = run("beta_tcvae").values()
    assert tcvae["total_correlation"] < 0.5 * vae["total_correlation"]
    assert tcvae["gaussian"] < vae["gaussian"]
    assert vae["kl"] > tcvae["kl"] > 1  # the codes are still in use


def test_the_total_correlation_of_what_is_known():
    """Of independent latents it is 0; of a latent and its copy, the entropy that they share."""
    total_correlation = module_of("beta_tcvae").total_correlation
    mean = np.random.default_rng(0).normal(size=(1000, 2))
    log_var = np.full((1000, 2), -3.0)
    assert abs(total_correlation(mean, log_var)) < 0.1
    copied = np.repeat(mean[:, :1], 2, axis=1)
    covariance = 1.0 + np.array([[np.exp(-3.0), 0.0], [0.0, np.exp(-3.0)]])
    known = np.log(covariance[0, 0]) - 0.5 * np.linalg.slogdet(covariance)[1]
    assert total_correlation(copied, log_var) == pytest.approx(known, abs=0.15)


def test_vq_vae_uses_its_codebook(run):
    few, many, ae = run("vq_vae").values()
    assert 1.5 < few["perplexity"] <= 4 < many["perplexity"] <= 64
    assert ae["l1"] < many["l1"] < 1.02 * few["l1"]


def test_vq_vae_trains_encoder_and_codebook(digits):
    model = module_of("vq_vae").VQVAE(latent_dim=8, backbone="mlp", hidden=(16,))
    model.compile(keras_ae.Adam(1e-3))
    variables = [model.codebook, model.encoder.weights[0], model.decoder.weights[0]]
    before = [keras.ops.convert_to_numpy(v).copy() for v in variables]
    model.fit(digits[0][:64], batch_size=32, epochs=1, verbose=0)
    for variable, value in zip(variables, before):
        assert np.abs(keras.ops.convert_to_numpy(variable) - value).max() > 1e-4


def test_vq_vae_is_sixty_lines_of_code():
    source = (ROOT / "examples" / "vq_vae.py").read_text()
    prose = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    code = [
        line
        for number, line in enumerate(source.splitlines(), 1)
        if number not in prose and line.strip() and not line.strip().startswith("#")
    ]
    assert len(code) <= 60


def test_vq_vae_codes_are_entries(run, digits):
    model = run("vq_vae")[4]["model"]
    book = keras.ops.convert_to_numpy(model.codebook)
    codes = model.encode(digits[0][:50]).reshape(-1, 1, model.width)
    assert (codes == book).all(-1).any(-1).all()


def test_iwae_raises_the_log_likelihood(run):
    vae, iwae = run("iwae").values()
    assert iwae["log_likelihood"] > vae["log_likelihood"] + 0.5
    assert vae["elbo"] < vae["log_likelihood"]


def test_iwae_with_one_sample_is_a_vae(digits):
    """Their losses agree but for the noise, of which the KL term of a VAE has less."""
    images = (digits[0][:2000] > 127).astype("float32")
    model = module_of("iwae").IWAE(latent_dim=4, backbone="mlp", k=1)
    vae = keras_ae.VAE(latent_dim=4, backbone="mlp", reconstruction="bce")
    vae.set_weights(model.get_weights())
    model.compile(), vae.compile()
    losses = [m.evaluate(images, batch_size=500, verbose=0, return_dict=True) for m in (model, vae)]
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], abs=0.5)


def test_info_vae_keeps_information(run):
    figures = run("info_vae")
    assert figures["InfoVAE"]["information"] > figures["VAE"]["information"] + 0.3
    assert figures["InfoVAE"]["mmd"] < figures["VAE, weaker"]["mmd"]


def test_denoising_raises_the_psnr(run):
    psnr = {name: row["psnr"] for name, row in run("denoising").items()}
    assert psnr["a denoising AE"] > max(psnr["nothing"], psnr["an AE"]) + 1


def test_free_bits_keep_latents_active(run):
    without, with_bits = (row["active_units"] for row in run("free_bits").values())
    assert without < 12 and with_bits == 16


@pytest.mark.parametrize("name", EXAMPLES)
def test_models_are_saved_and_loaded(name, run, digits, tmp_path):
    model = list(run(name).values())[1]["model"]
    images = digits[0][:64]
    if hasattr(model, "sample"):
        model.fit_prior(images)
    model.save(tmp_path / "model.keras")
    for load in (keras.saving.load_model, keras_ae.load_model):
        loaded = load(tmp_path / "model.keras")
        assert type(loaded) is type(model) and loaded.get_config() == model.get_config()
        np.testing.assert_allclose(loaded.encode(images), model.encode(images), atol=1e-5)
        rebuilt = loaded.reconstruct(images)
        np.testing.assert_allclose(rebuilt, model.reconstruct(images), atol=1e-5)
        if hasattr(model, "sample"):
            assert loaded.prior.describe().startswith("mixture")
            np.testing.assert_allclose(loaded.sample(8), model.sample(8), atol=1e-5)
        if load is keras_ae.load_model:  # Keras' own has compiled it as it was
            loaded.compile(keras_ae.Adam(1e-3))
        loaded.fit(images, batch_size=32, verbose=0)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_use_public_names_only(name):
    source = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(source.splitlines()) <= 100
    for node in ast.walk(ast.parse(source)):
        used = getattr(node, "attr", None) or getattr(node, "name", None) or ""
        assert not used.startswith("_") or used == "__init__"
        modules = [node.module] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            assert not module.startswith("keras.src") and "._" not in module


def test_an_example_runs_by_itself(mnist_env):
    command = [sys.executable, "examples/free_bits.py", "--epochs", "1", "--limit", "200"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["free", "0", "0.5"]


def test_the_program_in_the_documentation_runs(mnist_env, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "your-own-objective.md").read_text()
    assert len(page.splitlines()) <= 80
    monkeypatch.chdir(tmp_path)
    exec(page.partition("```python\n")[2].partition("```")[0], {"__name__": "mine"})
    assert capsys.readouterr().out.strip().endswith("(4, 28, 28, 1)")


def test_vq_vae_is_exported(digits, tmp_path):
    torch = pytest.importorskip("torch")
    if keras.backend.backend() != "torch":
        pytest.skip("written by torch")
    model = module_of("vq_vae").VQVAE(latent_dim=8, backbone="mlp", hidden=(16,))
    path = tmp_path / "model.pt2"
    keras_ae.export.export(model, path, "torch", "autoencoder")
    images = digits[0][:5]
    with torch.no_grad():
        rebuilt = torch.export.load(path).module()(torch.from_numpy(images / np.float32(255)))
    np.testing.assert_allclose(rebuilt.numpy(), model.reconstruct(images), atol=1e-5)


# A run folder of one of them


class Interrupt(keras.callbacks.Callback):
    """As Ctrl-C after the first epoch."""

    def on_epoch_end(self, epoch, logs=None):
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole_run(mnist_dir, shared_tmp, tmp_path_factory):
    """A run folder of an example's model, and a function that makes such a run in another."""
    TCVAE = module_of("beta_tcvae").TCVAE
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAE_DATA_DIR", str(mnist_dir))
        patch.setenv("KAE_CACHE", str(shared_tmp / "cache"))
        train, test = keras_ae.data.load_splits("mnist", limit=300)
        settings = keras_ae.Settings("vae", epochs=3, kl_weight=1.0)

        def fit(folder, **kwargs):
            keras.utils.set_random_seed(1)
            model = TCVAE(latent_dim=4, backbone="mlp", hidden=(32,), dataset_size=300)
            own = {"model": model, "train": train, "test": test}
            return keras_ae.fit(settings, folder, verbose=0, report=str, **own, **kwargs)

        folder = tmp_path_factory.mktemp("runs") / "tcvae"
        yield folder, fit(folder), fit


def test_a_run_of_an_example(whole_run):
    folder, done, _ = whole_run
    row = done["history"][-1]
    assert {"loss", "total_correlation", "val_total_correlation", "kl_weight"} <= row.keys()
    # The weight of the last step is not yet the final one: that of its beginning.
    assert 0.5 < row["kl_weight"] < 1
    model = keras_ae.load_model(folder)
    assert model.beta == 6.0 and model.prior.describe().startswith("mixture")
    assert float(keras.ops.convert_to_numpy(model.term_weights()["total_correlation"])) == 5.0


def test_an_interrupted_run_of_an_example_goes_on(whole_run, tmp_path):
    folder, whole, fit = whole_run
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", callbacks=[Interrupt()])
    done = fit(tmp_path / "run", resume=True)
    timeless = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in run["history"]]
        for run in (whole, done)
    ]
    assert len(timeless[1]) == 3 and timeless[1] == timeless[0]
    resumed, first = keras_ae.load_model(tmp_path / "run"), keras_ae.load_model(folder)
    for a, b in zip(resumed.get_weights(), first.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_command_line_takes_a_run_of_an_example(whole_run, mnist_env, tmp_path):
    folder = str(whole_run[0])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])}

    def kae(*arguments):
        command = [sys.executable, "-m", "kae", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    refused = kae("info", folder)
    assert refused.returncode == 1 and "examples>TCVAE" in refused.stderr
    assert "import the module that registers it" in refused.stderr
    known = ("--import", "examples.beta_tcvae")
    info = kae(*known, "info", folder, "--json")
    assert info.returncode == 0, info.stderr
    assert json.loads(info.stdout)["model"] == "TCVAE"
    picture = tmp_path / "rebuilt.png"
    rebuilt = kae(*known, "reconstruct", folder, "-n", "4", "--out", str(picture))
    assert rebuilt.returncode == 0 and picture.exists(), rebuilt.stderr
