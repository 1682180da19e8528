"""Attention as modules: kernels, local residuals, the auxiliary branch, and their registry."""

from castling.attention.auxiliary import (
    AuxiliaryStatistics,
    MaskedSoftmaxBranch,
    auxiliaries,
    auxiliary_penalty,
    collect_statistics,
    set_progress,
)
from castling.attention.base import AttentionCore, Kernel
from castling.attention.config import (
    AttentionConfig,
    MaskedSoftmax,
    attention_config,
    config_from_dict,
    config_to_dict,
    list_attentions,
    register_attention,
)
from castling.attention.convolutional_additive import AdditiveTokenMixer, ConvolutionalAdditive
from castling.attention.cosine import Cosine
from castling.attention.first_order_taylor import FirstOrderTaylor
from castling.attention.linear_angular import LinearAngular
from castling.attention.mean import Mean
from castling.attention.mixer import Attention
from castling.attention.quadratic_angular import QuadraticAngular
from castling.attention.quadratic_taylor import QuadraticTaylor
from castling.attention.relu_linear import ReLULinear
from castling.attention.sigmoid_softmax import SigmoidSoftmax
from castling.attention.softmax import Softmax

__all__ = [
    "AdditiveTokenMixer",
    "Attention",
    "AttentionConfig",
    "AttentionCore",
    "AuxiliaryStatistics",
    "ConvolutionalAdditive",
    "Cosine",
    "FirstOrderTaylor",
    "Kernel",
    "LinearAngular",
    "MaskedSoftmax",
    "MaskedSoftmaxBranch",
    "Mean",
    "QuadraticAngular",
    "QuadraticTaylor",
    "ReLULinear",
    "SigmoidSoftmax",
    "Softmax",
    "attention_config",
    "auxiliaries",
    "auxiliary_penalty",
    "collect_statistics",
    "config_from_dict",
    "config_to_dict",
    "list_attentions",
    "register_attention",
    "set_progress",
]
