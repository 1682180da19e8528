"""Ablation of Castling-ViT on CIFAR-10: one recipe, many attentions, three seeds.

Trains every row of ``ROWS`` with ``study_cifar10.yaml`` and writes ``results/study_cifar10.json``
and ``.md``. Finished runs are kept and interrupted ones are resumed, so the command can be stopped
and run again; ``--shard 0/2`` and ``--shard 1/2`` in two terminals share the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path
from typing import Any

import torch
import yaml

import castling
from castling.attention import AttentionConfig, config_to_dict
from castling.profiling.machine import machine_facts
from castling.tasks.result import TrainResult, read_result
from castling.train import recipe_from_dict, train
from castling.utils.files import write_json, write_text

HERE = Path(__file__).parent
FIXED = castling.MaskedSoftmax(threshold="fixed", epsilon=0.02, schedule="constant")
RAMP = castling.MaskedSoftmax(alpha=0.5, ramp_start=0.3, ramp_end=0.8)
EARLY = castling.MaskedSoftmax(alpha=0.5, ramp_start=0.1, ramp_end=0.5)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        label: in the table.
        attention: of the study's ViT; None for another network with its own attention.
        model: name in the registry.
    """

    label: str
    attention: AttentionConfig | None
    model: str = "castling_deit_pico"


ROWS = {
    "softmax": Row("softmax", castling.Softmax()),
    "softmax_conv": Row("softmax + depthwise", castling.Softmax(local="grid2d")),
    "angular": Row("linear-angular, bare", castling.LinearAngular(local="none")),
    "angular_conv": Row("linear-angular + depthwise", castling.LinearAngular()),
    "castling_fixed": Row("… + auxiliary, fixed ε = 0.02", castling.LinearAngular(auxiliary=FIXED)),
    "castling_ramp": Row("… + auxiliary, ramp 0.3–0.8", castling.LinearAngular(auxiliary=RAMP)),
    "castling_early": Row("… + auxiliary, ramp 0.1–0.5", castling.LinearAngular(auxiliary=EARLY)),
    "taylor_released": Row(
        "QT, as released + depthwise", castling.QuadraticTaylor(form="released", local="grid2d")
    ),
    "taylor_exact": Row(
        "QT, exact + depthwise", castling.QuadraticTaylor(form="exact", local="grid2d")
    ),
    "cas_vit": Row("CAS-ViT (own network)", None, "cas_vit_pico"),
    "taylor_castling": Row(
        "QT, as released + depthwise + auxiliary, ramp 0.3–0.8",
        castling.QuadraticTaylor(form="released", local="grid2d", auxiliary=RAMP),
    ),
}


def recipe_of(row: Row, seed: int, data: str) -> Any:
    """The study's recipe with the model of this row and a seed."""
    values = yaml.safe_load((HERE / "study_cifar10.yaml").read_text())
    values["seed"] = seed
    values["data"]["source"] = data
    if row.attention is None:
        values["model"] = {"name": row.model}
    else:
        values["model"] |= {"name": row.model, "attention": config_to_dict(row.attention)}
    return recipe_from_dict(values)


def collect(runs: Path, seeds: list[int]) -> dict[str, Any]:
    """The results of all finished runs, as plain values."""
    rows: dict[str, Any] = {}
    for name, row in ROWS.items():
        results = {seed: read_result(runs / f"{name}-seed{seed}") for seed in seeds}
        done = {seed: result for seed, result in results.items() if result is not None}
        if done:
            rows[name] = {"label": row.label, **summarise(done)}
    recipe = yaml.safe_load((HERE / "study_cifar10.yaml").read_text())
    recipe["data"]["source"] = "cifar10.zip"
    return {
        "command": "python benchmarks/study_cifar10.py --data cifar10.zip",
        "recipe": recipe,
        "machine": machine_facts(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "rows": rows,
    }


def summarise(done: dict[int, TrainResult]) -> dict[str, Any]:
    """Test accuracies by seed before and after the switch, and the certificate of the switch."""
    summary: dict[str, Any] = {
        "seeds": list(done),
        "test_top1": [result.metrics["test_top1"] for result in done.values()],
        "parameters": next(iter(done.values())).parameters,
        "seconds": [round(result.seconds, 1) for result in done.values()],
    }
    if all(result.switched_metrics for result in done.values()):
        summary["switched_test_top1"] = [
            result.switched_metrics["test_top1"] for result in done.values()
        ]
        summary["switch_max_gap"] = [result.switch["max_gap"] for result in done.values()]
        summary["switch_exact"] = [result.switch["exact"] for result in done.values()]
    return summary


def spread(values: list[float]) -> str:
    """Mean ± standard deviation, or the value alone."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def table(study: dict[str, Any]) -> str:
    """The study as a Markdown table."""
    lines = [
        "| attention | parameters | seeds | test top-1 | after the switch | largest output gap |",
        "|---|---|---|---|---|---|",
    ]
    for row in study["rows"].values():
        switched = row.get("switched_test_top1")
        lines.append(
            f"| {row['label']} | {row['parameters']:,} | {len(row['seeds'])} "
            f"| {spread(row['test_top1'])} | {spread(switched) if switched else '–'} "
            f"| {max(row['switch_max_gap']):.1e} |"
            if switched
            else f"| {row['label']} | {row['parameters']:,} | {len(row['seeds'])} "
            f"| {spread(row['test_top1'])} | – | – |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train the rows that are not finished, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="cifar10.zip or a folder of its layout")
    parser.add_argument("--runs", type=Path, default=Path("runs/study_cifar10"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--shard", default="0/1", help="INDEX/COUNT: this process's share")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--collect", action="store_true", help="write the tables, train nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    index, count = (int(part) for part in options.shard.split("/"))
    # Seeds outermost: an interrupted study has all rows on fewer seeds.
    jobs = [(seed, name) for seed in options.seeds for name in options.rows]
    for position, (seed, name) in enumerate(jobs):
        if options.collect or position % count != index:
            continue
        result = train(
            recipe_of(ROWS[name], seed, options.data),
            options.runs / f"{name}-seed{seed}",
            progress=False,
        )
        print(name, seed, result.metrics, result.switched_metrics, flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    study = collect(options.runs, options.seeds)
    write_json(options.results / "study_cifar10.json", study)
    write_text(options.results / "study_cifar10.md", table(study))
    print(table(study))


if __name__ == "__main__":
    main()
