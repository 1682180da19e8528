"""Prediction: right classes by name, wrong files reported without stopping the others."""

import pytest
import torch
from PIL import Image
from torch import nn

from castling.deploy import open_classifier, predict
from castling.export import export
from castling.models.builder import build_model
from castling.models.saved import ModelCard, save_model


class Reddest(nn.Module):
    """Logits: the mean of each colour channel."""

    def forward(self, x):
        return 10 * x.mean((2, 3))


CARD = ModelCard(
    name="none",
    classes=["red", "green", "blue"],
    image_size=(16, 16),
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)


@pytest.fixture
def images(tmp_path):
    for name in ("green", "red", "blue"):
        Image.new("RGB", (40, 20), name if name != "green" else "lime").save(
            tmp_path / f"{name}.png"
        )
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.jpg").write_bytes(b"no image either")
    return tmp_path


def test_folder_with_a_broken_file(images):
    found = predict(Reddest(), CARD, [images], top=2, batch_size=2)
    names = [p.path.rsplit("/", 1)[-1] for p in found]
    assert names == ["blue.png", "broken.jpg", "green.png", "red.png"]
    by_name = dict(zip(names, found, strict=True))
    assert by_name["green.png"].classes[0] == "green"
    assert by_name["red.png"].classes[0] == "red"
    assert len(by_name["blue.png"].classes) == 2
    assert by_name["blue.png"].probabilities[0] > 0.99
    assert "broken.jpg" in by_name["broken.jpg"].error
    assert not by_name["broken.jpg"].classes


def test_files_keep_their_order_and_top_is_capped(images):
    found = predict(Reddest(), CARD, [images / "red.png", images / "blue.png"], top=9)
    assert [p.classes[0] for p in found] == ["red", "blue"]
    assert all(sum(p.probabilities) == pytest.approx(1) for p in found)


def test_missing_paths_do_not_stop_the_others(images, tmp_path):
    (tmp_path / "empty").mkdir()
    names = ("absent.png", "red.png", "broken.jpg", "empty")
    absent, red, broken, empty = predict(Reddest(), CARD, [images / name for name in names])
    assert absent.error == f"no such file or folder: {images / 'absent.png'}"
    assert red.classes[0] == "red"
    assert "not an image" in broken.error
    assert "remove" not in broken.error
    assert "empty holds no image" in empty.error


def test_bad_input(images, tmp_path):
    with pytest.raises(ValueError, match="no image files"):
        predict(Reddest(), CARD, [])
    with pytest.raises(ValueError, match="top"):
        predict(Reddest(), CARD, [images], top=0)
    with pytest.raises(FileNotFoundError, match="ONNX"):
        open_classifier(tmp_path / "absent.onnx")


def test_saved_model_run_folder_and_onnx_agree(images, tmp_path):
    torch.manual_seed(0)
    kwargs = {"num_classes": 3, "depth": 1}
    model = build_model("castling_deit_pico", kwargs, "linear_angular").eval()
    card = ModelCard(
        name="castling_deit_pico",
        kwargs=kwargs,
        attention={"name": "linear_angular"},
        classes=["red", "green", "blue"],
        image_size=(32, 32),
    )
    run = tmp_path / "run"
    save_model(nn.Identity(), run, card)  # must not be the one that is opened
    save_model(model, run / "switched", card)
    export(model, tmp_path / "model.onnx", (32, 32), card=card)
    expected = predict(model, card, [images / "red.png"])[0]
    for path in (run / "switched", run, tmp_path / "model.onnx"):
        found = predict(*open_classifier(path), [images / "red.png"])[0]
        assert found.classes == expected.classes
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
