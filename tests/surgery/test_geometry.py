"""Every forward has its own grid: recomputation, own forwards, blocks alone; or a clear refusal."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from timm.models._manipulate import checkpoint_seq
from torch import nn
from torch.utils.checkpoint import checkpoint

import castling
from castling.surgery import linearize_, token_grid

GRID = castling.LinearAngular(local="grid2d")
#: Sizes of as many tokens but other shapes, and of other counts.
PAIRS = [
    ((32, 32), (16, 16)),
    ((32, 32), (16, 64)),
    ((32, 64), (64, 32)),
    ((32, 32), (32, 32)),
]


def loud(model, seed=0):
    """Local residuals and everything else that starts at zero get weights that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "dconv" in name or parameter.abs().max() == 0:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def vit(**options):
    defaults = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 4, "img_size": 32}
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, **{**defaults, "dynamic_img_size": True, **options}
    )
    linearize_(model, GRID)
    return loud(model)


def distilled():
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=5,
        embed_dim=32,
        depth=3,
        num_heads=2,
        patch_size=4,
        img_size=32,
        dynamic_img_size=True,
    )
    linearize_(model, GRID)
    return loud(model)


MODELS = {
    "deit": vit,
    "distilled": distilled,
    "registers": lambda: vit(reg_tokens=3),
    "average": lambda: vit(class_token=False, global_pool="avg"),
    "partial": lambda: partial(),
    "levit": lambda: loud(timm.create_model("castling_levit_pico", num_classes=5)),
    "mvitv2": lambda: loud(timm.create_model("castling_mvitv2_pico", num_classes=5)),
}


def partial():
    model = timm.create_model("deit_pico", num_classes=5, dynamic_img_size=True)
    linearize_(model, GRID, ["blocks.1", "blocks.3"])
    return loud(model)


def total(out):
    parts = out if isinstance(out, tuple | list) else (out,)
    return sum(part.pow(2).sum() for part in parts)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def check_equal(expected, found):
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-6, msg=name)


def images(*sizes, batch=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 3, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_checkpointed_gradients_of_two_sizes_in_one_backward(name, pair):
    if name in ("levit", "mvitv2"):
        pair = [tuple(2 * side for side in size) for size in pair]
    model = MODELS[name]().eval()
    first, second = images(*pair)

    def loss():
        return total(model(first)) + total(model(second))

    expected = gradients(model, loss())
    # The test can fail: the second image's grid matters.
    model.set_grad_checkpointing(True)
    check_equal(expected, gradients(model, loss()))
    # Each model's blocks are recomputed a second time after other images.
    value = loss()
    with torch.no_grad():
        model(images((48, 32) if name not in ("levit", "mvitv2") else (96, 64))[0])
    check_equal(expected, gradients(model, value))


def embedded(model, x):
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))


def per_block(model, x, reentrant):
    x = embedded(model, x)
    for block in model.blocks:
        x = checkpoint(block, x, use_reentrant=reentrant)
    return model.norm(x)


def per_attention(model, x, reentrant):
    x = embedded(model, x)
    for block in model.blocks:
        x = x + checkpoint(block.attn, block.norm1(x), use_reentrant=reentrant)
        x = x + block.mlp(block.norm2(x))
    return model.norm(x)


def chunk(model, x, reentrant):
    x = model.blocks[0](embedded(model, x))
    x = checkpoint(model.blocks[1:3], x, use_reentrant=reentrant)
    return model.norm(x)


def sequence(model, x, reentrant):
    return model.norm(
        checkpoint_seq(model.blocks, embedded(model, x), every=2, use_reentrant=reentrant)
    )


def whole(model, x, reentrant):
    return checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant)


def whole_by_features(model, x, reentrant):
    x = x.clone().requires_grad_()
    return checkpoint(model.forward_features, x, use_reentrant=reentrant)


def nested(model, x, reentrant):
    def inner(x):
        return checkpoint(model.blocks[1:], model.blocks[0](x), use_reentrant=False)

    return model.norm(checkpoint(inner, embedded(model, x), use_reentrant=reentrant))


WAYS = [per_block, per_attention, chunk, sequence, whole, whole_by_features, nested]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_checkpointed_by_hand(way, reentrant, monkeypatch):
    model = vit().train()
    crops = images((32, 32), (16, 64), (64, 16), (16, 16))

    def loss():
        return sum(total(way(model, crop, reentrant)) for crop in crops)

    found = gradients(model, loss())
    monkeypatch.setitem(globals(), "checkpoint", lambda f, x, use_reentrant: f(x))
    monkeypatch.setitem(
        globals(), "checkpoint_seq", lambda blocks, x, every, use_reentrant: blocks(x)
    )
    check_equal(gradients(model, loss()), found)


SIDES = st.integers(1, 5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(SIDES, SIDES), min_size=2, max_size=4), st.booleans(), st.booleans())
def test_any_sizes_in_one_backward(grids, reentrant, seq):
    model = vit(depth=2).double()
    crops = [x.double() for x in images(*((4 * h, 4 * w) for h, w in grids), batch=1)]
    way = sequence if seq else per_block
    expected = gradients(model, sum(total(model.forward_features(crop)) for crop in crops))
    found = gradients(model, sum(total(way(model, crop, reentrant)) for crop in crops))
    check_equal(expected, found)


@pytest.mark.parametrize("name", ["deit", "levit"])
def test_threads_that_recompute_at_the_same_time(name):
    model = MODELS[name]().eval()
    model.set_grad_checkpointing(True)
    scale = 2 if name == "levit" else 1
    crops = images(*((scale * h, scale * w) for h, w in [(32, 32), (16, 64), (64, 16)]))
    parameters = list(model.parameters())

    def derive(crop):
        return torch.autograd.grad(total(model(crop)), parameters, allow_unused=True)

    expected = [derive(crop) for crop in crops]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            for found, wanted in zip(pool.map(derive, crops), expected, strict=True):
                for one, other in zip(found, wanted, strict=True):
                    if other is not None:
                        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_offloaded_inputs_are_found_by_their_only_grid_or_refused():
    """Saving on another device gives the recomputation copies, which no forward has seen."""
    model = vit().train()
    first, second, other = images((32, 32), (16, 64), (16, 16))

    def loss(*crops):
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
            return sum(total(per_block(model, crop, reentrant=False)) for crop in crops)

    expected = gradients(model, sum(total(model.forward_features(x)) for x in (first, other)))
    check_equal(expected, gradients(model, loss(first, other)))
    with pytest.raises(ValueError, match=r"recomputed.* 4×16 or 8×8"):
        loss(first, second).backward()


def test_own_forward_with_the_projection_alone():
    """As ports of MAE, DINO and ViTDet do; the image embedded last is another one."""
    model = vit().eval()
    x, other = images((32, 32), (16, 64))

    def own(x):
        tokens = model.patch_embed.proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([model.cls_token.expand(len(x), -1, -1), tokens], 1) + model.pos_embed
        return model.norm(model.blocks(tokens))

    with torch.no_grad():
        expected = model.forward_features(x)
        for _ in range(2):
            torch.testing.assert_close(own(x), expected)
            model(other)
            model.forward_features(other)


def test_own_forward_that_embeds_without_the_patch_embedding_is_refused():
    model = vit().eval()
    x, other = images((32, 32), (16, 64))

    def own(x):
        patches = (
            x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        )
        tokens = nn.functional.linear(patches, model.patch_embed.proj.weight.flatten(1))
        tokens = torch.cat([model.cls_token.expand(len(x), -1, -1), tokens], 1) + model.pos_embed
        return model.blocks(tokens)

    for run in (model, model.forward_features):
        with torch.no_grad():
            run(other)
            with pytest.raises(ValueError, match="token_grid"):
                own(x)
            with token_grid(model.blocks, (8, 8)):
                own(x)
        run(other)
        with pytest.raises(ValueError, match="token_grid"):
            own(x)


@pytest.mark.parametrize("gradients", [False, True])
def test_crops_embedded_first_and_run_afterwards(gradients):
    """Told apart by their number and batch, and refused where they are not."""
    model = vit().eval()
    with torch.set_grad_enabled(gradients):
        crops = images((32, 32), (16, 16), (16, 48))
        expected = [model.forward_features(crop) for crop in crops]
        tokens = [embedded(model, crop) for crop in crops]
        for x, wanted in zip(tokens, expected, strict=True):
            torch.testing.assert_close(model.norm(model.blocks(x)), wanted)
        same = [embedded(model, crop) for crop in images((32, 32), (32, 32))]
        for x in same:
            model.blocks(x)
        wide, _ = (embedded(model, crop) for crop in images((16, 64), (64, 16)))
        with pytest.raises(ValueError, match="could be of either"):
            model.blocks(wide)
        # One of them again changes nothing: the next tokens may still be the other's.
        again = embedded(model, images((16, 64))[0])
        with pytest.raises(ValueError, match="could be of either"):
            model.blocks(again)
        model(crops[0])
        # One after the other, they are known, block by block too.
        model = copy.deepcopy(model)  # which has not embedded the refused ones
        first = model.blocks[0](embedded(model, images((16, 64))[0]))
        second = model.blocks[0](embedded(model, images((64, 16))[0]))
        for block in model.blocks[1:]:
            first, second = block(first), block(second)
        wanted = model.forward_features(images((16, 64))[0])
        torch.testing.assert_close(model.norm(first), wanted)
        wanted = model.forward_features(images((64, 16))[0])
        torch.testing.assert_close(model.norm(second), wanted)


def test_blocks_and_attentions_alone_are_refused_after_a_forward():
    model = vit().eval()
    (x,) = images((32, 32))
    with castling.tap(model) as taps:
        model(x)
    tokens = taps["blocks.0.attn"][0].args[0].detach().clone()
    for module in (model.blocks, model.blocks[1], model.blocks[1].attn):
        with torch.no_grad(), pytest.raises(ValueError, match="no image went through"):
            module(tokens)
        with torch.no_grad(), token_grid(module, (8, 8)):
            module(tokens)
        with pytest.raises(ValueError, match="no image went through"):
            module(tokens)


def test_tokens_that_do_not_fit_are_refused():
    model = vit().eval()
    (x,) = images((32, 32))
    with torch.no_grad():
        tokens = embedded(model, x)
        with pytest.raises(ValueError, match="8×8 tokens behind 1 prefix tokens"):
            model.blocks(tokens[:, :17])
        with pytest.raises(ValueError, match="as many in a batch"):
            model.blocks(tokens[:1].clone())
        model.blocks(tokens)


def test_a_layer_that_needs_no_grid_takes_any_tokens():
    model = timm.create_model("deit_pico").eval()
    linearize_(model, castling.LinearAngular(local="none"))
    assert model.blocks(torch.randn(2, 7, 64)).shape == (2, 7, 64)
    levit = timm.create_model("levit_128s", img_size=64).eval()
    linearize_(levit, castling.LinearAngular(local="none"))
    assert levit.stages[0](torch.randn(2, 7, 128)).shape == (2, 7, 128)


def test_levit_layers_alone_are_bound_to_the_grid_they_were_made_for():
    """As the host's are; other tokens are refused."""
    model = timm.create_model("levit_128s", img_size=(64, 128)).eval()
    linearize_(model, GRID)
    with castling.tap(model, "stages.0") as taps:
        model(torch.randn(2, 3, 64, 128))
        model(torch.randn(2, 3, 128, 64))
    wide, high = taps["stages.0.blocks.0.attn"]
    tokens = wide.args[0].detach().clone()
    attention = model.stages[0].blocks[0].attn
    with torch.no_grad():
        torch.testing.assert_close(attention(tokens), wide.output)
        assert high.grid == (8, 4)
        torch.testing.assert_close(high.replay(attention), high.output)
        with pytest.raises(ValueError, match="no image went through"):
            attention(tokens[:, :7])


def test_a_learned_tensor_is_not_the_first_images():
    """The same tokens in calls of images of another shape: whose are they?"""
    model = vit().train()
    queries = nn.Parameter(torch.randn(2, 65, 32))
    model.blocks.register_forward_pre_hook(lambda module, args: (queries,), prepend=True)
    wide, high = images((16, 64), (64, 16))
    model(wide)
    model(wide)
    with pytest.raises(ValueError, match="could be of either"):
        model(high)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_block_used_repeatedly(gradients):
    model = vit()
    model.blocks[1] = model.blocks[2] = model.blocks[0]
    model.eval()
    x, other = images((32, 32), (16, 64))
    with torch.set_grad_enabled(gradients):
        expected = model.forward_features(x)
        model.forward_features(other)
        again = model.forward_intermediates(x, indices=3)[0]
        torch.testing.assert_close(again, expected)

        def changed_between(model, args, output=None):
            return (args[0] * 1.5,)

        handle = model.blocks[0].register_forward_pre_hook(changed_between)
        assert model(x).isfinite().all()
        handle.remove()


def test_a_forward_that_raised_leaves_nothing_behind():
    model = vit().eval()
    x, other = images((32, 32), (16, 64))
    tokens = embedded(copy.deepcopy(model), x).detach()

    def fail(*args):
        raise RuntimeError("on purpose")

    for module in (model.blocks[1], model.blocks[1].mlp, model.head):
        handle = module.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            model(other)
        handle.remove()
        with torch.no_grad(), pytest.raises(ValueError, match="no image went through"):
            model.blocks(tokens.clone())


def test_another_patch_size_and_padding():
    model = vit(dynamic_img_pad=True).eval()
    with castling.tap(model, "blocks.0") as taps:
        model(torch.randn(1, 3, 30, 17))
    assert taps["blocks.0.attn"][0].grid == (8, 5)
    model = vit().eval()
    model.set_input_size(patch_size=8)
    with castling.tap(model, "blocks.0") as taps:
        model(torch.randn(1, 3, 32, 64))
    assert taps["blocks.0.attn"][0].grid == (4, 8)


class Unfolded(nn.Module):
    """A patch projection that returns a sequence."""

    def __init__(self, host):
        super().__init__()
        self.linear = nn.Linear(48, host.out_channels)

    def forward(self, x):
        return self.linear(nn.functional.unfold(x, 4, stride=4).transpose(1, 2))


def test_other_projections():
    model = vit(dynamic_img_size=False).eval()
    model.patch_embed.proj = nn.Sequential(model.patch_embed.proj, nn.Identity())
    with castling.tap(model, "blocks.0") as taps:
        model(torch.randn(1, 3, 32, 32))
    assert taps["blocks.0.attn"][0].grid == (8, 8)
    model.patch_embed.proj = Unfolded(model.patch_embed.proj[0])
    model.patch_embed.flatten = False
    with castling.tap(model, "blocks.0") as taps:
        model(torch.randn(1, 3, 32, 32))
        model.forward_features(torch.randn(1, 3, 32, 32))
    assert [call.grid for call in taps["blocks.0.attn"]] == [(8, 8)] * 2


def test_given_grids_hold_in_recomputation():
    model = vit().train()
    first, second = (torch.randn(2, 65, 32, requires_grad=True) for _ in range(2))
    block = model.blocks[0]

    def loss(call):
        out = 0
        for x, grid in ((first, (8, 8)), (second, (4, 16))):
            with token_grid(block, grid):
                out = out + total(call(x))
        return out

    expected = gradients(model, loss(block))
    for reentrant in (False, True):
        found = gradients(model, loss(lambda x: checkpoint(block, x, use_reentrant=reentrant)))  # noqa: B023
        check_equal(expected, found)


def test_memory_is_not_kept_alive_and_records_are_dropped():
    model = vit().train()
    geometry = model.blocks[0].attn.place.geometry
    for _ in range(60):
        model(images((16, 16))[0])
    assert len(geometry._inputs._entries) <= 2 * 64


def test_a_buffer_written_to_again_is_not_the_old_image():
    model = vit().eval()
    wide, high = images((16, 64), (64, 16))
    expected = [model.forward_features(x) for x in (wide, high)]
    buffer = torch.empty(2, 65, 32)
    for x, wanted in zip((wide, high), expected, strict=True):
        tokens = embedded(model, x).detach()
        buffer.copy_(tokens)
        torch.testing.assert_close(model.norm(model.blocks(buffer)), wanted)


def test_copies_and_pickles_after_a_checkpointed_forward():
    model = vit().train()
    model.set_grad_checkpointing(True)
    first, second = images((32, 32), (16, 64))
    value = total(model(first)) + total(model(second))
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    expected = gradients(model, value)
    for twin in twins:
        check_equal(expected, gradients(twin, total(twin(first)) + total(twin(second))))


def test_features_only_models():
    model = timm.create_model(
        "castling_deit_pico", features_only=True, out_indices=(1, 3), dynamic_img_size=True
    )
    loud(model)
    first, second = images((32, 32), (16, 64))

    def loss():
        return total(model(first)) + total(model(second))

    expected = gradients(model, loss())
    model.model.set_grad_checkpointing(True)
    check_equal(expected, gradients(model, loss()))


def test_compiled_whole_and_compiled_in_part():
    model = vit(depth=2).eval()
    crops = images((32, 32), (16, 64))
    with torch.no_grad():
        expected = [model(x) for x in crops]
        whole = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
        for x, wanted in zip(crops * 2, expected * 2, strict=True):
            torch.testing.assert_close(whole(x), wanted)
        torch._dynamo.reset()
        for part in ("blocks", "patch_embed"):
            twin = copy.deepcopy(model)
            getattr(twin, part).compile(backend="eager", fullgraph=True, dynamic=False)
            for x, wanted in zip(crops * 2, expected * 2, strict=True):
                torch.testing.assert_close(twin(x), wanted)
                torch.testing.assert_close(twin.forward_features(x), model.forward_features(x))


def test_compiled_blocks_that_are_recomputed():
    """They read the image embedded last: right for one shape, refused for two of as many tokens."""
    model = vit(depth=2).eval()
    first, second = images((32, 32), (16, 64))
    expected = gradients(model, total(model(first)))
    model.set_grad_checkpointing(True)
    for block in model.blocks:
        block.compile(backend="eager", dynamic=False)
    check_equal(expected, gradients(model, total(model(first))))
    with pytest.raises(ValueError, match="could be of either"):
        (total(model(first)) + total(model(second))).backward()


def test_eager_blocks_after_a_compiled_model():
    model = vit(depth=2).eval()
    wide, high = images((16, 64), (64, 16))
    whole = torch.compile(model, backend="eager", dynamic=False)
    with torch.no_grad():
        expected = model(wide)
        tokens = embedded(model, high)
        whole(wide)
        with pytest.raises(ValueError, match="could be of either"):
            model.blocks[0](tokens)
        model(high)
        torch.testing.assert_close(whole(wide), expected)


def test_tokens_written_to_are_not_the_module_s_output_any_more():
    model = vit().eval()
    wide, high = images((16, 64), (64, 16))
    with torch.no_grad():
        first = model.blocks[0](embedded(model, wide))
        second = model.blocks[0](embedded(model, high))
        first.copy_(second)
        with pytest.raises(ValueError, match="could be of either"):
            model.blocks[1](first)
        model = vit().eval()
        expected = model.forward_features(wide)
        # With one image, there is no doubt.
        tokens = model.blocks[0](embedded(model, wide))
        tokens.add_(1).sub_(1)
        for block in model.blocks[1:]:
            tokens = block(tokens)
        torch.testing.assert_close(model.norm(tokens), expected, rtol=1e-4, atol=1e-5)


def test_blocks_called_by_keyword():
    model = vit().eval()
    (x,) = images((32, 32))
    expected = model.forward_features(x)
    tokens = embedded(model, x)
    for block in model.blocks:
        tokens = block(x=tokens)
    torch.testing.assert_close(model.norm(tokens), expected)


def test_batches_put_together_time_after_time():
    """As many images as the batch before, which the blocks have had."""
    model = vit().eval()
    for size in ((16, 64), (64, 16)):
        parts = [part for seed in range(3) for part in images(size, batch=seed + 1)]
        expected = torch.cat([copy.deepcopy(model).forward_features(part) for part in parts])
        tokens = torch.cat([embedded(model, part) for part in parts])
        torch.testing.assert_close(model.norm(model.blocks(tokens)), expected)


def test_under_transforms_of_functions():
    model = vit(depth=1).eval()
    x = images((16, 64), batch=3)[0]
    parameters = dict(model.named_parameters())

    def loss(parameters, image):
        return total(torch.func.functional_call(model, parameters, (image[None],)))

    per_image = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    expected = gradients(model, sum(total(model(image[None])) for image in x))
    for name, gradient in expected.items():
        torch.testing.assert_close(per_image[name].sum(0), gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["deit", "levit"])
def test_hooks_are_harmless_in_torch_fx(name):
    """With attentions as leaves; the traced module's projection or stem tells the grid."""
    model = MODELS[name]().eval() if name == "levit" else vit(dynamic_img_size=False).eval()
    x = images((64, 64) if name == "levit" else (32, 32))[0]

    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, module, qualified_name):
            converted = isinstance(module, castling.surgery.HostAttention)
            return converted or super().is_leaf_module(module, qualified_name)

    with torch.no_grad():
        expected = model(x)
        traced = torch.fx.GraphModule(model, Leaves().trace(model))
        torch.testing.assert_close(traced(x), expected)
        model(x)
        torch.testing.assert_close(traced(x), expected)


def test_replicas_in_threads_of_their_own():
    """As DataParallel makes them: shallow copies that share the hooks of their original."""
    model = vit().eval()
    model.set_grad_checkpointing(True)
    crops = images((16, 64), (64, 16))
    expected = [gradients(model, total(model(crop))) for crop in crops]

    def replica(module):
        twin = module._replicate_for_data_parallel()
        for key, child in module._modules.items():
            twin._modules[key] = None if child is None else replica(child)
        for key, parameter in module._parameters.items():
            twin._parameters[key] = parameter
        return twin

    twins = [replica(model) for _ in crops]
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda twin, x: total(twin(x)), twins, crops))
    found = gradients(model, sum(outputs))
    for name, gradient in found.items():
        wanted = expected[0][name] + expected[1][name]
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)


#: As many tokens each, other shapes; and one of another count.
SHAPES = [(16, 64), (64, 16), (32, 32), (16, 16)]
CROPS = st.integers(0, len(SHAPES) - 1)
STEPS = st.tuples(st.sampled_from(["embed", "project", "block", "changed", "call", "all"]), CROPS)


#: After a refusal, one of the images again, and then the old tokens of the other.
REFUSED_FIRST = [("embed", 0), ("embed", 1), ("block", 0), ("embed", 0), ("block", 1)]


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=4, max_size=14), st.booleans())
@example(REFUSED_FIRST, False)
@example(REFUSED_FIRST, True)
def test_any_order_of_steps_is_right_or_refused(steps, with_gradients):
    """Crops embedded and sent through the blocks in any order, with changes between blocks."""
    model = vit(depth=3).eval()
    truth = copy.deepcopy(model)
    crops = images(*SHAPES)
    at = {}

    def step(kind, index):
        x = crops[index]
        if kind == "call":
            model(x)
        elif kind == "all":
            model.forward_features(x)
        elif kind in ("embed", "project"):
            if kind == "embed":
                tokens = embedded(model, x)
            else:
                tokens = model.patch_embed.proj(x).flatten(2).transpose(1, 2)
                cls = model.cls_token.expand(len(x), -1, -1)
                tokens = torch.cat([cls, tokens], 1)
            at[index] = (0, tokens)
        elif index in at and at[index][0] < 3:
            depth, tokens = at[index]
            tokens = tokens * 1.1 if kind == "changed" else tokens
            out = model.blocks[depth](tokens)
            with token_grid(truth.blocks[depth], (x.shape[2] // 4, x.shape[3] // 4)):
                torch.testing.assert_close(out, truth.blocks[depth](tokens))
            at[index] = (depth + 1, out)

    with torch.set_grad_enabled(with_gradients):
        for kind, index in steps:
            try:
                step(kind, index)
            except castling.surgery.geometry.GridUnknownError:
                assert kind in ("block", "changed", "all")


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_graph_with_two_images_embedded_first_is_refused(dynamic):
    model = vit().eval()
    wide, high = images((16, 64), (64, 16))

    def through(tokens):
        for block in model.blocks:
            tokens = block(tokens)
        return tokens

    def at_once(a, b):
        first, second = embedded(model, a), embedded(model, b)
        return through(first), through(second)

    def in_turns(a, b):
        return through(embedded(model, a)), through(embedded(model, b))

    with torch.no_grad():
        expected = in_turns(wide, high)
        compiled = torch.compile(in_turns, backend="eager", fullgraph=True, dynamic=dynamic)
        torch.testing.assert_close(compiled(wide, high), expected)
        torch.testing.assert_close(compiled(high, wide), expected[::-1])
        with pytest.raises(Exception, match="images of two shapes were embedded"):
            torch.compile(at_once, backend="eager", fullgraph=True, dynamic=dynamic)(wide, high)
        # A call of the whole model is not concerned, nor are images of one shape.
        whole = torch.compile(model, backend="eager", fullgraph=True, dynamic=dynamic)
        torch.testing.assert_close(whole(wide), model(wide))
        same = torch.compile(at_once, backend="eager", fullgraph=True, dynamic=dynamic)
        torch.testing.assert_close(same(wide, 2 * wide)[0], expected[0])


def test_compiled_blocks_do_not_take_the_image_embedded_last():
    model = vit().eval()
    wide, high = images((16, 64), (64, 16))

    def through(tokens):
        for block in model.blocks:
            tokens = block(tokens)
        return tokens

    with torch.no_grad():
        expected = through(embedded(model, wide))
        through(embedded(model, high))
        for block in model.blocks:
            block.compile(backend="eager")
        torch.testing.assert_close(through(embedded(model, wide)), expected)
        through(embedded(model, high))
        torch.testing.assert_close(through(embedded(model, wide)), expected)  # in turns
        first, _ = embedded(model, wide), embedded(model, high)
        with pytest.raises(Exception, match=r"two shapes|could be of either"):
            through(first)
        model(wide)
        torch.testing.assert_close(through(embedded(model, wide)), expected)


@torch.no_grad()
@pytest.mark.parametrize("target", [castling.Softmax(), castling.LinearAngular(local="grid2d")])
def test_rows_that_make_no_whole_patch_are_left_out_as_by_the_host(target):
    """As in SigLIP's models of 384 pixels in patches of 14, which take no other size."""
    torch.manual_seed(0)
    host = timm.create_model(
        "vit_tiny_patch16_224", img_size=(34, 40), patch_size=14, depth=2, num_classes=5
    ).eval()
    images = torch.randn(2, 3, 34, 40)
    expected = host(images)
    castling.linearize_(host, target)
    found = host(images)
    if isinstance(target, castling.Softmax):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    cut = images.clone()
    cut[:, :, 28:] = 9.0
    cut[..., 28:] = -9.0
    torch.testing.assert_close(host(cut), found)
    program = torch.export.export(host, (images,), strict=False).module()
    torch.testing.assert_close(program(images), found)
    with pytest.raises(AssertionError, match="doesn't match model"):
        host(torch.randn(1, 3, 40, 40))
