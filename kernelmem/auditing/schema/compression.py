"""Compression: account of the training labels in bits."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Compression:
    """Account of the training labels in bits (see ``kernelmem.compression``).

    ``uniform`` = (``uniform`` − ``left_out``) that follow from the other rows + (``left_out`` − ``network``) memorized +
    ``network`` in neither. All numbers are None or () unless ``status`` is "estimated".

    Attributes:
        status: "estimated"; "not estimable": the reference predicts the labels no better than the uniform distribution;
            "control failed": a network that never saw the labels has more bits of them than chance allows; "not run".
        sentence: the account in a few sentences, or why there is none.
        reference: the prediction without the network; "" if not run.
        uniform: bits of the labels before anything is known, n log₂ C.
        online: length of a code that decodes without the network; None if the reference is not a kernel.
        left_out: bits of the labels by the other rows.
        network: bits of the labels once the network is known, too.
        memorized: ``left_out`` − ``network``.
        noise_rate: estimated share of wrong labels, if all wrong labels are equally likely.
        noise_rate_error: its standard error.
        noise: bits of label noise at this rate.
        nulls: (network that cannot have memorized these labels, its memorized bits).
    """

    status: Literal["estimated", "not estimable", "control failed", "not run"]
    sentence: str
    reference: str = ""
    uniform: float | None = None
    online: float | None = None
    left_out: float | None = None
    network: float | None = None
    memorized: float | None = None
    noise_rate: float | None = None
    noise_rate_error: float | None = None
    noise: float | None = None
    nulls: tuple[tuple[str, float], ...] = ()
