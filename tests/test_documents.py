"""The examples of docs/how-to/extending.md, run as they stand there."""

from __future__ import annotations

import ast
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity

from dynammo.adapters import ADAPTERS
from dynammo.config import HeadConfig
from dynammo.data import DATA_SOURCES
from dynammo.data.checks import check_image_set
from dynammo.errors import DataError
from dynammo.heads import HEAD_RULES
from dynammo.heads.base import Evidence
from dynammo.heads.linear import unified_scores
from dynammo.heads.scaling import power_normalise
from dynammo.heads.statistics import measure_classes
from dynammo.merging import MERGE_RULES
from dynammo.methods import METHODS
from dynammo.methods.base import Method, own_options
from dynammo.network.adapted import AdaptedStage
from dynammo.network.features import extract_features
from tests.dynammo.methods.tiny import FIRST, SECOND, configured, learn, memory, weights

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "how-to" / "extending.md").read_text(encoding="utf-8")


def example(file: str) -> ModuleType:
    """Import an example, which the document must name."""
    name = Path(file).name
    assert f"`{file}`: [the whole file](../../examples/parts/{name})" in TEXT
    path = ROOT / "examples" / "parts" / name
    spec = spec_from_file_location(f"example_{path.stem}", path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def test_the_adapter() -> None:
    make = example("dynammo/adapters/scale.py").ScaleAdapter
    x = torch.randn(2, 5, 4, 3)
    assert torch.equal(AdaptedStage(make(5), torch.nn.Identity())(x), x)
    assert torch.allclose(make(5, initial=0.5)(x), 0.5 * x)
    assert sum(p.numel() for p in make(5).parameters()) == 10
    assert make.min_size == 1


def test_the_merge_rule() -> None:
    median = example("dynammo/merging/median.py").median
    states = [{"w": torch.tensor([v, -v]), "n": torch.tensor(int(v))} for v in (1.0, 9.0, 2.0)]
    assert [v.tolist() for v in median(iter(states)).values()] == [[2.0, -2.0], 2]
    assert median(states[:2])["w"].tolist() == [1.0, -9.0]
    assert median(states)["n"].dtype == torch.int64
    with pytest.raises(ValueError, match="no adapter"):
        median([])
    with pytest.raises(ValueError, match="w: shape"):
        median([{"w": torch.zeros(1)}, {"w": torch.zeros(2)}])


def test_the_head_rule() -> None:
    rule = example("dynammo/heads/nearest_mean.py").NearestMean()
    assert rule.evidence == "statistics"
    features = torch.rand(1, 8, 3, generator=torch.Generator().manual_seed(0))
    known = measure_classes(power_normalise(features, 0.5), torch.arange(8) % 2, 2)
    head = rule(Evidence(None, None, known, None, None, [], 1), HeadConfig())
    inputs = power_normalise(features[0], 0.5).double()
    nearest = torch.cdist(inputs, known.means).argmin(1)
    assert torch.equal(unified_scores(features[0], head).predicted, nearest)
    with pytest.raises(ValueError, match="needs class statistics"):
        rule(Evidence(None, None, None, None, None, [], 1), HeadConfig())


def test_the_data_source(tmp_path: Path) -> None:
    load = example("dynammo/data/prefixed.py").load
    images = tmp_path / "images"
    images.mkdir()
    for number, name in enumerate(
        f"{split}_{label}_{n}" for split in ("train", "test") for label in "ab" for n in (1, 2)
    ):
        Image.fromarray(np.full((4, 4), number, dtype=np.uint8)).save(images / f"{name}.png")
    found = load(images)
    check_image_set(found)
    assert found.classes == ("a", "b")
    assert [s.file for s in found.select("test", ["b"])] == ["test_b_1.png", "test_b_2.png"]
    for bad in ("photo.png", "val_a_1.png", "train__1.png"):
        (images / bad).touch()
    with pytest.raises(DataError) as caught:
        load(images)
    assert len(caught.value.problems) == 3


def test_the_method() -> None:
    make = example("dynammo/methods/neighbours.py").Neighbours
    config = configured()
    method = make(config, weights(config), count=2)
    learn(method, 1)
    learn(method, 2)
    kept = memory(2, FIRST, SECOND)
    images = FIRST.with_(SECOND).images
    features = extract_features(method.network, images)
    scores = method.scores(features)
    similar = cosine_similarity(features, extract_features(method.network, kept.images))
    expected = similar.reshape(len(images), 4, 2).mean(2)  # two exemplars of each class
    np.testing.assert_allclose(scores.knownness, expected.max(1), rtol=1e-4)
    assert scores.predicted.tolist() == expected.argmax(1).tolist()
    again = make(config, weights(config), count=2)
    again.load_state(method.state())
    assert torch.equal(again.scores(features).probabilities, scores.probabilities)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        make(config, None, count=0)
    assert make.about.style not in [METHODS[name].about.style for name in METHODS]


def test_every_method_and_option_is_in_the_table_of_methods() -> None:
    text = (ROOT / "benchmarks" / "measurements" / "methods.md").read_text(encoding="utf-8")
    text = text[text.index("## The table") : text.index("## What all have in common")]
    rows = dict(re.findall(r"^\| `(\w+)` (\|.*)$", text, re.M))
    assert list(rows) == list(METHODS)
    for name, row in rows.items():
        number = METHODS[name].about.source.removeprefix("arXiv ")
        assert number in row
        method = METHODS[name]
        if issubclass(method, Method):
            for option in own_options(method):
                assert f"`{option}` (" in row, (name, option)


def test_the_lines_in_the_tables() -> None:
    tables = {
        "adapters": ADAPTERS,
        "merging": MERGE_RULES,
        "heads": HEAD_RULES,
        "data": DATA_SOURCES,
        "methods": METHODS,
    }
    form = r"^The line in `dynammo/(\w+)/__init__.py`:\n\n```python\n(.*?)\n```"
    lines = dict(re.findall(form, TEXT, re.M))
    assert lines.keys() == tables.keys()
    for package, line in lines.items():
        ((name, target),) = ast.literal_eval(f"{{{line.strip()}}}").items()
        module, _, attribute = target.partition(":")
        file = f"{module.replace('.', '/')}.py"
        assert module.startswith(f"dynammo.{package}.") and f"`{file}`:" in TEXT
        code = (ROOT / "examples" / "parts" / Path(file).name).read_text(encoding="utf-8")
        assert re.search(rf"^(class|def) {attribute}[(:]", code, re.M)
        assert name not in tables[package], "an example must not take a name that is in use"
