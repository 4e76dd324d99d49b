"""A converted call with weights and shapes put in, compiled for this CPU and run.

Shapes are fixed when a call is compiled: on a small network that was 0.5 of torch's time against 0.7 with free ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rawdiff.openvino import package
from rawdiff.openvino.convert import INPUT, WEIGHT

__all__ = ["PRECISIONS", "Compiled"]

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""Dtypes of networks, by OpenVINO's names. Left to itself it computes fp32 networks in bf16 where it can."""


class Compiled:
    """One call for one set of weights, shapes and threads; what it gives is memory of its own each time."""

    def __init__(
        self, core: Any, model: Any, weights: Mapping[str, Tensor], tensors: Sequence[Tensor], threads: int
    ) -> None:
        """`model` is from `convert`, and is used up; `tensors` are arguments in the shapes and dtypes to come."""
        self._ov = package.load()
        self._ops = package.load("openvino.opset13")
        dtypes = {weight.dtype for weight in weights.values()}
        (self._dtype,) = dtypes
        self._weights: list[Tensor] = []
        """What the compiled call may read where it is."""
        self._used: list[int] = []
        for parameter in list(model.get_parameters()):
            name = parameter.get_friendly_name()
            if name.startswith(WEIGHT):
                self._fix(model, parameter, weights[name.removeprefix(WEIGHT)])
            else:
                k = int(name.removeprefix(INPUT))
                self._shape(parameter, tensors[k])
                self._used.append(k)
        for result in model.get_results():
            self._convert(result)
        model.validate_nodes_and_infer_types()
        self.bytes = sum(weight.nbytes for weight in self._weights) + sum(t.nbytes for t in tensors)
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[torch.float32 if _is_ambiguous(model) else self._dtype],
            "EXECUTION_MODE_HINT": "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # torch's threads and other processes stay where they are
        }
        compiled = core.compile_model(model, "CPU", options)
        self._shapes = [list(output.shape) for output in compiled.outputs]
        self._request = compiled.create_infer_request()

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The call's results, in the networks' dtype."""
        given = [tensors[k].detach().contiguous() for k in self._used]
        made = [torch.empty(shape, dtype=self._dtype) for shape in self._shapes]
        for place, tensor in enumerate(given):
            self._request.set_input_tensor(place, self._seen(tensor))
        for place, tensor in enumerate(made):
            self._request.set_output_tensor(place, self._seen(tensor))
        self._request.infer()
        return made

    def _fix(self, model: Any, parameter: Any, weight: Tensor) -> None:
        """A weight as a constant, over torch's memory."""
        weight = weight.detach().contiguous()
        self._weights.append(weight)
        constant = self._ov.op.Constant(self._seen(weight), shared_memory=True)
        parameter.output(0).replace(self._wide(constant, weight.dtype).output(0))
        model.remove_parameter(parameter)

    def _shape(self, parameter: Any, tensor: Tensor) -> None:
        readers = list(parameter.output(0).get_target_inputs())
        parameter.set_element_type(self._type(tensor.dtype))
        parameter.set_partial_shape(self._ov.PartialShape(list(tensor.shape)))
        parameter.validate_and_infer_types()
        wide = self._wide(parameter, tensor.dtype)
        for reader in readers:
            reader.replace_source_output(wide.output(0))

    def _convert(self, result: Any) -> None:
        """The result in the networks' dtype."""
        if self._dtype != torch.float32:
            narrow = self._ops.convert(result.input_value(0), PRECISIONS[self._dtype])
            result.input(0).replace_source_output(narrow.output(0))

    def _wide(self, node: Any, dtype: torch.dtype) -> Any:
        """What a converted call computes with, fp32; the compiler narrows it again where that is asked for."""
        return node if dtype == torch.float32 else self._ops.convert(node, "f32")

    def _type(self, dtype: torch.dtype) -> Any:
        return getattr(self._ov.Type, PRECISIONS[dtype])

    def _seen(self, tensor: Tensor) -> Any:
        """A tensor's memory as OpenVINO's."""
        if tensor.dtype == torch.float32:
            return self._ov.Tensor(tensor.numpy(), shared_memory=True)
        array = tensor.view(torch.uint16).numpy()  # numpy has no bf16
        return self._ov.Tensor(array, list(tensor.shape), self._type(tensor.dtype))


def _is_ambiguous(model: Any) -> bool:
    """Whether an attention has as many queries or keys as heads: in bf16 one is then taken for the other (2026.4.1)."""
    for node in model.get_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            for place in (0, 1):
                _, heads, length, _ = node.input(place).get_shape()
                if heads == length:
                    return True
    return False
