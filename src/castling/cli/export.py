"""The verb that writes a model for another runtime."""

from __future__ import annotations

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveInt

from castling.cli.parts import add_overwrite, data_of, parser_for, read_size, show


def export(arguments: list[str]) -> int:
    """See VERBS."""
    parser = parser_for("export")
    parser.add_argument("model", help="folder of a run or of a saved model")
    parser.add_argument(
        "output",
        nargs="?",
        help=".onnx, .xml (OpenVINO), .pt2 (torch.export) or .pte (ExecuTorch) "
        "(default: MODEL/model.onnx)",
    )
    parser.add_argument(
        "--target", help="onnx, openvino, program or executorch (default: by the suffix)"
    )
    parser.add_argument(
        "--portable", action="store_true", help="a .pt2 file that runs without castling, slower"
    )
    parser.add_argument(
        "--precision",
        choices=["fp32", "fp16", "int8"],
        default="fp32",
        help="fp16 and int8: .onnx and .xml; attention kernels stay in fp32 (default: fp32)",
    )
    parser.add_argument("--size", help="HEIGHTxWIDTH or a side (default: that of training)")
    parser.add_argument("--verify", nargs="+", default=[], help="further sizes to verify at")
    parser.add_argument(
        "--data",
        help="images to verify on, and to calibrate int8 with: digits, a folder, a zip or "
        "torchvision:NAME (default: those of the run; of a classifier in fp32 noise)",
    )
    parser.add_argument(
        "--images",
        type=PositiveInt,
        help="validation images to verify on, at most, and as many training images to calibrate "
        "int8 with (default: 8 in fp32, else 64)",
    )
    parser.add_argument(
        "--dynamic",
        choices=["auto", "all", "batch", "none"],
        default="auto",
        help="what may change later: batch, height and width (all), the batch alone, or nothing; "
        "auto: all, or batch where the model or the file runs at one size only (default: auto)",
    )
    parser.add_argument("--opset", type=int, help="ONNX operator set (default: the exporter's)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="in fp32: largest difference (default: 0.0001)",
    )
    parser.add_argument(
        "--max_error",
        type=NonNegativeFloat,
        help="in fp16 and int8: largest relative error of an output (default: 0.02 and 0.1)",
    )
    parser.add_argument(
        "--min_agreement",
        type=ClosedUnitInterval,
        help="in fp16 and int8: least share of real images with the same best class, of pixels "
        "with the same label, or of detections that match (default: 0.99 and 0.95)",
    )
    add_overwrite(parser)
    values = parser.parse_args(arguments)
    from castling.deploy import export_saved

    report = export_saved(
        values.model,
        values.output,
        read_size(values.size) if values.size else None,
        data=data_of(values.data),
        images=values.images,
        precision=values.precision,
        verify_sizes=[read_size(text) for text in values.verify] or None,
        target=values.target,
        dynamic=values.dynamic,
        opset=values.opset,
        portable=values.portable,
        tolerance=values.tolerance,
        max_error=values.max_error,
        min_agreement=values.min_agreement,
        overwrite=values.overwrite,
    )
    show(values, report.to_dict(), str(report))
    return 0
