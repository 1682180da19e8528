"""The examples of README.md and docs/first-hour.md run as they are printed.

The Python blocks are executed from the pages themselves. Two things are replaced, and nothing else:
``pretrained=True`` needs the network, so the model starts from random weights, with two blocks so
that the test is quick; and the loop takes 2 epochs.
"""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import castling
import castling_launcher
from castling.data import DataConfig, LoaderConfig, SplitConfig
from castling.data.sources import DigitScenesConfig
from castling.data.transforms.detection import DetectionTransformConfig
from castling.data.transforms.segmentation import SegmentationTransformConfig
from castling.tasks.detection import DetectionConfig
from castling.tasks.segmentation import SegmentationConfig
from castling.train import ModelConfig, Recipe, train

ROOT = Path(castling.__file__).parents[2]
README, FIRST_HOUR = ROOT / "README.md", ROOT / "docs" / "first-hour.md"
SUBSTITUTIONS = {"pretrained=True": "depth=2", "epochs = 20": "epochs = 2"}
#: Verbs whose commands are cheap enough to run here.
CHEAP = ("evaluate", "predict", "export", "compare", "switch", "models", "attentions")

if not README.is_file():
    pytest.skip("needs the sources", allow_module_level=True)


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Words of the cheap commands, without those on data that the reader has to bring."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["castling"] and words[1] in CHEAP and "--data" not in words:
                found.append(words[1:])
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The files and runs that the pages speak of."""
    folder = tmp_path_factory.mktemp("readme")
    generator = np.random.default_rng(0)
    for path in (
        *("photo.jpg", "folder/of/photos/1.jpg"),
        *(f"photos/{name}/{index}.jpg" for name in ("cat", "dog") for index in range(16)),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / path)
    for name in ("mine", "other", "digits", "relu"):
        recipe = Recipe(
            model=ModelConfig(name="castling_deit_pico", kwargs={"depth": 1, "patch_size": 8}),
            data=DataConfig(split=SplitConfig(subset=40), loader=LoaderConfig(batch_size=20)),
            epochs=1,
            seed=len(name),
        )
        train(recipe, folder / "runs" / name, progress=False)
    detector = Recipe(
        task=DetectionConfig(),
        model=ModelConfig(name="picodet_pico/esnet_pico"),
        data=DataConfig(
            source=DigitScenesConfig(canvas=64, images=20),
            transform=DetectionTransformConfig(image_size=64),
        ),
        epochs=1,
    )
    train(detector, folder / "runs" / "boxes", progress=False)
    segmenter = Recipe(
        task=SegmentationConfig(),
        model=ModelConfig(
            name="semantic_fpn_pico/castling_levit_pico", head={"strides": [8, 16, 32]}
        ),
        data=DataConfig(
            source=DigitScenesConfig(canvas=64, images=20, target="mask"),
            transform=SegmentationTransformConfig(image_size=64),
            loader=LoaderConfig(batch_size=10),
        ),
        epochs=1,
    )
    train(segmenter, folder / "runs" / "classes", progress=False)
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """A copy of its own: an export refuses to replace that of another test."""
    folder = shutil.copytree(place, tmp_path / "own")
    monkeypatch.chdir(folder)
    return folder


def substituted(code: str) -> str:
    for printed, run in SUBSTITUTIONS.items():
        code = code.replace(printed, run)
    return code


def test_the_fine_tuning_loop(here, capsys):
    code = blocks(README, "python")[0]
    assert all(printed in code for printed in SUBSTITUTIONS)
    values = {}
    exec(substituted(code), values)
    said = capsys.readouterr().out
    assert "exact" in said
    assert values["model"].training is False
    assert not castling.attention.auxiliaries(values["model"])
    assert (here / "model.onnx").is_file()
    assert values["done"] == pytest.approx(3 / 4)  # 2 epochs of 2 batches


def test_the_predictor(here, capsys):
    exec(blocks(README, "python")[1], {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["photo.jpg", "folder/of/photos/1.jpg"]


def test_the_python_of_the_first_hour(here, capsys):
    for code in blocks(FIRST_HOUR, "python"):
        exec(code, {})
    said = capsys.readouterr().out
    assert said.splitlines()[0] in {str(digit) for digit in range(10)}


@pytest.mark.parametrize("page", [README, FIRST_HOUR], ids=lambda page: page.name)
def test_the_commands(here, page, capsys):
    found = commands(page)
    assert {"evaluate", "predict", "export", "compare"} <= {words[0] for words in found}
    for words in found:
        assert castling_launcher.main(words) == 0, (words, capsys.readouterr().err)
