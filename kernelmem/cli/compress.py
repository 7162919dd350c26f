"""``kernelmem compress``: labels and a network that predicts them in one file, and the labels out of it again."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kernelmem.cli.options import default_hint

if TYPE_CHECKING:  # torch is slow to import, and --help does not need it
    import numpy as np

    from kernelmem.compression import Card

N_DIGITS = 1400  # training rows of the built-in digits; the other 397 are held out
DIGITS = "scikit-learn digits, seed "  # name of a card of the digits, before the seed of the split


@dataclass(frozen=True)
class CompressCommand:
    """Compress the labels of a data set into a card: one file with a small network and the labels given the network.

    kernelmem compress trains the network on the training rows, writes the card and prints its length in bits next to those of
    uniform labels and of the online code of a kernel, with certificates of error rates. kernelmem compress open CARD decodes the
    labels again, bit for bit, from the card and the training inputs. Without --data, scikit-learn's digits are used.
    """

    action: Annotated[Literal["make", "open"], tyro.conf.Positional] = "make"
    """Action: make trains a network and writes a card; open reads one."""
    card: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="CARD", help_behavior_hint=default_hint("none"))
    ] = None
    """Card to open."""
    data: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE.npz", help_behavior_hint=default_hint("scikit-learn's digits"))
    ] = None
    """File with arrays x_train, y_train, x_test, y_test; labels are class indices from 0 or 1, or text. To open a card, x_train
    is enough."""
    seed: int = 0
    """Seed of the network, and of the split of the digits."""
    width: int = 64
    """Number of hidden units of the network."""
    dimensions: int = 150
    """Number of whole numbers that determine the weights of the network. Few rows need few: 10 or 20 for a hundred."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.km")] = Path("card.km")
    """File for the card."""
    overwrite: bool = False
    """Replace an existing file."""
    labels: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE.txt", help_behavior_hint=default_hint("they are not written"))
    ] = None
    """File for the labels of an opened card, one per line: class names if the card has them, else class indices."""

    def run(self) -> None:
        """Make or open a card, and print its summary."""
        if self.action == "make":
            self._make()
        else:
            self._open()

    def _make(self) -> None:
        from kernelmem.cli.audit.inputs import check_classes, read_audit_data
        from kernelmem.compression import CardOptions, card
        from kernelmem.core.errors import InputError, printable
        from kernelmem.training.datasets import digits

        for value, name in ((self.card, "a card to open"), (self.labels, "--labels")):
            if value is not None:
                raise InputError(
                    f"{name} ({value}) without open", expected="one of them", hint="pass kernelmem compress open CARD"
                )
        self._check_output(self.out, "--out")
        options = CardOptions(width=self.width, dimensions=self.dimensions)
        if self.data is None:
            data, n_classes, names = digits(n_train=N_DIGITS, seed=self.seed), 10, None
            name = f"{DIGITS}{self.seed}"
        else:
            audited = read_audit_data(self.data, self.seed)
            check_classes(audited, all_present=False)
            data, n_classes, names = audited.data, audited.n_classes, audited.class_names or None
            name = data.name
        made = card(
            (data.x_train, data.y_train),
            (data.x_test, data.y_test),
            n_classes=n_classes,
            class_names=names,
            name=name,
            seed=self.seed,
            options=options,
        )
        made.save(self.out)
        print(f"{made}\n  card {printable(str(self.out))}")

    def _open(self) -> None:
        from kernelmem.compression import open_card
        from kernelmem.core.errors import InputError, printable
        from kernelmem.core.files.atomic_files import write_file

        if self.card is None:
            raise InputError("open without a card", expected="a file", hint="pass kernelmem compress open card.km")
        if self.labels is not None:
            self._check_output(self.labels, "--labels")
        opened = open_card(self.card)
        x = self._rows_of(opened)
        if x is not None:
            opened = open_card(self.card, x)
        print(opened)
        if opened.labels is None:
            print("  pass --data FILE.npz with the rows to decode the labels")
        if self.labels is None:
            return
        if opened.labels is None:
            raise InputError(
                f"--labels {self.labels} without the rows of the card",
                expected="the rows that it was made from",
                hint="pass --data FILE.npz with x_train",
            )
        names = opened.record.class_names or [str(k) for k in range(opened.n_classes)]
        lines = [printable(name).replace("\n", "\\n") for name in names]
        write_file(self.labels, "".join(f"{lines[k]}\n" for k in opened.labels.tolist()))
        print(f"  labels written to {printable(str(self.labels))}")

    def _rows_of(self, opened: "Card") -> "np.ndarray | None":
        """Return the rows that the card was made from: those of --data, or the digits; None if neither."""
        from kernelmem.core.errors import InputError
        from kernelmem.training.datasets import digits, read_arrays

        if self.data is not None:
            arrays = read_arrays(self.data)
            if "x_train" in arrays:
                return arrays["x_train"]
            raise InputError(
                f"data file {self.data} without x_train",
                expected="the array x_train that the card was made from",
                hint="write it with numpy.savez(path, x_train=...)",
            )
        seed = opened.record.name.removeprefix(DIGITS)
        if opened.record.name.startswith(DIGITS) and seed.isdecimal() and int(seed[:20]) < 2**63:
            return digits(n_train=N_DIGITS, seed=int(seed)).x_train.numpy()
        return None

    def _check_output(self, path: Path, option: str) -> None:
        """Raise an InputError if the file exists and is not to be replaced, or cannot be written."""
        from kernelmem.core.checks import as_path
        from kernelmem.core.errors import InputError
        from kernelmem.core.files.atomic_files import check_directory

        as_path(path, option)
        check_directory(path.parent)
        if path.is_dir():
            raise InputError(f"{option} {path}, a directory", expected="the path of a file", hint="add a file name")
        if path.exists() and not self.overwrite:
            raise InputError(
                f"{option} {path}, a file that exists",
                expected="a new file",
                hint="pass --overwrite to replace it, or another name",
            )
