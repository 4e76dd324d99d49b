"""The networks and guidance as one function of x and a row (`networks`, `prediction`).

`prepare` computes what no step changes (`Exact`): the text's keys and values, the table of times, the hints'
features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rawdiff.conditions import Conditions, Context
from rawdiff.errors import UsageError
from rawdiff.graphs import EAGER, Runner
from rawdiff.nets import controlnet, guidance, unet
from rawdiff.nets.added import Added
from rawdiff.nets.derived import Derived
from rawdiff.nets.exact import EVERYTHING, Exact
from rawdiff.nets.exact import check as check_exact
from rawdiff.nets.memory import telling_out_of_memory
from rawdiff.nets.tables import Bound, Telling, taken
from rawdiff.networks import ControlNet, Hold, Networks
from rawdiff.plan import Plan
from rawdiff.prediction import Predict, Prediction, guide
from rawdiff.probes import NO_PROBE, ProbeLike

__all__ = ["EVERYTHING", "Exact", "Hold", "Predict", "Prediction", "guide", "prepare"]


@torch.no_grad()
def prepare(
    plan: Plan,
    conditions: Conditions,
    net: Any,
    nets: Sequence[Any] = (),
    *,
    names: Sequence[str] = (),
    guess: bool = False,
    exact: Exact = EVERYTHING,
    runner: Runner = EAGER,
    hold: Hold | None = None,
    probe: ProbeLike = NO_PROBE,
) -> Predict:
    """Bind the networks to a run: `net` is the UNet, `nets` the ControlNets in the plan's order.

    With `guess` the ControlNets see the cond half alone and their residuals fade towards the top; a net that
    pools its residuals sees the cond half alone always, without a word about the other nets. `exact` says
    what is computed once instead of at each step, and again when weights are changed in place. `hold` is called now
    and before each evaluation, to have the weights be this run's own; None where nobody else changes them. `runner` is
    how the networks' calls are run; a frugal one runs cond after uncond and not beside it. `names` are for the probes.
    Raises WeightsError for a network that is not run faithfully.
    """
    check_exact(exact)
    unet.check(net)
    runner.stage([net, *nets])
    if hold is not None:
        hold(probe)
    dtype, device = net.conv_in.weight.dtype, net.conv_in.weight.device
    channels, inpaint = net.config.in_channels, conditions.inpaint
    unet.check_channels(channels, masked=inpaint is not None)
    if inpaint is not None and channels != unet.INPAINT_CHANNELS:
        raise UsageError(
            f"inpaint: this UNet takes {channels} channels, expected {unet.INPAINT_CHANNELS}: mask its x by a Blend"
        )
    texts = [_on(context, conditions.ids, device, dtype) for context in conditions.contexts]
    times = {row.t: row.t_device() for row in plan.rows}
    count = guidance.width(net.config)
    if plan.distilled != (count is not None):
        raise UsageError(
            f"distilled: the plan says {plan.distilled}, but this UNet {'is not' if count is None else 'is'} told "
            "its guidance"
        )
    waves = None if count is None else guidance.waves(plan.guidance, count).to(device, dtype)
    seen_by_unet = None if inpaint is None else inpaint.to(device, dtype)
    networks = Networks(Bound(net, taken(net, texts), times, exact, waves), exact, runner, hold, seen_by_unet)
    for k, (module, hint) in enumerate(zip(nets, conditions.hints, strict=True)):
        if not plan.active(k):
            networks.add(None)
            continue
        controlnet.check(module, net)
        with probe("hint features"), telling_out_of_memory("the hints' features", device):
            features = _features(module, hint.to(device, dtype))
        alone = guess or controlnet.pools(module)
        seen = [(None, cond) for _, cond in texts] if alone else list(texts)
        scales = controlnet.guess_scales(module) if guess else None
        networks.add(
            ControlNet(
                name=f"controlnet {names[k] if names else k}",
                network=Bound(module, taken(module, seen), times, exact),
                features=features,
                cond_only=alone,
                guess=None if scales is None else scales.to(device),
            )
        )
    return networks


def _features(net: Any, hint: Tensor) -> Derived:
    sources = net.controlnet_cond_embedding.parameters()
    return Derived(sources, lambda: [controlnet.embed_hint(net, hint)])


def _on(
    context: Context, ids: Tensor | None, device: torch.device, dtype: torch.dtype
) -> tuple[Telling | None, Telling]:
    """A context of both halves [2B,...], uncond then cond, or None; and of the cond half [B,...]."""
    count, pooled = len(context.cond), context.cond_pooled
    told = None
    if pooled is not None and ids is not None:
        told = Added(pooled.to(device, dtype), ids[1:].to(device).expand(count, -1))
    if context.uncond is None:
        return None, Telling(context.cond.to(device, dtype), told)
    both = torch.cat([context.uncond, context.cond]).to(device, dtype)
    if told is None or ids is None or context.uncond_pooled is None:
        return Telling(both), Telling(both[-count:])
    whole = Added(
        torch.cat([context.uncond_pooled.to(device, dtype), told.pooled]),
        ids.to(device).repeat_interleave(count, dim=0),
    )
    return Telling(both, whole), Telling(both[-count:], told)
