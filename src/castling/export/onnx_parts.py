"""Parts of an ONNX graph that differ in what precision they bear.

PyTorch's exporter writes into every node which module it comes from: that is how the nodes of an
attention are found, whatever its kernel. Products of two activations are found by following
constants, so that softmax attention inside one fused call is recognised too.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from castling.attention import TokenMixer
from castling.attention.kernel import Kernel
from castling.surgery.hosts import adapter_for

#: Operators that multiply activations with weights, which are their second input.
PRODUCTS = ("MatMul", "Gemm", "Conv")
#: Under this key PyTorch's exporter says which modules a node is in, outermost first.
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class GraphParts:
    """Names of nodes.

    Attributes:
        kernels: everything inside an attention kernel: queries that meet keys, sums over tokens,
            normalisation.
        weight_products: products of activations with weights, outside kernels.
        sensitive: ``kernels``, the rest of every attention but its weight products, all products
            of two activations, and what follows from the size of the image alone, such as the
            coordinates of tables of positions.
    """

    kernels: frozenset[str]
    weight_products: frozenset[str]
    sensitive: frozenset[str]


def parts_of(proto: Any, model: nn.Module) -> GraphParts:
    """Sort the nodes of a graph.

    Args:
        proto: an ``onnx.ModelProto`` whose nodes carry the exporter's scopes.
        model: what was exported; its modules have the names that the scopes hold.
    """
    kernels = {name for name, module in model.named_modules() if isinstance(module, Kernel)}
    attentions = {
        name
        for name, module in model.named_modules()
        if isinstance(module, TokenMixer) or adapter_for(module) is not None
    }
    inside_kernels = {node.name for node in proto.graph.node if kernels & _scopes(node)}
    inside_attentions = {node.name for node in proto.graph.node if attentions & _scopes(node)}
    products = {node.name for node in proto.graph.node if node.op_type in PRODUCTS}
    of_weights = weight_products(proto)
    chosen = of_weights - inside_kernels
    sensitive = inside_kernels | (inside_attentions - chosen) | (products - of_weights)
    of_sizes = known(proto, ("Shape", "Size"))
    sensitive |= {node.name for node in proto.graph.node if of_sizes.issuperset(node.output)}
    return GraphParts(frozenset(inside_kernels), frozenset(chosen), frozenset(sensitive))


def weight_products(proto: Any) -> set[str]:
    """Names of the products whose second factor is a constant, and whose first is not."""
    constants = known(proto)
    return {
        node.name
        for node in proto.graph.node
        if node.op_type in PRODUCTS
        and node.input[1] in constants
        and node.input[0] not in constants
    }


def known(proto: Any, sources: Collection[str] = ()) -> set[str]:
    """Names of all tensors that follow from constants and the results of some operators alone.

    Args:
        proto: an ``onnx.ModelProto``.
        sources: types of these operators.
    """
    found = {weight.name for weight in proto.graph.initializer}
    for node in proto.graph.node:
        inputs = [name for name in node.input if name]
        inner = any(attribute.g.node for attribute in node.attribute)
        given = node.op_type in sources or (node.op_type == "Constant" and not inputs)
        if given or (inputs and not inner and found.issuperset(inputs)):
            found.update(node.output)
    return found


def _scopes(node: Any) -> set[str]:
    """Names of the modules that a node is in; the exporter writes them as a Python list."""
    found = (entry.value for entry in node.metadata_props if entry.key == _SCOPES)
    return {str(name) for text in found for name in literal_eval(text)}
