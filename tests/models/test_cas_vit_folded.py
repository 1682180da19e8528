"""A folded CAS-ViT: its blocks are one operator each, with the unfolded model's result."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import castling
from castling.models import cas_vit_blocks
from castling.models.cas_vit_folded import folded_weights
from castling.ops import native
from castling.ops.backends import attention_backend

BACKENDS = [
    "naive",
    pytest.param(
        "native",
        marks=pytest.mark.skipif(not native.available(), reason="the C++ operators are not built"),
    ),
]


def pair(**options: object) -> tuple[nn.Module, nn.Module]:
    """A model as after training, and the same folded."""
    model = timm.create_model("cas_vit_pico", **{"num_classes": 10, **options}).eval()
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            nn.init.normal_(norm.running_mean, 0, 0.2)
            nn.init.uniform_(norm.running_var, 0.6, 1.6)
            nn.init.uniform_(norm.weight, 0.5, 1.2)
            nn.init.normal_(norm.bias, 0, 0.2)
    folded = copy.deepcopy(model)
    castling.fold_(folded)
    return model, folded


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the fused operator was called with, as long as the test runs."""
    calls: list[Tensor] = []
    real = cas_vit_blocks.additive_block

    def counted(x: Tensor, weights: list[Tensor]) -> Tensor:
        calls.append(x)
        return real(x, weights)

    monkeypatch.setattr(cas_vit_blocks, "additive_block", counted)
    return calls


@pytest.mark.parametrize("path", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"distillation": True}, {"local_integration": False}])
@pytest.mark.parametrize("shape", [(1, 32, 32), (8, 32, 48), (2, 97, 131), (1, 17, 45)])
@torch.no_grad()
def test_same_logits(path: str, options: dict, shape: tuple, fused: list) -> None:
    model, folded = pair(**options)
    x = torch.randn(shape[0], 3, *shape[1:])
    with attention_backend(path):
        result = folded(x)
    assert len(fused) == 5
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in fused)
    assert float((result - model(x)).abs().max()) <= 1e-5
    for other in (x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT):
        torch.testing.assert_close(folded(other), result, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", BACKENDS)
@torch.no_grad()
def test_same_maps(path: str, fused: list) -> None:
    model, folded = pair(features_only=True, feature_norm=True)
    x = torch.randn(2, 3, 45, 33)
    with attention_backend(path):
        maps = folded(x)
    assert len(fused) == 5
    for result, expected in zip(maps, model(x), strict=True):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", BACKENDS)
@torch.no_grad()
def test_without_a_head(path: str) -> None:
    model, folded = pair(num_classes=0)
    x = torch.randn(2, 3, 32, 32)
    with attention_backend(path):
        torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", BACKENDS)
@torch.no_grad()
def test_bfloat16(path: str) -> None:
    model, folded = pair()
    x = torch.randn(2, 3, 32, 48)
    expected = model(x)
    folded.to(torch.bfloat16)
    with attention_backend(path):
        result = folded(x.to(torch.bfloat16))
    assert result.dtype == torch.bfloat16
    assert float((result.float() - expected).norm() / expected.norm()) <= 2e-2


def test_gradients_pass_through_the_modules(fused: list) -> None:
    model, folded = pair()
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    gradients = [torch.autograd.grad(m(x).square().sum(), x)[0] for m in (model, folded)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
    assert not fused


@torch.no_grad()
def test_only_folded_blocks_in_evaluation(fused: list) -> None:
    model, folded = pair()
    x = torch.randn(2, 3, 32, 32)
    model(x)
    folded.train()(x)
    assert not fused
    folded.eval()(x)
    assert len(fused) == 5


def _watch(block: nn.Module) -> None:
    block.attn.dwc.register_forward_hook(lambda module, inputs, output: output * 2)


def _replace(block: nn.Module) -> None:
    block.mlp.fc1 = nn.Sequential(block.mlp.fc1, nn.Tanh()).eval()


def _parametrise(block: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(block.mlp.fc2)


def _half_train(block: nn.Module) -> None:
    block.mlp.drop.train()


def _patch(block: nn.Module) -> None:
    block.mlp.act.forward = lambda x: x * 2


def _approximate(block: nn.Module) -> None:
    block.mlp.act.approximate = "tanh"


@pytest.mark.parametrize(
    "change", [_watch, _replace, _parametrise, _half_train, _patch, _approximate]
)
@torch.no_grad()
def test_a_block_changed_after_folding_computes_by_its_modules(change, fused: list) -> None:
    _, folded = pair()
    block = folded.network[0][0]
    assert folded_weights(block) is not None
    change(block)
    assert folded_weights(block) is None
    folded(torch.randn(1, 3, 32, 32))
    assert len(fused) == 4


@pytest.mark.parametrize(
    "attention",
    [
        {"name": "convolutional_additive", "channel": False},
        {"name": "convolutional_additive", "order": "channel_first"},
        {"name": "convolutional_additive", "gamma": False},
        "softmax",
    ],
)
@torch.no_grad()
def test_other_token_mixers_keep_their_modules(attention: object, fused: list) -> None:
    model, folded = pair(attention=attention)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-5)
    assert not fused


@torch.no_grad()
def test_loaded_weights_are_taken() -> None:
    (_, folded), (_, other) = pair(), pair()
    x = torch.randn(1, 3, 32, 32)
    expected = folded(x)
    other(x)
    other.load_state_dict(folded.state_dict())
    torch.testing.assert_close(other(x), expected)


@torch.no_grad()
def _step(weights: list[Tensor]) -> None:
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    torch.optim.AdamW(weights, lr=0.1, fused=True).step()


def _scale_data(weights: list[Tensor]) -> None:
    for weight in weights:
        weight.data.mul_(0.5)


@pytest.mark.parametrize("write", [_step, _scale_data])
def test_writes_that_leave_no_trace_in_a_tensor_are_seen(write) -> None:
    """Fused optimisers and ``.data`` do not raise a tensor's version."""
    _, folded = pair()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        folded(x)
        write([p for p in folded.parameters() if p.requires_grad])
        found = folded(x)
        torch.testing.assert_close(found, copy.deepcopy(folded)(x))


def test_costs_are_counted_as_before() -> None:
    model, folded = pair()
    assert castling.macs(folded, (3, 32, 32)).total == castling.macs(model, (3, 32, 32)).total


@pytest.mark.parametrize("path", BACKENDS)
@torch.no_grad()
def test_compiles_without_graph_breaks(path: str) -> None:
    model, folded = pair()
    x = torch.randn(2, 3, 32, 32)
    with attention_backend("naive" if path == "naive" else None):  # None takes the native one
        compiled = torch.compile(folded, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", BACKENDS)
@torch.no_grad()
def test_exports_with_free_size(path: str) -> None:
    model, folded = pair()
    free = torch.export.Dim.DYNAMIC
    sizes = ({0: free, 2: free, 3: free},)
    with attention_backend(path):
        program = torch.export.export(folded, (torch.randn(2, 3, 32, 48),), dynamic_shapes=sizes)
    ours = [node for node in program.graph.nodes if "castling" in str(node.target)]
    assert len(ours) == (5 if path == "native" else 0)
    x = torch.randn(1, 3, 45, 64)
    torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_onnx_has_basic_operators_alone(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, folded = pair()
    x = torch.randn(1, 3, 32, 32)
    program = torch.onnx.export(folded, (x,), dynamo=True, verbose=False)
    nodes = list(program.model.graph)
    assert {node.domain for node in nodes} == {""}
    assert "BatchNormalization" not in {node.op_type for node in nodes}
    program.save(str(tmp_path / "model.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), model(x), atol=1e-5, rtol=1e-5)
