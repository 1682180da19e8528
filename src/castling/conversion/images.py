"""Images for a conversion: from any iterable of batches, on the model's device."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

Images = Iterable[Any] | Tensor


class Views:
    """Batches without end, behind those that are held out.

    Args:
        images: one tensor (n, 3, H, W), or an iterable of batches: such tensors, or tuples and
            lists whose first entry is one. It is started anew when it ends.
        device: to which they go.
        dtype: in which they go there.
        held_out: images taken from the front; nothing else ever sees them, if the iterable gives
            the same images first each time (a data loader that shuffles does not).

    Raises:
        ValueError: no images, or not enough to hold some out; numbers that are not finite.
        TypeError: something else than images.
    """

    def __init__(
        self,
        images: Images,
        device: torch.device,
        held_out: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if isinstance(images, Tensor):
            images = images.split(32)
        self.source, self.device, self.dtype = images, device, dtype
        self.held_out: list[Tensor] = []
        self._open = iter(images)
        count = 0
        while count < held_out:
            batch = next(self._open, None)
            if batch is None:
                break
            batch = self._images(batch)
            self.held_out.append(batch[: held_out - count])
            rest = batch[held_out - count :]
            count += len(self.held_out[-1])
        if not count:
            raise ValueError("there are no images to convert with")
        self._rest: Tensor | None = rest if len(rest) else None
        #: Batches given since the beginning.
        self.taken = 0

    def skip(self, batches: int) -> None:
        """Go on behind as many batches as an interrupted conversion had taken.

        They are read and dropped, unless the images can ``seek`` a batch.
        """
        seek = getattr(self.source, "seek", None)
        if seek is None:
            for _ in itertools.islice(iter(self), batches):
                pass
        else:
            seek(batches)
            self._open, self._rest, self.taken = iter(self.source), None, batches

    def __iter__(self) -> Iterator[Tensor]:
        """Batches, endlessly."""
        while True:
            if self._rest is not None:
                batch, self._rest = self._rest, None
                self.taken += 1
                yield batch
                continue
            raw = next(self._open, None)
            if raw is None:
                self._restart()
                continue
            batch = self._images(raw)
            self.taken += 1
            yield batch

    def _restart(self) -> None:
        """Begin anew, behind the images that are held out."""
        self._open = iter(self.source)
        skipped, count = sum(len(batch) for batch in self.held_out), 0
        for raw in self._open:
            batch = self._images(raw)
            count += len(batch)
            if count > skipped:
                self._rest = batch[len(batch) - (count - skipped) :]
                return
        if self._open is self.source:
            raise ValueError(
                "the images ran out, and an iterator gives them once: give a list or a data "
                "loader, which can be started anew"
            )
        raise ValueError(
            f"all {skipped} images are held out for the figures: give more images, give an "
            "iterable that can be started anew (a list or a data loader), or lower held_out"
        )

    def _images(self, batch: Any) -> Tensor:
        if isinstance(batch, tuple | list) and batch:
            batch = batch[0]
        if not isinstance(batch, Tensor) or batch.dim() != 4 or not batch.is_floating_point():
            raise TypeError(
                "a batch of images is a floating-point tensor (B, 3, H, W), normalised as the "
                f"model wants it, alone or first in a tuple; got {type(batch).__name__}"
                + (f" {batch.dtype} {tuple(batch.shape)}" if isinstance(batch, Tensor) else "")
            )
        batch = batch.to(self.device, self.dtype)
        if not bool(torch.isfinite(batch).all()):
            raise ValueError("a batch of images holds NaN or infinity: look at how they are made")
        return batch
