"""The whole PicoDet in graphs: decoding and suppression included, batch and size free."""

import pytest
import torch
from tests.heads.untrained import spread_out
from torch import nn

import castling
from castling.heads.matching import detection_agreement

SHAPES = [(2, 128, 128), (1, 96, 160), (3, 160, 96)]
#: Large enough that no grid has a side of 1, which a graph would take for a constant.
EXAMPLE = torch.randn(2, 3, 128, 192)


class Whole(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.decode(self.model(images), images.shape[-2:])


def whole_model(backbone, **head):
    """As after the switch; an overlap that leaves fewer boxes than there is room for."""
    torch.manual_seed(0)
    head = {"nms_threshold": 0.4, **head}
    attention = {"attention": castling.LinearAngular()} if "castling" in backbone else {}
    model = castling.create_model(f"picodet_pico/{backbone}", num_classes=3, head=head, **attention)
    return Whole(spread_out(model))


def free():
    """Sides are multiples of 32, half of what the coarsest level needs: its grid rounds up."""
    dim = torch.export.Dim
    batch, height, width = dim("b", max=16), dim("h", max=64), dim("w", max=64)
    return ({0: batch, 2: 32 * height, 3: 32 * width},)


def compare(found, expected):
    """As sets, and their scores by rank."""
    count = (expected["scores"] > 0).sum(1)
    assert (count > 10).all()
    assert detection_agreement(found, expected).tolist() == [1] * len(count)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_program_with_the_operator():
    whole = whole_model("esnet_pico")
    program = torch.export.export(whole, (EXAMPLE,), dynamic_shapes=free(), strict=False)
    assert any("castling.suppress" in str(node.target) for node in program.graph.nodes)
    for batch, height, width in SHAPES:
        images = torch.randn(batch, 3, height, width)
        compare(program.module()(images), whole(images))


@pytest.mark.slow
@torch.no_grad()
def test_portable_program():
    whole = whole_model("esnet_pico", detections=60)
    with castling.attention_backend("naive"):
        program = torch.export.export(whole, (EXAMPLE,), dynamic_shapes=free(), strict=False)
    assert not any("castling" in str(node.target) for node in program.graph.nodes)
    for batch, height, width in SHAPES:
        images = torch.randn(batch, 3, height, width)
        compare(program.module()(images), whole(images))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("backbone", ["esnet_pico", "castling_levit_s8_pico"])
def test_onnx_runtime(backbone, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from castling.export.onnx_operators import translations

    whole = whole_model(backbone)
    program = torch.onnx.export(
        whole,
        (EXAMPLE,),
        dynamo=True,
        dynamic_shapes=free(),
        custom_translation_table=translations(),
        verbose=False,
    )
    program.save(tmp_path / "whole.onnx")
    kinds = {node.op_type for node in program.model_proto.graph.node}
    assert {"NonMaxSuppression", "TopK", "HardSwish"} <= kinds
    session = onnxruntime.InferenceSession(
        tmp_path / "whole.onnx", providers=["CPUExecutionProvider"]
    )
    names = ("boxes", "scores", "labels")
    for batch, height, width in SHAPES:
        images = torch.randn(batch, 3, height, width)
        run = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        compare({n: torch.from_numpy(v) for n, v in zip(names, run, strict=True)}, whole(images))
