"""The registry of attentions, and the one value that kernels are given."""

import dataclasses
from typing import ClassVar

import pytest
import torch

from castling.attention import (
    Attention,
    AttentionConfig,
    AttentionInputs,
    Kernel,
    attention_config,
    image_mixer_class,
    kernel_class,
    list_attentions,
    list_kernels,
    register_attention,
)


@pytest.mark.parametrize("name", list_kernels())
def test_a_misspelt_input_is_refused(name):
    q, k, v = torch.randn(3, 1, 4, 2, 8)
    with pytest.raises(TypeError, match="key_maks"):
        AttentionInputs(q, k, v, key_maks=None)
    kernel = Attention(16, 2, name).kernel
    with pytest.raises(TypeError):
        kernel(AttentionInputs(q, k, v), key_mask=None)


def test_hooks_of_a_kernel_see_its_inputs():
    model = Attention(16, 2, "elu")
    seen = []
    model.kernel.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.randn(2, 6, 16))
    (inputs,) = seen
    assert isinstance(inputs, AttentionInputs)
    assert inputs.key.shape == (2, 6, 2, 8)


def test_names_near_a_misspelt_one_are_suggested():
    with pytest.raises(ValueError, match=r"did you mean hedgehog\?"):
        attention_config("hedghog")
    with pytest.raises(ValueError, match=r"no option activaton.*did you mean activation"):
        attention_config({"name": "hedgehog", "activaton": "exp"})


def test_every_attention_builds_a_kernel_or_an_image_mixer():
    for name in list_attentions():
        config = attention_config(name)
        assert name in list_kernels() or image_mixer_class(config) is not None


def test_a_new_kernel_is_one_registration():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Values(AttentionConfig):
        name: ClassVar[str] = "values_of_a_test"

    with pytest.raises(KeyError, match="no attention is registered for Values"):
        kernel_class(Values())

    @register_attention(Values)
    class ValuesKernel(Kernel):
        def forward(self, inputs):
            return inputs.value

    model = Attention(16, 2, "values_of_a_test")
    assert isinstance(model.kernel, ValuesKernel)
    x = torch.randn(1, 5, 16)
    value = model.qkv(x).chunk(3, dim=-1)[2]
    torch.testing.assert_close(model(x), model.proj(value))
