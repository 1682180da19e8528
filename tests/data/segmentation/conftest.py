from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.data.segmentation.made import CLASSES, Save, labels, noise, save_numbers


@pytest.fixture
def masked(tmp_path: Path) -> Callable[..., Path]:
    """A sound folder: images/SPLIT/SPLITi.png and masks/SPLIT/SPLITi.png, with classes.txt."""

    def make(
        images: str = "images/{split}/{split}{i}.png",
        masks: str = "masks/{split}/{split}{i}.png",
        save: Save = save_numbers,
        counts: tuple[int, int] = (3, 2),
        named: bool = True,
    ) -> Path:
        root = tmp_path / "set"
        for number, split in enumerate(("train", "val")):
            for i in range(counts[number]):
                noise(root / images.format(split=split, i=i), 100 * number + i)
                save(root / masks.format(split=split, i=i), labels(100 * number + i))
        if named:
            (root / "classes.txt").write_text("\n".join(CLASSES))
        return root

    return make
