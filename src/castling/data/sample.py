"""What travels from a source to a task: samples, and batches of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

#: A target of one shape in every sample is stacked; others, such as boxes, stay a list.
Targets = dict[str, Tensor | list[Tensor]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with what is known about it.

    Attributes:
        image: (3, H, W) of uint8, upright RGB.
        target: by name. Classification: ``label`` (). Detection: ``boxes`` (n, 4), ``labels``
            (n,), ``masks`` (n, H, W), ``iscrowd`` (n,). Segmentation: ``mask`` (H, W) of uint8, in
            which 255 is no class (:data:`castling.utils.labels.IGNORED`).
            Boxes and masks are tv_tensors, so that torchvision's transforms keep them in step.
        index: position in its split.
        name: how a person finds the image.
        original_size: (height, width) in pixels before any transform.
    """

    image: tv_tensors.Image
    target: dict[str, Tensor]
    index: int
    name: str
    original_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one size with their targets.

    Attributes:
        images: (B, 3, H, W) of uint8, padded at the bottom and right where sizes differ; float32
            with the same range [0, 255] where a transform scaled the whole batch.
        valid: (B, 2) of int64: (height, width) of each image without padding.
        targets: by name; see ``Targets``.
        index: (B,) of int64, positions in the split.
        names: how a person finds each image.
        original_sizes: (height, width) of each image before any transform.
    """

    images: Tensor
    valid: Tensor
    targets: Targets
    index: Tensor
    names: tuple[str, ...]
    original_sizes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by PyTorch's loader."""
        return self._map(Tensor.pin_memory)

    def select(self, rows: Sequence[int]) -> Batch:
        """The images at ``rows``, copied; at least one."""
        chosen = torch.tensor(rows)
        pick: Callable[[Sequence[Any]], tuple[Any, ...]] = itemgetter(*rows)
        if len(rows) == 1:
            row = rows[0]
            pick = lambda values: (values[row],)  # noqa: E731 itemgetter(i) gives no tuple
        return Batch(
            images=self.images[chosen],
            valid=self.valid[chosen],
            targets={
                name: list(pick(value)) if isinstance(value, list) else value[chosen]
                for name, value in self.targets.items()
            },
            index=self.index[chosen],
            names=pick(self.names),
            original_sizes=pick(self.original_sizes),
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return dataclasses.replace(
            self,
            images=change(self.images),
            valid=change(self.valid),
            targets={
                name: list(map(change, value)) if isinstance(value, list) else change(value)
                for name, value in self.targets.items()
            },
            index=change(self.index),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # A tensor sent by a worker process takes a shared memory block and a file descriptor.
        # Only the images are worth one: a few hundred boxes would use up the descriptors.
        targets = {
            name: list(map(_inline, value)) if isinstance(value, list) else _inline(value)
            for name, value in self.targets.items()
        }
        valid, index = _inline(self.valid), _inline(self.index)
        return _restore, (self.images, valid, targets, index, self.names, self.original_sizes)


def plain(tensor: Tensor) -> Tensor:
    """A tv_tensor without its kind; another tensor as it is."""
    return tensor.as_subclass(Tensor) if isinstance(tensor, tv_tensors.TVTensor) else tensor


def stack_samples(
    samples: Sequence[Sample],
    images: Tensor | None = None,
    *,
    multiple: int = 1,
    fill: int = 0,
) -> Batch:
    """One batch of samples; see ``Batch``.

    A target that has one shape in all samples is stacked, others stay a list.

    Args:
        samples: at least one, all with targets of the same names.
        images: (B, 3, H, W), where their images are stacked already.
        multiple: of the sides of the batch's images, in pixels.
        fill: value of the padding, in [0, 255].
    """
    sizes = [tuple(sample.image.shape[-2:]) for sample in samples]
    if images is None:
        plain = [sample.image.as_subclass(Tensor) for sample in samples]
        images = _stack_images(plain, multiple, fill)
    targets: Targets = {}
    for name in samples[0].target:
        values = [sample.target[name] for sample in samples]
        same = all(value.shape == values[0].shape for value in values)
        targets[name] = torch.stack(values) if same else values
    return Batch(
        images=images,
        valid=torch.tensor(sizes),
        targets=targets,
        index=torch.tensor([sample.index for sample in samples]),
        names=tuple(sample.name for sample in samples),
        original_sizes=tuple(sample.original_size for sample in samples),
    )


def _stack_images(images: list[Tensor], multiple: int, fill: int) -> Tensor:
    """(B, 3, H, W), padded at the bottom and right to multiples that hold the largest sides."""
    height, width = (
        math.ceil(max(image.shape[side] for image in images) / multiple) * multiple
        for side in (1, 2)
    )
    if all(tuple(image.shape[1:]) == (height, width) for image in images):
        return torch.stack(images).contiguous()
    stacked = torch.full((len(images), 3, height, width), fill, dtype=torch.uint8)
    for row, image in zip(stacked.unbind(), images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return stacked


def _inline(value: Tensor) -> Any:
    """A plain CPU tensor as an array, which is pickled by value."""
    return value.numpy() if type(value) is Tensor and value.device.type == "cpu" else value


def _restore(
    images: Tensor,
    valid: Any,
    targets: dict[str, Any],
    index: Any,
    names: tuple[str, ...],
    original_sizes: tuple[tuple[int, int], ...],
) -> Batch:
    """Undo ``Batch.__reduce__``."""
    return Batch(
        images=images,
        valid=torch.as_tensor(valid),
        targets={
            name: list(map(torch.as_tensor, value))
            if isinstance(value, list)
            else torch.as_tensor(value)
            for name, value in targets.items()
        },
        index=torch.as_tensor(index),
        names=names,
        original_sizes=original_sizes,
    )
