"""``kernelmem store``: contents, check, export and repair of a stored kernel."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kernelmem.cli.options import default_hint

if TYPE_CHECKING:  # torch is slow to import, and --help does not need it
    from kernelmem.kernels import KernelStore


@dataclass(frozen=True)
class StoreCommand:
    """Show, verify, export or repair a kernel that is stored in one file (kernelmem.KernelStore).

    info prints shape, tiles and facts. verify reads every tile and checks its hash; the exit code is 2 if one is damaged, and
    the message names it. export writes the whole kernel to an array file. repair drops damaged tiles: running the program that
    made the store again computes only them.
    """

    action: Annotated[Literal["info", "verify", "export", "repair"], tyro.conf.Positional]
    """Action on the store."""
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
    """File of the store."""
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint=default_hint("none; export needs it"))
    ] = None
    """File that export writes: .npy, .zarr (needs the package zarr) or .h5 (needs h5py)."""

    def run(self) -> None:
        """Carry out the action and print the result.

        Raises:
            InputError: there is no such file, another process is writing it, or export without a valid --out.
            FileCorruptError: the store is damaged.
        """
        from kernelmem.core.errors import InputError
        from kernelmem.kernels import KernelStore

        if (self.action == "export") != (self.out is not None):
            raise InputError(
                f"{self.action} {'without' if self.out is None else 'with'} --out",
                expected="--out for export, and for export only",
                hint="kernelmem store export STORE --out kernel.npy",
            )
        with KernelStore.open(self.path, write=self.action == "repair") as store:
            if self.action == "info":
                print(_description(store))
            elif self.action == "verify":
                store.verify()
                n_missing = len(store.missing())
                print(
                    f"{self.path}: {store.layout.n_stored - n_missing:,} tiles, all hashes match; {n_missing:,} missing"
                )
            elif self.out is not None:
                print(f"{store.export(self.out)}: {store.shape[0]:,} x {store.shape[1]:,}, {_dtype(store)}")
            else:
                dropped = store.repair()
                names = f" ({', '.join(map(str, dropped[:8]))}{', ...' * (len(dropped) > 8)})" if dropped else ""
                print(f"{self.path}: damaged tiles dropped: {len(dropped):,}{names}; missing: {len(store.missing()):,}")
                if store.missing():
                    print("Run the program that made the store again: it computes the missing tiles only.")


def _description(store: "KernelStore") -> str:
    """Return the layout, facts and notes of a store as text."""
    layout, n_missing = store.layout, len(store.missing())
    lines = [
        f"kernel of shape {layout.n:,} x {layout.m:,}, {_dtype(store)}{', symmetric' * layout.symmetric}",
        f"tiles   {layout.n_stored - n_missing:,} of {layout.n_stored:,}, of up to {layout.tile:,} rows and columns"
        f" ({'complete' if not n_missing else f'{n_missing:,} missing'})",
        f"file    {store.file.stat().st_size / 2**20:,.1f} MiB",
    ]
    for name, values in (("facts", store.facts), ("notes", store.notes)):
        lines += [f"{name}   {key}: {json.dumps(value)[:200]}" for key, value in values.items()]
    return "\n".join(lines)


def _dtype(store: "KernelStore") -> str:
    return str(store.dtype).removeprefix("torch.")
