"""Feature extraction from the models of this package (``features_only=True``)."""

from __future__ import annotations

import torch
from timm.models._features import FeatureGetterNet


class FeatureGetter(FeatureGetterNet):
    """timm's wrapper around ``forward_intermediates``, with gradient checkpointing of its model."""

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass, as the wrapped model does alone."""
        self.model.set_grad_checkpointing(enable)
