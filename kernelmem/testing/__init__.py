"""Test tools for users: networks of every supported layer with inputs, random compositions, kernels with known defects.

A property test runs your function on random networks (:mod:`kernelmem.testing.strategies` needs ``hypothesis``)::

    >>> import torch, kernelmem as km
    >>> from hypothesis import given, settings
    >>> from kernelmem.testing.strategies import networks
    >>> @settings(max_examples=5, deadline=None, derandomize=True, database=None)
    ... @given(networks())
    ... def test_the_kernel_of_two_batches_is_a_block_of_the_joint_kernel(case):
    ...     joint = km.ntk(case.model, torch.cat([case.x, case.y]))
    ...     n = len(case.x)
    ...     torch.testing.assert_close(km.ntk(case.model, case.x, case.y), joint[:n, n:])
    >>> test_the_kernel_of_two_batches_is_a_block_of_the_joint_kernel()

One test for each layer and feature, with the name of the one that fails::

    @pytest.mark.parametrize("entry", zoo_entries(), ids=lambda entry: entry.name)
    def test_ntk_of_every_layer(entry):
        case = entry.case(seed=0)
        assert_exact(case.model, case.x, case.y)

Contents::

    strategies/             networks, linear_networks: Hypothesis strategies of a network with inputs (a Case)
    zoo/                    zoo_entries: one small network for each supported layer and feature
    cases.py                Case, Inputs, make_case; with_random_weights
    modules.py              small modules with unusual use of parameters: shared, tied, free, unused
    kernels.py              kernel matrices for tests of solvers: solvable_system, invalid_system
    closeness.py            assert_exact (kernels equal the slow reference), assert_close, scale_of
    ntk_parametrization.py  ntk_mlp: finite networks whose NTK tends to the infinite-width NTK
"""

from kernelmem.testing.cases import Case as Case
from kernelmem.testing.cases import Inputs as Inputs
from kernelmem.testing.cases import make_case as make_case
from kernelmem.testing.cases import with_random_weights as with_random_weights
from kernelmem.testing.closeness import assert_close as assert_close
from kernelmem.testing.closeness import assert_exact as assert_exact
from kernelmem.testing.closeness import scale_of as scale_of
from kernelmem.testing.kernels import INVALID_KINDS as INVALID_KINDS
from kernelmem.testing.kernels import SOLVABLE_KINDS as SOLVABLE_KINDS
from kernelmem.testing.kernels import gaussian_kernel as gaussian_kernel
from kernelmem.testing.kernels import invalid_system as invalid_system
from kernelmem.testing.kernels import kernel_with_spectrum as kernel_with_spectrum
from kernelmem.testing.kernels import solvable_system as solvable_system
from kernelmem.testing.ntk_parametrization import ntk_mlp as ntk_mlp
from kernelmem.testing.zoo import Entry as Entry
from kernelmem.testing.zoo import zoo_entries as zoo_entries
