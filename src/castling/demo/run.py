"""``castling demo``: train, switch, evaluate, export, measure and report, on bundled images.

It calls public functions only, as a user's own script would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from castling.data import BatchKey
from castling.demo.detector import NAME, drawn_scenes, train_detector
from castling.demo.models import MODELS, Models, demo_recipe
from castling.demo.page import demo_page
from castling.deploy import Predictor, model_folder
from castling.export import ExportReport, export
from castling.models.saved import open_model
from castling.ops.backends import available_backends
from castling.ops.macs import macs
from castling.profiling import report
from castling.profiling.bench_models import bench_models
from castling.profiling.bench_ops import bench_ops, settings_of
from castling.profiling.candidates import Candidate, model_candidate, read_attention
from castling.profiling.model_results import ModelsResult
from castling.profiling.op_results import OpsResult
from castling.tasks.classification import ClassificationPrediction
from castling.tasks.result import RESULT, TrainResult
from castling.train import ModelConfig, open_data, train
from castling.utils.timing import cpu_threads

_EXAMPLES = 16


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        report: the page.
        results: name → training result.
        detector: training result of the detector; None where none was trained.
        export: of the switched Castling-ViT.
        seconds: wall time.
    """

    report: str
    results: dict[str, TrainResult]
    detector: TrainResult | None
    export: ExportReport
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "report": self.report,
            "results": {name: result.to_dict() for name, result in self.results.items()},
            "detector": None if self.detector is None else self.detector.to_dict(),
            "export": self.export.to_dict(),
            "seconds": self.seconds,
        }


def run_demo(
    folder: str | Path = "runs/demo",
    say: Callable[[str], None] = lambda _: None,
    *,
    epochs: int = 10,
    detector_epochs: int = 12,
    progress: bool = True,
    seconds_per_size: float = 2.0,
    models: Sequence[str] = tuple(MODELS),
    tokens: Sequence[int] = (64, 256, 1024, 4096),
    sides: Sequence[int] = (64, 128, 256, 512),
) -> DemoResult:
    """Run the demo.

    Args:
        folder: where runs and report go. Models already trained there by the same recipe are taken.
        say: receives lines for the user.
        epochs: per model.
        detector_epochs: of the detector; 0 trains none.
        progress: live display of each training.
        seconds_per_size: time limit of the speed measurements.
        models: which of ``MODELS``; ``"softmax"`` and ``"castling"`` are needed.
        tokens: numbers of tokens at which attention alone is measured.
        sides: image sides in pixels at which whole models are measured.

    Returns:
        The report's path, and results.
    """
    started = time.perf_counter()
    folder = Path(folder)
    chosen = {key: MODELS[key] for key in models}
    # Models this small gain nothing from a second thread, and lose much when a core is busy.
    with cpu_threads(1):
        results, counts = _train(folder, say, chosen, epochs, progress)
        found = _detect(folder / "detector", say, detector_epochs, progress)
        say("exporting the switched Castling-ViT to ONNX, and running the file again")
        exported = _export(folder)
        say(str(exported))
        say("measuring time against resolution")
        speed = _measure(folder, chosen, tokens, sides, seconds_per_size)
        examples = _examples(folder)
        page = demo_page(folder, chosen, results, counts, exported, speed, epochs, examples)
        if found is not None:
            report.add_detections(
                page, found, NAME, drawn_scenes(folder / "detector", detector_epochs)
            )
    written = page.write(folder / "report.html")
    return DemoResult(str(written), results, found, exported, time.perf_counter() - started)


def _detect(
    folder: Path, say: Callable[[str], None], epochs: int, progress: bool
) -> TrainResult | None:
    if not epochs:
        return None
    say(f"{NAME}, {epochs} epochs on scenes of handwritten digits")
    result = train_detector(folder, epochs, progress)
    metrics = result.switched_metrics or result.metrics
    say(f"      test AP50 {metrics['test_AP50']:.1f} %, after the switch")
    return result


def _train(
    folder: Path, say: Callable[[str], None], chosen: Models, epochs: int, progress: bool
) -> tuple[dict[str, TrainResult], dict[str, int]]:
    """Results and MACs of the models, by their names in the report."""
    results: dict[str, TrainResult] = {}
    counts: dict[str, int] = {}
    for number, (key, (name, model)) in enumerate(chosen.items(), 1):
        say(
            f"[{number}/{len(chosen)}] {name} ({model.name}), {epochs} epochs on handwritten digits"
        )
        if (folder / key / RESULT).is_file():
            say(f"      trained earlier; delete {folder} to train anew")
        result = train(demo_recipe(model, epochs), folder / key, progress=progress)
        results[name] = result
        counts[name] = macs(open_model(model_folder(folder / key))[0], (3, 32, 32)).total
        say(f"      test accuracy {result.metrics['test_top1']:.2f} %")
        if result.switched_metrics:
            say(
                f"      after the switch {result.switched_metrics['test_top1']:.2f} %, "
                f"largest gap of the outputs {result.switch['max_gap']:.1e}"
            )
    return results, counts


def _export(folder: Path) -> ExportReport:
    network, card = open_model(model_folder(folder / "castling"))
    return export(
        network,
        folder / "castling.onnx",
        card.image_size,
        card=card,
        overwrite=True,  # of an earlier demo in this folder
    )


def _measure(
    folder: Path, chosen: Models, tokens: Sequence[int], sides: Sequence[int], seconds: float
) -> tuple[OpsResult, ModelsResult]:
    kernels = bench_ops(
        {name: read_attention(name) for name in ("linear_angular", "quadratic_taylor")},
        settings_of(tokens, heads=[3]),
        backends=available_backends("cpu")[:1],
        seconds=seconds,
    )
    softmax = MODELS["softmax"][1].name
    models = bench_models(
        [_candidate(model, softmax) for _, model in chosen.values()],
        [(side, side) for side in sides],
        seconds=seconds,
        rounds=15,
    )
    for result, stem in ((kernels, "kernels"), (models, "models")):
        result.write_json(folder / f"{stem}.json")
        result.write_csv(folder / f"{stem}.csv")
        result.write_plot(folder / f"{stem}.png")
    return kernels, models


def _candidate(model: ModelConfig, host: str) -> Candidate:
    """A model of the demo as the benchmark builds it."""
    attention = None
    if isinstance(model.attention, dict):
        options = ",".join(f"{k}={v}" for k, v in model.attention.items() if k != "name")
        attention = f"{model.attention['name']}:{options}"
    return model_candidate(model.name, attention, kwargs=model.kwargs, hosts=[host])


def _examples(folder: Path) -> list[tuple[Image.Image, str, str, float]]:
    """(image, true class, predicted class, probability) of test images, written as files first."""
    data, _ = open_data(demo_recipe(ModelConfig(), 1))
    test = data.dataset("test")
    images, truths, files = [], [], []
    (folder / "images").mkdir(exist_ok=True)
    for index in range(0, len(test), max(1, len(test) // _EXAMPLES))[:_EXAMPLES]:
        batch = test[BatchKey((index,))]
        images.append(Image.fromarray(batch.images[0].permute(1, 2, 0).contiguous().numpy()))
        truths.append(data.classes[int(batch.targets["label"][0])])
        files.append(folder / "images" / f"{index}-{truths[-1]}.png")
        images[-1].save(files[-1])
    examples = []
    found = Predictor(folder / "castling.onnx")(files)
    for image, truth, one in zip(images, truths, found, strict=True):
        assert isinstance(one, ClassificationPrediction)
        examples.append((image, truth, one.classes[0], one.probabilities[0]))
    return examples
