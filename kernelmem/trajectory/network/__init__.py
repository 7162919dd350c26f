"""The network under analysis, with weights set from recorded states.

- ``network.py``: outputs, slopes, tangents and gradients in float64;
- ``capture_pass.py``: a captured pass with the rows of every use located;
- ``shared_passes.py``: repetition of a computation without shared passes;
- ``weight_blocks.py``: passes in which blocks of rows have different weights;
- ``tangent_factors.py``: tangents as factors, formed slice by slice.
"""
