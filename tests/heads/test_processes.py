"""Several processes learn as one that has all images, however the objects are spread."""

import pytest
import torch

from castling import create_model

#: Heads, and parts of their loss that are means of each process's own, as published.
HEADS = {"fcos_pico": (), "retinanet_pico": (), "d_fine_pico": ("distillation",)}


def build(head):
    torch.manual_seed(0)
    return create_model(f"{head}/test_resnet", num_classes=3).eval()


def gradients(model, head, images, targets):
    losses = model.losses(images, targets)
    sum(part for name, part in losses.items() if name not in HEADS[head]).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def target(boxes, labels):
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels).long()}


def share(rank, address, images, targets, results):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for head in HEADS:
        flat = gradients(build(head), head, images[rank : rank + 1], targets[rank : rank + 1])
        torch.distributed.all_reduce(flat)
        results[rank, head] = flat / 2
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("empty", [False, True])
def test_two_processes_learn_as_one_does(empty, tmp_path):
    images = torch.randn(2, 3, 64, 96)
    many = [[4.0 * i, 3.0 * i, 4.0 * i + 30, 3.0 * i + 30] for i in range(6)]
    one = target([], []) if empty else target([[5.0, 20, 60, 44]], [1])
    targets = [target(many, [0, 2, 1] * 2), one]
    results = torch.multiprocessing.get_context("spawn").Manager().dict()
    torch.multiprocessing.spawn(
        share, (f"file://{tmp_path}/rendezvous", images, targets, results), nprocs=2
    )
    for head in HEADS:
        expected = gradients(build(head), head, images, targets)
        for rank in range(2):
            gap = (results[rank, head] - expected).norm() / expected.norm()
            assert gap < 1e-3, (head, gap)
