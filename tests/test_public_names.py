"""The names that the README and the design promise."""

import importlib

import castling


def test_every_public_name_is_there():
    for name in castling.__all__:
        assert getattr(castling, name) is not None
    promised = {
        "linearize_",
        "switch_",
        "fold_",
        "load_checkpoint",
        "macs",
        "export",
        "create_model",
        "list_models",
        "list_attentions",
        "LinearAngular",
        "QuadraticTaylor",
        "MaskedSoftmax",
        "ConvolutionalAdditive",
    }
    assert promised <= set(castling.__all__)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(castling, "quantise")


def test_export_stays_a_function_when_its_package_is_imported():
    importlib.import_module("castling.export")
    assert callable(castling.export)
    assert callable(castling.export)  # the first access may import the package


def test_readme_example(tmp_path):
    """The Python part of the README, on small models."""
    import timm
    import torch

    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64, num_classes=3)
    castling.linearize_(
        model,
        castling.LinearAngular(local="grid2d", auxiliary=castling.MaskedSoftmax(schedule="ramp")),
        where="blocks.[0-5].attn",
    )
    castling.attention.set_progress(model, 1.0)
    report = castling.switch_(model, calibration=torch.randn(2, 3, 64, 64), tolerance=1e-3)
    assert report.exact
    castling.fold_(model.eval(), torch.randn(2, 3, 64, 64))
    assert "linear" in str(castling.macs(model, (3, 64, 64)).convention)
