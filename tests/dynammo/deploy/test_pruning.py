"""Channels go, and what is left answers as the whole graph did."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dynammo.deploy import pruning, quantisation
from dynammo.deploy.export import Smaller, _made_smaller
from dynammo.deploy.pruning import Whole, blocks, gmacs, prune
from dynammo.deploy.trial import Labelled, Trial, logits_on
from dynammo.errors import ExportError

SIDE, WIDE = 8, 32


def weights(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).normal(0, 0.5, shape).astype(np.float32)


def network(twins: bool = False, head: str = "Gemm") -> bytes:
    """Two inverted residuals of 4 channels and a head: with twins, the middle's channels of the
    second half are those of the first again, so that half of them can go for nothing.
    """
    tensors = {"stem": weights(4, 3, 1, 1) / 100, "stem_bias": weights(4)}
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["float", "stem", "stem_bias"], ["x0"], name="stem"),
    ]
    for number in (0, 1):
        shapes = {
            "wide": (WIDE, 4, 1, 1),
            "wide_bias": (WIDE,),
            "each": (WIDE, 1, 3, 3),
            "each_bias": (WIDE,),
        }
        own = {name: weights(*shape) for name, shape in shapes.items()}
        if twins:
            own = {name: np.concatenate([v[: WIDE // 2]] * 2) for name, v in own.items()}
        own |= {"narrow": weights(4, WIDE, 1, 1) / 10, "narrow_bias": weights(4)}
        tensors |= {f"{name}{number}": value for name, value in own.items()}

        def conv(source: str, what: str, target: str, number: int = number, **more: Any) -> Any:
            given = [f"{source}{number}", f"{what}{number}", f"{what}_bias{number}"]
            return helper.make_node(
                "Conv", given, [f"{target}{number}"], name=f"{what}{number}", **more
            )

        nodes += [
            conv("x", "wide", "a"),
            helper.make_node("Relu", [f"a{number}"], [f"b{number}"]),
            conv("b", "each", "c", group=WIDE, pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{number}"], [f"d{number}"]),
            conv("d", "narrow", "e"),
            helper.make_node("Add", [f"e{number}", f"x{number}"], [f"x{number + 1}"]),
        ]
    tensors |= {"head": weights(2, 4), "head_bias": weights(2)}
    nodes.append(helper.make_node("GlobalAveragePool", ["x2"], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    if head == "Gemm":
        given = ["features", "head", "head_bias"]
        nodes.append(helper.make_node("Gemm", given, ["logits"], transB=1))
    else:
        nodes.append(helper.make_node("Identity", ["features"], ["logits"]))
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    initial = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "network", [images], [logits], initial)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content: bytes = proto.SerializeToString()
    return content


def pictures(graph: bytes, count: int, seed: int) -> Labelled:
    """Smooth noise, labelled as the graph answers."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 3, 4, 4), np.uint8)
    images = coarse.repeat(2, 2).repeat(2, 3)
    targets = logits_on(graph, images).argmax(1)
    return Labelled(images, targets, [str(index) for index in range(count)])


def trial_for(graph: bytes) -> Trial:
    return Trial(pictures(graph, 160, 0), pictures(graph, 40, 1))


def test_blocks_are_found_and_multiplications_counted() -> None:
    found = blocks(onnx.load_from_string(network()))
    assert [own.convolutions for own in found] == [
        [f"{name}{number}" for name in ("wide", "each", "narrow")] for number in (0, 1)
    ]
    assert [(own.inner, own.added_to, own.sum, own.channels) for own in found] == [
        *(("d0", "x0", "x1", WIDE), ("d1", "x1", "x2", WIDE))
    ]
    one = SIDE * SIDE * (4 * WIDE + 9 * WIDE + 4 * WIDE)  # of a block
    assert gmacs(network()) == pytest.approx((2 * one + SIDE * SIDE * 12 + 8) / 1e9)


def test_twins_go_for_nothing() -> None:
    graph = network(twins=True)
    trial = trial_for(graph)
    made = Whole(graph, trial).smaller(0.55)
    assert made is not None
    assert gmacs(made) <= 0.55 * gmacs(graph)
    onnx.checker.check_model(onnx.load_from_string(made), full_check=True)
    images = trial.judged_on.images
    before, after = (logits_on(own, images) for own in (graph, made))
    # The ridge that keeps kernels near what they were is what differs.
    assert np.abs(before - after).max() < 0.02 * np.abs(before).max()


def test_what_is_left_is_fitted_better_than_cut() -> None:
    graph = network()
    trial = trial_for(graph)
    whole = Whole(graph, trial)
    made = whole.smaller(0.7)
    assert made is not None
    images = trial.judged_on.images
    before = logits_on(graph, images)
    proto = onnx.load_from_string(graph)
    for block, left in zip(blocks(proto), blocks(onnx.load_from_string(made)), strict=True):
        kept = np.sort(whole._orders[block.inner][0][: left.channels])
        pruning._cut(proto, block, kept, pruning._kernel(proto, block)[:, [*kept, -1]])
    cut = logits_on(proto.SerializeToString(), images)
    fitted, plain = (np.abs(own - before).mean() for own in (logits_on(made, images), cut))
    assert fitted < plain / 2


def test_the_order_is_that_of_the_least_squares_loss() -> None:
    """Against each loss computed anew from the normal equations, without a rank-one update."""
    graph = network()
    block = blocks(onnx.load_from_string(graph))[0]
    whole = Whole(graph, trial_for(graph))
    moments = whole._moments(block).astype(np.float64)
    order, kernels = pruning._eliminated(graph, block, moments)
    kernel = pruning._kernel(onnx.load_from_string(graph), block)
    ridge = pruning._RIDGE * np.trace(moments[:-1, :-1]) / WIDE
    square = moments + ridge * np.diag([*np.ones(WIDE), 0.0])

    def fitted(kept: list[int]) -> tuple[float, np.ndarray[Any, Any]]:
        own = [*kept, WIDE]
        made = np.linalg.solve(square[np.ix_(own, own)], square[own] @ kernel.T).T
        full = np.zeros_like(kernel)
        full[:, own] = made
        return float(np.trace((kernel - full) @ square @ (kernel - full).T)), made

    kept = list(range(WIDE))
    for _ in range(4):
        worst = min(kept, key=lambda c: fitted([k for k in kept if k != c])[0])
        kept.remove(worst)
    assert set(order[: WIDE - 4]) == set(kept)
    np.testing.assert_allclose(kernels[WIDE - 4], fitted(kept)[1], atol=1e-6)


def test_what_cannot_be_done_is_refused() -> None:
    graph = network()
    trial = trial_for(graph)
    with pytest.raises(ExportError, match=r"cannot leave 1 % .* blocks give as much as leaves 2"):
        prune(graph, trial, ["a", "b"], 0.01, 1.0)
    with pytest.raises(ExportError, match=r"pruning costs .* more than -100; nothing was written"):
        prune(graph, trial, ["a", "b"], 0.8, -1.0)
    other = network(head="none")
    with pytest.raises(ExportError, match="head is no linear layer"):
        Whole(other, trial)


def test_fewer_channels_and_8_bits_are_judged_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "_SMALLER", 100.0)  # names outweigh these few weights
    graph = network(twins=True)
    trial, report = trial_for(graph), dict[str, Any]()
    made = _made_smaller(graph, ["a", "b"], Smaller(trial, 0.1), Smaller(trial, 0.1, 0.55), report)
    assert list(report) == ["pruned", "int8", "both"]
    pruned, both = report["pruned"], report["both"]
    assert pruned["gmacs"]["pruned"] <= 0.55 * pruned["gmacs"]["float"]
    assert pruned["drop"] == 0 and pruned["negative_flips"] == []
    assert {own["after"] for own in pruned["channels"].values()} < set(range(WIDE))
    assert both["bytes"] == {"float": len(graph), "both": len(made)}
    assert both["mean_class_recall"]["before"] == pruned["mean_class_recall"]["before"]
    assert both["mean_class_recall"]["after"] == report["int8"]["mean_class_recall"]["after"]
    assert set(both["ms_one_image_one_thread"]) == {"float", "both"}
