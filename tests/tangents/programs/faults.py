"""Faults planted into the tangent engine, in the passes of a given number of rows: what a certificate must find."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from kernelmem.tangents.batch_axis import BatchAxis
from kernelmem.tangents.capture import Rule
from kernelmem.tangents.engine import backward, engine
from kernelmem.tangents.rules import RULES

Fault = Callable[
    [pytest.MonkeyPatch, str, int], None
]  # (patch, name of a parameter, number of rows of the passes) -> None


def swapped(rows):
    """The rows in another order: first and last, or the two halves of one row, are exchanged."""
    order = torch.arange(len(rows))
    order[0], order[-1] = len(rows) - 1, 0
    return rows[order]


def scaled_row(rows):
    """The rows with the one in the middle multiplied by 1.01."""
    factors = torch.ones(len(rows), *(1,) * (rows.ndim - 1), dtype=rows.dtype)
    factors[len(rows) // 2] = 1.01
    return rows * factors


def scaled(rows):
    return rows * 1.01


def rounded(rows):
    return rows.bfloat16().to(rows)


def without_last(rows):
    return torch.cat([rows[:-1], torch.zeros_like(rows[-1:])])


CHANGES = (swapped, scaled_row, scaled, rounded, without_last)


def _change_activations(change) -> Fault:
    def plant(patch, name, n):
        def changed(original):
            def activations(self, use, n_rows, **options):
                a = original(self, use, n_rows, **options)
                return change(a) if n_rows == n and name in use.parameters else a

            return activations

        for cls in {type(rule) for rule in RULES if isinstance(rule, Rule)}:
            if "activations" in vars(cls):
                patch.setattr(cls, "activations", changed(cls.activations))

    return plant


def _change_gradients(change) -> Fault:
    """Output gradients of outer products, and tangents of the other rules."""

    def plant(patch, name, n):
        original = backward.one_direction

        def one_direction(use, gradient, n_rows):
            g = original(use, gradient, n_rows)
            if g is None or n_rows != n or name not in use.parameters:
                return g
            return {slot: change(tangents) for slot, tangents in g.items()} if isinstance(g, dict) else change(g)

        patch.setattr(backward, "one_direction", one_direction)

    return plant


def _change_dense(change) -> Fault:
    def plant(patch, name, n):
        original = engine.Engine.dense

        def dense(self, batch, n_rows, cotangents):
            J = original(self, batch, n_rows, cotangents)
            return change(J) if n_rows == n else J

        patch.setattr(engine.Engine, "dense", dense)

    return plant


def one_direction_missing(patch, name, n):
    """The gradients of the second output are lost."""
    original = backward.ForwardPass.sweep

    def sweep(self, block):
        for direction, pairs in original(self, block):
            lost = self.n == n and block.start + direction == 1
            yield direction, [(use, None if lost and name in use.parameters else g) for use, g in pairs]

    patch.setattr(backward.ForwardPass, "sweep", sweep)


def _change_pass(change) -> Fault:
    """Change what the recorder hands to the engine."""

    def plant(patch, name, n):
        original = engine.capture

        def capture(prepared, batch, n_rows, rules, **options):
            captured = original(prepared, batch, n_rows, rules, **options)
            return change(captured, name) if n_rows == n else captured

        patch.setattr(engine, "capture", capture)

    return plant


def use_dropped(captured, name):
    """The last use of the parameter is not recorded."""
    uses = [use for use in captured.uses if name in use.parameters][-1:]
    return dataclasses.replace(captured, uses=tuple(use for use in captured.uses if use not in uses))


def parameter_dropped(captured, name):
    """No use of the parameter is recorded, and it is not reported as uncovered."""
    uses = tuple(use for use in captured.uses if name not in use.parameters)
    return dataclasses.replace(captured, uses=uses, uncovered=captured.uncovered - {name})


def use_repeated(captured, name):
    """The first use of the parameter is recorded once more."""
    uses = [use for use in captured.uses if name in use.parameters][:1]
    copies = [dataclasses.replace(use, key=use.key._replace(ordinal=99)) for use in uses]
    return dataclasses.replace(captured, uses=(*captured.uses, *copies))


def use_of_another(captured, name):
    """A use of the parameter is booked for the input of another use of the same form."""
    for use in captured.uses:
        if name in use.parameters:
            for other in captured.uses:
                same = {key: value.shape for key, value in other.inputs.items()}
                if other is not use and same == {key: value.shape for key, value in use.inputs.items()}:
                    use.inputs, use.versions = other.inputs, other.versions
                    return captured
    return captured


def batch_axis_changed(captured, name):
    """The rows are looked for on another axis of the same length, or their entries in the other order."""
    for use in captured.uses:
        axis = use.batch_axis
        if name not in use.parameters or not isinstance(axis, BatchAxis):
            continue
        length = use.output_shape[axis.axis]
        others = [i for i, size in enumerate(use.output_shape) if size == length and i != axis.axis]
        if others:
            use.batch_axis = dataclasses.replace(axis, axis=others[0])
        elif axis.multiplicity > 1:
            use.batch_axis = dataclasses.replace(axis, major=not axis.major)
    return captured


def inputs_of_another_pass(captured, name):
    """Activations that belong to other rows."""
    for use in captured.uses:
        if name in use.parameters:
            use.inputs = {key: value.roll(1, use.batch_axis.axis) for key, value in use.inputs.items()}
            use.versions = {key: value._version for key, value in use.inputs.items()}
    return captured


def stale_weights(patch, name, n):
    """The pass is run with weights of an earlier state of the model."""
    original = engine.capture

    def capture(prepared, batch, n_rows, rules, **options):
        weight = prepared.parameters.get(name)
        if n_rows != n or weight is None:
            return original(prepared, batch, n_rows, rules, **options)
        current, weight.data = weight.data, 1.01 * weight.data
        try:
            return original(prepared, batch, n_rows, rules, **options)
        finally:
            weight.data = current

    patch.setattr(engine, "capture", capture)


def stale_readout(patch, name, n):
    """The readout that the survey found has other weights by now."""
    original = engine.survey

    def survey(*args, **options):
        surveyed = original(*args, **options)
        if surveyed.readout is None:
            return surveyed
        return dataclasses.replace(
            surveyed, readout=dataclasses.replace(surveyed.readout, weight=1.01 * surveyed.readout.weight)
        )

    patch.setattr(engine, "survey", survey)


FAULTS: dict[str, Fault] = {
    **{f"activations {change.__name__}": _change_activations(change) for change in CHANGES},
    **{f"gradients {change.__name__}": _change_gradients(change) for change in CHANGES},
    **{f"dense {change.__name__}": _change_dense(change) for change in CHANGES},
    **{
        change.__name__: _change_pass(change)
        for change in (
            use_dropped,
            parameter_dropped,
            use_repeated,
            use_of_another,
            batch_axis_changed,
            inputs_of_another_pass,
        )
    },
    "one_direction_missing": one_direction_missing,
    "stale_readout": stale_readout,
    "stale_weights": stale_weights,
}
