"""Models made on the meta device: filled by assignment, or given memory and initialised."""

import pytest
import timm
import torch

import castling
from castling.attention import auxiliaries, set_progress

MODELS = castling.list_models("*_pico")
POISON = float("nan")


def creatable():
    """Every pico with every attention that it takes."""
    for name in MODELS:
        yield name, {}
        if name in ("deit_pico", "esnet_pico"):
            continue
        for attention in castling.list_attentions():
            kwargs = {"attention": attention}
            if name == "castling_deit_pico":
                kwargs |= {"class_token": False, "global_pool": "avg"}
            try:
                with torch.device("meta"):
                    model = timm.create_model(name, **kwargs)
                model(images(model).to("meta"))
            except ValueError:
                continue  # this attention is not for this host
            yield name, kwargs


def options():
    """Options that bring parameters or buffers of their own."""
    branch = castling.MaskedSoftmax(schedule="gate")
    yield "castling_deit_pico", {"attention": castling.LinearAngular(auxiliary=branch)}
    for form in ("compact", "random", "exact", "pool"):
        yield "qt_vit_pico", {"attention": castling.QuadraticTaylor(form=form, beta=0.5)}
    trainable = castling.QuadraticTaylor(form="compact", beta=0.5, beta_trainable=True)
    yield "castling_deit_pico", {"attention": trainable}
    yield "cas_vit_pico", {"distillation": True, "feature_norm": True}


def images(model):
    return torch.randn(2, *model.pretrained_cfg["input_size"])


def tensors(model):
    return dict([*model.named_parameters(), *model.named_buffers()])


def label(value):
    return value if isinstance(value, str) else str(value.get("attention", value))


CASES = [*creatable(), *options()]


def empty(name, kwargs):
    """From meta to memory full of NaN."""
    model = timm.create_model(name, device="meta", **kwargs).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(POISON)
    return model


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=label)
def test_assigned_weights_leave_nothing_on_meta(name, kwargs):
    reference = timm.create_model(name, **kwargs).eval()
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    model.load_state_dict(reference.state_dict(), assign=True)
    assert not [key for key, tensor in tensors(model).items() if tensor.is_meta]
    x = images(reference)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), reference(x), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=label)
def test_to_empty_and_a_checkpoint(name, kwargs):
    """As FSDP2 fills a model: what no checkpoint holds is right without ``init_weights``."""
    reference = timm.create_model(name, **kwargs).eval()
    model = empty(name, kwargs).eval()
    model.load_state_dict(reference.state_dict())
    x = images(reference)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=label)
def test_everything_is_initialised_again(name, kwargs):
    model = timm.create_model(name, device="meta", **kwargs).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in tensors(model).values():
            tensor.fill_(POISON if tensor.is_floating_point() else 3)
    if hasattr(model, "init_weights"):
        model.init_weights()
    else:  # timm's MultiScaleVit has none: the usual loop over the modules
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    of_host = tensors(timm.create_model(name, **(kwargs and {**kwargs, "attention": "softmax"})))
    fresh = tensors(timm.create_model(name, **kwargs))
    for key, tensor in tensors(model).items():
        assert not tensor.is_floating_point() or tensor.isfinite().all(), key
        if key in of_host and "biases" not in key and "rel_pos" not in key:
            continue  # initialised by timm, or by PyTorch's layers
        if (
            fresh[key].unique().numel() <= 2 or not tensor.is_floating_point()
        ):  # constants, and identity matrices
            assert torch.equal(tensor, fresh[key]), key
        elif tensor.numel() > 100:
            assert 0.7 < float((tensor.std() / fresh[key].std()).detach()) < 1.4, key


def test_the_branch_keeps_its_progress():
    model = timm.create_model("castling_deit_pico", device="meta")
    set_progress(model, 0.5)
    model.to_empty(device="cpu")
    for branch in auxiliaries(model).values():
        assert float(branch.exponent) == pytest.approx(0.6)
        assert float(branch.gate) == 1.0


def test_cas_vit_draws_what_it_draws_at_construction():
    torch.manual_seed(3)
    fresh = timm.create_model("cas_vit_pico", num_classes=3)
    again = timm.create_model("cas_vit_pico", num_classes=3)
    torch.manual_seed(3)
    again.init_weights()
    heads = [model.head.weight.std() for model in (fresh, again)]
    torch.testing.assert_close(heads[0], heads[1], rtol=0.3, atol=0)
    assert torch.equal(fresh.norm.weight, again.norm.weight)
