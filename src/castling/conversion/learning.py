"""The loop of the stages that learn by gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from castling.conversion.config import ConversionConfig
from castling.conversion.images import Views

#: Called with stage, views seen, views in all, loss.
Progress = Callable[[str, int, int, float], None]
#: Called after every step with views seen and the optimiser's state when it is asked for.
AfterStep = Callable[[int, Callable[[], dict[str, Any]]], None]


def learn(
    stage: str,
    groups: Iterable[dict[str, object]],
    views: Views,
    count: int,
    loss_of: Callable[[Tensor, float], Tensor],
    config: ConversionConfig,
    progress: Progress | None,
    *,
    seen: int = 0,
    state: dict[str, Any] | None = None,
    after_step: AfterStep | None = None,
) -> None:
    """AdamW until ``count`` views are seen, warmed up and then a cosine.

    Args:
        stage: its name.
        groups: of parameters, with their learning rates.
        views: images.
        count: views in all.
        loss_of: batch and the part that is done -> loss.
        config: warm-up and clipping.
        progress: told after every step.
        seen: views before, where the stage was interrupted.
        state: of the optimiser then.
        after_step: see :data:`AfterStep`.

    Raises:
        ValueError: a loss that is not finite.
    """
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups)
    rates = [group["lr"] for group in optimizer.param_groups]
    if state is not None:
        optimizer.load_state_dict(state)
    parameters = list(itertools.chain(*(group["params"] for group in optimizer.param_groups)))
    batches = iter(views)
    while seen < count:
        batch = next(batches)[: count - seen]
        done = seen / count
        factor = (
            (done + len(batch) / count) / config.warmup
            if done < config.warmup
            else 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / (1 - config.warmup)))
        )
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(factor, 1.0)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(batch, done)
        if not bool(torch.isfinite(loss.detach())):
            raise ValueError(
                f"the loss of the stage {stage!r} is not finite at view {seen}: lower its learning "
                "rate, or look for images or weights that are not finite"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        seen += len(batch)
        if progress is not None:
            progress(stage, seen, count, float(loss.detach()))
        if after_step is not None:
            after_step(seen, optimizer.state_dict)
