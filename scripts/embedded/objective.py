"""What UNets and ControlNets learn from one batch: the error of v at random timesteps, more of it where objects are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.embedded.folder import SCHEDULE
from scripts.embedded.twins import Exchanged, difference

__all__ = ["EARLY", "INSIDE", "SETTLED", "Noised", "Objective", "noise_like", "shown_to"]

NATIVE = 16  # latents a side, of a region that has noise with a mean of its own
OFFSET = 0.4  # noise with a mean of its own, so that whether it is night is read from the words and not off the noise
REGIONAL = 0.2  # so each region of a larger picture: objects had colours read off the noise there
EARLY = 0.4  # the share of timesteps from the noisiest tenth, where the words decide the whole
INSIDE = 2.0  # how much more an error inside an object counts, where the map says which latents those are
FOUND = 700  # below this timestep one sees where an object is: its errors may count more without a map too
# Below this timestep one sees all that the words say: without them there is the same to predict.
SETTLED = 350


def noise_like(x: Tensor) -> Tensor:
    """Noise for latents [B,4,h,w]: white, and with a mean of its own, as a whole and in each region of 16x16.

    At the noisiest step a latent's signal is a fifteenth of its noise, yet over an object of a thousand latents the
    white noise averages out: what is drawn from pure noise then has the colours that chance gave its regions.
    """
    count, channels, height, width = x.shape
    eps = torch.randn_like(x) + OFFSET * torch.randn(count, channels, 1, 1, device=x.device)
    if max(height, width) > NATIVE:
        cells = (-(-height // NATIVE) + 1, -(-width // NATIVE) + 1)
        coarse = torch.randn(count, channels, *cells, device=x.device)
        eps += REGIONAL * F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)
    return eps


class Noised(NamedTuple):
    """Latents on their way to noise: x = sqrt(a) x0 + sqrt(1 - a) eps."""

    t: Tensor  # [B] timesteps
    a: Tensor  # [B,1,1,1], the share of the signal (alpha bar)
    eps: Tensor  # [B,4,h,w]

    def x(self, x0: Tensor) -> Tensor:
        """What the networks see of these latents."""
        return self.a.sqrt() * x0 + (1 - self.a).sqrt() * self.eps

    def v(self, x0: Tensor) -> Tensor:
        """What there is to predict."""
        return self.a.sqrt() * self.eps - (1 - self.a).sqrt() * x0


def shown_to(hints: Mapping[str, Tensor] | None) -> int:
    """To how many pictures, the first ones, hints are shown."""
    return len(next(iter(hints.values()))) if hints else 0


class Objective:
    """The loss of one batch: the error of v at random timesteps (Salimans and Ho 2022, arXiv 2202.00512).

    Predicting v rather than the noise decides what is large, the sky and its brightness, where a small network
    that predicts noise leaves it to chance.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        device: torch.device,
        early: float = EARLY,
        inside: float = INSIDE,
        edges: float = 0.0,
        outside: float = 0.0,
        exchanged: Exchanged | None = None,
        empty: Tensor | None = None,
        agree: float = 0.0,
    ) -> None:
        """An error inside an object counts `inside` times more, one at its outline `edges` times, one outside
        it `outside` times; to an inpainting UNet its mask is the object. With `agree` above 0 the squared difference
        between what is predicted with the caption and with `empty`, the empty caption's token ids [1,T], is added
        so many times below the timestep SETTLED."""
        if agree and empty is None:
            raise ValueError("agree: expected the empty caption's token ids beside it")
        self.modules, self.device, self.early = modules, device, early
        self.inside, self.edges, self.outside, self.exchanged = inside, edges, outside, exchanged
        self.empty, self.agree = empty, agree
        betas = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000) ** 2
        self.alpha_bar = (1 - betas).cumprod(0).to(device)

    def noised(self, x0: Tensor, t: Tensor | None = None) -> Noised:
        """x0 [B,4,h,w] at random timesteps, or at these [B]."""
        if t is None:
            t = torch.randint(1000, (len(x0),), device=self.device)
            early = torch.rand(len(x0), device=self.device) < self.early
            t = torch.where(early, 900 + t // 10, t)
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        return Noised(t, a, noise_like(x0))

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor,
        hints: Mapping[str, Tensor] | None = None,
        given: Tensor | None = None,
    ) -> Tensor:
        """The UNet's v [B,4,h,w]; `hints`, each [S,3,8h,8w], are shown to the first S pictures, several at equal
        shares of one; `given` [B,5,h,w] are an inpainting UNet's further channels."""
        context = self.modules["text_encoder"](tokens).last_hidden_state
        residuals: dict[str, object] = {}
        if hints:
            shown = shown_to(hints)
            each = [
                self.modules[f"controlnet_{kind}"](
                    x[:shown], t[:shown], context[:shown], hint, 1 / len(hints), return_dict=False
                )
                for kind, hint in hints.items()
            ]
            rest = (0, 0, 0, 0, 0, 0, 0, len(x) - shown)
            downs = zip(*(down for down, _ in each), strict=True)
            residuals = {
                "down_block_additional_residuals": [F.pad(sum(together), rest) for together in downs],
                "mid_block_additional_residual": F.pad(sum(mid for _, mid in each), rest),
            }
        whole = x if given is None else torch.cat([x, given], dim=1)
        out: Tensor = self.modules["unet"](whole, t, context, **residuals).sample
        return out.float()

    def weight(self, inside: Tensor, t: Tensor, shown: int) -> Tensor:
        """How much an error counts [B,1,h,w], by the share of each latent that is an object's, where that can be known:
        of the first `shown` pictures, and at low noise."""
        known = t < FOUND
        known[:shown] = True
        counts = self.inside * inside + self.edges * 4 * inside * (1 - inside) + self.outside * (1 - inside)
        return 1 + counts * known.view(-1, 1, 1, 1)

    def __call__(
        self,
        x0: Tensor,
        tokens: Tensor,
        hints: Mapping[str, Tensor] | None,
        inside: Tensor,
        given: Tensor | None = None,
        twin: Tensor | None = None,
    ) -> Tensor:
        """`inside` [B,1,h,w] is the share of each latent that is an object's; with `given` its mask.

        `twin` is x0 of the exchanged scenes: told of them, the UNet has to predict what differs, where no hint shows
        the shapes.
        """
        noised, shown = self.noised(x0), shown_to(hints)
        x, t = noised.x(x0), noised.t
        out = self.predict(x, t, tokens, hints, given)
        weight = self.weight(inside, t, shown if given is None else len(x0))
        loss = (weight * (out - noised.v(x0)).square()).mean()
        if twin is not None and self.exchanged is not None:
            told, rows = self.exchanged(tokens, t)
            rows[:shown] = False
            loss = loss + self._retold(x, t, out, inside, told, rows, difference(x0, twin, noised.a))
        if self.agree and self.empty is not None:
            # All that the words change here are errors; guidance multiplies them, and purple objects became blue by it.
            rows = (t < SETTLED) & (tokens != self.empty).any(1)
            told, nothing = self.empty.expand_as(tokens), torch.zeros_like(out)
            loss = loss + self.agree * self._retold(x, t, out, inside, told, rows, nothing, hints, given)
        return loss

    def _retold(
        self,
        x: Tensor,
        t: Tensor,
        out: Tensor,
        inside: Tensor,
        told: Tensor,
        rows: Tensor,
        true: Tensor,
        hints: Mapping[str, Tensor] | None = None,
        given: Tensor | None = None,
    ) -> Tensor:
        """The error of what changes from `out` when the pictures of `rows` [B] are `told` [B,T] something else, where
        `true` [B,4,h,w] is what should."""
        if not rows.any():
            return out.new_zeros(())
        first = rows[: shown_to(hints)]
        some = {kind: hint[first] for kind, hint in hints.items()} if hints and first.any() else None
        further = None if given is None else given[rows]
        changes = self.predict(x[rows], t[rows], told[rows], some, further) - out[rows]
        counted = (1 + self.inside * inside[rows]) * (changes - true[rows]).square()
        return counted.mean() * len(counted) / len(x)
