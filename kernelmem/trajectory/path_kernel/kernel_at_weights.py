"""Tangent kernel evaluated at any recorded weights, sharing one prepared model and plan."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Rows, as_rows
from kernelmem.core.checks import ArrayLike, as_labels
from kernelmem.core.errors import InputError
from kernelmem.kernels.verification import verify
from kernelmem.recording.gradient_check import Forward
from kernelmem.tangents.engine.engine import Engine, LabeledRows
from kernelmem.tangents.engine.plan import Plan
from kernelmem.tangents.groups.directions import OUTPUT_KINDS, OutputDirections, named_target
from kernelmem.tangents.prepare import check_rows, prepare
from kernelmem.tangents.survey import Readout, Survey
from kernelmem.trajectory.targets import TargetLike


class KernelAtWeights:
    """Tangent kernel of x (and y) as a function of the weights, with the model in eval mode."""

    def __init__(
        self,
        model: nn.Module,
        x: Batch | Rows,
        y: Batch | Rows | None,
        *,
        outputs: str,
        target: TargetLike,
        labels: ArrayLike | tuple[ArrayLike, ArrayLike] | None,
        parameters: Sequence[str],
        forward: Forward | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        """Copy the model and survey how it uses its parameters; arguments as in :func:`kernelmem.ntk`.

        Raises:
            InputError: an unknown kind of outputs, rows that the model does not take, labels that do not fit.
        """
        if outputs not in OUTPUT_KINDS:
            raise InputError(
                f"outputs={outputs!r}",
                expected='"trace", "diagonal", "full" or "pseudo"',
                hint='use "trace" for one kernel value per pair of rows',
            )
        left, right = as_rows(x, "x"), None if y is None else as_rows(y, "y")
        self.prepared = prepare(
            model, left, forward=forward, parameters=parameters, dtype=dtype, device=device, evaluation=True
        )
        labels_x, labels_y = labels if isinstance(labels, tuple) and len(labels) == 2 else (labels, None)
        if right is not None and labels_x is not None and labels_y is None:
            raise InputError(
                "labels for x alone", expected="a pair (labels of x, labels of y)", hint="pass labels=(a, b)"
            )
        if right is not None:
            check_rows(self.prepared, right)
        self.left = self._labeled_rows(left, labels_x, "labels of x")
        self.right = None if right is None else self._labeled_rows(right, labels_y, "labels of y")
        C = self.prepared.n_outputs
        directions = (
            OutputDirections(outputs, C) if target is None else OutputDirections("target", C, named_target(target))
        )
        self._perturb()
        engine = Engine.build(self.prepared, self.left.rows, directions)
        self.engine = replace(engine, survey=_without_computed_readout(engine.survey, self.prepared.module))

    @property
    def result_size(self) -> int:
        """Number of entries of one kernel."""
        m = (self.right or self.left).rows.n
        return int(torch.Size(self.engine.directions.result_shape(self.left.rows.n, m)).numel())

    def plan(self, memory: int) -> Plan:
        """Plan the computation of one kernel; the plan is valid at all weights."""
        m = (self.right or self.left).rows.n
        return self.engine.plan(self.left.rows.n, m, symmetric=self.right is None, memory=memory)

    def evaluate(self, state: Mapping[str, Tensor], plan: Plan, *, check: bool = False) -> Tensor:
        """Return the kernel at the parameters and buffers of ``state``; ``check`` compares a few rows with the definition.

        Raises:
            VerificationError: the contraction differs from the definition.
        """
        with torch.inference_mode(mode=False):
            self.set_state(state)
            readout = self.engine.survey.readout
            fresh = None if readout is None else Readout(readout.key, readout.weight, readout.factored)
            # A readout caches what it computes from its weight.
            engine = replace(self.engine, survey=replace(self.engine.survey, readout=fresh))
            if check:
                verify(engine, self.left, self.right, plan)
            return engine.kernel(self.left, self.right, plan)[""]

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy parameters and buffers into the model."""
        module = self.prepared.module
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if name in state:
                    tensor.copy_(state[name])

    def _labeled_rows(self, rows: Rows, labels: ArrayLike | None, name: str) -> LabeledRows:
        prepared = self.prepared
        classes = None
        if labels is not None:
            classes = as_labels(labels, name, n=rows.n, n_classes=max(2, prepared.n_outputs)).to(prepared.device)
        return LabeledRows(rows.to(dtype=prepared.dtype, device=prepared.device), classes)

    def _perturb(self) -> None:
        """Perturb the weights so that none is zero by chance and the survey holds at all weights."""
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.prepared.module.parameters():
                if parameter.is_floating_point():
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
                    parameter += 0.05 * (parameter.square().mean().sqrt() + 0.02) * noise


def _without_computed_readout(survey: Survey, module: nn.Module) -> Survey:
    """Return the survey without its readout if the weight of the readout is computed from parameters.

    Such a weight would keep its first value when the parameters change.
    """
    storages = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    readout = survey.readout
    if readout is not None and readout.weight.untyped_storage().data_ptr() not in storages:
        return replace(survey, readout=None)
    return survey
