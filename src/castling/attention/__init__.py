"""Attention as modules: kernels, local residuals, the auxiliary branch, and their registry."""

from castling.attention.auxiliary import (
    AuxiliaryStatistics,
    MaskedSoftmaxBranch,
    auxiliaries,
    auxiliary_penalty,
    collect_statistics,
    set_progress,
)
from castling.attention.base import AttentionCore
from castling.attention.config import AttentionConfig, MaskedSoftmax
from castling.attention.convolutional_additive import AdditiveTokenMixer, ConvolutionalAdditive
from castling.attention.cosine import Cosine
from castling.attention.elu_linear import ELULinear
from castling.attention.first_order_taylor import FirstOrderTaylor
from castling.attention.hedgehog import Hedgehog
from castling.attention.image_mixer import ImageMixer, TokenMixer
from castling.attention.inputs import AttentionInputs
from castling.attention.kernel import Kernel
from castling.attention.linear_angular import LinearAngular
from castling.attention.mean import Mean
from castling.attention.mixer import Attention
from castling.attention.pooling import Pooling
from castling.attention.quadratic_angular import QuadraticAngular
from castling.attention.quadratic_taylor import QuadraticTaylor
from castling.attention.registry import (
    attention_config,
    config_from_dict,
    config_to_dict,
    image_mixer_class,
    kernel_class,
    list_attentions,
    list_kernels,
    register_attention,
    register_image_mixer,
)
from castling.attention.relu_linear import ReLULinear
from castling.attention.separable import Separable
from castling.attention.sigmoid_softmax import SigmoidSoftmax
from castling.attention.softmax import Softmax, SoftmaxKernel
from castling.attention.swift import Swift

__all__ = [
    "AdditiveTokenMixer",
    "Attention",
    "AttentionConfig",
    "AttentionCore",
    "AttentionInputs",
    "AuxiliaryStatistics",
    "ConvolutionalAdditive",
    "Cosine",
    "ELULinear",
    "FirstOrderTaylor",
    "Hedgehog",
    "ImageMixer",
    "Kernel",
    "LinearAngular",
    "MaskedSoftmax",
    "MaskedSoftmaxBranch",
    "Mean",
    "Pooling",
    "QuadraticAngular",
    "QuadraticTaylor",
    "ReLULinear",
    "Separable",
    "SigmoidSoftmax",
    "Softmax",
    "SoftmaxKernel",
    "Swift",
    "TokenMixer",
    "attention_config",
    "auxiliaries",
    "auxiliary_penalty",
    "collect_statistics",
    "config_from_dict",
    "config_to_dict",
    "image_mixer_class",
    "kernel_class",
    "list_attentions",
    "list_kernels",
    "register_attention",
    "register_image_mixer",
    "set_progress",
]
