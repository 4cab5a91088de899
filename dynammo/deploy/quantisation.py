"""An ONNX graph with convolutions in 8 bits.

Weights are int8, a scale a channel; activations uint8, a scale a tensor, found on images (static
quantisation, QuantizeLinear/DequantizeLinear pairs that ONNX Runtime fuses). Activation functions
and sums between convolutions are in 8 bits, too: left out, each would be computed in float between
two conversions, and a convolution's range would be that before its clipping, up to ten times wider.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynammo.deploy.trial import (
    Labelled,
    Logits,
    Trial,
    compared,
    divergence,
    ece,
    judged,
    logits_on,
    shuffled,
    temperature_of,
)
from dynammo.errors import ExportError
from dynammo.extras import needs

with needs("export", "onnx"):
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantType,
        create_calibrator,
    )
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

_OPERATIONS = ("Conv", "Clip", "Relu", "Add", "MaxPool")
_METHODS = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
_CALIBRATED_ON, _CHOSEN_ON = 256, 512  # images at most
_FLOAT = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # convolutions
_FEW = 6  # of these, where recall does not ask for more
_PAYS = 0.8  # times as much harm is worth more convolutions in float
_SMALLER = 0.7  # of the float graph's bytes, or hardly anything could be quantised


class Quantised(NamedTuple):
    """The graph, and what was chosen and measured."""

    graph: bytes
    report: dict[str, Any]


def quantise(graph: bytes, trial: Trial, classes: Sequence[str], max_drop: float) -> Quantised:
    """Make the convolutions of a graph 8-bit, but for as many of the first as this harms.

    Of the images it is made on, one half gives the ranges, once; on the other the range rule (all
    values, or all but a few), how many convolutions stay float and the temperature are chosen.
    Harm is the mean Kullback-Leibler divergence of the class probabilities from the float model's.
    The first convolutions do most, so up to six of them stay float where that lowers it by a fifth
    each time; while mean class recall falls by more than `max_drop`, more do. (Single ones further
    back are not worth it: the two that seemed most sensitive, left float, took a skin8 model from a
    divergence of 0.01 to 0.37 in ONNX Runtime 1.31.) The temperature is that with which the
    probabilities are nearest to the float model's, so that it is as calibrated as that; it is in
    the graph.

    Args:
        graph: float, as `dynammo.deploy.export` writes it.
        trial: labelled images.
        classes: of the model.
        max_drop: of mean class recall on the images it is judged on, in [0, 1].

    Raises:
        ExportError: it costs more, or hardly anything of the network is a convolution.
    """
    made_on = trial.made_on
    images, targets, names = shuffled(made_on)
    half = slice(1, 2 * _CHOSEN_ON, 2)
    chosen_on = Labelled(images[half], targets[half], names[half])
    wanted = logits_on(graph, chosen_on.images)
    quantiser = _Quantiser(graph)
    if not quantiser.convolutions:
        raise ExportError("this network has no convolutions: nothing to quantise")

    def tried(rule: str, count: int) -> _Tried:
        made = quantiser.made(found[rule], count)
        own = logits_on(made, chosen_on.images)
        return _Tried(rule, count, made, own, divergence(wanted, own))

    calibrated_on = images[::2][:_CALIBRATED_ON]
    found = {name: _ranges(graph, calibrated_on, method) for name, method in _METHODS.items()}
    candidates = [tried(rule, 0) for rule in found]
    best = min(candidates, key=lambda one: one.harm)
    for count in [count for count in _FLOAT if count <= quantiser.convolutions]:
        needed = compared(wanted, best.logits, chosen_on, classes)["drop"] > max_drop
        if not needed and count > _FEW:
            break
        candidates.append(tried(best.rule, count))
        if needed or candidates[-1].harm < _PAYS * best.harm:
            best = candidates[-1]
    made, own = best.graph, best.logits
    temperature = temperature_of(wanted, own)
    made = _cooled(made, temperature)
    cost, after = judged("int8", "int8", (graph, made), trial, classes, max_drop)
    cost["ece"]["without_temperature"] = ece(after * temperature, trial.judged_on.targets)
    if len(made) > _SMALLER * len(graph):
        share = 100 * len(made) / len(graph)
        raise ExportError(
            f"with what can be quantised the graph has {share:.0f} % of its bytes: not worth it"
        )
    return Quantised(
        made,
        {
            "ranges": best.rule,
            "float_convolutions": best.left,
            "convolutions": quantiser.convolutions,
            "harm": [
                {"ranges": one.rule, "float_convolutions": one.left, "divergence": one.harm}
                for one in candidates
            ],
            "temperature": temperature,
            "made_on": len(made_on.targets),
            **cost,
        },
    )


class _Tried(NamedTuple):
    rule: str
    left: int
    graph: bytes
    logits: Logits
    harm: float


class _Quantiser:
    """A graph, to be quantised several times."""

    def __init__(self, graph: bytes) -> None:
        self.graph = graph
        nodes = onnx.load_from_string(graph).graph.node
        self._names = [node.name for node in nodes if node.op_type == "Conv"]
        self.convolutions = len(self._names)
        made_by_convolutions = {node.output[0] for node in nodes if node.op_type == "Conv"}
        used = {name for node in nodes if node.op_type in _OPERATIONS for name in node.input}
        # What neither follows a convolution nor is followed by one of these is the head's business.
        self._last = [
            node.name
            for node in nodes
            if node.op_type in _OPERATIONS[1:]
            and not made_by_convolutions & set(node.input)
            and node.output[0] not in used
        ]

    def made(self, ranges: Any, count: int) -> bytes:
        """The graph in 8 bits, but for its first `count` convolutions."""
        quantizer = QDQQuantizer(
            onnx.load_from_string(self.graph),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,  # clipped ones are not negative
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=[*self._names[:count], *self._last],
            op_types_to_quantize=list(_OPERATIONS),
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        content: bytes = quantizer.model.model.SerializeToString()
        return content


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """One batch: of several, the calibrator would hold every tensor until the last."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._batches = [images]

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The batch, once."""
        return {"images": self._batches.pop()} if self._batches else None


def _ranges(graph: bytes, images: NDArray[np.uint8], method: CalibrationMethod) -> Any:
    """Of every tensor."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder, "graph.onnx")
        path.write_bytes(graph)
        calibrator = create_calibrator(
            path,
            list(_OPERATIONS),
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=method,
        )
        for start in range(0, len(images), 16):
            calibrator.collect_data(_Reader(images[start : start + 16]))
        return calibrator.compute_data()


def _cooled(graph: bytes, temperature: float) -> bytes:
    """The graph with its logits divided by a temperature."""
    proto = onnx.load_from_string(graph)
    nodes = list(proto.graph.node)
    place = next(i for i, node in enumerate(nodes) if "logits" in node.output)
    nodes[place].output[list(nodes[place].output).index("logits")] = "logits_of_8_bits"
    value = onnx.numpy_helper.from_array(np.array(temperature, np.float32), "temperature")
    proto.graph.initializer.append(value)
    division = onnx.helper.make_node("Div", ["logits_of_8_bits", "temperature"], ["logits"])
    division.name = "node_temperature"
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes[: place + 1], division, *nodes[place + 1 :]])
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString()
    return content
