"""Settings that show double descent on scikit-learn's digits in seconds.

digits.py  preset, run_preset, run_phase_diagram, run_prediction, and the files that they write
"""

from kernelmem.double_descent.presets.digits import KINDS as KINDS
from kernelmem.double_descent.presets.digits import Preset as Preset
from kernelmem.double_descent.presets.digits import digits_pool as digits_pool
from kernelmem.double_descent.presets.digits import preset as preset
from kernelmem.double_descent.presets.digits import run_phase_diagram as run_phase_diagram
from kernelmem.double_descent.presets.digits import run_prediction as run_prediction
from kernelmem.double_descent.presets.digits import run_preset as run_preset
from kernelmem.double_descent.presets.digits import write_sweep as write_sweep
