"""The page beside a saved model: valid front matter, right values, nothing that breaks it."""

import dataclasses
from typing import Any

import yaml

from castling.models.model_card import SHOWN_CLASSES, render_model_card


@dataclasses.dataclass(frozen=True)
class Card:
    name: str = "castling_deit_pico"
    head: Any = None
    attention: dict[str, Any] | None = dataclasses.field(
        default_factory=lambda: {"name": "linear_angular", "local": "grid2d", "auxiliary": {}}
    )
    where: Any = None
    task: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "classification", "smoothing": 0.1}
    )
    classes: tuple[str, ...] = ("cat", "dog")
    preprocessing: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {
            "image_size": [32, 48],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "interpolation": "bicubic",
            "crop_fraction": None,
        }
    )
    switched: bool = False
    folded: bool = False
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    castling_version: str = "0.1.0"


CERTIFICATE = {
    "exact": False,
    "forced": False,
    "max_gap": 0.000123,
    "tolerance": 0.001,
    "images": 64,
}


def front_matter(page: str) -> dict[str, Any]:
    _, matter, _ = page.split("---\n", 2)
    return yaml.safe_load(matter)


def test_front_matter_is_what_the_hub_reads():
    page = render_model_card(
        Card(metrics={"val_top1": 91.0, "test_top1": 90.0, "val_loss": 0.3}),
        pipeline_tag="image-classification",
    )
    assert front_matter(page) == {
        "library_name": "castling",
        "pipeline_tag": "image-classification",
        "tags": ["castling", "vision-transformer", "timm", "classification", "linear_angular"],
        "metrics": ["loss", "top1"],
    }


def test_a_card_with_nothing_optional_names_no_metric_and_no_pipeline():
    matter = front_matter(render_model_card(Card(attention=None, task={}, classes=())))
    assert matter == {
        "library_name": "castling",
        "tags": ["castling", "vision-transformer", "timm"],
    }


def test_sizes_are_height_by_width():
    page = render_model_card(Card(), parameters=275_000, macs=14_300_000)
    assert "| image size (height × width) | 32 × 48 pixels |" in page
    assert "| parameters | 275,000 |" in page
    assert "| multiply-accumulates of one image | 0.014 G |" in page
    assert "| classes | 2: cat, dog |" in page
    assert "0.25, 0.25, 0.25" in page
    assert "crop fraction" not in page


def test_one_number_is_a_square():
    page = render_model_card(Card(preprocessing={"image_size": 224}))
    assert "224 × 224 pixels" in page


def test_metrics_stand_by_split_and_measure():
    page = render_model_card(
        Card(metrics={"val_top1": 91.234, "val_loss": 0.3, "test_top1": 90.0}),
        percentages=frozenset({"top1"}),
    )
    assert "| split | top1 | loss |" in page
    assert "| validation | 91.23 % | 0.3 |" in page
    assert "| test | 90.00 % |  |" in page


def test_the_certificate_says_how_the_switch_went():
    card = Card(switched=True)
    within = render_model_card(card, certificate=CERTIFICATE)
    assert "within tolerance. On 64 calibration images" in within
    assert "at most 0.00012 of their size (tolerance 0.001)" in within
    assert "exact" in render_model_card(card, certificate={**CERTIFICATE, "exact": True})
    assert "forced" in render_model_card(card, certificate={**CERTIFICATE, "forced": True})
    assert "## Switch" in render_model_card(card)
    assert "## Switch" not in render_model_card(Card())


def test_a_switched_model_shows_no_auxiliary_option():
    assert '"auxiliary"' in render_model_card(Card())
    switched = render_model_card(Card(switched=True))
    assert '"auxiliary"' not in switched
    assert '"local": "grid2d"' in switched


def test_only_some_of_many_classes_are_named():
    names = tuple(f"class{index}" for index in range(1000))
    page = render_model_card(Card(classes=names))
    assert f"1000: class0, class1, {', '.join(names[2:SHOWN_CLASSES])}, …" in page
    assert f"class{SHOWN_CLASSES}," not in page


def test_class_names_cannot_break_the_page():
    page = render_model_card(Card(classes=("a|b", "<img>", "line\nbreak", "`x`")))
    row = next(line for line in page.splitlines() if line.startswith("| classes"))
    assert row == r"| classes | 4: a\|b, \<img\>, line break, \`x\` |"


def test_commands_name_the_folder():
    page = render_model_card(Card(), folder="runs/my model")
    assert 'castling.Predictor("runs/my model")' in page
    assert "castling evaluate 'runs/my model'" in page
    assert "castling predict runs/mine photo.jpg" in render_model_card(Card(), folder="runs/mine")
