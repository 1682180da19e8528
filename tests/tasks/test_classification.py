import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from castling.data import AugmentConfig
from castling.tasks import (
    ClassificationMetric,
    ClassificationTask,
    DistillConfig,
    LossConfig,
    Teacher,
)
from castling.tasks.distillation import distillation_loss, load_teacher

SAME = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Heads(nn.Module):
    """Fixed logits: one tensor, or a pair in training."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.ParameterList(logits)

    def forward(self, images):
        outputs = [x.expand(len(images), -1) for x in self.logits]
        if len(outputs) == 1:
            return outputs[0]
        return tuple(outputs) if self.training else sum(outputs) / len(outputs)


def batch(size=4, classes=3):
    return torch.randn(size, 3, 8, 8), torch.arange(size) % classes


def test_cross_entropy_smooths_hard_and_mixed_labels_alike():
    task = ClassificationTask(3, LossConfig(smoothing=0.1))
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    hard = task.label_loss(logits, labels)
    soft = task.label_loss(logits, F.one_hot(labels, 3).float())
    torch.testing.assert_close(hard, soft)


def test_binary_cross_entropy_by_hand():
    task = ClassificationTask(2, LossConfig(kind="binary_cross_entropy", smoothing=0.2))
    loss = task.label_loss(torch.tensor([[1.0, -1.0]]), torch.tensor([0]))
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    expected = -(0.9 * math.log(p) + 0.1 * math.log(1 - p))
    expected += -(0.1 * math.log(q) + 0.9 * math.log(1 - q))
    assert float(loss) == pytest.approx(expected / 2, rel=1e-5)


def test_two_heads_without_teacher_learn_from_labels():
    a, b = torch.randn(1, 3), torch.randn(1, 3)
    task = ClassificationTask(3, LossConfig(smoothing=0.0))
    images, labels = batch()
    loss = task.loss(Heads(a, b).train(), (images, labels))
    single = [F.cross_entropy(x.expand(4, 3), labels) for x in (a, b)]
    torch.testing.assert_close(loss, sum(single) / 2)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_second_head_learns_from_the_teacher(kind):
    student = Heads(torch.zeros(1, 3), torch.zeros(1, 3)).train()
    teacher = Teacher(Heads(torch.tensor([[0.0, 9.0, 0.0]])), SAME, SAME)
    task = ClassificationTask(
        3,
        distill=DistillConfig(kind=kind, teacher="any", weight=1.0, temperature=2.0),
        teacher=teacher,
    )
    task.loss(student, batch()).backward()
    first, second = (p.grad for p in student.logits)
    assert torch.equal(first, torch.zeros_like(first))
    assert second[0, 1] < 0 < second[0, 0]
    assert all(p.grad is None for p in teacher.parameters())


def test_soft_distillation_is_zero_for_equal_logits_and_scales_with_temperature():
    x = torch.randn(5, 4)
    config = DistillConfig(kind="soft", teacher="any", temperature=3.0)
    assert abs(float(distillation_loss(x, x, config))) < 1e-6
    y = torch.randn(5, 4)
    expected = 9 * F.kl_div((x / 3).log_softmax(1), (y / 3).softmax(1), reduction="batchmean")
    torch.testing.assert_close(distillation_loss(x, y, config), expected)


def test_teacher_sees_images_in_its_own_normalisation():
    class Same(nn.Module):
        def forward(self, images):
            return images

    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    other = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    pixels = torch.rand(2, 3, 4, 4)

    def normalise(m, s):
        return (pixels - torch.tensor(m).view(3, 1, 1)) / torch.tensor(s).view(3, 1, 1)

    seen = Teacher(Same(), other, (mean, std))(normalise(mean, std))
    torch.testing.assert_close(seen, normalise(*other))


def test_unusable_teachers_are_named():
    with pytest.raises(ValueError, match="neither a timm model nor a folder"):
        load_teacher(DistillConfig(kind="hard", teacher="no_such_net"), 3, SAME)
    with pytest.raises(FileNotFoundError, match=r"weights\.pth"):
        load_teacher(
            DistillConfig(kind="hard", teacher="deit_pico", checkpoint="weights.pth"), 3, SAME
        )


def test_mixing_is_a_function_of_its_position():
    task = ClassificationTask(3, augment=AugmentConfig(mixup=0.8), seed=1)
    images, labels = batch()
    one, other = (task.prepare((images, labels), 0, 5, 0) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not torch.equal(task.prepare((images, labels), 0, 6, 0)[0], one[0])
    assert one[1].shape == (4, 3)
    assert ClassificationTask(3).prepare((images, labels), 0, 5, 0)[1] is labels


def test_averaged_model_pulls():
    student, averaged = Heads(torch.zeros(1, 2)), Heads(torch.tensor([[5.0, -5.0]]))
    task = ClassificationTask(2, self_distill=1.0)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    task.loss(student, (images, labels), averaged).backward()
    assert student.logits[0].grad[0, 0] < 0 < student.logits[0].grad[0, 1]
    assert averaged.logits[0].grad is None


def test_metric_counts():
    metric = ClassificationMetric(6)
    assert metric.compute() == {}
    logits = torch.eye(6)[[0, 1, 2, 3]] * 5 - torch.arange(6) * 0.1
    logits[3] = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])  # label 5 is ranked last
    metric.update(logits[:2], (None, torch.tensor([0, 1])))
    metric.update(logits[2:], (None, torch.tensor([1, 5])))
    values = metric.compute()
    assert values["top1"] == 50.0
    assert values["top5"] == 75.0
    expected = F.cross_entropy(logits, torch.tensor([0, 1, 1, 5]))
    assert values["loss"] == pytest.approx(float(expected), rel=1e-5)
    accuracy = metric.class_accuracy()
    assert accuracy[0] == 100.0
    assert accuracy[1] == 50.0
    assert accuracy[5] == 0.0
    assert math.isnan(accuracy[2])


def test_metric_adds_up_over_processes():
    metric = ClassificationMetric(2)
    metric.update(torch.tensor([[2.0, 1.0]]), (None, torch.tensor([0])))
    metric.merge(lambda x: x * 2)
    assert metric.compute()["top1"] == 100.0
    empty = ClassificationMetric(2)
    empty.merge(lambda x: x)
    assert empty.compute() == {}
