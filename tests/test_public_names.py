"""The names that the README and the design promise."""

import importlib
import subprocess
import sys

import pytest

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


def test_dir_lists_what_is_public_and_nothing_else():
    names = dir(castling)
    assert names == sorted(names)
    assert set(castling.__all__) < set(names)
    assert {"Predictor", "export", "plan", "attention", "train"} <= set(names)
    assert [name for name in names if name.startswith("_")] == ["__version__"]
    assert not {"annotations", "import_module", "TYPE_CHECKING", "Any", "nearest"} & set(names)
    for name in names:
        assert getattr(castling, name) is not None


def test_dir_lists_lazy_names_before_they_are_imported():
    program = (
        "import sys, castling; names = dir(castling); "
        "assert {'Predictor', 'train', 'deploy'} <= set(names); "
        "assert 'castling.deploy' not in sys.modules; "
        "assert castling.data.__name__ == 'castling.data'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(AttributeError, match=r"'linearise_'; did you mean linearize_"):
        castling.linearise_  # noqa: B018
