"""Network with one hidden layer whose outputs are whole numbers, the same on every machine.

Inputs, weights and outputs are whole numbers in float64. A sum of whole numbers is exact in any order, with any BLAS and
number of threads, as long as no sum of absolute values exceeds 2^53, which is checked. Random numbers are those of
SHAKE-256, which no later version of a library changes.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from kernelmem.compression.cards.inputs import FRACTION_BITS, LARGEST
from kernelmem.core import InputError

WEIGHT_BITS = 10  # weights of the first layer are multiples of 2^-10
MAX_SIGNS = (
    2**27
)  # signs of the random directions, one byte each; they take eight bytes each while weights are computed
EXACT = 2.0**53
CHUNK = 2**22  # hidden units at a time


@dataclass(frozen=True)
class Architecture:
    """Sizes and seed of a network.

    Attributes:
        n_inputs: number p of input features.
        width: number h of hidden units.
        n_classes: number C of outputs.
        dimensions: number d of random directions of the weights.
        seed: seed of the initial weights and of the directions.
    """

    n_inputs: int
    width: int
    n_classes: int
    dimensions: int
    seed: int

    def __post_init__(self) -> None:
        if self.n_signs > MAX_SIGNS:
            raise InputError(
                f"a card with {self.dimensions} dimensions of {self.n_weights:,} weights ({self.n_inputs:,} inputs,"
                f" {self.width} hidden units, {self.n_classes} classes)",
                expected=f"at most {MAX_SIGNS:,} numbers in the random directions",
                hint="reduce the inputs to fewer features, or pass CardOptions with a smaller width or fewer dimensions",
            )

    @property
    def n_weights(self) -> int:
        """Number of weights, biases included."""
        return (self.n_inputs + 1) * self.width + (self.width + 1) * self.n_classes

    @property
    def n_signs(self) -> int:
        """Number of signs in the random directions."""
        return self.n_weights * self.dimensions

    @property
    def steps(self) -> tuple[int, int]:
        """Steps of the weights per unit of the whole numbers in both layers, as exponents of 2: about 2/√(fan-in · d)."""
        d = self.dimensions
        first, second = (1 - (fan_in * d).bit_length() // 2 for fan_in in (self.n_inputs, self.width))
        return max(first, -WEIGHT_BITS), second

    def initial(self) -> np.ndarray:
        """Return initial weights of the first layer (p + 1, h), Gaussian to good approximation, in units of 2^-10."""
        count = (self.n_inputs + 1) * self.width
        data = hashlib.shake_256(f"kernelmem card, initial weights {self.seed}".encode()).digest(4 * count)
        sums = np.frombuffer(data, np.uint8).reshape(4, count).sum(0, dtype=np.int64) - 510  # standard deviation 147.8
        factor = round(math.sqrt(2 / self.n_inputs) * (1 << WEIGHT_BITS) / 147.8 * 2**16)
        return (sums * factor >> 16).astype(np.float64).reshape(-1, self.width)

    def signs(self) -> np.ndarray:
        """Return the random directions, (d, weights) of −1 and 1, int8."""
        data = hashlib.shake_256(f"kernelmem card, directions {self.seed}".encode()).digest(-(-self.n_signs // 8))
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=self.n_signs).astype(np.int8)
        return (2 * bits - 1).reshape(self.dimensions, self.n_weights)


@dataclass(frozen=True)
class Network:
    """Weights of a network, from whole numbers.

    Attributes:
        first: (p + 1, h) weights and biases of the hidden layer, whole numbers in units of 2^-10.
        second: (h + 1, C) weights and biases of the outputs, whole numbers in units of 2^step.
        output_bits: outputs are multiples of 2^-output_bits.
    """

    first: np.ndarray
    second: np.ndarray
    output_bits: int

    @property
    def is_exact(self) -> bool:
        """Check that no sum of absolute values exceeds 2^53, for any inputs on the grid."""
        hidden = (LARGEST << FRACTION_BITS) * float(np.abs(self.first).sum(0).max())
        one = 2.0 ** (FRACTION_BITS + WEIGHT_BITS)
        return max(hidden, one) * float(np.abs(self.second).sum(0).max()) < EXACT

    def logits(self, z: np.ndarray) -> np.ndarray:
        """Return outputs (n, C) of inputs (n, p) on the grid, whole numbers in units of 2^-output_bits."""
        rows = max(1, CHUNK // max(self.first.shape))
        chunks = [self._logits(z[start : start + rows]) for start in range(0, len(z), rows)]
        return np.concatenate(chunks) if chunks else np.empty((0, self.second.shape[1]))

    def _logits(self, z: np.ndarray) -> np.ndarray:
        hidden = z @ self.first[:-1] + self.first[-1] * (1 << FRACTION_BITS)
        np.maximum(hidden, 0.0, out=hidden)
        return hidden @ self.second[:-1] + self.second[-1] * 2.0 ** (FRACTION_BITS + WEIGHT_BITS)


def build(architecture: Architecture, numbers: np.ndarray) -> Network:
    """Return the network of the whole numbers (d,)."""
    change = numbers.astype(np.float64) @ architecture.signs()
    split = (architecture.n_inputs + 1) * architecture.width
    first_step, second_step = architecture.steps
    first = architecture.initial() + change[:split].reshape(-1, architecture.width) * 2.0 ** (WEIGHT_BITS + first_step)
    second = change[split:].reshape(-1, architecture.n_classes)
    return Network(first, second, FRACTION_BITS + WEIGHT_BITS - second_step)
