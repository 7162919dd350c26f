"""RowTable: the numbers of every audited row, as arrays in rows.npz and as a table in rows.csv."""

import io
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas

ROWS_NPZ = "rows.npz"
ROWS_CSV = "rows.csv"
INTEGER, NUMBER, FLAG = "i", "f", "b"


@dataclass(frozen=True, eq=False)
class RowTable:
    """Statistics of n training rows and of u control rows (unseen test rows, one of each group of near-duplicates).

    All arrays are NumPy: int64, float64 or bool. The label regression is kernel ridge regression on the network's NTK,
    fitted to the labels of all these rows; "leave-one-out" predicts a row without it and without its near-duplicates.

    Attributes:
        label: (n,) given classes; all −1 if the audit is redacted.
        predicted_without: (n,) classes that the label regression predicts without the row; all −1 if redacted.
        score: (n,) ranking score, larger = more memorized. Without retraining it is the negative sum of the leave-one-out
            margin and of the network's margin of the label, each divided by its standard deviation; with retraining, the
            negative mean margin of the label in models trained without the row.
        standard_error: (n,) standard error of ``score``; NaN where it is exact for its inputs.
        loo_margin: (n,) leave-one-out margin of the label; negative: the other rows contradict it.
        label_memorization: (n,) prediction of the label regression with the row minus without it, at the label.
        surrogate_difference: (n,) margin of the network minus leave-one-out margin of its NTK surrogate. A diagnostic of
            the surrogate, not a measure of memorization.
        network_correct: (n,) True if the network gives the label.
        flagged: (n,) True if the row is called memorized.
        memorization: (n,) probability of the label with the row minus without it, by retraining; NaN if not run.
        left_out_bits: (n,) bits of the label by the other rows, by the kernel of a network without training; NaN if not run.
        memorized_bits: (n,) bits of the label that only the row itself and the network have; NaN if not run.
        group: (n,) number of the group of near-duplicates that the row belongs to.
        control_index: (u,) test rows of the control.
        control_margin: (u,) leave-one-out margins of their labels.
        control_flagged: (u,) True where the rule of the kernel method counts the row.
    """

    label: np.ndarray
    predicted_without: np.ndarray
    score: np.ndarray
    standard_error: np.ndarray
    loo_margin: np.ndarray
    label_memorization: np.ndarray
    surrogate_difference: np.ndarray
    network_correct: np.ndarray
    flagged: np.ndarray
    memorization: np.ndarray
    left_out_bits: np.ndarray
    memorized_bits: np.ndarray
    group: np.ndarray
    control_index: np.ndarray
    control_margin: np.ndarray
    control_flagged: np.ndarray

    def to_frame(self) -> "pandas.DataFrame":
        """Return one row per training row, with one column per array."""
        import pandas  # slow to import

        columns = {name: getattr(self, name) for name in KINDS if not name.startswith("control_")}
        return pandas.DataFrame(columns).rename_axis("row")

    def files(self) -> dict[str, bytes]:
        """Return the contents of rows.npz and rows.csv; equal tables give equal bytes."""
        stream = io.BytesIO()
        np.savez_compressed(stream, allow_pickle=False, **{name: getattr(self, name) for name in KINDS})
        table = self.to_frame().to_csv(lineterminator="\n", float_format="%.9g")
        return {ROWS_NPZ: stream.getvalue(), ROWS_CSV: table.encode()}

    def redacted(self) -> "RowTable":
        """Return the table without labels and predictions."""
        hidden = np.full_like(self.label, -1)
        return replace(self, label=hidden, predicted_without=hidden)

    @classmethod
    def read(cls, content: bytes) -> "RowTable":
        """Read the content of rows.npz.

        Raises:
            ValueError: an array is missing, or its dtype or length does not fit.
        """
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if arrays.keys() != KINDS.keys():
            raise ValueError(f"arrays {sorted(arrays)}, not {sorted(KINDS)}")
        table = cls(**arrays)
        n, u = table.label.shape, table.control_index.shape
        for name, kind in KINDS.items():
            array = arrays[name]
            expected = u if name.startswith("control_") else n
            if array.dtype.kind != kind or array.ndim != 1 or array.shape != expected:
                raise ValueError(f"{name} of dtype {array.dtype} and shape {array.shape}")
        return table


KINDS = {
    field.name: INTEGER
    if field.name in ("label", "predicted_without", "group", "control_index")
    else FLAG
    if field.name.endswith("flagged") or field.name == "network_correct"
    else NUMBER
    for field in fields(RowTable)
}
