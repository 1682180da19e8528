"""Random erasing of normalised images, keyed by sample."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from castling.utils.randomness import Keys, global_generators_kept, seed_global_generators


def erase_batch(
    images: Tensor,
    keys: Keys,
    probability: float,
    mode: Literal["pixel", "rand", "const"] = "pixel",
) -> Tensor:
    """Erase a random rectangle of some images (Zhong et al., 2020), by timm's ``RandomErasing``.

    Rectangles and what fills them are drawn on the CPU, so the result is the same on any device.

    Args:
        images: (B, 3, H, W), normalised; left unchanged.
        keys: (B,) of the samples; see :func:`castling.data.sample_keys`.
        probability: of erasing, for each image.
        mode: what fills the rectangle: ``pixel`` noise, ``rand`` one random colour, ``const``
            zeros.

    Returns:
        (B, 3, H, W); ``images`` themselves where the probability is 0.
    """
    if not probability:
        return images
    from timm.data.random_erasing import RandomErasing

    erase = RandomErasing(probability, mode=mode, device="cpu")
    images = images.clone()
    with global_generators_kept():
        for image, key in zip(images.unbind(), keys, strict=True):
            seed_global_generators(int(key) ^ 1)  # not the key itself: augmentation has drawn by it
            erase(image)
    return images
