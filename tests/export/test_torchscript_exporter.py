"""The TorchScript-based ONNX exporter (``dynamo=False``), which Lightning and much code calls.

Sizes stay open wherever the host keeps them open: the batch always; height and width in hosts that
take any image.
"""

import warnings

import pytest
import timm
import torch

import castling
from castling.surgery import strip_

onnxruntime = pytest.importorskip("onnxruntime")


def converted(name, attention=None, **options):
    model = timm.create_model(name, num_classes=5, **options)
    castling.linearize_(model, attention or castling.LinearAngular())
    return model


def named(name, **options):
    return timm.create_model(name, num_classes=5, **options)


ALL, BATCH = (2, 3), ()
CASES = {
    "levit": (lambda: named("castling_levit_pico"), 64, ALL),
    "qt_vit": (lambda: named("qt_vit_pico"), 32, ALL),
    "mvitv2": (lambda: named("castling_mvitv2_pico"), 32, ALL),
    "cas_vit": (lambda: named("cas_vit_pico"), 32, ALL),
    "cas_vit_angular": (lambda: named("cas_vit_pico", attention="linear_angular"), 32, ALL),
    "deit": (lambda: named("castling_deit_pico"), 32, BATCH),
    "qt_vit_exact": (
        lambda: named("qt_vit_pico", attention=castling.QuadraticTaylor(form="exact")),
        32,
        ALL,
    ),
    "levit_conv": (lambda: converted("levit_conv_128s", img_size=64), 64, ALL),
    "levit_softmax": (lambda: converted("levit_128s", castling.Softmax(), img_size=64), 64, BATCH),
    "mvitv2_softmax": (
        lambda: converted("mvitv2_tiny", castling.Softmax(), img_size=64),
        64,
        BATCH,
    ),
}
QUICK = ("levit", "qt_vit", "mvitv2", "cas_vit", "deit")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in QUICK else pytest.mark.slow) for c in CASES]
)
@torch.no_grad()
def test_sizes_stay_open(case, tmp_path):
    make, size, sides = CASES[case]
    torch.manual_seed(0)
    model = make().eval()
    strip_(model)
    path = str(tmp_path / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.randn(2, 3, size, size),),
            path,
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "b"} | {side: f"side{side}" for side in sides}},
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = [(1, size, size), (2, size, size), (3, size, size)]
    if sides:
        shapes += [(1, size, 2 * size), (2, 3 * size, size)]
    for batch, height, width in shapes:
        images = torch.randn(batch, 3, height, width)
        found = torch.from_numpy(session.run(None, {"x": images.numpy()})[0])
        torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-5)
    # Tracing leaves nothing behind.
    other = torch.randn(1, 3, size, 2 * size if sides else size)
    assert model(other).isfinite().all()
