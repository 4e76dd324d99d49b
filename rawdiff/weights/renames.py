"""Known differences between the tensor names in files and in modules, as a table with a name for each rule.

A rule only ever moves a tensor to a name that the module has and the file lacks. Whatever no rule explains
stays what it is: an extra or a missing tensor, and so an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from rawdiff.errors import WeightsError

__all__ = ["IGNORABLE", "RENAMES", "Ignorable", "Rename", "plan_names"]


@dataclass(frozen=True)
class Rename:
    """Names in a file that match `pattern` are known to the module as `replacement`."""

    name: str
    parts: tuple[str, ...]
    pattern: str
    replacement: str


@dataclass(frozen=True)
class Ignorable:
    """Tensors that files carry and modules make for themselves."""

    name: str
    parts: tuple[str, ...]
    pattern: str


_TEXT = ("text_encoder", "text_encoder_2")

RENAMES: tuple[Rename, ...] = (
    # transformers moved CLIP's text tower in and out of a submodule of this name: files have either form.
    Rename("text_model. dropped", _TEXT, r"^text_model\.", ""),
    Rename("text_model. added", _TEXT, r"^(?!text_model\.)", "text_model."),
    # The VAE's attention had these names in diffusers until 0.17; most Stable Diffusion files keep them.
    Rename("VAE query", ("vae",), r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),
    Rename("VAE key", ("vae",), r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
    Rename("VAE value", ("vae",), r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
    Rename("VAE proj_attn", ("vae",), r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)

IGNORABLE: tuple[Ignorable, ...] = (
    Ignorable("position_ids", _TEXT, r"^(text_model\.)?embeddings\.position_ids$"),
)


def plan_names(
    part: str, in_file: Collection[str], in_module: Collection[str], where: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Which name in the file feeds which name in the module, and the names in the file that are left over.

    Returns `({module name: file name}, extra names)`; raises WeightsError when two tensors claim one name.
    """
    wanted = set(in_module)
    feeds: dict[str, str] = {}
    extra: list[str] = []
    for name in in_file:
        if name in wanted:
            target: str | None = name
        elif any(part in rule.parts and re.search(rule.pattern, name) for rule in IGNORABLE):
            continue
        else:
            target = _renamed(part, name, wanted)
        if target is None:
            extra.append(name)
        elif target in feeds:
            raise WeightsError(
                f"{where}: {feeds[target]!a} and {name!a} are both {target!a}; expected one of them"
            )
        else:
            feeds[target] = name
    return feeds, tuple(extra)


def _renamed(part: str, name: str, wanted: Collection[str]) -> str | None:
    for rule in RENAMES:
        if part in rule.parts:
            renamed = re.sub(rule.pattern, rule.replacement, name, count=1)
            if renamed != name and renamed in wanted:
                return renamed
    return None
