"""Exported files that were run again before they are handed over."""

from castling.export.onnx_export import export
from castling.export.verification import ExportError, ExportReport, ShapeCheck

__all__ = ["ExportError", "ExportReport", "ShapeCheck", "export"]
