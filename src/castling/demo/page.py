"""The page that the demo writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from castling.demo.models import MODELS, TWIN, Models
from castling.export import ExportReport
from castling.profiling import report
from castling.profiling.formatting import short
from castling.profiling.model_results import ModelsResult
from castling.profiling.op_results import OpsResult
from castling.profiling.page import Page
from castling.profiling.report_speed import add_speed
from castling.tasks.result import TrainResult


def demo_page(
    folder: Path,
    chosen: Models,
    results: dict[str, TrainResult],
    counts: dict[str, int],
    exported: ExportReport,
    speed: tuple[OpsResult, ModelsResult],
    epochs: int,
    examples: Sequence[tuple[Image.Image, str, str, float]],
) -> Page:
    """Accuracies, curves, the switch, speed, the export and predictions of it.

    Args:
        folder: of the demo.
        chosen: folder → (name, model).
        results: name → training result.
        counts: name → multiply-accumulates of one image.
        exported: of the switched Castling-ViT.
        speed: of attention alone and of whole models.
        epochs: that each model was trained.
        examples: (image, true class, predicted class, probability).
    """
    kernels, models = speed
    page = report.new_page(
        "castling demo",
        "Small vision transformers trained on handwritten digits: two with softmax attention, the "
        "others with attention that costs O(N). All on one machine, nothing downloaded. "
        f"{epochs} epochs on some 1,260 images: the accuracies show how fast each model learns "
        "here, not how far it can go.",
        headline(results, models),
    )
    runs = {name: folder / key for key, (name, _) in chosen.items()}
    report.add_accuracy(page, results, counts, remark=_convolution(results))
    report.add_training(page, runs)
    report.add_trajectories(page, folder / "castling")
    report.add_switch(page, results["Castling-ViT"])
    add_speed(
        page,
        [
            ("Attention kernels alone, 3 heads of 64 channels, against tokens", kernels),
            ("Whole models, as trained here, against image size", models),
        ],
    )
    report.add_export(page, exported.to_dict())
    report.add_predictions(page, examples, "the exported ONNX file of Castling-ViT")
    return page


def headline(results: Mapping[str, TrainResult], measured: ModelsResult) -> str:
    """The demo in a sentence: how many times as fast as softmax, at which accuracy."""
    times = {(row.model, row.size): row.milliseconds for row in measured.measurements}
    mine, theirs = MODELS["castling"][1].name, MODELS["softmax"][1].name
    sides = [side for (model, side), ms in times.items() if model == mine and ms]
    if not sides or not times.get((theirs, max(sides))):
        return ""
    side = max(sides)
    fast, slow = times[mine, side] or 0.0, times[theirs, side] or 0.0
    ours = results["Castling-ViT"]
    accuracy = (ours.switched_metrics or ours.metrics)["test_top1"]
    twin = TWIN if TWIN in results else "softmax ViT"
    how = "times as fast as" if slow > fast else "times the speed of"
    return (
        f"At {side:g} px Castling-ViT is {slow / fast:.2g} {how} the same ViT with softmax "
        f"attention ({short(fast)} against {short(slow)} ms per image on one CPU thread), with "
        f"{accuracy:.1f} % of the test images right against "
        f"{results[twin].metrics['test_top1']:.1f} % of the {twin}."
    )


def _convolution(results: Mapping[str, TrainResult]) -> str:
    """What of the difference to softmax is due to the convolution."""
    with_it = results.get(TWIN)
    if with_it is None:
        return ""
    plain = results["softmax ViT"].metrics["test_top1"]
    return (
        "The plain softmax ViT has no convolution: nothing tells it which patches are neighbours "
        "but its position table, which it has to learn. Castling-ViT adds a depthwise 3×3 "
        "convolution of the values to every attention. The same convolution takes softmax from "
        f"{plain:.1f} % to {with_it.metrics['test_top1']:.1f} % here: compare attentions by that "
        "row, and by speed."
    )
