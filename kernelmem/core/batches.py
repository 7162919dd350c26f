"""Batches: inputs as users have them (tensor, array, dict, tuple, Dataset, DataLoader), read as rows to slice."""

import builtins
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, default_collate

from kernelmem.core.checks import ArrayLike, as_tensor, check_finite
from kernelmem.core.errors import InputError, UnsupportedModelError

Batch: TypeAlias = ArrayLike | Mapping[str, Any] | tuple[Any, ...] | Dataset[Any] | DataLoader[Any]
"""Examples as a model takes them: an array, a dict or tuple of arrays (nested too), a Dataset or a DataLoader."""

Tree: TypeAlias = Any
"""A tensor, or a dict, tuple or list of tensors (nested too), as models take them. Models are typed no further."""

Forward: TypeAlias = Callable[[nn.Module, Any], Tensor]
"""Type of ``forward=``: a function of (model, batch) that returns the outputs (n, C)."""


@dataclass(frozen=True)
class Rows:
    """A batch of n examples: a tensor, or a dict, tuple or list of tensors (possibly nested) with n entries each."""

    tree: Tree
    n: int

    def __len__(self) -> int:
        return self.n

    @property
    def shape(self) -> tuple[int]:
        """Return (n,): with len and slices, what estimators need to know of their rows."""
        return (self.n,)

    def __getitem__(self, rows: builtins.slice | np.ndarray) -> "Rows":
        """Return the examples of a slice, or those at an array of row numbers."""
        return Rows(map_tree(self.tree, lambda leaf: leaf[rows]), len(np.empty(self.n)[rows]))

    def flat(self) -> Tensor:
        """Return all numbers of each example, (n, number of values), in float64."""
        return torch.cat(
            [leaf.reshape(self.n, -1).to("cpu", torch.float64) for _, leaf in named_leaves(self.tree, "x")], 1
        )

    def slice(self, start: int, stop: int) -> Tree:
        """Return the examples from ``start`` to ``stop`` (excluded), in the structure of the batch."""
        return map_tree(self.tree, lambda leaf: leaf[start:stop].clone())  # a model may write to its input

    def take(self, indices: Tensor | list[int]) -> Tree:
        """Return the examples at ``indices``, which may repeat, in the structure of the batch."""
        return map_tree(self.tree, lambda leaf: leaf[indices])

    def map(self, function: Callable[[Tensor], Tensor]) -> Tree:
        """Return the structure of the batch with ``function`` applied to every tensor in it."""
        return map_tree(self.tree, function)

    def to(self, *, dtype: torch.dtype, device: torch.device) -> "Rows":
        """Return the rows on ``device``, with floating-point tensors converted to ``dtype``.

        Integer tensors keep their type.
        """
        return Rows(map_tree(self.tree, lambda leaf: _cast_floats(leaf, dtype, device)), self.n)


def as_rows(x: "Batch | Rows", name: str = "x") -> Rows:
    """Read ``x`` as rows. From a Dataset or DataLoader of (input, label) or (input,), the inputs are used.

    A DataLoader must give all examples of its dataset in their order. The dataset is read in this process, without the
    loader's workers, so that neither the loader nor the global random state changes.

    Raises:
        InputError: ``x`` has no rows, parts of different lengths, NaN, or values that are not numbers; a DataLoader that
            shuffles or drops examples; a Dataset without a length, or whose examples have different shapes.
    """
    if isinstance(x, Rows):
        return x
    if isinstance(x, DataLoader | Dataset):
        x = concatenate([_without_labels(batch) for batch in _ordered_batches(x, name)], name)
    tree = map_tree(x, lambda leaf: as_tensor(leaf, name, allow_complex=True))
    lengths = {leaf.shape[0] if leaf.ndim else 0 for _, leaf in named_leaves(tree, name)}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            f"{name} with leading lengths {sorted(lengths)}",
            expected="at least one row, and the same number of rows in every part",
            hint=f"put the examples along the first axis of {name}",
        )
    return Rows(tree, lengths.pop())


def as_structured_rows(x: Batch, name: str) -> "ArrayLike | Rows":
    """Return rows of a dict or tuple of arrays as :class:`Rows`, and an array as it is; a Dataset or DataLoader is read."""
    tree: Tree = as_rows(x, name).tree if isinstance(x, DataLoader | Dataset) else x
    kinds = (
        (Tensor, Mapping, np.ndarray) if isinstance(tree, tuple) else (Tensor, Mapping)
    )  # a list may hold single rows
    if isinstance(tree, Mapping) or (isinstance(tree, list | tuple) and _is_branch(tree, kinds)):
        return as_rows(tree, name)
    return cast("ArrayLike", tree)


def as_labeled_rows(value: object, name: str) -> tuple["Batch", ArrayLike]:
    """Return (inputs, labels) of a pair (x, y), or of a Dataset or DataLoader.

    Its examples are pairs (input, label), or dicts of inputs with a "labels" or "label". ``name`` names the argument in
    error messages.

    Raises:
        InputError: ``value`` is none of these; also the errors of :func:`as_rows`.
    """
    if isinstance(value, tuple | list) and len(value) == 2:
        return value[0], value[1]
    expected = f"{name}=(x, y), or a Dataset or DataLoader of pairs (input, label)"
    if not isinstance(value, Dataset | DataLoader):
        raise InputError(f"{name} of type {type(value).__name__}", expected=expected, hint="pass rows and labels")
    batches = _ordered_batches(value, name)
    key = next((key for key in ("labels", "label") if isinstance(batches[0], Mapping) and key in batches[0]), None)
    if key is not None:
        pairs = [({k: part for k, part in batch.items() if k != key}, batch[key]) for batch in batches]
    elif isinstance(batches[0], tuple | list) and len(batches[0]) == 2:
        pairs = [(batch[0], batch[1]) for batch in batches]
    else:
        raise InputError(
            f"{name}, a {type(value).__name__} whose batches of type {type(batches[0]).__name__} have no labels",
            expected=expected,
            hint=f"pass {name}=(dataset, labels)",
        )
    return concatenate([x for x, _ in pairs], name), concatenate([y for _, y in pairs], f"labels of {name}")


def _ordered_batches(data: "Dataset[Any] | DataLoader[Any]", name: str) -> list[Tree]:
    """Return the batches of all examples of a Dataset or DataLoader in their order, with labels if there are any.

    The order of a random or unknown sampler is not that of labels or indices given elsewhere, so it is refused.
    """
    loader = data if isinstance(data, DataLoader) else None
    dataset = data.dataset if isinstance(data, DataLoader) else data
    try:
        n = len(dataset)  # type: ignore[arg-type]
    except TypeError:
        n = -1
    if n < 0 or isinstance(dataset, IterableDataset):
        raise InputError(
            f"{name}, a {type(dataset).__name__} without a length, whose order is unknown",
            expected="a Dataset with __len__ and __getitem__",
            hint=f"read its examples once and pass them as tensors or as a list in a Dataset: {name}=torch.stack(list(...))",
        )
    if n == 0:
        raise InputError(
            f"{name}, an empty {type(data).__name__}", expected="at least one example", hint="check its dataset"
        )
    batch_size = n if loader is None else _batch_size(loader, n, name)
    collate = default_collate if loader is None else loader.collate_fn
    try:
        with torch.random.fork_rng(devices=[]):  # datasets that draw random numbers leave the global state alone
            if batch_size is None:  # the examples of the dataset are batches
                return [collate(dataset[i]) for i in range(n)]
            return [
                collate([dataset[i] for i in range(n)[start : start + batch_size]]) for start in range(0, n, batch_size)
            ]
    except (TypeError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{name}, a {type(data).__name__} whose examples cannot be joined to batches ({reason})",
            expected="examples of numbers, each of the same shape",
            hint="pad examples of different lengths, and leave out text and other objects",
        ) from error


def _batch_size(loader: "DataLoader[Any]", n: int, name: str) -> int | None:
    """Return the batch size of ``loader``, None if its dataset has batches as examples.

    An InputError is raised unless the loader gives all n examples of its dataset in their order.
    """
    batch_sampler = loader.batch_sampler
    sampler = batch_sampler.sampler if isinstance(batch_sampler, BatchSampler) else loader.sampler
    if batch_sampler is not None and type(batch_sampler) is not BatchSampler:
        unknown: object = batch_sampler
    elif isinstance(sampler, list | tuple | range):
        unknown = None if list(sampler) == list(range(n)) else sampler
    else:
        unknown = None if type(sampler) is SequentialSampler and len(sampler) == n else sampler
    if unknown is not None:
        raise InputError(
            f"{name}, a DataLoader with a {type(unknown).__name__}, which does not give all examples in their order"
            " (or is not known to)",
            expected="a DataLoader that gives all examples in the order of its dataset",
            hint=f"pass {name}=loader.dataset, or a DataLoader with shuffle=False; select examples with"
            " torch.utils.data.Subset",
        )
    if not isinstance(batch_sampler, BatchSampler):
        return None
    if batch_sampler.drop_last and n % batch_sampler.batch_size:
        raise InputError(
            f"{name}, a DataLoader that drops the last {n % batch_sampler.batch_size} of {n} examples",
            expected="a DataLoader that gives all examples",
            hint=f"pass {name}=loader.dataset, or a DataLoader with drop_last=False",
        )
    return batch_sampler.batch_size


def _without_labels(batch: Tree) -> Tree:
    """Return the input of an (input, label) or (input,) batch; other batches are returned as they are."""
    return batch[0] if isinstance(batch, list | tuple) and len(batch) in (1, 2) else batch


def concatenate(batches: list[Tree], name: str) -> Tree:
    """Return one batch that joins ``batches`` of the same structure along the first axis.

    ``name`` names the batch in the InputError that is raised if their structures or shapes differ.
    """
    first = batches[0]
    try:
        if isinstance(first, Mapping):
            return {key: concatenate([batch[key] for batch in batches], f"{name}.{key}") for key in first}
        if isinstance(first, list | tuple):
            return tuple(concatenate([batch[i] for batch in batches], f"{name}[{i}]") for i in range(len(first)))
        return torch.cat([torch.as_tensor(batch) for batch in batches])
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{name}, batches that cannot be joined ({str(error).splitlines()[0]})",
            expected="batches of tensors of the same structure and, except for the number of rows, the same shape",
            hint="pad all examples to one length",
        ) from error


def input_hint(tree: Tree) -> str:
    """Return the hint for a batch that a model called as ``model(batch)`` does not accept."""
    if isinstance(tree, Mapping):
        return "pass forward=lambda model, batch: model(**batch), or forward=kernelmem.logits for a Hugging Face model"
    if isinstance(tree, list | tuple):
        return "pass forward=lambda model, batch: model(*batch)"
    return "check the shape and dtype of the inputs, or pass forward="


def map_tree(tree: Tree, function: Callable[[Tree], object]) -> Tree:
    """Return the nested structure ``tree`` with ``function`` applied to its leaves.

    Dicts and tuples are branches, and everything that is not a dict, tuple or list is a leaf. A list is a branch if its
    first element is a tensor or a nested structure; a list of numbers is a leaf.
    """
    if isinstance(tree, Mapping):
        return {key: map_tree(leaf, function) for key, leaf in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_tree(leaf, function) for leaf in tree)
    if isinstance(tree, list) and _is_branch(tree):
        return [map_tree(leaf, function) for leaf in tree]
    return function(tree)


def named_leaves(tree: Tree, name: str) -> list[tuple[str, Tree]]:
    """Return the pairs (name, leaf) of the nested structure ``tree`` in order.

    The names start with ``name`` and tell the position, as in ``x``, ``x.input_ids`` and ``x[0]``.
    """
    if isinstance(tree, Mapping):
        return [pair for key, leaf in tree.items() for pair in named_leaves(leaf, f"{name}.{key}")]
    if isinstance(tree, tuple) or (isinstance(tree, list) and _is_branch(tree)):
        return [pair for i, leaf in enumerate(tree) for pair in named_leaves(leaf, f"{name}[{i}]")]
    return [(name, tree)]


def _is_branch(tree: object, kinds: tuple[type, ...] = (Tensor, Mapping)) -> bool:
    """Return True for a structure that contains values of these kinds, False for a list of numbers."""
    if isinstance(tree, list | tuple):
        return bool(tree) and _is_branch(tree[0], kinds)
    return isinstance(tree, kinds)


def _cast_floats(leaf: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Move a tensor, with floating-point numbers converted to ``dtype``.

    Raises:
        InputError: rows whose numbers are beyond the range of ``dtype``.
    """
    cast = leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else leaf.dtype)
    if cast.dtype == leaf.dtype or torch.finfo(cast.dtype).max >= torch.finfo(leaf.dtype).max:
        return cast
    return check_finite(cast, "x", converted_to=dtype)


def check_outputs(outputs: object, n: int) -> Tensor:
    """Return the outputs of a model on n rows, after checking that they are a tensor (n, C) of real numbers, with C >= 1.

    Raises:
        UnsupportedModelError: they are not; the hint says which ``forward=`` makes them so.
    """
    if isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[0] == n and outputs.shape[1] > 0:
        if outputs.is_floating_point():
            return outputs
        raise UnsupportedModelError(
            f"a model with outputs of dtype {outputs.dtype}".replace("torch.", ""),
            expected="real floating-point outputs",
            hint="pass forward=lambda model, x: torch.view_as_real(model(x)).flatten(1) for complex outputs"
            if outputs.is_complex()
            else "return the outputs before argmax or rounding",
        )
    type_name = type(outputs).__name__
    description = "None" if outputs is None else f"{'an' if type_name[0] in 'AEIOUaeiou' else 'a'} {type_name}"
    hint = "pass forward=lambda model, x: ... that returns a tensor (n, C)"
    if isinstance(outputs, Tensor):
        description = f"a tensor of shape {tuple(outputs.shape)}"
        if outputs.shape == (n,):
            hint = "pass forward=lambda model, x: model(x)[:, None], and a loss for outputs (n, 1)"
        elif outputs.ndim > 2 and outputs.shape[0] == n:
            hint = "pass forward=lambda model, x: model(x).flatten(1), or one that selects a position, e.g. model(x)[:, -1]"
    elif hasattr(outputs, "logits"):
        hint = "pass forward=km.logits"
    elif isinstance(outputs, Mapping):
        description += f" with the keys {', '.join(map(repr, list(outputs)[:5]))}"
        key = next((key for key in ("logits", "output", "out") if key in outputs), next(iter(outputs), "logits"))
        hint = f"pass forward=lambda model, x: model(x)[{key!r}]"
    elif isinstance(outputs, tuple | list):
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in outputs[:5]]
        description += f" of {', '.join(map(str, shapes))}"
        last = "[:, -1]" if shapes and isinstance(shapes[0], tuple) and len(shapes[0]) == 3 else ""
        hint = f"pass forward=lambda model, x: model(x)[0]{last}, or the part that has the outputs (n, C)"
    raise UnsupportedModelError(
        f"a model whose output on {n} rows is {description}",
        expected=f"a tensor of shape ({n}, C): C outputs per example",
        hint=hint,
    )
