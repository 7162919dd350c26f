"""Descent on the coefficients of a kernel, step by step, as torch.optim.SGD would take it on the weights."""

from collections.abc import Callable

import torch
from torch import Tensor

from kernelmem.core.errors import NumericalError
from kernelmem.kernel_machines.linearized.function_space import FunctionSpace
from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig
from kernelmem.training.losses import per_example_loss

__all__ = ["Recursion", "gradient_of", "largest_eigenvalue"]

DENSE = 512  # up to this size all eigenvalues are computed


class Recursion:
    """Weights s w_0 + J(X)ᵀ a and their momentum, followed as (s − 1, a), and as the outputs that they give.

    Outputs are carried along, so that a step costs the columns of its batch; ``drift`` says what rounding that left.
    """

    def __init__(self, space: FunctionSpace) -> None:
        self.space = space
        zero = torch.zeros_like(space.fold(space.initial))
        self.a, self.b = zero, zero  # coefficients, and those of the momentum
        self.Ka, self.Kb = zero, zero
        self.shrunk, self.buffer = 0.0, 0.0  # s − 1, and the momentum of s
        self.taken = 0

    def put(self, a: Tensor, b: Tensor, shrunk: float, buffer: float, *, taken: bool) -> None:
        """Go on from these coefficients and momentum (N, k), s − 1 and its momentum."""
        self.a, self.b, self.shrunk, self.buffer, self.taken = a, b, shrunk, buffer, int(taken)
        self.Ka, self.Kb = self.space.matrix @ a, self.space.matrix @ b

    def state(self) -> tuple[Tensor, Tensor]:
        """Coefficients (N, k), and s − 1."""
        return self.a.clone(), self.a.new_tensor(self.shrunk)

    def outputs(self, index: Tensor) -> Tensor:
        """Those of training rows ``index``: (B, C)."""
        moved = self.space.unfold(self.Ka)[index]
        return self.space.initial[index] + moved + self.shrunk * self.space.pull[index]

    def step(self, index: Tensor, gradient: Tensor, descent: SGDConfig) -> None:
        """One step; ``gradient`` (B, C) is that of the batch's loss by the outputs of its rows.

        Raises:
            NumericalError: coefficients that are not finite.
        """
        space, decay, mu = self.space, descent.weight_decay, descent.momentum
        columns = space.columns(index)
        own = gradient.reshape(len(columns), -1)
        g = (decay * self.a).index_add(0, columns, own)  # rows may repeat
        Kg = decay * self.Ka + space.matrix[:, columns] @ own
        pull = decay * (1 + self.shrunk)
        if mu:
            taken = 1.0 if self.taken == 0 else 1 - descent.dampening  # torch does not dampen the first
            self.b, self.Kb = mu * self.b + taken * g, mu * self.Kb + taken * Kg
            self.buffer = mu * self.buffer + taken * pull
            if descent.nesterov:
                g, Kg, pull = g + mu * self.b, Kg + mu * self.Kb, pull + mu * self.buffer
            else:
                g, Kg, pull = self.b, self.Kb, self.buffer
        self.a, self.Ka = self.a - descent.lr * g, self.Ka - descent.lr * Kg
        self.shrunk -= descent.lr * pull
        self.taken += 1
        if not bool(torch.isfinite(self.Ka).all()):
            raise NumericalError(
                f"a descent whose outputs are no longer finite after {self.taken} steps",
                expected="steps that do not diverge",
                hint="take a smaller learning rate, or larger batches",
            )

    def drift(self) -> float:
        """Max |K a carried along − K a computed|."""
        return float((self.space.matrix @ self.a - self.Ka).abs().max())


def gradient_of(loss: str | Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The function (outputs (B, C), targets) -> ∂ℓ_i/∂f_i (B, C) of a loss of one example.

    Raises:
        InputError: an unknown name; a callable that does not give (B,).
    """
    if loss == "mse":
        return lambda outputs, targets: outputs - targets
    own = per_example_loss(loss)

    def gradient(outputs: Tensor, targets: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            return torch.autograd.grad(own(leaf, targets).sum(), leaf)[0]

    return gradient


def largest_eigenvalue(matrix: Tensor) -> float:
    """κ_max of a symmetric matrix: O(N³) for small ones, otherwise by Lanczos to 1e-9."""
    if len(matrix) <= DENSE:
        return float(torch.linalg.eigvalsh(matrix)[-1])
    import numpy as np
    from scipy.sparse.linalg import eigsh  # slow to import

    start = np.cos(np.arange(len(matrix)))  # explicit, so that results repeat to the bit
    found = eigsh(matrix.cpu().numpy(), k=1, which="LA", tol=1e-9, v0=start, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    return float(found[0])
