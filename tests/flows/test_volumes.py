"""A learner of volumes, whose classes differ by the order of their slices alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynammo.data.formats.pictures import Form
from dynammo.deploy.predictor import Predictor
from flows.learn import learn
from tasks.support.version import find_learner
from tests.flows.project import OVERRIDES

pytestmark = pytest.mark.usefixtures("prefect_server")

SETTINGS = {**OVERRIDES, "image.slices": 4, "backbone.pool": "thirds", "memory.per_class": 2}
BRIGHT, DARK = 200, 50


def volume(levels: tuple[int, ...], seed: int) -> np.ndarray:
    """(6, 48, 48): noise about one level a slice."""
    noise = np.random.default_rng(seed).integers(-20, 20, (6, 48, 48))
    return (np.repeat(levels, 6 // len(levels))[:, None, None] + noise).astype(np.uint8)


def write(folder: Path, classes: dict[str, tuple[int, ...]]) -> Path:
    for number, (name, levels) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for own in range(8):
            np.save(folder / name / f"{own}.npy", volume(levels, 10 * number + own))
    return folder


def test_batches_of_volumes_are_learnt_and_told_apart(here: Path) -> None:
    first = write(here / "first", {"bright": (BRIGHT,), "dark": (DARK,)})
    second = write(here / "second", {"falls": (BRIGHT, DARK), "rises": (DARK, BRIGHT)})
    learn("ct", str(first), None, SETTINGS)
    learn("ct", str(second), None, None)
    folder = find_learner("ct")
    evaluated = folder.version(2)["stage"]["methods"]["merged"]["evaluated"]
    assert folder.store.load_json(evaluated["metrics"])["mean_class_recall"] == 1

    predictor = Predictor(folder.path / "model")
    assert predictor.form == Form(48, slices=4)
    series = here / "series"
    series.mkdir()
    for number, own in enumerate(volume((DARK, BRIGHT), 99)):
        Image.fromarray(own).save(series / f"{number}.png")
    answers = predictor.predict([series, volume((BRIGHT, DARK), 98)])
    assert [answer.label for answer in answers] == ["rises", "falls"]
