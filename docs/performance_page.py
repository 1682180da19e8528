"""The page of measured speeds, from the files that ``benchmarks/performance.sh`` writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from castling.lens.results import percent, ratio, short

Row = dict[str, Any]

INTRODUCTION = """# Performance

Linear attention needs fewer operations than softmax attention from a few dozen tokens on; whether
it is *faster* is another question, and the answer depends on the device, the tokens and the
implementation. This page says what was measured, where linear attention wins and **where softmax
does**. How to read it:

- Softmax is PyTorch's fused kernel (`scaled_dot_product_attention`), never scores written out.
- *Block* is the formula as its authors' code writes it, in eager PyTorch: norms, permutes,
  products, divisions, `Conv2d`.
- *Limit* is what this machine could do at best: the operations of the two products at the speed of
  a large matrix product, or q, k, v and the output touched once at the speed of a copy, whichever
  takes longer; both measured in the same run.
- *Cap* is the same model with its attention core deleted, projections kept: with free attention it
  would be as fast as that. (Folded CAS-ViT may pass its cap: it runs in fused blocks, which its cap
  does not have.)
- *Folded* is a model after `castling.fold_`, its BatchNorms in the layers beside them; *× eager* is
  how many times faster it, or another runtime, is than the same model as it was.
- Subjects ran in turns; times are medians; a result that was wrong has no time, but its error.
- Paths: `naive` is basic PyTorch, `compiled` the same through `torch.compile`, `native` our C++
  operators, `triton` our GPU kernels. Left alone, castling takes the first that a machine has.

All of it again: `make bench`, then `make docs`. One comparison of your own: `castling bench ops
--help`, `castling bench models --help`; and for your model on your device, `castling plan`.
"""

OPS = {
    "bench_ops": "Kernels alone, forward",
    "bench_ops_batch8": "Kernels alone, batch 8",
    "bench_ops_long": "Kernels alone, long inputs",
    "bench_ops_shapes": "Kernels alone, other head widths",
    "bench_ops_bfloat16": "Kernels alone, bfloat16",
    "bench_ops_backward": "Kernels alone, forward and backward",
}
MODELS = {
    "bench_models": "Whole models in every runtime",
    "bench_models_batch8": "Whole models, batch 8",
    "bench_models_others": "The other models, eager",
    "bench_models_folded": "Folded models against the same unfolded",
}


def performance_page(results: Path) -> str:
    """The whole page.

    Args:
        results: folder of the measured files; what is missing there is said to be missing.
    """
    found = {path.stem: _read(path) for path in sorted(results.glob("*.json"))}
    ops = {name: found[name] for name in OPS if name in found}
    models = {name: found[name] for name in MODELS if "hosts" in found.get(name, {})}
    plans = {name: plan for name, plan in found.items() if name.startswith("plan_")}
    gpu = {name: value for name, value in found.items() if name.startswith("gpu_kernels")}
    lines = [INTRODUCTION]
    lines += _verdict(ops, models)
    lines += _targets(ops, models)
    for name, result in ops.items():
        lines += _ops_section(name, OPS[name], result)
    for name, result in models.items():
        lines += _models_section(name, MODELS[name], result)
    lines += _plans_section(plans)
    lines += _gpu_section(gpu)
    lines += _compiled_section(found.get("compile_kernels"))
    missing = [name for name in (*OPS, *MODELS) if name not in ops and name not in models]
    if missing:
        lines += ["## Not measured yet\n", *(f"- {name}.json" for name in missing)]
    return "\n".join(lines) + "\n"


def facts(machine: Mapping[str, Any]) -> str:
    """The machine of a measurement in one line."""
    return "Measured on " + ", ".join(f"{key} {value}" for key, value in machine.items()) + "."


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _made_by(name: str, result: Mapping[str, Any]) -> str:
    command = result.get("command") or "castling in Python"
    return (
        f"`{command}` → [{name}.json](../benchmarks/results/{name}.json). "
        f"{facts(result['machine'])}\n"
    )


def _timed(result: Mapping[str, Any]) -> list[Row]:
    return [row for row in result["measurements"] if row["milliseconds"] is not None]


def _best_paths(rows: list[Row]) -> list[Row]:
    """Of each kernel and setting the path that castling takes by itself: the first measured."""
    first: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["path"] not in ("sdpa", "reference"):
            first.setdefault((row["kernel"], *_shape(row), row["tokens"]), row)
    return list(first.values())


def _shape(row: Row) -> tuple[Any, ...]:
    return row["batch"], row["heads"], row["dim"], row["dtype"]


def _verdict(ops: Mapping[str, Any], models: Mapping[str, Any]) -> list[str]:
    """Where we win and where softmax does, in sentences made of the measurements."""
    lines = ["## In short\n"]
    wins, losses = [], []
    for name, result in ops.items():
        for row in _best_paths(_timed(result)):
            what = f"{row['tokens']} tokens"
            (wins if row["against_sdpa"] > 1 else losses).append((OPS[name], row, what))
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
        for row in _timed(result)
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


def _targets(ops: Mapping[str, Any], models: Mapping[str, Any]) -> list[str]:
    """What was aimed at on a CPU, by linear-angular attention and by folding, and what came."""
    kernels = [
        row
        for name in ("bench_ops", "bench_ops_long")
        for row in _best_paths(_timed(ops.get(name, {"measurements": []})))
        if row["kernel"].startswith("linear_angular") and row["dim"] == 64
    ]
    rows: dict[tuple[str, str], list[tuple[str, bool]]] = {}
    for row in kernels:
        for what, value, aim, shown in (
            ("faster than softmax", row["against_sdpa"], _AGAINST_SOFTMAX, ratio),
            ("faster than the block, to 4096 tokens", row["against_reference"], None, ratio),
            ("share of the limit, from 196 tokens", row["limit_share"], None, percent),
        ):
            tokens = row["tokens"]
            if aim is not None:
                least = aim.get(tokens)
            elif shown is ratio:
                least = _AGAINST_BLOCK if tokens <= 4096 else None
            else:
                least = _LIMIT_SHARE if tokens >= 196 else None
            if value is not None and least is not None:
                said = f"{tokens}: {shown(value)} (aim {shown(least)})"
                rows.setdefault((row["kernel"], what), []).append((said, value >= least))
    hosts = {
        (row["model"], row["variant"], row["height"], row["batch"]): row
        for result in models.values()
        for row in _timed(result)
    }
    for name in ("bench_models", "bench_models_batch8"):
        result = models.get(name, {"measurements": [], "hosts": {}})
        for row in _timed(result):
            if row["variant"] != "eager" or row["cap_share"] is None:
                continue
            key = (row["variant"], row["height"], row["batch"])
            host = [hosts[h, *key] for h in result["hosts"][row["model"]] if (h, *key) in hosts]
            point = f"{row['height']} px, batch {row['batch']}"
            reached = row["cap_share"] >= _CAP_SHARE
            said = f"{point}: {percent(row['cap_share'])} (aim {percent(_CAP_SHARE)})"
            rows.setdefault((row["model"], "of the cap"), []).append((said, reached))
            if not host:
                continue
            said = f"{point}: {ratio(row['against_host'])} (aim 1×)"
            rows.setdefault((row["model"], "against its host"), []).append(
                (said, row["against_host"] >= 1)
            )
            theirs = min(one["peak_megabytes"] for one in host)
            said = f"{point}: {row['peak_megabytes']:.1f} MB (host {theirs:.1f})"
            rows.setdefault((row["model"], "peak memory"), []).append(
                (said, row["peak_megabytes"] <= theirs)
            )
    for row in _timed(models.get("bench_models_folded", {"measurements": []})):
        gain = row.get("against_eager")
        folded = row["variant"] == "folded" and gain is not None and row["batch"] == 1
        if folded and row["model"] in _FOLDED_MODELS:
            aim = f"aim {ratio(_FOLDED)}, stretch {ratio(_FOLDED_STRETCH)}"
            said = f"{row['height']} px, batch 1: {ratio(gain)} ({aim})"
            rows.setdefault((row["model"], "folded against unfolded"), []).append(
                (said, gain >= _FOLDED)
            )
    if not rows:
        return []
    lines = ["## What was aimed at\n", "Aims on one CPU thread; what was missed is **bold**.\n"]
    subjects = list(dict.fromkeys(name for name, _ in rows))
    table = (
        [f"`{name}`", what, "; ".join(said if met else f"**{said}**" for said, met in found)]
        for (name, what), found in sorted(rows.items(), key=lambda row: subjects.index(row[0][0]))
    )
    return lines + _table(["subject", "aim", "measured"], table)


def _ops_section(name: str, title: str, result: Mapping[str, Any]) -> list[str]:
    rows = _timed(result)
    lines = [f"## {title}\n", _made_by(name, result)]
    if (Path(__file__).parent / "images" / f"{name}.png").exists():
        lines.append(f"![times faster than softmax against tokens](images/{name}.png)\n")
    for shape in dict.fromkeys(map(_shape, rows)):
        batch, heads, dim, dtype = shape
        mine = [row for row in rows if _shape(row) == shape]
        tokens = sorted({row["tokens"] for row in mine})
        lines.append(f"Batch {batch}, {heads} heads of {dim} channels, {dtype}:\n")
        softmax = {row["tokens"]: row for row in mine if row["path"] == "sdpa"}
        lines += _pivot("milliseconds", mine, tokens, lambda row: _milliseconds(row))
        for what, field in (
            ("times faster than softmax", "against_sdpa"),
            ("times faster than the authors' block", "against_reference"),
        ):
            others = [row for row in mine if row["path"] != "sdpa" and row[field] is not None]
            others = [r for r in others if field == "against_sdpa" or r["path"] != "reference"]
            if others and softmax:
                lines += _pivot(what, others, tokens, lambda row, f=field: ratio(row[f]))
        limited = [row for row in mine if row["limit_share"] is not None]
        lines += _pivot(
            "share of the machine's limit", limited, tokens, lambda r: percent(r["limit_share"])
        )
    wrong = [row for row in result["measurements"] if row["error"]]
    lines += [
        f"- `{row['kernel']}` ({row['path']}), {row['tokens']} tokens, d={row['dim']}: "
        f"no time, {row['error']}"
        for row in wrong
    ]
    return [*lines, ""]


def _pivot(what: str, rows: list[Row], tokens: list[int], cell: Any) -> list[str]:
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows:
        cells.setdefault((row["kernel"], row["path"]), {})[row["tokens"]] = cell(row)
    return _table(
        [f"{what}; tokens:", "path", *map(str, tokens)],
        (
            [f"`{kernel}`", path, *(by_size.get(n, "–") for n in tokens)]
            for (kernel, path), by_size in cells.items()
        ),
    )


def _milliseconds(row: Row) -> str:
    return f"{short(row['milliseconds'])} ({short(row['low'])}–{short(row['high'])})"


def _models_section(name: str, title: str, result: Mapping[str, Any]) -> list[str]:
    lines = [f"## {title}\n", _made_by(name, result)]
    if (Path(__file__).parent / "images" / f"{name}.png").exists():
        lines.append(f"![times faster than the softmax host](images/{name}.png)\n")
    rows = _timed(result)
    # Files written before there was this ratio, and those of one runtime, show no empty column.
    compared = any(row.get("against_eager") is not None for row in rows)
    head = ["model", "runtime", "pixels", "batch", "tokens", "ms (quartiles)", "× host"]
    head += ["× eager"] if compared else []
    lines += _table(
        [*head, "of cap", "peak tensors MB", "process MB"],
        (
            [
                row["model"],
                row["variant"],
                f"{row['height']}×{row['width']}",
                str(row["batch"]),
                "–" if row["tokens"] is None else str(row["tokens"]),
                _milliseconds(row),
                ratio(row["against_host"]),
                *([ratio(row.get("against_eager"))] if compared else []),
                percent(row["cap_share"]),
                _number(row["peak_megabytes"]),
                _number(row["resident_megabytes"]),
            ]
            for row in rows
        ),
    )
    lines += [
        f"- {label}: faster than its softmax host "
        + (f"from {tokens} tokens on" if tokens else "at none of these sizes")
        for label, tokens in result["crossovers"].items()
    ]
    lines += [
        f"- {row['model']} ({row['variant']}), {row['height']}×{row['width']}: no time, "
        f"{row['error']}"
        for row in result["measurements"]
        if row["error"]
    ]
    return [*lines, ""]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _plans_section(plans: Mapping[str, Any]) -> list[str]:
    if not plans:
        return []
    lines = [
        "## Plans\n",
        "`castling plan MODEL --image_size SIZE --threads 1 --output FILE` measures every "
        "attention layer with softmax and linear inside the running model, keeps softmax where it "
        "is faster, and checks its prediction of the whole model's time.\n",
    ]
    head = ["plan", "attention", "pixels", "batch", "linear layers", "all softmax ms"]
    rows = []
    for name, plan in plans.items():
        predicted, verified = plan["predicted"], plan["verified"] or {}
        linear = [layer for layer in plan["layers"] if layer["choice"] == "linear"]
        off = verified and predicted["planned"] / verified["planned"] - 1
        rows.append(
            [
                f"[{plan['model']}](../benchmarks/results/{name}.json)",
                plan["attention"]["name"],
                "×".join(map(str, plan["image_size"])),
                str(plan["batch"]),
                f"{len(linear)} of {len(plan['layers'])}",
                short(verified.get("softmax")),
                short(verified.get("linear")),
                short(verified.get("planned")),
                short(predicted["planned"]),
                f"{100 * off:+.1f} %" if verified else "–",
            ]
        )
    lines += _table([*head, "all linear ms", "planned ms", "predicted ms", "off by"], rows)
    first = next(iter(plans.values()))
    machine = {key: first[key] for key in ("device", "threads", "torch")}
    return [*lines, facts(machine | {"path": first["paths"][0]}), ""]


def _gpu_section(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    lines = ["## On a GPU\n"]
    for name, result in found.items():
        made = dict(result) | {"machine": result.get("machine", {})}
        lines.append(_made_by(name, made))
        for title, rows in result.items():
            if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
                continue
            plain = [key for key, value in rows[0].items() if not isinstance(value, list | dict)]
            lines += [f"{title.replace('_', ' ')}:\n"]
            lines += _table(plain, ([_plain(row.get(key)) for key in plain] for row in rows))
    return lines


def _compiled_section(result: Mapping[str, Any] | None) -> list[str]:
    """What the Triton kernels take, where no GPU was needed to find out."""
    if result is None:
        return []
    rows = result["rows"]
    spilling = [row for row in rows if row["spilled_bytes"]]
    main = [row for row in rows if row["main"]]
    lines = [
        "## The GPU kernels, compiled\n",
        "`python benchmarks/compile_kernels.py` → [compile_kernels.json]"
        "(../benchmarks/results/compile_kernels.json): compiled ahead of time for compute "
        f"capability {result['capability'] / 10:.1f}, which needs no GPU and says nothing of their "
        f"speed. {len(rows)} kernels, {result['bad']} failed; of {len(main)} in main "
        f"configurations {sum(row in main for row in spilling)} spill registers, of the other "
        f"{len(rows) - len(main)} {sum(row not in main for row in spilling)}.\n",
    ]
    worst: dict[str, Any] = {}
    for row in main:
        kept = worst.get(row["kernel"])
        if kept is None or row["registers"] > kept["registers"]:
            worst[row["kernel"]] = row
    head = ["kernel", "most registers", "shared memory", "in"]
    table = (
        [
            f"`{name}`",
            str(row["registers"]),
            f"{row['shared_bytes'] / 1024:.1f} KB",
            row["configuration"],
        ]
        for name, row in sorted(worst.items())
    )
    return [*lines, *_table(head, table)]


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return short(value) if abs(value) >= 0.01 or value == 0 else f"{value:.1e}"
    return "–" if value is None else str(value).replace("|", "/")
