"""D-FINE against transformers' own network, which holds the same modules and weights."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import castling
from castling.attention import auxiliaries
from castling.heads.d_fine import MOST_DENOISED, DFine
from castling.heads.d_fine_network import Positions
from castling.models.dense import head_config
from castling.models.dense_weights import class_layers

NAME = "d_fine_pico/cas_vit_pico"


def images(batch: int = 2, height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def target(*boxes: tuple[float, ...], labels: tuple[int, ...] = ()) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
    }


TARGETS = [target((8, 8, 40, 50), (30, 4, 90, 20), labels=(2, 0)), target()]


def varied(model: DFine) -> DFine:
    """With weights of which every one matters: some start at 0."""
    with torch.no_grad():
        for parameter in [*model.neck.parameters(), *model.head.parameters()]:
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def detector(name: str = NAME, classes: int = 3, **kwargs: Any) -> DFine:
    model = castling.create_model(name, num_classes=classes, **kwargs)
    assert isinstance(model, DFine)
    return varied(model)


class Maps(nn.Module):
    """Our backbone in the place of transformers'."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: Tensor, mask: Tensor) -> list[tuple[Tensor, None]]:
        return [(each, None) for each in self.backbone(pixel_values)]


def theirs(model: DFine) -> Any:
    """transformers' whole network with the weights of ours."""
    from transformers import DFineForObjectDetection

    network = DFineForObjectDetection(model._options)
    inner = network.model
    inner.backbone = Maps(model.backbone)
    pairs = {
        "encoder_input_proj": model.neck.projections,
        "encoder": model.neck.encoder,
        "enc_output": model.head.memory,
        "enc_score_head": model.head.score,
        "enc_bbox_head": model.head.box,
        "decoder": model.head.decoder,
        "denoising_class_embed": model.head.noisy_class,
    }
    for name, module in pairs.items():
        inner.get_submodule(name).load_state_dict(module.state_dict())
    return network.train(model.training)


@pytest.mark.parametrize("size", [(64, 96), (160, 32), (256, 256)])
def test_predictions_are_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers import RTDetrImageProcessor

    model = detector().eval()
    x = images(2, *size)
    with torch.no_grad():
        found = model.decode(model(x), size)
        outputs = theirs(model)(x)
    processed = RTDetrImageProcessor().post_process_object_detection(
        outputs, threshold=-1.0, target_sizes=[size, size]
    )
    # transformers keeps as many pairs of query and class as there are queries.
    scores = outputs.logits.sigmoid().flatten(1)
    assert torch.equal(found["scores"], scores.topk(100).values)
    height, width = size
    for i in range(2):
        boxes = processed[i]["boxes"].clamp(min=0)
        boxes = torch.minimum(boxes, boxes.new_tensor([width, height, width, height]))
        triples = torch.column_stack([processed[i]["scores"], processed[i]["labels"], boxes])
        ours = torch.column_stack([found["scores"][i], found["labels"][i], found["boxes"][i]])
        count = min(len(triples), 40)
        torch.testing.assert_close(ours[:count], triples[:count], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "targets",
    [TARGETS, [target(), target()], [target((0, 0, 96, 64), labels=(1,))] * 2],
    ids=["one image without objects", "no objects", "whole images"],
)
@pytest.mark.parametrize("training", [True, False])
def test_losses_and_gradients_are_those_of_transformers(
    targets: list[dict[str, Tensor]], training: bool
) -> None:
    model = detector().train(training)
    network = theirs(copy.deepcopy(model))
    x = images()
    scale = torch.tensor([96.0, 64.0, 96.0, 64.0])
    labels = []
    for each in targets:
        x0, y0, x1, y1 = (each["boxes"] / scale).unbind(-1)
        centred = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], -1)
        labels.append({"class_labels": each["labels"], "boxes": centred})
    torch.manual_seed(5)
    parts = model.losses(x, targets)
    torch.manual_seed(5)
    outputs = network(x, labels=labels)
    torch.testing.assert_close(sum(parts.values()), outputs.loss, rtol=1e-5, atol=1e-5)
    assert set(parts) == {"varifocal", "l1", "giou", "fine_grained", "distillation"}
    for ours, their in (("l1", "bbox"), ("giou", "giou"), ("distillation", "ddf")):
        expected = sum(v for k, v in outputs.loss_dict.items() if k.split("_")[1] == their)
        assert parts[ours].item() == pytest.approx(
            float(torch.as_tensor(expected).detach()), rel=1e-5, abs=1e-5
        )
    sum(parts.values()).backward()
    outputs.loss.backward()
    wanted = dict(network.model.decoder.named_parameters())
    for name, parameter in model.head.decoder.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-5, msg=name
            )


def test_positions_are_those_of_transformers() -> None:
    from transformers.models.d_fine.modeling_d_fine import DFineSinePositionEmbedding

    options = {"width": 7, "height": 40, "device": torch.device("cpu"), "dtype": torch.float32}
    expected = DFineSinePositionEmbedding(64, 10000)(**options)
    torch.testing.assert_close(Positions(64, 10000)(**options), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "name",
    ["d_fine_pico/cas_vit_pico", "d_fine_pico/castling_levit_pico"],
)
@pytest.mark.parametrize("targets", [TARGETS, [target(), target()]])
def test_every_parameter_gets_a_finite_gradient(name: str, targets: Any) -> None:
    kwargs: dict[str, Any] = {}
    if "levit" in name:
        auxiliary = {"name": "linear_angular", "auxiliary": {"schedule": "ramp"}}
        kwargs = {"attention": auxiliary, "img_size": (64, 96)}
    model = detector(name, **kwargs).train()
    assert bool(auxiliaries(model)) == ("levit" in name)
    sum(model.losses(images(), targets).values()).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name


def test_more_objects_than_are_denoised_or_queried() -> None:
    generator = torch.Generator().manual_seed(3)
    count = MOST_DENOISED + 1
    corner = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 1], dim=1)
    crowded = {"boxes": boxes, "labels": torch.zeros(count, dtype=torch.long)}
    model = detector().train()
    parts = model.losses(images(), [crowded, target()])
    sum(parts.values()).backward()
    assert all(part.isfinite() for part in parts.values())
    assert model.head.noisy_class is not None
    assert not model.head.noisy_class.weight.grad.any()  # too many to denoise


def test_denoising_is_random_in_training_alone_and_follows_the_seed() -> None:
    model = detector(head={"freeze_batchnorm": True}).train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()

    def total(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return sum(model.losses(images(), TARGETS).values())

    assert torch.equal(total(1), total(1))
    assert not torch.equal(total(1), total(2))
    model.eval()
    assert torch.equal(total(1), total(2))


@settings(deadline=None, max_examples=8)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    classes=st.integers(1, 4),
    cut=st.tuples(st.integers(0, 15), st.integers(0, 15)),
)
def test_detections_lie_in_the_image(
    rows: int, columns: int, classes: int, cut: tuple[int, int]
) -> None:
    model = MODELS.setdefault(classes, detector(classes=classes).eval())
    height, width = 16 * rows, 16 * columns
    valid = torch.tensor([[height - cut[0], width - cut[1]], [height, width]])
    with torch.no_grad():
        found = model.decode(model(images(2, height, width)), (height, width), valid)
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "boxes": (2, 100, 4),
        "scores": (2, 100),
        "labels": (2, 100),
    }
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    assert labels.dtype == torch.int64
    assert ((labels >= 0) & (labels < classes)).all()
    assert (boxes >= 0).all()
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert (boxes[..., [3, 2]] <= valid[:, None]).all()
    assert (scores.diff() <= 0).all()
    # Small images have fewer positions than queries, and few classes fewer pairs than detections.
    positions = 5 * rows * columns
    assert (scores > 0).sum(1).tolist() == [min(100, classes * min(40, positions))] * 2


MODELS: dict[int, DFine] = {}


def test_what_is_compared_are_all_maps_behind_the_neck() -> None:
    model = detector().eval()
    with torch.no_grad():
        raw = model(images())
        nudged = model(images() + 1e-4)
    assert {name: tuple(x.shape) for name, x in raw.items()} == {
        "map_8": (2, 32, 8, 12),
        "map_16": (2, 32, 4, 6),
    }
    assert all((nudged[name] - x).abs().max() < 1e-2 for name, x in raw.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": [8, 32]}, "strides is .8, 32.; it must be two strides or more, each twice"),
        ({"strides": [8]}, "strides is .8.; it must be two strides"),
        ({"points": [1, 2, 3]}, "points has 3 numbers for 2 strides"),
        ({"width": 40}, r"width is 40; it must be a multiple of 4·attention_heads = 16"),
        ({"queries": 0}, "queries is 0; it must be a whole number of at least 1"),
        ({"layers": 2}, "no option 'layers' in model.head"),
    ],
)
def test_options_without_a_meaning(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_config("d_fine_pico", options)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'castling\[detection\]'"):
        castling.create_model(NAME)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "parts"),
    [
        # 4.62 M and 1.86 M beyond the backbone: measured before there was this head.
        ("d_fine/cas_vit_xs", 3, (2_758_260, 880_512, 981_509)),
        ("d_fine/cas_vit_xs", 80, (2_758_260, 880_512, 1_031_097)),
        ("d_fine/qt_vit_1", 80, (4_895_047, 888_192, 1_031_097)),
    ],
)
def test_parameters(name: str, classes: int, parts: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = castling.create_model(name, num_classes=classes)
    assert (count(model.backbone), count(model.neck), count(model.head)) == parts
    assert count(model) == sum(parts)


@pytest.mark.parametrize(
    ("size", "backbone", "published"),
    [
        ("n", "hgnetv2_b0", 3.8e6),
        ("s", "hgnetv2_b0", 10.2e6),
        ("m", "hgnetv2_b2", 19.2e6),
        ("l", "hgnetv2_b4", 31e6),
    ],
)
def test_sizes_are_the_published_ones(size: str, backbone: str, published: float) -> None:
    """Published counts are without denoising, and with branches of convolutions fused."""
    with torch.device("meta"):
        model = castling.create_model(f"d_fine_{size}/{backbone}")
    assert count(model) == pytest.approx(published, rel=0.025)


def test_layers_of_the_classes() -> None:
    layers = (f"head.decoder.class_embed.{i}" for i in range(2))
    assert class_layers(detector()) == ("head.score", *layers, "head.noisy_class")


@pytest.mark.slow
def test_export_of_the_whole_detector(tmp_path: Any) -> None:
    import onnxruntime

    model = detector("d_fine_pico/castling_levit_s8_pico").eval()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return self.model.decode(self.model(x), x.shape[-2:])

    step = model.multiple
    dynamic = {0: torch.export.Dim("batch", min=1, max=16)}
    dynamic |= {2: step * torch.export.Dim("rows", min=4, max=64)}
    dynamic |= {3: step * torch.export.Dim("columns", min=4, max=64)}
    example = images(2, 5 * step, 7 * step)
    with torch.no_grad():
        program = torch.export.export(Whole(), (example,), dynamic_shapes=(dynamic,), strict=False)
        written = torch.onnx.export(program, (example,), dynamo=True, verbose=False)
    written.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch, rows, columns in ((1, 4, 4), (2, 6, 5), (3, 4, 10)):
        x = images(batch, rows * step, columns * step)
        with torch.no_grad():
            expected = Whole()(x)
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        for ours, wanted in zip(found, expected.values(), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), wanted, rtol=1e-4, atol=1e-3)
        for ours, wanted in zip(program.module()(x).values(), expected.values(), strict=True):
            torch.testing.assert_close(ours, wanted)
