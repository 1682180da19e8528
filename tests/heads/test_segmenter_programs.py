"""Whole segmenters, labels of every pixel included, as programs of any image size."""

import pytest
import torch
from tests.heads.segmenting import HEADS, build
from torch import nn

from castling.heads.segmenter import labels_of

SIZES = [(1, 64, 64), (3, 64, 160), (2, 128, 96)]


class Whole(nn.Module):
    """Scores and labels; untrained classes are made equally frequent."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        with torch.no_grad():
            scores = model.scores(model(torch.randn(4, 3, 96, 96)))
        self.register_buffer("mean", scores.mean((0, 2, 3), keepdim=True))

    def forward(self, images):
        scores = self.model.scores(self.model(images)) - self.mean
        return scores, labels_of(scores, images.shape[-2:])


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_files_give_the_same_labels(head, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    whole = Whole(build(head).eval())
    height, width = (torch.export.Dim(each, min=2, max=32) for each in ("height", "width"))
    dynamic = ({0: torch.export.Dim("batch", max=8), 2: 32 * height, 3: 32 * width},)
    example = (torch.randn(2, 3, 96, 128),)
    with torch.no_grad():
        program = torch.export.export(whole, example, dynamic_shapes=dynamic, strict=False)
        written = torch.onnx.export(program, example, dynamo=True, verbose=False)
    written.save(tmp_path / "whole.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "whole.onnx")
    name, opened = session.get_inputs()[0].name, program.module()
    for batch, *size in SIZES:
        images = torch.randn(batch, 3, *size)
        with torch.no_grad():
            scores, mask = whole(images)
            again = opened(images)
        found = [torch.from_numpy(each) for each in session.run(None, {name: images.numpy()})]
        assert mask.flatten().bincount().max() < 0.9 * mask.numel()
        for other in (again, found):
            torch.testing.assert_close(other[0], scores, rtol=1e-4, atol=1e-4)
            assert other[1].dtype == torch.int64
            assert (other[1] == mask).float().mean() > 0.999
