"""Where weights stand in the files of other trainers, and what may stand beside them."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import timm
import torch
from torch import nn

from castling.surgery import load_checkpoint
from castling.surgery.checkpoint_layouts import AVERAGED, PLAIN, PREFIXES, WRAPPERS

State = dict[str, torch.Tensor]


def vit(**options: Any) -> nn.Module:
    return timm.create_model("deit_pico", **{"num_classes": 7, "depth": 1, **options}).eval()


def put(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[object], Path]:
    def write(content: object) -> Path:
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


def assert_filled(model: nn.Module, state: State) -> None:
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


BESIDE = {
    "numpy scalar": numpy.float64(81.2),
    "numpy integer": numpy.int64(3),
    "numpy array": numpy.arange(6.0).reshape(2, 3),
    "numpy type": numpy.dtype("float32"),
    "path": pathlib.Path("/x"),
    "pure path": pathlib.PureWindowsPath("C:/x"),
    "defaultdict": collections.defaultdict(list, {"loss": [1.0, 0.5]}),
    "nested defaultdict": collections.defaultdict(dict, {"a": {"b": 1}}),
    "deque": collections.deque([1.0, 2.0], maxlen=5),
    "counter": collections.Counter("aab"),
    "date": datetime.datetime(2024, 1, 2, 3, 4, 5),
    "time difference": datetime.timedelta(seconds=3),
    "namespace": argparse.Namespace(lr=0.1, out=pathlib.Path("/y"), when=datetime.date(2024, 1, 2)),
    "simple namespace": types.SimpleNamespace(a=1),
    "ordered": collections.OrderedDict(a=numpy.float32(1)),
    "set": {1, 2},
    "frozen set": frozenset({1}),
    "version": torch.__version__,
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_harmless_values_beside_the_weights(save, beside: object) -> None:
    source, target = vit(), vit()
    path = save({"epoch": 3, "before": beside, "state_dict": source.state_dict(), "after": beside})
    report = load_checkpoint(target, path)
    assert report.source == "state_dict"
    assert_filled(target, source.state_dict())


def test_the_allowance_ends_with_the_call(save) -> None:
    path = save({"model": vit().state_dict(), "path": pathlib.Path("/x")})
    load_checkpoint(vit(), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_weights_inside_a_subclass_of_dict(save) -> None:
    source, target = vit(), vit()
    content = collections.defaultdict(dict, {"model": collections.defaultdict(None)})
    content["model"].update(source.state_dict())
    assert load_checkpoint(target, save(content)).source == "model"
    assert_filled(target, source.state_dict())


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def forged(path: Path, module: str, name: str, argument: str) -> Path:
    """A file whose pickle calls ``module.name(argument)``; hand-written, protocol 2."""
    torch.save({"model": vit().state_dict()}, path)
    pickled = (
        b"\x80\x02"
        + f"c{module}\n{name}\n".encode()
        + b"X"
        + len(argument).to_bytes(4, "little")
        + argument.encode()
        + b"\x85R."
    )
    with zipfile.ZipFile(path) as old:
        entries = {entry: old.read(entry) for entry in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for entry, content in entries.items():
            new.writestr(entry, pickled if entry.endswith("data.pkl") else content)
    return path


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "open"),
        ("subprocess", "call"),
        ("pathlib", "Path.touch"),
        ("pathlib", "os.system"),
        ("pathlib", "io.open"),
        ("argparse", "FileType"),
        ("argparse", "open"),
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("numpy.core.multiarray", "fromfile"),
        ("collections", "namedtuple"),
        ("functools", "partial"),
        ("types", "FunctionType"),
        ("torch", "load"),
        ("torch.hub", "load"),
    ],
)
def test_nothing_else_is_called(tmp_path: Path, module: str, name: str) -> None:
    mark = tmp_path / "ran"
    argument = f"touch {mark}" if name == "system" else str(mark)
    path = forged(tmp_path / "evil.pth", module, name, argument)
    with pytest.raises(ValueError, match="refused"):
        load_checkpoint(vit(), path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("pathlib", "Path"),
        ("numpy", "ndarray"),
        ("builtins", "list"),
        ("datetime", "datetime"),
        ("collections", "defaultdict"),
    ],
)
def test_allowed_names_are_stand_ins(tmp_path: Path, module: str, name: str) -> None:
    path = forged(tmp_path / "odd.pth", module, name, "argument")
    with pytest.raises(ValueError, match=r"odd\.pth hol"):  # read, and found to hold no weights
        load_checkpoint(vit(), path)


@pytest.mark.parametrize(
    "content",
    [
        Calls(os.system, "touch {mark}"),
        Calls(eval, "__import__('pathlib').Path('{mark}').touch()"),
        Calls(pathlib.Path.touch, pathlib.Path("{mark}")),
        Calls(getattr, pathlib.Path("{mark}"), "touch"),
    ],
    ids=["system", "eval", "touch", "getattr"],
)
@pytest.mark.parametrize("place", ["default factory", "namespace", "key", "state"])
def test_calls_hidden_in_harmless_types(
    save, tmp_path: Path, content: Calls, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mark = "ran"
    function, args = content.call
    args = tuple(
        pathlib.Path(str(a).format(mark=mark)) if isinstance(a, Path) else a.format(mark=mark)
        for a in args
    )
    bomb = Calls(function, *args)
    state = vit().state_dict()
    path = save(
        {
            "default factory": {"model": state, "x": Calls(collections.defaultdict, bomb)},
            "namespace": {"model": state, "args": argparse.Namespace(x=bomb)},
            "key": {"model": state, "extra": {"path": pathlib.Path("/x"), "y": [bomb]}},
            "state": {"model": {**state, "head.bias": bomb}},
        }[place]
    )
    with pytest.raises(ValueError, match="refused"):
        load_checkpoint(vit(), path)
    assert not (tmp_path / mark).exists()


@pytest.mark.parametrize("key", [*PLAIN, *AVERAGED])
def test_keys(save, key: str) -> None:
    source, target = vit(), vit()
    path = save({key: source.state_dict(), "optimizer": {"state": {0: {"step": torch.ones(3)}}}})
    assert load_checkpoint(target, path).source == key
    assert_filled(target, source.state_dict())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes(save, prefix: str) -> None:
    source, target = vit(), vit()
    other = {"criterion.weight": torch.ones(7), "n_averaged": torch.tensor(3)}
    path = save({"state_dict": put(f"module.{prefix}.", source.state_dict()) | other})
    report = load_checkpoint(target, path)
    assert report.unexpected == ()
    assert_filled(target, source.state_dict())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_anywhere_in_names(save, wrapper: str) -> None:
    source, target = vit(), vit()
    state = {
        name.replace("blocks.0.", f"blocks.0.{wrapper}."): tensor
        for name, tensor in put(f"{wrapper}.", source.state_dict()).items()
    }
    load_checkpoint(target, save(state))
    assert_filled(target, source.state_dict())


def test_deepspeed(save) -> None:
    source, target = vit(), vit()
    path = save({"module": source.state_dict(), "ds_config": {"lr": 0.1}, "dp_world_size": 8})
    assert load_checkpoint(target, path).source == "module"
    assert_filled(target, source.state_dict())


def test_lightning(save) -> None:
    source, target = vit(), vit()
    state = put("model.", source.state_dict()) | {"loss.weight": torch.ones(7)}
    load_checkpoint(target, save({"state_dict": state, "hyper_parameters": {"lr": 0.1}}))
    assert_filled(target, source.state_dict())


def dino() -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    student, teacher = vit(num_classes=0), vit(num_classes=0)
    head = {"head.mlp.0.weight": torch.ones(3, 3)}
    content = {
        "student": put("module.backbone.", student.state_dict()) | put("module.", head),
        "teacher": put("backbone.", teacher.state_dict()) | head,
        "epoch": 100,
    }
    return student, teacher, content


def test_dinos_teacher_is_taken_and_its_student_on_request(save) -> None:
    student, teacher, content = dino()
    path, target = save(content), vit(num_classes=0)
    report = load_checkpoint(target, path)
    assert (report.source, report.others) == ("teacher", ("student.module.backbone",))
    assert_filled(target, teacher.state_dict())
    report = load_checkpoint(target, path, key="student")
    assert (report.source, report.others) == ("student", ())
    assert_filled(target, student.state_dict())


def test_a_distilled_student_is_taken_where_the_teacher_is_another_model(save) -> None:
    student, teacher = vit(), vit(depth=3, embed_dim=128)
    state = put("teacher.", teacher.state_dict()) | put("student.", student.state_dict())
    for content in (state, {"teacher": teacher.state_dict(), "student": student.state_dict()}):
        target = vit()
        assert load_checkpoint(target, save(content)).others == ()
        assert_filled(target, student.state_dict())


def test_trained_weights_before_averages_unless_asked(save) -> None:
    plain, averaged, target = vit(), vit(), vit()
    state = put("model.", plain.state_dict()) | put("ema_model.module.", averaged.state_dict())
    path = save({"state_dict": state})
    assert load_checkpoint(target, path).others == ("state_dict.ema_model.module",)
    assert_filled(target, plain.state_dict())
    load_checkpoint(target, path, key="state_dict.ema_model.module")
    assert_filled(target, averaged.state_dict())
    load_checkpoint(target, path)
    load_checkpoint(target, path, prefer_ema=True)
    assert_filled(target, averaged.state_dict())


def test_a_key_that_is_not_there_lists_those_that_are(save) -> None:
    path = save({"model": vit().state_dict(), "nested": {"ema": vit().state_dict()}})
    with pytest.raises(ValueError, match=r"under 'student'; it has: model, nested\.ema"):
        load_checkpoint(vit(), path, key="student")
    assert load_checkpoint(vit(), path, key="nested.ema").source == "nested.ema"


def test_wrapped_and_compiled_models_take_plain_files(save) -> None:
    source = vit()
    path = save(source.state_dict())
    for wrap in (torch.compile, nn.DataParallel, lambda m: nn.DataParallel(torch.compile(m))):
        inner = vit()
        load_checkpoint(wrap(inner), path)
        assert_filled(inner, source.state_dict())


def test_a_folder_of_the_hub(tmp_path: Path) -> None:
    source, target = vit(), vit()
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    load_checkpoint(target, tmp_path)
    assert_filled(target, source.state_dict())
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_checkpoint(target, tmp_path.parent)


def test_many_dictionaries_that_contain_each_other(save) -> None:
    nodes: list[dict[str, Any]] = [{} for _ in range(60)]
    for node in nodes:
        node.update({str(i): other for i, other in enumerate(nodes)})
    with pytest.raises(ValueError, match="holds no weights"):
        load_checkpoint(vit(), save(nodes[0]))


def test_the_documentation_lists_every_key_and_prefix() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "file-formats.md"
    text = page.read_text(encoding="utf-8")
    section = text.partition("## Checkpoints of other programs")[2].partition("\n## ")[0]
    assert [key for key in (*PLAIN, *AVERAGED, *WRAPPERS) if f"`{key}`" not in section] == []
    plain = [prefix for prefix in PREFIXES if prefix not in AVERAGED]
    assert [prefix for prefix in plain if f"`{prefix}.`" not in section] == []
