"""Contraction method of one parameter group, chosen by its cost."""

from dataclasses import dataclass, fields, replace

from kernelmem.tangents.capture import OuterShape
from kernelmem.tangents.groups.base import Group
from kernelmem.tangents.groups.directions import OUTPUT_KINDS, OutputDirections
from kernelmem.tangents.groups.mixed import MixedGroup
from kernelmem.tangents.groups.outer import ExplicitGroup, OuterGroup, TokenGroup, VectorGroup
from kernelmem.tangents.groups.readout import ChannelGroup, ReadoutGroup
from kernelmem.tangents.groups.table import TableGroup
from kernelmem.tangents.survey import Survey

CACHE_NUMBERS = 2**24  # numbers that stay in the last-level cache until they are read again


@dataclass(frozen=True)
class GroupCost:
    """Method chosen for one group of parameters, and its cost."""

    parameters: tuple[str, ...]
    method: str
    operations: float  # multiplications and additions for the whole kernel, products and Gram matrices
    numbers_per_row: int  # numbers kept per row and direction
    alternative: str = ""  # the other method, with its GFLOP; of a dense parameter, why no rule covers it


def direction_pairs(directions: OutputDirections) -> int:
    """Return the number of pairs of output directions that are contracted: k² for the full kernel, k otherwise."""
    return directions.k**2 if directions.combine == "full" else directions.k


def choose_method(
    group: Group, directions: OutputDirections, survey: Survey, n: int, m: int, pairs: float
) -> tuple[GroupCost, Group]:
    """Choose the cheapest contraction for one group and a kernel of n and m examples, of which ``pairs`` pairs are computed.

    Returns its cost, and the group as an instance of the class that implements the method.
    """
    k, n_grams, readout = directions.k, direction_pairs(directions), survey.readout
    if isinstance(group, MixedGroup):
        tangent_size = sum(shape.numel() for shape in group.shapes)
        is_direct = not any(survey.elements[key][1] for key in group.keys)
        cost = GroupCost(group.names, "summed", 2 * pairs * tangent_size * n_grams, tangent_size)
        return cost, replace(group, streams=is_direct)
    if isinstance(group, TableGroup):
        operations = 2 * pairs * group.positions**2 * group.width * n_grams  # if all tokens are equal
        summed_operations = 2 * pairs * group.rows * group.width * n_grams
        cost = GroupCost(group.names, "lookup", operations, group.positions * (group.width + 1))
        return replace(cost, alternative=f"summed {summed_operations / 1e9:.2f}"), group
    assert isinstance(group, OuterGroup)
    shape = group.shape
    fan_in = group.fan_in
    values = {field.name: getattr(group, field.name) for field in fields(OuterGroup)}
    factored = False
    if readout is not None and directions.outputs in OUTPUT_KINDS[:3]:
        if group.keys == (readout.key,):
            cost = GroupCost(group.names, "readout", 2 * pairs * fan_in, fan_in)
            return cost, ReadoutGroup(**values, n_outputs=directions.n_outputs)
        factored = len(group.keys) == 1 and group.keys[0] in readout.factored
    if factored and directions.outputs == "trace":
        k = n_grams = 1
        values["factored"] = True
    method_suffix = ", factored" if values["factored"] else ""
    if isinstance(group, VectorGroup):
        cost = GroupCost(
            group.names,
            "vector" + method_suffix,
            2 * pairs * (fan_in + n_grams * shape.fan_out),
            fan_in + shape.fan_out,
        )
        return cost, VectorGroup(**values)
    tangent_size = shape.groups * fan_in * shape.fan_out
    rows = n if pairs < n * m else n + m
    explicit_operations = 2 * rows * k * shape.positions * tangent_size + 2 * pairs * n_grams * tangent_size
    token_operations = (
        2 * pairs * shape.positions**2 * (fan_in + k * shape.fan_out) * 1.5
    )  # elementwise passes are slower than GEMM
    if factored and directions.outputs == "full":
        assert readout is not None
        operations = 2 * rows * shape.positions * tangent_size + 2 * pairs * (tangent_size + n_grams * shape.fan_out)
        cost = GroupCost(group.names, "channels", operations, tangent_size, f"explicit {explicit_operations / 1e9:.2f}")
        return cost, ChannelGroup(**values, readout=readout.weight)
    if directions.combine == "sum" and shape.groups == 1 and token_operations < explicit_operations:
        cost = GroupCost(
            group.names,
            "token",
            token_operations,
            shape.positions * (fan_in + shape.fan_out),
            f"explicit {explicit_operations / 1e9:.2f}",
        )
        return cost, TokenGroup(**values)
    values["streams"] = not values["factored"] and _prefers_streaming(shape, fan_in, rows, k)
    alternative = f"token {token_operations / 1e9:.2f}"
    cost = GroupCost(group.names, "explicit" + method_suffix, explicit_operations, tangent_size, alternative)
    return cost, ExplicitGroup(**values)


def _prefers_streaming(shape: OuterShape, fan_in: int, rows: int, k: int) -> bool:
    """Return True if contracting k directions one by one reads and writes fewer numbers in memory than all k together.

    One by one, the activations are read again for each direction; together, gradients are copied into one tensor.
    Tangents larger than the cache are written to memory and read again.
    """
    activations, gradients, tangents = shape.positions * fan_in, shape.positions * shape.fan_out, fan_in * shape.fan_out

    def spilled_numbers(numbers: int) -> int:
        return 2 * numbers if rows * shape.groups * numbers > CACHE_NUMBERS else 0

    one_by_one = k * (activations + gradients + spilled_numbers(tangents))
    return one_by_one <= activations + 3 * k * gradients + spilled_numbers(k * tangents)
