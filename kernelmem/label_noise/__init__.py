"""Label noise with known ground truth: corrupt labels on purpose, and measure how well a score detects them.

- ``corrupt``: the function :func:`corrupt_labels` and its result
- ``transition_matrices``: P(noisy label | true label) of each kind of noise
- ``sampling``: which examples change, and to which label
- ``detection``: the function :func:`detect`: AUROC, average precision, precision and recall against permuted flags
"""

from kernelmem.label_noise.corrupt import KINDS as KINDS
from kernelmem.label_noise.corrupt import CorruptedLabels as CorruptedLabels
from kernelmem.label_noise.corrupt import corrupt_labels as corrupt_labels
from kernelmem.label_noise.detection import Detection as Detection
from kernelmem.label_noise.detection import detect as detect
