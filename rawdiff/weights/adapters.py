"""LoRAs merged into a model's weights, and taken off again to the bit."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rawdiff.errors import ResourceError, UsageError, WeightsError
from rawdiff.nets.memory import is_out_of_memory
from rawdiff.weights.lora import Factors, Lora
from rawdiff.weights.lora_layers import Layer, Layers

__all__ = ["Adapters"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_Changes = dict[Layer, list[tuple[Factors, float]]]
"""What is added to each layer, and how often."""


class Adapters:
    """The LoRAs of a UNet and its text encoders: `W + scale * alpha / rank * up @ down`, written in place of W.

    Every change is computed in fp32 from a copy of the weight as it was (kept on the CPU while a LoRA is on) and
    rounded once, so that neither order nor history of changes shows in a weight, and `clear` restores each to the
    bit. Tensors stay where they are: whoever holds one sees the change; what was computed from the weights does not,
    and is right again when the same LoRAs are. One Adapters a model.
    """

    def __init__(
        self, unet: Any, text_encoder: Any, text_encoder_2: Any = None, *, device: torch.device | None = None
    ) -> None:
        """`device` is where changes are computed: wherever a network is then put away, they are the same to the bit."""
        self._layers = Layers(unet, text_encoder, text_encoder_2)
        self._device = device
        self._pristine: dict[Layer, Tensor] = {}
        self._changes: _Changes = {}
        self._applied: tuple[tuple[Lora, float], ...] = ()

    @property
    def applied(self) -> tuple[tuple[Lora, float], ...]:
        """The LoRAs that are on, with their scales, as given to `set`."""
        return self._applied

    def set(self, loras: Sequence[tuple[Lora, float]]) -> None:
        """Have exactly these on, each with its scale (1 as trained, 0 none, below 0 its opposite).

        All are checked before anything is changed, and what fails later is undone. Raises WeightsError for a LoRA
        that does not fit this model or makes a weight overflow, UsageError for a scale that is no finite number,
        ResourceError where memory gives out.
        """
        pairs = _checked(loras)
        changes = self._plan(pairs)
        try:
            self._write(changes)
        except BaseException as error:
            self._undo()
            if is_out_of_memory(error):
                left = "those before are still on" if self._applied else "none is on"
                raise ResourceError(
                    f"out of memory while merging LoRAs ({left}): take fewer, or free some memory"
                ) from error
            raise
        self._changes, self._applied = changes, pairs

    def more_bytes(self, loras: Sequence[tuple[Lora, float]]) -> int:
        """Bytes of the copies that `set` would keep beyond those that are kept now; raises what `set` does."""
        layers = self._plan(_checked(loras)).keys() - self._pristine.keys()
        return sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)

    def clear(self) -> None:
        """Take all off: every weight is again what it was, to the bit."""
        self.set(())

    def _undo(self) -> None:
        """Back to what was on; where there is no memory even for that, to none, which needs none."""
        try:
            self._write(self._changes)
        except BaseException:
            self._write({})
            self._changes, self._applied = {}, ()

    def _plan(self, pairs: Sequence[tuple[Lora, float]]) -> _Changes:
        owners = self._owners()
        changes: _Changes = {}
        ordered = sorted(
            pairs, key=lambda pair: (pair[0].sha256, pair[1])
        )  # the order of a sum shows in its bits
        for lora, scale in ordered:
            own: dict[Layer, tuple[Layer, Factors]] = {}
            for layer, factors in self._layers.match(lora).items():
                _check_weight(layer)
                owner = owners[layer]
                first, known = own.setdefault(owner, (layer, factors))
                other = owner if first is layer else first
                if other is not layer and not (_same_form(layer, other) and factors.equals(known)):
                    raise WeightsError(
                        f"{lora.path}: {factors.keys['down']!a} changes {layer}, which shares its weight with {other}; "
                        "expected the same change of both"
                    )
            if scale != 0:
                for layer, (_, factors) in own.items():
                    changes.setdefault(layer, []).append((factors, scale))
        return changes

    def _owners(self) -> dict[Layer, Layer]:
        """For each layer the first one with the same weight: a tied weight is kept, changed and restored once."""
        first: dict[int, Layer] = {}
        return {
            layer: first.setdefault(layer.weight.data_ptr() or id(layer.weight), layer)
            for layer in self._layers.every
        }

    @torch.no_grad()
    def _write(self, changes: Mapping[Layer, Sequence[tuple[Factors, float]]]) -> None:
        for layer in changes:
            if layer not in self._pristine:
                self._pristine[layer] = layer.weight.detach().to("cpu", copy=True)
        for layer in list(self._pristine):
            if layer in changes:
                layer.weight.copy_(_merged(layer, self._pristine[layer], changes[layer], self._device))
            else:
                layer.weight.copy_(self._pristine[layer])
                del self._pristine[layer]


def _merged(
    layer: Layer, pristine: Tensor, changes: Sequence[tuple[Factors, float]], device: torch.device | None
) -> Tensor:
    """A layer's new weight; raises WeightsError where it is not finite."""
    dtype = layer.weight.dtype
    device = layer.weight.device if device is None else device
    wide = torch.promote_types(dtype, torch.float32)
    total = pristine.to(device, wide, copy=True)
    with torch.autocast(device.type, enabled=False):
        for factors, scale in changes:
            total.add_(factors.product(device, wide).mul_(scale * factors.scale).reshape(total.shape))
    merged = total.to(dtype)
    if not bool(merged.isfinite().all()):
        raise WeightsError(
            f"{layer}: with these LoRAs a weight is too large for {str(dtype).removeprefix('torch.')}; "
            "expected smaller scales"
        )
    return merged


def _checked(loras: Any) -> tuple[tuple[Lora, float], ...]:
    if not isinstance(loras, (list, tuple)):
        raise UsageError(
            f"loras: found {type(loras).__name__}, expected a list of pairs of a LoRA and its scale"
        )
    pairs = []
    for pair in loras:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], Lora):
            raise UsageError(f"loras: found {str(pair)[:80]!a}, expected a pair of a LoRA and its scale")
        lora, scale = pair
        known = isinstance(scale, (int, float)) and not isinstance(scale, bool)
        if not known or not abs(scale) <= sys.float_info.max:
            found = f"{scale:g}" if isinstance(scale, float) else type(scale).__name__
            raise UsageError(f"scale of {lora.path}: found {found}, expected a finite number")
        pairs.append((lora, float(scale)))
    return tuple(pairs)


def _check_weight(layer: Layer) -> None:
    weight = layer.weight
    if weight.is_meta or weight.dtype not in _DTYPES:
        found = "no values yet" if weight.is_meta else f"dtype {str(weight.dtype).removeprefix('torch.')}"
        raise UsageError(f"{layer} has {found}: expected a weight in fp16, bf16, fp32 or fp64")
    if weight.is_inference() and not torch.is_inference_mode_enabled():
        raise UsageError(
            f"{layer} was made under inference_mode and cannot be changed: load the model without it"
        )


def _same_form(layer: Layer, other: Layer) -> bool:
    """Whether two layers see the memory they share as one and the same matrix."""
    a, b = layer.weight, other.weight
    return a.shape == b.shape and a.stride() == b.stride()
