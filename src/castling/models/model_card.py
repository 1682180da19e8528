"""The page beside a saved model: ``README.md`` in the form that the Hugging Face hub reads.

Notable:
- a pure function of the card and a few facts: no file is read or written here;
- the YAML in front of the page names no licence: the data decides that, not this library;
- values that a user chose (class names, paths) are quoted, so that they cannot break the page.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

README = "README.md"
#: Beyond this many classes the page says how many there are and names the first.
SHOWN_CLASSES = 20
_SPLITS = {"val": "validation", "test": "test", "train": "training"}


class CardLike(Protocol):
    """The fields of a saved model's card that the page shows; see ``castling.models.card``."""

    @property
    def name(self) -> str:
        """Of the architecture."""
        ...

    @property
    def head(self) -> Mapping[str, Any] | None:
        """Name and options of a dense model's head; None for whole models."""
        ...

    @property
    def attention(self) -> Mapping[str, Any] | None:
        """Name and options; None keeps the architecture's own."""
        ...

    @property
    def where(self) -> Sequence[str] | Mapping[str, Any] | None:
        """Layers converted, or a plan; None means all."""
        ...

    @property
    def task(self) -> Mapping[str, Any]:
        """Name and options."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Names in the order of the outputs."""
        ...

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """Image size, normalisation, resizing."""
        ...

    @property
    def switched(self) -> bool:
        """Whether the auxiliary branches were removed."""
        ...

    @property
    def folded(self) -> bool:
        """Whether ``fold_`` has rewritten the model."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """Results, such as ``{"val_top1": 91.2}``."""
        ...

    @property
    def castling_version(self) -> str:
        """That wrote the model."""
        ...


def render_model_card(
    card: CardLike,
    *,
    folder: str = "",
    pipeline_tag: str = "",
    parameters: int | None = None,
    macs: int | None = None,
    certificate: Mapping[str, Any] | None = None,
    percentages: frozenset[str] = frozenset(),
) -> str:
    """The page of a saved model, in Markdown.

    Args:
        card: of the model.
        folder: where the model lies, for the commands of the page; empty writes ``MODEL``.
        pipeline_tag: the hub's name of the task, such as ``"image-classification"``.
        parameters: number of parameters; None leaves the line out.
        macs: multiply-accumulates of one image; None leaves the line out.
        certificate: ``SwitchReport.to_dict()`` of the switch, for a switched model.
        percentages: metrics, without their split, that are percentages.

    Returns:
        YAML front matter and the page, ending with a newline.
    """
    parts = [
        _front_matter(card, pipeline_tag),
        f"# {card.name}\n",
        _introduction(card),
        _facts(card, parameters, macs),
        _attention(card),
        _switch(card, certificate),
        _metrics(card.metrics, percentages),
        _usage(folder or "MODEL"),
        f"Written by castling {card.castling_version}.\n",
    ]
    return "\n".join(part for part in parts if part)


def _task_name(card: CardLike) -> str:
    return str(card.task.get("name", ""))


def _front_matter(card: CardLike, pipeline_tag: str) -> str:
    named = [_task_name(card), str((card.attention or {}).get("name", ""))]
    tags = ["castling", "vision-transformer", "timm", *(name for name in named if name)]
    lines = ["---", "library_name: castling"]
    if pipeline_tag:
        lines.append(f"pipeline_tag: {_quoted(pipeline_tag)}")
    lines += ["tags:", *(f"- {_quoted(tag)}" for tag in tags)]
    measures = sorted({_measure(name)[1] for name in card.metrics})
    if measures:
        lines += ["metrics:", *(f"- {_quoted(name)}" for name in measures)]
    return "\n".join([*lines, "---\n"])


def _introduction(card: CardLike) -> str:
    task = _task_name(card)
    purpose = f" for {task}" if task else ""
    what = f"A vision model{purpose}, trained with castling."
    if card.folded:
        what += " Batch normalisations are folded into their neighbours (`castling.fold_`)."
    return what + "\n"


def _facts(card: CardLike, parameters: int | None, macs: int | None) -> str:
    rows = [("architecture", f"`{card.name}`")]
    if card.head is not None:
        options = {key: value for key, value in card.head.items() if key != "name"}
        rows.append(("options of its head", _cell(json.dumps(options)[1:-1].replace('"', ""))))
    if parameters is not None:
        rows.append(("parameters", f"{parameters:,}"))
    if macs is not None:
        rows.append(("multiply-accumulates of one image", f"{macs / 1e9:.3f} G"))
    if card.classes:
        shown = ", ".join(_cell(name) for name in card.classes[:SHOWN_CLASSES])
        more = ", …" if len(card.classes) > SHOWN_CLASSES else ""
        rows.append(("classes", f"{len(card.classes)}: {shown}{more}"))
    size = card.preprocessing.get("image_size")
    if size is not None:
        height, width = size if isinstance(size, Sequence) else (size, size)
        rows.append(("image size (height × width)", f"{height} × {width} pixels"))
    for key, text in (("mean", "subtracted mean"), ("std", "divided standard deviation")):
        if card.preprocessing.get(key) is not None:
            values = ", ".join(f"{value:g}" for value in card.preprocessing[key])
            rows.append((f"{text}, of pixels in [0, 1]", values))
    for key in sorted(set(card.preprocessing) - {"image_size", "mean", "std", "name"}):
        if card.preprocessing[key] is not None:
            rows.append((key.replace("_", " "), _cell(str(card.preprocessing[key]))))
    return _table(("what", "value"), rows)


def _attention(card: CardLike) -> str:
    if card.attention is None:
        return "## Attention\n\nThat of the named architecture, unchanged.\n"
    options = {key: value for key, value in card.attention.items() if key != "name"}
    if card.switched:
        options.pop("auxiliary", None)
    text = f"## Attention\n\n`{card.attention.get('name')}`"
    if card.where is not None:
        layers = card.where
        text += f", in {len(layers)} chosen layer{'s' if len(layers) != 1 else ''}"
    text += ", with these options:\n\n" if options else ".\n"
    return text + (f"```json\n{json.dumps(options, indent=2)}\n```\n" if options else "")


def _switch(card: CardLike, certificate: Mapping[str, Any] | None) -> str:
    if not card.switched:
        return ""
    text = "The auxiliary softmax branches of training were removed"
    if certificate is None:
        return f"## Switch\n\n{text}.\n"
    kind = "within tolerance"
    if certificate["exact"]:
        kind = "exact: every mask was empty"
    elif certificate["forced"]:
        kind = "**forced: the tolerance was exceeded**"
    images = certificate["images"]
    return (
        f"## Switch\n\n{text}; {kind}. On {images} calibration image{'s' if images != 1 else ''} "
        f"the outputs changed by at most {certificate['max_gap']:.2g} of their size (tolerance "
        f"{certificate['tolerance']:g}); `certificate.json` has every layer.\n"
    )


def _metrics(metrics: Mapping[str, float], percentages: frozenset[str]) -> str:
    if not metrics:
        return ""
    measures = list(dict.fromkeys(_measure(name)[1] for name in metrics))
    splits = list(dict.fromkeys(_measure(name)[0] for name in metrics))
    rows = []
    for split in splits:
        cells = []
        for measure in measures:
            value = metrics.get(f"{split}_{measure}" if split else measure)
            if value is None:
                cells.append("")
            else:
                cells.append(f"{value:.2f} %" if measure in percentages else f"{value:.4g}")
        rows.append((_SPLITS.get(split, split), *cells))
    return "## Metrics\n\n" + _table(("split", *measures), rows)


def _usage(folder: str) -> str:
    path = shlex.quote(folder)
    return (
        "## Use\n\n"
        "```python\n"
        "import castling\n\n"
        f"predictor = castling.Predictor({json.dumps(folder, ensure_ascii=False)})\n"
        'predictions = predictor(["photo.jpg"])\n'
        "```\n\n"
        "```bash\n"
        f"castling predict {path} photo.jpg\n"
        f"castling evaluate {path}\n"
        f"castling export {path} model.onnx\n"
        "```\n"
    )


def _measure(name: str) -> tuple[str, str]:
    """(split, measure) of a metric such as ``val_top1``; an empty split where none is named."""
    split, _, measure = name.partition("_")
    return (split, measure) if split in _SPLITS and measure else ("", name)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    """Text that stays within one cell of a table and is no markup."""
    for mark in "\\|`*_<>[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _quoted(text: object) -> str:
    """A YAML scalar: JSON strings are YAML strings."""
    return json.dumps(str(text), ensure_ascii=False)
