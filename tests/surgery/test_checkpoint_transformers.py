"""Names of Hugging Face's transformers; the mapping was checked against that library's outputs."""

from pathlib import Path

import pytest
import timm
import torch

import castling

NAMES = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks.0.norm1": "encoder.layer.0.layernorm_before",
    "blocks.0.norm2": "encoder.layer.0.layernorm_after",
    "blocks.0.mlp.fc1": "encoder.layer.0.intermediate.dense",
    "blocks.0.mlp.fc2": "encoder.layer.0.output.dense",
    "blocks.0.attn.proj": "encoder.layer.0.attention.output.dense",
    "norm": "layernorm",
}
VERSION_5 = {
    "blocks.0.norm1": "layers.0.layernorm_before",
    "blocks.0.norm2": "layers.0.layernorm_after",
    "blocks.0.mlp.fc1": "layers.0.mlp.fc1",
    "blocks.0.mlp.fc2": "layers.0.mlp.fc2",
    "blocks.0.attn.proj": "layers.0.attention.o_proj",
}
DINOV2 = {
    "blocks.0.norm1": "encoder.layer.0.norm1",
    "blocks.0.norm2": "encoder.layer.0.norm2",
    "blocks.0.mlp.fc1": "encoder.layer.0.mlp.fc1",
    "blocks.0.mlp.fc2": "encoder.layer.0.mlp.fc2",
    "blocks.0.ls1": "encoder.layer.0.layer_scale1",
    "blocks.0.ls2": "encoder.layer.0.layer_scale2",
}
PARTS = {
    "attention.attention.query": 0,
    "attention.attention.key": 1,
    "attention.attention.value": 2,
}


def theirs(state: dict, family: str, names: dict, layer: str, parts: dict) -> dict:
    """A state under their names, written down by hand."""
    result = {}
    for name, tensor in state.items():
        module, _, entry = name.rpartition(".")
        if name in NAMES:
            result[family + NAMES[name]] = tensor
        elif module == "blocks.0.attn.qkv":
            for part, index in parts.items():
                result[f"{family}{layer}.0.{part}.{entry}"] = tensor.chunk(3)[index]
        elif module.startswith("head"):
            heads = {"head": "classifier"}
            if "dist_token" in state:
                heads = {"head": "cls_classifier", "head_dist": "distillation_classifier"}
            result[f"{heads[module]}.{entry}"] = tensor
        else:
            entry = entry.replace("gamma", "lambda1")
            result[f"{family}{(NAMES | names)[module]}.{entry}"] = tensor
    return result


@pytest.mark.parametrize(
    ("name", "family", "names", "layer", "parts"),
    [
        ("deit_pico", "vit.", {}, "encoder.layer", PARTS),
        ("deit_pico", "", {}, "encoder.layer", PARTS),
        ("deit_tiny_distilled_patch16_224", "deit.", {}, "encoder.layer", PARTS),
        (
            "deit_pico",
            "vit.",
            VERSION_5,
            "layers",
            {f"attention.{part}_proj": index for index, part in enumerate("qkv")},
        ),
        ("dinov2", "dinov2.", DINOV2, "encoder.layer", PARTS),
    ],
    ids=["ViT", "without prefix", "DeiT", "version 5", "DINOv2"],
)
def test_names(
    tmp_path: Path, name: str, family: str, names: dict, layer: str, parts: dict
) -> None:
    options = {"depth": 1, "num_classes": 5}
    if name == "dinov2":
        name, options = "deit_pico", {"depth": 1, "num_classes": 0, "init_values": 0.5}
    source, target = (timm.create_model(name, **options).eval() for _ in range(2))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    state = theirs(source.state_dict(), family, names, layer, parts)
    if names is DINOV2:
        state["dinov2.embeddings.mask_token"] = torch.zeros(1, 64)
    torch.save(state, tmp_path / "weights.bin")
    report = castling.load_checkpoint(target, tmp_path / "weights.bin")
    assert "translated names of the transformers library" in report.notes
    for entry, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[entry]), entry


def test_a_part_of_the_queries_is_not_guessed(tmp_path: Path) -> None:
    source, target = (timm.create_model("deit_pico", depth=1) for _ in range(2))
    state = theirs(source.state_dict(), "vit.", {}, "encoder.layer", PARTS)
    del state["vit.encoder.layer.0.attention.attention.key.weight"]
    torch.save(state, tmp_path / "weights.bin")
    with pytest.raises(ValueError, match=r"missing in the file \(1\): blocks\.0\.attn\.qkv"):
        castling.load_checkpoint(target, tmp_path / "weights.bin")
