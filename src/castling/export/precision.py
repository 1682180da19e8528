"""Precisions of exported files, and how far a file of less than float32 may be from its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

#: What a file computes with; see :func:`castling.export`.
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Limits:
    """What a file of reduced precision must reach; an absolute tolerance says little about it.

    Attributes:
        max_error: largest relative error ‖file − model‖ / ‖model‖ of any output, at any shape and
            over all real images.
        min_agreement: least share in [0, 1] of what the task concludes in which file and model
            agree on real images: the best class, the labels of pixels, detections that match.
    """

    max_error: float
    min_agreement: float


#: Rounding to float16 costs about 0.3 % of an output, int8 weights and activations a few per cent;
#: files that are wrong are off by much more.
DEFAULT_LIMITS: dict[Precision, Limits] = {"fp16": Limits(0.02, 0.99), "int8": Limits(0.1, 0.95)}

#: What to do about a file that is too far off.
REMEDIES: dict[Precision, str] = {
    "fp16": "export in fp32, or allow it (max_error=, min_agreement=; --max_error, "
    "--min_agreement)",
    "int8": "calibrate on more images of the kind that the model will see, export in fp16, or "
    "allow it (max_error=, min_agreement=; --max_error, --min_agreement)",
}


def read_limits(
    precision: Precision, max_error: float | None, min_agreement: float | None
) -> Limits | None:
    """The limits of a precision, those given in the place of the defaults; None for fp32.

    Raises:
        ValueError: no such precision, a limit is no number that it can be, or fp32 is given one.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "fp32":
        if max_error is not None or min_agreement is not None:
            raise ValueError(
                "max_error and min_agreement are for fp16 and int8; a file in fp32 must be within "
                "tolerance"
            )
        return None
    default = DEFAULT_LIMITS[precision]
    limits = Limits(
        default.max_error if max_error is None else max_error,
        default.min_agreement if min_agreement is None else min_agreement,
    )
    if not limits.max_error >= 0:
        raise ValueError(f"max_error must not be negative, got {limits.max_error:g}")
    if not 0 <= limits.min_agreement <= 1:
        raise ValueError(f"min_agreement must be in [0, 1], got {limits.min_agreement:g}")
    return limits


def require_precision(name: str, precision: Precision, offered: Sequence[Precision]) -> None:
    """Raise ValueError unless the target called ``name`` offers the precision."""
    if precision not in offered:
        raise ValueError(
            f"the {name} target writes {', '.join(offered)}, not {precision}: the onnx (.onnx) and "
            "openvino (.xml) targets write fp32, fp16 and int8"
        )


def hold_out(
    precision: Precision, images: Tensor | None, calibration: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Images to compare on and images to calibrate with, none of which is both.

    Args:
        precision: of the file.
        images: (N, 3, H, W), or None.
        calibration: (M, 3, H, W); None takes every second of ``images`` where it is needed.

    Returns:
        (images to compare on, images to calibrate with); the latter for int8 alone.

    Raises:
        ValueError: int8 without images, or images to calibrate with for another precision.
    """
    if precision != "int8":
        if calibration is not None:
            raise ValueError(f"calibration images are for int8; {precision} needs none")
        return images, None
    given = 0 if images is None else len(images)
    if images is None or given < (2 if calibration is None else 1):
        raise ValueError(
            f"int8 needs real images, got {given}: some to find the range of every activation, and "
            "others to compare on. Pass images= (castling export: --data), at least two, better "
            "some hundred"
        )
    if calibration is not None:
        if not len(calibration):
            raise ValueError("calibration holds no images")
        return images, calibration
    return images[1::2], images[::2]
