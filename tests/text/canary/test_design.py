"""Design of canaries: uniform secrets, unique codes, fair coins, one token per symbol, files."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

import kernelmem as km
from kernelmem.core.files.hashed_files import hashed_json
from kernelmem.text.canary import Canaries, canaries
from tests.damaged_files import damaged_bytes, damaged_json
from tests.profiles import examples
from tests.text.canary.tables import encode


def test_secrets_are_uniform_also_if_there_are_many():
    """tensorflow/privacy keeps the first secrets in alphabetical order after a duplicate: no first digit above 4."""
    design = canaries(1000, encode, seed=3)
    for place in range(design.length):
        counts = torch.bincount(design.secrets[:, :, place].flatten(), minlength=10)
        assert chisquare(counts).pvalue > 1e-4
    first = design.secrets[:, :, 0].flatten()
    assert int((first > 4).sum()) > 900
    # the order of the secrets tells nothing either
    assert int((first[1:] >= first[:-1]).sum()) < 1200


def test_equal_secrets_are_kept():
    """Secrets are independent: with 2 x 20 of 4 candidates many are equal, and each is equally frequent."""
    design = canaries(500, encode, alphabet="ab", length=2)
    counts = torch.bincount((design.secrets @ torch.tensor([2, 1])).flatten(), minlength=4)
    assert chisquare(counts).pvalue > 1e-4


def test_codes_are_different_and_coins_fair_within_tiers():
    design = canaries(2000, encode, tiers=(1, 4), seed=1)
    codes = [code for pair in design.codes for code in pair]
    assert len(set(codes)) == len(codes)
    for k in (1, 4):
        of_tier = design.repetitions == k
        assert int(of_tier.sum()) == 1000
        assert binomtest(int(design.inserted[of_tier].sum()), 1000).pvalue > 1e-4


@examples(0.5)
@given(st.integers(1, 12), st.integers(1, 4), st.sampled_from(["01", "abc", "0123456789"]), st.integers(0, 2**63 - 1))
def test_ids_are_those_of_the_text(n, length, alphabet, seed):
    design = canaries(n, encode, length=length, alphabet=alphabet, seed=seed)
    assert design.n_candidates == len(alphabet) ** length
    for pair in range(n):
        for variant in (0, 1):
            assert design.ids(pair, variant).tolist() == encode(design.texts[pair][variant])
    again = canaries(n, encode, length=length, alphabet=alphabet, seed=seed)
    assert again.texts == design.texts
    assert torch.equal(again.inserted, design.inserted)


def merging(text):
    """Characters, but pairs of digits that add up to 9 are one token, as byte-pair encodings have them."""
    ids, i = [], 0
    while i < len(text):
        if text[i : i + 2].isdigit() and len(text[i : i + 2]) == 2 and int(text[i]) + int(text[i + 1]) == 9:
            ids.append(1000 + int(text[i : i + 2]))
            i += 2
        else:
            ids.append(ord(text[i]))
            i += 1
    return ids


def spaced(text):
    """Words with the space before them are tokens, as in GPT-2."""
    words = text.replace(" ", "\0 ").split("\0")
    return [sum(ord(c) * 257**i for i, c in enumerate(word)) % (2**31 - 1) for word in words if word]


def test_merged_symbols_are_refused_and_the_hint_works():
    with pytest.raises(km.InputError, match="one token per symbol"):
        canaries(4, merging)
    with pytest.raises(km.InputError, match="one token per symbol"):
        canaries(4, spaced)
    design = canaries(4, spaced, format="key of unit {code}:{secret}", alphabet=[f" {i}" for i in range(10)])
    assert design.ids(2, 1).tolist() == spaced(design.texts[2][1])
    design = canaries(4, merging, alphabet="01234")  # no two of them are joined
    assert design.ids(2, 1).tolist() == merging(design.texts[2][1])


def test_a_single_merged_pair_is_refused_that_no_secret_has():
    def encoding(text):
        return [ord(c) for c in text.replace("73", "\0")]

    assert "73" not in "".join(text for pair in canaries(1, encode).texts for text in pair)
    with pytest.raises(km.InputError, match="one token per symbol"):
        canaries(1, encoding)


def test_a_special_token_at_the_beginning_or_end_is_refused():
    for special in (lambda text: [1, *encode(text)], lambda text: [*encode(text), 2]):
        with pytest.raises(km.InputError, match="add_special_tokens=False"):
            canaries(4, special)


def test_codes_that_the_tokenizer_does_not_tell_apart_are_refused():
    with pytest.raises(km.InputError, match="different codes"):
        canaries(4, lambda text: [0 if c.isupper() else ord(c) for c in text])
    with pytest.raises(km.InputError, match="symbols with"):
        canaries(4, lambda text: [0 if c.isdigit() else ord(c) for c in text])


@pytest.mark.parametrize(
    "options",
    [
        {"format": "key {secret} of {code}"},
        {"format": "key {code}"},
        {"format": "{code}: {secret}."},
        {"format": "{code:>3}: {secret}"},
        {"format": "{code: {secret}"},
        {"alphabet": "0"},
        {"alphabet": "00"},
        {"alphabet": ["1", "11"]},
        {"alphabet": ["", "1"]},
        {"length": 0},
        {"length": 19},
        {"tiers": ()},
        {"tiers": (0, 1)},
        {"tiers": (1, 1)},
        {"seed": -1},
    ],
    ids=str,
)
def test_other_designs_are_refused(options):
    with pytest.raises(km.InputError):
        canaries(4, encode, **options)


def test_an_error_of_the_encoding_is_named():
    with pytest.raises(km.InputError, match="raised ValueError"):
        canaries(4, encode, format="caf\u00e9 {code} {secret}")
    with pytest.raises(km.InputError, match="vector of token ids"):
        canaries(4, lambda text: text)


def test_a_saved_design_is_json_with_a_hash(tmp_path):
    design = canaries(6, encode, tiers=(1, 3), seed=2**63 - 1)
    path = design.save(tmp_path / "canaries.json")
    loaded = Canaries.load(path)
    assert (loaded.texts, loaded.heads, loaded.seed) == (design.texts, design.heads, design.seed)
    for name in ("tokens", "secrets", "inserted", "repetitions"):
        assert torch.equal(getattr(loaded, name), getattr(design, name))
    values = json.loads(path.read_text())
    assert values["inserted"] == design.inserted.tolist()
    values["inserted"][0] = 1 - values["inserted"][0]
    path.write_text(json.dumps(values))
    with pytest.raises(km.FileCorruptError, match="sha256"):
        Canaries.load(path)
    with pytest.raises(km.FileCorruptError):
        Canaries.load(tmp_path / "missing.json")


@examples(1)
@given(st.data())
def test_damaged_files_are_refused_or_read_as_designs(tmp_path_factory, data):
    """Altered bytes, and altered values with a valid hash."""
    path = canaries(2, encode, length=2, tiers=(1, 3)).save(tmp_path_factory.mktemp("design") / "canaries.json")
    values = {name: value for name, value in json.loads(path.read_text()).items() if "sha256" not in name}
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    else:
        damaged = data.draw(damaged_json(values))
        try:
            path.write_text(hashed_json(damaged) if isinstance(damaged, dict) else json.dumps(damaged))
        except (ValueError, UnicodeEncodeError):  # NaN or text that no file holds
            return
    try:
        loaded = Canaries.load(path)
    except km.FileCorruptError:
        return
    assert len(loaded.texts) == len(loaded) == len(loaded.to_frame()) / 2
    assert all(len(loaded.ids(i, k)) > loaded.length for i in range(len(loaded)) for k in (0, 1))


def test_the_summary_states_the_bits():
    text = str(canaries(8, encode, length=4, tiers=(1, 2)))
    assert f"{4 * math.log2(10):.2f} bits" in text
    assert "4 x 1, 4 x 2" in text
