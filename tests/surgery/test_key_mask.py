"""Masks that exclude keys, in every form that hosts write them."""

import copy

import pytest
import timm
import torch
from torch.nn import functional as F

import castling
from castling.surgery.key_mask import as_key_mask

VALID = torch.tensor([[True, True, True, False], [True, True, True, True]])


def additive(allowed, dtype=torch.float32, masked=None):
    masked = torch.finfo(dtype).min if masked is None else masked
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, masked)


def forms():
    """The same key mask, written in different ways."""
    both = (VALID[:, :, None] & VALID[:, None, :])[:, None]
    keys = VALID[:, None, None]
    expanded = keys.expand(-1, 1, 4, -1)
    yield VALID
    for allowed in (keys, expanded, both):
        yield allowed
        yield additive(allowed)
        yield additive(allowed, masked=float("-inf"))
        yield additive(allowed, torch.float16)
        yield additive(allowed, torch.bfloat16)


@pytest.mark.parametrize("mask", forms())
def test_every_form_is_read(mask):
    assert torch.equal(as_key_mask(mask, 2, 4), VALID)


def test_one_mask_for_the_whole_batch():
    found = as_key_mask(VALID[:1, None, None], 3, 4)
    assert torch.equal(found, VALID[:1].expand(3, 4))


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.ones(2, 1, 4, 4, dtype=torch.bool).tril(), "queries see different keys"),
        (additive(torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()), "queries see different keys"),
        (torch.randn(2, 1, 1, 4), "cannot add a bias"),
        (additive(VALID[:, None, None], masked=-100.0), "cannot add a bias"),
        (additive(VALID[:, None, None], masked=float("nan")), "cannot add a bias"),
        (torch.zeros(2, 4), "key masks only"),  # of two dimensions it would be (queries, keys)
        (torch.ones(2, 4, dtype=torch.long), "key masks only"),
        (torch.ones(2, 3, 4, 4, dtype=torch.bool), "key masks only"),  # one for each head
        (torch.ones(2, 1, 1, 5, dtype=torch.bool), "key masks only"),
        (torch.ones(3, 4, dtype=torch.bool), "key masks only"),
    ],
)
def test_other_masks_are_refused(mask, says):
    with pytest.raises(ValueError, match=says):
        as_key_mask(mask, 2, 4)


def test_the_mask_of_softmax_attention():
    """PyTorch's own attention with the additive mask, and with what it was read as."""
    query, key, value = torch.randn(3, 2, 2, 4, 8)
    mask = additive(VALID[:, None, None])
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    found = F.scaled_dot_product_attention(
        query, key, value, attn_mask=as_key_mask(mask, 2, 4)[:, None, None]
    )
    torch.testing.assert_close(found, expected)


def naflex(**kwargs):
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 7, **kwargs}
    return timm.create_model("naflexvit_base_patch16_gap", **options).eval()


def batch():
    """Two images of 5 and 7 patches in 8 places."""
    valid = torch.arange(8) < torch.tensor([5, 7])[:, None]
    return torch.randn(2, 8, 16 * 16 * 3), torch.zeros(2, 8, 2, dtype=torch.long), valid


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"use_key_only_attn_mask": True},
        {"global_pool": "token", "class_token": True, "reg_tokens": 0},
        {"global_pool": "map", "reg_tokens": 2},
    ],
)
@torch.no_grad()
def test_naflex_models(kwargs):
    """Softmax as the new attention gives timm's outputs; a linear one does not see the padding."""
    host, (patches, coordinates, valid) = naflex(**kwargs), batch()
    model = copy.deepcopy(host)

    def outputs(network, patches):
        return network(patches, patch_coord=coordinates, patch_valid=valid)

    castling.linearize_(model, castling.Softmax())
    torch.testing.assert_close(outputs(model, patches), outputs(host, patches))
    castling.linearize_(model, castling.ReLULinear())
    other = patches.masked_fill(~valid[..., None], 99.0)
    torch.testing.assert_close(outputs(model, other), outputs(model, patches))
    assert outputs(model, patches).isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_compiled_and_exported_graphs_hold_no_check(masked):
    model = timm.create_model("deit_pico", num_classes=3).eval()
    castling.linearize_(model, "relu_linear")
    block, tokens = model.blocks[0].attn, torch.randn(2, 4, 64)
    allowed = VALID[:, None, None]
    mask = additive(allowed) if masked else allowed.expand(2, 1, 4, 4)
    expected = block(tokens, mask)
    with castling.attention_backend("naive"):
        compiled = torch.compile(block, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(tokens, mask), expected, rtol=1e-4, atol=1e-5)
        program = torch.export.export(block, (tokens, mask)).module()
        torch.testing.assert_close(program(tokens, mask), expected, rtol=1e-4, atol=1e-5)
