"""CAS-ViT: sizes and costs of the paper, timm's contract, options and refusals."""

import pytest
import timm
import torch
from torch import nn

import castling
from castling.attention import ConvolutionalAdditive, LinearAngular

TABLE = [
    ("cas_vit_xs", 3_200_700, 2_979_700, 547.0e6, 1606e6),
    ("cas_vit_s", 5_764_224, 5_507_224, 912.2e6, 2679e6),
    ("cas_vit_m", 12_421_520, 12_036_520, 1859.5e6, 5460e6),
    ("cas_vit_t", 21_763_120, 21_250_120, 3557.4e6, 10448e6),
]


def pico(**options: object) -> nn.Module:
    return timm.create_model("cas_vit_pico", **{"num_classes": 10, **options})


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "with_head", "without", "at_224", "at_384"), TABLE)
def test_sizes_and_costs(
    name: str, with_head: int, without: int, at_224: float, at_384: float
) -> None:
    with torch.device("meta"):
        assert count(timm.create_model(name, distillation=True)) == with_head
        model = timm.create_model(name)
    assert count(model) == without
    assert castling.macs(model, (3, 224, 224)).total == pytest.approx(at_224, rel=0.01)
    assert castling.macs(model, (3, 384, 384)).total == pytest.approx(at_384, rel=0.01)


def test_pico_is_small() -> None:
    assert count(timm.create_model("cas_vit_pico")) <= 300_000


def test_state_names_of_released_checkpoints() -> None:
    names = set(timm.create_model("cas_vit_xs", distillation=True).state_dict())
    block = "network.2.1"
    for name in (
        *("patch_embed.0.weight", "patch_embed.1.running_mean", "patch_embed.3.bias"),
        *("patch_embed.4.weight", "network.1.proj.bias", "network.5.norm.running_var"),
        *(f"{block}.local_perception.network.{index}.weight" for index in (0, 1, 2, 4)),
        *(f"{block}.attn.oper_q.0.block.{index}.weight" for index in (0, 1, 3)),
        *(f"{block}.attn.oper_k.1.block.1.weight", f"{block}.attn.dwc.bias"),
        *(f"{block}.attn.proj.bias", f"{block}.attn.qkv.weight", f"{block}.norm1.weight"),
        *(f"{block}.mlp.fc1.bias", f"{block}.mlp.fc2.weight", f"{block}.norm2.running_mean"),
        *("norm.weight", "head.weight", "head.bias", "dist_head.weight", "dist_head.bias"),
    ):
        assert name in names
    assert f"{block}.attn.qkv.bias" not in names
    assert not any(name.startswith("norm0") for name in names)


def test_distillation_gives_two_heads_in_training_and_their_mean_after() -> None:
    model = pico(distillation=True).train()
    model.norm.momentum = 0.0
    x = torch.randn(4, 3, 32, 32)
    logits, taught = model(x)
    assert logits.shape == taught.shape == (4, 10)
    model.eval()
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        expected = (model.head(features) + model.dist_head(features)) / 2
        torch.testing.assert_close(model(x), expected)
    assert model.get_classifier() == (model.head, model.dist_head)


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (45, 33), (64, 17)])
@torch.no_grad()
def test_any_size_from_one_cell_upwards(size: tuple[int, int]) -> None:
    assert pico().eval()(torch.randn(1, 3, *size)).shape == (1, 10)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 16×16 pixels"):
        pico().eval()(torch.randn(1, 3, 15, 40))
    with pytest.raises(ValueError, match="at least 32×32 pixels"):
        timm.create_model("cas_vit_xs", img_size=24)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stem_stride": 3}, "stem_stride must be 1, 2 or 4"),
        ({"global_pool": "median"}, "global_pool must be 'avg', 'max'"),
        ({"attention": "unheard_of"}, "unknown attention"),
        ({"depths": (1, 2)}, "equally many"),
    ],
)
def test_refused_options(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pico(**options)


def test_accepts_what_every_model_here_accepts() -> None:
    model = pico(img_size=(32, 48), in_chans=1, num_classes=0).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 1, 32, 48)).shape == (2, model.num_features)


@torch.no_grad()
def test_feature_maps() -> None:
    model = timm.create_model("cas_vit_xs", features_only=True).eval()
    assert model.feature_info.channels() == [48, 56, 112, 220]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    maps = model(torch.randn(1, 3, 96, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [
        *((48, 24, 16), (56, 12, 8), (112, 6, 4), (220, 3, 2))
    ]


@torch.no_grad()
def test_chosen_feature_maps_need_only_their_stages() -> None:
    model = pico(features_only=True, out_indices=(0, 2), feature_norm=True).eval()
    assert [tuple(m.shape) for m in model(torch.randn(1, 3, 32, 32))] == [
        *((1, 24, 16, 16), (1, 48, 4, 4))
    ]
    names = model.state_dict()
    assert not any(n.startswith(("model.network.6", "model.norm2", "model.head")) for n in names)


@torch.no_grad()
def test_dense_norms_do_not_change_the_next_stage() -> None:
    plain, normed = pico().eval(), pico(feature_norm=True).eval()
    normed.load_state_dict(plain.state_dict(), strict=False)
    for norm in (normed.norm0, normed.norm2):
        nn.init.constant_(norm.weight, 3.0)
    x = torch.randn(1, 3, 32, 32)
    before = plain.forward_intermediates(x, intermediates_only=True)
    after = normed.forward_intermediates(x, intermediates_only=True)
    for stage, factor in enumerate((3, 3, 1, 1)):
        expected = before[stage] * factor
        torch.testing.assert_close(after[stage], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_forward_intermediates_agrees_with_forward_features() -> None:
    model = pico().eval()
    x = torch.randn(1, 3, 32, 32)
    final, maps = model.forward_intermediates(x, indices=2, norm=True)
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(maps[-1], final)
    assert len(maps) == 2


def test_reset_classifier() -> None:
    model = pico(distillation=True)
    model.reset_classifier(3)
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    assert model.dist_head.out_features == 3
    model.reset_classifier(0, "")
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 64, 2, 2)


@pytest.mark.parametrize(
    "attention",
    [
        *castling.list_attentions(),
        LinearAngular(local="none"),
        {"name": "relu_linear", "local": "grid2d"},
        ConvolutionalAdditive(gamma=False),
    ],
)
def test_other_token_mixers(attention: object) -> None:
    model = pico(attention=attention)
    loss = model(torch.randn(2, 3, 32, 48)).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_without_local_integration() -> None:
    model = pico(local_integration=False)
    assert not any("local_perception" in name for name in model.state_dict())
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_training_step_with_stochastic_depth_and_checkpointing() -> None:
    x = torch.randn(4, 3, 32, 32)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = pico(drop_path_rate=0.2).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(1)
        model(x).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
    rates = [block.drop_path.drop_prob for i in (2, 4, 6) for block in model.network[i]]
    assert rates == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_layer_groups_follow_depth() -> None:
    model = pico()
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    order = ["patch_embed.0.weight", "network.0.0.norm1.weight", "network.1.proj.weight"]
    order += ["network.4.0.mlp.fc1.weight", "network.4.1.mlp.fc1.weight", "head.weight"]
    depths = [groups[name] for name in order]
    assert depths == sorted(depths)
    assert len(set(depths)) == len(depths)
    assert not model.no_weight_decay()


@torch.no_grad()
def test_bfloat16_autocast_is_close() -> None:
    model = pico().eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    torch.testing.assert_close(out.float(), model(x), atol=2e-2, rtol=5e-2)


@pytest.mark.parametrize("mode", ["train", pytest.param("eval", marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks(mode: str) -> None:
    model = pico(distillation=True).train(mode == "train")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 32, 32)
    out = compiled(x)
    if mode == "eval":
        torch.testing.assert_close(out, model(x))
    else:
        sum(out).sum().backward()


def test_exports_with_free_size() -> None:
    model = pico().eval()
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        model, (torch.randn(2, 3, 32, 48),), dynamic_shapes=({0: free, 2: free, 3: free},)
    )
    x = torch.randn(1, 3, 45, 64)
    torch.testing.assert_close(program.module()(x), model(x))


@torch.no_grad()
def test_saved_and_loaded(tmp_path) -> None:
    model = pico(distillation=True).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = pico(distillation=True).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), other(x))
