"""What a LoRA is weighed by: alpha / rank, where alpha is a tensor of the file, in its metadata, or beside it.

kohya stores an alpha for each layer. peft has one LoraConfig for a network, with exceptions by layer: diffusers
writes it into the header (`lora_adapter_metadata`: with the network's name before each key where it saves a pipeline's
LoRA, with none where it saves one network's), peft itself into an adapter_config.json in the same folder.
Where nothing is said alpha is the rank, and the factors count as they are; what is said of no layer is refused, and so
is a layer of which nothing is said where something is of others.

An alpha of 0 is refused, because it has two meanings: kohya's trainer takes it for the rank (networks/lora.py: "if
alpha == 0 or None, alpha is rank"), its merging script and A1111's web UI multiply by it. No trainer writes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rawdiff import strict_json
from rawdiff.errors import WeightsError
from rawdiff.weights.choose import read_json

__all__ = ["PEFT_FILE", "AlphaRules", "config_beside", "read_alphas"]

_DIFFUSERS_KEY = "lora_adapter_metadata"
PEFT_FILE = "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
_PREFIXES = re.compile(r"(?:(?:unet|text_encoder|text_encoder_2|base_model\.model|text_model)\.)*")
_TEXT = re.compile(r"(?:text_model|encoder\.layers)\.")
"""How the names of a text encoder's layers begin where they do not name their network; others are a UNet's."""
_NAMED = re.compile(r"(?:unet|text_encoder\w*)\.|lora_")
"""How names begin that tell their network."""
_LITERAL = re.compile(r"\^?(?:[\w-]|\\?\.)+")
"""What an exception's name may be: peft takes it for a regular expression, and no stranger's is run here."""

_LONGEST = 300
"""Of an exception's name, in characters; a layer's end is looked up no further."""
_CHANGE_THE_WEIGHTS = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Ways to begin that take something from the network's own weights (PiSSA: Meng et al. 2024, arXiv 2404.02948)."""


@dataclass(frozen=True)
class _Rule:
    """A LoraConfig's say on one network."""

    name: str
    """Where it stands."""
    alpha: float
    exceptions: tuple[tuple[str, float], ...]
    is_rank_stabilised: bool
    """Divide by sqrt(rank) (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732)."""

    @cached_property
    def _places(self) -> tuple[dict[str, int], dict[str, int]]:
        """Where each name first stands among the exceptions, of all of them and of those that may be an end too."""
        whole: dict[str, int] = {}
        ends: dict[str, int] = {}
        for place, (pattern, _) in enumerate(self.exceptions):
            name = _PREFIXES.sub("", pattern.removeprefix("^").replace("\\.", "."), count=1)
            whole.setdefault(name, place)
            if not pattern.startswith("^"):
                ends.setdefault(name, place)
        return whole, ends

    def alpha_of(self, layer: str) -> float:
        """The alpha of the first exception that names it or how it ends; the rule's own without one."""
        whole, ends = self._places
        tail = layer[-_LONGEST - 1 :]
        dots = (at for at, sign in enumerate(tail) if sign == ".")
        found = [whole.get(layer), *(ends.get(tail[at + 1 :]) for at in dots)]
        places = [place for place in found if place is not None]
        return self.exceptions[min(places)][1] if places else self.alpha


@dataclass(frozen=True)
class AlphaRules:
    """Every network's rule, by how the names of its layers begin; "" is for all."""

    path: Path
    rules: Mapping[str, _Rule]

    def scale(self, name: str, rank: int, key: str | None, alpha: float | None) -> float:
        """What the factors of the layer `name` are weighed by; `alpha` is the file's own, from its tensor `key`.

        Raises WeightsError where it is not above 0, or is another than the metadata's.
        """
        where = f"{self.path}: {key!a}"
        network = _network_of(name, self.rules)
        if network is None and alpha is None and self.rules:
            raise WeightsError(
                f"{self.path}: {_DIFFUSERS_KEY} says nothing of {name!a}, only of "
                f"{', '.join(ascii(key[:40]) for key in list(self.rules)[:3])}; expected the alpha of every layer"
            )
        rule = None if network is None else self.rules[network]
        if rule is not None:
            told = rule.alpha_of(_PREFIXES.sub("", name, count=1))
            if alpha is not None and alpha != told:
                raise WeightsError(f"{where} is {alpha:g}, and {rule.name} says {told:g}; expected one alpha")
            alpha, where = told, f"{self.path}: alpha of {name!a} in {rule.name}"
        if alpha is None:
            return 1.0
        if alpha == 0:
            raise WeightsError(
                f"{where} is 0, which some programs take for no effect and others for full effect; "
                "expected a number above 0"
            )
        if not alpha > 0 or not math.isfinite(alpha):
            raise WeightsError(f"{where} is {alpha:g}, expected a number above 0")
        return alpha / (rank**0.5 if rule is not None and rule.is_rank_stabilised else rank)


def config_beside(path: Path, names: Iterable[str]) -> Path | None:
    """peft's adapter_config.json beside a file in peft's own layout; None for other layouts, or without one."""
    config = path.with_name(PEFT_FILE)
    return config if any(_PEFT_PREFIX in name for name in names) and config.is_file() else None


def _network_of(layer: str, rules: Mapping[str, _Rule]) -> str | None:
    """Whose rule is a layer's: that of the network it names, the one for all, or that of the network it must be in."""
    name = layer.removeprefix(_PEFT_PREFIX)
    own = [name.split(".")[0], ""]
    if not _NAMED.match(name):
        own.append("text_encoder" if _TEXT.match(name) else "unet")
    return next((network for network in own if network in rules), None)


def read_alphas(
    path: Path, metadata: Mapping[str, str], config: Path | None, layers: Collection[str]
) -> AlphaRules:
    """The rules for `layers` in a file's metadata and in the config beside it.

    Raises WeightsError for what makes no sense, or is for none of these layers.
    """
    rules: dict[str, _Rule] = {}
    if config is not None:
        table = read_json(config)
        if table.get("peft_type", "LORA") != "LORA":
            found = str(table["peft_type"])[:40]
            raise WeightsError(f"{config}: peft_type is {found!a}, which is not supported; expected LORA")
        rules[""] = _rule(table, str(config), PEFT_FILE)
    text = metadata.get(_DIFFUSERS_KEY)
    if text is not None:
        where = f"{path}: {_DIFFUSERS_KEY}"
        try:
            table = strict_json.loads(text)
        except ValueError as error:
            raise WeightsError(f"{where} is not valid JSON ({str(error)[:120]})") from error
        if not isinstance(table, dict):
            raise WeightsError(f"{where} is a JSON {type(table).__name__}, expected an object")
        told: dict[str, dict[str, Any]] = {}
        for key, value in table.items():
            network, _, setting = key.rpartition(".")
            told.setdefault(network, {})[setting] = value
        own = {network: _rule(settings, where, _DIFFUSERS_KEY) for network, settings in told.items()}
        if "" in own and "" in rules and replace(rules[""], name=_DIFFUSERS_KEY) != own[""]:
            raise WeightsError(f"{where} says otherwise than {config}; expected one of them")
        rules |= own
        for network in own.keys() - {_network_of(layer, rules) for layer in layers}:
            raise WeightsError(
                f"{where} is about {network[:40] or 'every layer'!a}, and no layer of the file is its own; "
                "expected the alpha of these layers"
            )
    return AlphaRules(path, rules)


def _rule(table: Mapping[str, Any], where: str, name: str) -> _Rule:
    exceptions = table.get("alpha_pattern") or {}
    if not isinstance(exceptions, dict):
        raise WeightsError(
            f"{where}: alpha_pattern is {type(exceptions).__name__}, expected names and numbers"
        )
    for pattern in exceptions:
        if len(pattern) > _LONGEST or not _LITERAL.fullmatch(pattern):
            raise WeightsError(
                f"{where}: alpha_pattern {pattern[:80]!a} is no layer's name; patterns are not read"
            )
    if table.get("use_dora"):
        raise WeightsError(
            f"{where}: use_dora is set: a DoRA, which is not supported; expected a LoRA or LoCon"
        )
    begun = table.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGE_THE_WEIGHTS):
        raise WeightsError(
            f"{where}: init_lora_weights is {begun[:40]!a}: it is for weights that were changed before training; "
            "expected a LoRA for the model's own (peft converts most kinds when it saves them)"
        )
    return _Rule(
        name,
        _number(table.get("lora_alpha"), "lora_alpha", where),
        tuple((layer, _number(alpha, "alpha_pattern", where)) for layer, alpha in exceptions.items()),
        table.get("use_rslora") is True,
    )


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WeightsError(f"{where}: {name} is {str(value)[:40]!a}, expected a number")
    return float(value)
