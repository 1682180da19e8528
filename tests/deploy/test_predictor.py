"""Prediction: right classes by name, wrong files reported without stopping the others."""

import csv
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import castling
from castling.deploy import Predictor
from castling.export import export
from castling.models.builder import build_model
from castling.models.card import ModelCard
from castling.models.saved import save_model
from castling.tasks import task_from_card

PREPROCESSING = {"image_size": [16, 16], "mean": [0.5] * 3, "std": [0.5] * 3}
CARD = ModelCard(name="none", classes=["red", "green", "blue"], preprocessing=PREPROCESSING)


class Reddest(nn.Module):
    """Logits: the mean of each colour channel."""

    def forward(self, x):
        return 10 * x.mean((2, 3))


@pytest.fixture
def predictor():
    return Predictor(Reddest(), task=task_from_card(CARD), batch_size=2)


@pytest.fixture
def images(tmp_path):
    for name in ("green", "red", "blue"):
        Image.new("RGB", (40, 20), name if name != "green" else "lime").save(
            tmp_path / f"{name}.png"
        )
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.jpg").write_bytes(b"no image either")
    return tmp_path


def test_folder_with_a_broken_file(predictor, images):
    found = predictor(images)
    names = [p.name.rsplit("/", 1)[-1] for p in found]
    assert names == ["blue.png", "broken.jpg", "green.png", "red.png"]
    by_name = dict(zip(names, found, strict=True))
    assert by_name["green.png"].classes[0] == "green"
    assert by_name["red.png"].classes[0] == "red"
    assert by_name["red.png"].original_size == (20, 40)
    assert by_name["blue.png"].probabilities[0] > 0.99
    assert "broken.jpg" in by_name["broken.jpg"].error
    assert not by_name["broken.jpg"].classes


def test_files_keep_their_order(predictor, images):
    found = predictor([images / "red.png", images / "blue.png", str(images / "red.png")])
    assert [p.classes[0] for p in found] == ["red", "blue", "red"]
    assert all(sum(p.probabilities) == pytest.approx(1) for p in found)


def test_missing_paths_do_not_stop_the_others(predictor, images):
    (images / "empty").mkdir()
    names = ("absent.png", "red.png", "broken.jpg", "empty")
    absent, red, broken, empty = predictor([images / name for name in names])
    assert absent.error == f"no such file or folder: {images / 'absent.png'}"
    assert red.classes[0] == "red"
    assert "not an image" in broken.error
    assert "remove" not in broken.error
    assert "empty holds no image" in empty.error
    long, null, good = predictor([images / ("x" * 5000), "a\0b.png", images / "red.png"])
    assert "too long" in long.error
    assert "null" in null.error
    assert good.classes[0] == "red"


def test_arrays_tensors_and_pillow_images(predictor):
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[..., 1] = 255
    kinds = [
        pixels,
        torch.from_numpy(pixels).permute(2, 0, 1),
        Image.fromarray(pixels),
        Image.fromarray(pixels).convert("RGBA"),
    ]
    found = predictor(kinds)
    assert [one.classes[0] for one in found] == ["green"] * 4
    assert [one.name for one in found] == ["image 0", "image 1", "image 2", "image 3"]
    assert len({one.probabilities for one in found}) == 1
    (single,) = predictor(pixels)
    assert single.classes[0] == "green"
    wrong, grey = predictor([pixels.astype(np.float32), pixels[..., 0]])
    assert "uint8" in wrong.error
    assert not grey.error
    chw, empty, good = predictor([pixels.transpose(2, 0, 1), pixels[:0], pixels])
    assert "(3, 20, 40)" in chw.error
    assert "empty" in empty.error
    assert good.classes[0] == "green"


def test_one_image_at_a_time_gives_what_batches_give(predictor, images):
    alone = Predictor(Reddest(), task=predictor.task, batch_size=1)
    assert alone(images) == predictor(images)
    assert list(predictor.stream(images)) == predictor(images)
    assert predictor([]) == []


def test_table_and_drawing(predictor, images):
    found = predictor(images)
    predictor.to_csv(found, images / "out" / "found.csv")
    with (images / "out" / "found.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 3 + 1
    assert [row["class"] for row in rows if row["rank"] == "1"] == ["blue", "green", "red"]
    assert next(row for row in rows if row["error"])["name"].endswith("broken.jpg")
    drawn = predictor.draw(images / "red.png", found[-1])
    assert drawn.height > 20


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="batch_size"):
        Predictor(Reddest(), task=task_from_card(CARD), batch_size=0)
    with pytest.raises(ValueError, match="needs its task"):
        Predictor(Reddest())
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx"):
        Predictor(tmp_path / "absent.onnx")
    with pytest.raises(FileNotFoundError, match="absent"):
        Predictor(tmp_path / "absent")


def test_saved_model_run_folder_and_exported_file_agree(images):
    torch.manual_seed(0)
    kwargs = {"num_classes": 3, "depth": 1}
    model = build_model("castling_deit_pico", kwargs, "linear_angular").eval()
    card = ModelCard(
        name="castling_deit_pico",
        kwargs=kwargs,
        attention={"name": "linear_angular"},
        classes=["red", "green", "blue"],
        preprocessing=PREPROCESSING | {"image_size": [32, 32]},
    )
    run = images / "run"
    save_model(nn.Identity(), run, card)  # must not be the one that is opened
    save_model(model, run / "switched", card)
    task = task_from_card(card)
    export(model, images / "model.onnx", (32, 32), card=card, raw_outputs=task.raw_outputs)
    (expected,) = castling.Predictor(model, task=task)(images / "red.png")
    for path in (run / "switched", run, images / "model.onnx"):
        (found,) = castling.Predictor(path)(images / "red.png")
        assert found.classes == expected.classes
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


class Overflows(nn.Module):
    """Logits of colours, infinite where an image is bright in its first pixel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Conv2d(3, 3, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        nn.init.constant_(self.scale.weight, 2e38)

    def forward(self, x):
        return self.pool(self.scale(x * (x[:, :1, :1, :1] > 0.9))).flatten(1)


def test_outputs_that_are_not_finite_are_that_images_error(images):
    predictor = Predictor(Overflows(), task=task_from_card(CARD), batch_size=8)
    files = [images / "green.png", images / "red.png", images / "blue.png"]
    Image.new("RGB", (40, 20), "white").save(images / "red.png")
    green, white, blue = predictor(files)
    assert green.classes
    assert blue.classes
    assert not white.classes
    assert white.error == (
        f"{files[1]}: the model's output for it is not finite: they arise in scale (Conv2d)"
    )
    assert white.rows() == [{"name": str(files[1]), "error": white.error}]


def test_a_network_with_weights_that_are_not_finite_is_refused():
    network = Overflows()
    nn.init.constant_(network.scale.weight, float("nan"))
    with pytest.raises(ValueError, match=r"not finite: scale\.weight \(NaN, 9 of 9\)"):
        Predictor(network, task=task_from_card(CARD))


def damaged_images(folder):
    """Files on which Pillow raises other errors than OSError: a bad chunk, an unknown format."""
    image = folder / "good.png"
    Image.new("RGB", (8, 8), "red").save(image)
    png = image.read_bytes()
    at = png.index(b"IDAT") - 4
    chunk = b"cHRM" + b"\0"
    chunk = struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (folder / "chunk.png").write_bytes(png[:at] + chunk + png[at:])
    dds = b"DDS " + struct.pack("<7I", 124, 0x1007, 16, 16, 64, 0, 0) + bytes(44)
    dds += struct.pack("<2I", 32, 4) + b"DX10" + bytes(20)
    dds += struct.pack("<5I", 0x1000, 0, 0, 0, 0) + struct.pack("<5I", 93, 3, 0, 1, 0)
    (folder / "format.dds").write_bytes(dds + bytes(1024))


def test_whatever_a_decoder_raises_is_that_image_alone(predictor, tmp_path):
    damaged_images(tmp_path)
    (tmp_path / "a; b.png").write_bytes(b"no image")
    odd, chunk, dds, good = predictor(tmp_path)
    assert odd.error.startswith(f"{tmp_path / 'a; b.png'} cannot be read as an image")
    assert "chunk.png cannot be read as an image" in chunk.error
    assert "93 (NotImplementedError)" in dds.error
    assert good.classes[0] == "red"
    with Image.open(tmp_path / "good.png") as lazy:
        lazy.fp.seek(0)
        lazy.fp = open(os.devnull, "rb")  # noqa: SIM115 an image whose file is gone
        (gone,) = predictor(lazy)
    assert "cannot be decoded" in gone.error


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such files")
def test_folders_are_listed_as_for_training(predictor, images):
    for place in (images / "@eaDir", images / "lost+found"):
        place.mkdir()
        (images / "red.png").rename(place / "red.png")
        (images / "red.png").write_bytes((place / "red.png").read_bytes())
    os.symlink(".", images / "loop")
    os.symlink("red.png", images / "same.png")
    os.mkfifo(images / "pipe.png")
    os.rename(images / "blue.png", os.fsencode(images) + b"/bl\xe9.png")
    found = predictor(images)
    names = [one.name.rsplit("/", 1)[-1] for one in found]
    assert names == [r"bl\xe9.png", "broken.jpg", "green.png", "red.png"]
    notes = "\n".join(predictor.notes)
    for left_out in ("@eaDir", "lost+found", "loop", "same.png", "pipe.png"):
        assert left_out in notes
    predictor.to_csv(found, images / "found.csv")  # UTF-8, whatever the names
    assert r"bl\xe9.png" in (images / "found.csv").read_text(encoding="utf-8")
    pipe, missing = predictor([images / "pipe.png", os.fsdecode(b"no\xe9.png")])
    assert "pipe, socket or device" in pipe.error
    assert missing.error == r"no such file or folder: no\xe9.png"
    assert predictor.notes == []
