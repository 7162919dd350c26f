"""Valid calls of compression estimates."""

from kernelmem import compression
from tests.border.driver import Call

CALLS = {
    "compression.certificate": Call(
        compression.certificate, lambda: {"errors": 3, "n": 40, "bits": 12.0, "delta": 0.05}
    ),
    "compression.held_out_certificate": Call(
        compression.held_out_certificate, lambda: {"errors": 3, "n": 40, "candidates": 2, "delta": 0.05}
    ),
    "compression.online_certificate": Call(
        compression.online_certificate, lambda: {"mistakes": 3, "n": 40, "n_lambdas": 16, "delta": 0.05}
    ),
}
