"""ONNX Runtime's documented way to quantise takes our files: shapes, then weights, then both."""

import pytest
import timm
import torch

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
#: Those whose sizes ONNX Runtime could not follow when they were computed from the image's.
HARD = ("castling_mvitv2_pico", "qt_vit_pico")
CASES = [
    pytest.param(name, dynamic, marks=[] if name in HARD and dynamic == "all" else pytest.mark.slow)
    for name in MODELS
    for dynamic in ("none", "batch", "all")
]


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


@pytest.mark.parametrize(("name", "dynamic"), CASES)
def test_the_steps_of_quantisation(name, dynamic, tmp_path):
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
