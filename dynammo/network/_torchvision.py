"""Make `import torchvision` (which timm needs) work beside a CPU-only torch.

PyPI's torchvision is built against CUDA. Beside a CPU build of torch its compiled operators do not
load, and importing it fails with "operator torchvision::nms does not exist", because a Python
module describes two operators that nobody declared. Declaring their schemas first is enough: this
package never calls them. Where torchvision's own library loads, or the import already happened,
nothing is done.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # the declarations live as long as this object


def declare_missing_operators() -> bool:
    """Declare `torchvision::nms` and `qnms` where torchvision's library cannot. True if it did."""
    global _library
    if "torchvision" in sys.modules or _library is not None or _compiled_library_loads():
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _library = library
    return True


def _compiled_library_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to mend; importing it will say that it is not installed
    for library in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
        return True
    return False
