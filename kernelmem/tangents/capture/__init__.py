"""Recording of a forward pass: every operation that uses a parameter.

- ``rule.py``: base classes of the rules, the parsed form of a call, and one use of parameters
- ``recorder.py``: the forward pass with its recorder
- ``tensors.py``: tensors in nested structures, backward passes
"""

from kernelmem.tangents.capture.recorder import Capture as Capture
from kernelmem.tangents.capture.recorder import OperationRecorder as OperationRecorder
from kernelmem.tangents.capture.recorder import capture as capture
from kernelmem.tangents.capture.rule import Decomposition as Decomposition
from kernelmem.tangents.capture.rule import Function as Function
from kernelmem.tangents.capture.rule import IsWeight as IsWeight
from kernelmem.tangents.capture.rule import OuterShape as OuterShape
from kernelmem.tangents.capture.rule import ParameterUse as ParameterUse
from kernelmem.tangents.capture.rule import ParsedCall as ParsedCall
from kernelmem.tangents.capture.rule import Reparse as Reparse
from kernelmem.tangents.capture.rule import Rule as Rule
from kernelmem.tangents.capture.rule import UseKey as UseKey
from kernelmem.tangents.capture.rule import required as required
from kernelmem.tangents.capture.tensors import backward_pass as backward_pass
from kernelmem.tangents.capture.tensors import tensors_in as tensors_in
