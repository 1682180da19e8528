"""Saved models in int8: which images calibrate, which are compared on, and what reads the file."""

import json

import pytest
import torch

from castling.data import DataConfig, DigitsConfig
from castling.deploy import Predictor
from castling.deploy.saved_data import spread_images
from castling.models.builder import build_model
from castling.models.card import ModelCard
from castling.models.saved import save_model
from castling.tasks import task_from_card
from castling_launcher import main

KWARGS = {"num_classes": 10, "depth": 1, "embed_dim": 48}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small model that knows some digits, in a folder, and its card."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = build_model("deit_pico", KWARGS)
    card = ModelCard(
        name="deit_pico",
        classes=[str(digit) for digit in range(10)],
        kwargs=KWARGS,
        preprocessing={"image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "crop": "none"},
    )
    save_model(model.eval(), folder, card)
    return folder, card


def test_images_are_spread_over_their_split(saved):
    folder, card = saved
    task, data = task_from_card(card, folder), DataConfig(source=DigitsConfig())
    found = spread_images(task, card, folder, data, {"val": 5, "train": 3})
    assert {split: len(images) for split, images in found.items()} == {"val": 5, "train": 3}
    assert found["val"].shape[1:] == (3, 32, 32)
    more = spread_images(task, card, folder, data, {"val": 10**6})["val"]
    places = [int((more - image).flatten(1).abs().amax(1).argmin()) for image in found["val"]]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, len(more) - 1)


@pytest.mark.slow
def test_int8_by_the_command_is_read_by_predict(saved, tmp_path, capsys):
    pytest.importorskip("nncf")
    folder, card = saved
    path = tmp_path / "m.xml"
    command = ["export", str(folder), str(path), "--precision", "int8"]
    assert main(command) == 2
    assert "name them with --data" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    # Scores of untrained weights are nearly equal: agreement is not what is tested here.
    command += ["--data", "digits", "--images", "12", "--min_agreement", "0", "--json"]
    command += ["--dynamic", "batch"]
    assert main([*command, "--max_error", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["precision"], report["calibration_images"]) == ("int8", 12)
    assert report["on_images"]["count"] == 12
    assert 0 < report["on_images"]["relative_error"] < 1
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    by_file, by_model = (Predictor(each)(list(images)) for each in (path, folder))
    for one, other in zip(by_file, by_model, strict=True):
        assert set(one.classes) == set(other.classes) == set(card.classes)
