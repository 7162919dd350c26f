"""experiments/out_of_distribution: shifts of images, laws of the scores, a small run, committed results."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import t
from torch import nn

import kernelmem as km
from experiments.out_of_distribution import scores
from experiments.out_of_distribution.configs import BASELINES, ERRORS_ON, RIDGES, SCORES, SHIFTS, Options, Shift
from experiments.out_of_distribution.run import EXPECTED, measure, run, table
from experiments.out_of_distribution.shifts import changed
from experiments.out_of_distribution.training import make
from experiments.over_seeds import plus_minus, summary

SMALL = {"n_train": 60, "n_test": 160, "width": 12, "epochs": 6}


@pytest.fixture(scope="module")
def problem():
    return make(0, **SMALL)


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(23, 64, generator=torch.Generator().manual_seed(0))


class TestShifts:
    @pytest.mark.parametrize("shift", SHIFTS, ids=lambda shift: shift.name)
    def test_pictures_stay_pictures_and_the_seed_decides(self, pictures, shift):
        before = pictures.clone()
        found = changed(pictures, shift, seed=1)
        assert found.shape == pictures.shape
        assert found.dtype == pictures.dtype
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        assert torch.equal(found, changed(pictures, shift, seed=1))
        assert torch.equal(pictures, before)
        assert torch.equal(found, pictures) == (shift.kind == "unchanged")

    def test_a_quarter_turn_moves_pixels_and_both_ways_occur(self, pictures):
        found = changed(pictures, Shift("rotated", 90), seed=2).reshape(-1, 8, 8)
        left, right = (pictures.reshape(-1, 8, 8).rot90(k, (1, 2)) for k in (1, -1))
        to_left, to_right = ((found - own).abs().amax((1, 2)) < 1e-6 for own in (left, right))
        assert bool((to_left ^ to_right).all())
        assert 0 < int(to_left.sum()) < len(found)

    def test_rotation_is_about_the_middle_and_interpolates(self):
        ring = torch.zeros(1, 8, 8)
        ring[:, 3:5, 3:5] = 1.0  # the four pixels about the middle: every rotation leaves their center of mass
        for angle in (15, 30, 45, 60):
            found = changed(ring.flatten(1), Shift("rotated", angle), seed=0).reshape(8, 8)
            torch.testing.assert_close(found, found.flip(0, 1))
            assert float(found.sum()) == pytest.approx(4.0, rel=0.1)

    def test_beyond_the_border_there_is_nothing(self):
        found = changed(torch.ones(3, 64), Shift("rotated", 45), seed=0).reshape(3, 8, 8)
        assert float(found[:, [0, 0, 7, 7], [0, 7, 0, 7]].abs().max()) == 0.0
        assert float(found[:, 3:5, 3:5].min()) == pytest.approx(1.0)

    def test_a_picture_turns_to_the_same_side_by_every_angle(self, pictures):
        far = [changed(pictures, Shift("rotated", angle), seed=5) for angle in (85, 90)]
        other = changed(pictures, Shift("rotated", -90), seed=5)
        near = (far[0] - far[1]).square().mean(1) < (far[0] - other).square().mean(1)
        assert bool(near.all())

    @pytest.mark.parametrize("pixels", [1, 2, 3])
    def test_moving_fills_with_zeros_and_keeps_the_rest(self, pictures, pixels):
        found = changed(pictures, Shift("shifted", pixels), seed=3).reshape(-1, 8, 8)
        own = pictures.reshape(-1, 8, 8)
        seen = set()
        for before, after in zip(own, found, strict=True):
            wanted = {}
            for k in range(4):
                turned = torch.zeros(8, 8)
                turned[pixels:] = before.rot90(k)[: 8 - pixels]
                wanted[k] = turned.rot90(-k)
            match = [k for k, picture in wanted.items() if torch.equal(picture, after)]
            assert len(match) == 1
            seen |= set(match)
        assert seen == {0, 1, 2, 3}

    def test_there_and_back_is_a_blur_in_place(self, pictures):
        found = changed(pictures, Shift("rotated and back"), seed=4).reshape(-1, 8, 8)
        own = pictures.reshape(-1, 8, 8)
        middle = (slice(None), slice(2, 6), slice(2, 6))
        assert float(found[middle].std()) < 0.8 * float(own[middle].std())
        assert np.corrcoef(found[middle].flatten(), own[middle].flatten())[0, 1] > 0.6

    def test_permuted_pixels_are_the_same_pixels_in_another_order_for_each_row(self):
        rows = torch.linspace(0, 1, 64).repeat(4, 1)
        found = changed(rows, Shift("pixels permuted"), seed=0)
        assert torch.equal(found.sort(1).values, rows)
        assert len({tuple(row) for row in found.tolist()}) == 4


class TestScores:
    def test_the_network_scores_are_their_formulas(self):
        outputs = torch.randn(50, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
        found = scores.of_network(outputs)
        probabilities = outputs.softmax(1)
        torch.testing.assert_close(found["softmax"], 1 - probabilities.amax(1))
        torch.testing.assert_close(found["margin"], -km.kernel_machines.margin(outputs, outputs.argmax(1)))
        torch.testing.assert_close(found["energy"], -outputs.exp().sum(1).log())

    def test_near_certainty_no_tie_decides(self):
        outputs = torch.tensor([[60.0, 0.0, 0.0], [50.0, 0.0, 0.0]], dtype=torch.float64)
        rest = scores.of_network(outputs)["softmax"]
        torch.testing.assert_close(rest, 2 * torch.tensor([-60.0, -50.0], dtype=torch.float64).exp())

    def test_the_deviation_is_that_of_the_estimator_with_the_kernel_itself(self, problem):
        x, labels, rows = problem.data.x_train, problem.data.y_train, problem.inside[0][:9]
        kernel = scores.tangent_kernel(problem.trained, x, rows)
        ridge = scores.loo_ridge(kernel, labels)
        direct = km.KernelMachineGP(kernel=km.TangentKernel(problem.trained, dtype=torch.float64), ridge=ridge)
        direct.fit(x.numpy(), scores.targets_of(labels).numpy())
        _, wanted = direct.predict(rows.numpy(), return_std=True)
        std, relative = scores.of_kernel(kernel, labels, ridge)
        np.testing.assert_allclose(std.numpy(), wanted, rtol=1e-7)
        np.testing.assert_allclose(relative.numpy(), wanted / np.sqrt(kernel.diagonal.numpy()), rtol=1e-7)
        pixels = scores.pixel_kernel(x, rows)
        of_pixels = km.KernelMachineGP(kernel="rbf", gamma="scale", ridge=0.1)
        of_pixels.fit(x.double().numpy(), scores.targets_of(labels).numpy())
        _, wanted = of_pixels.predict(rows.double().numpy(), return_std=True)
        np.testing.assert_allclose(scores.deviations(pixels, labels, 0.1).numpy(), wanted, rtol=1e-7)

    @pytest.mark.parametrize("factor", [1e-3, 1.0, 40.0])
    def test_the_relative_deviation_has_no_unit_and_lies_in_0_to_1(self, problem, factor):
        x, labels, rows = problem.data.x_train, problem.data.y_train, problem.inside[0][:40]
        kernel = scores.tangent_kernel(problem.trained, x, rows)
        scaled = scores.Kernel(factor * kernel.train, factor * kernel.cross, factor * kernel.diagonal)
        std, relative = scores.of_kernel(kernel, labels, 1e-2 * kernel.size)
        of_scaled = scores.of_kernel(scaled, labels, 1e-2 * scaled.size)
        torch.testing.assert_close(of_scaled[1], relative, rtol=1e-8, atol=0)
        torch.testing.assert_close(of_scaled[0], math.sqrt(factor) * std, rtol=1e-8, atol=0)
        assert 0 < float(relative.min()) <= float(relative.max()) <= 1

    def test_training_rows_are_known_and_a_large_ridge_knows_nothing(self, problem):
        x, labels = problem.data.x_train, problem.data.y_train
        kernel = scores.tangent_kernel(problem.trained, x, x)
        known = scores.of_kernel(kernel, labels, 1e-9 * kernel.size)[1]
        unknown = scores.of_kernel(kernel, labels, 1e6 * kernel.size)[1]
        assert float(known.max()) < 1e-3
        assert float(unknown.min()) > 0.999

    def test_more_training_rows_never_raise_the_deviation(self, problem):
        x, labels, rows = problem.data.x_train, problem.data.y_train, problem.inside[0][:40]
        more = scores.deviations(scores.tangent_kernel(problem.trained, x, rows), labels, 1.0)
        fewer = scores.deviations(scores.tangent_kernel(problem.trained, x[:30], rows), labels[:30], 1.0)
        assert bool((more <= fewer * (1 + 1e-9)).all())

    def test_the_ridge_of_most_evidence_is_that_of_the_process_with_the_best_scale(self, problem):
        kernel = scores.pixel_kernel(problem.data.x_train, problem.inside[0][:2])
        labels = problem.data.y_train.clone()
        labels[::4] = labels[::4].flip(0)  # noise, so that the best ridge is neither the least nor the largest
        targets = scores.targets_of(labels).numpy()
        n, C = targets.shape

        def evidence(ridge, factor=1.0):
            plain = km.KernelMachineGP(kernel="precomputed", ridge=ridge).fit(kernel.train.numpy(), targets)
            scale = factor * float((plain.dual_coef_ * targets).sum()) / (n * C)
            own = km.KernelMachineGP(kernel="precomputed", ridge=scale * ridge)
            return own.fit(scale * kernel.train.numpy(), targets).log_evidence_

        chosen = scores.evidence_ridge(kernel, labels)
        assert 1e-8 < chosen < 1e3
        for factor in (0.1, 10**-0.25, 10**0.25, 10.0):
            assert evidence(factor * chosen) < evidence(chosen)
        for factor in (0.9, 1.1):  # the scale itself is the best
            assert evidence(chosen, factor) < evidence(chosen)

    def test_labels_become_rows_that_sum_to_zero(self):
        found = scores.targets_of(torch.tensor([3, 0]))
        torch.testing.assert_close(found.sum(1), torch.zeros(2, dtype=torch.float64))
        assert found[0, 3] == pytest.approx(0.9)

    def test_every_score_is_of_its_own_kernel(self, problem):
        rows, labels = problem.inside[0][:9], problem.data.y_train
        found, others, chosen = scores.scores(problem, rows)
        assert list(found | dict.fromkeys(SCORES)) == list(found)
        for name, model in (("tangent", problem.trained), ("initial", problem.initial)):
            kernel = scores.tangent_kernel(model, problem.data.x_train, rows)
            ridge = scores.loo_ridge(kernel, labels)
            std, relative = scores.of_kernel(kernel, labels, ridge)
            torch.testing.assert_close(found[f"gp_{name}"], std)
            torch.testing.assert_close(found[f"gp_{name}_relative"], relative)
            assert chosen[f"log10 ridge, {name}"] == pytest.approx(math.log10(ridge / kernel.size))
            if name == "tangent":
                wanted = scores.of_kernel(kernel, labels, 1e-2 * kernel.size)[1]
                torch.testing.assert_close(others["gp_tangent_relative at 1e-02"], wanted)

    def test_neighbors_are_the_nearest_rows_in_both_spaces(self):
        linear = nn.Linear(64, 10).requires_grad_(True)
        problem = make(1, **SMALL)
        problem = type(problem)(
            problem.data, problem.inside, problem.outside, linear, linear, problem.training, problem.seeds
        )
        rows = problem.inside[0][:7]
        found, _, _ = scores.scores(problem, rows)
        gaps = (rows[:, None].double() - problem.data.x_train.double()).norm(dim=2).amin(1)
        torch.testing.assert_close(found["neighbor_pixels"], gaps)
        # tangents of a linear model are its rows with a constant, once for each output
        torch.testing.assert_close(found["neighbor_tangents"], math.sqrt(10) * gaps, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found["length"], (10 * (rows.double().square().sum(1) + 1)).sqrt())


class TestMeasure:
    def test_halves_are_disjoint_held_out_rows_and_the_other_network_is_another(self):
        first, other = make(3, **SMALL), make(3, **SMALL, other=True)
        assert len(first.inside[0]) + len(first.outside[0]) == 160
        assert torch.equal(torch.cat([first.inside[0], first.outside[0]]), first.data.x_test)
        assert torch.equal(first.data.x_train, other.data.x_train)
        weights = [own.state_dict()["1.weight"] for own in (first.initial, other.initial, first.trained)]
        assert not torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_what_is_detected_is_what_the_definition_says(self, problem):
        lines, facts, pictured = measure(problem, 0)
        by = {(line["kind"], line["where"], line["score"]): line["auroc"] for line in lines}
        with torch.no_grad():
            turned = changed(problem.outside[0], Shift("rotated", 30), seed=problem.seeds["changes"])
            inside, outside, held = (
                problem.trained(x).double() for x in (problem.inside[0], turned, problem.data.x_test)
            )
        score = scores.of_network(torch.cat([inside, outside]))["energy"]
        pairs = score[len(inside) :, None] - score[: len(inside)]
        wanted = float((pairs > 0).double().mean() + (pairs == 0).double().mean() / 2)
        assert by["shift", "rotated 30°", "energy"] == pytest.approx(wanted)
        for where, own, labels in (
            ("held out", held, problem.data.y_test),
            ("rotated 30°", outside, problem.outside[1]),
        ):
            wrong = own.argmax(1) != labels
            assert facts[f"errors, {where}"] == int(wrong.sum())
            score = scores.of_network(own)["margin"]
            pairs = score[wrong][:, None] - score[~wrong]
            wanted = float((pairs > 0).double().mean() + (pairs == 0).double().mean() / 2)
            assert by["errors", where, "margin"] == pytest.approx(wanted)
        assert torch.equal(pictured.x, problem.data.x_test)
        assert torch.equal(pictured.labels, problem.data.y_test)
        assert torch.equal(pictured.predicted, held.argmax(1))
        assert facts["accuracy, rotated 30°"] == pytest.approx(
            float((outside.argmax(1) == problem.outside[1]).double().mean())
        )

    @pytest.mark.soak
    def test_a_small_run_writes_its_files(self, tmp_path, capsys):
        run(Options(**SMALL, seeds=2, out=tmp_path))
        assert "errors of the network: held out" in capsys.readouterr().out
        results = json.loads((tmp_path / "results.json").read_text())
        own = results["shift"]["rotated 30°"]
        for base in BASELINES:
            gap = own["gp_tangent"]["auroc"]["mean"] - own[base]["auroc"]["mean"]
            assert own["gp_tangent"][f"less {base}"]["mean"] == pytest.approx(gap, abs=3e-6)
        assert results["shift"]["uniform pixels"]["gp_tangent"]["auroc"]["min"] > 0.95
        for name in ("figure.svg", "figure.png", "runs.csv"):
            assert (tmp_path / name).stat().st_size > 1000


class TestSummary:
    def test_it_is_student_s_interval(self):
        values = [0.1, 0.4, 0.3, 0.7]
        found = summary(values)
        se = np.std(values, ddof=1) / 2
        assert found["mean"] == pytest.approx(0.375)
        assert found["se"] == pytest.approx(se, abs=1e-6)
        low, high = t.interval(0.95, 3, loc=0.375, scale=se)
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-6)
        assert (found["min"], found["max"]) == (0.1, 0.7)
        assert summary([0.1, math.nan]) is None
        assert math.isnan(summary([0.5])["se"])
        assert (
            plus_minus(found, 2, signed=True) == "+0.38 ± 0.12" or plus_minus(found, 2, signed=True) == "+0.37 ± 0.12"
        )
        assert plus_minus(None) == ""


class TestCommitted:
    results = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.is_file() else {}

    def test_it_is_of_the_default_options_and_complete(self):
        default = Options()
        for name, value in self.results["options"].items():
            assert getattr(default, name) == value
        assert list(self.results["shift"]) == [shift.name for shift in SHIFTS]
        assert tuple(self.results["errors"]) == ERRORS_ON
        for kind in ("shift", "errors"):
            for where, own in self.results[kind].items():
                assert list(own) == list(SCORES)
                assert len(self.results["ridges"][f"{kind}: {where}"]) == 2 * len(RIDGES)
        assert len(table(self.results).splitlines()) > 150

    def test_differences_are_those_of_the_means(self):
        for kind in ("shift", "errors"):
            for own in self.results[kind].values():
                for figures in own.values():
                    assert figures["auroc"]["low"] <= figures["auroc"]["mean"] <= figures["auroc"]["high"]
                    assert 0 <= figures["auroc"]["min"] <= figures["auroc"]["max"] <= 1
                    for base in BASELINES:
                        gap = figures["auroc"]["mean"] - own[base]["auroc"]["mean"]
                        assert figures[f"less {base}"]["mean"] == pytest.approx(gap, abs=3e-6)

    def test_the_nulls_are_at_chance(self):
        for own in [*self.results["shift"].values(), *self.results["errors"].values()]:
            for figures in own.values():
                assert abs(figures["permuted"]["mean"] - 0.5) < 0.005
        for name, figures in self.results["shift"]["unchanged"].items():
            assert abs(figures["auroc"]["mean"] - 0.5) < 4 * figures["auroc"]["se"], name
