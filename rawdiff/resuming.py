"""Resuming a run that was saved, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rawdiff import images, recipe, saved
from rawdiff.arguments import check_callables, check_path, rebuild_sampler, second_prompts, shown
from rawdiff.beginning import part_way
from rawdiff.binding import WATCH, account_of, set_up, undone_on_error
from rawdiff.controls import recall
from rawdiff.errors import UsageError
from rawdiff.geometry import latent_size
from rawdiff.loop import Constrain
from rawdiff.nets.exact import without
from rawdiff.nets.guidance import is_told
from rawdiff.noise import Noise
from rawdiff.parts import Parts
from rawdiff.plan import make_plan
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.run import Run
from rawdiff.say import Say, say_on_stderr
from rawdiff.syntax import check_syntax
from rawdiff.texts import texts_of

__all__ = ["resume"]


@undone_on_error
def resume(
    self: Parts,
    path: str | Path,
    *,
    run: Run | None = None,
    sampler: Any = None,
    modules: Sequence[Any] = (),
    constrain: Constrain | None = None,
    watch: Sequence[str] = WATCH,
    say: Say = say_on_stderr,
    probe: ProbeLike = NO_PROBE,
) -> Run:
    """Go on with a run that `Run.save` wrote, to the bit.

    With `run`, one just prepared, the two recipes must be the same. `sampler` is needed where the run was
    prepared with a scheduler or Sampler of one's own, `modules` (one for each control) where it was with
    modules, `constrain` where `Run.constrain` was in force: no file holds these, and without them it
    would be another run. LoRAs are looked for where they were. Raises InputError for a file that is damaged, or
    made with other weights, recipe or versions, UsageError for a part that has to be given again.
    """
    path = check_path("path", path)
    check_callables(say=say, probe=probe)
    if run is not None and not isinstance(run, Run):
        raise UsageError(f"run {shown(run)}: expected a run that was just prepared")
    held = saved.load(path, self.device)
    if run is not None:
        saved.check_same(path, held.recipe, run.recipe)
    account = held.recipe
    own = account_of(self, masked=recipe.is_masked(account))
    saved.check_same(path, {key: account.get(key) for key in own}, own)
    held.check_constraint(constrain)
    wanted = recall(path, account["controls"], modules)
    made, spec = rebuild_sampler(path, account["sampler"], sampler, self.scheduler)
    saved.check_same(path, {"sampler": account["sampler"]}, {"sampler": spec})
    made = made if account["image"] is None else part_way(made, account["image"]["strength"])
    windows = [control.window for control in wanted]
    syntax = check_syntax(account.get("syntax"))
    first = (account["prompt"], account["negative"])
    second = second_prompts(account.get("prompt_2"), account.get("negative_2"), first, len(first[0]), 1)
    plan = make_plan(
        made,
        guidance=account["guidance"],
        rescale=account["rescale"],
        windows=windows,
        device=self.device,
        guidance_end=1.0 if account.get("guidance_end") is None else account["guidance_end"],
        contexts=texts_of(syntax, first, second, made).rows,
        distilled=is_told(self.unet.config),
    )
    held.check_table(plan)
    size, seeds = (account["size"][0], account["size"][1]), account["seeds"]
    added = self.extras.loras([(entry["name"], entry["scale"]) for entry in account["loras"]])
    saved.check_same(path, {"loras": account["loras"]}, {"loras": [one.describe() for one in added]})
    masked = recipe.is_masked(account)
    self.check_memory(size, len(seeds), guided=plan.guided, masked=masked, added=added, controls=wanted)
    hints = tuple(
        images.Hint(entry["kind"], tensor[0], entry["sha256"], entry["hint"])
        for entry, tensor in zip(account["controls"], held.conditions.hints, strict=True)
    )
    exact = without(account["repeats"])
    told: dict[str, Any] = {"say": say, "probe": probe, "blend": held.blend, "paste": held.paste}
    setup = set_up(self, plan, held.conditions, wanted, hints, account, held.origin, added, exact, **told)
    for control, entry in zip(wanted, account["controls"], strict=True):
        name = f"controlnet {control.kind}"
        saved.check_same(path, {name: entry["weights"]}, {name: self.net_hashes(control)})
    noise = Noise(seeds, latent_size(size), self.device)
    resumed = Run(setup, held.state, noise, watch=watch, x0=held.x0)
    if held.constraint is not None:
        resumed.constrain(constrain, forget=held.constraint["forget"])
    return resumed
