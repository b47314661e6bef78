"""coremltools' ``MLModelStructure``, ``MLComputePlan`` and ``MLComputeDevice``, answered
from our graph: what is in a program, what runs where, and what each operation weighs.

The only device is the CPU, and it runs every operation. An operation's weight is its share of
the function's time when each operation takes as long as the slower of its arithmetic and its
memory traffic (:func:`anetorch.costs.costs`, nothing fused), with `FLOPS_PER_BYTE` as the
machine's balance. Values that are known before the run cost nothing and are placed nowhere.
"""

from __future__ import annotations

from typing import Any

from anetorch.coreml.model import Model
from anetorch.costs import Cost, costs
from anetorch.mil import Block, Function, Op, Program, Value

__all__ = ["ComputePlan", "CPUDevice", "GPUDevice", "NeuralEngineDevice", "devices", "structure"]

# Fused multiply-adds of a few cores beside their memory's bandwidth; shares of operations
# depend on it only where a program mixes both kinds.
FLOPS_PER_BYTE = 16


class CPUDevice:
    """The proxy behind coremltools' ``MLCPUComputeDevice``."""


class GPUDevice:
    """The proxy behind ``MLGPUComputeDevice``; never handed out."""


class NeuralEngineDevice:
    """The proxy behind ``MLNeuralEngineComputeDevice``; never handed out."""


def devices() -> list[Any]:
    """Every device that predictions run on: the CPU."""
    from coremltools.models.compute_device import MLCPUComputeDevice

    return [MLCPUComputeDevice(CPUDevice())]


# ------------------------------------------------------------------ structure


def structure(program: Program) -> Any:
    """The program as coremltools' ``MLModelStructure``."""
    from coremltools.models import compute_plan as ct

    def named(values: list[Value]) -> list[Any]:
        return [ct.MLModelStructureProgramNamedValueType(
            name=v.name, type=ct.MLModelStructureProgramValueType()) for v in values]

    def binding(v: Value) -> Any:
        known = ct.MLModelStructureProgramValue() if not v.name else None
        return ct.MLModelStructureProgramBinding(name=v.name or None, value=known)

    def argument(values: Value | tuple[Value, ...]) -> Any:
        many = values if isinstance(values, tuple) else (values,)
        return ct.MLModelStructureProgramArgument(bindings=[binding(v) for v in many])

    def operation(op: Op) -> Any:
        return ct.MLModelStructureProgramOperation(
            inputs={name: argument(v) for name, v in op.args.items()}, operator_name=op.type,
            outputs=named(op.results), blocks=[block(b) for b in op.blocks], __proxy__=op)

    def block(b: Block) -> Any:
        return ct.MLModelStructureProgramBlock(
            inputs=named(b.params), operations=[operation(op) for op in b],
            output_names=[v.name for v in b.outputs])

    def function(f: Function) -> Any:
        return ct.MLModelStructureProgramFunction(inputs=named(f.inputs), block=block(f.body))

    functions = {name: function(program.functions[name]) for name in program.functions}
    return ct.MLModelStructure(
        neuralnetwork=None, pipeline=None,
        program=ct.MLModelStructureProgram(functions=functions))


# ------------------------------------------------------------------ compute plan


def _time(c: Cost) -> float | None:
    """Of one operation, in bytes moved; None with an unknown dimension."""
    if c.flops is None or c.bytes is None:
        return None
    return max(c.flops / FLOPS_PER_BYTE, c.bytes)


class ComputePlan:
    """The proxy behind coremltools' ``MLComputePlan``. (Made without a program by its
    subclass for remote devices, which answers for itself.)"""

    def __init__(
        self, program: Program | None = None, description: dict[str, Any] | None = None
    ) -> None:
        self._weights: dict[int, float | None] = {}
        if program is None:
            return
        self._program = program
        self._structure = structure(program)
        for name in program.functions:
            # Weighed at the default shapes: the same operations in the same order.
            try:
                fixed = Model(program, description, function=name).at_default_shapes()
            except ValueError:          # none is declared
                fixed = program
            weighed = zip(costs(program.functions[name]), costs(fixed.functions[name]), strict=True)
            found = [(c.op, _time(w)) for c, w in weighed if not _known(c.op)]
            total = sum(t or 0 for _, t in found)
            for op, t in found:
                self._weights[op.id] = t if t is None else t / total if total else 0.0

    @property
    def model_structure(self) -> Any:
        """coremltools' ``MLModelStructure``."""
        return self._structure

    def _mine(self, operation: Any) -> Op | None:
        op = operation.__proxy__
        mine = isinstance(op, Op) and op.program is self._program and op.id in self._weights
        return op if mine else None

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        """The CPU; None for a constant, and for an operation of another plan."""
        from coremltools.models.compute_plan import MLComputePlanDeviceUsage

        if self._mine(operation) is None:
            return None
        cpu = devices()
        return MLComputePlanDeviceUsage(
            preferred_compute_device=cpu[0], supported_compute_devices=cpu)

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        """Its share of its function's time; None for a constant, an operation of another
        plan, and where a dimension depends on more than the default shapes."""
        from coremltools.models.compute_plan import MLComputePlanCost

        op = self._mine(operation)
        weight = None if op is None else self._weights[op.id]
        return None if weight is None else MLComputePlanCost(weight=weight)

    def get_compute_device_usage_for_neuralnetwork_layer(self, layer: Any) -> None:
        """None: neural networks of the time before ML Programs are not read."""
        return None


def _known(op: Op) -> bool:
    return all(v.is_const for v in op.results) and bool(op.results)
