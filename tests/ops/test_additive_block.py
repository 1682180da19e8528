"""The folded CAS-ViT block: all backends agree with the formula; packed weights follow sources."""

import pytest
import torch
from torch import Tensor

from castling.ops import native
from castling.ops.additive_block import (
    AdditiveBlockWeights,
    additive_block,
    can_take,
    naive_additive_block,
)
from castling.ops.backends import attention_backend

BACKENDS = [
    "naive",
    pytest.param(
        "native",
        marks=pytest.mark.skipif(not native.available(), reason="the C++ operators are not built"),
    ),
]
needs_native = BACKENDS[1].marks[0]

#: batch, channels, hidden channels, height, width, local integration. Channels and hidden channels
#: that fill no vector, images of one row, one column, one pixel; more hidden channels than a chunk.
SHAPES = [
    (1, 16, 64, 8, 8, True),
    (2, 20, 80, 7, 9, True),
    (3, 7, 30, 5, 13, False),
    (1, 33, 300, 1, 11, True),
    (5, 24, 96, 10, 1, False),
    (1, 12, 513, 1, 1, True),
]


def example(
    batch: int, channels: int, hidden: int, height: int, width: int, local: bool
) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(channels)

    def make(*shape: int) -> Tensor:
        fan_in = max(1, shape[1] * shape[2] * shape[3]) if len(shape) == 4 else 4
        return torch.randn(shape, generator=generator) / fan_in**0.5

    def dense(outputs: int, inputs: int) -> list[Tensor]:
        return [make(outputs, inputs, 1, 1), make(outputs)]

    def depthwise() -> list[Tensor]:
        return [make(channels, 1, 3, 3), make(channels)]

    weights = []
    if local:
        weights += [*dense(channels, channels), *depthwise(), *dense(channels, channels)]
    weights += dense(3 * channels, channels)
    for _ in range(2):
        weights += [*depthwise(), make(1, channels, 1, 1), make(channels, channels, 1, 1)]
    weights += [*depthwise(), *depthwise(), *dense(hidden, channels), *dense(channels, hidden)]
    x = 2 * torch.randn(batch, channels, height, width, generator=generator)
    return x, weights


def run(backend: str, x: Tensor, weights: list[Tensor]) -> Tensor:
    with torch.no_grad(), attention_backend(backend):
        return additive_block(x, weights)


def exact(x: Tensor, weights: list[Tensor]) -> Tensor:
    return naive_additive_block(x.double(), [weight.double() for weight in weights])


def relative_error(result: Tensor, expected: Tensor) -> float:
    return float((result.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_backend_gives_the_formula(backend: str, shape: tuple) -> None:
    x, weights = example(*shape)
    result = run(backend, x, weights)
    assert result.shape == x.shape
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(result, exact(x, weights)) <= 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(backend: str) -> None:
    x, weights = example(2, 20, 80, 7, 9, True)
    expected = run(backend, x, weights)
    sliced = torch.empty(2, 9, 40, 14)[:, :, ::2, ::2].permute(0, 2, 3, 1)
    sliced.copy_(x)
    torch.testing.assert_close(run(backend, sliced, weights), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(backend: str, dtype: torch.dtype) -> None:
    x, weights = example(2, 20, 80, 7, 9, True)
    x, weights = x.to(dtype), [weight.to(dtype) for weight in weights]
    result = run(backend, x, weights)
    assert result.dtype == dtype
    # The native operator rounds its result alone, basic operators every step.
    limit = 3e-3 if backend == "native" else 3e-2
    assert relative_error(result, exact(x, weights)) <= limit


@needs_native
@pytest.mark.usefixtures("nan_memory")
def test_no_result_is_left_unwritten() -> None:
    x, weights = example(3, 20, 80, 7, 9, True)
    assert run("native", x, weights).isfinite().all()


@needs_native
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_number_of_threads_changes_no_bit(batch: int) -> None:
    x, weights = example(batch, 20, 80, 17, 9, True)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run("native", x, weights))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_native
@torch.no_grad()
def test_packed_weights_follow_their_sources() -> None:
    x, weights = example(1, 16, 64, 8, 8, True)
    run("native", x, weights)
    weights[0].mul_(2)
    assert relative_error(run("native", x, weights), exact(x, weights)) <= 1e-6
    weights[8].data = torch.randn(16, 1, 3, 3)
    assert relative_error(run("native", x, weights), exact(x, weights)) <= 1e-6
    swapped = [*weights[:-2], weights[-2].clone(), weights[-1]]
    swapped[3] = swapped[3] + 1
    assert relative_error(run("native", x, swapped), exact(x, swapped)) <= 1e-6
    assert relative_error(run("native", x, weights), exact(x, weights)) <= 1e-6


@needs_native
def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        x, weights = example(1, 16, 64, 8, 8, True)
        run("native", x, weights)
        weights[0].mul_(2)
        result = run("native", x, weights).clone()
        assert relative_error(result, exact(x, weights)) <= 1e-6


@needs_native
@torch.no_grad()
def test_defaults_of_the_program_do_not_reach_the_packed_weights() -> None:
    x, weights = example(1, 16, 64, 8, 8, True)
    expected = exact(x, weights)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            result = run("native", x, weights)
    finally:
        torch.set_default_dtype(before)
    assert relative_error(result, expected) <= 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_of_other_channels_is_refused(backend: str) -> None:
    x, weights = example(1, 16, 64, 8, 8, True)
    with pytest.raises((ValueError, RuntimeError), match=r"16.*channels|channels.*16"):
        run(backend, x.repeat(1, 4, 1, 1), weights)


@needs_native
def test_an_input_that_is_no_number_shows() -> None:
    x, weights = example(1, 16, 64, 8, 8, True)
    x[0, 3, 4, 4] = torch.nan
    assert run("native", x, weights).isnan().all()  # through the mean over positions


@needs_native
@torch.no_grad()
def test_no_images() -> None:
    x, weights = example(1, 16, 64, 8, 8, True)
    assert run("native", x[:0], weights).shape == (0, 16, 8, 8)


@pytest.mark.parametrize("local", [True, False])
def test_weights_in_a_row_and_back(local: bool) -> None:
    flat = example(1, 8, 16, 4, 4, local)[1]
    weights = AdditiveBlockWeights.from_flat(flat)
    assert len(weights.local) == 3 * local
    assert all(a is b for a, b in zip(weights.flat(), flat, strict=True))
    assert weights.down.weight.shape == (8, 16, 1, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_registered_as_an_operator(backend: str) -> None:
    x, weights = example(1, 8, 16, 4, 4, True)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.castling.additive_block, (x, weights, backend), test_utils=checks
    )


def test_modules_are_left_to_compute_where_gradients_are_wanted() -> None:
    x, weights = example(1, 8, 16, 4, 4, True)
    assert can_take(x, weights)
    weights[0].requires_grad_()
    assert not can_take(x, weights)
    with torch.no_grad():
        assert can_take(x, weights)
