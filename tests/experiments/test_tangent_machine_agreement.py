"""experiments/tangent_machine_agreement: fitted kernel machines, a small run, committed results."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import kernelmem as km
from experiments.out_of_distribution.scores import targets_of
from experiments.out_of_distribution.training import make
from experiments.tangent_machine_agreement.configs import CLAIM, MACHINES, Machine, Options
from experiments.tangent_machine_agreement.run import EXPECTED, FIGURES, TITLES, compare, fitted, run, table

SMALL = {"n_train": 60, "n_test": 160, "width": 12, "epochs": 6}


@pytest.fixture(scope="module")
def problem():
    return make(0, **SMALL)


def logits(model, x):
    with torch.no_grad():
        return model(x).double().numpy()


class TestMachines:
    def test_tangents_of_the_last_layer_alone_are_the_network_itself(self, problem):
        own = fitted(replace(MACHINES["last"], ridge="1e-9"), problem)
        x = problem.data.x_test
        np.testing.assert_allclose(own.predict(x.numpy()), logits(problem.trained, x), atol=1e-3)

    @pytest.mark.parametrize("outputs", ["trace", "pseudo"])
    @pytest.mark.parametrize("prior", [False, True])
    def test_without_ridge_every_machine_is_the_network_on_training_rows(self, problem, outputs, prior):
        own = fitted(Machine("", outputs=outputs, prior=prior, ridge="1e-9"), problem)
        x = problem.data.x_train
        np.testing.assert_allclose(own.predict(x.numpy()), logits(problem.trained, x), atol=1e-4)

    def test_a_large_ridge_leaves_the_prior(self, problem):
        x = problem.data.x_test[:50]
        for prior, wanted in ((False, np.zeros((50, 10))), (True, logits(problem.initial, x))):
            found = fitted(Machine("", prior=prior, ridge="1e9"), problem).predict(x.numpy())
            np.testing.assert_allclose(found, wanted, atol=1e-5)

    def test_a_ridge_is_in_mean_diagonals_and_outputs_are_as_named(self, problem):
        x = problem.data.x_train
        for outputs in ("trace", "pseudo"):
            own = fitted(Machine("", outputs=outputs, ridge="1e-2"), problem)
            K = km.TangentKernel(problem.trained, outputs=outputs, dtype=torch.float64)(x.numpy())
            np.testing.assert_allclose(own.kernel(x.numpy()), K, rtol=1e-10)
            assert own.ridge_ == pytest.approx(1e-2 * K.diagonal().mean())

    def test_layers_add_up_and_each_kernel_is_of_its_network(self, problem):
        x = problem.data.x_train[:5].numpy()
        of = {layers: fitted(Machine("", layers=layers), problem).kernel for layers in ("all", "last", "hidden")}
        np.testing.assert_allclose(of["all"](x), of["last"](x) + of["hidden"](x), rtol=1e-10)
        initial = fitted(Machine("", kernel="initial"), problem).kernel
        np.testing.assert_allclose(initial(x), km.TangentKernel(problem.initial, dtype=torch.float64)(x))
        assert not np.allclose(initial(x), of["all"](x))

    def test_targets_are_logits_labels_or_logits_of_other_rows(self, problem):
        x = problem.data.x_train
        found = {
            kind: fitted(Machine("", targets=kind, ridge="1e-9"), problem).predict(x.numpy())
            for kind in ("logits", "labels", "permuted")
        }
        np.testing.assert_allclose(found["labels"], targets_of(problem.data.y_train).numpy(), atol=1e-4)
        order = [int(np.abs(found["logits"] - row).sum(1).argmin()) for row in found["permuted"]]
        assert sorted(order) == list(range(len(x)))
        assert order != list(range(len(x)))

    def test_the_comparison_is_its_formulas(self):
        network = torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 4.0]], dtype=torch.float64)
        machine = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 4.0]], dtype=torch.float64)
        found = compare(machine, network, torch.tensor([0, 0, 1, 1]))
        assert found["agreement"] == 0.5
        assert found["agreement_on_errors"] == 0.0  # rows 1 and 2
        assert found["accuracy"] == 1.0
        column = network.numpy()
        spread = ((column - column.mean(0)) ** 2).sum()
        assert found["r2"] == pytest.approx(1 - ((machine.numpy() - column) ** 2).sum() / spread)
        assert compare(network, network, network.argmax(1))["r2"] == 1.0
        assert math.isnan(compare(network, network, network.argmax(1))["agreement_on_errors"])


@pytest.mark.soak
def test_a_small_run_writes_its_files(tmp_path, capsys):
    run(Options(**SMALL, seeds=2, out=tmp_path))
    assert "claim: trained tangents" in capsys.readouterr().out
    machines = json.loads((tmp_path / "results.json").read_text())["machines"]
    assert machines["last"]["agreement"]["min"] > 0.99
    assert machines["permuted"]["agreement"]["max"] < 0.5
    for name in ("figure.svg", "figure.png", "runs.csv"):
        assert (tmp_path / name).stat().st_size > 1000


def test_the_committed_figures_hold_what_is_claimed():
    results = json.loads(EXPECTED.read_text(encoding="utf-8"))
    for name, value in results["options"].items():
        assert getattr(Options(), name) == value
    assert list(results["machines"]) == list(TITLES)
    assert all(tuple(own) == FIGURES for own in results["machines"].values())
    own = {name: figures["agreement"] for name, figures in results["machines"].items()}
    name, claim = CLAIM
    assert own[name]["low"] > claim
    assert own["last"]["min"] == 1.0
    assert own["permuted"]["max"] < 0.2
    assert own["another"]["high"] < own["hidden"]["low"] < own["trained"]["mean"]
    assert "holds" in table(results)
