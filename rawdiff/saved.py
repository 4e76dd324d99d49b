"""A run on disk: one safetensors file of tensors, with everything else as JSON in its metadata.

It holds the recipe, the texts and hints as tensors, and the state to the bit, so that it is resumed with the
model alone. A digest over all of it shows any change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from rawdiff import strict_json
from rawdiff.blend import Blend
from rawdiff.conditions import Conditions, Context
from rawdiff.errors import InputError, UsageError, WeightsError
from rawdiff.images import Paste, write_file
from rawdiff.plan import Plan
from rawdiff.recipe import check_account, compare
from rawdiff.state import RunState
from rawdiff.weights.tensorfile import SafetensorsFile, open_tensors

__all__ = ["Saved", "check_same", "digest", "load", "save"]

FORMAT = 3
KEY = "rawdiff_run"
BESIDE_COND = ("uncond", "cond_pooled", "uncond_pooled")
"""What a context has beside its cond, or not, in order."""


@dataclass(frozen=True, eq=False)
class Saved:
    """What a file held, checked against itself but not yet against a model."""

    path: Path
    recipe: Mapping[str, Any]
    origin: Mapping[str, Any]
    """Where it came from, by name."""
    conditions: Conditions
    state: RunState
    x0: Tensor | None
    table: Tensor
    """The sampler's table from its last restart on, float64 [M,1+k,3+k]; empty without one."""
    blend: Blend | None
    """What a mask makes of x; its tensors are on the state's device."""
    paste: Paste | None
    constraint: Mapping[str, bool] | None
    """How `Run.constrain` was in force ({"forget": ...}), or None; what it does is in no file."""

    def check_constraint(self, given: object) -> None:
        """Raise UsageError unless a constraint is given where one was in force, and only there."""
        if self.constraint is not None and given is None:
            raise UsageError(
                f"{self.path}: was saved with a constraint in force: give it again, constrain=..."
            )
        if self.constraint is None and given is not None:
            raise UsageError(
                f"{self.path}: was saved without a constraint: resume it, then call run.constrain(...)"
            )

    def check_table(self, plan: Plan) -> None:
        """Raise InputError unless the state belongs to exactly this plan's sampler."""
        i, restarts = self.state.i, self.state.restarts
        if i > len(plan) or any(not plan.begin <= row < len(plan) for row in restarts):
            raise InputError(
                f"{self.path}: stands before row {i}, restarted at {list(restarts)}, of {len(plan)}: no such run"
            )
        own = table_of(self.state.plan(plan))
        if own.shape != self.table.shape or not torch.equal(own, self.table):
            raise InputError(
                f"{self.path}: the sampler's table differs from the saved one (another diffusers or numpy?), "
                "so the run cannot go on to the bit: begin it anew"
            )


def table_of(plan: Plan) -> Tensor:
    """The weights of the plan's last sampler, float64 [M,1+k,3+k]; [0] if it is not a table."""
    weights = [row.weights for row in plan.sampler.rows]
    return (
        torch.from_numpy(np.stack(weights)).double()
        if weights[0].size
        else torch.zeros(0, dtype=torch.float64)
    )


def save(
    path: str | Path,
    recipe: Mapping[str, Any],
    origin: Mapping[str, Any],
    conditions: Conditions,
    plan: Plan,
    state: RunState,
    x0: Tensor | None,
    *,
    blend: Blend | None = None,
    paste: Paste | None = None,
    constraint: Mapping[str, bool] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a run to `path`, never half-written, and never over another file unless asked."""
    tensors = {"x": state.x, "table": table_of(state.plan(plan))}
    if x0 is not None:
        tensors["x0"] = x0
    for k, context in enumerate(conditions.contexts):
        tensors[f"context.{k}.cond"] = context.cond
        parts = {name: getattr(context, name) for name in BESIDE_COND}
        tensors |= {f"context.{k}.{name}": part for name, part in parts.items() if part is not None}
    for k, hint in enumerate(conditions.hints):
        tensors[f"hint.{k}"] = hint
    for name, part in (("inpaint", conditions.inpaint), ("ids", conditions.ids)):
        tensors |= {} if part is None else {name: part}
    for name, whole in (("blend", blend), ("paste", paste)):
        tensors |= {} if whole is None else {f"{name}.{key}": part for key, part in vars(whole).items()}
    sampler = _pack(state.s, "s", tensors)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    body = {
        "format": FORMAT,
        "recipe": dict(recipe),
        "origin": dict(origin),
        "i": state.i,
        "draws": state.draws,
        "restarts": list(state.restarts),
        "by_hand": state.by_hand,
        "sampler": sampler,
        "constraint": None if constraint is None else dict(constraint),
    }
    text = json.dumps(body, ensure_ascii=True, sort_keys=True)
    metadata = {KEY: text, "sha256": digest(text, tensors)}
    return write_file(path, to_bytes(tensors, metadata=metadata), overwrite=overwrite)


def load(path: str | Path, device: torch.device | str = "cpu") -> Saved:
    """Read what `save` wrote, the state to `device`; raises InputError for a file that is anything else."""
    path = Path(path)
    try:
        file = open_tensors(path)
        try:
            if not isinstance(file, SafetensorsFile):
                raise InputError(f"{path}: expected a saved run, found a pickle")
            tensors = {name: file.read(name) for name in file.entries}
            metadata = file.metadata
        finally:
            file.close()
    except WeightsError as error:
        raise InputError(str(error)) from None
    text = metadata.get(KEY)
    if text is None:
        raise InputError(
            f"{path}: expected a saved run, found tensors without one (no {KEY!r} in the metadata)"
        )
    if metadata.get("sha256") != digest(text, tensors):
        raise InputError(f"{path}: the saved run is damaged or was changed: its digest does not match")
    # From here on the file is as it was written; what could still differ is the version that wrote it.
    try:
        body = strict_json.loads(text)
        if body["format"] != FORMAT:
            raise InputError(f"{path}: saved run of format {body['format']!r}, expected {FORMAT}")
        check_account(body["recipe"], len(tensors["x"]), str(path))
        contexts: list[Context] = []
        while f"context.{len(contexts)}.cond" in tensors:
            name = f"context.{len(contexts)}"
            beside = (tensors.get(f"{name}.{other}") for other in BESIDE_COND)
            contexts.append(Context(tensors[f"{name}.cond"], *beside))
        hints = [tensors[f"hint.{k}"] for k in range(len(body["recipe"]["controls"]))]
        s = _unpack(body["sampler"], tensors, device)
        place = body["i"], body["draws"], tuple(body["restarts"]), body["by_hand"]
        state = RunState(tensors["x"].to(device), s, *place)
        x0 = tensors["x0"].to(device) if "x0" in tensors else None
        seen = tensors.get("inpaint"), tensors.get("ids")
        conditions = Conditions(tuple(contexts), tuple(hints), *seen)
        kept = {key: tensor.to(device) for key, tensor in _within("blend", tensors).items()}
        pasted = _within("paste", tensors)
        constraint = body["constraint"]
        if constraint is not None and type(constraint["forget"]) is not bool:
            raise ValueError("constraint")
        if type(state.by_hand) is not bool:
            raise ValueError("by_hand")
        for name, number in (
            ("i", state.i),
            ("draws", state.draws),
            *(("restarts", k) for k in state.restarts),
        ):
            if type(number) is not int or number < 0:
                raise InputError(
                    f"{path}: {name} of the saved run is {str(number)[:40]!a}, expected a row's number"
                )
        return Saved(
            path, body["recipe"], body["origin"], conditions, state, x0, tensors["table"],
            Blend(**kept) if kept else None, Paste(**pasted) if pasted else None, constraint,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not a saved run that this version reads ({type(error).__name__})"
        ) from error


def _within(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors saved under `name.`, by the rest of their names."""
    return {
        key.removeprefix(f"{name}."): found for key, found in tensors.items() if key.startswith(f"{name}.")
    }


def check_same(path: str | Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise InputError, naming the entries, unless a saved recipe says what `expected` says.

    The model's name may differ: what it is, its weights' hashes say.
    """
    now = json.loads(json.dumps(dict(expected)))
    different = {
        key: list(compare(found.get(key), now.get(key), key)) for key in sorted({*found, *now} - {"model"})
    }
    keys = [key for key, places in different.items() if places]
    if keys:
        name, held, wanted = different[keys[0]][0]
        values = f"{name} is {str(held)[:80]} in the file and {str(wanted)[:80]} now"
        raise InputError(f"{path}: the saved run differs in {' and '.join(keys)}: {values}")


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the JSON and over every tensor's name, dtype, shape and bytes."""
    sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name]
        sha256.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return sha256.hexdigest()


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A sampler's state as JSON, its tensors put aside under `name`."""
    match value:
        case Tensor():
            tensors[name] = value
            return {"tensor": name, "host": value.device.type == "cpu"}
        case np.ndarray():
            tensors[name] = torch.from_numpy(value)
            return {"array": name}
        case list():
            return {"list": [_pack(item, f"{name}.{k}", tensors) for k, item in enumerate(value)]}
        case dict():
            return {"dict": {key: _pack(item, f"{name}.{key}", tensors) for key, item in value.items()}}
        case None | bool() | int() | str():
            return {"value": value}
        case float():
            return {"float": value.hex()}
        case _:
            raise UsageError(f"this sampler's state holds a {type(value).__name__}, which cannot be saved")


def _unpack(value: Any, tensors: Mapping[str, Tensor], device: torch.device | str) -> Any:
    [(kind, held)] = [(k, v) for k, v in value.items() if k != "host"]
    match kind:
        case "tensor":
            return tensors[held] if value["host"] else tensors[held].to(device)
        case "array":
            return tensors[held].numpy()
        case "list":
            return [_unpack(item, tensors, device) for item in held]
        case "dict":
            return {key: _unpack(item, tensors, device) for key, item in held.items()}
        case "float":
            return float.fromhex(held)
        case "value":
            return held
        case _:
            raise ValueError(kind)
