"""Record a training run step by step, and replay it to the bit.

- ``recorder``: :class:`Recorder`, which takes the optimizer's steps and writes them down.
- ``run``: :class:`Run`, a recorded run opened for reading.
- ``replay``: weights after every step, recomputed where they were not kept.
- ``verify_model``: check that model, loss and forward reproduce the first recorded step.
- ``averaging``: averaged weights (EMA, SWA) as combinations of the recorded weights.
- ``gradient_check``: compare the gradients of a step with those of the loss on its batch.
- ``resume``: find the step from which an interrupted run can resume.
- ``trainers``: :func:`fit`, and adapters for Lightning, skorch and Hugging Face.
- ``storage``: the files of a run.
"""

from kernelmem.recording.averaging import average_coefficients as average_coefficients
from kernelmem.recording.recorder import Recorder as Recorder
from kernelmem.recording.replay import replay as replay
from kernelmem.recording.run import Run as Run
from kernelmem.recording.storage.average_log import Average as Average
from kernelmem.recording.storage.checkpoints import Checkpoint as Checkpoint
from kernelmem.recording.storage.tape import Step as Step
from kernelmem.recording.trainers.fit import FitOptions as FitOptions
from kernelmem.recording.trainers.fit import fit as fit
from kernelmem.recording.trainers.huggingface import logits as logits
from kernelmem.recording.verify_model import verify_model as verify_model
