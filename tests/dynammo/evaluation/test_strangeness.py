import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from dynammo.config import HeadConfig
from dynammo.errors import CheckpointError
from dynammo.evaluation.appearance import fit, measure
from dynammo.evaluation.honesty import quantile_of
from dynammo.evaluation.strangeness import UnknownLimits, strangeness
from dynammo.heads.discriminant import discriminant_head
from dynammo.heads.statistics import measure_classes


def test_it_is_the_energy_of_centred_logits() -> None:
    logits = np.random.default_rng(0).normal(scale=9, size=(50, 4))
    centred = logits - logits.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(strangeness(softmax(logits, axis=1)), -logsumexp(centred, axis=1))


def test_it_is_highest_where_nothing_is_said_and_finite_where_all_is() -> None:
    found = strangeness(np.array([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0]]))
    assert found[0] == pytest.approx(-np.log(2)) and (np.diff(found) < 0).all()
    assert np.isfinite(found).all()
    assert strangeness(np.ones((3, 1))).tolist() == [0, 0, 0]


def test_images_between_the_classes_are_found_at_the_stated_rate_of_false_alarms() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 6 * torch.eye(4, 8)
    labels = torch.arange(1200) % 3  # of the fourth nothing is known

    def near(of: torch.Tensor) -> torch.Tensor:
        return centres[of] + torch.randn(len(of), 8, generator=generator)

    known = measure_classes(near(labels)[None], labels, 3)
    head = discriminant_head(known, HeadConfig(shrinkage=0.1, flip=False))

    def strange(of: torch.Tensor) -> np.ndarray:
        logits = near(of) @ head["weight"].T + head["bias"]
        return strangeness(logits.double().softmax(1).numpy())

    limit = quantile_of(strange(labels), 0.05)
    assert 0.03 < (strange(labels) > limit).mean() < 0.07
    assert (strange(torch.full((200,), 3)) > limit).mean() > 0.9


def test_an_image_is_unknown_by_its_answer_or_by_its_appearance() -> None:
    pictures = np.random.default_rng(0).integers(90, 110, (50, 16, 16, 3)).astype(np.uint8)
    kind = fit(measure(pictures), np.zeros(50, int))
    document = {**{k: v.tolist() for k, v in kind._asdict().items()}, "threshold": 99.0}
    limits = UnknownLimits.read({"threshold": -1.0, "appearance": document})
    bright = pictures[:1] + np.uint8(100)
    shown = np.concatenate([pictures[:2], bright])
    answers = np.array([[0.99, 0.01], [0.5, 0.5], [0.99, 0.01]])
    assert limits.exceeded(answers, shown).tolist() == [False, True, True]
    without = UnknownLimits.read({"threshold": -1.0, "appearance": None})
    assert without.exceeded(answers, shown).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "appearance",
    [
        {"means": [[0.0] * 12], "threshold": 1.0},
        {"means": [[0.0] * 11], "precision": [[0.0] * 12] * 12, "threshold": 1.0},
        {"means": [[0.0] * 12], "precision": [[0.0] * 12] * 11, "threshold": 1.0},
        {"means": [["x"] * 12], "precision": [[0.0] * 12] * 12, "threshold": 1.0},
        {"means": [[0.0] * 12], "precision": [[0.0] * 12] * 12, "threshold": None},
        {"means": [], "precision": [[0.0] * 12] * 12, "threshold": 1.0},
        7,
    ],
)
def test_a_damaged_appearance_is_refused(appearance: object) -> None:
    with pytest.raises(CheckpointError, match="unknown: appearance: expected means, precision"):
        UnknownLimits.read({"threshold": -1.0, "appearance": appearance})
