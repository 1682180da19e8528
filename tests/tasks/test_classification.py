"""Losses, teachers, metrics and predictions of classification."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from castling.data import Batch, DataInfo, MixConfig
from castling.data.transforms import ClassificationTransformConfig
from castling.models.builder import build_model
from castling.models.card import ModelCard
from castling.models.saved import save_model
from castling.tasks import Step, build_task, list_tasks, task_config_class, task_from_card
from castling.tasks.classification import (
    ClassificationConfig,
    ClassificationTask,
    LossConfig,
    SelfDistillConfig,
)
from castling.tasks.classification.losses import distillation_loss, label_loss
from castling.tasks.classification.metrics import ClassificationMetrics
from castling.tasks.teacher import DistillConfig, Teacher, check_teacher, load_teacher

HALF = (0.5, 0.5, 0.5)


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


def task_of(classes=3, **options):
    info = DataInfo([f"class {i}" for i in range(classes)], {}, mean=HALF, std=HALF)
    return build_task(
        ClassificationConfig(**options), info, ClassificationTransformConfig(image_size=8)
    )


def batch(size=4, classes=3):
    return Batch(
        images=torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8),
        valid=torch.full((size, 2), 8),
        targets={"label": torch.arange(size) % classes},
        index=torch.arange(size),
        names=tuple(f"{i}.png" for i in range(size)),
        original_sizes=((8, 8),) * size,
    )


def test_cross_entropy_smooths_hard_and_mixed_labels_alike():
    config = LossConfig(smoothing=0.1)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    hard = label_loss(logits, labels, config)
    soft = label_loss(logits, F.one_hot(labels, 3).float(), config)
    torch.testing.assert_close(hard, soft)


def test_binary_cross_entropy_by_hand():
    config = LossConfig(kind="binary_cross_entropy", smoothing=0.2)
    loss = label_loss(torch.tensor([[1.0, -1.0]]), torch.tensor([0]), config)
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    expected = -(0.9 * math.log(p) + 0.1 * math.log(1 - p))
    expected += -(0.1 * math.log(q) + 0.9 * math.log(1 - q))
    assert float(loss) == pytest.approx(expected / 2, rel=1e-5)


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat([0, 1, 3], [1, 7, 12])
    task = task_of(4, loss=LossConfig(class_weights="balanced"))
    task.see_training_labels(labels)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    # An empty class counts among ours.
    assert task.class_weights[[0, 1, 3]].tolist() == pytest.approx((expected * 3 / 4).tolist())
    assert task.class_weights[2] == 0
    assert not list(task.state_dict())


def test_weighted_losses_are_those_of_torch_and_by_hand():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 0, 1])
    weights = torch.tensor([0.5, 2.0, 1.0])
    plain = LossConfig(smoothing=0.0)
    expected = F.cross_entropy(logits, labels, weight=weights)
    torch.testing.assert_close(label_loss(logits, labels, plain, weights), expected)
    soft = F.one_hot(labels, 3).float()
    torch.testing.assert_close(label_loss(logits, soft, plain, weights), expected)
    for config in (LossConfig(), LossConfig(kind="binary_cross_entropy")):
        each = torch.stack(
            [label_loss(x[None], y[None], config) for x, y in zip(logits, labels, strict=True)]
        )
        by_hand = (each * weights[labels]).sum() / weights[labels].sum()
        torch.testing.assert_close(label_loss(logits, labels, config, weights), by_hand)
        same = label_loss(logits, labels, config, torch.full((3,), 0.7))
        torch.testing.assert_close(same, label_loss(logits, labels, config))


def test_weights_reach_the_training_loss():
    task = task_of(loss=LossConfig(class_weights=[1.0, 5.0, 1.0], smoothing=0.0))
    task.see_training_labels(None)
    logits = torch.randn(1, 3)
    loss = task.training_step(Heads(logits), batch(4), Step())["loss"]
    expected = F.cross_entropy(
        logits.expand(4, -1), torch.tensor([0, 1, 2, 0]), weight=torch.tensor([1.0, 5.0, 1.0])
    )
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match="holds 3 weights for 4 classes: class 0"):
        task_of(4, loss=LossConfig(class_weights=[1.0, 5.0, 1.0])).see_training_labels(None)
    for wrong in ("balance", [1.0, 0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match=r"task\.loss\.class_weights"):
            LossConfig(class_weights=wrong)


def test_two_heads_without_teacher_learn_from_labels():
    a, b = torch.randn(1, 3), torch.randn(1, 3)
    task = task_of(loss=LossConfig(smoothing=0.0))
    examples = batch()
    losses = task.training_step(Heads(a, b).train(), examples, Step())
    single = [F.cross_entropy(x.expand(4, 3), examples.targets["label"]) for x in (a, b)]
    torch.testing.assert_close(losses["loss"], sum(single) / 2)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_second_head_learns_from_the_teacher(kind):
    student = Heads(torch.zeros(1, 3), torch.zeros(1, 3)).train()
    teacher = Teacher(Heads(torch.tensor([[0.0, 9.0, 0.0]])))
    task = task_of(distill=DistillConfig(kind=kind, teacher="any", weight=1.0, temperature=2.0))
    task.set_teacher(teacher)
    losses = task.training_step(student, batch(), Step())
    assert set(losses) == {"loss", "labels", "teacher"}
    losses["loss"].backward()
    first, second = (p.grad for p in student.logits)
    assert torch.equal(first, torch.zeros_like(first))
    assert second[0, 1] < 0 < second[0, 0]
    assert all(p.grad is None for p in teacher.parameters())


def test_teacher_is_moved_but_neither_trained_nor_saved():
    task = task_of(distill=DistillConfig(kind="hard", teacher="any"))
    task.set_teacher(Teacher(Heads(torch.zeros(1, 3))))
    assert list(task.parameters()) == []
    assert task.state_dict() == {}
    task.to(torch.float64)
    assert task.teacher.model.logits[0].dtype == torch.float64


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

    teacher = Teacher(Same(), *other)
    teacher.match(mean, std)
    torch.testing.assert_close(teacher(normalise(mean, std)), normalise(*other))


def test_a_teacher_that_would_teach_nothing_is_refused():
    for options in ({"teacher": "regnety_160"}, {"checkpoint": "teacher.pth"}):
        with pytest.raises(ValueError, match=r"task\.distill\.kind is none"):
            check_teacher(DistillConfig(**options))


def test_unusable_teachers_are_named():
    with pytest.raises(ValueError, match="neither a timm model nor a folder"):
        load_teacher(DistillConfig(kind="hard", teacher="no_such_net"), ["a"])
    with pytest.raises(FileNotFoundError, match=r"weights\.pth"):
        load_teacher(
            DistillConfig(kind="hard", teacher="deit_pico", checkpoint="weights.pth"), ["a"]
        )


def test_teacher_of_a_run_must_know_the_classes_in_their_order(tmp_path):
    card = ModelCard(
        name="deit_pico",
        classes=["a", "b"],
        preprocessing={"image_size": 32, "mean": HALF, "std": HALF},
        kwargs={"num_classes": 2, "depth": 1},
    )
    save_model(build_model(card.name, card.kwargs), tmp_path, card)
    config = DistillConfig(kind="hard", teacher=str(tmp_path))
    assert load_teacher(config, ["a", "b"]).mean == HALF
    with pytest.raises(ValueError, match="names and order must be the same"):
        load_teacher(config, ["b", "a"])
    with pytest.raises(ValueError, match="for timm models"):
        load_teacher(DistillConfig(kind="hard", teacher=str(tmp_path), checkpoint="x"), ["a", "b"])


def test_logits_must_match_the_classes():
    task = task_of(3)
    with pytest.raises(ValueError, match="4 logits for 3 classes"):
        task.predict(Heads(torch.zeros(1, 4)), batch())


def test_mixing_and_erasing_are_functions_of_their_position():
    task = task_of(mix=MixConfig(mixup=0.8), erase=1.0)
    examples, here = batch(), Step(seed=1, batch=5)
    one, other = (task.mixed(examples, here) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not torch.equal(task.mixed(examples, here._replace(batch=6))[0], one[0])
    assert one[1].shape == (4, 3)
    assert task_of().mixed(examples, here)[1] is examples.targets["label"]
    torch.testing.assert_close(
        task_of().mixed(examples, here)[0], (examples.images / 255 - 0.5) / 0.5
    )


def test_averaged_model_pulls_once_its_time_has_come():
    student, averaged = Heads(torch.zeros(1, 2)), Heads(torch.tensor([[5.0, -5.0]]))
    task = task_of(2, self_distill=SelfDistillConfig(weight=1.0, start=0.5))
    early = task.training_step(student, batch(classes=2), Step(progress=0.4, averaged=averaged))
    assert set(early) == {"loss"}
    late = task.training_step(student, batch(classes=2), Step(progress=0.5, averaged=averaged))
    late["loss"].backward()
    assert student.logits[0].grad[0, 0] < 0 < student.logits[0].grad[0, 1]
    assert averaged.logits[0].grad is None


def test_metric_counts():
    metric = ClassificationMetrics(6)
    logits = torch.eye(6)[[0, 1, 2, 3]] * 5 - torch.arange(6) * 0.1
    logits[3] = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])  # label 5 is ranked last
    metric.update(logits[:2], torch.tensor([0, 1]))
    metric.update(logits[2:], torch.tensor([1, 5]))
    values = metric.compute()
    assert values["top1"] == 50.0
    assert values["top5"] == 75.0
    expected = F.cross_entropy(logits, torch.tensor([0, 1, 1, 5]))
    assert values["loss"] == pytest.approx(float(expected), rel=1e-5)
    accuracy = metric.class_accuracy()
    assert (accuracy[0], accuracy[1], accuracy[5]) == (100.0, 50.0, 0.0)
    assert accuracy[2] is None


def test_top5_needs_more_than_five_classes():
    metric = ClassificationMetrics(5)
    metric.update(torch.randn(3, 5), torch.tensor([0, 1, 2]))
    assert set(metric.compute()) == {"loss", "top1"}


def test_predictions_rank_all_classes():
    task = task_of(3)
    model = Heads(torch.tensor([[0.0, 2.0, 1.0]])).eval()
    first, *_ = task.predict(model, batch())
    assert first.classes == ("class 1", "class 2", "class 0")
    assert sum(first.probabilities) == pytest.approx(1)
    assert first.top(1).classes == ("class 1",)
    assert (first.name, first.original_size) == ("0.png", (8, 8))
    assert [row["rank"] for row in first.rows()] == [1, 2, 3]
    assert set(first.rows()[0]) <= set(first.columns)
    assert first.summary().startswith("class 1 66.5 %")
    drawn = task.draw(Image.new("RGB", (8, 8)), first, {"label": torch.tensor(2)})
    assert drawn.height > 8


def test_registry_names_what_it_knows():
    assert "classification" in list_tasks()
    with pytest.raises(ValueError, match=r"no task 'classify'.*did you mean classification"):
        task_config_class("classify")
    info = DataInfo(["a", "b"], {}, kind="detection")
    with pytest.raises(ValueError, match="needs data for classification"):
        build_task(ClassificationConfig(), info, ClassificationTransformConfig())


def test_task_of_a_card_feeds_the_model_as_it_was_trained():
    made = task_of(3, loss=LossConfig(smoothing=0.2))
    card = ModelCard(
        name="any",
        classes=made.info.classes,
        preprocessing=made.preprocessing(),
        task={"name": "classification", "loss": {"smoothing": 0.2}},
    )
    task = task_from_card(ModelCard.from_dict(card.to_dict()))
    assert isinstance(task, ClassificationTask)
    assert task.config == made.config
    assert task.info.classes == made.info.classes
    assert torch.equal(task.preprocess.scale, made.preprocess.scale)
    assert task.transform_options.image_size == 8
