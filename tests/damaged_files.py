"""Strategies of damaged files: altered bytes of any file, and altered nodes of a JSON value."""

import copy

from hypothesis import strategies as st

MAX_DEPTH = 300  # json.dumps cannot write what is nested more deeply
JUNK = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 1, 2**62, 10**400, 1e308, float("nan"), float("inf"), "", "\ud800", "x" * 1000]
    ),
    st.sampled_from([[], {}, [[]], {"": None}, [0] * 100, {"tensor": "x"}, {"tensor": []}, [None], "tensor"]),
    st.integers(1, MAX_DEPTH).map(lambda depth: nested(depth, [])),
    st.integers(1, MAX_DEPTH).map(lambda depth: nested(depth, {})),
).map(copy.deepcopy)
"""JSON values that no field expects: huge numbers, NaN, empty, deep, of another type."""


def nested(depth, innermost):
    """Return a list, or a dict if ``innermost`` is one, that is nested ``depth`` times."""
    value = innermost
    for _ in range(depth):
        value = {"a": value} if isinstance(innermost, dict) else [value]
    return value


@st.composite
def damaged_bytes(draw, content):
    """Bytes that differ from ``content`` by flipped bits, a cut, an insertion, zeros or a repeated part."""
    damaged = bytearray(content)
    place = st.integers(0, max(len(content) - 1, 0))
    for _ in range(draw(st.integers(1, 3))):
        start, length = draw(place), draw(st.sampled_from([1, 2, 8, 64, 1000]))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "zero", "repeat", "digit"]))
        if kind == "flip" and damaged:
            damaged[start % len(damaged)] ^= draw(st.integers(1, 255))
        elif kind == "digit" and damaged:
            damaged[start % len(damaged)] = ord(draw(st.sampled_from('0123456789-"{}[],:.eN')))
        elif kind == "cut":
            del damaged[start : draw(st.sampled_from([start + length, len(damaged)]))]
        elif kind == "insert":
            damaged[start:start] = draw(st.binary(max_size=16))
        elif kind == "zero":
            damaged[start : start + length] = bytes(len(damaged[start : start + length]))
        else:
            damaged[start:start] = damaged[start : start + length]
    return bytes(damaged)


@st.composite
def damaged_json(draw, value):
    """Return a JSON value that differs from ``value`` at one to three nodes: replaced, deleted, renamed, added, wrapped."""
    root = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(1, 3))):
        parent, key = draw(st.sampled_from(_nodes(root)))
        kind = draw(st.sampled_from(["replace", "replace", "delete", "rename", "add", "wrap", "number"]))
        if kind == "delete" and parent is not root:
            del parent[key]
        elif kind == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["", "x", "tensor", key.upper()]))] = parent.pop(key)
        elif kind == "add" and isinstance(parent[key], dict):
            parent[key]["unexpected"] = draw(JUNK)
        elif kind == "add" and isinstance(parent[key], list):
            parent[key].append(draw(JUNK))
        elif kind == "wrap":
            parent[key] = draw(st.sampled_from([[parent[key]], {"a": parent[key]}, str(parent[key])]))
        elif kind == "number" and type(parent[key]) in (int, float):
            parent[key] = draw(st.sampled_from([0, 1, -1, 2**62, 1e300, parent[key] + 1]))
        else:
            parent[key] = draw(JUNK)
    return root[0]


def _nodes(root):
    """Return (parent, key) of every node below ``root``, at most 500."""
    nodes, pending = [], [root]
    while pending and len(nodes) < 500:
        parent = pending.pop()
        keys = list(parent) if isinstance(parent, dict) else range(len(parent))
        nodes += [(parent, key) for key in keys]
        pending += [parent[key] for key in keys if isinstance(parent[key], dict | list)]
    return nodes
