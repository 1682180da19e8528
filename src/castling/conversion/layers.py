"""A student's attentions on the inputs of its teacher's: errors, closed form, gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from castling.conversion.outputs import OutputOf, model_output
from castling.surgery.compared import first_tensor
from castling.surgery.tap import AttentionCall, Taps, tap


def tokens_of(output: object) -> Tensor:
    """The tokens among what an attention returns: the first tensor.

    Raises:
        TypeError: it returns no tensor.
    """
    found = first_tensor(output)
    if found is None:
        raise TypeError(f"an attention that returns no tensor but {type(output).__name__}")
    return found


def teacher_calls(
    teacher: nn.Module, images: Tensor, names: Iterable[str], compared: OutputOf
) -> Taps:
    """What every attention of the teacher got and gave for these images, without gradients."""
    with torch.no_grad(), tap(teacher, list(names), detach=True) as taps:
        compared(teacher, images)
    return taps


def relative_error(call: AttentionCall, layer: nn.Module) -> Tensor:
    """Squared error of a layer on its teacher's inputs, in parts of the variance of the target.

    The variance is that over tokens, per channel: an output that is the mean of all tokens has an
    error of 1. A teacher's layer that gives every token the same counts with a variance of 1.
    """
    target = tokens_of(call.output).float().flatten(0, -2)
    output = tokens_of(call.replay(layer)).float().flatten(0, -2)
    variance = target.var(dim=0, correction=0).mean()
    return (output - target).square().mean() / torch.where(variance > 0, variance, 1.0)


def layer_errors(
    teacher: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Tensor],
    compared: OutputOf = model_output,
) -> dict[str, float]:
    """The error of every layer, the mean over batches."""
    sums = dict.fromkeys(layers, 0.0)
    count = 0
    for images in batches:
        taps = teacher_calls(teacher, images, layers, compared)
        with torch.no_grad():
            for name, layer in layers.items():
                errors = [float(relative_error(call, layer)) for call in taps[name]]
                sums[name] += sum(errors) / len(errors)
        count += 1
    return {name: value / count for name, value in sums.items()}


class _Half:
    """Sums over the tokens of half of the images: XᵀX, XᵀR and ‖R‖², in double precision."""

    def __init__(self, linear: nn.Linear) -> None:
        device, width = linear.weight.device, linear.in_features + (linear.bias is not None)
        self.gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.moment = torch.zeros(width, linear.out_features, dtype=torch.float64, device=device)
        self.square = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, x: Tensor, residual: Tensor) -> None:
        """Tokens (n, C), with a last column of ones where there is a bias, and (n, C')."""
        self.gram += x.T @ x
        self.moment += x.T @ residual
        self.square += residual.square().sum()

    def __add__(self, other: _Half) -> _Half:
        both = copy.copy(self)
        for name in ("gram", "moment", "square"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def change(self, linear: nn.Linear, ridge: float) -> Tensor | None:
        """The change of weight (and bias, last row) that fits best; the bias is not pulled back.

        None where the tokens do not say: there are none, or all are zero.
        """
        width = linear.in_features
        system = self.gram.clone()
        system[:width, :width].diagonal().add_(system.diagonal()[:width].mean() * ridge)
        solution, failed = torch.linalg.solve_ex(system, self.moment)
        return None if bool(failed) else solution

    def error(self, change: Tensor) -> Tensor:
        """‖X·change − R‖²."""
        fitted = (change * (self.gram @ change)).sum() - 2 * (change * self.moment).sum()
        return fitted + self.square


class _Fit:
    """One output projection: what its input can explain of what is missing behind it."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self.halves = (_Half(linear), _Half(linear))

    def add(self, x: Tensor, residual: Tensor, which: int) -> None:
        """Tokens (B, …, C) of some images, and what is missing behind them (B, …, C')."""
        for parity, half in enumerate(self.halves):
            # Alternating images, whatever the size of a batch.
            start = (parity + which) % 2
            own = x[start::2].flatten(0, -2).double()
            if self.linear.bias is not None:
                own = torch.cat([own, own.new_ones(len(own), 1)], dim=1)
            half.add(own, residual[start::2].flatten(0, -2).double())

    def solve(self, ridges: Sequence[float]) -> float | None:
        """Correct the projection in place, with the pull that does best across the halves.

        Returns:
            The pull; None where no correction helps the other half: nothing is changed.
        """
        one, two = self.halves
        errors = {}
        for ridge in ridges:
            first, second = one.change(self.linear, ridge), two.change(self.linear, ridge)
            if first is None or second is None:
                return None
            errors[ridge] = float(two.error(first) + one.error(second))
        best = min(errors, key=errors.__getitem__)
        if not errors[best] < float(one.square + two.square):
            return None
        change = (one + two).change(self.linear, best)
        assert change is not None
        width = self.linear.in_features
        with torch.no_grad():
            self.linear.weight.add_(change[:width].T)
            if self.linear.bias is not None:
                self.linear.bias.add_(change[width])
        return best


def solve_projections(
    teacher: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Tensor],
    ridges: Sequence[float],
    compared: OutputOf = model_output,
) -> dict[str, str]:
    """Stage 0: the output projection of every layer, by ridge regression.

    Minimises ‖X·W + b − Y‖² + λ‖W − W₀‖² over all tokens, X what the student's attention hands its
    projection for the teacher's inputs, Y the teacher's outputs, W₀ the pretrained projection. λ is
    the one with which either half of the images predicts the other best.

    Args:
        teacher: in eval mode.
        layers: of the student, by name; changed in place.
        batches: of images.
        ridges: to choose λ from, in parts of the mean of the diagonal of XᵀX.
        compared: how the teacher is called.

    Returns:
        The layers that were left, and why.
    """
    fits: dict[str, _Fit] = {}
    left: dict[str, str] = {}
    images_before = 0
    for images in batches:
        taps = teacher_calls(teacher, images, layers, compared)
        with torch.no_grad():
            for name, layer in layers.items():
                if name in left:
                    continue
                for call in taps[name]:
                    with _last_linear(layer) as found:
                        output = tokens_of(call.replay(layer))
                    if not found or not _ends_with(output, found[-1][2]):
                        left[name] = "its output is not that of a linear projection"
                        break
                    linear, x, made = found[-1]
                    residual = tokens_of(call.output).reshape(made.shape) - made
                    fits.setdefault(name, _Fit(linear)).add(x, residual, images_before)
        images_before += len(images)
    for name, fit in fits.items():
        if name not in left and fit.solve(ridges) is None:
            left[name] = "no correction carries over from one half of the images to the other"
    return left


def _ends_with(output: Tensor, made: Tensor) -> bool:
    return output.numel() == made.numel() and torch.equal(output.reshape(made.shape), made)


@contextmanager
def _last_linear(layer: nn.Module) -> Iterator[list[tuple[nn.Linear, Tensor, Tensor]]]:
    """Every linear projection that runs in a layer: module, input, output, in order."""
    found: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        found.append((module, args[0], output))

    handles = [m.register_forward_hook(record) for m in layer.modules() if type(m) is nn.Linear]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
