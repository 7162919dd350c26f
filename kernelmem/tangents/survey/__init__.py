"""Survey of a model: how it uses its parameters, where the rows of a batch lie, and the linear readout.

- ``survey.py``: probes of two and three rows, parameter groups
- ``readout.py``: the last linear layer, and the uses below it whose gradients factor
- ``certificate.py``: comparison of the tangents of a pass with autograd's gradient of a random weighted sum of outputs
- ``locate.py``: rows that are not in the order of the batch
"""

from kernelmem.tangents.survey.certificate import Certificate as Certificate
from kernelmem.tangents.survey.certificate import PassMismatchError as PassMismatchError
from kernelmem.tangents.survey.locate import locate_uses as locate_uses
from kernelmem.tangents.survey.locate import misplaced_names as misplaced_names
from kernelmem.tangents.survey.readout import Readout as Readout
from kernelmem.tangents.survey.readout import hidden_gradients as hidden_gradients
from kernelmem.tangents.survey.readout import scaled_by_channel as scaled_by_channel
from kernelmem.tangents.survey.survey import Survey as Survey
from kernelmem.tangents.survey.survey import survey as survey
