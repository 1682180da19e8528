"""What the gradient says: effective receptive fields and class activation maps."""

from __future__ import annotations

import torch
from torch import Tensor

from castling.explanation.figures import Grid


def receptive_field(tokens: Tensor, images: Tensor) -> Tensor:
    """|∂ Σ_c y_c / ∂ pixel| summed over the colours, (H, W): what moves one position's channels.

    Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks",
    NeurIPS 2016.

    Args:
        tokens: (…, C) channels at one position, computed from ``images`` with gradients.
        images: (1, 3, H, W), a leaf that requires gradients.
    """
    gradient = torch.autograd.grad(tokens.sum(), images, retain_graph=True, allow_unused=True)[0]
    if gradient is None:
        return images.new_zeros(images.shape[-2:])
    return gradient.detach().abs().sum(dim=(0, 1))


def half_area(field: Tensor) -> float:
    """The smallest share of the pixels that holds half of a field, in [0, 1]; 0 where it is zero.

    A field that is the same everywhere has 0.5.
    """
    values = field.double().flatten().sort(descending=True).values
    total = values.sum()
    if not total > 0:
        return 0.0
    count = int((values.cumsum(0) < total / 2 * (1 - 1e-12)).sum()) + 1
    return count / values.numel()


def class_activation(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM: ReLU(Σ_c w_c a_c), w_c the mean gradient of channel c; scaled to [0, 1], (h, w).

    Selvaraju et al., "Grad-CAM", ICCV 2017. Zero where nothing speaks for the class.

    Args:
        activation: (C, h, w).
        gradient: (C, h, w), of the class's score with respect to it.
    """
    weight = gradient.double().mean(dim=(1, 2), keepdim=True)
    heat = (weight * activation.double()).sum(dim=0).relu()
    return heat / heat.max().clamp(min=torch.finfo(torch.float64).tiny)


def as_map(tokens: Tensor, grid: Grid) -> Tensor | None:
    """One image's map (C, h, w) of tokens (1, N, C), (1, C, h, w) or (1, h, w, C); None otherwise.

    Of (1, N, C) the last h·w are taken: prefix tokens stand in front.
    """
    count = grid[0] * grid[1]
    if tokens.shape[0] != 1:
        return None
    if tokens.dim() == 3 and tokens.shape[1] >= count:
        return tokens[0, tokens.shape[1] - count :].T.reshape(-1, *grid)
    if tokens.dim() == 4 and tuple(tokens.shape[-2:]) == grid:
        return tokens[0]
    if tokens.dim() == 4 and tuple(tokens.shape[1:3]) == grid:
        return tokens[0].permute(2, 0, 1)
    return None
