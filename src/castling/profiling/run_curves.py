"""The section of a run's report that shows its curves."""

from __future__ import annotations

from pathlib import Path

from castling.profiling import report
from castling.profiling.page import Page, figures
from castling.profiling.plots import Curve, Plot, lines
from castling.profiling.run_facts import RunFacts
from castling.tasks.result import metric_label


def add_curves(page: Page, run: RunFacts) -> None:
    """Losses, the headline metric and the auxiliary masks over the epochs."""
    rows = report.read_table(run.folder / "metrics.csv")
    if not rows:
        page.add("Training", note="metrics.csv is missing: no curves.")
        return
    name = run.result.headline
    losses = {
        what: found
        for what, column in (("training", "train_loss"), ("validation", "val_loss"))
        if (found := report.curve(rows, column))[0]
    }
    plots: list[tuple[Plot, str]] = [
        (
            lines(losses, x="epoch", y="loss", markers=False),
            "Training: with augmentation, smoothing and all terms of the loss, averaged over the "
            "epoch."
            + (" Validation: the plain loss, after the epoch." if "validation" in losses else ""),
        )
    ]
    metric = report.curve(rows, f"val_{name}")
    if metric[0]:
        label = metric_label(name)
        last = run.result.text_of(name, metric[1][-1])
        caption = f"{label} on the validation images; {last} after the last epoch"
        if run.task is not None:
            best = (max if run.task.maximize else min)(metric[1])
            epoch = metric[0][list(metric[1]).index(best)]
            caption += f", best of all epochs {run.result.text_of(name, best)} (epoch {epoch:g})"
        if run.result.best_since:
            caption += f"; best{run.result.best_since}: {run.result.describe_best()}"
        plots.append(
            (
                lines({label: metric}, x="epoch", y=f"validation {label}", markers=False),
                f"{caption}.",
            )
        )
    mask = _mask_share(run.folder)
    if mask[0]:
        plots.append(
            (
                lines({"mean of layers": mask}, x="epoch", y="share of entries", markers=False),
                "Mask of the auxiliary branch: share of its entries that pass, mean of all "
                "layers. The switch is exact at 0.",
            )
        )
    page.add("Training", figures(plots))


def _mask_share(folder: Path) -> Curve:
    """(epochs, mean share of entries that pass the mask)."""
    shares: dict[float, list[float]] = {}
    for row in report.read_table(folder / "auxiliary.csv"):
        if row["nonzero_fraction"] not in ("", "nan"):
            shares.setdefault(float(row["epoch"]), []).append(float(row["nonzero_fraction"]))
    return list(shares), [sum(values) / len(values) for values in shares.values()]
