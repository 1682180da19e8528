"""What became of a file's weights: the report of a load, and the message of a refused one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from typing import Any

from timm.models import is_model
from torch import Tensor

from castling.surgery.checkpoint_values import some

State = dict[str, Tensor]
#: Widths and depths of timm's plain vision transformers, as their names call them.
_SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large"}


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What :func:`castling.load_checkpoint` did.

    Attributes:
        path: the file.
        source: the key in the file under which the weights stood, "" at the top.
        loaded: number of entries filled.
        missing: entries of the model that the file lacks; they kept their values. Those of ``new``
            are not among them.
        unexpected: entries of the file that the model lacks.
        kept_head: entries of the classifier that kept their values: the file has other classes, or
            no classifier.
        notes: names that were translated, prefixes that were stripped, whatever else to know.
        resized: entries made for another image or patch size, and resized.
        new: entries of the model's attention that the file's has not; they keep their values.
        others: keys of further weights in the file that would fill as much of the model.
    """

    path: str
    source: str
    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    kept_head: tuple[str, ...]
    notes: tuple[str, ...]
    resized: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def __str__(self) -> str:
        source = f", {self.source}" if self.source else ""
        lines = [f"weights: {self.loaded} entries of {self.path}{source}"]
        for what, names in (
            ("new classifier, not from the file", self.kept_head),
            ("new in this attention, not in the file", self.new),
            ("not in the file, left as they were", self.missing),
            ("in the file, not used", self.unexpected),
            ("also in the file, not used", self.others),
        ):
            if names:
                lines.append(f"  {what}: {_few(names)}")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def _few(names: tuple[str, ...]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Misfit:
    """How a file's weights and a model differ.

    Attributes:
        state: of the file, by the model's names.
        own: of the model.
        missing: in the file.
        unexpected: in the file.
        shapes: names of entries of other shapes.
        heads: names of the classifier's entries.
        switch: names of entries that a switch removes.
        attention: names of entries that a conversion adds.
        unknown_grid: why a position table could not be resized.
    """

    state: State
    own: State
    missing: list[str]
    unexpected: list[str]
    shapes: list[str]
    heads: Collection[str]
    switch: Collection[str]
    attention: Collection[str]
    unknown_grid: str = ""

    def message(self, path: object) -> str:
        """What differs, the likely reason, and what to do."""
        lines = [f"{path} does not fit the model, which is unchanged"]
        theirs, ours = describe_vit(self.state), describe_vit(self.own)
        if theirs and theirs != ours:
            lines.append(f"the file holds {theirs}{f'; the model is {ours}' if ours else ''}")
        if self.shapes:
            pairs = [
                f"{n} {tuple(self.state[n].shape)} for {tuple(self.own[n].shape)}"
                for n in self.shapes
            ]
            lines.append(f"shapes ({len(self.shapes)}): {some(pairs)}")
        if self.missing:
            lines.append(f"missing in the file ({len(self.missing)}): {some(self.missing)}")
        if self.unexpected:
            lines.append(f"unknown to the model ({len(self.unexpected)}): {some(self.unexpected)}")
        if self.unknown_grid and not self.missing and not self.unexpected:
            lines.append(self.unknown_grid)
        else:
            lines.append(self._hint())
        return "\n".join(lines)

    def _hint(self) -> str:
        shapes, missing, unexpected = self.shapes, self.missing, self.unexpected
        if shapes and set(shapes) <= set(self.heads):
            classes = self.state[shapes[0]].shape[0]
            return (
                f"The file classifies {classes} classes: create the model with "
                f"num_classes={classes}, or pass allow_head_mismatch=True to keep the model's own "
                "classifier"
            )
        if not shapes and not unexpected and missing and set(missing) <= set(self.attention):
            return (
                "The file's attention has fewer parameters, as softmax has: pass "
                "allow_new_attention=True to start the others afresh"
            )
        if any(name in self.switch or ".auxiliary." in name for name in missing + unexpected):
            return (
                "One of them was switched, the other was not: castling.switch_ the same way first"
            )
        if not missing and not shapes and all(".attn." in n or ".main." in n for n in unexpected):
            return (
                "The file's attention has parameters that the model's has not: build the model "
                "with the attention that the file was trained with"
            )
        if any(re.search(r"(^|\.)(head_dist\.|dist_token$)", n) for n in missing + unexpected):
            return "One of them is distilled, with a second head, and the other is not"
        norms = [name for name in missing if name.endswith("running_var")]
        if norms and len(norms) * 2 <= len(missing) and len(missing) * 2 <= len(self.own):
            return "The file may come from a folded model: call castling.fold_(model.eval()) first"
        if shapes:
            return "The file comes from a model of another size or with other options"
        if len(missing) > len(unexpected) == 0:
            return "The file holds a part of this model: strict=False loads that part"
        return "The file comes from another kind of model or from one with other options"


def describe_vit(state: State) -> str:
    """``"a ViT of width 384, depth 12, patch 16 (vit_small_patch16_224)"``, read off its weights.

    Empty where the weights are not those of a plain ViT.
    """
    patches, norm = state.get("patch_embed.proj.weight"), state.get("blocks.0.attn.proj.weight")
    if patches is None or norm is None or patches.dim() != 4:
        return ""
    depth = 1 + max(int(m[1]) for n in state if (m := re.match(r"blocks\.(\d+)\.", n)))
    width, patch = patches.shape[0], patches.shape[-1]
    kind = "deit" if "dist_token" in state else "vit"
    distilled = "_distilled" if kind == "deit" else ""
    name = f"{kind}_{_SIZES.get((width, depth), '?')}{distilled}_patch{patch}_224"
    known = f" ({name})" if is_model(name) else ""
    return f"a ViT of width {width}, depth {depth}, patch {patch}{known}"
