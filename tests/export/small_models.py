"""Small models, images with clear answers, and training on them: reduced precision must agree."""

import torch
from torch import nn


class Convolutional(nn.Module):
    """Runs at every size; exported in a second."""

    def __init__(self, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def coloured_images(count, size=32, seed=0):
    """(N, 3, H, W): noise around one of three colours, in turn."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.eye(3)[torch.arange(count) % 3] * 3 - 1
    noise = torch.randn(count, 3, size, size, generator=generator)
    return colours[:, :, None, None] + 0.5 * noise


def fit_(model, steps=30, size=32):
    """Train a model on :func:`coloured_images` for some steps."""
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        images = coloured_images(12, size, seed=100 + step)
        loss = nn.functional.cross_entropy(model(images), torch.arange(12) % 3)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()
