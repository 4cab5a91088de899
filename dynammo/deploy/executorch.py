"""ExecuTorch's form of a model, for phones and boards, computed by XNNPACK."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dynammo.errors import ExportError
from dynammo.extras import needs

with needs("executorch", "executorch"):
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime


def to_executorch(program: ExportedProgram, texts: Mapping[str, str]) -> bytes:
    """The `.pte` file of a program that takes one image.

    Args:
        program: (1, 3, S, S) uint8 -> logits and probabilities, (1, C).
        texts: what methods of these names are to answer.

    Raises:
        ExportError: ExecuTorch cannot convert the network.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # torch's own code
            lowered = to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()], constant_methods=dict(texts)
            )
            return bytes(lowered.to_executorch().buffer)
    except Exception as error:  # whatever the conversion of any operation raises
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"ExecuTorch cannot convert this network: {reason}") from None


def load_executorch(path: Path) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """(B, 3, S, S) uint8 -> logits and probabilities, (B, C), image by image, by such a file.

    The function raises ExportError where XNNPACK, which sees shapes only now, cannot compute it.
    """
    method = Runtime.get().load_program(path).load_method("forward")
    assert method is not None

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        try:  # what it gives is its own memory, which the next image overwrites
            answers = [[part.clone() for part in method.execute([own])] for own in images.split(1)]
        except RuntimeError as error:
            raise ExportError(f"ExecuTorch cannot run this network: {error}") from None
        logits, probabilities = (torch.cat(parts) for parts in zip(*answers, strict=True))
        return logits, probabilities

    return run
