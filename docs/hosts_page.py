"""The page of models whose attention can be replaced, from what timm_hosts.py wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from performance_tables import read, table

from castling.surgery.hosts.functional import PROVED

_INTRODUCTION = """\
# Models that can be converted

`castling.linearize_(model, attention)` replaces the softmax attention of a model that exists, and
keeps its weights. Softmax as the new attention gives the model's own outputs back to 1e-5: that was
measured for every class below that is converted; `castling.linearize_(model, "softmax")` shows it
on yours.

```python
import castling, timm

model = timm.create_model("vit_small_patch16_dinov3", num_classes=0)
report = castling.linearize_(model, castling.LinearAngular(local="grid2d"))
print(report)  # what was replaced; what was left, and why
```

- **Rotary positions** (EVA-02, DINOv3, Perception Encoder): queries and keys are turned before the
  feature map, where softmax saw them turned. Scores of angular and Taylor attention then depend on
  distances alone, as softmax's do; those of ReLU, ELU and Hedgehog also on places.
- **Score biases** (BEiT, relative positions) cannot enter a linear kernel. The auxiliary branch
  uses them until the switch, which casts timm's tables away. Until then, and in Hugging Face's BEiT
  always, the host computes them for all pairs of tokens: memory stays quadratic.
- **Masks** may exclude keys, the same ones for all queries. Causal masks and shifted windows are
  refused.
- **Pooling heads** have one query for all tokens: linear already, and left.
- **Windows** of 49 tokens gain nothing from linear attention, whatever the size of the image: left,
  unless `where` names the layer.
- **A class that no adapter knows** is converted if its `forward` calls
  `torch.nn.functional.scaled_dot_product_attention` and `where` names the layer, or several:
  `linearize_(model, "relu_linear", where=["body.0.attn", "body.1.attn"])`. The grid is not known
  there: use `local="none"`. Other classes need [one file](extend/host.md).

## Hugging Face transformers

```python
import castling, transformers

model = transformers.AutoModel.from_pretrained("facebook/dinov2-with-registers-small")
castling.linearize_(model, castling.LinearAngular(local="grid2d"))
model.save_pretrained("linear")  # castling.safetensors and config.json
model = castling.load_transformers("linear")
```

"""
_SAVED = """
A converted model's `save_pretrained` writes a folder that `castling.load_transformers` opens, as
the class it was. `from_pretrained` refuses it: it would build softmax attention and fill it with
the weights of another. Parts of a converted model are saved as what they are, too. A part that was
converted alone says nothing to the model around it: convert the whole model that you save.
`output_attentions` returns none of converted layers. Text towers (CLIP, SigLIP) are left as they
are.

"""


def hosts_page(results: Path) -> str:
    """Introduction, transformers, and every family of timm."""
    study = read(results / "timm_hosts.json")
    lines = [_INTRODUCTION]
    lines += ["Converted wherever they stand in a model of images:\n\n"]
    lines += [f"- `{name}`\n" for name in PROVED if name.startswith("transformers.")]
    lines += [_SAVED]
    lines += [
        "## timm, family by family\n\n",
        f"timm {study['timm']}: {study['looked_at']} models, of which {len(study['models'])} hold "
        "something that is called attention. Tokens are those that one call sees at the default "
        "size of the image: a linear attention gains where there are many. *Off by* is the largest "
        "difference of any feature, in parts of the largest one, when softmax replaces softmax in "
        "the smallest model of that class: random weights, seed 0, double precision on a CPU. By "
        f"`{study['command']}`.\n\n",
        *(f"{line}\n" for line in _families(study)),
    ]
    return "".join(lines)


def _families(study: Mapping[str, Any]) -> Iterable[str]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for model in study["models"].values():
        for kind, attention in model["attentions"].items():
            row = rows.setdefault(
                (model["family"], kind),
                {"models": 0, "tokens": set(), "fate": attention["fate"], "why": attention["why"]},
            )
            row["models"] += 1
            row["tokens"] |= set(attention["tokens"])
    order = {"converted": 0, "by name": 1, "left": 2}
    cells = (
        [
            family,
            f"`{kind.removeprefix('timm.')}`",
            str(row["models"]),
            _span(row["tokens"]),
            {"converted": "yes", "by name": "by name", "left": "no"}[row["fate"]],
            _off(study["checked"].get(kind)) if row["fate"] != "left" else "",
            _why(row["why"], kind),
        ]
        for (family, kind), row in sorted(
            rows.items(), key=lambda item: (order[item[1]["fate"]], item[0])
        )
    )
    return table(["family", "class", "models", "tokens", "converted", "off by", "why not"], cells)


def _span(tokens: set[int]) -> str:
    if not tokens:
        return "–"
    few, many = min(tokens), max(tokens)
    return f"{few:,}" if few == many else f"{few:,}–{many:,}"


def _off(checked: Mapping[str, Any] | None) -> str:
    if checked is None:
        return "–"
    return "refused" if "refused" in checked else f"{checked['difference']:.0e}"


def _why(why: str, kind: str) -> str:
    if why.startswith(f"{kind} attends within windows"):
        return "windows"
    short = why.removeprefix(f"{kind} is ").partition("; ")[0]
    return short.replace(f"no adapter for {kind}", "no adapter")
