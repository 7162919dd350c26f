"""Many networks of any architecture, all of one width in one batch: vmap over stacked parameters and buffers."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.core.models import saved_storages
from kernelmem.core.models.torch_func import functional_call, vmap
from kernelmem.training.batching import BatchOrder, rows_per_step
from kernelmem.training.ensemble.members import EnsembleTask
from kernelmem.training.ensemble.metrics import mean_loss
from kernelmem.training.ensemble.sequential import check_outputs

MakeModel: TypeAlias = Callable[[int | tuple[int, ...]], nn.Module]
"""Maps the width of a member to an untrained module."""

EVALUATION_ROWS = 256  # rows per forward pass when outputs are evaluated
PARAMETER_COPIES = 4  # of the parameters: values, gradients, two states of Adam
RANDOM_STATE = threading.Lock()  # torch's generator is shared by all threads, each of which may build networks


def module_chunks(task: EnsembleTask, make_model: MakeModel, memory: int) -> Iterator[list[int]]:
    """Yield lists of member numbers that can be trained together: same width, same batch size, at most ``memory`` bytes.

    The memory of a step is measured on one network: twice what autograd saves in a forward pass.

    Raises:
        InputError: a single network does not fit into ``memory``.
        UnsupportedModelError: the model cannot be trained in a batch.
    """
    groups: dict[tuple, list[int]] = {}
    for k, (member, rows) in enumerate(zip(task.members, task.rows, strict=True)):
        groups.setdefault((member.width, rows_per_step(len(rows), task.recipe.batch_size)), []).append(k)
    for (width, batch_size), members in groups.items():
        network_bytes = _training_bytes(_build_member(make_model, task, members[0]), task, members[0], batch_size)
        if network_bytes > memory:
            raise InputError(
                f"a network of width {width!r} that needs {network_bytes:,} bytes; memory={memory:,}",
                expected="memory for one network at a time",
                hint=f"pass memory={network_bytes} or more, or smaller batches",
            )
        chunk_size = memory // network_bytes
        yield from (members[start : start + chunk_size] for start in range(0, len(members), chunk_size))


def _training_bytes(model: nn.Module, task: EnsembleTask, k: int, batch: int) -> int:
    """Return the number of bytes that the training of member k needs with ``batch`` rows per step.

    It is four times the parameters, plus twice what autograd saves in one forward pass, which is run to measure it.
    """
    model.train()
    with torch.enable_grad():
        outputs, storages = saved_storages(lambda: model(task.x[task.rows[k][:batch]]))
    check_outputs(outputs, min(batch, len(task.rows[k])), task.C)
    parameter_bytes = sum(p.nbytes for p in model.parameters())
    return max(1, PARAMETER_COPIES * parameter_bytes + 2 * sum(n_bytes for n_bytes, _ in storages.values()))


def _build_member(make_model: MakeModel, task: EnsembleTask, k: int) -> nn.Module:
    """Return the untrained module of member k, made with the member's seed, on the device and in the dtype of the task."""
    member = task.members[k]
    with RANDOM_STATE, torch.random.fork_rng(devices=[]):
        torch.manual_seed(member.init_seed)
        model = make_model(member.width)
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"make_model({member.width!r}) of type {type(model).__name__}",
            expected="an nn.Module",
            hint="return a module from make_model",
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise UnsupportedModelError(
                f"dropout in {name!r}",
                expected="a network without randomness while it trains",
                hint="set p=0, or train such networks one by one, in a loop of your own",
            )
    dtype = task.x.dtype if task.x.is_floating_point() else None
    return model.to(device=task.x.device, dtype=dtype)


class Modules:
    """K networks of one architecture that are trained together; each parameter is stacked to a tensor (K, ...)."""

    def __init__(self, task: EnsembleTask, make_model: MakeModel, members: Sequence[int]) -> None:
        """Build the networks of the members with the numbers ``members``, and stack their parameters and buffers."""
        self.task, self.members = task, list(members)
        models = [_build_member(make_model, task, k) for k in members]
        self.model = models[0]
        shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in models]
        if any(shape != shapes[0] for shape in shapes):
            raise UnsupportedModelError(
                f"make_model({task.members[members[0]].width!r}) with different parameters for different seeds",
                expected="the same architecture for the same width",
                hint="let the architecture depend on width only",
            )
        self.trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        states = [{**dict(model.named_parameters()), **dict(model.named_buffers())} for model in models]
        self.values = {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}
        for name in self.trained:
            self.values[name].requires_grad_()
        self.parameters = [self.values[name] for name in self.trained]
        lengths = [len(task.rows[k]) for k in members]
        self.orders = [
            BatchOrder(task.members[k].order_seed, n, task.recipe.batch_size)
            for k, n in zip(members, lengths, strict=True)
        ]

    def gradient(self) -> None:
        """Compute the gradient of each member's mean loss on its next batch, and write it to ``.grad`` of ``parameters``."""
        task = self.task
        positions = [order.take(1)[0].to(task.x.device) for order in self.orders]
        x = torch.stack(
            [task.x[task.rows[k][row_positions]] for k, row_positions in zip(self.members, positions, strict=True)]
        )
        target = torch.stack(
            [task.targets[k][row_positions] for k, row_positions in zip(self.members, positions, strict=True)]
        )
        self.model.train()
        with torch.enable_grad():
            outputs = self._call_all(x, 0)
            # members share no parameters, so the gradient of the sum holds the gradient of each member
            losses = vmap(mean_loss)(outputs, target)
            gradients = torch.autograd.grad(losses.sum(), self.parameters, allow_unused=True)
        for p, gradient in zip(self.parameters, gradients, strict=True):
            # torch's fused updates on the CPU read the gradient in memory order and ignore its strides
            p.grad = None if gradient is None else gradient.contiguous()

    def test_outputs(self) -> dict[int, Tensor]:
        """Return a dict from member number to the outputs (m, C) of that member on the m test rows."""
        self.model.eval()
        pieces = [self._call_all(piece, None) for piece in self.task.x_test.split(EVALUATION_ROWS)]
        return dict(zip(self.members, torch.cat(pieces, 1), strict=True))

    def train_outputs(self) -> dict[int, Tensor]:
        """Return a dict from member number k to the outputs (n_k, C) of that member on its own n_k training rows.

        All members are evaluated together, so shorter lists of rows are padded to the longest one; padding is removed.
        """
        self.model.eval()
        rows = [self.task.rows[k] for k in self.members]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        pieces = [self._call_all(self.task.x[piece], 0) for piece in padded.split(EVALUATION_ROWS, 1)]
        outputs = torch.cat(pieces, 1)
        return {k: outputs[g, : len(rows[g])] for g, k in enumerate(self.members)}

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Return a dict from member number to the state dict of that member, with tensors copied to the CPU."""
        names = list(self.model.state_dict())
        return {
            k: {name: self.values[name][g].detach().to("cpu", copy=True) for name in names}
            for g, k in enumerate(self.members)
        }

    def _call_all(self, x: Tensor, in_dim: int | None) -> Tensor:
        """Return the outputs (K, b, C) of all K networks on b rows each.

        x is (K, b, ...), one batch per network, if ``in_dim`` is 0, and (b, ...), the same for all, if it is None.
        """

        def call(values: dict[str, Tensor], rows: Tensor) -> Tensor:
            return functional_call(self.model, values, (rows,))

        try:
            outputs = vmap(call, in_dims=(0, in_dim))(self.values, x)
        except RuntimeError as error:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}, which torch.func.vmap refuses: {str(error).splitlines()[0]}",
                expected="a network without randomness, item() or data-dependent control flow",
                hint="train its members with train_one",
            ) from error
        check_outputs(outputs[0], x.shape[0 if in_dim is None else 1], self.task.C)
        return outputs
