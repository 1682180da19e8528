"""A task decides what the switch and folding compare: raw outputs, and what follows from them."""

import pytest
import timm
import torch
from torch import nn

import castling
from castling.attention import set_progress
from castling.surgery import FoldError, register_fold


class Dense(nn.Module):
    """Maps in one dictionary: scores of 3 classes, and positions in pixels."""

    multiple = 32

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = timm.create_model("castling_levit_pico", features_only=True)
        channels = self.body.feature_info.channels()[-1]
        self.conv = nn.Conv2d(channels, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.scores, self.positions = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 4, 1)
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.uniform_(module.weight, 0.5, 1.5)  # LeViT's are zero at the start

    def forward(self, images):
        features = self.norm(self.conv(self.body(images)[-1])).relu()
        return {
            "scores": self.scores(features),
            "positions": 1000 * self.positions(features),
            "grid": torch.zeros(len(images), 2, dtype=torch.int64),
        }


class DenseTask:
    """The best place of each class; it remembers what it was asked."""

    def __init__(self):
        self.sizes = []

    def raw_outputs(self, model, images):
        return model(images)

    def postprocess(self, model, raw, size):
        self.sizes.append(size)
        return {"best": raw["scores"].flatten(2).argmax(-1)}

    def agreement(self, before, after):
        return (before["best"] == after["best"]).float().mean(1)


def images(count=3):
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_switch_measures_every_raw_output_and_the_agreement():
    model, task = Dense().eval(), DenseTask()
    x = images()
    with torch.no_grad():
        before = model(x)
    with pytest.raises(castling.SwitchRefusedError) as refusal:
        castling.switch_(model, [x[:2], x[2:]], tolerance=0.0, repeats=1, task=task)
    report = castling.switch_(model, [x[:2], x[2:]], force=True, repeats=1, task=task)
    with torch.no_grad():
        after = model(x)
    gaps = []
    for name in ("scores", "positions"):
        old, new = before[name].flatten(1), after[name].flatten(1)
        gaps.append((new - old).norm(dim=1) / (old - old.mean(1, keepdim=True)).norm(dim=1))
    assert report.max_gap == pytest.approx(float(torch.stack(gaps).max()), rel=1e-4)
    assert report.max_difference == pytest.approx(
        float((after["positions"] - before["positions"]).abs().max()), rel=1e-4
    )
    best = [each["scores"].flatten(2).argmax(-1) for each in (before, after)]
    assert report.agreement == pytest.approx(float((best[0] == best[1]).float().mean()))
    assert refusal.value.report.agreement == report.agreement
    assert set(task.sizes) == {(64, 96)}
    assert "agreement" in str(report)


def test_an_exact_switch_agrees_wholly_and_without_a_task_nothing_is_concluded():
    for task, agreement in ((DenseTask(), 1.0), (None, None)):
        model = Dense()
        set_progress(model, 1.0)
        report = castling.switch_(model, images(), repeats=1, task=task)
        assert report.exact
        assert report.agreement == agreement


def test_folding_compares_raw_outputs_and_says_how_far_both_agree():
    model, task = Dense().eval(), DenseTask()
    set_progress(model, 1.0)
    report = castling.fold_(model, images(), task=task)
    assert "norm into conv" in report.folded
    assert report.agreement == 1
    assert report.to_dict()["agreement"] == 1
    assert castling.fold_(model, images()).agreement is None


def test_the_size_of_an_example_fits_the_model():
    model = Dense().eval()
    model.body.pretrained_cfg = {"input_size": (3, 100, 100)}
    model.multiple = 64
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    castling.fold_(model)
    assert set(seen) == {(2, 3, 256, 256)}  # 224 rounded up


def test_a_large_output_does_not_hide_a_small_one():
    """Positions reach thousands: their scale must not excuse wrong scores."""

    class Scores(nn.Sequential):
        pass

    @register_fold(Scores)
    def _wrong(module):
        module[0].bias = nn.Parameter(module[0].bias + 3e-4)
        return ["0 into 0"]

    model = Dense().eval()
    model.scores = Scores(model.scores)
    with torch.no_grad():
        assert float(model(images())["positions"].abs().max()) > 100
    with pytest.raises(FoldError, match="the outputs scores by"):
        castling.fold_(model, images(), task=DenseTask())
