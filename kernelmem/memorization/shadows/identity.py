"""Identity of a shadow ensemble: hashes of its data and training, and what differs between two of them."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows, check_outputs, named_leaves
from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.memorization.shadows.ensemble import ShadowIdentity
from kernelmem.memorization.shadows.masks import model_seeds
from kernelmem.memorization.shadows.options import EnsembleTraining, ShadowOptions, TrainFunction
from kernelmem.memorization.shadows.training_data import ShadowData

PROBE_ROWS = 8  # rows on which the initial outputs of make_model are compared
PROBE_TOLERANCE = 1e-3  # relative to the largest output; another processor rounds differently
BLOCK_VALUES = 2**22  # numbers hashed at once


def identity_record(
    data: ShadowData, training: EnsembleTraining | TrainFunction, options: ShadowOptions, seed: int
) -> dict[str, str]:
    """Return what the outputs depend on, by the name that an error message uses; values are texts or SHA-256 hashes.

    Rows are hashed by their numbers and order, not by memory layout, device, or precision beyond that of the training.
    """
    if isinstance(training, EnsembleTraining):
        recipe = json.dumps(asdict(training.recipe_for(options.share)), sort_keys=True)
        name = "MLP" if training.make_model is None else _architecture(training, seed)
        method = f"width {training.width}, {name}"
    else:
        recipe, method = "user's function", options.training_name or ""
    return {
        "training rows": rows_sha256(data.x),
        "labels": _sha256([data.labels]),
        "test rows": "none" if data.x_test is None else rows_sha256(data.x_test),
        "test labels": _sha256([data.test_labels]),
        "number of outputs": str(data.n_outputs),
        "model": method,
        "recipe": recipe,
        "sampling": options.sampling,
        "share": repr(float(options.share)),
        "seed": str(seed),
        "dtype": str(options.dtype).removeprefix("torch."),
    }


def as_shadow_identity(record: dict[str, str], dropped: tuple[int, ...] = ()) -> ShadowIdentity:
    """Return the identity that an ensemble carries."""
    known = bool(record["model"])
    return ShadowIdentity(
        data=_text_sha256(record, "training rows", "labels", "test rows", "test labels"),
        training=_text_sha256(record, "number of outputs", "model", "recipe", "dtype") if known else "",
        sampling=record["sampling"],
        share=float(record["share"]),
        seed=int(record["seed"]),
        dropped=dropped,
    )


def record_sha256(record: dict[str, str]) -> str:
    """Return one hash of a record."""
    return _text_sha256(record, *record)


def initial_outputs(data: ShadowData, training: EnsembleTraining | TrainFunction, seed: int) -> list[float]:
    """Return the outputs of the untrained model 0 on the first rows; empty for MLPs and a user's training function.

    The code of ``make_model`` cannot be compared; its outputs can.

    Raises:
        UnsupportedModelError: the model cannot be called on the rows.
    """
    if not isinstance(training, EnsembleTraining) or training.make_model is None:
        return []
    model = _initial_model(training, seed)
    x = data.x.tree[:PROBE_ROWS]
    model = model.to(device=x.device, dtype=x.dtype if x.is_floating_point() else None).eval()
    try:
        with torch.no_grad():
            outputs = check_outputs(model(x), len(x))
    except (TypeError, RuntimeError, ValueError, AttributeError, LookupError) as error:
        if isinstance(error, UnsupportedModelError):
            raise
        raise UnsupportedModelError(
            f"make_model, whose {type(model).__name__} fails on rows of shape {tuple(x.shape[1:])} and dtype {x.dtype}"
            f" ({(str(error).splitlines() or [''])[0]})".replace("torch.", ""),
            expected="a module (n, ...) -> (n, C)",
            hint="check the shape of the rows"
            if x.is_floating_point()
            else "pass x.float(), unless the model reads integers",
        ) from error
    return [float(value) for value in outputs.flatten().to("cpu", torch.float64)]


def check_same_identity(
    stored: dict[str, str], stored_probe: list[float], record: dict[str, str], probe: list[float], where: str
) -> None:
    """Check that models stored in a directory are those that are asked for.

    Raises:
        InputError: data, model, recipe, masks or seed differ; the message names which.
    """
    different = [name for name in record if stored.get(name) != record[name]]
    largest = max((abs(value) for value in stored_probe), default=0.0)
    same_probe = len(probe) == len(stored_probe) and all(
        abs(a - b) <= PROBE_TOLERANCE * largest for a, b in zip(probe, stored_probe, strict=True)
    )
    if "model" not in different and not same_probe:
        different.append("initial outputs of make_model")
    if different:
        values = [
            f"{name} ({stored.get(name)} there, {record[name]} here)"
            if name in ("sampling", "share", "seed", "dtype", "number of outputs")
            else name
            for name in different
        ]
        raise InputError(
            f"path={where} with models of another ensemble; different: {', '.join(values)}",
            expected="a directory with models of the same data, model, recipe, sampling, share, seed and dtype",
            hint="pass another path, or the arguments that those models were trained with",
        )


def rows_sha256(rows: Rows) -> str:
    """Return the SHA-256 of the numbers of rows, in their order."""
    leaves = named_leaves(rows.tree, "x")
    names = [f"{name}|{_kind(leaf)}" for name, leaf in leaves]
    return _sha256([leaf for _, leaf in leaves], names)


def _kind(leaf: Tensor) -> str:
    return "complex" if leaf.is_complex() else "float" if leaf.is_floating_point() else "integer"


def _sha256(tensors: Iterable[Tensor], names: Iterable[str] | None = None) -> str:
    """Return the SHA-256 of the shapes and values of tensors, real ones as float64 and others as int64."""
    digest = hashlib.sha256("\n".join(names or ()).encode())
    for tensor in tensors:
        values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        dtype = torch.float64 if values.is_floating_point() else torch.int64
        digest.update(f"|{tuple(values.shape)}|".encode())
        for block in values.reshape(-1).split(BLOCK_VALUES):
            # + 0 makes -0.0 equal to 0.0
            numbers = (block.to("cpu", dtype) + 0).numpy()
            digest.update(numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def _text_sha256(record: dict[str, str], *names: str) -> str:
    return hashlib.sha256(json.dumps([[name, record[name]] for name in names]).encode()).hexdigest()


def _architecture(training: EnsembleTraining, seed: int) -> str:
    """Return a hash of the structure of the model that ``make_model`` makes: its text, names and shapes of its tensors."""
    model = _initial_model(training, seed)
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))
    shapes = [[name, list(value.shape)] for name, value in model.state_dict().items()]
    return f"make_model {hashlib.sha256(json.dumps([text, shapes]).encode()).hexdigest()}"


def _initial_model(training: EnsembleTraining, seed: int) -> nn.Module:
    """Return the untrained model 0 of ``make_model``."""
    assert training.make_model is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model_seeds(seed, 0)[0])
        model = training.make_model(training.width)
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"make_model({training.width!r}) of type {type(model).__name__}",
            expected="an nn.Module",
            hint="return a module from make_model",
        )
    return model
