"""Models as files for other runtimes, verified in those runtimes before they are kept.

The package is callable: ``castling.export(model, path)`` is :func:`export`.
"""

import sys
from types import ModuleType

from castling.export import targets as targets
from castling.export.exported_model import ExportedModel
from castling.export.exporting import export
from castling.export.outputs import RawOutputs
from castling.export.precision import Limits, Precision
from castling.export.report import ExportReport, ImageCheck, OutputCheck, ShapeCheck, Speed
from castling.export.sizes import OneSizeError
from castling.export.target import (
    DisagreementError,
    Dynamic,
    ExportError,
    ExportJob,
    Target,
    list_targets,
    open_exported,
    register_target,
    target_for,
)

__all__ = [
    "DisagreementError",
    "Dynamic",
    "ExportError",
    "ExportJob",
    "ExportReport",
    "ExportedModel",
    "ImageCheck",
    "Limits",
    "OneSizeError",
    "OutputCheck",
    "Precision",
    "RawOutputs",
    "ShapeCheck",
    "Speed",
    "Target",
    "export",
    "list_targets",
    "open_exported",
    "register_target",
    "target_for",
]


class _CallablePackage(ModuleType):
    """Python binds an imported subpackage in ``castling``, over a function of the same name."""

    __call__ = staticmethod(export)


sys.modules[__name__].__class__ = _CallablePackage
