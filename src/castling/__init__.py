"""Vision transformers whose attention costs O(N): train, convert, switch, prove, export.

Importing the package registers its models with timm; what sits higher (training, export, measuring)
is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from castling import heads as heads  # imported for what it registers
from castling import models as models
from castling.attention import (
    ConvolutionalAdditive,
    Cosine,
    ELULinear,
    FirstOrderTaylor,
    Hedgehog,
    LinearAngular,
    MaskedSoftmax,
    Mean,
    Pooling,
    QuadraticAngular,
    QuadraticTaylor,
    ReLULinear,
    Separable,
    SigmoidSoftmax,
    Softmax,
    Swift,
    list_attentions,
)
from castling.models.builder import create_model
from castling.models.registry import list_models
from castling.ops.backends import (
    BackendError,
    attention_backend,
    available_backends,
    describe_backends,
)
from castling.ops.macs import macs
from castling.surgery import (
    FoldReport,
    LoadReport,
    Plan,
    PlanError,
    SwitchRefusedError,
    SwitchReport,
    fold_,
    linearize_,
    load_checkpoint,
    load_plan,
    load_transformers,
    switch_,
    tap,
)
from castling.utils.text import nearest, suggestion
from castling.utils.version import VERSION

if TYPE_CHECKING:
    from castling.conversion import convert
    from castling.deploy import Predictor
    from castling.explanation import explain
    from castling.export import export
    from castling.profiling.planning import plan


__version__ = VERSION

# Names of earlier versions, from when backends were called paths.
PathError = BackendError
attention_path = attention_backend
available_paths = available_backends
describe_paths = describe_backends

_LAZY = {
    "Predictor": "castling.deploy",
    "convert": "castling.conversion",
    "explain": "castling.explanation",
    "export": "castling.export",
    "plan": "castling.profiling.planning",
}

#: Packages with further public names; those that are not imported yet are on first use.
_PACKAGES = (
    "attention",
    "conversion",
    "data",
    "deploy",
    "explanation",
    "models",
    "ops",
    "profiling",
    "surgery",
    "tasks",
    "train",
)

__all__ = [
    "BackendError",
    "ConvolutionalAdditive",
    "Cosine",
    "ELULinear",
    "FirstOrderTaylor",
    "FoldReport",
    "Hedgehog",
    "LinearAngular",
    "LoadReport",
    "MaskedSoftmax",
    "Mean",
    "PathError",
    "Plan",
    "PlanError",
    "Pooling",
    "Predictor",
    "QuadraticAngular",
    "QuadraticTaylor",
    "ReLULinear",
    "Separable",
    "SigmoidSoftmax",
    "Softmax",
    "Swift",
    "SwitchRefusedError",
    "SwitchReport",
    "attention_backend",
    "attention_path",
    "available_backends",
    "available_paths",
    "convert",
    "create_model",
    "describe_backends",
    "describe_paths",
    "explain",
    "export",
    "fold_",
    "linearize_",
    "list_attentions",
    "list_models",
    "load_checkpoint",
    "load_plan",
    "load_transformers",
    "macs",
    "plan",
    "switch_",
    "tap",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _PACKAGES:
        return import_module(f"castling.{name}")
    near = nearest(name, __dir__())
    raise AttributeError(f"module 'castling' has no attribute {name!r}{suggestion(near)}")


def __dir__() -> list[str]:
    """What is public, what is imported when it is first used included."""
    return sorted({*__all__, *_PACKAGES, "__version__"})
