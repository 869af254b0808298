"""Trains the recipes of docs/quality.md, evaluates them and prints its tables.

    python benchmarks/quality.py                       those of MNIST, seed 0: about 20 minutes on 2 cores
    python benchmarks/quality.py --seed 1 cvae         this recipe, with another seed
    python benchmarks/quality.py cvae-fashion_mnist --second-classifier
    python benchmarks/quality.py vae-emoji cvae-emoji  with the dataset of docs/your-own-images.md
    python benchmarks/quality.py --release             also release the weights of those in RELEASES

Each recipe is a `kae fit` and then a `kae evaluate`, each in its own process. The seconds are the time that
a user waits. Runs go to checkpoints/quality/RECIPE-SEED; an existing run is not trained again, only
evaluated again. `--release` copies the runs of seed 0 to checkpoints/released/, each with its model card,
and draws the pictures of README and docs/quality.md. Datasets other than mnist must be prepared first.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "checkpoints" / "quality"
RELEASED = ROOT / "checkpoints" / "released"
OF_MNIST = {
    "ae": ["ae"],
    "vae": ["vae"],
    "cvae": ["cvae"],
    "cvae-1min": ["cvae", "--epochs", "3"],
    "cvae-elbo": ["cvae", "--kl-weight", "1"],
    "cvae-mlp": ["cvae", "--backbone", "mlp"],
}
RECIPES = OF_MNIST | {
    "cvae-fashion_mnist": ["cvae", "--dataset", "fashion_mnist"],
    "vae-emoji": ["vae", "--dataset", "emoji"],
    "cvae-emoji": ["cvae", "--dataset", "emoji"],
}
MNIST = (
    "handwritten digits",
    "MNIST, by Yann LeCun and\nCorinna Cortes, is under CC BY-SA 3.0; its notice is `keras_ae/data/mnist/NOTICE.md`.",
)
FASHION = (
    "grey pictures of garments",
    "Fashion-MNIST, by\nZalando SE (https://github.com/zalandoresearch/fashion-mnist), is under the MIT licence.",
)
# Recipe: (what the images show, the licence of the dataset).
RELEASES = {"ae": MNIST, "vae": MNIST, "cvae": MNIST, "cvae-fashion_mnist": FASHION}
COLUMNS = {  # heading: (name of the figure, its format)
    "L1 a pixel": ("reconstruction_l1", "{:.4f}"),
    "KL": ("kl", "{:.1f}"),
    "-ELBO": ("elbo", "{:.1f}"),
    "accuracy": ("conditional_accuracy", "{:.2%}"),
    "worst class": ("worst", "{:.1%}"),
    "confident": ("confident", "{:.1%}"),
    "FID": ("fid", "{:.2f}"),
    "FID of reconstructions": ("fid_reconstructions", "{:.2f}"),
    "PSNR": ("psnr", "{:.1f} dB"),
    "patch SWD": ("patch_swd", "{:.4f}"),
    "of reconstructions": ("patch_swd_reconstructions", "{:.4f}"),
}


def kae(*arguments):
    """Run a command of `kae` and return the object that it prints."""
    command = [sys.executable, "-m", "kae", *map(str, arguments), "--json"]
    print("+", " ".join(command[2:]), file=sys.stderr, flush=True)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def recipe_folder(name, seed):
    return RUNS / f"{name}-{seed}"


def train(name, seed):
    """Train a recipe, unless its run already exists; returns its run.json."""
    folder = recipe_folder(name, seed)
    if not (folder / "run.json").exists():
        result = kae("fit", *RECIPES[name], "--seed", seed, "--out", folder)
        (folder / "seconds").write_text(str(result["seconds"]))
    return json.loads((folder / "run.json").read_text())


def evaluate(name, seed, *options):
    """Evaluate a recipe; returns the figures that `kae evaluate` prints."""
    folder = recipe_folder(name, seed)
    figures = kae("evaluate", folder, "--seed", 0, *options)
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def row(name, seed, run, figures, judge=""):
    """A row of the table."""
    seconds = float((recipe_folder(name, seed) / "seconds").read_text())
    cells = [name + judge, str(seed), str(run["settings"]["epochs"]), f"{seconds:.0f} s"]
    per_class = figures.get("conditional_accuracy_per_class") or [None]
    values = {**figures, "worst": min(per_class, key=lambda v: (v is None, v))}
    for key, form in COLUMNS.values():
        value = values.get(key)
        cells.append("" if value is None else form.format(abs(value)))
    return "| " + " | ".join(cells) + " |"


def release(name, run, figures):
    """Copy a run's model to checkpoints/released/ and write its card."""
    folder, (what, notice) = RELEASED / name, RELEASES[name]
    folder.mkdir(parents=True, exist_ok=True)
    source = recipe_folder(name, 0)
    for file in ("model.keras", "run.json", "history.csv"):
        shutil.copyfile(source / file, folder / file)
    settings = ", ".join(f"{k} {v}" for k, v in run["settings"].items() if v not in (None, False))
    versions = ", ".join(f"{k} {v}" for k, v in run["environment"]["versions"].items())
    lines = [
        f"# {name}: the released weights",
        "",
        f"Of {what}: `kae {'reconstruct' if name == 'ae' else 'sample'} {name}`.",
        "",
        "| | |",
        "|---|---|",
        f"| Settings | {settings} |",
        f"| Trained on | {run['data']['name']} {run['data']['version']}, {run['data']['train_images']} images |",
        f"| Versions | {versions}, {run['environment']['backend']} on {run['environment']['device']} |",
        *(
            f"| {heading} | {form.format(abs(figures[key]))} |"
            for heading, (key, form) in COLUMNS.items()
            if figures.get(key) is not None
        ),
        "",
        "ELBO and KL in nats per image; accuracy, confidence and FID by the evaluation classifier of `kae",
        f"evaluate` ({figures['classifier_accuracy']:.2%} of the test images), on 10,000 samples. Test images: the",
        f"10,000 of {run['data']['name']}.",
        "",
        f"Made by `python benchmarks/quality.py {name} --release`, seed 0.",
        "",
        f"Meant for trying things and for teaching: {what} and nothing else. {notice}",
        "The weights are under the licence of keras-ae.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines))
    print(f"released {folder}", file=sys.stderr)


def draw():
    """Draw pictures with the released weights: docs/cvae.png, docs/nearest.png."""
    kae("sample", RELEASED / "cvae", "--out", ROOT / "docs" / "cvae.png", "--force")
    import numpy as np

    from keras_ae import checkpoints, data, evaluation, pictures

    train, _ = data.load_splits("mnist")
    model = checkpoints.load_model(RELEASED / "cvae" / "model.keras")
    samples = model.sample(1_000, np.arange(10).repeat(100)).reshape(10, 100, *model.image_shape)
    pairs = [evaluation.closest_pairs(digits, train.images, 2)[:2] for digits in samples]
    drawn, nearest = map(np.concatenate, zip(*pairs))
    pictures.pairs(drawn, nearest, columns=20).save(ROOT / "docs" / "nearest.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", help=", ".join(RECIPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--release", action="store_true")
    parser.add_argument(
        "--second-classifier", action="store_true", help="and a row by another judge"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.recipes) - set(RECIPES):
        parser.error(f"no recipe {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    headings = ["recipe", "seed", "epochs", "kae fit", *COLUMNS]
    rows = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    recipes = arguments.recipes or list(OF_MNIST)
    for name in recipes:
        run = train(name, arguments.seed)
        options = ["--second-classifier"] if arguments.second_classifier else []
        figures = evaluate(name, arguments.seed, *options)
        rows.append(row(name, arguments.seed, run, figures))
        if second := figures.get("second_classifier"):
            rows.append(row(name, arguments.seed, run, second, ", by another judge"))
        print(*rows[2:], sep="\n", file=sys.stderr, flush=True)
        if arguments.release and name in RELEASES:
            release(name, run, figures)
    if arguments.release and "cvae" in recipes:
        draw()
    print("\n".join(rows))


if __name__ == "__main__":
    main()
