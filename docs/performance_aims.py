"""What the page of measured speeds says first: who wins, and what was aimed at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from performance_tables import best_paths, table, timed

from castling.profiling.results import percent, ratio

Results = Mapping[str, Any]
#: Candidate, aim, what was measured, and whether that is enough.
Aim = tuple[str, str, str, bool]


def verdict(ops: Results, models: Results, titles: Mapping[str, str]) -> list[str]:
    """Where we win and where softmax does, in sentences made of the measurements.

    Args:
        ops: file → kernels measured.
        models: file → models measured.
        titles: of the kernels' files.
    """
    lines = ["## In short\n"]
    wins, losses = [], []
    for name, result in ops.items():
        for row in best_paths(timed(result)):
            what = f"{row['tokens']} tokens"
            (wins if row["against_sdpa"] > 1 else losses).append((titles[name], row, what))
    for title, rows in (("Faster than softmax", wins), ("**Slower than softmax**", losses)):
        if not rows:
            continue
        lines.append(f"{title}, kernels alone on the path that castling takes by itself:\n")
        grouped: dict[tuple[str, str, Any], list[str]] = {}
        for section, row, what in rows:
            shape = f"d={row['dim']}, {row['dtype']}"
            said = f"{ratio(row['against_sdpa'])} at {what}"
            grouped.setdefault((section, row["kernel"], shape), []).append(said)
        lines += [
            f"- `{kernel}`, {section.removeprefix('Kernels alone, ')} ({shape}): {', '.join(said)}"
            for (section, kernel, shape), said in grouped.items()
        ]
        lines.append("")
    slower = [
        f"- {row['model']} ({row['variant']}), {row['height']} px, batch {row['batch']}: "
        f"{ratio(row['against_host'])}"
        for result in models.values()
        for row in timed(result)
        if row["against_host"] is not None and row["against_host"] < 1
    ]
    if slower:
        lines += ["**Whole models that are slower than their softmax host:**\n", *slower, ""]
    elif models:
        lines += ["No whole model measured here is slower than its softmax host.\n"]
    return lines


#: tokens → times faster than PyTorch's softmax that the C++ operators were built to reach.
_AGAINST_SOFTMAX = {49: 1.5, 196: 2.0, 1024: 7.0, 4096: 25.0, 16384: 100.0}
_AGAINST_BLOCK, _LIMIT_SHARE, _CAP_SHARE = 3.0, 1 / 2.5, 0.9
#: Times faster than unfolded, at one image: the aim, and what would be better still.
_FOLDED, _FOLDED_STRETCH = 1.3, 2.0
_FOLDED_MODELS = ("cas_vit_xs", "cas_vit_s", "cas_vit_t")


def targets(ops: Results, models: Results) -> list[str]:
    """What was aimed at on a CPU, by linear-angular attention and by folding, and what came."""
    rows: dict[tuple[str, str], list[str]] = {}
    for aims in (_kernel_aims(ops), _model_aims(models), _fold_aims(models)):
        for candidate, aim, said, reached in aims:
            rows.setdefault((candidate, aim), []).append(said if reached else f"**{said}**")
    if not rows:
        return []
    lines = ["## What was aimed at\n", "Aims on one CPU thread; what was missed is **bold**.\n"]
    candidates = list(dict.fromkeys(candidate for candidate, _ in rows))
    ordered = sorted(rows.items(), key=lambda row: candidates.index(row[0][0]))
    cells = ([f"`{candidate}`", aim, "; ".join(said)] for (candidate, aim), said in ordered)
    return lines + table(["candidate", "aim", "measured"], cells)


def _measurements(results: Results, *names: str) -> list[dict[str, Any]]:
    """What has a time in files of these names, as far as they are there."""
    return [row for name in names if name in results for row in timed(results[name])]


def _kernel_aims(ops: Results) -> Iterator[Aim]:
    for row in best_paths(_measurements(ops, "bench_ops", "bench_ops_long")):
        if not row["kernel"].startswith("linear_angular") or row["dim"] != 64:
            continue
        tokens = row["tokens"]
        block = _AGAINST_BLOCK if tokens <= 4096 else None
        limit = _LIMIT_SHARE if tokens >= 196 else None
        for aim, value, least, shown in (
            ("faster than softmax", row["against_sdpa"], _AGAINST_SOFTMAX.get(tokens), ratio),
            ("faster than the block, to 4096 tokens", row["against_reference"], block, ratio),
            ("share of the limit, from 196 tokens", row["roofline_share"], limit, percent),
        ):
            if value is not None and least is not None:
                said = f"{tokens}: {shown(value)} (aim {shown(least)})"
                yield row["kernel"], aim, said, value >= least


def _model_aims(models: Results) -> Iterator[Aim]:
    for name in ("bench_models", "bench_models_batch8"):
        rows = _measurements(models, name)
        times = {(row["model"], row["variant"], row["height"], row["batch"]): row for row in rows}
        for row in rows:
            if row["variant"] != "eager" or row["bound_share"] is None:
                continue
            model, point = row["model"], f"{row['height']} px, batch {row['batch']}"
            said = f"{point}: {percent(row['bound_share'])} (aim {percent(_CAP_SHARE)})"
            yield model, "of the cap", said, row["bound_share"] >= _CAP_SHARE
            keys = [
                (host, "eager", row["height"], row["batch"])
                for host in models[name]["hosts"][model]
            ]
            hosts = [times[key] for key in keys if key in times]
            if not hosts:
                continue
            said = f"{point}: {ratio(row['against_host'])} (aim 1×)"
            yield model, "against its host", said, row["against_host"] >= 1
            theirs = min(host["peak_megabytes"] for host in hosts)
            said = f"{point}: {row['peak_megabytes']:.1f} MB (host {theirs:.1f})"
            yield model, "peak memory", said, row["peak_megabytes"] <= theirs


def _fold_aims(models: Results) -> Iterator[Aim]:
    aim = f"aim {ratio(_FOLDED)}, stretch {ratio(_FOLDED_STRETCH)}"
    for row in _measurements(models, "bench_models_folded"):
        if row["model"] not in _FOLDED_MODELS or row["variant"] != "folded" or row["batch"] != 1:
            continue
        gain = row.get("against_eager")
        if gain is not None:
            said = f"{row['height']} px, batch 1: {ratio(gain)} ({aim})"
            yield row["model"], "folded against unfolded", said, gain >= _FOLDED
