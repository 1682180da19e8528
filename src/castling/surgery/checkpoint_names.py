"""From the names in other projects' files to the names in our models.

Each translation looks only at names, leaves files of other origin alone, and adds a note of what it
did.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from torch import Tensor, strided

from castling.surgery.checkpoint_transformers import from_transformers

State = dict[str, Tensor]

# EfficientViT and QT-ViT as their authors name them -> timm's efficientvit_mit.
_MIT_HEAD = {
    "head.op_list.0": "head.in_conv",
    "head.op_list.2.linear": "head.classifier.0",
    "head.op_list.2.norm": "head.classifier.1",
    "head.op_list.3.linear": "head.classifier.4",
}
_CAS_DENSE_NORM = re.compile(r"norm[0246]\.")
_CAS_HEAD = re.compile(r"(?:norm|head|dist_head)\.")


def translate(
    state: Mapping[str, Tensor], names: Container[str], has_classifier: bool
) -> tuple[State, list[str]]:
    """Rename entries of other projects, and add or drop optional ones.

    Args:
        state: weights as the file names them, without prefixes.
        names: of the model's state, without what it may be wrapped in.
        has_classifier: whether the model classifies.

    Returns:
        weights under the model's names, and notes.
    """
    notes: list[str] = []
    result = _from_mit(dict(state), notes)
    result = from_transformers(result, notes)
    result = _scalar_of_kernel(result, names)
    if any(".local_perception." in name or ".oper_q." in name for name in result):
        result = _fit_cas_vit(result, names, has_classifier, notes)
    return result, notes


def _from_mit(state: State, notes: list[str]) -> State:
    """``input_stem``, ``stages`` and ``op_list`` of the MIT and QT-ViT code, B and L networks."""
    if not any(".op_list." in name for name in state):
        return state
    notes.append("translated names of the authors' EfficientViT code")
    bare = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    has_stem = any(name.startswith("input_stem.") for name in bare)
    return {_mit_name(name, has_stem): tensor for name, tensor in bare.items()}


def _mit_name(name: str, has_stem: bool) -> str:
    for theirs, ours in _MIT_HEAD.items():
        if name.startswith(theirs + "."):
            return ours + name.removeprefix(theirs)
    if not has_stem:  # the L networks count their stem as stage 0
        name = re.sub(r"^stages\.0\.", "input_stem.", name)
    stem = re.match(r"input_stem\.op_list\.(\d+)\.(.*)", name)
    if stem:
        index, rest = int(stem[1]), stem[2]
        return f"stem.res{index - 1}.{rest}" if index else f"stem.in_conv.{rest}"
    stage = re.match(r"stages\.(\d+)\.op_list\.(\d+)\.(.*)", name)
    if stage:
        return f"stages.{int(stage[1]) - (not has_stem)}.blocks.{stage[2]}.{stage[3]}"
    return name


def _scalar_of_kernel(state: State, names: Container[str]) -> State:
    """QT-ViT's learned scalar belongs to the kernel here."""
    theirs, ours = "ones_scale1", "kernel.ones_scale1"
    return {
        f"{name.removesuffix(theirs)}{ours}"
        if name.endswith(theirs) and f"{name.removesuffix(theirs)}{ours}" in names
        else name: tensor
        for name, tensor in state.items()
    }


def _fit_cas_vit(
    state: State, names: Container[str], has_classifier: bool, notes: list[str]
) -> State:
    """CAS-ViT: the distillation head and the norms of dense tasks are optional."""
    heads = {f"head.{part}": f"dist_head.{part}" for part in ("weight", "bias")}
    complete = heads.keys() <= state.keys()
    theirs = state.keys() & set(heads.values())
    ours = [name for name in heads.values() if name in names]
    pairs = [(state[head], state[name]) for head, name in heads.items() if {head, name} <= {*state}]
    if has_classifier and not ours and len(pairs) == len(heads) and all(map(_alike, pairs)):
        for head, name in heads.items():
            state[head] = (state[head].double() + state.pop(name).double()) / 2
        notes.append("averaged head and dist_head, which the authors do with their logits")
    elif ours and not theirs and complete:
        for head, name in heads.items():
            state[name] = state[head].clone()
        notes.append("the file has no dist_head: it starts as a copy of head")
    for pattern, what in ((_CAS_DENSE_NORM, "norms of dense tasks"), (_CAS_HEAD, "classifier")):
        if what == "classifier" and has_classifier:
            continue
        unused = [n for n in state if pattern.match(n) and n not in names]
        if unused:
            notes.append(f"ignored the file's {what}, which this model does not have")
            state = {name: tensor for name, tensor in state.items() if name not in unused}
    return state


def _alike(pair: tuple[Tensor, Tensor]) -> bool:
    """Whether both can be averaged; what cannot is left, to be refused by its name."""
    plain = all(t.is_floating_point() and t.layout is strided and not t.is_meta for t in pair)
    return plain and pair[0].shape == pair[1].shape


def may_be_missing(name: str) -> bool:
    """Whether a file may lack this entry: counters, and CAS-ViT's norms of dense tasks."""
    return name.endswith("num_batches_tracked") or bool(_CAS_DENSE_NORM.match(name))
