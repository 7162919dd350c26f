"""Code of labels in two parts, a network and the labels given the network, in one stream.

    header (fields of fixed width) | stream: d whole numbers, then n labels

Every number that the encoder chose after seeing the labels is in the header. The stream needs no length: its decoder knows
where it ends. Probabilities are ratios of whole numbers, so that encoder and decoder round the same numbers.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from kernelmem.compression.cards.network import Architecture, Network, build
from kernelmem.compression.coder import (
    SymbolDecoder,
    encode_symbols,
    frequencies,
    ideal_bits,
    pack_fields,
    unpack_fields,
)
from kernelmem.core import FileCorruptError

LARGEST_NUMBER = 15  # of the whole numbers that determine the weights
N_NUMBERS = 2 * LARGEST_NUMBER + 1
POWER_BITS, STEPS = 40, 256  # powers of two: 2^-(t/256) in units of 2^-40
MODE_WIDTHS = (1, 11, 4)  # network or uniform, C - 1, bytes of the seed
FIELD_WIDTHS = (10, 10, 5, 6, 6)  # width - 1, dimensions - 1, scale, inverse temperature, floor
MAX_CLASSES = 2048
N_SCALES, N_TEMPERATURES, N_FLOORS = 32, 64, 64
MAX_CHOICE_ENTRIES = 10**7
DECODED_ROWS = 2**14  # labels decoded at a time


@dataclass(frozen=True)
class Choices:
    """Numbers in the header that turn outputs into probabilities, and the scale of the whole numbers.

    Attributes:
        scale: index of the scale of the discretized Laplace distribution of the whole numbers.
        temperature: index; probabilities are 2^(logit · (index + 1) / 8).
        floor: index; a share 2^−((index + 1) / 4) is distributed uniformly.
    """

    scale: int
    temperature: int
    floor: int


@dataclass(frozen=True)
class TwoPartCode:
    """A code of labels in two parts.

    Attributes:
        data: the code, in bytes.
        header_bits: length of the header, filled up to whole bytes.
        network_bits: −log₂ of the probabilities of the whole numbers; 0 without a network.
        n_classes: number C of classes.
        seed, width, dimensions: seed of the initial weights and of the directions, number of hidden units, number d of whole
            numbers; width and dimensions are 0 without a network, where labels are coded with uniform probabilities.
        choices: choices in the header.
        numbers: the d whole numbers.
    """

    data: bytes
    header_bits: int
    network_bits: float
    n_classes: int
    seed: int
    width: int
    dimensions: int
    choices: Choices
    numbers: np.ndarray

    @property
    def bits(self) -> int:
        """Length of the code, 8 bits per byte."""
        return 8 * len(self.data)

    @property
    def has_network(self) -> bool:
        """False if labels are coded with uniform probabilities."""
        return self.dimensions > 0

    def network(self, n_inputs: int) -> Network:
        """Return the network, for rows with ``n_inputs`` features.

        Raises:
            InputError: too many features.
        """
        return build(Architecture(n_inputs, self.width, self.n_classes, self.dimensions, self.seed), self.numbers)


@cache
def _power_table() -> np.ndarray:
    """Return 2^(−k/256) in units of 2^-40, k = 0..255, rounded down by integer arithmetic."""
    powers = []
    for k in range(STEPS):
        root = 1 << (POWER_BITS * STEPS - k)
        for _ in range(8):  # square roots, rounded down: the 256th root, rounded down
            root = math.isqrt(root)
        powers.append(root)
    return np.array(powers, dtype=np.int64)


def powers_of_two(t: np.ndarray) -> np.ndarray:
    """Return 2^(−t/256) in units of 2^-40 for whole numbers t >= 0, rounded down, as float64."""
    t = np.minimum(t, float(STEPS * (POWER_BITS + 1))).astype(np.int64)
    return (_power_table()[t % STEPS] >> t // STEPS).astype(np.float64)


def number_probabilities(scale: int) -> np.ndarray:
    """Return probabilities (31,) of the whole numbers −15..15, discretized Laplace: proportional to 2^(−|k| a)."""
    unit = round(8 * 2 ** (scale / 4))  # a in units of 1/256; far from halves
    weights = powers_of_two(np.abs(np.arange(-LARGEST_NUMBER, LARGEST_NUMBER + 1)) * float(unit))
    return weights / weights.sum()


def label_probabilities(logits: np.ndarray, output_bits: int, choices: Choices) -> np.ndarray:
    """Return probabilities (n, C) of labels from outputs in units of 2^-output_bits."""
    slope = (choices.temperature + 1) * STEPS / 8 * 2.0**-output_bits
    weights = powers_of_two(np.rint((logits.max(1, keepdims=True) - logits) * slope))
    share = float(powers_of_two(np.array([(choices.floor + 1) * (STEPS // 4)]))[0]) * 2.0**-POWER_BITS
    return weights / weights.sum(1, keepdims=True) * (1 - share) + share / logits.shape[1]


def best_choices(numbers: np.ndarray, logits: np.ndarray, output_bits: int, labels: np.ndarray) -> Choices:
    """Return the choices with the shortest code, up to the spacing of their grids."""
    row_of = {scale: frequencies(number_probabilities(scale)[None]) for scale in range(N_SCALES)}
    indices, ones = numbers + LARGEST_NUMBER, np.ones((len(numbers), 1), np.int64)
    scale = min(range(N_SCALES), key=lambda scale: float(ideal_bits(indices, ones * row_of[scale]).sum()))
    stride = -(-logits.size // MAX_CHOICE_ENTRIES)  # of many rows, some decide: any choice can be decoded
    logits, labels = logits[::stride], labels[::stride]
    best, rows = (math.inf, 0, 0), np.arange(len(labels))
    for temperature in range(N_TEMPERATURES):
        sharp = label_probabilities(logits, output_bits, Choices(0, temperature, N_FLOORS - 1))[rows, labels]
        for floor in range(N_FLOORS):
            share = 2 ** (-(floor + 1) / 4)  # rounding does not matter in the comparison
            length = -np.log2(sharp * (1 - share) + share / logits.shape[1]).sum()
            best = min(best, (float(length), temperature, floor))
    return Choices(scale, best[1], best[2])


def encode(architecture: Architecture, numbers: np.ndarray, labels: np.ndarray, z: np.ndarray) -> TwoPartCode:
    """Encode labels (n,) with the network of the whole numbers (d,); with uniform probabilities if that is shorter."""
    uniform = _encode_uniform(architecture.n_classes, labels)
    network = build(architecture, numbers)
    if not network.is_exact:
        return uniform
    logits = network.logits(z)
    choices = best_choices(numbers, logits, network.output_bits, labels)
    fields = (architecture.width - 1, architecture.dimensions - 1, choices.scale, choices.temperature, choices.floor)
    seed_bytes = -(-architecture.seed.bit_length() // 8)
    header = pack_fields((1, architecture.n_classes - 1, seed_bytes), MODE_WIDTHS)
    header += pack_fields((architecture.seed, *fields), (8 * seed_bytes, *FIELD_WIDTHS))
    number_table = _number_table(choices.scale, architecture)
    label_table = _label_table(logits, network.output_bits, choices)
    symbols = np.concatenate([numbers + LARGEST_NUMBER, labels])
    data = header + encode_symbols(symbols, np.concatenate([number_table, label_table]))
    return uniform if len(data) >= len(uniform.data) else read_network(data)[0]


def read_network(data: bytes) -> tuple[TwoPartCode, SymbolDecoder]:
    """Return the code with its network, and the decoder of its stream, which has come to the labels.

    Raises:
        FileCorruptError: not a code.
    """
    (is_network, class_field, seed_bytes), rest = unpack_fields(data, MODE_WIDTHS)
    widths = (8 * seed_bytes, *FIELD_WIDTHS) if is_network else (8 * seed_bytes,)
    (seed, *fields), stream = unpack_fields(rest, widths)
    header_bits, decoder, C = 8 * (len(data) - len(stream)), SymbolDecoder(stream), class_field + 1
    if -(-seed.bit_length() // 8) != seed_bytes or (seed and not is_network):
        raise _corrupt("a seed that no encoder writes")
    if not is_network:
        return TwoPartCode(data, header_bits, 0.0, C, 0, 0, 0, Choices(0, 0, 0), np.empty(0, np.int64)), decoder
    choices, d = Choices(*fields[2:]), fields[1] + 1
    table = _number_table(choices.scale, Architecture(1, 1, C, d, seed))
    symbols = np.array(decoder.decode_rows(table))
    if symbols.max() >= N_NUMBERS:
        raise _corrupt("a weight that no encoder writes")
    network_bits = float(ideal_bits(symbols, table).sum())
    numbers = symbols - LARGEST_NUMBER
    return TwoPartCode(data, header_bits, network_bits, C, seed, fields[0] + 1, d, choices, numbers), decoder


def decode_labels(code: TwoPartCode, decoder: SymbolDecoder, network: Network | None, z: np.ndarray) -> np.ndarray:
    """Return the labels (n,) of a code, given inputs (n, p) on the grid.

    Args:
        code: the code.
        decoder: decoder from :func:`read_network`.
        network: network of the code for these inputs; None without one.
        z: the inputs.

    Raises:
        FileCorruptError: the stream is not that of n labels.
    """
    if network is not None and not network.is_exact:
        raise _corrupt("weights that no encoder writes")
    labels: list[int] = []
    for start in range(0, len(z), DECODED_ROWS):
        rows = z[start : start + DECODED_ROWS]
        if network is None:
            table = frequencies(np.full((len(rows), code.n_classes), 1 / code.n_classes))
        else:
            table = _label_table(network.logits(rows), network.output_bits, code.choices)
        labels += decoder.decode_rows(table)
    decoder.close()
    if labels and max(labels) >= code.n_classes:
        raise _corrupt("a label that no encoder writes")
    return np.array(labels, dtype=np.int64)


def _encode_uniform(n_classes: int, labels: np.ndarray) -> TwoPartCode:
    header = pack_fields((0, n_classes - 1, 0), MODE_WIDTHS)
    table = frequencies(np.full((len(labels), n_classes), 1 / n_classes))
    return read_network(header + encode_symbols(labels, table))[0]


def _number_table(scale: int, architecture: Architecture) -> np.ndarray:
    """Return frequencies (d, symbols) of the whole numbers, in an alphabet that holds the labels too: one stream for both."""
    row = frequencies(_widened(number_probabilities(scale)[None], architecture.n_classes))
    return np.repeat(row, architecture.dimensions, 0)


def _label_table(logits: np.ndarray, output_bits: int, choices: Choices) -> np.ndarray:
    """Return frequencies (n, symbols) of the labels, in the same alphabet."""
    return frequencies(_widened(label_probabilities(logits, output_bits, choices), N_NUMBERS))


def _widened(probabilities: np.ndarray, size: int) -> np.ndarray:
    """Return probabilities (n, at least ``size``), with zeros for further symbols: their frequency is 1 of 65,536."""
    return np.pad(probabilities, ((0, 0), (0, max(0, size - probabilities.shape[1]))))


def _corrupt(given: str) -> FileCorruptError:
    return FileCorruptError(given, expected="a code of labels", hint="write the card again")
