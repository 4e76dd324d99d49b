"""What a file is that is no LoRA, or none that can be merged here: told by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rawdiff.errors import WeightsError
from rawdiff.weights.header import Entry

__all__ = ["refuse_other_kinds", "say_what_it_is"]

_ADAPTERS: tuple[tuple[str, str], ...] = (
    (r"\.dora_scale$|\.lora_magnitude_vector(\.|$)", "a DoRA"),
    (r"\.hada_(w1|w2|t1|t2)", "a LoHa"),
    (r"\.lokr_(w1|w2|t2)", "a LoKr"),
    (r"\.(oft_blocks|oft_diag|oft_r|oft_R)(\.|$)", "an OFT"),
    (r"\.on_input$|\.ia3_l", "an IA3"),
    (r"\.[ab][12]\.weight$", "a GLoRA"),
    (r"\.diff(_b)?$|\.[wb]_norm$", "a LyCORIS file of whole differences"),
)
"""Relatives of LoRA, by the ends of their tensors' names."""

_FILES: tuple[tuple[str, str], ...] = (
    (r"model\.diffusion_model\.", "a Stable Diffusion checkpoint"),
    (r"lora_controlnet$", "a Control-LoRA"),
    (r"control_model\.|controlnet_cond_embedding\.", "a ControlNet"),
    (r"image_proj\.|ip_adapter\.", "an IP-Adapter"),
    (r"first_stage_model\.|(encoder|decoder)\.conv_in\.", "a VAE"),
    (r"(down_blocks|mid_block|up_blocks)\.", "a UNet"),
    (r"(text_model\.)?encoder\.layers\.", "a text encoder"),
    (r"emb_params$|string_to_param|clip_[lg]$", "a textual-inversion embedding"),
)
"""What else lies about in safetensors, by how one of its tensors' names begins; the first that is found counts."""


def refuse_other_kinds(path: Path, keys: Sequence[str]) -> None:
    """Raise WeightsError that names the kind, if one of these names is a tensor of a LoRA's relatives."""
    for key in keys:
        for pattern, kind in _ADAPTERS:
            if re.search(pattern, key):
                raise WeightsError(
                    f"{path}: is {kind} ({key!a}), which is not supported; expected a LoRA or LoCon"
                )


def say_what_it_is(entries: Mapping[str, Entry]) -> str:
    """A file without a single LoRA factor, in words: "a UNet", with the name that shows it."""
    for pattern, words in _FILES:
        key = next((key for key in entries if re.match(pattern, key)), None)
        if key is not None:
            return f"{words} ({key!a})"
    key, entry = next(iter(entries.items()))
    if len(entries) == 1 and "." not in key and len(entry.shape) in (1, 2):
        return f"a textual-inversion embedding ({key!a})"
    return f"no LoRA (its first tensor is {key!a})"
