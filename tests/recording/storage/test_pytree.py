"""kernelmem.recording.storage.pytree: models whose input is not a single tensor are recorded and replayed."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.recording.storage import tape as tape_module
from kernelmem.recording.storage.pytree import MAGIC, tree_from_row_bytes, tree_row_bytes
from kernelmem.recording.trainers.huggingface import logits

DTYPES = [torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8, torch.float16]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b) or len(a) != len(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    return all(equal(left, right) for left, right in zip(a, b, strict=True))


leaves = st.builds(
    lambda shape, dtype, seed: (torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype),
    st.lists(st.integers(0, 3), max_size=2),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)


@given(trees, st.permutations(range(3)))
def test_rows_of_a_tree_come_back_in_any_order(tree, order):
    rows = tree_row_bytes(tree)
    assert len(rows) == 3
    assert equal(tree_from_row_bytes(rows), tree)
    back = tree_from_row_bytes([rows[i] for i in order])
    taken = tree_row_bytes(back)
    assert taken == [rows[i] for i in order]


def test_invalid_trees_are_refused():
    rows = tree_row_bytes({"a": torch.zeros(2, 3), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match="different shapes"):
        tree_from_row_bytes([rows[0], tree_row_bytes({"a": torch.zeros(1, 3), "c": torch.zeros(1)})[0]])
    with pytest.raises(ValueError, match="different shapes"):
        tree_from_row_bytes([rows[0], rows[1][:-1]])
    with pytest.raises(ValueError, match="different shapes"):
        tree_from_row_bytes([row + b"0" for row in rows])
    deep = json.dumps([0, []]).replace("0", "[" * 100_000 + "]" * 100_000).encode()
    with pytest.raises(ValueError, match="too deeply"):
        tree_from_row_bytes([MAGIC + len(deep).to_bytes(4, "little") + deep])
    with pytest.raises(InputError, match="x with the key 3"):
        tree_row_bytes({3: torch.zeros(2)})


class Two(nn.Module):
    """Takes a pair of tables; counts its calls in a buffer, drops out."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 5, dtype=dtype), nn.Linear(2, 5, dtype=dtype)
        self.norm, self.head = nn.BatchNorm1d(5, dtype=dtype), nn.Linear(5, 3, dtype=dtype)
        self.dropout = nn.Dropout(0.3)

    def forward(self, *, left, right):
        left *= 1.5  # written over
        return self.head(self.dropout(self.norm(self.first(left) + self.second(right)).tanh()))


FORWARDS = {
    "dict": (lambda model, batch: model(**batch), lambda x: {"left": x, "right": x[:, :2].clone()}),
    "tuple": (lambda model, batch: model(left=batch[0], right=batch[1]), lambda x: (x, x[:, :2].clone())),
    "nested": (
        lambda model, batch: model(left=batch[0]["x"], right=batch[1][0]),
        lambda x: [{"x": x, "ids": x[:, 0] > 0}, (x[:, :2].clone(),)],
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", FORWARDS)
def test_trees_are_recorded_and_replayed_to_the_bit(lab, kind, dtype):
    forward, tree = FORWARDS[kind]
    model = Two(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    states, given_in = [], []
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", keep=4, forward=forward) as recorder:
        for t in range(7):
            index, x, y = lab.batch(t % 5, dtype)
            batch = tree(x)
            optimizer.zero_grad()
            F.cross_entropy(forward(model, tree(x.clone())), y).backward()
            recorder.step(index, batch, y)
            assert equal(batch, tree(lab.batch(t % 5, dtype)[1]))  # the recorder's own pass had a copy
            states.append(copy.deepcopy(model.state_dict()))
            given_in.append(batch)
    run = Run.open(lab.directory / "run")
    run.verify()
    assert {step.scale for step in run.steps} == {1.0}
    assert max(int(step.versions.max()) for step in run.steps) == 0
    assert all(step.random is not None for step in run.steps)
    for t, batch in enumerate(given_in):
        assert equal(run.batch(t)[0], batch)
        assert torch.equal(run.batch(t)[1], lab.batch(t % 5)[2])
    seen = list(replay(run, Two(dtype), forward=forward))
    assert all(torch.equal(seen[t + 1][1][name], state[name]) for t, state in enumerate(states) for name in state)
    with pytest.raises(InputError, match=r"recorded with forward .*<lambda>.*pass forward="):
        replay(run, Two(dtype))


def test_the_wrong_rows_in_a_part_of_a_tree_are_refused(lab):
    forward, tree = FORWARDS["dict"]
    model = Two(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", forward=forward) as recorder:
        index, x, y = lab.batch(0, torch.float64)
        F.cross_entropy(forward(model, tree(x.clone())), y).backward()
        with pytest.raises(InputError, match="largest mismatch"):
            recorder.step(index, {**tree(x), "right": x[:, 2:]}, y)
        recorder.step(index, tree(x), y)


def test_another_part_of_an_example_is_another_version(lab):
    forward, tree = FORWARDS["dict"]
    model = Two(torch.float64).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    index, x, y = lab.batch(0, torch.float64)
    batches = [tree(x), {**tree(x), "right": x[:, 2:].clone()}, tree(x)]
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", forward=forward) as recorder:
        for batch in batches:
            optimizer.zero_grad()
            F.cross_entropy(forward(model, copy.deepcopy(batch)), y).backward()
            recorder.step(index, batch, y)
    run = Run.open(lab.directory / "run")
    assert [step.versions.unique().tolist() for step in run.steps] == [[0], [1], [0]]
    assert all(equal(run.batch(t)[0], batch) for t, batch in enumerate(batches))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hugging_face_model_is_recorded_from_dicts(lab):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=31, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(1, 31, (12, 6))
    lengths = torch.randint(2, 7, (12, 1))
    mask = (torch.arange(6) < lengths).long()
    y = torch.randint(3, (12,))
    states = []
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", keep=3, forward=logits) as recorder:
        for _ in range(5):
            index = torch.randperm(12)[:4]
            batch = {"input_ids": ids[index], "attention_mask": mask[index]}
            optimizer.zero_grad()
            model(**batch, labels=y[index]).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            recorder.step(index, transformers.BatchEncoding(batch), y[index])
            states.append(copy.deepcopy(model.state_dict()))
    run = Run.open(lab.directory / "run")
    run.verify()
    assert equal(run.batch(4)[0], batch)
    assert all(0 < step.scale < 1 and step.random is not None for step in run.steps)
    for t, weights in replay(run, model, forward=logits, start=1):
        assert all(torch.equal(weights[name], value) for name, value in states[t - 1].items())


def test_tapes_of_the_first_format_are_read_and_resumed(lab, monkeypatch):
    with monkeypatch.context() as old:
        old.setattr(tape_module, "FORMAT", 1)
        old.setattr(tape_module.AverageLog, "SCHEMA", "")
        directory, model, states = lab.record(steps=3)
    run = Run.open(directory)
    assert run.meta["format"] == 1
    assert run.averages == ()
    run.verify()
    assert torch.equal(run.batch(1)[0], lab.batch(1)[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Recorder(model, optimizer, directory, loss="cross_entropy", resume=True) as recorder:
        states += lab.loop().run(model, optimizer, recorder, start=recorder.restore(), steps=5)
    run = Run.open(directory)
    run.verify()
    assert lab.same([run.weights(t) for t in range(1, 6)], states)


def test_an_altered_part_of_a_tree_is_found(lab):
    forward, tree = FORWARDS["dict"]
    model = Two(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", forward=forward) as recorder:
        index, x, y = lab.batch(0, torch.float64)
        F.cross_entropy(forward(model, tree(x.clone())), y).backward()
        recorder.step(index, tree(x), y)
        connection = recorder._tape._connection
        stored = connection.execute("SELECT rowid, x FROM examples LIMIT 1").fetchone()
        altered = stored[1][:-1] + bytes([stored[1][-1] ^ 1])
        connection.execute("UPDATE examples SET x = ? WHERE rowid = ?", (altered, stored[0]))
    with pytest.raises(FileCorruptError, match=r"step 0.*example"):
        Run.open(lab.directory / "run").verify()
