"""What training, switching, exporting and measuring found, as sections of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from castling.profiling.page import (
    Page,
    badge,
    cards,
    figures,
    gallery,
    paragraph,
    table,
)
from castling.profiling.plots import Curve, Plot, lines
from castling.tasks.result import RESULT, TrainResult, metric_label
from castling.utils.files import read_csv
from castling.utils.text import percent
from castling.utils.version import VERSION


def new_page(title: str, subtitle: str, headline: str = "") -> Page:
    """An empty page signed with our version."""
    return Page(title, subtitle, footer=f"Written by castling {VERSION}.", headline=headline)


def add_accuracy(
    page: Page,
    results: Mapping[str, TrainResult],
    macs: Mapping[str, int] | None = None,
    remark: str = "",
) -> None:
    """One row per run: accuracy before and after the switch, size, training time.

    Args:
        page: is added to.
        results: name → result.
        macs: name → multiply-accumulates of the model in use.
        remark: a paragraph below the table.
    """
    rows = []
    for name, result in results.items():
        rows.append(
            [
                name,
                headline_value(result, "val"),
                headline_value(result, "test"),
                headline_value(result, "test", switched=True)
                if result.switched_metrics
                else ("refused" if result.switch_refused else "–"),
                f"{result.parameters / 1e6:.3f} M",
                f"{macs[name] / 1e6:.2f} M" if macs and name in macs else "–",
                f"{result.seconds:.0f} s",
            ]
        )
    page.add(
        "Accuracy",
        table(
            ["model", "validation", "test", "test, switched", "parameters", "MACs", "training"],
            rows,
        ),
        *([paragraph(remark)] if remark else []),
        note=f"{_label(results)} on images that were not trained on. “Switched” is the model in "
        "use: its softmax branch, there for training only, has been cast away. MACs count every "
        "matrix product of one image.",
    )


def add_training(page: Page, runs: Mapping[str, Path], headline: str = "top1") -> None:
    """Loss and validation metric over the epochs, one curve per run.

    Args:
        page: is added to.
        runs: name → run folder.
        headline: the metric to draw.
    """
    loss: dict[str, Curve] = {}
    accuracy: dict[str, Curve] = {}
    for name, run_dir in runs.items():
        rows = read_table(run_dir / "metrics.csv")
        for target, column in ((loss, "train_loss"), (accuracy, f"val_{headline}")):
            found = curve(rows, column)
            if found[0]:
                target[name] = found
    plots: list[tuple[Plot, str]] = []
    if accuracy:
        plot = lines(accuracy, x="epoch", y=f"validation {metric_label(headline)}", markers=False)
        plots.append((plot, "Accuracy on validation images after each epoch."))
    if loss:
        plot = lines(loss, x="epoch", y="training loss", markers=False)
        plots.append((plot, "Training loss, averaged over each epoch."))
    if plots:
        page.add("Training", figures(plots))


def add_trajectories(page: Page, run_dir: Path) -> None:
    """What the auxiliary branch of every layer did while training; nothing without branches."""
    rows = read_table(run_dir / "auxiliary.csv")
    if not rows:
        return
    captions = {
        "surviving_mass": ("surviving softmax mass", "Share of the softmax that passes the mask."),
        "nonzero_fraction": ("non-zero entries", "Entries of the N×N matrix that the mask keeps."),
        "output_gap": ("relative output gap", "How far the branch moves the attention’s output."),
        "threshold": ("threshold ε", "The mask’s threshold as the schedule raises it."),
    }
    plots = []
    for column, (label, caption) in captions.items():
        series: dict[str, tuple[list[float], list[float]]] = {}
        for row in rows:
            if row[column] in ("", "nan"):
                continue
            name = "all layers" if column == "threshold" else row["layer"]
            xs, ys = series.setdefault(name, ([], []))
            if not xs or xs[-1] != float(row["epoch"]):
                xs.append(float(row["epoch"]))
                ys.append(float(row[column]))
        plots.append((lines(series, x="epoch", y=label, markers=False), caption))
    page.add(
        "Mask trajectories",
        figures(plots),
        note="The masked softmax helps while the linear attention learns, and fades: once no entry "
        "passes the mask, taking the branch away changes nothing.",
    )


def add_switch(page: Page, result: TrainResult) -> None:
    """The certificate of the switch; nothing for a model without branches."""
    if not result.switch:
        return
    certificate = result.switch
    granted = not result.switch_refused
    word = "exact" if certificate["exact"] else "within tolerance"
    if certificate["forced"]:
        word = "forced above tolerance"
    if not granted:
        word = "refused"
    facts = [
        (
            f"{certificate['max_gap']:.2g}",
            f"largest output gap (allowed {certificate['tolerance']:g})",
        ),
        (
            "–" if certificate["agreement"] is None else percent(certificate["agreement"]),
            f"agreement, {certificate['images']} images",
        ),
        (
            f"{certificate['macs_before'] / 1e6:.2f} → {certificate['macs_after'] / 1e6:.2f} M",
            "MACs, branch computed → cast away",
        ),
        (
            f"{certificate['milliseconds_before']:.1f} → "
            f"{certificate['milliseconds_after']:.1f} ms",
            f"batch of {certificate['batch'][0]} on {certificate['device']}",
        ),
        (
            f"{certificate['parameters_before']:,} → {certificate['parameters_after']:,}",
            "parameters",
        ),
    ]
    name = f"test_{result.headline}"
    before, after = result.metrics.get(name), result.switched_metrics.get(name)
    if before is not None and after is not None:
        unit = " points" if result.headline in result.percentages else ""
        label = metric_label(result.headline)
        facts.append((f"{after - before:+.2f}{unit}", f"test {label}, after minus before"))
    page.add(
        "Switch certificate",
        f"<p>{badge(word, good=granted and not certificate['forced'])}</p>",
        cards(facts),
        note=result.switch_refused
        or "The model was run with and without its softmax branch on calibration images; this is "
        "how far the outputs moved. The times are a short check of that moment, when the machine "
        "may have been busy: castling bench models measures speed.",
    )


def add_export(page: Page, report: Mapping[str, Any]) -> None:
    """The exported file compared with PyTorch; ``report`` is ``ExportReport.to_dict()``."""
    rows = [
        [
            " × ".join(str(side) for side in check["shape"]),
            f"{check['max_difference']:.1e}",
            "" if check["agreement"] is None else percent(check["agreement"]),
        ]
        for check in report["checks"]
    ]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    page.add(
        "ONNX export, verified",
        table(["images (batch × channels × height × width)", "max difference", "agreement"], rows),
        note=f"{Path(report['path']).name}, {report['bytes'] / 1e6:.2f} MB"
        + ("" if report["opset"] is None else f", opset {report['opset']}")
        + f": run again in {report['runtime']} at shapes that were not traced. "
        f"{versions}." + "".join(f" Note: {note}." for note in report.get("notes", ())),
    )


def add_predictions(
    page: Page, predictions: Sequence[tuple[Image.Image, str, str, float]], name: str
) -> None:
    """Example images with what the model says.

    Args:
        page: is added to.
        predictions: (image, true class, predicted class, probability in [0, 1]).
        name: of the model.
    """
    page.add(
        "Example predictions",
        gallery(
            (
                image,
                said if said == truth else f"{said}, is {truth}",
                f"{percent(probability, 0)} sure",
                said == truth,
            )
            for image, truth, said, probability in predictions
        ),
        note=f"Test images, classified by {name}.",
    )


def add_detections(
    page: Page, result: TrainResult, name: str, pictures: Sequence[tuple[Image.Image, str, str]]
) -> None:
    """Scenes with the boxes that a detector found.

    Args:
        page: is added to.
        result: of the detector's training.
        name: of the detector.
        pictures: (image with boxes, what was found, what there is).
    """
    metrics = result.switched_metrics or result.metrics
    figures_of = ", ".join(
        f"{metric_label(key)} {result.text_of(key, metrics[f'test_{key}'])}"
        for key in ("AP50", "AP")
    )
    page.add(
        "Objects found",
        gallery(((image, found, there, True) for image, found, there in pictures), large=True),
        note=f"Test images, by {name} with {result.parameters:,} parameters, trained here in "
        f"{result.seconds:.0f} s: {figures_of} on {result.images.get('test', 0)} test images. So "
        "short a training shows that it learns, not how far it can go.",
    )


def headline_value(result: TrainResult, split: str, *, switched: bool = False) -> str:
    """The metric that sums a run up, with its unit; a dash where it was not measured."""
    metrics = result.switched_metrics if switched else result.metrics
    return result.text_of(result.headline, metrics.get(f"{split}_{result.headline}"))


def _label(results: Mapping[str, TrainResult]) -> str:
    names = dict.fromkeys(metric_label(result.headline) for result in results.values())
    text = ", ".join(names)
    return text[:1].upper() + text[1:]


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a run's table; none where there is no such file.

    Raises:
        ValueError: the file is damaged; the message says what to do.
    """
    if not path.is_file():
        return []
    try:
        return read_csv(path)
    except ValueError as error:
        raise ValueError(
            f"{error}. Delete {path.with_name(RESULT)} and run the training command again: it "
            "writes both anew from the run's checkpoint"
        ) from error


def curve(rows: Sequence[Mapping[str, str]], column: str) -> Curve:
    """(epochs, values) of one column, rows without a value left out."""
    points = [(float(row["epoch"]), float(row[column])) for row in rows if row.get(column)]
    return [x for x, _ in points], [y for _, y in points]
