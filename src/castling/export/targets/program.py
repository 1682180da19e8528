"""PyTorch programs (``.pt2``): ``torch.export`` graphs that run without the model's source.

By default attention stays one operator of castling's, so that its fast kernels run; such a file
needs castling imported before ``torch.export.load``. A portable file holds basic operators only.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from castling.export.exported_model import ExportedModel
from castling.export.precision import Precision
from castling.export.target import Dynamic, ExportError, ExportJob, quiet_exporter, register_target
from castling.ops.backends import attention_backend
from castling.utils.files import parse_json
from castling.utils.text import first_line

#: File inside the archive that holds the metadata.
_METADATA = "castling.json"
#: Beside it, what was added later.
_FURTHER = "castling_further.json"


class ProgramTarget:
    """``torch.export`` to write and to open."""

    name = "program"
    suffix = ".pt2"
    beside: tuple[str, ...] = ()
    runtime = "torch.export"
    opset = False
    dynamics: tuple[Dynamic, ...] = ("all", "batch", "none")
    precisions: tuple[Precision, ...] = ("fp32",)
    writing: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    reducing: Mapping[Precision, tuple[str, ...]] = {}

    def write(self, job: ExportJob, path: Path) -> dict[str, Any]:
        """See ``Target.write``; the metadata says under ``portable`` whether castling is needed."""
        try:
            with quiet_exporter(), attention_backend("naive") if job.portable else nullcontext():
                program = torch.export.export(
                    job.model,
                    (job.images,),
                    dynamic_shapes=job.dynamic_shapes,
                    strict=False,
                    prefer_deferred_runtime_asserts_over_guards=True,
                )
        except Exception as error:
            raise ExportError(f"torch.export failed: {first_line(error)}") from error
        nodes = _nodes(program)
        ours = sorted(
            {name for node in nodes if (name := str(node.target)).startswith("castling.")}
        )
        if job.portable and ours:
            raise ExportError(f"the program still holds {', '.join(ours)}, it is not portable")
        program.example_inputs = None  # random images, which would only take space
        for node in nodes:
            node.meta.pop("stack_trace", None)  # holds paths of this machine
        metadata = {**job.metadata, "portable": json.dumps(not ours)}
        with quiet_exporter():
            torch.export.save(program, path, extra_files={_METADATA: json.dumps(metadata)})
        return {}

    def store(self, path: Path, key: str, text: str) -> None:
        """See ``Target.store``; one more file inside the archive, which is not written again."""
        with zipfile.ZipFile(path, "a") as archive:
            (metadata,) = (name for name in archive.namelist() if name.endswith(f"/{_METADATA}"))
            archive.writestr(metadata.replace(_METADATA, _FURTHER), json.dumps({key: text}))

    def open(self, path: Path, threads: int | None = None) -> ExportedModel:
        """See ``Target.open``; ``threads`` is left to ``torch.set_num_threads``."""
        return ProgramModel(path)


class ProgramModel(ExportedModel):
    """A program, on the device on which the model was exported.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        files = {_METADATA: "{}", _FURTHER: "{}"}
        try:
            with quiet_exporter():
                program = torch.export.load(path, extra_files=files)
                self._module = program.module()
        except Exception as error:
            raise ValueError(
                f"{path} is not a program that can be run: {first_line(error)}"
            ) from error
        metadata = parse_json(files[_METADATA]) | parse_json(files[_FURTHER])
        if "outputs" not in metadata:
            raise ValueError(f"{path} was not written by castling.export: it names no outputs")
        weight = next(iter(program.state_dict.values()), None)
        self.device = torch.device("cpu") if weight is None else weight.device
        super().__init__(
            path,
            ProgramTarget.name,
            metadata,
            _input_shape(program),
            parse_json(metadata["outputs"]),
            _least(program),
        )

    def _bind(self, images: Tensor) -> Callable[[], Any]:
        module, images, names = self._module, images.to(self.device), self.output_names

        def run() -> list[Tensor]:
            found = module(images)
            return [found[name] for name in names]

        return run


def _nodes(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    """All nodes, those of branches and loops included."""
    return [
        node
        for module in program.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
    ]


def _input_shape(program: torch.export.ExportedProgram) -> list[int | None]:
    return [side if isinstance(side, int) else None for side in _symbolic_shape(program)]


def _symbolic_shape(program: torch.export.ExportedProgram) -> Sequence[int | torch.SymInt]:
    """(batch, channels, height, width) of the input; what may change is a symbol."""
    (name,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.name == name)
    shape: torch.Size = node.meta["val"].shape
    return shape


def _least(program: torch.export.ExportedProgram) -> tuple[int, int]:
    """The least height and width; torch.export takes no map of features of one row or column.

    A bound of 2 is its way of saying that there is none.
    """
    sides = _symbolic_shape(program)[2:]
    bounds = [
        program.range_constraints.get(side.node.expr) if isinstance(side, torch.SymInt) else None
        for side in sides
    ]
    height, width = (1 if each is None or each.lower <= 2 else int(each.lower) for each in bounds)
    return height, width


register_target(ProgramTarget())
