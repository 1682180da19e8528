"""load_checkpoint: everybody's files, safely, whole or not at all."""

import argparse
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import castling
from castling.attention import Attention, LinearAngular
from castling.surgery import fold_, load_checkpoint

IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def pico(**options: object) -> nn.Module:
    return timm.create_model("cas_vit_pico", **{"num_classes": 10, **options}).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IMAGE)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[object], Path]:
    def write(content: object) -> Path:
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


def renamed(state: dict, prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "backbone.", "module._orig_mod.", "_orig_mod.module.", "_orig_mod.", "model."],
)
@pytest.mark.parametrize("key", ["", "model", "state_dict"])
def test_wrappings(save, prefix: str, key: str) -> None:
    source, target = pico(), pico()
    state = renamed(source.state_dict(), prefix)
    report = load_checkpoint(target, save({key: state, "epoch": 3} if key else state))
    assert report.source == key
    assert report.missing == report.unexpected == ()
    assert report.loaded == len(source.state_dict())
    assert torch.equal(logits(source), logits(target))


def test_files_of_the_cas_vit_authors_hold_their_command_line(save) -> None:
    source, target = pico(distillation=True), pico(distillation=True)
    arguments = argparse.Namespace(lr=6e-3, model="rcvit_xs", output_dir="", betas=[0.9, 0.999])
    content = {"model": source.state_dict(), "optimizer": {}, "epoch": 299, "args": arguments}
    load_checkpoint(target, save(content))
    assert torch.equal(logits(source), logits(target))


def test_averaged_weights_on_request(save) -> None:
    plain, averaged, target = pico(), pico(), pico()
    path = save({"model": plain.state_dict(), "model_ema": averaged.state_dict()})
    assert load_checkpoint(target, path).source == "model"
    assert torch.equal(logits(plain), logits(target))
    assert load_checkpoint(target, path, prefer_ema=True).source == "model_ema"
    assert torch.equal(logits(averaged), logits(target))


def test_averages_by_decay_as_qt_vit_saves_them(save) -> None:
    source, target = pico(), pico()
    path = save({"ema": {0.9998: source.state_dict()}, "state_dict": pico().state_dict()})
    assert load_checkpoint(target, path, prefer_ema=True).source == "ema"
    assert torch.equal(logits(source), logits(target))


def test_distillation_head_for_a_model_without(save) -> None:
    source, target = pico(distillation=True), pico()
    report = load_checkpoint(target, save({"model": source.state_dict()}))
    assert "averaged head and dist_head" in report.notes[0]
    torch.testing.assert_close(logits(target), logits(source))


def test_model_with_distillation_head_from_a_file_without(save) -> None:
    source, target = pico(), pico(distillation=True)
    load_checkpoint(target, save(source.state_dict()))
    torch.testing.assert_close(logits(target), logits(source))


@pytest.mark.parametrize("with_norms", [True, False])
def test_dense_norms_may_be_there_or_not(save, with_norms: bool) -> None:
    source = pico(feature_norm=with_norms)
    target = timm.create_model("cas_vit_pico", features_only=True, feature_norm=True).eval()
    nn.init.constant_(source.norm0.weight if with_norms else source.norm.weight, 5.0)
    report = load_checkpoint(target, save(source.state_dict()))
    assert ("model.norm0.weight" in report.missing) is not with_norms
    assert target.model.norm0.weight[0].item() == (5.0 if with_norms else 1.0)
    with torch.no_grad():
        expected = source.forward_intermediates(IMAGE, intermediates_only=True)
        torch.testing.assert_close(target(IMAGE)[1], expected[1], rtol=1e-4, atol=1e-4)


def test_dense_norms_of_a_file_for_a_classifier(save) -> None:
    source, target = pico(feature_norm=True), pico()
    report = load_checkpoint(target, save(source.state_dict()))
    assert "norms of dense tasks" in report.notes[0]
    assert torch.equal(logits(source), logits(target))


def test_a_detectors_file_gives_its_backbone(save) -> None:
    source, target = pico(num_classes=0), pico(num_classes=0)
    state = renamed(source.state_dict(), "backbone.") | {"neck.conv.weight": torch.zeros(1)}
    report = load_checkpoint(target, save({"state_dict": state}))
    assert report.notes[0] == "took the entries under 'backbone.' and left 1 others"
    assert torch.equal(logits(source), logits(target))


def test_run_folder_and_safetensors(tmp_path: Path) -> None:
    source = pico()
    safetensors.torch.save_file(source.state_dict(), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        target = pico()
        castling.load_checkpoint(target, path)
        assert torch.equal(logits(source), logits(target))


def mit_name(name: str, large: bool) -> str:
    """timm's name of an EfficientViT entry -> the authors', by hand from their code."""
    name = name.replace("kernel.ones_scale1", "ones_scale1")
    for ours, theirs in (
        ("head.in_conv", "head.op_list.0"),
        ("head.classifier.0", "head.op_list.2.linear"),
        ("head.classifier.1", "head.op_list.2.norm"),
        ("head.classifier.4", "head.op_list.3.linear"),
    ):
        name = name.replace(ours, theirs)
    stem = "backbone.stages.0.op_list" if large else "backbone.input_stem.op_list"
    name = name.replace("stem.in_conv", f"{stem}.0")
    name = re.sub(r"^stem\.res(\d+)", lambda m: f"{stem}.{int(m[1]) + 1}", name)
    return re.sub(
        r"^stages\.(\d+)\.blocks",
        lambda m: f"backbone.stages.{int(m[1]) + large}.op_list",
        name,
    )


@pytest.mark.parametrize(("name", "large"), [("qt_vit_1", False), ("qt_vit_4", True)])
def test_names_of_the_efficientvit_code(save, name: str, large: bool) -> None:
    own = timm.create_model(name)
    state = own.state_dict()
    theirs = {mit_name(n, large): torch.full_like(t, i) for i, (n, t) in enumerate(state.items())}
    # Spelt out from the authors' files, lest both directions share a mistake.
    attention = "backbone.stages.4.op_list.2" if large else "backbone.stages.3.op_list.2"
    stem = "backbone.stages.0.op_list" if large else "backbone.input_stem.op_list"
    block = "main.conv1.conv" if large else "main.depth_conv.conv"
    for known in (
        f"{stem}.0.conv.weight",
        f"{stem}.1.{block}.weight",
        f"{attention}.context_module.main.qkv.conv.weight",
        f"{attention}.context_module.main.aggreg.0.1.weight",
        f"{attention}.context_module.main.ones_scale1",
        f"{attention}.context_module.main.positional_encoding",
        f"{attention}.context_module.main.bn.running_var",
        f"{attention}.context_module.main.proj.norm.weight",
        f"{attention}.local_module.main.inverted_conv.conv.bias",
        "head.op_list.0.norm.running_mean",
        "head.op_list.2.linear.weight",
        "head.op_list.2.norm.bias",
        "head.op_list.3.linear.bias",
    ):
        assert known in theirs
    report = load_checkpoint(own, save({"state_dict": theirs}))
    assert report.loaded == len(state)
    for index, tensor in enumerate(own.state_dict().values()):
        assert (tensor == index).all()


def test_position_tables_of_another_size_are_resized(save) -> None:
    source, target = (timm.create_model("qt_vit_pico", img_size=size) for size in (32, 48))
    report = load_checkpoint(target, save(source.state_dict()))
    assert report.missing == ()


def test_timms_own_efficientvit_takes_its_authors_files(save) -> None:
    source = timm.create_model("efficientvit_b0", num_classes=5)
    target = timm.create_model("efficientvit_b0", num_classes=5)
    theirs = {mit_name(name, False): tensor for name, tensor in source.state_dict().items()}
    load_checkpoint(target, save(theirs))
    torch.testing.assert_close(target.head.classifier[4].weight, source.head.classifier[4].weight)


def test_reference_block_of_castling_vit(save) -> None:
    dim, heads = 16, 4
    state = {
        "qkv.weight": torch.randn(3 * dim, dim),
        "proj.weight": torch.randn(dim, dim),
        "proj.bias": torch.randn(dim),
        "dconv.weight": torch.randn(heads, 1, 9, 1),
    }
    block = Attention(dim, heads, LinearAngular(preset="official"))
    assert load_checkpoint(block, save(state)).loaded == 4
    assert torch.equal(block.dconv.weight, state["dconv.weight"])


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("inside", ["top", "beside", "namespace"])
def test_a_file_that_runs_code_is_refused_and_does_not_run(
    save, tmp_path: Path, inside: str
) -> None:
    mark, bomb = tmp_path / "ran", Bomb(tmp_path / "ran")
    content = {
        "top": bomb,
        "beside": {"model": pico().state_dict(), "args": bomb},
        "namespace": {"model": pico().state_dict(), "args": argparse.Namespace(x=bomb)},
    }[inside]
    path = save(content)
    with pytest.raises(ValueError, match="refused"):
        load_checkpoint(pico(), path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the file is a real bomb


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"refused|not a PyTorch file"):
        load_checkpoint(pico(), path)
    assert not (tmp_path / "ran").exists()


def test_the_allowance_for_namespaces_ends_with_the_call(save) -> None:
    path = save({"model": pico().state_dict(), "args": argparse.Namespace(a=1)})
    load_checkpoint(pico(), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_checkpoint(pico(), tmp_path / "nowhere.pth")


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_broken_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no file of weights")
    with pytest.raises(ValueError, match=name):
        load_checkpoint(pico(), tmp_path / name)


def test_truncated_file(save) -> None:
    path = save(pico().state_dict())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a PyTorch file"):
        load_checkpoint(pico(), path)


def test_file_without_weights(save) -> None:
    with pytest.raises(ValueError, match="it has the entries epoch, lr"):
        load_checkpoint(pico(), save({"epoch": 3, "lr": 0.1}))


def test_other_number_of_classes(save) -> None:
    source, target = pico(num_classes=7, distillation=True), pico(distillation=True)
    path = save(source.state_dict())
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match="num_classes=7") as caught:
        load_checkpoint(target, path)
    assert "head.weight (7, 64) for (10, 64)" in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())
    report = load_checkpoint(target, path, allow_head_mismatch=True)
    heads = {"head.weight", "head.bias", "dist_head.weight", "dist_head.bias"}
    assert set(report.kept_head) == heads
    assert torch.equal(target.head.weight, before["head.weight"])
    assert torch.equal(target.norm.weight, source.norm.weight)
    assert torch.equal(target.patch_embed[0].weight, source.patch_embed[0].weight)


def test_other_size_of_model(save) -> None:
    path = save(timm.create_model("cas_vit_pico", dims=(16, 32, 48, 64)).state_dict())
    with pytest.raises(ValueError, match="another size"):
        load_checkpoint(timm.create_model("cas_vit_pico"), path)


def test_missing_and_unexpected_entries_are_listed(save) -> None:
    state = pico().state_dict()
    del state["network.2.0.mlp.fc1.weight"]
    state["network.9.strange"] = torch.zeros(1)
    path, target = save(state), pico()
    with pytest.raises(ValueError, match=r"network\.2\.0\.mlp\.fc1\.weight") as caught:
        load_checkpoint(target, path)
    assert "network.9.strange" in str(caught.value)
    report = load_checkpoint(target, path, strict=False)
    assert report.missing == ("network.2.0.mlp.fc1.weight",)
    assert report.unexpected == ("network.9.strange",)


def test_folded_weights_want_a_folded_model(save) -> None:
    source, target = pico(), pico()
    fold_(source)
    path = save(source.state_dict())
    with pytest.raises(ValueError, match="fold_"):
        load_checkpoint(target, path)
    fold_(target)
    load_checkpoint(target, path)
    assert torch.equal(logits(source), logits(target))


def test_nothing_in_common(save) -> None:
    with pytest.raises(ValueError, match="holds nothing"):
        load_checkpoint(pico(), save({"weight": torch.zeros(2)}), strict=False)


def test_report_is_plain(save) -> None:
    values = load_checkpoint(pico(), save(pico().state_dict())).to_dict()
    assert values["missing"] == []
    assert values["path"].endswith("weights.pth")


@pytest.mark.parametrize("case", ["no head", "no bias", "other size", "no head bias", "sparse"])
def test_heads_that_cannot_be_averaged(save, case: str) -> None:
    state, target = pico(distillation=True).state_dict(), pico()
    if case == "no head":
        del state["head.weight"], state["head.bias"]
    elif case == "no bias":
        del state["dist_head.bias"]
    elif case == "no head bias":
        del state["head.bias"]
    elif case == "sparse":
        state["dist_head.weight"] = state["dist_head.weight"].to_sparse()
    else:
        state |= {"dist_head.weight": torch.randn(5, 64), "dist_head.bias": torch.randn(5)}
    before = target.head.weight.clone()
    with pytest.raises(ValueError, match=r"dist_head\.weight"):
        load_checkpoint(target, save(state))
    assert torch.equal(target.head.weight, before)


def test_head_without_bias_for_a_model_with_two_heads(save) -> None:
    state = pico().state_dict()
    del state["head.bias"]
    with pytest.raises(ValueError, match=r"head\.bias"):
        load_checkpoint(pico(distillation=True), save(state))


def test_a_dictionary_that_contains_itself(save) -> None:
    endless: dict = {}
    endless[1] = endless
    for content in (endless, {"model": endless}):
        with pytest.raises(ValueError, match="holds no weights"):
            load_checkpoint(pico(), save(content))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.to_sparse(), "sparse"),
        (lambda w: w.to("meta"), "without data"),
        (lambda w: w * 1j, "complex"),
        (lambda w: (w * 100).to(torch.int8), "int8 for floating point"),
        (lambda w: (w * 100).long(), "int64 for floating point"),
        (lambda w: w.to(torch.float8_e4m3fn), "float8_e4m3fn for floating point"),
        (lambda w: w > 0, "bool for floating point"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "quantised"),
    ],
)
def test_entries_that_are_no_plain_weights(save, change: Callable, reason: str) -> None:
    state, target = pico().state_dict(), pico()
    state["head.weight"] = change(state["head.weight"])
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=rf"head\.weight \({reason}\)"):
        load_checkpoint(target, save(state))
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())


@pytest.mark.parametrize(("value", "kind"), [(torch.nan, "NaN"), (-torch.inf, "infinity")])
def test_weights_that_are_not_finite_are_refused(save, value: float, kind: str) -> None:
    state, target = pico().state_dict(), pico()
    last = list(state)[-1]
    state[last] = state[last].clone()
    state[last].view(-1)[3] = value
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    path = save(state)
    with pytest.raises(ValueError, match=rf"weights\.pth.*{last} \({kind}, 1 of \d+\)"):
        load_checkpoint(target, path)
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())
    load_checkpoint(target, path, allow_non_finite=True)
    assert not target.state_dict()[last].isfinite().all()


def test_numbers_too_large_for_the_models_type_are_refused(save) -> None:
    state = pico().state_dict()
    state["head.weight"] = state["head.weight"] + 1e6
    path = save(state)
    load_checkpoint(pico(), path)
    with pytest.raises(ValueError, match=r"head\.weight \(infinity, 640 of 640\)"):
        load_checkpoint(pico().half(), path)


def test_a_module_that_refuses_late_leaves_the_model_untouched(save) -> None:
    path, target = save(pico().state_dict()), pico()

    def refuse(*_: object) -> None:
        raise RuntimeError("not today")

    target.head._register_load_state_dict_pre_hook(refuse)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match="unchanged: not today"):
        load_checkpoint(target, path)
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())


def test_half_precision_is_taken(save) -> None:
    source, target = pico(), pico()
    load_checkpoint(target, save(source.bfloat16().state_dict()))
    assert torch.equal(target.head.weight, source.head.weight.float())


def test_a_model_without_memory_is_refused(save) -> None:
    path = save(pico().state_dict())
    with pytest.raises(ValueError, match="meta device"):
        load_checkpoint(pico().to("meta"), path)


@pytest.mark.parametrize("content", [b"hello, I am text", b"", b"\x08\x0a onnx", b"cposix\nsystem"])
def test_what_is_no_checkpoint_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a checkpoint file"):
        load_checkpoint(pico(), path)


def test_no_refusal_advises_to_open_the_file_anyway(tmp_path: Path) -> None:
    scripted, pickled, garbage = (tmp_path / name for name in ("s.pt", "p.pt", "g.pt"))
    torch.jit.script(nn.Linear(2, 2)).save(str(scripted))
    torch.save(Bomb(tmp_path / "ran"), pickled)
    garbage.write_bytes(b"\x80\x02 anything at all")
    for path in (scripted, pickled, garbage):
        with pytest.raises(ValueError, match=path.name) as caught:
            load_checkpoint(pico(), path)
        assert "weights_only" not in str(caught.value)
        assert "arbitrary code" not in str(caught.value)
        assert caught.value.__suppress_context__
