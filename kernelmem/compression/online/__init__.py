"""Online codes: labels predicted one after the other, each from the labels before it.

- ``online_code``: the function :func:`online_code`, and its lengths over several orders of the rows;
- ``result``: its result :class:`OnlineCode`, which decodes;
- ``options``: grids of the mixture, and blocks of a learner;
- ``predictors``: the same predictions as functions of rows and labels, for ``verify_code``;
- ``sources``: kernels or a learner, checked;
- ``kernel_scores``: predictions of kernel regressions from the rows before, by one factorization;
- ``learner_scores``: predictions of a learner that is trained on growing blocks;
- ``mixture``: Bayesian mixture of experts;
- ``stream``: header, dither and container of a stream.
"""

from kernelmem.compression.online.online_code import lengths_over_orders as lengths_over_orders
from kernelmem.compression.online.online_code import online_code as online_code
from kernelmem.compression.online.options import OnlineOptions as OnlineOptions
from kernelmem.compression.online.predictors import KernelPredictor as KernelPredictor
from kernelmem.compression.online.predictors import LearnerPredictor as LearnerPredictor
from kernelmem.compression.online.result import OnlineCode as OnlineCode
