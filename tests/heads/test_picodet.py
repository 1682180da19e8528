"""PicoDet: sizes, cost, losses, decoding, training and export."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.heads.untrained import spread_out
from torch.nn import functional as F
from torchvision.ops import box_iou, clip_boxes_to_image, generalized_box_iou

import castling
from castling.heads.detector import Detector
from castling.heads.picodet_head import distances
from castling.models.dense import head_config, list_heads

SIZES = ["s", "m", "l"]
TOTALS = {
    "s": (992_715, 603_659, 249_600, 139_456),
    "m": (2_152_554, 1_338_026, 435_200, 379_328),
    "l": (3_305_009, 2_077_041, 672_000, 555_968),
}
#: Multiply-accumulates in G at 320, 416 and 640 pixels, 80 classes.
MACS = {
    ("s", 320): 0.3510,
    ("s", 416): 0.5935,
    ("m", 320): 0.7163,
    ("m", 416): 1.2113,
    ("l", 320): 1.0843,
    ("l", 416): 1.8336,
    ("l", 640): 4.3362,
}
#: The same on Castling backbones without their auxiliary branch: counted, and published.
CASTLING_MACS = {
    ("s", 320): (0.626, 0.62),
    ("s", 416): (1.059, 1.06),
    ("m", 416): (2.020, 2.00),
    ("l", 320): (3.017, 3.03),
    ("l", 416): (5.099, 5.31),
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def pico(num_classes=3, **head):
    torch.manual_seed(0)
    return castling.create_model("picodet_pico/esnet_pico", num_classes=num_classes, head=head)


def target(boxes, labels):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


@pytest.mark.parametrize("size", SIZES)
def test_parameters_to_the_unit(size):
    with torch.device("meta"):
        model = castling.create_model(f"picodet_{size}/esnet_{size}", num_classes=80)
    parts = (model, model.backbone, model.neck, model.head)
    assert tuple(count(part) for part in parts) == TOTALS[size]


def slow_beyond_320(sizes):
    """Counting is the same work at any size: one each is enough for every day."""
    return [pytest.param(*each, marks=pytest.mark.slow if each[1] > 320 else ()) for each in sizes]


@pytest.mark.parametrize(("size", "side"), slow_beyond_320(MACS))
def test_multiply_accumulates(size, side):
    with torch.device("meta"):
        model = castling.create_model(f"picodet_{size}/esnet_{size}", num_classes=80)
    found = castling.macs(model, (3, side, side)).total / 1e9
    assert found == pytest.approx(MACS[size, side], abs=1e-4)


@pytest.mark.parametrize(("size", "side"), slow_beyond_320(CASTLING_MACS))
def test_castling_backbones_cost_what_was_published(size, side):
    counted, published = CASTLING_MACS[size, side]
    with torch.device("meta"):
        model = castling.create_model(
            f"picodet_{size}/castling_levit_s8_{size}",
            num_classes=80,
            attention=castling.LinearAngular(),
        )
    found = castling.macs(model, (3, side, side)).total / 1e9
    assert found == pytest.approx(counted, abs=1e-3)
    assert found == pytest.approx(published, rel=0.045)


@pytest.mark.parametrize(("size", "millions"), [("s", 1.469), ("m", 3.045), ("l", 8.755)])
def test_parameters_on_castling_backbones(size, millions):
    with torch.device("meta"):
        model = castling.create_model(f"picodet_{size}/castling_levit_s8_{size}", num_classes=80)
    assert count(model) / 1e6 == pytest.approx(millions, abs=6e-4)


@pytest.mark.parametrize("backbone", ["castling_levit_s8_pico", "levit_s8_pico"])
def test_castling_backbones_and_their_twins_train(backbone):
    """With the auxiliary branch in stages 2 and 3, whose biases learn too."""
    torch.manual_seed(0)
    model = castling.create_model(f"picodet_pico/{backbone}", num_classes=3).train()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.abs().max() == 0:
                parameter.uniform_(0.5, 1.5)  # norms that start at zero hide what is before them
    losses = model.losses(
        torch.randn(2, 3, 64, 96), [target([[8, 8, 40, 50]], [0]), target([], [])]
    )
    sum(losses.values()).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert all("stages.0" in name or "stages_0" in name for name in without)
    assert all("attention_biases" in name for name in without)
    assert bool(without) == backbone.startswith("castling")


def test_names_and_options():
    assert {f"picodet_{size}" for size in [*SIZES, "pico"]} <= set(list_heads("detection"))
    assert head_config("picodet_l").width == 160
    for options, message in (
        ({"width": 33}, "even"),
        ({"blocks": 0}, "at least 1"),
        ({"nms_threshold": 1.5}, r"in \[0, 1\]"),
        ({"blokcs": 2}, "did you mean blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            head_config("picodet_s", options)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (32, 32), (160, 224)])
def test_raw_outputs_have_the_size_of_the_levels(height, width):
    model = pico().eval()
    with torch.no_grad():
        raw = model(torch.randn(2, 3, height, width))
    assert isinstance(model, Detector)
    for stride in (8, 16, 32, 64):
        grid = (math.ceil(height / stride), math.ceil(width / stride))
        assert raw[f"logits_{stride}"].shape == (2, 3, *grid)
        assert raw[f"bins_{stride}"].shape == (2, 32, *grid)


def test_scores_before_training_are_the_prior():
    model = pico().eval()
    with torch.no_grad():
        raw = model(torch.randn(1, 3, 64, 64))
    for stride in (8, 16, 32, 64):
        scores = raw[f"logits_{stride}"].sigmoid()
        torch.testing.assert_close(scores, torch.full_like(scores, 0.01), rtol=0.2, atol=0)


def flat(model, raw):
    """All points of all levels by the definitions: logits (B, P, K), bins, centres, strides."""
    logits, bins, centres, strides = [], [], [], []
    for stride in (8, 16, 32, 64):
        level = raw[f"logits_{stride}"]
        for y in range(level.shape[2]):
            for x in range(level.shape[3]):
                logits.append(level[:, :, y, x])
                bins.append(raw[f"bins_{stride}"][:, :, y, x])
                centres.append(((x + 0.5) * stride, (y + 0.5) * stride))
                strides.append(stride)
    return (
        torch.stack(logits, 1),
        torch.stack(bins, 1),
        torch.tensor(centres),
        torch.tensor(strides),
    )


def box_of(bins, centre, stride):
    """(4·8,) logits → one box, side by side."""
    sides = [float(F.softmax(b, 0) @ torch.arange(8.0)) * float(stride) for b in bins.split(8)]
    (x, y), (left, top, right, bottom) = centre.tolist(), sides
    return [x - left, y - top, x + right, y + bottom]


def test_losses_are_those_of_the_definition():
    """Weights and denominators as PaddleDetection's: written anew, point by point."""
    model = spread_out(pico())
    images = torch.randn(2, 3, 160, 96)
    # The last one is larger than stride 8 reaches: distances are cut there.
    targets = [target([[8, 8, 40, 50], [30, 10, 90, 60]], [0, 2]), target([[1, 1, 94, 158]], [1])]
    with torch.no_grad():
        losses = model.losses(images, targets)
        logits, bins, centres, strides = flat(model, model(images))
    wanted = torch.zeros_like(logits)
    giou = dfl = weights = positives = 0.0
    for image, each in enumerate(targets):
        boxes = torch.tensor(
            [box_of(b, c, s) for b, c, s in zip(bins[image], centres, strides, strict=True)]
        )
        assigned = model.assign(
            logits[image], boxes, centres, strides.float(), each["boxes"], each["labels"]
        )
        for point, index in zip(assigned.points, assigned.objects, strict=True):
            box = each["boxes"][index]
            wanted[image, point, each["labels"][index]] = box_iou(boxes[point, None], box[None])
            weight = float(logits[image, point].sigmoid().max())
            giou += weight * float(1 - generalized_box_iou(boxes[point, None], box[None]))
            x, y = centres[point]
            sides = torch.stack([x - box[0], y - box[1], box[2] - x, box[3] - y]) / strides[point]
            for side, of_side in zip(
                sides.clamp(0, 6.9).tolist(), bins[image, point].split(8), strict=True
            ):
                log, low = F.log_softmax(of_side, 0), int(side)
                share = side - low
                dfl -= weight / 4 * float((1 - share) * log[low] + share * log[low + 1])
            weights += weight
            positives += 1
    assert positives > 5
    p = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    vfl = float((torch.where(wanted > 0, wanted, 0.75 * p**2) * loss).sum()) / positives
    assert losses["class"].item() == pytest.approx(vfl, rel=1e-4)
    assert losses["box"].item() == pytest.approx(2 * giou / max(weights, 1), rel=1e-4)
    assert losses["distribution"].item() == pytest.approx(0.25 * dfl / max(weights, 1), rel=1e-4)


def test_weights_of_the_losses_are_options():
    images, targets = torch.randn(1, 3, 64, 64), [target([[8, 8, 40, 50]], [0])]
    plain = pico().eval().losses(images, targets)
    other = pico(class_weight=3.0, box_weight=1.0, distribution_weight=0.0).eval()
    found = other.losses(images, targets)
    torch.testing.assert_close(found["class"], 3 * plain["class"])
    torch.testing.assert_close(found["box"], plain["box"] / 2)
    assert found["distribution"] == 0


@pytest.mark.parametrize(
    "targets",
    [
        [target([], []), target([], [])],
        [target([], []), target([[10, 10, 11, 11]], [2])],
        [target([[0, 0, 96, 64]], [0]), target([[8, 8, 8.5, 60]] * 4, [0, 1, 2, 0])],
    ],
    ids=["nothing", "one pixel", "whole image and slivers"],
)
def test_every_parameter_has_a_finite_gradient(targets):
    model = pico().train()
    losses = model.losses(torch.randn(2, 3, 64, 96), targets)
    assert set(losses) == {"class", "box", "distribution"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    if not any(len(each["labels"]) for each in targets):
        assert losses["box"] == losses["distribution"] == 0
        assert losses["class"] > 0


def test_three_thousand_boxes_in_one_image():
    torch.manual_seed(0)
    corner = torch.rand(3000, 2) * 100
    boxes = torch.cat([corner, corner + 1 + torch.rand(3000, 2) * 27], 1)
    crowded = {"boxes": boxes, "labels": torch.randint(3, (3000,))}
    model = pico().train()
    losses = model.losses(torch.randn(1, 3, 128, 128), [crowded])
    sum(losses.values()).backward()
    assert all(part.isfinite() for part in losses.values())


def test_it_learns_to_find_what_it_was_shown():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 96, 96) * 0.1
    images[0, :, 16:56, 8:40] += 2
    images[1, 0, 40:88, 30:90] -= 2
    targets = [target([[8, 16, 40, 56]], [1]), target([[30, 40, 90, 88]], [2])]
    model = pico()
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        sum(model.train().losses(images, targets).values()).backward()
        optimiser.step()
    with torch.no_grad():
        found = model.eval().decode(model(images), (96, 96))
    for image, each in enumerate(targets):
        assert found["labels"][image, 0] == each["labels"][0]
        assert box_iou(found["boxes"][image, :1], each["boxes"]) > 0.7


def test_half_precision_losses_are_computed_in_float32():
    model = pico().train()
    images, targets = torch.randn(2, 3, 64, 64), [target([[8, 8, 40, 50]], [0]), target([], [])]
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(images, targets)
    assert {part.dtype for part in losses.values()} == {torch.float32}


def slow_detections(model, raw, valid):
    """Boxes, scores and labels of one image: sorted, limited per level, suppressed one by one."""
    config, found = model.config, []
    for stride in (8, 16, 32, 64):
        one = {
            f"{name}_{s}": raw[f"{name}_{s}"][:, :, :0, :0]
            for name in ("logits", "bins")
            for s in (8, 16, 32, 64)
        }
        one |= {f"{name}_{stride}": raw[f"{name}_{stride}"] for name in ("logits", "bins")}
        logits, bins, centres, strides = flat(model, one)
        scores = logits[0].sigmoid()
        pairs = [
            (float(scores[i, k]), i, k)
            for i, k in (scores > config.score_threshold).nonzero().tolist()
        ]
        for score, i, k in sorted(pairs, reverse=True)[: config.candidates_per_level]:
            box = torch.tensor(box_of(bins[0, i], centres[i], strides[i]))
            found.append((score, clip_boxes_to_image(box, valid), k))
    kept = []
    for score, box, label in sorted(found, key=lambda each: -each[0]):
        others = [b for _, b, other in kept if other == label]
        if all(box_iou(box[None], b[None]) <= config.nms_threshold for b in others):
            kept.append((score, box, label))
    return kept[: model.detections]


@pytest.mark.parametrize("limited", [False, True])
def test_decoding_is_that_of_the_definition(limited):
    options = {"candidates_per_level": 20, "detections": 7} if limited else {}
    model = spread_out(pico(**options))
    images = torch.randn(2, 3, 96, 64)
    valid = torch.tensor([[96, 64], [70, 50]])
    with torch.no_grad():
        raw = model(images)
        found = model.decode(raw, (96, 64), valid)
    for image in range(2):
        one = {name: each[image : image + 1] for name, each in raw.items()}
        expected = slow_detections(model, one, tuple(valid[image].tolist()))
        assert len(expected) == int((found["scores"][image] > 0).sum()) >= 7
        for index, (score, box, label) in enumerate(expected):
            assert found["scores"][image, index].item() == pytest.approx(score, rel=1e-5)
            torch.testing.assert_close(found["boxes"][image, index], box, rtol=1e-4, atol=1e-3)
            assert found["labels"][image, index] == label
        rest = {name: each[image, len(expected) :] for name, each in found.items()}
        assert not any(each.any() for each in rest.values())


def test_nothing_above_the_threshold_gives_no_detections():
    model = pico(score_threshold=0.5).eval()
    with torch.no_grad():
        found = model.decode(model(torch.randn(2, 3, 32, 32)), (32, 32))
    assert found["boxes"].shape == (2, 100, 4)
    assert found["labels"].dtype == torch.int64
    assert not any(each.any() for each in found.values())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_boxes_stay_within_each_image(seed, batch):
    model = WIDE
    torch.manual_seed(seed)
    valid = torch.randint(1, 65, (batch, 2))
    with torch.no_grad():
        found = model.decode(model(torch.randn(batch, 3, 64, 64)), (64, 64), valid)
    boxes, limit = found["boxes"], valid.flip(1)[:, None]
    assert (boxes >= 0).all()
    assert (boxes[..., :2] <= limit).all()
    assert (boxes[..., 2:] <= limit).all()
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert (found["scores"].diff(dim=1) <= 0).all()


def test_the_largest_side_that_can_be_predicted():
    """221, 442 and 883 pixels at strides 16, 32 and 64 with targets up to 6.9 strides a side."""
    bins = torch.full((1, 4, 8), -50.0)
    bins[..., 6], bins[..., 7] = math.log(0.1), math.log(0.9)
    torch.testing.assert_close(distances(bins.flatten(1), 7), torch.full((1, 4), 6.9))


def test_more_bins_reach_further():
    model = pico(reg_max=15).eval()
    assert model(torch.randn(1, 3, 64, 64))["bins_64"].shape[1] == 64
    losses = model.losses(torch.randn(1, 3, 64, 64), [target([[1, 1, 60, 60]], [0])])
    assert losses["distribution"].isfinite()


def test_folding_changes_nothing():
    model = spread_out(pico())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        for part in (model.backbone.body, model.neck, model.head):
            assert any(isinstance(m, torch.nn.BatchNorm2d) for m in part.modules())
        castling.fold_(model, images)
        after = model(images)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    for name, expected in before.items():
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-4)


WIDE = spread_out(pico())


def _losses_of_a_share(rank, address, images, targets, weights, results):
    """One of two processes: the loss and the gradients of its image, averaged as DDP does."""
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = pico()
    model.load_state_dict(weights)
    model.eval()
    losses = model.losses(images[rank : rank + 1], targets[rank : rank + 1])
    sum(losses.values()).backward()
    flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.distributed.all_reduce(flat)
    results[rank] = flat / 2
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("empty", [False, True])
def test_two_processes_learn_as_one_does(empty, tmp_path):
    """Also where one of them has no object: both take part in every sum over processes."""
    model = spread_out(pico())
    images = torch.randn(2, 3, 64, 96)
    first = target([[8, 8, 40, 50], [30, 10, 90, 60]], [0, 2])
    targets = [first, target([], []) if empty else target([[5, 20, 60, 44]], [1])]
    sum(model.losses(images, targets).values()).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    context = torch.multiprocessing.get_context("spawn")
    results = context.Manager().dict()
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    address = f"file://{tmp_path}/rendezvous"
    torch.multiprocessing.spawn(
        _losses_of_a_share, (address, images, targets, weights, results), nprocs=2
    )
    for rank in range(2):
        torch.testing.assert_close(results[rank], expected, rtol=1e-3, atol=1e-5)
