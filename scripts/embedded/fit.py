"""The one training loop of UNets and ControlNets: timed, on a cosine, averaged, checkpointed, alone or as a team."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from scripts.embedded.arguments import amount, positive, share
from scripts.embedded.folder import write_model
from scripts.embedded.training import (
    ASSETS,
    Average,
    Progress,
    Team,
    cosine,
    default_device,
    load_state,
    save_state,
    work_folder,
)

__all__ = ["add_arguments", "begin", "fit"]


def add_arguments(parser: argparse.ArgumentParser, minutes: float, rate: float) -> None:
    """What every training can be told."""
    parser.add_argument("--minutes", type=positive, default=minutes)
    parser.add_argument("--rate", type=positive, default=rate)
    parser.add_argument("--floor", type=share, default=0.02, help="the last learning rate over the first")
    parser.add_argument("--install", action="store_true", help="write the result into the package")
    parser.add_argument("--threads", type=amount, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")


def begin(args: argparse.Namespace) -> tuple[Team, torch.device]:
    """Seeded alike in every process, so that all start with the same weights."""
    team = Team()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    return team, default_device()


def fit(
    name: str,
    modules: dict[str, nn.Module],
    start: Callable[[int], Callable[[int], tuple[Tensor, int]]],
    args: argparse.Namespace,
    team: Team,
    look: bool = False,
    write: Callable[[dict[str, nn.Module], Path], None] = write_model,
    beside: nn.Module | None = None,
) -> None:
    """Train those parameters of `modules` that take gradients, and write the averaged weights.

    `start(seed)` opens the data and returns the objective: from the step's number to its loss and how many pictures
    it saw. Checkpoints and, every tenth of the way, the averaged weights in the diffusers layout go to the work
    folder (by `write`, given the modules and a model folder); with `look` a sheet of samples every third time.
    `beside` is trained along and dropped: neither kept nor written.
    """
    device, work = default_device(), work_folder()
    checkpoint = work / f"{name}.ckpt"
    state = load_state(checkpoint) if args.resume and checkpoint.exists() else None
    if state is not None:
        for part, module in modules.items():
            module.load_state_dict(state["modules"][part])
    parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    further = [] if beside is None else list(beside.parameters())
    optimizer = torch.optim.AdamW([*parameters, *further], lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = Average(parameters, 0.9993)
    if state is not None and len(state["mean"]) != len(parameters):
        raise SystemExit(
            f"{checkpoint}: other parts learned there; move it away, or keep and train the same parts"
        )
    index = saved = seen = 0
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        average.mean = [m.to(device) for m in state["mean"]]
        index = average.count = state["index"]
    seed = args.seed + index
    torch.manual_seed(seed * 64 + team.rank)
    for turn in range(2):  # the first prepares what has not been prepared yet, the others read it
        if team.leads == (turn == 0):
            objective = start(seed)
        team.agree(0.0)
    # Where a processor has no instructions for bf16 torch imitates them, at a fraction of the speed of fp32.
    known = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that is supported
    in_bf16 = device.type == "cpu" and known.get("avx512_bf16", False)
    progress = Progress(name, args.minutes)
    if state is not None:
        progress.start -= state["seconds"]
        saved = int(progress.done * 10)
    while (done := team.agree(progress.done)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * cosine(done, floor=args.floor)
        with torch.autocast(device.type, torch.bfloat16) if in_bf16 else contextlib.nullcontext():
            loss, count = objective(index)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        team.average([*parameters, *further])
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update()
        index, seen = index + 1, seen + count * team.size
        if not team.leads:
            continue
        progress.step(index, loss.detach(), f"{seen} pictures")
        if int(progress.done * 10) > saved:
            saved = int(progress.done * 10)
            save_state(
                checkpoint,
                modules={n: m.state_dict() for n, m in modules.items()},
                mean=average.mean,
                optimizer=optimizer.state_dict(),
                index=index,
                seconds=progress.done * progress.seconds,
            )
            average.swap()
            write(modules, work / "solids")
            average.swap()
            if look and progress.done < 1 and saved % 3 == 0:
                _sheet(name, saved)
    if not team.leads:
        return
    average.swap()
    write(modules, work / "solids")
    if args.install:
        write(modules, ASSETS)
    print(f"{name}: {index} steps, {seen} pictures in this run; weights in {work / 'solids'}")


def _sheet(name: str, number: int) -> None:
    """Sample a small sheet of the weights so far, in a process of its own: training keeps its random state."""
    import subprocess
    import sys

    work = work_folder()
    path = work / f"{name}-{number}.png"
    subprocess.Popen(
        [
            sys.executable,
            "-m",
            "scripts.embedded.evaluate",
            "--model",
            str(work / "solids"),
            "--sheet",
            str(path),
        ]
    )
