"""Random LoRAs for the networks of a test, written in every layout, and the same as forward hooks.

change = random_changes(unet, text_encoder)          # {("unet", "mid_block...to_q"): Change, ...}
path = write(tmp_path / "a.safetensors", kohya(change))
with hooked(networks, change, scale=0.7): ...        # what the networks give with it
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rawdiff.weights import Adapters, Lora, read_lora

__all__ = [
    "ATTENTION",
    "EVERYTHING",
    "LAYOUTS",
    "Change",
    "Changes",
    "Networks",
    "diffusers",
    "hooked",
    "kohya",
    "lora_of",
    "merged",
    "meta_text_encoder",
    "meta_unet",
    "outputs",
    "peft",
    "product",
    "random_changes",
    "relative",
    "same",
    "small_networks",
    "state",
    "write",
]

Networks = dict[str, Any]
"""`unet` and `text_encoder`."""
State = dict[str, Tensor]

ATTENTION = r"to_[qkv]$|to_out\.0$|[qkv]_proj$|out_proj$"
EVERYTHING = r"."


@dataclass
class Change:
    """`down` [r,in(,kh,kw)], `up` [out,r(,1,1)], `mid` [r,r,kh,kw] or None, and alpha."""

    down: Tensor
    up: Tensor
    mid: Tensor | None
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / len(self.down)


Changes = dict[tuple[str, str], Change]
Tensors = dict[str, Tensor]
Metadata = dict[str, str]


def small_networks(seed: int = 0, **options: Any) -> Networks:
    from tests.small_models import small_text_encoder, small_unet

    return {"unet": small_unet(seed, **options), "text_encoder": small_text_encoder(seed + 1, layers=2)}


def random_changes(
    networks: Networks,
    seed: int = 0,
    *,
    layers: str = ATTENTION,
    strength: float = 0.3,
    alpha: Callable[[int], float] = lambda rank: rank / 2,
    with_mid: bool = False,
) -> Changes:
    """Changes of every layer whose name matches, in ranks 2 to 5, about `strength` times as large as the weights."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    changes: Changes = {}
    for part, network in networks.items():
        for name, module in network.named_modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d)) or not re.search(layers, name):
                continue
            rank, kernel = 2 + len(changes) % 4, tuple(module.weight.shape[2:])
            out, inside = module.weight.shape[:2]
            ones = (1,) * len(kernel)
            if with_mid and kernel:
                factors = draw(rank, inside, *ones), draw(out, rank, *ones), draw(rank, rank, *kernel)
            else:
                factors = draw(rank, inside, *kernel), draw(out, rank, *ones), None
            change = Change(*factors, float(alpha(rank)))
            size = product(change).std() * change.scale
            change.up *= strength * module.weight.std() / size
            changes[part, name] = change
    assert changes
    return changes


def product(change: Change) -> Tensor:
    """What is added to the weight before it is scaled, by convolving unit pictures: another way than rawdiff's."""
    if change.down.ndim == 2:
        return change.up @ change.down
    if change.mid is None:
        return F.conv2d(change.down.transpose(0, 1), change.up).transpose(0, 1)
    inner = F.conv2d(change.mid.transpose(0, 1), change.up).transpose(0, 1)  # [out, r, kh, kw]
    return F.conv2d(inner, change.down.transpose(0, 1))


@contextmanager
def hooked(networks: Networks, changes: Changes, scale: float = 1.0) -> Iterator[None]:
    """Inside, every changed layer adds the low-rank product's own output to its own."""

    def hook(change: Change) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        def add(layer: Any, given: tuple[Tensor], result: Tensor) -> Tensor:
            if isinstance(layer, nn.Linear):
                inner = F.linear(given[0], change.down.flatten(1))
                return result + scale * change.scale * F.linear(inner, change.up.flatten(1))
            options = {"stride": layer.stride, "padding": layer.padding}
            if change.mid is None:
                inner = F.conv2d(given[0], change.down, **options)
            else:
                inner = F.conv2d(F.conv2d(given[0], change.down), change.mid, **options)
            return result + scale * change.scale * F.conv2d(inner, change.up)

        return add

    handles = [
        networks[part].get_submodule(name).register_forward_hook(hook(change))
        for (part, name), change in changes.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def outputs(networks: Networks) -> Tensor:
    """What both networks make of fixed random inputs, flat; the UNet reads the text encoder's text."""
    generator = torch.Generator().manual_seed(7)
    unet, encoder = networks["unet"], networks["text_encoder"]
    dtype = unet.dtype
    ids = torch.randint(0, 90, (2, 77), generator=generator)
    text = encoder(ids).last_hidden_state
    size = unet.config.sample_size
    x = torch.randn(2, unet.config.in_channels, size, size, generator=generator).to(dtype)
    picture = unet(x, torch.tensor([300]), text.to(dtype)).sample
    return torch.cat([text.flatten().float(), picture.flatten().float()])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def state(networks: Networks) -> State:
    """Copies of every weight."""
    return {
        f"{part}.{name}": value.clone()
        for part, network in networks.items()
        for name, value in network.state_dict().items()
    }


def same(a: State, b: State) -> bool:
    """To the bit: 0.0 is not -0.0."""
    assert a.keys() == b.keys()
    return all(torch.equal(*(x[k].flatten().view(torch.uint8) for x in (a, b))) for k in a)


def merged(networks: Networks, *loras: tuple[Lora, float]) -> State:
    """The weights with these on; afterwards they are off."""
    made = Adapters(networks["unet"], networks["text_encoder"])
    made.set(loras)
    found = state(networks)
    made.clear()
    return found


def lora_of(networks: Networks, path: Path, seed: int = 0, **options: Any) -> Lora:
    return read_lora(write(path / f"{seed}.safetensors", kohya(random_changes(networks, seed, **options))))


def meta_unet(width: int = 768, **changes: Any) -> Any:
    """Stable Diffusion's UNet at full size, without values."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(cross_attention_dim=width, attention_head_dim=8, **changes)


def meta_text_encoder(width: int = 768, layers: int = 12) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(hidden_size=width, num_hidden_layers=layers))


# --------------------------------------------------------------------------------------------- the layouts


def _published(part: str, name: str) -> str:
    return name if part == "unet" else "text_model." + name.removeprefix("text_model.")


def kohya(changes: Changes, *, text: str = "lora_te") -> Tensors:
    """kohya's, alpha in a tensor for each layer."""
    held: Tensors = {}
    for (part, name), change in changes.items():
        stem = f"{'lora_unet' if part == 'unet' else text}_{_published(part, name).replace('.', '_')}"
        held[f"{stem}.lora_down.weight"] = change.down
        held[f"{stem}.lora_up.weight"] = change.up
        if change.mid is not None:
            held[f"{stem}.lora_mid.weight"] = change.mid
        held[f"{stem}.alpha"] = torch.tensor(change.alpha)
    return held


def _metadata(changes: Changes, parts: Mapping[str, str]) -> Metadata:
    """What diffusers' save_lora_weights writes of peft's LoraConfig; every layer's alpha is an exception."""
    table: dict[str, Any] = {}
    for part, prefix in parts.items():
        own = {_published(p, name): change.alpha for (p, name), change in changes.items() if p == part}
        if own:
            common = next(iter(own.values()))
            told = {
                "r": 4,
                "lora_alpha": common,
                "alpha_pattern": own,
                "use_dora": False,
                "use_rslora": False,
            }
            table.update({f"{prefix}{key}": value for key, value in told.items()})
    return {"format": "pt", "lora_adapter_metadata": json.dumps(table, indent=2, sort_keys=True)}


PARTS = {"unet": "unet.", "text_encoder": "text_encoder."}


def diffusers(changes: Changes) -> tuple[Tensors, Metadata]:
    """`unet.<layer>.lora.down.weight`, `text_encoder.<layer>.lora_linear_layer.down.weight`."""
    held: Tensors = {}
    for (part, name), change in changes.items():
        stem = f"{part}.{_published(part, name)}." + ("lora" if part == "unet" else "lora_linear_layer")
        held[f"{stem}.down.weight"], held[f"{stem}.up.weight"] = change.down, change.up
    return held, _metadata(changes, PARTS)


def old_diffusers(changes: Changes) -> tuple[Tensors, Metadata]:
    """The attention processors of diffusers before peft, and its own names for a text encoder's layers."""
    held: Tensors = {}
    for (part, name), change in changes.items():
        published = _published(part, name)
        if part == "unet":
            stem = published.replace(".to_", ".processor.to_").replace(".to_out.0", ".to_out") + "_lora"
        else:
            stem = re.sub(r"(q|k|v|out)_proj$", r"to_\1", published) + "_lora"
        held[f"{part}.{stem}.down.weight"], held[f"{part}.{stem}.up.weight"] = change.down, change.up
        held[f"{part}.{stem}.alpha"] = torch.tensor([change.alpha])
    return held, {}


def peft(changes: Changes) -> tuple[Tensors, Metadata]:
    """`unet.<layer>.lora_A.weight`, as diffusers writes today."""
    held: Tensors = {}
    for (part, name), change in changes.items():
        stem = f"{part}.{_published(part, name)}"
        held[f"{stem}.lora_A.weight"], held[f"{stem}.lora_B.weight"] = change.down, change.up
    return held, _metadata(changes, PARTS)


def peft_default(changes: Changes) -> tuple[Tensors, Metadata]:
    """peft's own state dict: `base_model.model.<layer>.lora_A.default.weight`, no network named."""
    held: Tensors = {}
    for (part, name), change in changes.items():
        stem = f"base_model.model.{_published(part, name)}"
        held[f"{stem}.lora_A.default.weight"] = change.down
        held[f"{stem}.lora_B.default.weight"] = change.up
        held[f"{stem}.alpha"] = torch.tensor(change.alpha, dtype=torch.float64)
    return held, {"format": "pt"}


def bare(changes: Changes) -> tuple[Tensors, Metadata]:
    """diffusers' layout as `save_attn_procs` wrote it: no network named either."""
    held, _ = diffusers(changes)
    alphas = {f"{_published(*key)}.alpha": torch.tensor(change.alpha) for key, change in changes.items()}
    return {re.sub(r"^(unet|text_encoder)\.", "", key): value for key, value in held.items()} | alphas, {}


LAYOUTS: dict[str, Callable[[Changes], tuple[Tensors, Metadata]]] = {
    "kohya": lambda changes: (kohya(changes), {"ss_network_dim": "4", "ss_network_alpha": "1"}),
    "kohya te1": lambda changes: (kohya(changes, text="lora_te1"), {}),
    "diffusers": diffusers,
    "old diffusers": old_diffusers,
    "peft": peft,
    "peft default": peft_default,
    "bare": bare,
}


def write(path: Path, tensors: Tensors, metadata: Metadata | None = None) -> Path:
    save_file(
        {key: value.contiguous().clone() for key, value in tensors.items()}, path, metadata=metadata or None
    )
    return path
