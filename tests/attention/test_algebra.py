"""Algebra that holds for every kernel, at sizes that hypothesis chooses."""

import dataclasses

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from castling.attention import (
    AttentionInputs,
    attention_config,
    config_from_dict,
    kernel_class,
    list_kernels,
)

CONFIGS = {name: attention_config(name) for name in list_kernels()}
#: Kernels of one set of keys, whatever their order; the others read the grid.
KERNELS = [name for name, config in CONFIGS.items() if not kernel_class(config).needs_grid]
#: Divided by the norm of the output: linear in v only up to a factor for each row.
L2 = {"linear_angular", "quadratic_angular", "cosine"}
#: Adds ½·v_i of the query's own position: query and key must move together.
AT_QUERY = {"linear_angular", "separable"}
LINEAR = [name for name in KERNELS if name not in L2]
SUMS_TO_ONE = [*("softmax", "relu_linear", "elu", "hedgehog", "first_order_taylor")]
SUMS_TO_ONE += ["quadratic_taylor"]
QUICK = settings(max_examples=12, deadline=None)


@st.composite
def problems(draw, queries_apart=True):
    """Queries, keys and values in float64, of any small shape."""
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    keys, dim = draw(st.integers(1, 12)), draw(st.sampled_from([4, 8]))
    queries = draw(st.integers(1, 9)) if queries_apart else keys
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(tokens):
        shape = (batch, tokens, heads, dim)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return AttentionInputs(normal(queries), normal(keys), normal(keys))


def kernel_of(name, inputs):
    torch.manual_seed(0)
    heads, dim = inputs.key.shape[2:]
    module = kernel_class(CONFIGS[name])(CONFIGS[name], heads, dim, dim).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():  # learned parts away from their neutral start
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def apart(name):
    return name not in AT_QUERY


@pytest.mark.parametrize("name", KERNELS)
@QUICK
@given(st.data())
def test_the_order_of_the_keys_does_not_matter(name, data):
    inputs = data.draw(problems(queries_apart=apart(name)))
    kernel = kernel_of(name, inputs)
    order = torch.tensor(data.draw(st.permutations(range(inputs.key.shape[1]))))
    moved = inputs._replace(key=inputs.key[:, order], value=inputs.value[:, order])
    out = kernel(inputs)
    if not apart(name):
        moved, out = moved._replace(query=inputs.query[:, order]), out[:, order]
    torch.testing.assert_close(kernel(moved), out, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", KERNELS)
@QUICK
@given(st.data())
def test_a_mask_equals_removing_the_keys(name, data):
    inputs = data.draw(problems(queries_apart=apart(name)))
    kernel = kernel_of(name, inputs)
    count = inputs.key.shape[1]
    kept = data.draw(st.integers(1, count))
    mask = (torch.arange(count) < kept).expand(inputs.key.shape[0], -1)
    short = AttentionInputs(inputs.query, inputs.key[:, :kept], inputs.value[:, :kept])
    if not apart(name):
        short = short._replace(query=inputs.query[:, :kept])
    hidden = ~mask[:, :, None, None]
    padded = inputs._replace(
        key=inputs.key.masked_fill(hidden, 1e3),
        value=inputs.value.masked_fill(hidden, -1e3),
        key_mask=mask,
    )
    out, expected = kernel(padded), kernel(short)
    torch.testing.assert_close(out[:, : expected.shape[1]], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", KERNELS)
@QUICK
@given(st.data())
def test_images_of_a_batch_do_not_see_each_other(name, data):
    inputs = data.draw(problems(queries_apart=apart(name)))
    kernel = kernel_of(name, inputs)
    alone = [
        kernel(AttentionInputs(*(t[i : i + 1] for t in inputs[:3])))
        for i in range(inputs.key.shape[0])
    ]
    torch.testing.assert_close(kernel(inputs), torch.cat(alone), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in LINEAR if n != "separable"])
@QUICK
@given(st.data())
def test_linear_in_the_values(name, data):
    inputs = data.draw(problems(queries_apart=apart(name)))
    kernel = kernel_of(name, inputs)
    other = inputs.value.flip(1).cos()
    a, b = data.draw(st.floats(-3, 3)), data.draw(st.floats(-3, 3))
    mixed = kernel(inputs._replace(value=a * inputs.value + b * other))
    apart_ = a * kernel(inputs) + b * kernel(inputs._replace(value=other))
    torch.testing.assert_close(mixed, apart_, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", SUMS_TO_ONE)
@QUICK
@given(st.data())
def test_what_all_values_share_comes_out_unchanged(name, data):
    inputs = data.draw(problems())
    positive = inputs._replace(
        query=inputs.query.abs(), key=inputs.key.abs(), value=torch.full_like(inputs.value, 3.0)
    )
    out = kernel_of(name, inputs)(positive)
    torch.testing.assert_close(out, torch.full_like(out, 3.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["linear_angular", "quadratic_angular", "cosine"])
@QUICK
@given(st.data())
def test_directions_alone_matter_to_angular_kernels(name, data):
    inputs = data.draw(problems(queries_apart=apart(name)))
    kernel = kernel_of(name, inputs)
    larger = data.draw(st.floats(0.5, 20))
    scaled = inputs._replace(query=inputs.query * larger, key=inputs.key * larger)
    torch.testing.assert_close(kernel(scaled), kernel(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["relu_linear", "cosine"])
@QUICK
@given(st.data())
def test_a_positive_factor_of_the_queries_cancels(name, data):
    inputs = data.draw(problems())
    config = dataclasses.replace(CONFIGS[name], eps=1e-12)
    heads, dim = inputs.key.shape[2:]
    kernel = kernel_class(config)(config, heads, dim, dim).double()
    scaled = inputs._replace(query=inputs.query * data.draw(st.floats(0.5, 20)))
    torch.testing.assert_close(kernel(scaled), kernel(inputs), rtol=1e-5, atol=1e-6)


@given(st.sampled_from(sorted(CONFIGS)), st.sampled_from([None, 1, 3, 5]))
def test_configurations_survive_their_written_form(name, size):
    config = dataclasses.replace(CONFIGS[name], local_kernel_size=size)
    assert config_from_dict({"name": name, **dataclasses.asdict(config)}) == config
