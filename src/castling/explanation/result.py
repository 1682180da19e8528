"""What :func:`castling.explain` returns."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from castling.explanation.records import ModelExplanation
from castling.explanation.text import model_lines
from castling.utils.files import refuse_existing, replacing_together

#: Names of the files that :meth:`Explanation.save` writes.
PAGE, FIGURES = "explain.html", "explain.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """A model on some images, and its teacher beside it.

    Attributes:
        model: what was asked about.
        teacher: the same of the teacher; None without one.
        pictures: the images, (n, 3, H, W) of uint8, as the page shows them.
    """

    model: ModelExplanation
    teacher: ModelExplanation | None
    pictures: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Figures as plain values for JSON."""
        values = {
            "image_size": list(self.pictures.shape[-2:]),
            "model": self.model.to_dict(),
            "teacher": None if self.teacher is None else self.teacher.to_dict(),
        }
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write ``explain.html`` and ``explain.json``, both or neither.

        Args:
            folder: made if missing.
            overwrite: replace what an earlier explanation wrote there.

        Returns:
            The page's path.

        Raises:
            FileExistsError: one of them is there, and ``overwrite`` is False.
        """
        from castling.explanation.page import page_of  # draws with matplotlib

        folder = Path(folder)
        refuse_existing((folder / PAGE, folder / FIGURES), overwrite)
        page = page_of(self.model, self.teacher, self.pictures).html()
        figures = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        with replacing_together(folder) as temporary:
            (temporary / PAGE).write_text(page, encoding="utf-8")
            (temporary / FIGURES).write_text(figures, encoding="utf-8")
        return folder / PAGE

    def __str__(self) -> str:
        """A table of the layers, the teacher's below."""
        models = [self.model, *([self.teacher] if self.teacher else [])]
        return "\n\n".join("\n".join(model_lines(each)) for each in models)
