"""The live display: a bar that fits any width, plain lines in a file."""

import pytest

from castling.data import DataConfig, LoaderConfig, SplitConfig
from castling.train import ModelConfig, Recipe, train
from castling.train.callbacks import Progress
from castling.train.callbacks.progress import bar_text

FIGURES = ["loss 12.3456", "lr 1.00e-03", "12345 images/s"]


@pytest.mark.parametrize("width", [200, 80, 79, 70, 60, 50, 40, 30, 20, 10, 1])
def test_the_bar_fits(width):
    text = bar_text("epoch 100/300", 1234, 5004, FIGURES, width)
    assert len(text) <= width
    assert text.startswith("epoch 100/300"[:width])
    assert ("1234/5004" in text) == (width >= 23)
    for figure, least in zip(FIGURES, (42, 55, 71), strict=True):
        assert (figure in text) == (width >= least), (figure, width)


def test_the_bar_shows_the_share():
    text = bar_text("epoch 1/2", 25, 100, [], 80)
    assert text.count("█") == 6
    assert text.count("░") == 18
    assert bar_text("epoch 1/2", 100, 100, [], 80).count("░") == 0


def test_a_file_gets_lines_now_and_then(tmp_path, capsys):
    recipe = Recipe(
        model=ModelConfig(name="castling_deit_pico", kwargs={"depth": 1, "patch_size": 8}),
        data=DataConfig(split=SplitConfig(subset=80), loader=LoaderConfig(batch_size=20)),
        epochs=2,
    )
    watch = Progress(tmp_path, line_seconds=0.0)
    train(recipe, tmp_path / "often", progress=False, callbacks=[watch])
    lines = capsys.readouterr().err.splitlines()
    within = [line for line in lines if "batch" in line]
    assert [line.split("  ")[:2] for line in within] == [
        [f"epoch {epoch}/2", f"batch {batch}/4"] for epoch in (1, 2) for batch in (1, 2, 3, 4)
    ]
    train(recipe, tmp_path / "rarely")
    lines = capsys.readouterr().err.splitlines()
    assert not [line for line in lines if "batch" in line]
    assert len([line for line in lines if line.startswith("epoch")]) == 2
