"""Networks, examples and losses, the same in every process, and the float64 reference.

`python -m experiments.benchmarks.loss_gradients.problems W1-all-32 GPT-linear-8` writes the references of rows.
"""

import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.benchmarks.loss_gradients.configs import COVERS
from experiments.benchmarks.ntk.reference import reference
from experiments.benchmarks.ntk.workloads import build as build_classifier

__all__ = ["Problem", "build", "load_reference", "write_reference"]

FOLDER = Path(tempfile.gettempdir()) / "kernelmem-benchmarks"


@dataclass(frozen=True)
class Problem:
    """One Gram matrix: the parameters that count are those of the model that require a gradient."""

    model: nn.Module
    x: Tensor
    y: Tensor  # labels; the tokens themselves for a language model

    @property
    def language(self) -> bool:
        """Whether the loss is that of the next token."""
        return self.x is self.y

    @property
    def numbers(self) -> bool:
        """Whether an example is one row of numbers."""
        return self.x.is_floating_point() and self.x.ndim == 2

    @property
    def parameters(self) -> dict[str, Tensor]:
        """By name; a shared one once."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters.values())

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """One loss an example: cross-entropy, for a language model its mean over the next tokens."""
        if not self.language:
            return F.cross_entropy(outputs, y, reduction="none")
        return F.cross_entropy(outputs[:, :-1].transpose(1, 2), y[:, 1:], reduction="none").mean(1)


class Language(nn.Module):
    """GPT-2 as transformers has it, 2 layers of width 128, 1,000 tokens, random weights: tokens (n, S) to logits (n, S, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        import transformers

        config = transformers.GPT2Config(
            vocab_size=1000, n_positions=64, n_embd=128, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None
        )
        self.gpt = transformers.GPT2LMHeadModel(config)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1]).expand(tokens.shape)  # one row an example: hooks see it so
        return self.gpt(input_ids=tokens, position_ids=positions, use_cache=False).logits


def build(workload: str, n: int, covers: str) -> Problem:
    """Build the problem of a row."""
    if workload == "GPT":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, x = Language().eval(), torch.randint(1000, (n, 64))
        y = x
    else:
        model, x = build_classifier(workload, n)
        y = torch.randint(10, (n,), generator=torch.Generator().manual_seed(3))
    if covers != "all":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(re.search(COVERS[workload, covers], name) is not None)
    return Problem(model, x, y)


class _LossOfRow(nn.Module):
    """Numbers of rows to (n, 1) losses: what the reference of the NTK benchmark differentiates."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.model, self.problem = problem.model, problem

    def forward(self, rows: Tensor) -> Tensor:
        x = self.problem.x[rows]
        outputs = self.model(x.double() if x.is_floating_point() else x)
        return self.problem.losses(outputs, self.problem.y[rows])[:, None]


def _path(workload: str, n: int, covers: str) -> Path:
    return FOLDER / f"loss-{workload}-{n}-{covers}.npz"


def write_reference(workload: str, n: int, covers: str) -> None:
    """Write exact columns and products in float64."""
    exact = reference(_LossOfRow(build(workload, n, covers)), torch.arange(n), "trace")
    FOLDER.mkdir(parents=True, exist_ok=True)
    np.savez(_path(workload, n, covers), **exact)  # type: ignore[arg-type]


def load_reference(workload: str, n: int, covers: str) -> dict[str, np.ndarray]:
    """Read them."""
    with np.load(_path(workload, n, covers)) as stored:
        return {name: stored[name] for name in stored.files}


if __name__ == "__main__":
    for row in sys.argv[1:]:
        workload, covers, n = row.split("-")
        write_reference(workload, int(n), covers)
