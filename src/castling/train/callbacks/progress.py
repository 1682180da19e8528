"""The live display: a progress bar per epoch, and a line for each finished epoch."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from tqdm import tqdm

from castling.surgery import LoadReport
from castling.train.module import TrainingModule

#: Columns that the bar itself takes at most, and below which it is left out.
_BAR = (24, 4)


class Progress(Callback):
    """Shows loss, learning rate and images/s on standard error.

    A terminal gets a bar that fits its width. A file gets a line after each epoch, and one now and
    then within long epochs.

    Must run before the history, which clears the metrics.

    Args:
        run_dir: the run's folder, named at the start.
        weights: what was taken of the starting weights, where there are any.
        refresh_seconds: between two refreshes of the bar.
        line_seconds: between two lines within an epoch, where there is no terminal.
    """

    def __init__(
        self,
        run_dir: Path,
        weights: LoadReport | None = None,
        refresh_seconds: float = 0.2,
        line_seconds: float = 60.0,
    ) -> None:
        self.run_dir = run_dir
        self.weights = weights
        self.refresh_seconds, self.line_seconds = refresh_seconds, line_seconds
        self.bar: Any = None
        self.count, self.started, self.shown = 0, 0.0, 0.0

    def on_fit_start(self, trainer: Trainer, module: TrainingModule) -> None:
        """Print what is trained, where and on which images."""
        if trainer.is_global_zero:
            for line in introduction(trainer, module, self.run_dir, self.weights):
                tqdm.write(line, file=sys.stderr)

    def on_train_start(self, trainer: Trainer, module: TrainingModule) -> None:
        """Open the bar of an epoch resumed in its middle; Lightning skips its start hook."""
        if module.start[1]:
            self._open(trainer, module)

    def on_train_epoch_start(self, trainer: Trainer, module: TrainingModule) -> None:
        """Open the bar."""
        self._open(trainer, module)

    def _open(self, trainer: Trainer, module: TrainingModule) -> None:
        self._close()
        self.count, self.started = 0, time.perf_counter()
        terminal = sys.stderr.isatty()
        self.shown = 0.0 if terminal else self.started
        if trainer.is_global_zero and terminal:
            # The text is laid out by bar_text; tqdm puts it there and makes room for other lines.
            self.bar = tqdm(leave=False, file=sys.stderr, bar_format="{desc}", ncols=0)

    def on_train_batch_end(
        self, trainer: Trainer, module: TrainingModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh a few times a second; reading the loss synchronises with the device."""
        self.count += len(batch) * trainer.world_size
        now = time.perf_counter()
        pause = self.line_seconds if self.bar is None else self.refresh_seconds
        if not trainer.is_global_zero or now - self.shown < pause:
            return
        self.shown = now
        total = int(trainer.num_training_batches)
        epoch = f"epoch {trainer.current_epoch + 1}/{module.recipe.epochs}"
        figures = [
            f"loss {module.train_losses['loss']:.4f}",
            f"lr {trainer.optimizers[0].param_groups[0]['lr']:.2e}",
            f"{self.count / (now - self.started):.0f} images/s",
        ]
        if self.bar is None:
            text = f"{epoch}  batch {batch_idx + 1}/{total}  {'  '.join(figures)}"
            tqdm.write(text, file=sys.stderr)
            return
        width = shutil.get_terminal_size().columns - 1  # the last column may wrap
        self.bar.set_description_str(bar_text(epoch, batch_idx + 1, total, figures, width))

    def on_train_epoch_end(self, trainer: Trainer, module: TrainingModule) -> None:
        """Replace the bar with a line."""
        self._close()
        if not trainer.is_global_zero:
            return
        texts = [f"{name} {value:.4g}" for name, value in module.train_losses.items()]
        shown = module.task.epoch_metrics or module.metrics
        for name, value in module.metrics.items():
            if name not in shown:
                continue
            percent = " %" if name in module.task.percentages else ""
            texts.append(f"val {name} {value:.4g}{percent}")
        text = "  ".join(texts)
        seconds = time.perf_counter() - self.started
        tqdm.write(
            f"epoch {trainer.current_epoch + 1}/{module.recipe.epochs}  {text}  {seconds:.1f} s",
            file=sys.stderr,
        )

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_exception(self, trainer: Trainer, module: TrainingModule, error: BaseException) -> None:
        """Close the bar."""
        self._close()


def bar_text(epoch: str, done: int, total: int, figures: Sequence[str], width: int) -> str:
    """A bar with its figures in at most ``width`` columns.

    The bar shrinks first, then the last figures are left out, then the bar.
    """
    most, least = _BAR
    shown = list(figures)
    while True:
        text = "  ".join([f"{done}/{total}", *shown])
        room = width - len(epoch) - len(text) - 2
        if room >= least:
            size = min(most, room)
            full = round(size * done / max(1, total))
            return f"{epoch} {'█' * full}{'░' * (size - full)} {text}"
        if not shown:
            return f"{epoch} {text}"[: max(0, width)]
        shown.pop()


def introduction(
    trainer: Trainer, module: TrainingModule, run_dir: Path, weights: LoadReport | None = None
) -> list[str]:
    """Lines that describe the run: model, device, starting weights, images, folder."""
    recipe, data = module.recipe, module.data
    parameters = sum(parameter.numel() for parameter in module.model.parameters())
    processes = f"{trainer.world_size} processes, " if trainer.world_size > 1 else ""
    sizes = ", ".join(f"{count} {split}" for split, count in data.sizes.items())
    classes = f"{len(data.classes)} classes, " if data.classes else ""
    epoch, batch = module.start
    resumed = f", resumed in epoch {epoch + 1} at batch {batch + 1}" if epoch or batch else ""
    return [
        f"model: {recipe.model.name}, {parameters:,} parameters, on {processes}{module.device}",
        *(str(weights).splitlines() if weights is not None else ()),
        f"data: {recipe.data.source}, {classes}{sizes} images",
        *(f"note: {note}" for note in data.notes),
        f"run: {run_dir}{resumed}",
    ]
