"""ONNX Runtime's documented way to quantise takes our files: shapes, then weights, then both."""

import pytest
import timm
import torch
from torch import nn

import castling
from castling.surgery import strip_

quantization = pytest.importorskip("onnxruntime.quantization")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

MODELS = {
    "castling_deit_pico": 32,
    "castling_levit_pico": 64,
    "castling_mvitv2_pico": 32,
    "cas_vit_pico": 32,
    "qt_vit_pico": 32,
}


def build(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    strip_(model)
    return model


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


class Calibration(quantization.CalibrationDataReader):
    def __init__(self, size):
        generator = torch.Generator().manual_seed(1)
        batches = [torch.randn(2, 3, size, size, generator=generator) for _ in range(4)]
        self.batches = iter(batches)

    def get_next(self):
        images = next(self.batches, None)
        return None if images is None else {"images": images.numpy()}


class Strided(nn.Module):
    """Maps of two strides, joined with what was a sequence of tokens in between."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, 2, 1) for _ in range(2))

    def forward(self, x):
        x = self.second(self.first(x))
        tokens = x.flatten(2).transpose(1, 2) * 2
        return torch.cat([x, tokens.transpose(1, 2).reshape(x.shape)], dim=1)


def test_symbolic_shape_inference_follows_joined_maps(tmp_path):
    """It gives up on the exporter's own graph: both sizes are equal, and written otherwise."""
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    from castling.export.onnx_sizes import read_sizes_off_tensors

    model = Strided().eval()
    free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    proto = torch.onnx.export(
        model, (torch.randn(2, 3, 20, 24),), dynamo=True, dynamic_shapes=(free,), verbose=False
    ).model_proto

    def infer(proto):
        return SymbolicShapeInference.infer_shapes(proto, 2**31 - 1, False, False, 0)

    bare = onnx.ModelProto.FromString(proto.SerializeToString())
    del bare.graph.value_info[:]
    with pytest.raises(Exception, match="Incomplete symbolic shape inference"):
        infer(bare)
    read_sizes_off_tensors(proto)
    onnx.checker.check_model(proto)
    del proto.graph.value_info[:]
    assert infer(proto) is not None
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for shape in ((1, 3, 20, 24), (2, 3, 9, 31)):
        images = torch.randn(shape)
        with torch.no_grad():
            expected = model(images)
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", ["none", "batch", "all"])
@pytest.mark.parametrize("name", MODELS)
def test_the_steps_of_quantisation(name, dynamic, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # quant_pre_process leaves files of weights where it runs
    model, size = build(name), MODELS[name]
    path, prepared = str(tmp_path / "model.onnx"), str(tmp_path / "prepared.onnx")
    castling.export(model, path, (size, size), dynamic=dynamic)
    quantization.shape_inference.quant_pre_process(path, prepared)  # raises where it gives up
    shapes = [(2, size, size)] if dynamic == "none" else [(2, size, size), (3, size, size)]
    if dynamic == "none":
        shapes = [(1, size, size)]
    elif dynamic == "all":
        shapes.append((1, size, 2 * size))
    light, whole = str(tmp_path / "light.onnx"), str(tmp_path / "whole.onnx")
    quantization.quantize_dynamic(prepared, light, op_types_to_quantize=["MatMul", "Gemm"])
    if dynamic != "none":
        quantization.quantize_static(
            prepared, whole, Calibration(size), op_types_to_quantize=["MatMul", "Gemm", "Conv"]
        )
    for shape in shapes:
        images = torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            expected = model(images)
        torch.testing.assert_close(run(prepared, images), expected, rtol=1e-3, atol=1e-4)
        for quantised in (light, whole)[: 1 if dynamic == "none" else 2]:
            found = run(quantised, images)
            assert (found - expected).norm() < 0.25 * expected.norm(), quantised


def test_sizes_that_are_not_told_stay_as_they_are():
    """A graph without shapes, and one of another exporter with a dimension of no name."""
    from onnx import TensorProto, helper

    from castling.export.onnx_sizes import read_sizes_off_tensors

    def graph(*inner):
        nodes = [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Reshape", ["x", "shape"], ["y"]),
        ]
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xz"
        ]
        nodes.append(helper.make_node("Identity", ["y"], ["z"]))
        return helper.make_model(
            helper.make_graph(nodes, "g", values[:1], values[1:], value_info=list(inner))
        )

    for inner in ((), (helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4]),)):
        model = graph(*inner)
        before = model.SerializeToString()
        read_sizes_off_tensors(model)
        assert model.SerializeToString() == before
    told = graph(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
    )
    read_sizes_off_tensors(told)
    onnx.checker.check_model(told)
    assert [n.op_type for n in told.graph.node][-3:] == ["Concat", "Reshape", "Identity"]
