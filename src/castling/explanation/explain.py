"""``explain``: what a model attends to, measured on images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from castling.explanation.choice import choose_layers
from castling.explanation.figures import rolled
from castling.explanation.layers import averaged, explain_layer
from castling.explanation.pixels import PixelSide, pictures_of
from castling.explanation.recording import Recorder
from castling.explanation.records import LayerExplanation, ModelExplanation
from castling.explanation.result import Explanation
from castling.surgery.selection import Where
from castling.utils.modes import eval_mode

Progress = Callable[[str], None]
#: Tokens up to which matrices are made: a DINOv2 at 518 pixels has 1,370.
MAX_TOKENS = 1600


@torch.inference_mode(False)
def explain(
    model: nn.Module,
    images: Tensor,
    *,
    teacher: nn.Module | None = None,
    teacher_images: Tensor | None = None,
    layers: Where | None = None,
    classes: Sequence[str] | None = None,
    teacher_classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    max_tokens: int = MAX_TOKENS,
    model_name: str = "",
    teacher_name: str = "",
    progress: Progress | None = None,
) -> Explanation:
    """Explain what a model attends to, with a teacher beside it.

    For every attention, converted or softmax: the matrix that its kernel applies to the values,
    found by giving it the identity as values, with entropy, effective rank, distance and negative
    mass; the shares of kernel, local residual and auxiliary branch in the output; the effective
    receptive field of its output. For every image: Grad-CAM of the predicted class, attention of
    one query, attention rollout. An attention without a matrix is listed with the reason.

    Args:
        model: any model with attentions of ours or of a supported host. It is not changed, and is
            run in evaluation mode.
        images: (n, 3, H, W), normalised as the model wants them; each costs a forward pass and a
            backward pass per layer, a few are enough.
        teacher: another model to be shown beside it, such as the softmax model it came from.
        teacher_images: the same images, normalised as the teacher wants them; None: the same.
        layers: which, as ``where`` of :func:`castling.linearize_`; None for all. Of the teacher
            those of the same names, or all where none is called so.
        classes: names of the model's classes, in order.
        teacher_classes: of the teacher's; None: the same.
        names: of the images.
        mean: with ``std``, what the images were normalised by, to show them as they were; None
            takes timm's description of the model, or else stretches them.
        std: see ``mean``.
        max_tokens: matrices are made of at most so many queries times as many keys; memory and
            time grow with the square and the cube of it.
        model_name: for the page; empty takes the class.
        teacher_name: likewise.
        progress: called with a line now and then.

    Raises:
        ValueError: no images, or they are not finite numbers (n, 3, H, W), or names, classes or
            ``teacher_images`` do not fit; the model holds no attention, or ``layers`` matches none.

    Example:
        >>> explanation = castling.explain(student, images, teacher=teacher)
        >>> print(explanation)
        >>> explanation.save("explained")
    """
    say = progress or (lambda text: None)
    _check_images(images, "images")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    if names is not None and len(names) != len(images):
        raise ValueError(f"there are {len(images)} images and {len(names)} names")
    if (mean is None) != (std is None):
        raise ValueError("mean and std go together: give both, or neither")
    called = list(names) if names is not None else [f"image {i}" for i in range(len(images))]
    choose_layers(model, layers)  # refuse before the teacher is computed
    title = model_name or type(model).__name__
    of_teacher = None
    if teacher is not None:
        theirs = images if teacher_images is None else teacher_images
        _check_images(theirs, "teacher_images")
        if theirs.shape != images.shape:
            raise ValueError(
                f"teacher_images are {tuple(theirs.shape)} and images {tuple(images.shape)}: they "
                "must be the same images at the same size"
            )
        second = teacher_name or type(teacher).__name__
        second += " (teacher)" if second == title else ""
        where = _of_teacher(teacher, layers)
        of_teacher = _explained(
            teacher, theirs, where, second, called, teacher_classes or classes, max_tokens, say
        )
    return Explanation(
        model=_explained(model, images, layers, title, called, classes, max_tokens, say),
        teacher=of_teacher,
        pictures=pictures_of(model, images, mean, std),
    )


def _check_images(images: Tensor, name: str) -> None:
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{name} must be one tensor (n, 3, H, W) of normalised pixels, got {got}")
    if not len(images):
        raise ValueError(f"{name} holds no image: give at least one")
    if not torch.isfinite(images).all():
        raise ValueError(f"{name} holds numbers that are not finite")


def _of_teacher(teacher: nn.Module, layers: Where | None) -> Where | None:
    """The layers of the same names, or all: hosts of another architecture name them otherwise."""
    try:
        choose_layers(teacher, layers)
    except ValueError:
        return None
    return layers


def _explained(
    model: nn.Module,
    images: Tensor,
    layers: Where | None,
    name: str,
    called: Sequence[str],
    labels: Sequence[str] | None,
    max_tokens: int,
    say: Progress,
) -> ModelExplanation:
    parameter = next(model.parameters())
    images = images.detach().to(parameter.device, parameter.dtype).clone()
    with eval_mode(model):
        recorder = Recorder(model, layers)
        pixels = PixelSide(model, list(recorder.attentions), recorder.unknown, labels)
        found: dict[str, list[LayerExplanation]] = {}
        explained = []
        for number, image in enumerate(images.split(1)):
            say(f"{name}: image {number + 1} of {len(images)}")
            query, rollout = _matrices(recorder, image, max_tokens, found)
            explained.append(pixels.see(image, called[number], query, rollout))
    fields = pixels.fields()
    kept = {each: found[each] for each in recorder.attentions if each in found}
    return ModelExplanation(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        attentions=recorder.attentions,
        layers=tuple(averaged(each) for each in kept.values()),
        missing=recorder.missing,
        fields=fields,
        images=tuple(explained),
        notes=pixels.notes(),
    )


def _matrices(
    recorder: Recorder,
    image: Tensor,
    max_tokens: int,
    found: dict[str, list[LayerExplanation]],
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Add one image's figures to ``found``; its query maps and its rollout.

    A layer that fails on one image is missing on all: averages over other images are not compared.
    """
    size = (image.shape[-2], image.shape[-1])
    query: dict[str, Tensor] = {}
    rollout: Tensor | None = None
    whole, grid, prefix = recorder.every, None, 0
    for name, recorded in recorder.record(image).items():
        if isinstance(recorded, str):
            recorder.missing[name] = recorded
        if isinstance(recorded, str) or name in recorder.missing:
            found.pop(name, None)
            whole = False
            continue
        try:
            attention = recorder.attentions[name]
            one = explain_layer(name, attention, recorded, size, max_tokens)
        except ValueError as error:
            recorder.missing[name] = str(error)
            found.pop(name, None)
            whole = False
            continue
        found.setdefault(name, []).append(one.figures)
        if one.query is not None:
            query[name] = one.query
        grid, prefix = recorded.grid, recorded.prefix
        whole &= one.matrix is not None and grid is not None
        if whole and one.matrix is not None:
            whole = rollout is None or len(rollout) == one.matrix.shape[-1]
            rollout = rolled(rollout, one.matrix) if whole else None
    if not whole or rollout is None or grid is None or recorder.missing:
        return query, None
    row = rollout[0] if prefix else rollout[grid[0] // 2 * grid[1] + grid[1] // 2]
    return query, row[prefix:].reshape(grid)
