"""An ONNX graph with fewer channels inside its blocks.

A block widens few channels to many, filters each by itself and narrows them again: a convolution,
activations and depthwise convolutions, a 1x1 convolution (inverted residuals, bottlenecks). A
channel of the wide middle is a row of the first, a filter of the second and a column of the third;
without it nothing else in the graph changes, and the others' kernels are the same ones, smaller.

With h the middle's channels in front of the last convolution W, S the mean of h h^T over images and
pixels (h with a one for the bias), and V the columns that are kept, refitted, what a block loses is

    E |W h - V h_kept|^2,    at its least for V = W S[:, kept] S[kept, kept]^-1.

Taking channel j away adds |V_j|^2 / (S^-1)_jj to it: the least goes first, and S^-1 and V follow by
a rank-one update (optimal brain surgeon: Hassibi and Stork 1993; with columns: Kurtic et al.,
ZipLM, arXiv 2302.04089). How many each block gives is decided by what the answers lose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynammo.deploy.graph import open_session
from dynammo.deploy.trial import (
    Trial,
    divergence,
    judged,
    logits_on,
    shuffled,
    temperature_of,
)
from dynammo.errors import ExportError
from dynammo.extras import needs

with needs("export", "onnx"):
    import onnx

_FITTED_ON, _TRIED_ON = 512, 128  # images at most
_LEFT = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4)  # of a block's channels
_STEP = 16  # channels that processors compute at once
_RIDGE = 0.01  # of the mean square of a channel: the kernel stays near what it was
_ONE_BY_ONE = ("Clip", "Relu", "HardSwish", "Sigmoid", "LeakyRelu")

Matrix = NDArray[np.float64]
Rows = NDArray[np.float32]


class Block(NamedTuple):
    """Names of `convolutions` from the one that widens to the one that narrows, of the tensor in
    front of the last (`inner`), and of what the block's `output` is added to (none: nothing).
    """

    convolutions: list[str]
    inner: str
    output: str
    added_to: str | None
    sum: str | None
    channels: int


class Pruned(NamedTuple):
    """The graph, and what was chosen and measured."""

    graph: bytes
    report: dict[str, Any]


def prune(
    graph: bytes, trial: Trial, classes: Sequence[str], share: float, max_drop: float
) -> Pruned:
    """Take channels out of a graph's blocks until a share of its multiplications is left.

    The images it is made on need no labels. One half gives the moments; on the other is tried how
    far each block's loss moves the class probabilities, and channels go where that is least for the
    multiplications saved (`Whole`). Test images judge what comes out.

    Args:
        graph: float, as `dynammo.deploy.export` writes it.
        trial: labelled images.
        classes: of the model.
        share: of the multiplications that may be left, in (0, 1).
        max_drop: of mean class recall on the images it is judged on, in [0, 1].

    Raises:
        ExportError: it costs more, or the blocks cannot give so much.
    """
    whole = Whole(graph, trial)
    made = whole.smaller(share)
    if made is None:
        raise ExportError(
            f"pruning cannot leave {100 * share:.0f} % of this network's multiplications: its "
            f"blocks give as much as leaves {100 * whole.least:.0f} %"
        )
    cost, _ = judged("pruning", "pruned", (graph, made), trial, classes, max_drop)
    return Pruned(
        made,
        {
            "share": share,
            "gmacs": {"float": gmacs(graph), "pruned": gmacs(made)},
            "channels": {
                block.inner: {"before": block.channels, "after": left.channels}
                for block, left in zip(
                    blocks(onnx.load_from_string(graph)),
                    blocks(onnx.load_from_string(made)),
                    strict=True,
                )
            },
            "made_on": len(trial.made_on.targets),
            **cost,
        },
    )


class Whole:
    """A graph to be made smaller, and what is measured of it once: of each block the order in which
    its channels go, and what that does to the answers.

    Raises:
        ExportError: it has no blocks, or a head that is no linear layer.

    Attributes:
        least: share of the multiplications that is left where every block gives all it can.
    """

    def __init__(self, graph: bytes, trial: Trial) -> None:
        images = shuffled(trial.made_on).images
        self._images, self._others = images[::2][:_FITTED_ON], images[1::2][:_FITTED_ON]
        tried_on = self._others[:_TRIED_ON]
        self.graph = graph
        self._blocks = blocks(onnx.load_from_string(graph))
        if not self._blocks:
            raise ExportError("this network has no blocks that widen and narrow: nothing to prune")
        if _head(onnx.load_from_string(graph)).op_type != "Gemm":
            raise ExportError("this network's head is no linear layer: it cannot be fitted again")
        self._orders = {
            block.inner: _eliminated(graph, block, self._moments(block)) for block in self._blocks
        }
        wanted = logits_on(graph, tried_on)
        whole = gmacs(graph)
        # Of each block: channels left, multiplications saved, divergence.
        self._costs: dict[str, list[tuple[int, float, float]]] = {}
        for block in self._blocks:
            rows = [(block.channels, 0.0, 0.0)]
            for left in _levels(block.channels):
                made = self._without({block.inner: left})
                harm = divergence(wanted, logits_on(made, tried_on))
                rows.append((left, whole - gmacs(made), max(harm, rows[-1][2])))
            self._costs[block.inner] = rows
        self.least = 1 - sum(rows[-1][1] for rows in self._costs.values()) / whole

    def smaller(self, share: float) -> bytes | None:
        """With at most a share of the multiplications; None: these blocks cannot give so much.

        Block after block, the last convolution is fitted to give what the whole graph's block gave
        (with what it is added to, so that what went wrong before is put right), from what the
        smaller blocks before it give now; and the head likewise, to give the logits. Its scale is
        then that with which the probabilities are nearest to the whole graph's on other images.
        """
        left = self._allotted((1 - share) * gmacs(self.graph))
        if left is None:
            return None
        proto = onnx.load_from_string(self._without(left))
        for block in self._blocks:
            now = proto.SerializeToString()
            _refit(proto, block, self._pairs(now, block))
        self._refit_head(proto)
        content: bytes = proto.SerializeToString()
        return content

    def _allotted(self, saving: float) -> dict[str, int] | None:
        """Channels left by block: the cheapest next step, again and again, until it is enough."""
        place = dict.fromkeys(self._costs, 0)

        def saved() -> float:
            return sum(self._costs[name][at][1] for name, at in place.items())

        while saved() < saving:
            steps = []
            for name, rows in self._costs.items():
                _, had, harm = rows[place[name]]
                for to, (_, gives, harms) in enumerate(rows):
                    if to > place[name]:
                        steps.append(((harms - harm) / (gives - had), name, to))
            if not steps:
                return None
            _, name, to = min(steps)
            place[name] = to
        return {name: self._costs[name][at][0] for name, at in place.items() if at}

    def _without(self, left: Mapping[str, int]) -> bytes:
        proto = onnx.load_from_string(self.graph)
        for block in self._blocks:
            if block.inner in left:
                order, kernels = self._orders[block.inner]
                count = left[block.inner]
                kept = np.sort(order[:count])
                _cut(proto, block, kept, kernels[count])
        content: bytes = proto.SerializeToString()
        return content

    def _refit_head(self, proto: Any) -> None:
        node = _head(proto)
        wanted = logits_on(self.graph, self._images)
        now = proto.SerializeToString()
        found = outputs_of(now, [node.input[0]], self._images)
        h = _with_one(np.concatenate([features for (features,) in found])).astype(np.float64)
        turned = any(own.name == "transB" and own.i for own in node.attribute)
        weight, bias = (_value(proto, name).astype(np.float64) for name in node.input[1:])
        kernel = np.hstack([weight if turned else weight.T, bias[:, None]])
        kernel = _ridged(h.T @ h / len(h), wanted.T @ h / len(h), kernel)

        def put(made: Matrix) -> None:
            own = made[:, :-1] if turned else made[:, :-1].T
            _set(proto, node.input[1], own.astype(np.float32))
            _set(proto, node.input[2], made[:, -1].astype(np.float32))

        put(kernel)
        theirs, own = (logits_on(g, self._others) for g in (self.graph, proto.SerializeToString()))
        put(kernel / temperature_of(theirs, own))

    def _moments(self, block: Block) -> Matrix:
        """Mean of h h^T, h with a one at its end."""
        total: Any = 0
        count = 0
        for (rows,) in outputs_of(self.graph, [block.inner], self._images):
            h = _with_one(rows)
            total, count = total + h.T @ h, count + len(h)
        return np.asarray(total, np.float64) / count

    def _pairs(self, graph: bytes, block: Block) -> Iterator[tuple[Rows, Rows]]:
        """What the smaller graph's last convolution is given, and what it should make of it."""
        names = [block.inner, *([block.added_to] if block.added_to else [])]
        own = outputs_of(graph, names, self._images)
        aim = outputs_of(self.graph, [block.sum or block.output], self._images)
        for now, (target,) in zip(own, aim, strict=True):
            yield _with_one(now[0]), target - now[1] if block.added_to else target


def blocks(proto: Any) -> list[Block]:
    """Those of a graph of which channels can go, in its order."""
    made_by = {name: node for node in proto.graph.node for name in node.output}
    users: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    weights = {own.name: list(own.dims) for own in proto.graph.initializer}
    found: list[Block] = []
    for last in proto.graph.node:
        if not _is_pointwise(last, weights):
            continue
        chain, name = [last], last.input[0]
        while (node := made_by.get(name)) is not None and len(users[name]) == 1:
            if node.op_type == "Conv" and len(node.input) == 3:
                chain.append(node)
                if _groups(node) == 1:
                    break
                if _groups(node) != weights[node.input[1]][0] or weights[node.input[1]][1] != 1:
                    break
            elif node.op_type not in _ONE_BY_ONE:
                break
            name = node.input[0]
        first = chain[-1]
        if len(chain) < 2 or first.op_type != "Conv" or _groups(first) != 1:
            continue
        if found and first.name == found[-1].convolutions[-1]:
            continue  # a convolution narrows one block or widens another
        output = last.output[0]
        onwards = users.get(output, [])
        added = onwards[0] if len(onwards) == 1 and onwards[0].op_type == "Add" else None
        other = next((n for n in added.input if n != output), None) if added else None
        found.append(
            Block(
                [node.name for node in reversed(chain)],
                last.input[0],
                output,
                other,
                added.output[0] if added else None,
                weights[first.input[1]][0],
            )
        )
    return found


def _is_pointwise(node: Any, weights: Mapping[str, list[int]]) -> bool:
    shape = weights.get(node.input[1]) if node.op_type == "Conv" and len(node.input) == 3 else None
    if shape is None or shape[2:] != [1, 1] or _groups(node) != 1:
        return False
    set_ = {own.name: list(own.ints) for own in node.attribute if own.ints}
    return set(set_.get("strides", [1])) == {1} and set(set_.get("pads", [0])) == {0}


def _groups(node: Any) -> int:
    return next((own.i for own in node.attribute if own.name == "group"), 1)


def _levels(channels: int) -> list[int]:
    step = _STEP if channels >= 4 * _STEP else max(channels // 8, 1)
    return sorted({max(round(channels * part / step), 1) * step for part in _LEFT}, reverse=True)


def _eliminated(
    graph: bytes, block: Block, moments: Matrix
) -> tuple[NDArray[np.int64], dict[int, Matrix]]:
    """The channels, the one that goes last first, and kernels (O, kept + 1) by how many are kept,
    columns in the order of the channels, the bias last.
    """
    kernel = _kernel(onnx.load_from_string(graph), block)
    channels = kernel.shape[1] - 1
    ridge = _RIDGE * np.trace(moments[:-1, :-1]) / channels
    inverse = np.linalg.inv(moments + ridge * np.diag([*np.ones(channels), 0.0]))
    there = np.ones(channels + 1, bool)
    gone: list[int] = []
    levels = _levels(channels)
    kernels = {}
    while channels - len(gone) > levels[-1]:
        loss = np.full(channels, np.inf)
        left = np.flatnonzero(there[:-1])
        loss[left] = np.square(kernel[:, left]).sum(0) / np.diag(inverse)[left]
        worst = int(loss.argmin())
        row, corner = inverse[worst].copy(), inverse[worst, worst]
        kernel -= np.outer(kernel[:, worst] / corner, row)
        inverse -= np.outer(row / corner, row)
        kernel[:, worst] = 0
        there[worst] = False
        gone.append(worst)
        if (count := channels - len(gone)) in levels:
            kernels[count] = kernel[:, there].copy()
    stay = np.flatnonzero(there[:-1])
    return np.array([*stay, *reversed(gone)], np.int64), kernels


def _kernel(proto: Any, block: Block) -> Matrix:
    """(O, I + 1) of the last convolution, its bias as the last column."""
    node = _node(proto, block.convolutions[-1])
    weight, bias = (_value(proto, name).astype(np.float64) for name in node.input[1:])
    return np.hstack([weight[:, :, 0, 0], bias[:, None]])


def _cut(proto: Any, block: Block, kept: NDArray[np.int64], kernel: Matrix) -> None:
    for name in block.convolutions[:-1]:
        node = _node(proto, name)
        for tensor in node.input[1:]:
            _set(proto, tensor, _value(proto, tensor)[kept])
        for own in node.attribute:
            if own.name == "group" and own.i > 1:
                own.i = len(kept)
    _set_kernel(proto, block, kernel)


def _set_kernel(proto: Any, block: Block, kernel: Matrix) -> None:
    weight, bias = _node(proto, block.convolutions[-1]).input[1:]
    _set(proto, weight, kernel[:, :-1, None, None].astype(np.float32))
    _set(proto, bias, kernel[:, -1].astype(np.float32))


def _refit(proto: Any, block: Block, pairs: Iterator[tuple[Rows, Rows]]) -> None:
    """Of all V that of the least E |V h - t|^2 + ridge |V - V_now|^2."""
    square: Any = 0
    product: Any = 0
    count = 0
    for h, target in pairs:
        square, product, count = square + h.T @ h, product + target.T @ h, count + len(h)
    _set_kernel(
        proto,
        block,
        _ridged(np.asarray(square) / count, np.asarray(product) / count, _kernel(proto, block)),
    )


def _ridged(square: Matrix, product: Matrix, now: Matrix) -> Matrix:
    """(O, I + 1) of the least error, near `now`; the bias is free."""
    channels = len(square) - 1
    penalty = _RIDGE * np.trace(square[:-1, :-1]) / channels * np.diag([*np.ones(channels), 1e-6])
    return np.linalg.solve(square + penalty, (product + now @ penalty).T).T


def _head(proto: Any) -> Any:
    return next(node for node in proto.graph.node if "logits" in node.output)


def outputs_of(
    graph: bytes, names: Sequence[str], images: NDArray[np.uint8]
) -> Iterator[list[NDArray[np.float32]]]:
    """Tensors of a graph, batch after batch, a row a pixel: (B H W, C)."""
    proto = onnx.load_from_string(graph)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = open_session(proto.SerializeToString(), 1)
    for start in range(0, len(images), 32):
        found = session.run(list(names), {"images": images[start : start + 32]})
        yield [
            value if value.ndim == 2 else value.transpose(0, 2, 3, 1).reshape(-1, value.shape[1])
            for value in found
        ]


def gmacs(graph: bytes) -> float:
    """Of one image: those of convolutions and matrix products, 10^9."""
    proto = onnx.load_from_string(graph)
    shapes = {  # 0 for the batch
        own.name: [dim.dim_value for dim in own.type.tensor_type.shape.dim]
        for own in onnx.shape_inference.infer_shapes(proto).graph.value_info
    }
    weights = {own.name: list(own.dims) for own in proto.graph.initializer}
    total = 0
    for node in proto.graph.node:
        if node.op_type == "Conv":
            pixels = int(np.prod(shapes[node.output[0]][2:]))
            total += pixels * int(np.prod(weights[node.input[1]]))
        elif node.op_type == "Gemm":
            total += int(np.prod(weights[node.input[1]]))
    return total / 1e9


def _with_one(rows: Rows) -> Rows:
    return np.hstack([rows, np.ones((len(rows), 1), np.float32)])


def _node(proto: Any, name: str) -> Any:
    return next(node for node in proto.graph.node if node.name == name)


def _value(proto: Any, name: str) -> NDArray[np.float32]:
    array: NDArray[np.float32] = onnx.numpy_helper.to_array(
        next(own for own in proto.graph.initializer if own.name == name)
    )
    return array


def _set(proto: Any, name: str, value: NDArray[np.float32]) -> None:
    tensor = next(own for own in proto.graph.initializer if own.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
