"""Sizes in an ONNX graph, so that shape inference of other tools follows them.

PyTorch's exporter computes the size of every reshaped map from the size of the image, with its own
algebra: ((h − 1)//2)//2 is (h − 1)//4 to it. ONNX Runtime's symbolic shape inference, the first
step of its quantisation, follows convolutions one by one, does not see that both are equal, and
gives up. Here sizes are read off tensors that have them instead. The results stay the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: Operators that take sizes as values: type -> index of that input.
_SIZED = {"Reshape": 1, "Expand": 1, "Resize": 3}
_SHAPE = "onnx::size_"

_Dimensions = list[int | str]


def read_sizes_off_tensors(proto: Any) -> None:
    """Rewrite the sizes of ``Reshape``, ``Expand`` and ``Resize`` in place.

    Args:
        proto: an ``onnx.ModelProto`` whose ``value_info`` holds the exporter's symbolic shapes;
            nodes whose shapes it does not tell stay as they are.
    """
    graph = proto.graph
    shapes = {
        value.name: _dimensions(value) for value in (*graph.value_info, *graph.input, *graph.output)
    }
    writer = _Writer()
    writer.learn((value.name for value in graph.input), shapes)
    for node in graph.node:
        index = _SIZED.get(node.op_type)
        if index is not None and len(node.input) > index and node.input[index]:
            sizes = writer.sizes(node, node.input[index], shapes)
            if sizes is not None:
                node.input[index] = sizes
        writer.nodes.append(node)
        # Of what was cut twice, as in LeViT, OpenVINO 2026.4 gives the shape before the cuts.
        if node.op_type != "Slice":
            writer.learn(node.output, shapes)
    nodes = _reachable(writer.nodes, {output.name for output in graph.output})
    read = {name for node in nodes for name in node.input}
    weights = [w for w in (*graph.initializer, *writer.constants) if w.name in read]
    # Protocol buffers copy what they are given, so the lists are made before fields are cleared.
    graph.ClearField("node")
    graph.ClearField("initializer")
    graph.node.extend(nodes)
    graph.initializer.extend(weights)


class _Writer:
    """Builds the new list of nodes.

    Attributes:
        nodes: so far, in order.
        constants: new initialisers.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._sources: dict[str, tuple[str, int]] = {}
        self._read: dict[str, str] = {}
        self._names: dict[tuple[int, ...], str] = {}

    def learn(self, names: Any, shapes: dict[str, _Dimensions]) -> None:
        """The first tensor that has a symbolic dimension is where it will be read off."""
        for name in names:
            for axis, dimension in enumerate(shapes.get(name, ())):
                if isinstance(dimension, str) and dimension and dimension not in self._sources:
                    self._sources[dimension] = (name, axis)

    def sizes(self, node: Any, old: str, shapes: dict[str, _Dimensions]) -> str | None:
        """The name of a vector with the output's dimensions, or None to keep the old one."""
        dimensions = shapes.get(node.output[0])
        if dimensions is None or "" in dimensions:
            return None
        if not any(dimension in self._sources for dimension in dimensions):
            return None
        if shapes.get(old) != [len(dimensions)]:
            return None
        parts = []
        for axis, dimension in enumerate(dimensions):
            if isinstance(dimension, int):
                parts.append(self._constant(dimension))
            elif dimension in self._sources:
                parts.append(self._off_tensor(dimension))
            else:  # met here for the first time: as the exporter computes it
                parts.append(self._gather(old, axis, f"{node.output[0]}_{axis}"))
        return self._add("Concat", parts, f"{node.output[0]}_sizes", axis=0)

    def _off_tensor(self, dimension: str) -> str:
        if dimension not in self._read:
            source, axis = self._sources[dimension]
            label = str(len(self._read))
            shape = self._add("Shape", [source], f"of_{label}")
            self._read[dimension] = self._gather(shape, axis, label)
        return self._read[dimension]

    def _gather(self, vector: str, index: int, label: str) -> str:
        return self._add("Gather", [vector, self._constant(index)], label, axis=0)

    def _add(self, operator: str, inputs: list[str], label: str, **attributes: Any) -> str:
        from onnx import helper

        name = _SHAPE + label
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def _constant(self, *values: int) -> str:
        from onnx import numpy_helper

        if values not in self._names:
            self._names[values] = f"{_SHAPE}constant_{'_'.join(map(str, values))}"
            array = np.asarray(values, dtype=np.int64)
            self.constants.append(numpy_helper.from_array(array, self._names[values]))
        return self._names[values]


def _dimensions(value: Any) -> _Dimensions:
    """A number or a symbol for each dimension; the empty symbol where nothing is said."""
    dimensions = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in dimensions]


def _reachable(nodes: list[Any], wanted: set[str]) -> list[Any]:
    """The nodes that ``wanted`` depends on, in order; those with inner graphs keep all."""
    if any(attribute.g.node for node in nodes for attribute in node.attribute):
        return nodes
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
