"""Mask2Former against transformers' own network and loss; ignored pixels."""

import sys

import pytest
import torch
from tests.heads.segmenting import build, labels, varied
from torch.nn import functional as F

import castling
from castling.heads import IGNORED
from castling.heads.mask2former import _options
from castling.heads.mask2former_network import PixelDecoder, QueryDecoder, Segments, _inside
from castling.models.dense import head_config

transformers = pytest.importorskip("transformers")
from castling.heads import mask2former_loss as losses  # noqa: E402

theirs = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")

K, QUERIES = 5, 10
CHANNELS = [8, 12, 16, 20]


def config(**options):
    own = _options(head_config("mask2former_pico"))
    return transformers.Mask2FormerConfig(**{**own, "num_labels": K, **options})


def maps(batch=2, height=96, width=160):
    return [
        torch.randn(batch, c, height // s, width // s)
        for c, s in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("size", [(96, 160), (64, 64)])
def test_the_network_is_that_of_transformers(size):
    options = config()
    pixels = varied(theirs.Mask2FormerPixelDecoder(options, CHANNELS)).eval()
    queries = varied(theirs.Mask2FormerTransformerModule(32, options)).eval()
    torch.nn.init.normal_(pixels.level_embed)
    classifier = torch.nn.Linear(32, K + 1)
    ours = PixelDecoder(pixels), QueryDecoder(queries, classifier)
    pyramid = maps(2, *size)
    levels, features = ours[0](pyramid)
    expected = pixels(pyramid)
    torch.testing.assert_close(features, expected.mask_features, rtol=1e-4, atol=1e-5)
    for found, wanted in zip(levels, expected.multi_scale_features, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    # Both from the same maps: rounding moves the masks that queries attend to.
    given = list(expected.multi_scale_features), expected.mask_features
    found = ours[1](*given)
    wanted = queries(*given, output_hidden_states=True)
    assert len(found) == len(wanted.masks_queries_logits) == 4
    for segments, masks, state in zip(
        found, wanted.masks_queries_logits, wanted.intermediate_hidden_states, strict=True
    ):
        torch.testing.assert_close(segments.masks, masks, rtol=1e-3, atol=1e-4)
        classes = classifier(state.transpose(0, 1))
        torch.testing.assert_close(segments.classes, classes, rtol=1e-3, atol=1e-4)
    masks = torch.stack([each.masks for each in found])
    assert (masks > 0).any()
    assert (masks < 0).any()
    parameters = [p for p in queries.parameters() if p.requires_grad]
    pull = torch.randn_like(found[-1].masks)
    gradients = [
        torch.autograd.grad((x * pull).sum(), parameters, allow_unused=True, retain_graph=True)
        for x in (found[-1].masks, wanted.masks_queries_logits[-1])
    ]
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3 * b.abs().max().item() + 1e-6)


def test_a_query_without_a_mask_sees_everything():
    masks = torch.full((1, 3, 8, 12), -1.0)
    masks[0, 1, :, :6] = 1
    masks[0, 2] = 0
    level = torch.zeros(1, 32, 4, 6)
    expected = torch.ones(1, 3, 4, 6, dtype=torch.bool)
    expected[0, 1, :, 3:] = False
    assert torch.equal(_inside(masks, level).unflatten(2, (4, 6)), expected)


def test_initial_weights_are_those_of_transformers():
    model = castling.create_model("mask2former_pico/test_resnet", num_classes=K)
    offsets = model.pixel_decoder.layers[0].self_attn.sampling_offsets
    assert not offsets.weight.any()
    # Four heads look up, down, left and right; their four points 1 to 4 places away.
    steps = offsets.bias.view(4, 3, 4, 2)
    assert steps.abs().amax((0, 1)).amax(-1).tolist() == pytest.approx([1, 2, 3, 4])
    for embedding in (model.query_decoder.queries, model.pixel_decoder.level_embed):
        values = getattr(embedding, "weight", embedding)
        assert 0.7 < values.std() < 1.3
    assert not model.query_decoder.layers[0].cross.in_proj_bias.any()


def segments(batch=1, height=16, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(batch, QUERIES, K + 1, generator=generator)
    masks = 3 * torch.randn(batch, QUERIES, height, width, generator=generator)
    return Segments(classes.requires_grad_(), masks.requires_grad_())


def loss(points=200):
    return losses.SegmentLoss(2.0, 5.0, 5.0, 0.1, points)


def all_of(parts):
    return torch.stack([*parts.values()]).sum()


@pytest.mark.parametrize("batch", [1, 3])
def test_the_loss_is_that_of_transformers(batch):
    masks = labels(batch, 64, 96, ignored=0.0)
    found = segments(batch)
    truths = [losses.truth_of(mask) for mask in masks]
    criterion = theirs.Mask2FormerLoss(config(train_num_points=200), {})
    torch.manual_seed(7)
    parts = loss()(found, truths)
    torch.manual_seed(7)
    expected = criterion(
        found.masks,
        found.classes,
        [truth.masks.float() for truth in truths],
        [truth.classes for truth in truths],
    )
    names = {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}
    for name, weight in (("class", 2), ("mask", 5), ("dice", 5)):
        # Of several images the points are drawn in another order: more than rounding apart.
        same = 1e-5 if batch == 1 or name == "class" else 0.1
        wanted = weight * expected[names[name]].item()
        assert parts[name].item() == pytest.approx(wanted, rel=same), name
    if batch == 1:
        ours = torch.autograd.grad(all_of(parts), found)
        total = sum(w * expected[names[n]] for n, w in (("class", 2), ("mask", 5), ("dice", 5)))
        for a, b in zip(ours, torch.autograd.grad(total, found), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_predictions_at_ignored_pixels_change_neither_loss_nor_gradient():
    masks = labels(2, 64, 96, ignored=0.2)
    masks[:, :, 48:] = IGNORED
    truths = [losses.truth_of(mask) for mask in masks]
    results = []
    for noise in (0.0, 30.0):
        found = segments(2)
        with torch.no_grad():
            # Columns of 4 pixels; the 13th is still looked at from the middle of the 12th.
            found.masks[..., 13:] += noise * torch.randn_like(found.masks[..., 13:])
        torch.manual_seed(7)
        parts = loss()(found, truths, torch.rand(K, generator=torch.Generator().manual_seed(1)))
        results.append((all_of(parts).item(), torch.autograd.grad(all_of(parts), found)))
    assert results[0][0] == results[1][0]
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert torch.equal(a, b)
    assert not results[0][1][1][..., 13:].any()
    assert results[0][1][1][..., :12].any()


def test_labels_end_where_labelled_pixels_end():
    """Ignored pixels are not taken as background of the segment beside them."""
    mask = torch.full((32, 32), IGNORED)
    mask[4:20, 6:30] = 3
    truth = losses.truth_of(mask)
    assert truth.classes.tolist() == [3]
    points = losses.draw_points(1, 500, truth)
    torch.testing.assert_close(losses.labels_at(truth, None, points), torch.ones(1, 500))
    mask[4:20, 6:18] = 1
    truth = losses.truth_of(mask)
    values = losses.labels_at(truth, torch.tensor([1, 0]), points.expand(2, -1, -1))
    torch.testing.assert_close(values.sum(0), torch.ones(500))
    assert torch.equal(values[0] > 0.5, points[0, :, 0] * 32 > 18)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.001])
def test_points_are_uniform_over_labelled_pixels(share):
    known = torch.rand(64, 48, generator=torch.Generator().manual_seed(2)) < share
    known[5, 7] = True
    mask = torch.where(known, 0, IGNORED)
    points = losses.draw_points(4, 5000, losses.truth_of(mask)).flatten(0, 1)
    assert points.min() >= 0
    assert points.max() <= 1
    x, y = (points * torch.tensor([48, 64])).clamp(max=47.99).long().unbind(-1)
    y = (points[:, 1] * 64).long().clamp(max=63)
    assert known[y, x].all()
    drawn = torch.zeros_like(known, dtype=torch.long).index_put((y, x), torch.tensor(1), True)
    expected = len(points) / int(known.sum())
    assert drawn[known].float().mean().item() == pytest.approx(expected)
    # A variance of the mean, as independent draws have it.
    if known.sum() > 100:
        assert drawn[known].float().var().item() == pytest.approx(expected, rel=0.2)


def test_more_classes_than_queries():
    masks = torch.arange(16).repeat_interleave(4).repeat(64, 1)[None]
    model = build("mask2former", num_classes=16, queries=3).train()
    parts = model.losses(torch.randn(1, 3, 64, 64), masks)
    all_of(parts).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_labels_are_those_of_transformers_processor(monkeypatch):
    """It scores at 384×384; masks of that size are not resized."""
    found = segments(2, 384, 384)
    model = build("mask2former")
    monkeypatch.setattr(model, "_segments", lambda raw: [found])
    outputs = theirs.Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=found.classes, masks_queries_logits=found.masks
    )
    processor = transformers.Mask2FormerImageProcessor()
    expected = torch.stack(processor.post_process_semantic_segmentation(outputs))
    scores = model.scores({})
    assert torch.equal(scores.argmax(1), expected)
    assert len(expected.unique()) == K
    full = F.interpolate(scores, (500, 300), mode="bilinear")
    probabilities = model.probabilities(full)
    torch.testing.assert_close(probabilities, full / full.sum(1, keepdim=True))
    nothing = model.probabilities(torch.zeros(1, K, 2, 2))
    torch.testing.assert_close(nothing, torch.full_like(nothing, 1 / K))


def test_masks_have_the_finest_stride_of_those_asked_for():
    model = build("mask2former", strides=[8, 16, 32])
    with torch.no_grad():
        raw = model(torch.randn(1, 3, 64, 96))
    assert {name: tuple(x.shape[2:]) for name, x in raw.items()} == {
        "map_32": (2, 3),
        "map_16": (4, 6),
        "map_8": (8, 12),
        "features": (8, 12),
    }


@pytest.mark.slow
def test_it_learns_an_image():
    model = build("mask2former", freeze_batchnorm=True).train()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    masks = labels(2, 64, 64, ignored=0.0)
    masks[:, :, :24], masks[:, :, 24:40], masks[:, :, 40:] = 1, IGNORED, 4
    images[..., 40:] += 3
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        all_of(model.losses(images, masks)).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval().inference(images)["mask"]
    known = masks != IGNORED
    assert (found == masks)[known].float().mean() > 0.95


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'castling\[segmentation\]'"):
        castling.create_model("mask2former_pico/test_resnet")
    castling.create_model("upernet_pico/test_resnet")
