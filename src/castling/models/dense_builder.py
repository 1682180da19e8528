"""From ``HEAD/BACKBONE`` to a dense model: a registered head on any model of timm's registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from timm.models import model_entrypoint
from torch import nn

from castling.attention import attention_config
from castling.models.arguments import arguments_of
from castling.models.backbone import Backbone, WholeViT, build_backbone, build_whole_vit
from castling.models.dense import HeadConfig, head_config, head_spec
from castling.models.names import timm_name
from castling.surgery import Attention, Where

#: Of COCO; where nobody says how many.
DEFAULT_CLASSES = 80
#: Images of a dense model are of any size.
_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}


class DenseArguments(NamedTuple):
    """What a dense model was built from; it keeps them as ``dense_arguments``.

    Attributes:
        head: name of the head.
        options: of the head.
        num_classes: K.
        backbone: its name in timm's registry.
        kwargs: keyword arguments of the backbone.
        attention: put into the backbone; None keeps what it has.
        where: which of its attention layers, by their names in the dense model; None means all.
    """

    head: str
    options: HeadConfig
    num_classes: int
    backbone: str
    kwargs: dict[str, Any]
    attention: Attention | None = None
    where: Where | None = None


def build_dense(
    head: str,
    backbone: str,
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    *,
    attention: Attention | None = None,
    where: Where | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """A dense model.

    Args:
        head: a registered head.
        backbone: a name in timm's registry.
        kwargs: ``num_classes``, and keyword arguments of the backbone.
        options: of the head; those left out are its size's.
        attention: put into the backbone; None keeps what it has.
        where: which of its attention layers, by their names in the dense model; None means all.
        pretrained: load timm's weights into the backbone (needs the network).

    Raises:
        ValueError: see :func:`castling.create_model`.
        TypeError: the backbone does not take an argument.
    """
    config = head_config(head, options)
    own = dict(kwargs)
    classes = own.pop("num_classes", DEFAULT_CLASSES)
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise ValueError(f"num_classes is {classes!r}; it must be a whole number of at least 1")
    for name in ("features_only", "out_indices"):
        if name in own:
            raise ValueError(f"{name} is the head's to say: leave it out of {head}/{backbone}")
    backbone = timm_name(backbone)
    own = _any_size(backbone) | own
    arguments = DenseArguments(
        head=head,
        options=config,
        num_classes=classes,
        backbone=backbone,
        kwargs=own,
        attention=None if attention is None else attention_config(attention),
        where=where,
    )
    return from_arguments(arguments, pretrained=pretrained)


def plain_backbone(name: str, kwargs: Mapping[str, Any], *, pretrained: bool = False) -> Backbone:
    """A model of timm's registry as a backbone with its coarsest map, for images of any size.

    Raises:
        ValueError: there is no such model, or it gives no feature maps.
        TypeError: it does not take an argument.
    """
    name = timm_name(name)
    return build_backbone(name, _any_size(name) | dict(kwargs), None, pretrained=pretrained)


def _any_size(name: str) -> dict[str, Any]:
    """Keyword arguments with which a model takes images of any size, as far as it has them."""
    taken = arguments_of(model_entrypoint(name.split(".")[0])).names
    return {key: value for key, value in _ANY_SIZE.items() if key in taken}


class _Maker(NamedTuple):
    """See :class:`castling.models.dense.MakeBackbone`."""

    arguments: DenseArguments
    pretrained: bool

    def __call__(self, strides: Sequence[int] | None) -> Backbone:
        arguments = self.arguments
        return build_backbone(
            arguments.backbone,
            arguments.kwargs,
            strides,
            attention=arguments.attention,
            where=arguments.where,
            pretrained=self.pretrained,
            freeze_batchnorm=arguments.options.freeze_batchnorm,
        )

    def coarsest(self) -> Backbone:
        return self(None)

    def whole_vit(self) -> WholeViT:
        arguments = self.arguments
        return build_whole_vit(
            arguments.backbone,
            arguments.kwargs,
            attention=arguments.attention,
            where=arguments.where,
            pretrained=self.pretrained,
        )


def from_arguments(arguments: DenseArguments, *, pretrained: bool = False) -> nn.Module:
    """The dense model of ``arguments``; as :func:`build_dense`."""
    build = head_spec(arguments.head).build
    model = build(arguments.options, _Maker(arguments, pretrained), arguments.num_classes)
    model.dense_arguments = arguments  # type: ignore[assignment]
    return model
