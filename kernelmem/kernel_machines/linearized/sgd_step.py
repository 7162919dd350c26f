"""SGD on the coefficients of a kernel, step by step, equal to torch.optim.SGD on the weights of the linearized network."""

from collections.abc import Callable

import torch
from torch import Tensor

from kernelmem.core.errors import NumericalError
from kernelmem.kernel_machines.linearized.function_space import FunctionSpace
from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig
from kernelmem.training.losses import per_example_loss

MAX_DENSE_SIZE = 512  # all eigenvalues are computed up to this matrix size, Lanczos is used above it


class FunctionSpaceSGD:
    """SGD state in function space: weights s w_0 + J(X)ᵀ a and momentum, as (s − 1, a), and the outputs K a.

    K a is updated instead of recomputed, so a step costs only the columns of its batch; ``drift`` measures the rounding.
    """

    def __init__(self, space: FunctionSpace) -> None:
        self.space = space
        zeros = torch.zeros_like(space.fold(space.initial))
        self.a, self.b = zeros, zeros  # coefficients, and those of the momentum
        self.Ka, self.Kb = zeros, zeros
        self.s_minus_1, self.s_buffer = 0.0, 0.0  # s − 1, and the momentum of s
        self.n_steps = 0

    def restore(self, a: Tensor, b: Tensor, s_minus_1: float, s_buffer: float, *, n_steps: int) -> None:
        """Continue from coefficients and momentum (N, k), s − 1 and its momentum."""
        self.a, self.b, self.s_minus_1, self.s_buffer, self.n_steps = a, b, s_minus_1, s_buffer, n_steps
        self.Ka, self.Kb = self.space.matrix @ a, self.space.matrix @ b

    def state(self) -> tuple[Tensor, Tensor]:
        """Return coefficients (N, k), and s − 1."""
        return self.a.clone(), self.a.new_tensor(self.s_minus_1)

    def outputs(self, row_index: Tensor) -> Tensor:
        """Return the outputs of training rows ``row_index``, (B, C)."""
        change = self.space.unfold(self.Ka)[row_index]
        return self.space.initial[row_index] + change + self.s_minus_1 * self.space.Jw0[row_index]

    def step(self, row_index: Tensor, output_gradient: Tensor, sgd: SGDConfig) -> None:
        """Take one step; ``output_gradient`` (B, C) is ∂L/∂f of the batch loss at the outputs of its rows.

        Raises:
            NumericalError: the outputs are no longer finite.
        """
        space, decay, mu = self.space, sgd.weight_decay, sgd.momentum
        columns = space.columns(row_index)
        batch_gradient = output_gradient.reshape(len(columns), -1)
        g = (decay * self.a).index_add(0, columns, batch_gradient)  # rows may repeat
        Kg = decay * self.Ka + space.matrix[:, columns] @ batch_gradient
        s_gradient = decay * (1 + self.s_minus_1)
        if mu:
            # torch does not dampen the first gradient
            gradient_factor = 1.0 if self.n_steps == 0 else 1 - sgd.dampening
            self.b, self.Kb = mu * self.b + gradient_factor * g, mu * self.Kb + gradient_factor * Kg
            self.s_buffer = mu * self.s_buffer + gradient_factor * s_gradient
            if sgd.nesterov:
                g, Kg, s_gradient = g + mu * self.b, Kg + mu * self.Kb, s_gradient + mu * self.s_buffer
            else:
                g, Kg, s_gradient = self.b, self.Kb, self.s_buffer
        self.a, self.Ka = self.a - sgd.lr * g, self.Ka - sgd.lr * Kg
        self.s_minus_1 -= sgd.lr * s_gradient
        self.n_steps += 1
        if not bool(torch.isfinite(self.Ka).all()):
            raise NumericalError(
                f"linearized training whose outputs are no longer finite after {self.n_steps} steps",
                expected="steps that do not diverge",
                hint="use a smaller learning rate, or larger batches",
            )

    def drift(self) -> float:
        """Return the rounding error of the updated K a, max |K a (updated) − K a (recomputed)|."""
        return float((self.space.matrix @ self.a - self.Ka).abs().max())


def output_gradient_function(loss: str | Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function (outputs (B, C), targets) -> ∂ℓ_i/∂f_i (B, C) of a per-example loss.

    Raises:
        InputError: the name is unknown, or the callable does not return (B,).
    """
    if loss == "mse":
        return lambda outputs, targets: outputs - targets
    example_loss = per_example_loss(loss)

    def gradient(outputs: Tensor, targets: Tensor) -> Tensor:
        with torch.enable_grad():
            differentiable_outputs = outputs.detach().requires_grad_()
            return torch.autograd.grad(example_loss(differentiable_outputs, targets).sum(), differentiable_outputs)[0]

    return gradient


def largest_eigenvalue(matrix: Tensor) -> float:
    """Return κ_max of a symmetric matrix: O(N³) up to N = 512, otherwise by Lanczos to 1e-9."""
    if len(matrix) <= MAX_DENSE_SIZE:
        return float(torch.linalg.eigvalsh(matrix)[-1])
    import numpy as np
    from scipy.sparse.linalg import eigsh  # slow to import

    start = np.cos(np.arange(len(matrix)))  # a fixed start vector makes results repeat to the bit
    values = eigsh(matrix.cpu().numpy(), k=1, which="LA", tol=1e-9, v0=start, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    return float(values[0])
