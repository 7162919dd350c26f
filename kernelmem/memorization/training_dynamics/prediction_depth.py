"""Prediction depth: first layer of a trained network from which nearest neighbors give its prediction."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, Rows, as_rows
from kernelmem.core.checks import ArrayLike, as_count, as_labels, as_names
from kernelmem.core.errors import InputError
from kernelmem.core.models.torch_func import standard_modes
from kernelmem.memorization.score import Score
from kernelmem.tangents.prepare import prepare
from kernelmem.training.losses import class_outputs

ROWS_PER_PASS = 1024
INPUTS = "inputs"  # name of the layer before the first


@standard_modes()
def prediction_depth(
    model: nn.Module,
    x: Batch,
    y: ArrayLike,
    *,
    k: int = 30,
    layers: Sequence[str] | None = None,
    forward: Forward | None = None,
) -> Score:
    """Return the first layer from which all nearest-neighbor probes agree with the network's prediction of the row.

    Probe ℓ of row i lets the k nearest other rows vote with their given labels, by Euclidean distance of the activations of
    layer ℓ; rows at the same distance as the k-th vote too. It agrees if no class has more votes than the network's
    prediction. Layer 0 are the inputs; a row whose last probe disagrees has the number of layers L.

    Args:
        model: trained network, analyzed in eval mode; never changed.
        x: n training rows.
        y: (n,) class indices, as given to the training.
        k: number of neighbors, below n.
        layers: names of modules in ``model.named_modules()``, in any order; None: all modules without submodules that run,
            the inputs before them. Layers are compared in the order in which they run; one that returns its input is skipped.
        forward: maps (model, batch) to outputs (n, C).

    Raises:
        InputError: unknown modules, modules that do not run or do not return one tensor with n rows, k not below n.
        UnsupportedModelError: a model whose outputs are not (n, C).

    Cost: one forward pass, and n² d operations for each layer of width d; memory n (sum of the widths) + 1024 n numbers.

    Source: Baldock, Maennel, Neyshabur 2021, who average over many networks.
    """
    rows = as_rows(x, "x")
    prepared = prepare(model, rows, forward=forward, evaluation=True)
    labels = as_labels(y, "y", n=rows.n, n_classes=max(2, prepared.n_outputs)).cpu()
    k = as_count(k, "k")
    if k >= rows.n:
        raise InputError(f"k={k} of {rows.n} rows", expected=f"k in 1..{rows.n - 1}", hint="pass a smaller k")
    rows = rows.to(dtype=prepared.dtype, device=prepared.device)
    passes = [(start, min(start + ROWS_PER_PASS, rows.n)) for start in range(0, rows.n, ROWS_PER_PASS)]
    activations = _Activations(prepared.module, layers)
    outputs: list[Tensor] = []
    with activations, torch.no_grad():
        for start, stop in passes:
            activations.start_pass(stop - start)
            outputs.append(prepared.outputs(rows.slice(start, stop), stop - start).cpu())
    predictions = class_outputs(torch.cat(outputs)).argmax(1)
    features = activations.features(rows if layers is None else None)
    votes = torch.nn.functional.one_hot(labels, max(int(labels.max()), int(predictions.max())) + 1).to(torch.float64)
    agrees = torch.stack([_neighbors_agree(f, votes, predictions, k) for f in features])  # (L, n)
    lasting = agrees.flip(0).to(torch.uint8).cummin(0).values
    depth = len(features) - lasting.to(torch.float64).sum(0)
    return Score(
        depth,
        None,
        "prediction depth",
        "model",
        1,
        f"first of {len(features)} layers from which {k} nearest neighbors give the network's prediction",
        "Baldock, Maennel, Neyshabur 2021",
    )


class _Activations:
    """Forward hooks on a private copy of a model that keep the outputs of its layers, in the order in which they run."""

    def __init__(self, module: nn.Module, layers: Sequence[str] | None) -> None:
        modules = dict(module.named_modules())
        names = as_names(layers, "layers")
        if names is None:
            names = [name for name, child in modules.items() if not list(child.children())]
        unknown = [name for name in names if name not in modules]
        if unknown or not names:
            raise InputError(
                f"layers {unknown or names}",
                expected="names of modules of the model",
                hint="pass names of model.named_modules()",
            )
        self.modules = {name: modules[name] for name in names}
        self.is_explicit = layers is not None
        self.passes: list[list[tuple[str, Tensor]]] = []
        self.n = 0
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for name, module in self.modules.items():
            self._handles.append(module.register_forward_hook(self._keep(name)))

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def start_pass(self, n: int) -> None:
        """Prepare for a forward pass of n rows."""
        self.passes.append([])
        self.n = n

    def features(self, inputs: Rows | None) -> list[Tensor]:
        """Return the activations of each layer, (n, d) float64, without layers that return their input unchanged.

        Raises:
            InputError: a chosen layer did not run, or the passes ran different layers.
        """
        orders = [[name for name, _ in kept] for kept in self.passes]
        missing = sorted(set(self.modules) - set(orders[0])) if self.is_explicit else []
        if missing or any(order != orders[0] for order in orders) or (inputs is None and not orders[0]):
            raise InputError(
                f"layers {missing or orders[0]} that do not run, or not in every pass, or without one tensor per row",
                expected="modules that run in every forward pass and return one tensor with a row for each example",
                hint="choose other layers=, or leave it out",
            )
        layers = [] if inputs is None else [inputs.flat().cpu()]
        for position in range(len(orders[0])):
            layer = torch.cat([kept[position][1] for kept in self.passes]).to(torch.float64)
            if not layers or layer.shape != layers[-1].shape or not torch.equal(layer, layers[-1]):
                layers.append(layer)
        return layers

    def _keep(self, name: str):
        def hook(module: nn.Module, arguments: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim >= 2 and len(output) == self.n and output.is_floating_point():
                self.passes[-1].append((name, output.detach().reshape(self.n, -1).cpu().clone()))

        return hook


def _neighbors_agree(features: Tensor, votes: Tensor, predictions: Tensor, k: int) -> Tensor:
    """Return True for rows of which no class has more votes among the nearest neighbors than the prediction, (n,).

    ``features`` is (n, d), ``votes`` (n, C) one-hot labels, ``predictions`` (n,).
    """
    n = len(features)
    centered = features - features.mean(0)
    result = torch.empty(n, dtype=torch.bool)
    for start in range(0, n, ROWS_PER_PASS):
        block = torch.arange(start, min(start + ROWS_PER_PASS, n))
        distances = torch.cdist(centered[block], centered, compute_mode="donot_use_mm_for_euclid_dist")
        distances[torch.arange(len(block)), block] = torch.inf
        furthest = distances.kthvalue(k, dim=1, keepdim=True).values
        counts = (distances <= furthest).to(torch.float64) @ votes
        result[block] = counts.gather(1, predictions[block, None])[:, 0] >= counts.amax(1)
    return result
