"""Saved models on data whose classes count otherwise, are fewer or others."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from castling.data import CocoConfig, DataConfig, FolderConfig, SplitConfig
from castling.deploy import evaluate
from castling.deploy.saved_data import open_saved_data
from castling.models.builder import build_model
from castling.models.card import ModelCard
from castling.models.saved import open_model, save_model
from castling.tasks import task_from_card
from castling.tasks.detection.noise import write_noise

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture
def photos(tmp_path):
    """Images of one colour in folders of classes, more of some than of others."""
    for count, (name, colour) in enumerate(COLOURS.items(), 4):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(count):
            shade = [max(0, value - number) for value in colour]  # no file is a copy of another
            Image.new("RGB", (16, 16), tuple(shade)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def save_classifier(folder, classes):
    """A network with biases alone that always says the class "green"."""
    torch.manual_seed(0)
    kwargs = {"num_classes": len(classes), "depth": 1, "embed_dim": 16}
    model = build_model("castling_deit_pico", kwargs)
    with torch.no_grad():
        head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        head.weight.zero_()
        head.bias.copy_(torch.tensor([float(name == "green") for name in classes]))
    card = ModelCard(
        name="castling_deit_pico",
        classes=classes,
        kwargs=kwargs,
        preprocessing={"image_size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "crop": "none"},
    )
    save_model(model.eval(), folder, card)
    return folder


def test_a_folder_is_evaluated_by_the_names_of_its_classes(photos, tmp_path):
    data = DataConfig(source=FolderConfig(path=str(photos)))
    one = evaluate(save_classifier(tmp_path / "one", ["blue", "green", "red"]), data)
    turned = save_classifier(tmp_path / "turned", ["red", "hen", "blue", "green"])
    other = evaluate(turned, data)
    assert one.per_class == {"blue": 0.0, "green": 100.0, "red": 0.0}
    assert other.per_class == one.per_class | {"hen": None}
    assert other.metrics["top1"] == one.metrics["top1"] == pytest.approx(100 * 5 / 15)
    assert not any("by name" in note for note in one.notes)
    assert "classes are matched by name; these images have 3 of the model's 4" in other.notes
    # A class without images hinders no split that is made of them.
    for by in ("content", "position"):
        split = SplitConfig(val_fraction=0.3, test_fraction=0.3, by=by)
        held_out = evaluate(turned, DataConfig(source=data.source, split=split))
        assert held_out.images < 15
        assert held_out.per_class == other.per_class


def test_classes_that_the_model_does_not_know_are_listed(photos, tmp_path):
    shutil.copytree(photos / "red", photos / "pink")
    shutil.copytree(photos / "red", photos / "rose")
    model = save_classifier(tmp_path / "model", ["blue", "green", "red"])
    data = DataConfig(source=FolderConfig(path=str(photos)))
    with pytest.raises(ValueError, match=r"photos has classes .* not know: pink, rose; it knows"):
        evaluate(model, data)


def save_detector(folder, classes):
    name, kwargs = "picodet_pico/castling_levit_s8_pico", {"num_classes": len(classes)}
    torch.manual_seed(0)
    card = ModelCard(
        name=name,
        classes=classes,
        kwargs=kwargs,
        task={"name": "detection"},
        preprocessing={"image_size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "multiple": 32},
    )
    save_model(build_model(name, kwargs).eval(), folder, card)
    return folder


def test_objects_are_evaluated_by_the_names_of_their_classes(tmp_path):
    write_noise(tmp_path / "noise", 2)
    for path in (tmp_path / "noise").glob("instances_*.json"):
        content = json.loads(path.read_text())
        content["annotations"] = content["annotations"][:-1]  # the last image shows no "b"
        path.write_text(json.dumps(content))
    data = DataConfig(source=CocoConfig(path=str(tmp_path / "noise")))
    same = save_detector(tmp_path / "same", ["a", "b"])
    turned = save_detector(tmp_path / "turned", ["b", "hen", "a"])
    there = []
    for folder in (same, turned):
        _, card = open_model(folder)
        images = open_saved_data(task_from_card(card), card, data).dataset("val")
        targets = [images[index].target for index in range(len(images))]
        there.append([[card.classes[label] for label in one["labels"]] for one in targets])
        boxes = [one["boxes"] for one in targets]
        there.append(torch.cat(boxes).tolist())
    assert there[:2] == there[2:]
    assert there[0] == [["a", "b"], ["a"]]
    found = evaluate(turned, data, split="val")
    assert {name: row["images"] for name, row in found.class_figures.items()} == {
        "a": 2,
        "b": 1,
        "hen": 0,
    }
    assert "classes are matched by name; these images have 2 of the model's 3" in found.notes


def test_images_without_what_the_task_needs_are_refused(photos, tmp_path):
    detector = save_detector(tmp_path / "detector", ["blue", "green", "red"])
    with pytest.raises(ValueError, match="needs data for detection, this source is for class"):
        evaluate(detector, DataConfig(source=FolderConfig(path=str(photos))))
