"""int8 and fp16 files: which products are in which precision, and how near they are."""

import pytest
import timm
import torch
from tests.export.small_models import coloured_images, fit_
from torch import nn

import castling
from castling.export import export, open_exported
from castling.heads import Segmenter

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SUFFIXES = [".onnx", ".xml"]
ATTENTION = castling.LinearAngular(local="grid2d")
#: Products with weights: patch embedding, qkv, proj, two of the MLP, classifier.
PRODUCTS = 6


@pytest.fixture(scope="module")
def models(one_block):
    torch.manual_seed(0)
    made = {
        "linear": timm.create_model(
            "castling_deit_pico", attention=ATTENTION, num_classes=3, depth=1
        ),
        "softmax": timm.create_model("deit_pico", num_classes=3, depth=1),
    }
    return {name: fit_(model) for name, model in made.items()}


@pytest.fixture(scope="module")
def written(models, tmp_path_factory):
    """(name, suffix, precision) -> path and report, each written once."""
    folder, made = tmp_path_factory.mktemp("precisions"), {}

    def write(name, suffix, precision):
        pytest.importorskip({".onnx": "onnxconverter_common", ".xml": "nncf"}[suffix])
        key = (name, suffix, precision)
        if key not in made:
            path = folder / f"{name}_{precision}{suffix}"
            images = coloured_images(48, 32)
            made[key] = (
                path,
                export(models[name], path, (32, 32), precision=precision, images=images),
            )
        return made[key]

    return write


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["linear", "softmax"])
def test_int8_is_near_and_small(name, suffix, models, written):
    path, report = written(name, suffix, "int8")
    assert report.dynamic == "all"
    assert len(report.checks) == 3
    assert (report.calibration_images, report.on_images.count) == (24, 24)
    assert report.on_images.agreement == 1.0
    assert 0 < report.on_images.relative_error < 0.1
    weights = sum(p.numel() for p in models[name].parameters())
    assert report.fp32_bytes - report.bytes > 2 * weights  # four bytes become one
    assert f"in int8 ({report.fp32_bytes / 1e6:.2f} MB in fp32)" in str(report)
    images = coloured_images(3, 44)[:, :, :28]  # not square, at no size that was compared
    assert (28, 44) not in {check.shape[2:] for check in report.checks}
    with torch.no_grad():
        expected = models[name](images)
    found = open_exported(path)(images)["logits"]
    assert (found - expected).norm() < 0.1 * expected.norm()
    assert found.argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["linear", "softmax"])
def test_onnx_int8_are_the_products_with_weights_alone(name, written):
    graph = onnx.load(written(name, ".onnx", "int8")[0]).graph
    stored = {weight.name: weight.data_type for weight in graph.initializer}
    source = {output: node for node in graph.node for output in node.output}
    weights, plain = [], []
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        inputs = [source[each].op_type if each in source else "" for each in node.input[:2]]
        if "DequantizeLinear" in inputs:
            assert inputs == ["DequantizeLinear"] * 2
            weights.append(source[node.input[1]].input[0])
        else:
            plain.append(node.op_type)
    assert len(weights) == PRODUCTS
    assert {stored[name] for name in weights} == {onnx.TensorProto.INT8}
    # Keys × values and queries × state, or q·kᵀ and ·v; tables of positions; the local residual.
    assert plain.count("MatMul") >= 2
    assert plain.count("Conv") == (name == "linear")
    assert "Gemm" not in plain


@pytest.mark.parametrize("name", ["linear", "softmax"])
def test_openvino_int8_are_the_products_with_weights_alone(name, written):
    import openvino

    model = openvino.Core().read_model(written(name, ".xml", "int8")[0])
    weights, plain = 0, []
    for operator in model.get_ordered_ops():
        kind = operator.get_type_name()
        if kind not in ("MatMul", "Convolution", "GroupConvolution"):
            continue
        sources = [value.get_node().get_type_name() for value in operator.input_values()]
        if "FakeQuantize" in sources:
            weights += 1
        else:
            plain.append(kind)
    stored = [
        operator.get_element_type().get_type_name()
        for operator in model.get_ordered_ops()
        if operator.get_type_name() == "Constant" and operator.get_element_type().size == 1
    ]
    assert weights == PRODUCTS
    assert stored.count("i8") == PRODUCTS
    assert plain.count("MatMul") >= 2
    assert plain.count("GroupConvolution") == (name == "linear")


def test_onnx_fp16_keeps_attention_in_fp32(written):
    path, report = written("linear", ".onnx", "fp16")
    assert report.on_images.agreement == 1.0
    assert report.bytes < 0.75 * report.fp32_bytes
    graph = onnx.load(path).graph
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    types |= {weight.name: weight.data_type for weight in graph.initializer}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    products = [
        (types[node.input[0]], node.input[1] in {w.name for w in graph.initializer})
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
    ]
    assert {kind for kind, of_weights in products if of_weights} == {half}
    assert {kind for kind, of_weights in products if not of_weights} == {single}
    for node in graph.node:
        if node.op_type in ("LayerNormalization", "ReduceSum", "ReduceMean"):
            assert types[node.input[0]] != half


def test_every_kernel_is_found_by_its_scope(one_block):
    """Products within a kernel that have weights, such as feature maps, are found as well."""
    from castling.export.onnx_parts import parts_of
    from castling.export.outputs import NamedOutputs

    model = timm.create_model("deit_pico", num_classes=3, depth=1)
    castling.linearize_(model, castling.Hedgehog())
    named = NamedOutputs(model.eval())
    proto = torch.onnx.export(
        named, (torch.randn(1, 3, 32, 32),), dynamo=True, verbose=False
    ).model_proto
    parts = parts_of(proto, named)
    products = {node.name for node in proto.graph.node if node.op_type in ("MatMul", "Gemm")}
    assert len(parts.weight_products) == PRODUCTS
    assert len(products & parts.kernels) >= 3  # the feature map's weights, and two of activations
    assert not parts.kernels & parts.weight_products


class Cells(Segmenter):
    """Scores of three classes for each cell of 4 pixels."""

    multiple = 4

    def __init__(self):
        super().__init__()
        self.num_classes = 3
        self.conv = nn.Conv2d(3, 16, 4, stride=4)
        self.head = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, images):
        return {"logits": self.head(self.conv(images).relu())}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_segmenter_in_int8(suffix, tmp_path):
    pytest.importorskip({".onnx": "onnxruntime", ".xml": "nncf"}[suffix])
    torch.manual_seed(0)
    model = Cells()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(40):
        scores = model(coloured_images(12, 32, seed=step))["logits"]
        labels = (torch.arange(12) % 3)[:, None, None].expand(12, *scores.shape[2:])
        optimiser.zero_grad()
        nn.functional.cross_entropy(scores, labels).backward()
        optimiser.step()
    path = tmp_path / f"m{suffix}"
    report = export(model, path, (32, 48), precision="int8", images=coloured_images(16, 48))
    assert report.on_images.agreement > 0.95  # of pixels
    assert list(report.checks[0].outputs) == ["logits", "mask"]
    found = open_exported(path)(coloured_images(3, 56)[:, :, :40])
    assert found["mask"].shape == (3, 40, 56)
    assert found["mask"].flatten(1).mode().values.tolist() == [0, 1, 2]
