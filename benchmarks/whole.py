"""Measures the time of a whole `kae fit` and `kae evaluate`, compared with the training steps.

    taskset -c 0 python benchmarks/whole.py cvae                # five minutes: 2 epochs of the recipe's 14
    taskset -c 0 python benchmarks/whole.py vae --epochs 14     # the whole recipe

Runs both commands like the command line, each in its own process, on torch and one thread. The functions of each
part are timed, in processor seconds. With fewer epochs than the recipe's 14, the parts of each epoch are scaled to 14
epochs; parts that are done once per run count once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

EPOCHS = 14
ONCE = ("start-up", "first serialization", "data", "prior", "rest")  # once per run, not per epoch


def timed(spent, owner, name, part):
    """Make a function add its seconds to a part, without the seconds of other parts inside it."""
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
        start, before = time.process_time(), sum(spent.values())
        try:
            return original(*args, **kwargs)
        finally:
            within = sum(spent.values()) - before
            spent[part] = spent.get(part, 0.0) + time.process_time() - start - within

    setattr(owner, name, wrapped)


def fit(arguments):
    """Run `keras_ae.fit` with the default recipe; returns the seconds of its parts."""
    import keras

    import keras_ae
    from keras_ae import callbacks, checkpoints, data, fitting

    class Steps(keras.callbacks.Callback):
        """Times the training steps of each epoch, until the validation begins."""

        def on_epoch_begin(self, epoch, logs=None):
            self.start, self.running = time.process_time(), True

        def on_test_begin(self, logs=None):
            if self.running:
                steps.append(time.process_time() - self.start)
            self.running = False

    steps, spent = [], {"start-up": time.process_time()}
    # The first serialization in a process makes Keras import tensorflow, if it is installed.
    keras.saving.serialize_keras_object(keras.layers.Dense(1))
    spent["first serialization"] = time.process_time() - sum(spent.values())
    kind = fitting.MODEL_CLASSES[arguments.model]
    timed(spent, data, "load_splits", "data")
    timed(spent, fitting, "facts_of", "data")
    timed(spent, kind, "evaluate", "validation")
    timed(spent, callbacks, "picture_of", "pictures")
    for name in ("save_model", "write_history", "write_backup", "write_run"):
        timed(spent, checkpoints, name, "saving")
    if arguments.model != "ae":
        timed(spent, kind, "fit_prior", "prior")
    settings = keras_ae.Settings(arguments.model, epochs=arguments.epochs, limit=arguments.limit)
    keras_ae.fit(settings, arguments.out, verbose=0, report=lambda line: None, callbacks=[Steps()])
    spent["training steps"] = sum(steps)  # without the validation: its beginning stops the clock
    spent["rest"] = time.process_time() - sum(spent.values())
    return spent


def evaluate(arguments):
    """Run `keras_ae.evaluation.evaluate` on that run; returns the seconds of its parts."""
    from keras_ae import checkpoints, classifier, data, evaluation

    spent = {"start-up": time.process_time()}
    for owner, name, part in (
        (data, "load_splits", "data"),
        (checkpoints, "load_model", "loading the model"),
        (classifier, "classify", "classifier"),
        (evaluation, "_evidence", "evidence and codes"),
        (evaluation, "frechet_distance", "Fréchet distances"),
        (evaluation, "manifold_overlap", "precision, recall, density, coverage"),
        (evaluation, "nearest_training_images", "nearest training images"),
    ):
        timed(spent, owner, name, part)
    model = checkpoints.load_model(f"{arguments.out}/model.keras")
    timed(spent, type(model), "sample", "samples")
    timed(spent, type(model), "reconstruct", "reconstructions")
    train, test = data.load_splits("mnist", progress=lambda line: None)
    evaluation.evaluate(model, train, test)
    spent["rest"] = time.process_time() - sum(spent.values())
    return spent


def table(title, spent, steps):
    print(f"| {title} | seconds | of the training steps |\n|---|---|---|")
    for part, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"| {part} | {seconds:.1f} | {seconds / steps:.1%} |")
    total = sum(spent.values())
    print(f"| **all** | {total:.1f} | {total / steps:.1%} |\n", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=("ae", "vae", "cvae"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--worker", choices=("fit", "evaluate"), help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        spent = {"fit": fit, "evaluate": evaluate}[arguments.worker](arguments)
        return print(json.dumps(spent))
    environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--out", f"{folder}/run", "--worker"]

        def parts(what):
            done = subprocess.run(
                [*command, what], env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            return json.loads(done.stdout.splitlines()[-1])

        spent = parts("fit")
        times = EPOCHS / arguments.epochs
        spent = {part: s if part in ONCE else s * times for part, s in spent.items()}
        steps = spent["training steps"]
        table(f"`kae fit {arguments.model}`", spent, steps)
        table(f"`kae evaluate {arguments.model}`", parts("evaluate"), steps)


if __name__ == "__main__":
    main()
