"""The same networks computed by OpenVINO, on a CPU: a runner as those of `rawdiff.graphs` are.

    choose.py   torch or openvino: the runner for a backend
    runner.py   OpenVino: each call compiled when it is first seen with tensors of its shapes
    compile.py  a converted call with its weights and shapes put in, compiled and run
    convert.py  a call as OpenVINO's operations, its weights among the inputs; what decides them, as a key
    store.py    what was converted, on disk
    package.py  the openvino package, imported when it is needed

What is converted and kept is a network's flow without its weights: these are put in from torch's memory when a call
is compiled. So a network is converted once whatever its weights are, a LoRA costs no conversion, and the files are
small. Text, times, hints and ControlNets' weights are inputs as everywhere, and cost not even compiling.
"""

from rawdiff.openvino.choose import choose_runner
from rawdiff.openvino.package import version
from rawdiff.openvino.runner import OpenVino
from rawdiff.openvino.store import Store, cache_folder

__all__ = ["OpenVino", "Store", "cache_folder", "choose_runner", "version"]
