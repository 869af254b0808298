"""Settings: their checks, and that they name what the library has."""

import array
import json
import sys

import keras
import numpy as np
import pytest

from keras_ae import annealing, augmentation, backbones, building, losses, models, settings
from keras_ae.recommended import RECOMMENDED, recommended
from keras_ae.settings import Settings


def test_names_are_those_of_the_library():
    assert set(settings.KL_SCHEDULES) == set(annealing.SCHEDULES)
    for names, module, registry in (
        (settings.reconstructions, "losses", losses.RECONSTRUCTIONS),
        (settings.backbones, "backbones", backbones.BACKBONES),
        (settings.augmentations, "augmentation", augmentation.AUGMENTATIONS),
        (settings.models, "models", models.MODELS),
    ):
        assert names() == tuple(registry)
        assert settings._names_in_source(module, names.__name__.upper()) == tuple(registry)


@pytest.mark.parametrize("name", settings.OPTIMIZERS)
def test_every_optimizer_is_made_with_the_learning_rate(name):
    chosen = Settings("ae", optimizer=name, learning_rate=0.125, lr_schedule="constant")
    optimizer = building.build_optimizer(chosen, 10)
    assert isinstance(optimizer, keras.optimizers.Optimizer)
    assert type(optimizer).__name__.lower() == name
    assert float(optimizer.learning_rate) == 0.125


def rates(lr_schedule, steps=100):
    chosen = Settings("ae", learning_rate=1.0, lr_schedule=lr_schedule)
    rate = building.build_optimizer(chosen, steps)._learning_rate
    return [float(rate(step)) for step in range(steps + 1)]


def test_cosine_falls_from_the_rate_to_zero():
    values = rates("cosine")
    assert values[0] == pytest.approx(1.0) and values[-1] == pytest.approx(0.0, abs=1e-6)
    assert values == sorted(values, reverse=True)


def test_onecycle_rises_for_a_tenth_then_falls_to_zero():
    values = rates("onecycle")
    assert values[0] == pytest.approx(1 / 25) and values[-1] == pytest.approx(0.0, abs=1e-6)
    assert max(values) == pytest.approx(1.0, rel=1e-3)
    peak = values.index(max(values))
    assert peak == 10
    assert values[:peak] == sorted(values[:peak])
    assert values[peak:] == sorted(values[peak:], reverse=True)


def test_a_run_of_one_step_has_a_schedule():
    for name in settings.LR_SCHEDULES:
        building.build_optimizer(building.settled(Settings("ae", lr_schedule=name)), 1)


def test_settings_survive_json():
    chosen = Settings("cvae", hidden=[8, 16], limit=7, kl_weight=0.25, augment=["shift", "flip"])
    assert chosen.augment == ("flip", "shift")
    assert Settings.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


def test_unknown_keys_are_left_out():
    assert Settings.from_dict({"model": "ae", "of_a_later_version": 1}) == Settings("ae")


def test_the_learning_rate_is_that_of_the_backbone_unless_given():
    for name, backbone in backbones.BACKBONES.items():
        settled = building.settled(Settings("ae", backbone=name))
        assert settled.learning_rate == backbone.learning_rate
        given = building.settled(Settings("ae", backbone=name, learning_rate=0.5))
        assert given.learning_rate == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "gan"}, "model must be one of ae, vae, cvae; got 'gan'"),
        ({"backbone": "resnet"}, "backbone must be one of conv, mlp"),
        ({"optimizer": "lion"}, "optimizer must be one of"),
        ({"reconstruction": "l3"}, "reconstruction must be one of l1, mse, bce"),
        ({"kl_schedule": "square"}, "kl_schedule must be one of"),
        ({"lr_schedule": "step"}, "lr_schedule must be one of"),
        ({"latent_dim": 0}, "latent_dim must be 1 or more; got 0"),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"batch_size": -1}, "batch_size must be 1 or more"),
        ({"limit": 0}, "limit must be 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"kl_weight": -1.0}, "kl_weight must be 0 or more"),
        ({"kl_warmup": 0.0}, r"kl_warmup is a fraction of the run, in \(0, 1\]"),
        ({"kl_warmup": 1.5}, "would never reach the full weight"),
        ({"seed": -1}, "seed must be 0 to 4294967295"),
        ({"hidden": ()}, "widths of 1 or more"),
        ({"hidden": (8, 0)}, "widths of 1 or more"),
        ({"augment": "flip,turn"}, "augment must be some of flip, shift, colour; got 'turn'"),
        ({"augment": 5}, "augment must be a list of names; got 5"),
        ({"hidden": 5}, "hidden must be a list of whole numbers; got 5"),
        ({"hidden": {8, 16}}, "hidden must be a list of whole numbers"),
        ({"hidden": (8.5,)}, "hidden must be a list of whole numbers"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number; got '0.1'"),
        ({"ema": "auto"}, "ema must be a number"),
        ({"kl_warmup": None}, "kl_warmup must be a number"),
        ({"kl_weight": [1]}, "kl_weight must be a number"),
        ({"binarize": "no"}, "binarize must be True or False; got 'no'"),
        ({"early_stopping": 1.5}, "early_stopping must be a whole number"),
    ],
)
def test_checks(arguments, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"model": "vae", **arguments})


def test_numbers_of_numpy_are_plain_numbers():
    given = {"epochs": np.int64(3), "kl_weight": np.float32(0.5), "binarize": np.True_}
    made = Settings("vae", hidden=(np.int64(16), np.int64(8)), **given)
    assert made == Settings("vae", hidden=np.array([16, 8]), **given)
    assert made == Settings("vae", hidden=(16, 8), epochs=3, kl_weight=0.5, binarize=True)
    assert json.loads(json.dumps(made.to_dict()))["kl_weight"] == 0.5


def test_an_entry_of_a_registry_is_one():
    mine = settings.Registry("loss", int, {"one": 1}, of_function=lambda function: function())
    mine["two"] = lambda: 2
    assert mine.find("two") == 2
    for registry in (mine, settings.Registry("loss", int, {})):
        with pytest.raises(ValueError, match="A loss must be .*; 'three' is '3'"):
            registry["three"] = "3"
        assert "three" not in registry


def test_widths_of_an_array_and_epochs_that_nobody_gave():
    assert Settings("ae", hidden=array.array("i", [8, 4])).hidden == (8, 4)
    with pytest.raises(ValueError, match="follows from the images"):
        _ = Settings("vae").warmup_epochs


def test_widths_are_checked_by_the_backbone():
    with pytest.raises(ValueError, match="hidden must be 2 widths or more"):
        building.settled(Settings("ae", hidden=(8,)))
    assert building.settled(Settings("ae", backbone="mlp", hidden=(8,))).hidden == (8,)


@pytest.mark.parametrize("field", ["kl_weight", "kl_warmup"])
def test_an_ae_has_no_kl_divergence(field):
    with pytest.raises(ValueError, match=f"An ae has no KL divergence: {field} is for"):
        Settings("ae", **{field: 0.25})


def test_what_has_a_kl_divergence_is_known_from_the_source(monkeypatch):
    loaded = {name: settings.has_kl(name) for name in models.MODELS}
    monkeypatch.delitem(sys.modules, "keras_ae.models")
    assert {name: settings.has_kl(name) for name in loaded} == loaded
    assert loaded == {"ae": False, "vae": True, "cvae": True}


def test_a_model_of_ones_own_without_a_kl_divergence(monkeypatch):
    class Denoising(models.AE):
        pass

    monkeypatch.setitem(models.MODELS, "denoising", Denoising)
    with pytest.raises(ValueError, match="A denoising has no KL divergence: kl_weight is for"):
        Settings("denoising", kl_weight=2.0)
    assert building.settled(Settings("denoising", early_stopping=3, epochs=5)).warmup_epochs == 0


def test_arrays_are_no_name_and_are_not_printed():
    with pytest.raises(ValueError, match="got a list. Arrays are given to") as error:
        Settings("vae", dataset=[0] * 1000)
    assert len(str(error.value)) < 150


@pytest.mark.parametrize(
    ("dataset", "shape", "images", "expected"),
    [
        ("mnist", (28, 28, 1), 60_000, (16, 0.5, 128, 14)),
        ("fashion_mnist", (28, 28, 1), 60_000, (64, "auto", 128, 13)),
        ("photographs", (32, 32, 3), 5_000, (64, "auto", 32, 108)),
        ("emoji", (64, 64, 3), 6_805, (192, "auto", 32, 80)),
        ("large", (256, 256, 3), 300, (192, "auto", 32, 200)),
        ("few", (64, 48, 3), 100, (192, "auto", 32, 200)),
        ("many", (64, 64, 3), 10**7, (192, "auto", 128, 3)),
    ],
)
def test_what_nobody_gives_follows_from_the_images(dataset, shape, images, expected):
    # docs/defaults.md has the rule.
    found = recommended(dataset, shape, images)
    assert tuple(found[name] for name in RECOMMENDED) == expected
