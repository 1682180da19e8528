"""The loss of classified pixels against loops in float64; ignored pixels, weights, processes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.heads.segmenting import build, labels
from torch.nn import functional as F

from castling.heads.segmenter import IGNORED, Segmenter, pixel_loss


def bilinear(row, size):
    """Values at half-pixel centres of ``size`` places, along the first axis."""
    place = np.clip((np.arange(size) + 0.5) * len(row) / size - 0.5, 0, len(row) - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, len(row) - 1)
    share = (place - low).reshape(-1, *[1] * (row.ndim - 1))
    return row[low] * (1 - share) + row[high] * share


def oracle(logits, masks, weights):
    total, divisor = 0.0, 0.0
    for image, mask in zip(logits, masks, strict=True):
        tall = bilinear(image.transpose(1, 2, 0), mask.shape[0])
        full = bilinear(tall.transpose(1, 0, 2), mask.shape[1]).transpose(1, 0, 2)
        for y in range(mask.shape[0]):
            for x in range(mask.shape[1]):
                label = mask[y, x]
                if label != IGNORED:
                    values = full[y, x]
                    total += weights[label] * (np.log(np.exp(values).sum()) - values[label])
                    divisor += weights[label]
    return total / divisor if divisor else 0.0


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 3),
    classes=st.integers(1, 4),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    factor=st.sampled_from([1, 2, 3]),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    weighted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_it_is_the_mean_cross_entropy_of_labelled_pixels(
    batch, classes, grid, factor, share, weighted, seed
):
    generator = np.random.default_rng(seed)
    logits = 3 * generator.normal(size=(batch, classes, *grid))
    size = [side * factor + factor // 3 for side in grid]
    masks = generator.integers(0, classes, (batch, *size))
    masks[generator.random(masks.shape) < share] = IGNORED
    weights = generator.uniform(1e-4, 3, classes)
    found = pixel_loss(
        torch.tensor(logits, dtype=torch.float32),
        torch.tensor(masks),
        torch.tensor(weights, dtype=torch.float32) if weighted else None,
    )
    expected = oracle(logits, masks, weights if weighted else np.ones(classes))
    assert found.item() == pytest.approx(expected, rel=2e-5, abs=1e-6)


def test_predictions_at_ignored_pixels_change_neither_loss_nor_gradient():
    masks = labels()
    ignored = (masks == IGNORED)[:, None]
    results = []
    for noise in (0, 5):
        generator = torch.Generator().manual_seed(1)
        logits = torch.randn(2, 5, 64, 96, generator=generator)
        logits = (logits + noise * ignored * torch.randn_like(logits)).requires_grad_()
        loss = pixel_loss(logits, masks, torch.rand(5, generator=generator))
        loss.backward()
        results.append((loss.item(), logits.grad))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert not results[0][1].masked_select(ignored).any()
    assert results[0][1].masked_select(~ignored).all()


def test_only_ratios_of_weights_matter():
    logits, masks, weights = torch.randn(2, 5, 16, 24), labels(), torch.rand(5) + 0.1
    results = [pixel_loss(logits, masks, weights * scale).item() for scale in (1, 1e-5, 1e4)]
    assert results == pytest.approx([results[0]] * 3, rel=1e-5)
    assert results[0] != pytest.approx(pixel_loss(logits, masks).item(), rel=1e-3)
    assert pixel_loss(logits, masks, torch.zeros(5)).item() == 0


def test_half_precision_is_only_that_of_the_logits():
    logits, masks = torch.randn(2, 5, 16, 24).bfloat16(), labels()
    assert torch.equal(pixel_loss(logits, masks), pixel_loss(logits.float(), masks))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.full((2, 8, 8), 5), "128 pixels have a label that is no class, the first 5; the"),
        (torch.full((2, 8, 8), -1), "the first -1; the head has 5 classes, with labels 0 to 4"),
        (torch.zeros(2, 8, 8), r"masks are \(2, 8, 8\) torch.float32; expected \(2, H, W\) int64"),
        (torch.zeros(1, 8, 8).long(), r"masks are \(1, 8, 8\) torch.int64; expected \(2, H, W\)"),
        (torch.zeros(2, 1, 8, 8).long(), r"masks are \(2, 1, 8, 8\)"),
    ],
)
@pytest.mark.parametrize("head", ["semantic_fpn", "mask2former"])
def test_wrong_masks_are_refused(head, masks, message):
    model = MODELS.setdefault(head, build(head))
    with pytest.raises(ValueError, match=message):
        model.losses(torch.randn(2, 3, 32, 32), masks)


def test_wrong_weights_are_refused():
    with pytest.raises(ValueError, match=r"class_weights have shape \(4,\) for 5 classes"):
        pixel_loss(torch.randn(2, 5, 8, 8), labels(), torch.ones(4))


MODELS = {}


class Logits(Segmenter):
    """Its own parameters for logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)
        self.num_classes = logits.shape[1]

    def forward(self, images):
        return {"logits": self.logits[: len(images)]}


def test_a_segmenter_scores_and_labels_as_its_logits_say():
    model, images = Logits(torch.randn(2, 5, 8, 12)), torch.zeros(2, 3, 32, 48)
    raw = model.inference(images)
    full = F.interpolate(model.logits, (32, 48), mode="bilinear")
    assert torch.equal(raw["mask"], full.argmax(1))
    assert torch.equal(model.scores(raw), model.logits)
    probabilities = model.probabilities(full)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 32, 48))
    assert torch.equal(probabilities.argmax(1), raw["mask"])
    masks = labels(2, 32, 48)
    assert torch.equal(model.losses(images, masks)["class"], pixel_loss(model.logits, masks))


def gradients(logits, masks, weights):
    leaf = logits.clone().requires_grad_()
    pixel_loss(leaf, masks, weights).backward()
    return leaf.grad


def share(rank, address, logits, masks, weights, results):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    part = slice(rank, rank + 1)
    for name, each in (("equal", None), ("weighted", weights)):
        # The mean over processes, as DDP takes it.
        results[rank, name] = gradients(logits[part], masks[part], each) / 2
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_learn_as_one_does(tmp_path):
    logits, masks, weights = torch.randn(2, 5, 8, 12), labels(2, 32, 48), torch.rand(5) * 1e-3
    masks[1, 8:] = IGNORED
    results = torch.multiprocessing.get_context("spawn").Manager().dict()
    address = f"file://{tmp_path}/rendezvous"
    torch.multiprocessing.spawn(share, (address, logits, masks, weights, results), nprocs=2)
    for name, each in (("equal", None), ("weighted", weights)):
        expected = gradients(logits, masks, each)
        found = torch.cat([results[rank, name] for rank in range(2)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
