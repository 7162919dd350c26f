"""The content of an audit: read back as written; row tables with a wrong array are refused."""

import io

import numpy as np
import pytest

from kernelmem.auditing.schema import ROWS_CSV, ROWS_NPZ, RowTable
from kernelmem.auditing.schema.row_table import KINDS

DTYPES = {"i": np.int64, "f": np.float64, "b": np.bool_}


def make_table(n=4, u=3):
    return RowTable(
        **{
            name: np.arange(u if name.startswith("control_") else n).astype(DTYPES[kind])
            for name, kind in KINDS.items()
        }
    )


def test_a_row_table_is_read_back_and_its_csv_has_one_line_per_row():
    table = make_table()
    files = table.files()
    again = RowTable.read(files[ROWS_NPZ])
    for name in KINDS:
        assert np.array_equal(getattr(table, name), getattr(again, name))
    assert files == make_table().files()
    lines = files[ROWS_CSV].decode().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("row,label,predicted_without,score,")


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("score"),
        lambda arrays: arrays.update(more=np.zeros(4)),
        lambda arrays: arrays.update(score=np.zeros(3)),
        lambda arrays: arrays.update(score=np.zeros((4, 1))),
        lambda arrays: arrays.update(score=np.zeros(4, np.int64)),
        lambda arrays: arrays.update(flagged=np.zeros(4)),
        lambda arrays: arrays.update(control_margin=np.zeros(2)),
    ],
)
def test_a_table_that_does_not_fit_is_refused(change):
    arrays = {name: getattr(make_table(), name) for name in KINDS}
    change(arrays)
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    with pytest.raises(ValueError, match=r"array|dtype|shape"):
        RowTable.read(stream.getvalue())
