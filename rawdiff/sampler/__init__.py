"""Samplers: from a diffusers scheduler to one small matrix per network evaluation.

    rows.py        SamplerRow, the Sampler protocol, the x0 formula, renoise, steps counted
    levels.py      the level of signal and noise that a step uses
    drive.py       a private scheduler walked by hand: its noise answered, its part-way faults corrected
    probe.py       the impulse response P, Q, R; what is not linear is refused
    realise.py     the smallest state that runs it
    table.py       SamplerTable
    kept.py        tables that have been made before
    scheduler.py   SchedulerSampler: the scheduler's own step behind the same interface
    make.py        make_sampler: schedule, then table if possible

Nothing here imports diffusers: a scheduler is whatever has its methods.
"""

from __future__ import annotations

from rawdiff.sampler.make import make_sampler, set_schedule
from rawdiff.sampler.rows import Sampler, SamplerRow, count_steps, number_steps, renoise, x0_formula
from rawdiff.sampler.scheduler import SchedulerSampler
from rawdiff.sampler.table import SamplerTable, tabulate

__all__ = [
    "Sampler",
    "SamplerRow",
    "SamplerTable",
    "SchedulerSampler",
    "count_steps",
    "make_sampler",
    "number_steps",
    "renoise",
    "set_schedule",
    "tabulate",
    "x0_formula",
]
