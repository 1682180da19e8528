"""The interface of a kernel: how queries meet keys."""

from __future__ import annotations

from torch import Tensor, nn

from castling.attention.config import AttentionConfig
from castling.attention.inputs import AttentionInputs


class Kernel(nn.Module):
    """How queries meet keys. Subclasses implement ``forward`` and register a configuration.

    Args:
        config: the frozen configuration that chose this kernel.
        num_heads: H.
        head_dim: d, channels of a query or key in one head.
        value_dim: d_v, channels of a value in one head.
    """

    #: True when a score bias (relative positions) can enter the kernel itself.
    takes_bias = False
    #: True when the cost grows with the square of the tokens.
    quadratic = False
    #: True when the kernel's own operator can add the local residual.
    adds_local = False
    #: True when the kernel cannot work without the grid of its tokens.
    needs_grid = False

    def __init__(
        self, config: AttentionConfig, num_heads: int, head_dim: int, value_dim: int
    ) -> None:
        super().__init__()
        self.name = config.name
        self.num_heads, self.head_dim, self.value_dim = num_heads, head_dim, value_dim

    def forward(self, inputs: AttentionInputs) -> Tensor:
        """Attend.

        Args:
            inputs: projected tokens; see there for shapes.

        Returns:
            (B, N_q, H, d_v) in the dtype of the value.
        """
        raise NotImplementedError


class AveragingKernel(Kernel):
    """A kernel that adds the auxiliary branch's output to its finished result."""

    def average(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        """The kernel alone; shapes as in :class:`AttentionInputs`."""
        raise NotImplementedError

    def forward(self, inputs: AttentionInputs) -> Tensor:
        """See :class:`Kernel`."""
        out = self.average(inputs.query, inputs.key, inputs.value, inputs.key_mask)
        added = inputs.auxiliary_output
        return out if added is None else out + added


class GridKernel(Kernel):
    """A kernel that needs every token on the grid, and one query for each key."""

    needs_grid = True

    def require_grid(self, inputs: AttentionInputs) -> tuple[int, int]:
        """The grid (h, w) of the tokens.

        Raises:
            ValueError: the grid is missing, there are prefix tokens, an auxiliary branch, or not as
                many queries as keys.
        """
        name = self.name
        advice = "choose another attention, or leave this layer out with where="
        if inputs.num_prefix_tokens:
            raise ValueError(
                f"{name} needs every token to lie on the grid, and this host puts "
                f"{inputs.num_prefix_tokens} class, distillation or register tokens in front: "
                'create it with class_token=False, global_pool="avg" (and reg_tokens=0), or '
                + advice
            )
        if inputs.grid is None:
            raise ValueError(f"{name} needs to know the grid: pass grid=(height, width) in tokens")
        if inputs.query.shape[1] != inputs.key.shape[1]:
            raise ValueError(
                f"{name} needs each query at the position of its key; this layer has "
                f"{inputs.query.shape[1]} queries and {inputs.key.shape[1]} keys: {advice}"
            )
        if inputs.auxiliary_output is not None:
            raise ValueError(f"{name} takes no auxiliary branch: {advice}")
        return inputs.grid
