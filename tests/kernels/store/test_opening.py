"""Opening a store: other inputs are refused with what differs, the same never; one writer, readers, forks, pickles."""

import json
import os
import pickle
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem import InputError, KernelStore
from kernelmem.kernels.store.layout import as_facts, differences
from tests.kernels.store.stores import FACTS, fill, kernel, stored
from tests.profiles import examples

VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)
FACT_DICTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=4)


@examples(2)
@given(FACT_DICTS, FACT_DICTS)
def test_equal_facts_never_differ_and_others_always_do(facts, others):
    read = json.loads(json.dumps(as_facts(dict(reversed(facts.items())))))
    assert differences(read, as_facts(facts)) == []
    same = json.dumps(facts, sort_keys=True) == json.dumps(others, sort_keys=True)
    assert (differences(read, as_facts(others)) == []) is same


def test_the_message_names_what_differs(tmp_path):
    KernelStore.create(tmp_path / "k", FACTS, 5).close()
    other = {"model": "a", "data": {"rows": 5, "sha256": "permuted"}, "dtype": "float64"}
    with pytest.raises(InputError) as error:
        KernelStore.open(tmp_path / "k", other, write=True)
    assert (
        'data.sha256 ("b" in the store, "permuted" now); dtype (absent in the store, "float64" now)'
        in error.value.given
    )
    assert "model" not in error.value.given
    KernelStore.open(tmp_path / "k", FACTS, write=True).close()  # the refused writer has released its lock


@pytest.mark.parametrize("facts", [[], {1: 2}, {"a": float("nan")}, {"a": torch.ones(2)}, {"a": "\ud800"}, None])
def test_facts_that_json_does_not_have_are_refused(tmp_path, facts):
    with pytest.raises(InputError, match="facts"):
        KernelStore.create(tmp_path / "k", facts, 5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {"m": 4, "symmetric": True},
        {"tile": 0},
        {"n": 10**6, "tile": 1},
        {"n": 10**6, "tile": 10**5},
        {"dtype": torch.int64},
    ],
)
def test_other_layouts_are_refused(tmp_path, options):
    with pytest.raises(InputError):
        KernelStore.create(**{"path": tmp_path / "k", "facts": FACTS, "n": 5} | options)
    assert not list(tmp_path.iterdir())


def test_paths_that_are_taken_or_empty_are_refused(tmp_path):
    (tmp_path / "taken").write_text("text")
    for path in (tmp_path / "taken", tmp_path, tmp_path / "none" / "k"):
        with pytest.raises(InputError):
            KernelStore.create(path, FACTS, 2)
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="not a file"):
            KernelStore.open(path)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_the_second_writer_is_refused_with_the_process_of_the_first(tmp_path):
    path = tmp_path / "k"
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        store = KernelStore.create(path, {}, 3, tile=2)
        store.put(0, 0, np.eye(2, dtype=np.float32))
        os.write(sender, b"ready")
        signal.pause()
    try:
        assert os.read(receiver, 5) == b"ready"
        with pytest.raises(InputError, match=f"which process {child} is writing"):
            KernelStore.open(path, {}, write=True)
        with KernelStore.open(path, {}) as reader:  # readers are not refused, and see what was acknowledged
            assert torch.equal(reader.tile(0, 0), torch.eye(2))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with KernelStore.open(path, {}, write=True) as store:  # a killed process locks nothing, and nothing was lost
        assert store.missing() == [(0, 1), (1, 1)]
        store.verify()
        with pytest.raises(InputError, match=f"which process {os.getpid()} is writing"):
            KernelStore.open(path, {}, write=True)
        fill(store, torch.eye(3))
    with KernelStore.open(path, write=True) as store:
        assert store.complete
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_a_forked_process_neither_uses_nor_releases_the_store(tmp_path):
    with KernelStore.create(tmp_path / "k", FACTS, 2) as store:
        child = os.fork()
        if child == 0:  # os._exit: the child must not run pytest
            try:
                store.put(0, 0, torch.eye(2))
            except InputError:
                store.close()
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        store.put(0, 0, torch.eye(2))
        with pytest.raises(InputError, match="is writing"):
            KernelStore.open(tmp_path / "k", write=True)


def test_a_pickled_store_opens_the_file_for_reading(tmp_path):
    K = kernel(3, 4, torch.float64, symmetric=False)
    with stored(tmp_path / "k", K) as store, pickle.loads(pickle.dumps(store)) as copy:
        assert torch.equal(copy.rows(0, 3), K)
