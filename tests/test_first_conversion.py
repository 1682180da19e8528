"""docs/first-conversion.md runs as it is printed, on a small model and for few images."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.conversion.pretrained_vit import transformers_vit

import castling
import castling_launcher

PAGE = Path(castling.__file__).parents[2] / "docs" / "first-conversion.md"
SHORT = ["--closed_form_images", "8", "--layer_views", "8", "--model_views", "8", "--held_out", "4"]

if not PAGE.is_file():
    pytest.skip("needs the sources", allow_module_level=True)


def blocks(language):
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands():
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            small = line.replace("vit_small_patch16_224", "deit_pico").replace(
                "size 224", "size 32"
            )
            yield shlex.split(small, comments=True)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The files that the page speaks of."""
    generator = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(24):
            pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{i}.png")
    torch.manual_seed(0)
    model = timm.create_model("deit_pico", num_classes=2)
    save_file(model.state_dict(), tmp_path / "my_vit.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def say_that_linear_is_faster(path):
    """How fast this machine is does not matter."""
    plan = json.loads(path.read_text())
    for layer in plan["layers"]:
        layer |= {"tokens": 100, "linear_ms": layer["softmax_ms"] / 2}
    path.write_text(json.dumps(plan))


def test_the_part_on_timm(here, capsys):
    for _, verb, *words in commands():
        more = {"convert": SHORT, "plan": ["--seconds", "0.1"]}.get(verb, [])
        if "int8" in words:
            pytest.importorskip("nncf")
            more = ["--min_agreement", "0", "--max_error", "1"]  # random weights are of one mind
        assert castling_launcher.main([verb, *words, *more]) == 0, capsys.readouterr().err
        if verb == "plan":
            say_that_linear_is_faster(here / "plan.json")
    assert (here / "explained" / "explain.html").is_file()
    assert json.loads((here / "mixed" / "conversion.json").read_text())["chosen"]["linear"]
    assert (here / "linear.onnx").is_file()


def test_the_part_on_hugging_face(here, capsys):
    transformers_vit(2).save_pretrained("my_hf_vit")
    (code,) = blocks("python")
    short = "ConversionConfig(closed_form_images=8, layer_views=8, model_views=8, "
    scope = {}
    exec(code.replace("ConversionConfig(", short), scope)
    assert "end to end" in capsys.readouterr().out
    values = scope["again"].state_dict()
    for name, value in scope["student"].state_dict().items():
        assert torch.equal(values[name], value)
    assert (here / "linear_hf.onnx").is_file()
    assert not (here / "my_hf_vit.ckpt").exists()  # the page deletes it
