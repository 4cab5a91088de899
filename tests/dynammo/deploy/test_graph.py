"""The graph of a model: answers, a stream of them, and what is refused."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from dynammo.data.formats.pictures import Pixels, load_image
from dynammo.deploy import answers as answering
from dynammo.deploy import graph as graphs
from dynammo.deploy.answers import Answer, BatchSize
from dynammo.deploy.graph import GraphPredictor, copy_graph, load_predictor, softmax
from dynammo.deploy.predictor import Predictor
from dynammo.errors import CheckpointError, ConfigError, DataError
from tests.models import BY_COLOUR, graph_folder, record, reseal, reseal_graph


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return graph_folder(tmp_path / "model")


def plain(red: int, green: int, blue: int) -> Pixels:
    return np.full((20, 30, 3), (red, green, blue), dtype=np.uint8)


def test_answers_are_those_of_the_graph(folder: Path) -> None:
    predictor = load_predictor(folder)
    assert isinstance(predictor, GraphPredictor)
    assert (predictor.classes, predictor.form.size) == (["red", "green", "blue"], 16)
    (answer,) = predictor.predict([plain(40, 30, 20)])
    powers = np.exp([4.0, 3.0, 2.0])
    assert answer.label == "red"
    assert list(answer.probabilities.values()) == pytest.approx(powers / powers.sum(), abs=1e-6)
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-15)
    labels = [a.label for a in predictor.predict([plain(0, 9, 0), plain(0, 0, 9)], batch_size=1)]
    assert labels == ["green", "blue"]


def test_a_prediction_set_has_what_its_thresholds_do_not_exclude(folder: Path) -> None:
    colours = [plain(20, 0, 0), plain(0, 20, 0), plain(10, 10, 0)]
    assert [answer.prediction_set for answer in load_predictor(folder).predict(colours)] == [
        None
    ] * 3

    def sets(*thresholds: float | None) -> list[list[str] | None]:
        reseal_graph(folder, prediction_sets={"miss": 0.1, "thresholds": list(thresholds)})
        return [answer.prediction_set for answer in load_predictor(folder).predict(colours)]

    # Probabilities, by softmax of a tenth of the mean colour: 0.79 0.11 0.11; 0.11 0.79 0.11;
    # 0.42 0.42 0.16.
    assert sets(0.5, 0.6, 0.0) == [["red"], ["green"], ["green"]]
    assert sets(0.9, 0.6, None) == [["red", "blue"], ["red", "green", "blue"], [*BY_COLOUR]]
    assert sets(0.1, 0.1, 0.1) == [[], [], []]


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1000.0, 999.0], [-1000.0, 0.0]], dtype=np.float32)
    expected = [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], [0, 1]]
    np.testing.assert_allclose(softmax(logits), expected, atol=1e-12)


def test_the_engine(folder: Path, model_folder: Path) -> None:
    assert isinstance(load_predictor(model_folder), Predictor)  # it has no graph
    with pytest.raises(CheckpointError, match=r"no model\.onnx in it; use the engine torch"):
        load_predictor(model_folder, "onnx")
    with pytest.raises(CheckpointError, match=r"model\.json"):  # there are no weights for torch
        load_predictor(folder, "torch")
    with pytest.raises(ConfigError, match="unknown engine 'tpu'; known: onnx, torch"):
        load_predictor(folder, "tpu")


@pytest.mark.parametrize("name", ["model.json", "graph.json", "model.onnx"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "one byte"])
def test_a_damaged_file_is_refused(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        other = bytes([content[-9] ^ 1])
        path.write_bytes(
            {
                "empty": b"",
                "truncated": content[: len(content) // 2],
                "one byte": content[:-9] + other + content[-8:],
            }[damage]
        )
    with pytest.raises(CheckpointError, match=rf"{folder} holds no usable model: .*{name}"):
        load_predictor(folder, "onnx")


def test_the_graph_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    other = graph_folder(tmp_path / "other")
    reseal_graph(other, classes=["a", "b", "c"])
    for name in ("model.onnx", "graph.json"):
        (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"exported from another model\.json"):
        load_predictor(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 1}, "format 2 expected"),
        ({"classes": ["a", "b"]}, r"gives .*; expected images \[3, 16, 16\] and 2 logits"),
        ({"image_size": 32}, r"takes .*; expected images \[3, 32, 32\]"),
        ({"image_size": "16"}, "image_size, a number"),
        ({"classes": []}, "expected class names"),
        ({"classes": ["a", "b", 3]}, "expected a list of names"),
        ({"classes": ["a", "b", "=1+1"]}, "would be a formula"),
        ({"prediction_sets": {"thresholds": [0.5, 0.5]}}, "expected a threshold a class"),
        ({"prediction_sets": [0.5, 0.5, 0.5]}, "expected a threshold a class"),
        ({"unknown": 0.5}, "unknown: expected a threshold of at most 0"),
        ({"unknown": {"alarm": 0.05, "threshold": 0.5}}, "unknown: expected a threshold"),
        (
            {"prediction_sets": {"thresholds": [0.5, None, 1.5]}},
            r"thresholds are in 0\.\.1, or null",
        ),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, values: dict[str, Any], message: str) -> None:
    reseal_graph(folder, **values)
    with pytest.raises(CheckpointError, match=message):
        load_predictor(folder)


def test_what_is_no_graph_is_refused_in_a_line(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no graph")
    record(folder)
    with pytest.raises(CheckpointError, match=r"ONNX Runtime cannot load model\.onnx") as caught:
        load_predictor(folder)
    assert "\n" not in str(caught.value)


def test_a_graph_is_copied_to_the_same_model_only(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "model.json").write_bytes((folder / "model.json").read_bytes())
    assert copy_graph(folder, bare)
    assert load_predictor(bare).predict([plain(9, 0, 0)])[0].label == "red"
    reseal_graph(bare, classes=["a", "b", "c"])
    before = (bare / "model.onnx").read_bytes()
    assert not copy_graph(folder, bare) and not copy_graph(tmp_path / "nowhere", bare)
    assert (bare / "model.onnx").read_bytes() == before


def test_a_stream_answers_in_order_whatever_is_bad(folder: Path) -> None:
    predictor = load_predictor(folder)
    images: list[Any] = [plain(*([9 * (k == i % 3) for k in range(3)])) for i in range(200)]
    for bad in (0, 7, 8, 150, 199):
        images[bad] = b"no picture"
    found = list(predictor.stream(iter(images)))
    assert [i for i, one in enumerate(found) if isinstance(one, DataError)] == [0, 7, 8, 150, 199]
    labels = list(BY_COLOUR)
    for index, one in enumerate(found):
        assert isinstance(one, DataError) or one.label == labels[index % 3]
    assert list(predictor.stream([])) == []
    assert [type(one) for one in predictor.stream([b"", b""])] == [DataError, DataError]


CLINICAL = {
    "weight": 0.5,
    "categories": {"sex": {"f": [0.0, 2.0, 0.0]}},
    "numbers": {"age": [[40.0, 60.0, 40.0], [100.0, 100.0, 100.0]]},
}


def test_what_is_known_beside_images_is_gone_by(folder: Path, model_folder: Path) -> None:
    """By both engines, image by image; without it they answer as if there were no columns."""
    reseal_graph(folder, clinical=CLINICAL)
    copy = shutil.copytree(model_folder, folder.parent / "torch")
    reseal(copy, {"clinical": CLINICAL})
    images = [np.full((16, 16, 3), value, np.uint8) for value in (9, 90, 200)]
    images[1][..., 0] = 0
    columns = {"sex": ["f", "", "f"], "age": ["60", "60", ""], "other": ["x"] * 3}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for predictor in (GraphPredictor(folder), Predictor(copy)):
        alone = predictor.predict(images)
        assert predictor.predict(images, columns={"sex": ["", "", ""]}) == alone
        beside = predictor.predict(images, columns=columns, batch_size=2)
        # w (log p(v | c) - log p(v | other)): 0.5 (2 + 400 / 200), 0.5 * 400 / 200, 0.5 * 2
        for was, now, gain in zip(alone, beside, (2.0, 1.0, 1.0), strict=True):
            before, after = (np.log([*own.probabilities.values()]) for own in (was, now))
            assert (after - before)[1] - (after - before)[0] == pytest.approx(gain)
            assert (after - before)[2] == pytest.approx((after - before)[0])
        # An image that cannot be read takes its row with it.
        found = [*predictor.stream([images[0], b"bad", *images[1:]], [rows[0], {}, *rows[1:]])]
        assert isinstance(found.pop(1), DataError)
        for own, expected in zip(found, beside, strict=True):
            assert isinstance(own, Answer)
            assert own.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
        with pytest.raises(DataError, match="age: 'old' is no number"):
            predictor.predict(images[:1], columns={"age": ["old"]})
    wrong = {**CLINICAL, "weight": 2}
    reseal_graph(folder, clinical=wrong)
    reseal(copy, {"clinical": wrong})
    for load in (GraphPredictor, Predictor):
        with pytest.raises(CheckpointError, match="clinical: expected a weight"):
            load(folder if load is GraphPredictor else copy)


def test_what_classes_belong_to_is_in_the_model(folder: Path, model_folder: Path) -> None:
    copy = shutil.copytree(model_folder, folder.parent / "torch")
    parents = {"red": "warm", "warm": "any"}
    reseal_graph(folder, parents=parents)
    reseal(copy, {"parents": parents})
    for predictor in (GraphPredictor(folder), Predictor(copy)):
        assert predictor.parents == parents
    for wrong, why in (
        ({"red": "red"}, "'red' is below 'red': a circle"),
        ({"red": 1}, r"parents\W"),
        (["red"], r"parents\W"),
    ):
        reseal_graph(folder, parents=wrong)
        reseal(copy, {"parents": wrong})
        for load in (GraphPredictor, Predictor):
            with pytest.raises(CheckpointError, match=why):
                load(folder if load is GraphPredictor else copy)


def test_a_stream_holds_few_images_and_ends_its_threads(folder: Path) -> None:
    """It never takes more from an endless source than it may hold, and stops when left."""
    taken = 0

    def endless() -> Iterator[Pixels]:
        nonlocal taken
        while True:
            taken += 1
            yield plain(taken % 256, 0, 0)

    threads = threading.active_count()
    stream = load_predictor(folder).stream(endless())
    ahead = []
    for done in range(1, 301):
        assert isinstance(next(stream), Answer)
        ahead.append(taken - done)
    assert 2 < max(ahead) <= 2 * 32 + 1 + 32
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads


def test_decoding_goes_on_while_a_batch_is_classified(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch waits for an image to be decoded that is not of it."""
    predictor, later = load_predictor(folder), threading.Event()
    decode, classify = predictor._decode, predictor.scores

    def decoded(image: Any) -> Any:
        if isinstance(image, bytes):
            later.set()
        return decode(image)

    def scored(batch: Pixels) -> Any:
        assert later.wait(10)
        return classify(batch)

    monkeypatch.setattr(predictor, "_decode", decoded)
    monkeypatch.setattr(predictor, "scores", scored)
    first, *_, last = predictor.stream([plain(9, 0, 0), *[plain(0, 9, 0)] * 5, b"bad"])
    assert isinstance(first, Answer) and isinstance(last, DataError)


@pytest.mark.parametrize(
    ("seconds", "settles_at"),
    [
        (lambda n: 0.01 * n, 1),  # a batch saves nothing
        (lambda n: 0.01 + 0.001 * n, 32),
        (lambda n: 0.01 * (4 + max(0, n - 4)), 4),
    ],
)
def test_batches_grow_as_long_as_that_is_faster(seconds: Any, settles_at: int) -> None:
    size = BatchSize()
    assert size.value == 1  # the first answer comes at once
    for _ in range(40):
        size.took(size.value, seconds(size.value))
    assert size.value == settles_at
    size.took(size.value, 100.0)
    assert size.value == settles_at


def test_a_batch_that_the_end_cut_short_is_not_counted() -> None:
    size = BatchSize()
    for _ in range(answering._ROUNDS):
        size.took(1, 1.0)
    assert size.value == 2
    for _ in range(10):
        size.took(1, 50.0)
    assert size.value == 2


def test_a_graph_says_when_the_session_cannot_be_made(folder: Path) -> None:
    """An operator that ONNX Runtime does not have."""
    proto = onnx.load(folder / "model.onnx")
    proto.graph.node[0].op_type = "Castle"
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    record(folder)
    with pytest.raises(CheckpointError, match="Castle"):
        load_predictor(folder)


def test_big_jpegs_are_decoded_fast_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    predictor, sizes = load_predictor(folder), []
    generator = np.random.default_rng(0)
    file = tmp_path / "big.jpg"
    side = 8 * predictor.form.size
    Image.fromarray(generator.integers(0, 256, (side, side, 3), np.uint8)).save(file)
    (usual,) = predictor.decoded([file])
    predictor.fast_jpeg = True
    (fast,) = predictor.decoded([file])
    for wanted, own in ((False, usual), (True, fast)):
        np.testing.assert_array_equal(own, load_image(file, predictor.form.size, fast_jpeg=wanted))
        sizes.append(own.shape)
    assert sizes == [(predictor.form.size, predictor.form.size, 3)] * 2
    assert not np.array_equal(usual, fast)
    answers = [*predictor.predict([file]), *predictor.stream([file])]
    assert answers[0] == answers[1]


def test_the_first_provider_that_works_answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert GraphPredictor(folder).provider == "cpu"
    with pytest.raises(ConfigError, match="provider cuda: this ONNX Runtime has no CUDAExec"):
        load_predictor(folder, provider="cuda")
    with pytest.raises(ConfigError, match="unknown provider 'gpu'; known: cuda, coreml"):
        load_predictor(folder, provider="gpu")
    with pytest.raises(ConfigError, match="and torch would answer"):
        load_predictor(folder, "torch", provider="cpu")
    # The processor under another name stands for what this machine does not have.
    cpu = graphs.PROVIDERS["cpu"]
    named = {"cuda": "NotHere", "openvino": cpu, "cpu": cpu, "tensorrt": cpu}
    monkeypatch.setattr(graphs, "PROVIDERS", named)
    assert graphs.providers() == ["openvino", "cpu"]  # TensorRT only where it is asked for
    other = graphs.open_session
    monkeypatch.setattr(graphs, "open_session", lambda g, t=None, name="cpu": other(g, t))
    assert [GraphPredictor(folder, provider=own).provider for own in (None, "tensorrt")] == [
        *("openvino", "tensorrt")
    ]
    monkeypatch.setattr(graphs, "_TOLERANCE", -1.0)
    assert GraphPredictor(folder).provider == "cpu"
    assert "openvino is not used: its probabilities differ from the processor's" in caplog.text
    with pytest.raises(ConfigError, match="provider openvino: its probabilities differ"):
        GraphPredictor(folder, provider="openvino")
