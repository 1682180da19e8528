"""Steps of transforms: torchvision v2 transforms on tv_tensors.

Images are resampled by Pillow, whose antialiased filters other libraries only approximate, so that
published accuracies are reproduced; boxes and masks follow by torchvision's functions.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from castling.data.decode import image_tensor, pillow_image
from castling.data.sample import Sample
from castling.data.transforms.base import Size

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_MOST_PIXELS = 10**8  # of an image between scaling and cropping: 300 MB

_SPATIAL = (tv_tensors.BoundingBoxes, tv_tensors.Mask)


def apply_steps(sample: Sample, *steps: v2.Transform) -> Sample:
    """A sample after some steps; boxes and masks are changed along with the image."""
    image, target = sample.image, sample.target
    spatial = any(isinstance(value, tv_tensors.TVTensor) for value in target.values())
    for step in steps:
        if spatial:
            image, target = step(image, target)
        else:
            # The same without torchvision's walk over the inputs, which takes longer than small
            # images do.
            image = step.transform(image, step.make_params([image]))
    return dataclasses.replace(sample, image=image, target=target)


class Fit(v2.Transform):
    """Scale to (height, width), and cut the centre unless ``warp``.

    Args:
        size: (height, width) wanted.
        warp: change the aspect ratio and keep everything; otherwise scale and cut the centre.
        fraction: share of the limiting side that the centre crop keeps.
        interpolation: name of the filter for images.
    """

    _transformed_types = (tv_tensors.Image, *_SPATIAL)

    def __init__(
        self, size: Size, *, warp: bool, fraction: float, interpolation: Interpolation
    ) -> None:
        super().__init__()
        self.size, self.warp, self.fraction = size, warp, fraction
        self.filter = RESAMPLING[interpolation]
        #: (height, width) that the scaled image covers, before the crop.
        self.cover = size if warp else (int(size[0] / fraction), int(size[1] / fraction))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Size before the crop, and its top left corner."""
        height, width = self.size
        if self.warp:
            return {"scaled": self.size, "top": 0, "left": 0}
        old_height, old_width = v2.query_size(flat_inputs)
        over_height, over_width = self.cover
        if over_height * old_width >= over_width * old_height:  # the height is the tighter side
            scaled = over_height, max(over_width, int(over_height * old_width / old_height))
        else:
            scaled = max(over_height, int(over_width * old_height / old_width)), over_width
        return {
            "scaled": scaled,
            "top": round((scaled[0] - height) / 2),
            "left": round((scaled[1] - width) / 2),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Scale and crop one image, mask or set of boxes."""
        scaled, top, left = params["scaled"], params["top"], params["left"]
        height, width = self.size
        if not isinstance(inpt, tv_tensors.Image):
            return functional.crop(functional.resize(inpt, list(scaled)), top, left, height, width)
        same = tuple(inpt.shape[-2:]) == scaled
        if same and scaled == self.size:
            return inpt
        image = pillow_image(inpt)
        if scaled[0] * scaled[1] > _MOST_PIXELS:
            # Of a very long image only the part that is kept is scaled.
            rows, columns = image.height / scaled[0], image.width / scaled[1]
            box = (left * columns, top * rows, (left + width) * columns, (top + height) * rows)
            return image_tensor(image.resize((width, height), self.filter, box=box))
        if not same:
            image = image.resize(scaled[::-1], self.filter)
        return image_tensor(image.crop((left, top, left + width, top + height)))


class RandomResizedCrop(v2.Transform):
    """Cut a random part and scale it to (height, width) (Szegedy et al., 2015); timm's draws.

    Args:
        size: (height, width) wanted.
        scale: range of the share of the area.
        ratio: range of width/height.
        interpolation: name of the filter for images.
    """

    _transformed_types = (tv_tensors.Image, *_SPATIAL)

    def __init__(
        self,
        size: Size,
        *,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        interpolation: Interpolation,
    ) -> None:
        super().__init__()
        self.size, self.scale, self.ratio = size, scale, ratio
        self.filter = RESAMPLING[interpolation]

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Top, left, height and width of the part, from Python's generator."""
        from timm.data.transforms import RandomResizedCropAndInterpolation

        image = next(each for each in flat_inputs if isinstance(each, tv_tensors.Image))
        box = RandomResizedCropAndInterpolation.get_params(image, self.scale, self.ratio)
        return {"box": box}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut and scale one image, mask or set of boxes."""
        if not isinstance(inpt, tv_tensors.Image):
            return functional.resized_crop(inpt, *params["box"], list(self.size))
        return image_tensor(
            functional.resized_crop(
                pillow_image(inpt), *params["box"], list(self.size), self.filter
            )
        )


class PillowColorJitter(v2.ColorJitter):
    """torchvision's random brightness, contrast and saturation, computed by Pillow."""

    _transformed_types = (tv_tensors.Image,)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Change the colours of one image."""
        return image_tensor(super().transform(pillow_image(inpt), params))


class PillowPhotometricDistort(v2.RandomPhotometricDistort):
    """torchvision's, computed by Pillow, and without exchanging the colour channels."""

    _transformed_types = (tv_tensors.Image,)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """What is changed and by how much, from PyTorch's generator."""
        return {**super().make_params(flat_inputs), "channel_permutation": None}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Change the colours of one image."""
        return image_tensor(super().transform(pillow_image(inpt), params))


def chance(probability: float) -> bool:
    """Whether something of a probability happens; a number is drawn in any case."""
    return bool(torch.rand(()) < probability)


class ImagePolicy(v2.Transform):
    """A timm policy; it moves pixels without telling where to, so boxes and masks are refused.

    Args:
        policy: from a Pillow image to a Pillow image.
    """

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Raise ValueError where boxes or masks come with the image."""
        if any(isinstance(each, _SPATIAL) for each in flat_inputs):
            raise ValueError(
                "auto_augment rotates and shears images but not their boxes or masks; leave it "
                "empty for this task"
            )

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply the policy to one image."""
        return image_tensor(self.policy(pillow_image(inpt)))
