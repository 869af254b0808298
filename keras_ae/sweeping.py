"""Runs that differ only in `kl_weight`, and the rate and distortion of each."""

import dataclasses
import os
from pathlib import Path

from keras_ae import checkpoints
from keras_ae.building import as_stored, settled
from keras_ae.data import disk
from keras_ae.errors import RunError
from keras_ae.fitting import fit, images_of
from keras_ae.pictures import DRAWN
from keras_ae.provenance import data_facts, described, same_data
from keras_ae.resuming import differences
from keras_ae.settings import has_kl


def sweep(
    settings,
    kl_weights,
    folder,
    data_dir=None,
    force=False,
    verbose="auto",
    report=print,
    callbacks=lambda folder: (),
    train=None,
    test=None,
):
    """Train a model once for each of several KL weights, each run in its own folder.

    A finished run is not repeated; a stopped run is resumed.

    Args:
        settings: the `Settings` of a model with a KL divergence. Each run replaces their `kl_weight`.
        kl_weights: the weights, all different.
        folder: of the sweep; the run with weight 0.1 is in its subfolder `kl_weight-0.1`.
        data_dir, verbose, report, train, test: as for `keras_ae.fit`.
        force: replace existing runs.
        callbacks: a function from the folder of a run to its additional callbacks.

    Returns:
        A list of dicts, one per weight, in the order of the weights: "kl_weight", "run" (its folder), "rate"
        (KL divergence of the test images in nats), "distortion" (their reconstruction term, a sum over an
        image, codes drawn from the posterior), "elbo", "bits_per_dimension", "psnr" (see
        `evaluation.final_figures`), "epochs", "seconds" (of its training steps), and "trained" (whether this call trained it).

    Raises:
        ValueError: the model has no KL divergence, or the weights are not all different, or there are none.
        RunError: a folder holds a run with other settings, or the dataset was replaced meanwhile; also as for
            `keras_ae.fit`.

    References:
        Alemi et al. 2018, Fixing a Broken ELBO, arXiv:1711.00464.
    """
    kl_weights = [weight.item() if hasattr(weight, "item") else weight for weight in kl_weights]
    if not all(type(w) is float or type(w) is int and abs(w) < 1 << 63 for w in kl_weights):
        raise ValueError(f"A sweep takes KL weights that are numbers; got {kl_weights}.")
    if not has_kl(settings.model):
        raise ValueError(
            f"The loss of {settings.model} has no KL divergence to weigh: a sweep is for a vae or a cvae."
        )
    if not kl_weights or len(set(kl_weights)) < len(kl_weights):
        raise ValueError(f"A sweep takes KL weights that are all different; got {kl_weights}.")
    runs = {
        place_of(folder, weight): dataclasses.replace(settings, kl_weight=weight)
        for weight in kl_weights
    }
    if len(runs) < len(kl_weights):
        raise ValueError("KL weights must differ in their first six digits.")
    # Check all existing runs before the first new run starts.
    named = train is None  # arrays may have any name
    there = {place: None if force else _record(place, own, named) for place, own in runs.items()}
    finished = {p: record for p, record in there.items() if record and record.get("finished")}
    # If nothing is left to train, the dataset may be gone.
    there_still = train is not None or disk.find(settings.dataset, disk.resolve_data_dir(data_dir))
    stored = {
        place: settled(checkpoints.settings_of(record, place))
        for place, record in there.items()
        if record
    }
    if stored and (there_still or len(finished) < len(runs)):
        _, *images = images_of(settings, data_dir, train, test, report)
        _check_images(finished, images)
        common = settled(settings, images[0])
    else:
        common = next(iter(stored.values()), None)
    for place, own in stored.items():  # settings that were not given now may have been given then
        if other := set(differences(common, own)) - {"kl_weight", "dataset"}:
            if not checkpoints.died_early(place):
                raise _others(place, other)
            there[place] = None
    results, first = [], None
    for i, (place, own) in enumerate(runs.items()):
        record, count = there[place], f"run {i + 1} of {len(runs)}, kl_weight {own.kl_weight:g}"
        trained = place not in finished
        if trained:
            report(f"{count}: {place}")
            fit(
                own, place, data_dir, bool(record), force, verbose, report, callbacks(place),
                train=train, test=test,
            )  # fmt: skip
        else:
            report(f"{count}: finished already in {place}")
        now = checkpoints.read_run(place)
        results.append({**_figures(place, now, own), "trained": trained})
        facts = now.get("data", {})
        first = first or facts
        if facts and facts.get("crc32") != first.get("crc32"):
            raise RunError(
                f"{place} is of other images ({described(facts)}) than the runs before it ({described(first)}): move those of "
                "images that you do not want away, and give the command again, without --force."
            )
    return results


def place_of(folder, kl_weight):
    """The folder of a run in the folder of a sweep."""
    return Path(folder) / f"kl_weight-{kl_weight:g}"


def _record(place, settings, named):
    """The run.json of a run with these settings, or None if there is no run.

    `named`: whether the settings name the dataset, so that a finished run must be of the same one.
    """
    record = checkpoints.read_run(checkpoints.place_of(place))
    if not record:
        return None
    if not record.get("finished") and checkpoints.lost_backup(place):
        raise RunError(
            f"The backup of the unfinished run in {place} is missing: move that folder away, and it is trained anew."
        )
    stored = settled(checkpoints.settings_of(record, place))
    own = as_stored(settled(settings), stored)
    other = set(differences(own, stored))
    name = settings.dataset
    if os.path.isabs(name):  # `fit` notes the name that the folder says
        found = disk.find(name, disk.resolve_data_dir())
        name = found.name if found else name
    same = checkpoints.dataset_name(name) == stored.dataset
    if same or not (named and record.get("finished")):  # `fit` compares the data of unfinished runs
        other -= {"dataset"}
    if other and checkpoints.died_early(place):
        return None
    if other:
        raise _others(place, other)
    return record


def _others(place, names):
    return RunError(
        f"{place} holds a run with other {', '.join(sorted(names))}: give what it was begun with (run.json), or move it "
        "away; --force replaces all runs of the sweep, --out writes elsewhere."
    )


def _check_images(finished, images):
    """Check that finished runs, {folder: run.json}, are of these training and test images.

    Raises:
        RunError: one is of others.
    """
    facts = data_facts(*images)
    for place, record in finished.items():
        before = record.get("data", facts)
        if not same_data({**before, "name": facts["name"]}, facts, *images):
            raise RunError(
                f"{place} holds a run on other images ({described(before)}; now {described(facts)}): move it away; "
                "--force replaces all runs of the sweep, --out writes elsewhere."
            )


def _figures(place, run, settings):
    final = run.get("final", {})
    history = checkpoints.read_history(place)
    for name in ("val_kl", "val_reconstruction"):
        value = final.get(name)
        if type(value) not in (int, float) or not abs(value) < DRAWN:
            raise RunError(f"{place / 'run.json'} is damaged: its final {name} is no number.")
    return {
        "kl_weight": settings.kl_weight,
        "run": str(place),
        "rate": final["val_kl"],
        "distortion": final["val_reconstruction"],
        **{k: final.get(k) for k in ("elbo", "bits_per_dimension", "psnr", "epochs")},
        "seconds": round(sum(row["seconds"] for row in history), 1),
    }
