"""How the networks' calls are run: as they come, or recorded once and replayed, one after the other or side by side.

    runner.py    Runner: as they come; EAGER is the plain one
    reusing.py   Reusing: another runner, the first halves of the networks at some evaluations alone (approximate)
    frugal.py    Frugal: in little memory, a stage of the run on the device at a time
    cache.py     Graphs: each call recorded when it is first seen, replayed from then on, the oldest let go
    compiled.py  each call through torch.compile, where nothing is recorded
    record.py    what is recorded: a CUDA graph
    trace.py     on a CPU the operations themselves, which imitate one
    tree.py      tensors out of arguments, and arguments out of tensors
    streams.py   works side by side on streams of their own, where that is faster
    choices.py   what is faster here, measured once, or as another process measured it
    kernels.py   ... of torch's attention kernels, for each shape
    formats.py   ... of channels first and last
    speed.py     eager, graph or compile: the runner for a device

A recorded call reads and writes memory that never moves. What comes back is overwritten by the next replay of the
same call, so it is used up, or copied, before that.
"""

from rawdiff.graphs.cache import Graphs
from rawdiff.graphs.choices import Keeper
from rawdiff.graphs.frugal import Frugal
from rawdiff.graphs.runner import EAGER, Runner
from rawdiff.graphs.speed import make_runner
from rawdiff.graphs.streams import Group, Streams, parallel

__all__ = ["EAGER", "Frugal", "Graphs", "Group", "Keeper", "Runner", "Streams", "make_runner", "parallel"]
