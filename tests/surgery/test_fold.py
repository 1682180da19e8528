"""fold_: exact, whole or not at all; the parameter counts of CAS-ViT's specification."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import castling
from castling.attention import LinearAngular
from castling.surgery import FoldError, fold_
from castling.surgery.fold import register_fold


def trained(model: nn.Module) -> nn.Module:
    """As after training: BatchNorms whose statistics and affine maps all do something."""
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            nn.init.normal_(norm.running_mean, 0, 0.2)
            nn.init.uniform_(norm.running_var, 0.6, 1.6)
            nn.init.uniform_(norm.weight, 0.5, 1.2)
            nn.init.normal_(norm.bias, 0, 0.2)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


def largest_gap(model: nn.Module, x: torch.Tensor, before: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - before).abs().max())


@pytest.mark.parametrize(
    ("name", "distillation", "parameters"),
    [
        ("cas_vit_xs", True, 2_970_668),
        ("cas_vit_s", False, 5_492_568),
        ("cas_vit_m", True, 12_014_728),
        ("cas_vit_t", False, 21_220_808),
    ],
)
def test_cas_vit_keeps_no_norm(name: str, distillation: bool, parameters: int) -> None:
    model = trained(timm.create_model(name, distillation=distillation))
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        before = model(x)
    report = fold_(model, x)
    assert norms(model) == report.batch_norms_after == 0
    assert sum(p.numel() for p in model.parameters()) == report.parameters_after == parameters
    assert report.max_difference is not None
    assert report.max_difference <= 1e-5
    assert largest_gap(model, x, before) <= 1e-5
    assert before.std() > 1e-3  # the comparison is one of something


@pytest.mark.parametrize(
    ("name", "options", "left"),
    [
        ("cas_vit_pico", {"distillation": True}, 0),
        ("cas_vit_pico", {"attention": LinearAngular()}, 0),
        ("cas_vit_pico", {"local_integration": False, "attention": "softmax"}, 0),
        ("castling_levit_pico", {}, 0),
        ("levit_128s", {}, 0),
        ("levit_conv_128s", {}, 0),
        ("efficientvit_b0", {}, 0),
        ("resnet18", {}, 0),
        ("resnet10t", {}, 0),  # a norm behind a Sequential that itself is folded
        ("mobilenetv3_small_050", {}, 0),
        ("deit_tiny_patch16_224", {}, 0),
    ],
)
def test_folds_exactly(name: str, options: dict, left: int) -> None:
    model = trained(timm.create_model(name, num_classes=10, **options))
    report = fold_(model)
    assert norms(model) == report.batch_norms_after == left
    assert len(report.folded) >= report.batch_norms_before - left
    assert report.max_difference is not None
    assert report.max_difference <= 1e-5


def test_qt_vit_keeps_only_the_norms_of_its_values() -> None:
    model = trained(timm.create_model("qt_vit_pico", num_classes=10))
    values = sum(name.endswith("main.bn") for name, _ in model.named_modules())
    report = fold_(model)
    assert 0 < values == report.batch_norms_after < report.batch_norms_before
    assert report.max_difference is not None
    assert report.max_difference <= 1e-5


def test_feature_maps_are_kept() -> None:
    model = trained(timm.create_model("cas_vit_pico", features_only=True, feature_norm=True))
    x = torch.randn(1, 3, 32, 40)
    with torch.no_grad():
        before = model(x)
    report = fold_(model, x)
    assert report.batch_norms_after == 4  # the dense norms stand between a stage and two readers
    with torch.no_grad():
        for old, new in zip(before, model(x), strict=True):
            torch.testing.assert_close(new, old, atol=1e-5, rtol=1e-5)


def test_folding_again_changes_nothing() -> None:
    model = trained(timm.create_model("cas_vit_pico"))
    fold_(model)
    report = fold_(model)
    assert report.folded == ()
    assert report.parameters_before == report.parameters_after


def test_fewer_names_but_none_new_except_biases() -> None:
    model = trained(timm.create_model("cas_vit_pico"))
    before = set(model.state_dict())
    fold_(model)
    new = set(model.state_dict()) - before
    assert all(name.endswith("attn.qkv.bias") for name in new)


def test_report_is_plain() -> None:
    report = castling.fold_(trained(timm.create_model("cas_vit_pico", distillation=True)))
    values = report.to_dict()
    assert "network.0.0.norm1 into network.0.0.attn.qkv" in values["folded"]
    assert "dist_head into head" in values["folded"]
    assert values["batch_norms_before"] > values["batch_norms_after"] == 0


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        fold_(timm.create_model("cas_vit_pico"))


@pytest.mark.parametrize("name", ["cas_vit_pico", "qt_vit_pico", "resnet18"])
def test_a_new_classifier_does_not_need_evaluation_mode(name: str) -> None:
    model = trained(timm.create_model(name, num_classes=10))
    model.reset_classifier(3)
    model.get_classifier().train()
    assert fold_(model).batch_norms_after < norms(timm.create_model(name))


@pytest.mark.parametrize("part", [nn.BatchNorm2d(4), nn.Dropout(0.1)])
def test_parts_that_differ_in_training_are_refused(part: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), part).eval()
    part.train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        fold_(model, torch.randn(2, 3, 8, 8))


def test_half_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="then convert"):
        fold_(timm.create_model("cas_vit_pico").eval().to(torch.bfloat16))


def test_example_that_does_not_fit_is_refused() -> None:
    model = trained(timm.create_model("cas_vit_pico"))
    with pytest.raises(ValueError, match="pass example="):
        fold_(model, torch.randn(1, 3, 8, 8))
    assert norms(model) > 0


class Doubling(nn.Module):
    """A layer with a handler that is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


@register_fold(Doubling)
def _fold_doubling(module: Doubling) -> list[str]:
    module.linear.weight = nn.Parameter(module.linear.weight * 2)
    return ["two into linear"]


def test_an_inexact_fold_is_refused_and_undone() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Doubling()))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    conv, bn, weight = model[0], model[1], model[0].weight
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before = model(x)
    with pytest.raises(FoldError, match="the model is unchanged"):
        fold_(model, x)
    assert model[0] is conv
    assert model[1] is bn
    assert model[0].weight is weight
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert largest_gap(model, x, before) == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_head_of_zeros_does_not_hide_an_inexact_handler() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), Doubling(), nn.Conv2d(4, 2, 1)))
    nn.init.zeros_(model[2].weight)
    with pytest.raises(FoldError, match="Doubling is not exact"):
        fold_(model, torch.randn(2, 3, 8, 8))


class Pairs(nn.Module):
    """Two convolutions with norms; the subclass says how the first pair is used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 1)
        self.last_bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def first(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last_bn(self.last(self.first(x))).mean((2, 3)))


class Forked(Pairs):
    def first(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class ForkedByView(Pairs):
    def first(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.bn(y) + y.flatten(2).sigmoid().view_as(y)


class Rectified(Pairs):
    def first(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(torch.relu_(self.conv(x)))


class RectifiedByModule(Pairs):
    def first(self, x: torch.Tensor) -> torch.Tensor:
        self.act = nn.ReLU(inplace=True).eval()
        return self.bn(self.act(self.conv(x)))


class Tapped(Pairs):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.conv(x)
        return {"out": self.last_bn(self.last(self.bn(y))), "tap": y.flatten(2)}


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("form", [Forked, ForkedByView, Rectified, RectifiedByModule, Tapped])
def test_unsafe_pairs_stay_and_the_others_are_folded(form: type[Pairs], blind: bool) -> None:
    """Also where a head of zeros hides every difference."""
    model = trained(form())
    if blind:
        nn.init.zeros_(model.head.weight)
    report = fold_(model, torch.randn(2, 3, 8, 8))
    assert report.folded == ("last_bn into last",)
    assert isinstance(model.bn, nn.BatchNorm2d)


def test_a_small_layer_scale_hides_nothing() -> None:
    class Scaled(Pairs):
        def first(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return nn.functional.avg_pool2d(x.repeat(1, 2, 1, 1)[:, :4], 3, 1) + 1e-6 * (
                self.bn(y) + y
            )

    assert fold_(trained(Scaled()), torch.randn(2, 3, 8, 8)).folded == ("last_bn into last",)


class TwoBranches(nn.Module):
    """Two Sequentials over one convolution, and one whose parts are called one by one."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 3, 1)
        self.a = nn.Sequential(conv, nn.BatchNorm2d(3))
        self.b = nn.Sequential(conv, nn.BatchNorm2d(3))
        self.tapped = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.out = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.tapped[0](self.a(x) + self.b(x))
        return self.out(self.tapped[1](y)), y


def test_shared_and_tapped_sequentials_are_left_alone() -> None:
    model = trained(TwoBranches())
    assert fold_(model, torch.randn(2, 3, 8, 8)).folded == ("out.1 into out.0",)


def test_a_sequential_called_twice_is_folded() -> None:
    model = trained(nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))))
    twice = trained(nn.ModuleDict({"part": model[0]}))
    twice.forward = lambda x: twice["part"](twice["part"](x))
    assert fold_(twice, torch.randn(2, 3, 8, 8)).batch_norms_after == 0


def test_hooked_layers_are_left_alone() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    kept: list[torch.Tensor] = []
    model[0].register_forward_hook(lambda module, inputs, output: kept.append(output))
    assert fold_(model, torch.randn(2, 3, 8, 8)).folded == ()


def test_a_norm_over_positions_is_left_alone() -> None:
    """(B, N, C) with N = C: BatchNorm1d takes the second axis, the layer has the third."""
    model = trained(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)))
    nn.init.zeros_(model[2].weight)
    assert fold_(model, torch.randn(2, 6, 6)).folded == ()
    assert fold_(model, torch.randn(2, 6)).folded == ("1 into 0",)


class Standardised(nn.Conv2d):
    """Its weight is not what it convolves with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def test_layers_that_compute_their_weight_are_left_alone() -> None:
    model = trained(nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)))
    assert fold_(model, torch.randn(2, 3, 8, 8)).batch_norms_after == 1


def test_shared_layers_are_left_alone() -> None:
    conv = nn.Conv2d(3, 3, 1)
    model = trained(nn.ModuleDict({"first": nn.BatchNorm2d(3), "second": nn.BatchNorm2d(3)}))
    model.conv = conv.eval()
    model.forward = lambda x: model["second"](model.conv(model["first"](model.conv(x))))
    assert fold_(model, torch.randn(2, 3, 8, 8)).batch_norms_after == 2


def test_a_handler_of_ones_own() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.factor = 2.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * self.factor

    @register_fold(Scaled)
    def _fold_scaled(module: Scaled) -> list[str]:
        module.linear.weight = nn.Parameter(module.linear.weight * module.factor)
        module.linear.bias = nn.Parameter(module.linear.bias * module.factor)
        module.factor = 1.0
        return ["factor into linear"]

    model = nn.ModuleDict({"part": Scaled()}).eval()
    model.forward = lambda x: model["part"](x)
    assert fold_(model, torch.randn(2, 3)).folded == ("part.factor into part.linear",)
