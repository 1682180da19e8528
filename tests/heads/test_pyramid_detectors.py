"""What every detector on a pyramid keeps to: shapes, faults, odd images."""

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import box_iou

from castling import create_model

K = 4
NAMES = ["retinanet", "fcos", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"]


def build(name, num_classes=K, **head):
    """A test-sized detector whose outputs differ from place to place."""
    model = create_model(f"{name}_pico/test_resnet", num_classes=num_classes, head=head)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def target(boxes, size=(64, 96), label=0):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    return {"boxes": boxes, "labels": torch.full((len(boxes),), label), "masks": masks}


OBJECTS = [[4, 6, 60, 60], [30, 20, 90, 63]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
def test_raw_outputs_and_detections(name, size):
    model = build(name).eval()
    images = torch.randn(3, 3, *size)
    with torch.no_grad():
        raw = model(images)
        again = model(images + 1e-6)
    for key, value in raw.items():
        assert value.dtype == torch.float32
        assert len(value) == 3
        assert (value - again[key]).abs().max() < 1e-3  # continuous
    valid = torch.tensor([size, (size[0] - 9, size[1] - 5), (7, 20)])
    found = model.decode(raw, size, valid)
    n = model.detections
    assert found["boxes"].shape == (3, n, 4)
    assert found["scores"].shape == found["labels"].shape == (3, n)
    assert ("masks" in found) == model.has_masks
    if model.has_masks:
        assert found["masks"].shape == (3, n, 28, 28)
        assert found["masks"].min() >= 0
        assert found["masks"].max() <= 1
    assert found["labels"].dtype == torch.int64
    assert (found["scores"][0] > 0).sum() > 3
    assert (found["scores"].diff(dim=1) <= 0).all()
    assert found["labels"].min() >= 0
    assert found["labels"].max() < K
    boxes = found["boxes"]
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert (boxes >= 0).all()
    assert (boxes[..., 2:] <= valid[:, None].flip(-1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_images(name):
    model = build(name).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        both = model.decode(model(images), (64, 64))
        for i in range(2):
            alone = model.decode(model(images[i : i + 1]), (64, 64))
            for key, value in alone.items():
                torch.testing.assert_close(value[0], both[key][i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_earlier_batches_change_nothing(name):
    """torchvision would guess strides and dtypes from the first batch, and keep them."""
    model = build(name).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        fresh = copy.deepcopy(model)
        odd = torch.randn(1, 3, 128, 128)
        with torch.autocast("cpu", torch.bfloat16):
            model.decode(model(odd), (128, 128), torch.tensor([[20, 20]]))
        found, wanted = model.decode(model(images), (64, 64)), fresh.decode(fresh(images), (64, 64))
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", NAMES)
def test_the_mode_changes_neither_losses_nor_detections(name):
    model = build(name, freeze_batchnorm=True)
    images, targets = torch.randn(2, 3, 64, 96), [target(OBJECTS), target([])]
    results = []
    for mode in (True, False):
        model.train(mode)
        torch.manual_seed(1)
        with torch.no_grad():
            results.append((model.losses(images, targets), model.decode(model(images), (64, 96))))
        assert all(each.training == mode for each in model.modules() if type(each) is nn.Conv2d)
    (a, b), (c, d) = results
    assert {k: v.item() for k, v in a.items()} == {k: v.item() for k, v in c.items()}
    assert all(torch.equal(b[key], d[key]) for key in b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "objects",
    [
        [[], []],
        [OBJECTS, []],
        [[[10, 10, 11, 11]], [[0, 0, 96, 64]]],
        [[[0, 0, 2, 64]], [[94.5, 62.25, 96, 64]]],
    ],
    ids=["no objects", "one empty image", "one pixel, all of it", "thin, in the corner"],
)
def test_losses_and_gradients_are_finite(name, objects):
    model = build(name).train()
    parts = model.losses(torch.randn(2, 3, 64, 96), [target(each, label=K - 1) for each in objects])
    assert all(value.ndim == 0 and value.isfinite() for value in parts.values())
    sum(parts.values()).backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    lacking = [key for key, gradient in gradients.items() if gradient is None]
    assert not lacking
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("name", NAMES)
def test_three_thousand_boxes(name):
    model = build(name).train()
    corners = torch.rand(3000, 2) * torch.tensor([60.0, 40.0])
    boxes = torch.cat([corners, corners + 1 + 20 * torch.rand(3000, 2)], 1)
    wanted = {"boxes": boxes, "labels": torch.randint(K, (3000,))}
    wanted["masks"] = torch.ones(1, 64, 96, dtype=torch.uint8).expand(3000, -1, -1)
    parts = model.losses(torch.randn(1, 3, 64, 96), [wanted])
    assert all(value.isfinite() for value in parts.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_model_learns_the_class_and_the_box_of_an_image(name):
    """Labels count from 0 inside and out: the highest and the lowest class are learnt as such."""
    model = build(name, 2, freeze_batchnorm=True)
    images = torch.zeros(2, 3, 64, 64)
    images[0, 0, 8:40, 8:40], images[1, 2, 20:60, 16:56] = 3.0, 3.0
    targets = [target([[8, 8, 40, 40]], (64, 64)), target([[16, 20, 56, 60]], (64, 64), 1)]
    optimizer = torch.optim.AdamW(model.train().parameters(), 3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        sum(model.losses(images, targets).values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval().decode(model(images), (64, 64))
    assert found["labels"][:, 0].tolist() == [0, 1]
    wanted = torch.cat([each["boxes"] for each in targets])
    assert box_iou(found["boxes"][:, 0], wanted).diag().min() > 0.5
    if model.has_masks:
        assert (found["masks"][:, 0, 8:20, 8:20] > 0.5).all()


@pytest.mark.parametrize("name", NAMES)
def test_autocast_keeps_boxes_in_float32(name):
    """bfloat16 has no whole numbers above 256 but every second: boxes would move by pixels."""
    model = build(name).eval()
    images = torch.randn(1, 3, 64, 512)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        raw = model(images)
        found = model.decode(raw, (64, 512))["boxes"]
    assert found.dtype == torch.float32
    assert (found[found > 256] % 1).count_nonzero() > 10


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"boxes": torch.tensor([[4.0, 6, 4, 60]])},
            r"no width or height; the first is \[4.0, 6.0",
        ),
        ({"boxes": torch.tensor([[4.0, 6, torch.nan, 60]])}, "1 boxes have no width or height"),
        ({"boxes": torch.tensor([[4.0, 6, torch.inf, 60]])}, "1 boxes have no width or height"),
        (
            {"labels": torch.tensor([K])},
            r"a label is 4; the head has 4 classes, with labels 0 to 3",
        ),
        ({"labels": torch.tensor([-1])}, "a label is -1"),
        ({"labels": torch.tensor([0, 1])}, r"boxes have shape \(1, 4\) for 2 labels"),
        ({"boxes": torch.zeros(0), "labels": torch.zeros(0)}, r"\(0, 4\) without objects"),
    ],
)
def test_wrong_targets_are_refused(name, change, message):
    model = build(name)
    wrong = {**target([[4, 6, 60, 60]]), **change}
    with pytest.raises(ValueError, match=message) as caught:
        model.losses(torch.randn(2, 3, 64, 96), [target(OBJECTS), wrong])
    assert "image 1 of the batch" in str(caught.value)


def test_wrong_masks_and_counts_are_refused():
    model, right = build("mask_rcnn"), target([[4, 6, 60, 60]])
    images = torch.randn(1, 3, 64, 96)
    lacking = {"boxes": right["boxes"], "labels": right["labels"]}
    with pytest.raises(ValueError, match="there are no masks"):
        model.losses(images, [lacking])
    with pytest.raises(ValueError, match=r"masks have shape \(1, 64, 64\); expected \(1, 64, 96\)"):
        model.losses(images, [{**right, "masks": right["masks"][..., :64]}])
    with pytest.raises(ValueError, match="1 images were given with 2 targets"):
        model.losses(images, [right, right])


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("retinanet", {"width": 0}, "width is 0; it must be a whole number of at least 1"),
        ("fcos", {"width": 48}, "width is 48; FCOS normalises in 32 groups"),
        ("fcos", {"width": 32}, "multiple of 32 from 64"),
        (
            "faster_rcnn",
            {"score_threshold": 1.5},
            r"score_threshold is 1.5; it must be a number in \[0, 1\]",
        ),
        ("mask_rcnn", {"samples": "many"}, "samples is 'many'; it must be a whole number"),
        ("faster_rcnn", {"mask_convolutions": 2}, "no option 'mask_convolutions'"),
    ],
)
def test_wrong_options_are_refused(name, head, message):
    with pytest.raises(ValueError, match=message):
        create_model(f"{name}/test_resnet", head=head)


cached = functools.cache(build)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.lists(
        st.tuples(*[st.floats(0, 62, width=32)] * 2, *[st.floats(0.0625, 60, width=32)] * 2),
        max_size=4,
    ),
)
def test_any_boxes_give_finite_losses(name, objects):
    boxes = [[x, y, min(x + w, 64), min(y + h, 64)] for x, y, w, h in objects]
    parts = cached(name).losses(torch.ones(1, 3, 64, 64), [target(boxes, (64, 64))])
    assert all(value.isfinite() for value in parts.values())
