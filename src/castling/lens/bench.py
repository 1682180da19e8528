"""Milliseconds, memory and multiply-accumulates against resolution, side by side.

Notable:
- subjects are timed in turns, so that a busy machine slows all of them alike;
- a speed stands only beside a result that passed its gate;
- medians with their spread, on a named device, at a stated number of tokens.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from castling.lens.gate import TOLERANCE, GateError, explicit_difference, require_sane
from castling.lens.memory import peak_megabytes
from castling.lens.subjects import Size, Subject, count_tokens
from castling.ops.macs import CONVENTION, macs

#: A timed run lasts at least this long, by repeating calls, so that the clock's grain vanishes.
_SHORTEST_RUN = 0.005


@dataclass(frozen=True)
class Measurement:
    """One subject at one size.

    Attributes:
        name: of the subject.
        kind: ``"model"`` or ``"attention"``.
        height: of the image in pixels, or rows of tokens.
        width: of the image in pixels, or columns of tokens.
        tokens: most tokens that one attention inside meets; None where there is none.
        batch: images per call.
        milliseconds: median time of a call; None where ``error`` says why.
        spread: half the distance between the quartiles, milliseconds.
        images_per_second: from the median.
        peak_megabytes: tensors alive at one time beyond weights and input, 10⁶ bytes.
        macs: multiply-accumulates per image.
        parameters: number of parameters.
        gate: what the result was checked against: ``"N×N form"`` or ``"finite"``.
        error: why there is no time; empty otherwise.
    """

    name: str
    kind: str
    height: int
    width: int
    tokens: int | None = None
    batch: int = 1
    milliseconds: float | None = None
    spread: float | None = None
    images_per_second: float | None = None
    peak_megabytes: float | None = None
    macs: int | None = None
    parameters: int | None = None
    gate: str = ""
    error: str = ""


@dataclass(frozen=True)
class BenchResult:
    """All measurements and where they were taken.

    Attributes:
        measurements: by size, then by subject.
        machine: device, threads, versions.
        convention: what counts as a multiply-accumulate.
    """

    measurements: tuple[Measurement, ...]
    machine: dict[str, Any]
    convention: str = CONVENTION

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "crossovers": self.crossovers()}

    def crossovers(self, baseline: str | None = None) -> dict[str, int | None]:
        """Fewest tokens (pixels where there are none) from which on a subject beats the baseline.

        Args:
            baseline: name of the subject to beat; None is the first.

        Returns:
            subject → tokens of the smallest measured size from which on it was faster at every
            size; None where it never was.
        """
        names = list(dict.fromkeys(m.name for m in self.measurements))
        if not names:
            return {}
        baseline = baseline or names[0]
        times = {(m.name, m.height, m.width): m for m in self.measurements if m.milliseconds}
        result: dict[str, int | None] = {}
        for name in names:
            if name == baseline:
                continue
            shared = [
                (m, times[baseline, m.height, m.width])
                for m in times.values()
                if m.name == name and (baseline, m.height, m.width) in times
            ]
            shared.sort(key=lambda pair: pair[0].height * pair[0].width, reverse=True)
            result[name] = None
            for mine, theirs in shared:
                assert mine.milliseconds is not None
                assert theirs.milliseconds is not None
                if mine.milliseconds >= theirs.milliseconds:
                    break
                result[name] = theirs.tokens or mine.height * mine.width
        return result

    def table(self) -> str:
        """The measurements as aligned text, the machine above."""
        head = ("name", "size", "tokens", "ms", "±", "images/s", "peak MB", "GMACs", "M params")
        rows = [head, *(_row(m) for m in self.measurements)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [f"{key}: {value}" for key, value in self.machine.items()]
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join(cells).rstrip())
        lines += [f"{m.name} {m.height}×{m.width}: {m.error}" for m in self.measurements if m.error]
        for name, tokens in self.crossovers().items():
            lines.append(
                f"{name}: faster than {self.measurements[0].name} "
                + (f"from {tokens} tokens on" if tokens else "at none of these sizes")
            )
        if any(m.milliseconds is not None for m in self.measurements):
            lines.append(
                "ms: median; ±: half the interquartile range; peak MB: activations alive at one "
                "time, beyond weights and input"
            )
        return "\n".join(lines)

    def write(self, folder: str | os.PathLike[str], stem: str = "bench") -> list[Path]:
        """Write ``stem``.json, ``stem``.csv and ``stem``.png into ``folder``; returns the paths."""
        from castling.lens.plots import time_against_tokens

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        table = io.StringIO()
        writer = csv.DictWriter(
            table, [field.name for field in fields(Measurement)], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(asdict(m) for m in self.measurements)
        contents = {
            "json": (json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n").encode(),
            "csv": table.getvalue().encode(),
            "png": time_against_tokens(self).png(),
        }
        paths = []
        for suffix, content in contents.items():
            path = folder / f"{stem}.{suffix}"
            temporary = path.with_name(f".{path.name}.part")
            temporary.write_bytes(content)
            os.replace(temporary, path)
            paths.append(path)
        return paths


def bench(
    subjects: Sequence[Subject],
    sizes: Sequence[Size],
    *,
    batch: int = 1,
    rounds: int = 9,
    seconds: float = 10.0,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    report: Callable[[Measurement], None] | None = None,
) -> BenchResult:
    """Measure every subject at every size.

    Args:
        subjects: the first is the baseline of crossovers.
        sizes: (height, width) pairs: pixels for models, rows and columns of tokens for attentions.
        batch: images per call.
        rounds: timed rounds; in each, every subject runs once.
        seconds: time limit per size; at least three rounds are made.
        device: where.
        threads: CPU threads; None leaves PyTorch's number.
        report: called with each measurement as it is done.

    Returns:
        measurements in the order of sizes, then of subjects. A subject that cannot be built or
        run at a size, or that fails its gate, has ``error`` set and no time.

    Raises:
        ValueError: nothing to measure, or a number that is not positive.
    """
    if not subjects or not sizes:
        raise ValueError("bench needs at least one subject and one size")
    if batch < 1 or rounds < 1 or min(min(size) for size in sizes) < 1:
        raise ValueError("batch, rounds and sizes must be positive")
    device = torch.device(device)
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        found: list[Measurement] = []
        for size in sizes:
            row = _bench_size(subjects, size, batch, rounds, seconds, device)
            for measurement in row:
                if report is not None:
                    report(measurement)
            found += row
        return BenchResult(tuple(found), machine_facts(device))
    finally:
        torch.set_num_threads(before)


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What a speed depends on beside the code."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").is_file():
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        models = [
            line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line
        ]
        name = models[0] if models else name
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@torch.no_grad()
def _bench_size(
    subjects: Sequence[Subject],
    size: Size,
    batch: int,
    rounds: int,
    seconds: float,
    device: torch.device,
) -> list[Measurement]:
    rows: dict[int, dict[str, Any]] = {}
    calls: dict[int, tuple[Callable[[], Any], int]] = {}
    for index, subject in enumerate(subjects):
        row: dict[str, Any] = {"name": subject.name, "kind": subject.kind, "batch": batch}
        row |= {"height": size[0], "width": size[1]}
        rows[index] = row
        try:
            module = subject.build(size).eval().to(device)
            images = torch.randn((batch, subject.channels, *size), device=device)
            row |= _facts(module, subject, images)
            call = _call(module, images)
            calls[index] = call, _repeats(call, device)
        except (GateError, ValueError, RuntimeError, AssertionError) as error:
            row["error"] = str(error).strip().splitlines()[0]
    times: dict[int, list[float]] = {index: [] for index in calls}
    started = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - started > seconds:
            break
        for index, (call, repeats) in calls.items():
            times[index].append(_time(call, repeats, device))
    for index, values in times.items():
        median = statistics.median(values)
        quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [median] * 3
        rows[index] |= {
            "milliseconds": median * 1e3,
            "spread": (quartiles[2] - quartiles[0]) / 2 * 1e3,
            "images_per_second": batch / median,
        }
    return [Measurement(**rows[index]) for index in range(len(subjects))]


def _facts(module: nn.Module, subject: Subject, images: Tensor) -> dict[str, Any]:
    """Gate, tokens, memory and multiply-accumulates of a subject that is about to be timed."""
    require_sane(subject.name, module(images), len(images))
    gate = "finite"
    for inner in module.modules():
        difference = explicit_difference(inner)
        if difference is None:
            continue
        if not difference <= TOLERANCE:
            raise GateError(f"{subject.name} differs from its N×N form by {difference:.1e}")
        gate = "N×N form"
    shape = (subject.channels, images.shape[-2], images.shape[-1])
    counted = macs(module, shape)
    return {
        "gate": gate,
        "tokens": count_tokens(module, images),
        "peak_megabytes": peak_megabytes(lambda: module(images), images.device),
        "macs": counted.total,
        "parameters": counted.parameters,
    }


def _call(module: nn.Module, images: Tensor) -> Callable[[], Any]:
    return lambda: module(images)


def _repeats(call: Callable[[], Any], device: torch.device) -> int:
    for _ in range(2):
        once = _time(call, 1, device)
    return max(1, int(_SHORTEST_RUN / max(once, 1e-6)))


def _time(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Seconds per call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / repeats


def short(value: float | None, digits: int) -> str:
    """``value`` with so many significant digits, never in powers of ten; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def _row(m: Measurement) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return (
        m.name,
        f"{m.height}×{m.width}",
        shown(m.tokens, "d"),
        short(m.milliseconds, 3),
        short(m.spread, 2),
        short(m.images_per_second, 3),
        shown(m.peak_megabytes, ".1f"),
        shown(None if m.macs is None else m.macs / 1e9, ".4f"),
        shown(None if m.parameters is None else m.parameters / 1e6, ".2f"),
    )
