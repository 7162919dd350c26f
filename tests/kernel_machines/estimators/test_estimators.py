"""Tests of the estimators: equality with scikit-learn, laws, kernels of every kind, priors, errors."""

import copy
import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.linalg import LinAlgWarning
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.svm import SVC

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernel_machines.estimators.gaussian_process import KernelMachineGP
from kernelmem.kernel_machines.estimators.precomputed_kernel import StoredKernel
from kernelmem.kernel_machines.estimators.ridge import KernelMachineClassifier, KernelMachineRegressor
from kernelmem.kernel_machines.estimators.svm import KernelMachineSVC
from kernelmem.kernel_machines.model_selection.leave_one_out import leave_one_out
from kernelmem.testing.kernels import gaussian_kernel, invalid_system, kernel_with_spectrum

N, M = 40, 9
RNG = np.random.default_rng(0)
X, X_TEST = RNG.standard_normal((N, 3)), RNG.standard_normal((M, 3))
Y = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], 1) + 0.1 * RNG.standard_normal((N, 2))
LABELS = np.array(["ant", "bee", "cat"])[np.argmax(X @ RNG.standard_normal((3, 3)), 1)]
WEIGHTS = RNG.integers(0, 4, N).astype(float)
NAMED = [
    {"kernel": "rbf", "gamma": 0.4},
    {"kernel": "rbf"},
    {"kernel": "laplacian"},
    {"kernel": "polynomial", "degree": 2, "coef0": 0.5},
    {"kernel": "linear"},
    {"kernel": "sigmoid", "gamma": 0.01, "coef0": 0.1},
    {"kernel": "cosine"},
    {"kernel": "rbf", "kernel_params": {"gamma": 0.4}},
]


def rbf(A, B):
    return gaussian_kernel(A, B)


def close(a, b, tol=1e-9):
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tol * max(1.0, np.abs(b).max())


@pytest.mark.parametrize("named", NAMED[:-1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_regression_equals_kernel_ridge(named, weights):
    got = KernelMachineRegressor(ridge=0.3, **named).fit(X, Y, weights)
    want = KernelRidge(alpha=0.3, **named).fit(X, Y, weights)
    close(got.predict(X_TEST), want.predict(X_TEST))
    close(got.dual_coef_, want.dual_coef_)
    close(got.fit(X, Y[:, 0]).predict(X_TEST), KernelRidge(alpha=0.3, **named).fit(X, Y[:, 0]).predict(X_TEST))
    assert got.solution_.code == "solved"


def test_kernel_params_and_gamma_scale():
    a = KernelMachineRegressor(kernel="rbf", kernel_params={"gamma": 0.4}).fit(X, Y).predict(X_TEST)
    close(a, KernelMachineRegressor(kernel="rbf", gamma=0.4).fit(X, Y).predict(X_TEST))
    b = KernelMachineRegressor(gamma="scale").fit(X, Y).predict(X_TEST)
    close(b, KernelMachineRegressor(gamma=1 / (3 * X.var())).fit(X, Y).predict(X_TEST))
    close(b, KernelMachineRegressor(gamma="scale").fit(csr_array(X), Y).predict(csr_array(X_TEST)))
    close(
        KernelMachineRegressor(gamma="scale").fit(X, Y, WEIGHTS + 1).predict(X_TEST),
        KernelMachineRegressor(gamma="scale").fit(csr_array(X), Y, WEIGHTS + 1).predict(X_TEST),
    )
    close(
        KernelMachineRegressor(gamma="auto").fit(X, Y).predict(X_TEST),
        KernelMachineRegressor().fit(X, Y).predict(X_TEST),
    )


def test_classification_equals_ridge_without_intercept():
    got = KernelMachineClassifier(kernel="linear", ridge=0.5).fit(X, LABELS == "bee", WEIGHTS)
    want = RidgeClassifier(alpha=0.5, fit_intercept=False).fit(X, LABELS == "bee", WEIGHTS)
    close(got.decision_function(X_TEST), want.decision_function(X_TEST))
    got = KernelMachineClassifier(ridge=0.5).fit(X, LABELS)
    one_hot = (LABELS[:, None] == got.classes_) - 1 / 3
    outputs = KernelRidge(alpha=0.5, kernel="rbf").fit(X, one_hot).predict(X_TEST)
    close(got.decision_function(X_TEST), outputs)
    assert (got.predict(X_TEST) == np.array(["ant", "bee", "cat"])[outputs.argmax(1)]).all()


@pytest.mark.parametrize("labels", [LABELS, LABELS == "bee"])
@pytest.mark.parametrize("kernel", [{"kernel": "rbf"}, {"kernel": "linear"}])
def test_svc_equals_that_of_scikit_learn(labels, kernel):
    got = KernelMachineSVC(C=0.7, tol=1e-12, **kernel).fit(X, labels)
    want = SVC(C=0.7, tol=1e-12, **kernel).fit(X, labels)
    close(got.decision_function(X_TEST), want.decision_function(X_TEST))
    assert (got.predict(X_TEST) == want.predict(X_TEST)).all()
    assert (got.support_ == want.support_).all()
    weights = WEIGHTS + 0.5
    got = KernelMachineSVC(tol=1e-12, gamma=0.3, **kernel).fit(X, labels, weights)
    close(
        got.decision_function(X_TEST),
        SVC(tol=1e-12, gamma=0.3, **kernel).fit(X, labels, weights).decision_function(X_TEST),
    )


def test_a_support_vector_machine_whose_iterations_cycle_ends_at_a_tolerance_it_reaches():
    got = KernelMachineSVC(kernel="poly", degree=2, C=0.7).fit(X, LABELS == "bee")
    assert 1e-8 < got.tol_ <= 1e-4
    want = SVC(kernel="poly", degree=2, C=0.7, tol=1e-6).fit(X, LABELS == "bee")
    close(got.decision_function(X_TEST), want.decision_function(X_TEST), 1e-2)
    assert KernelMachineSVC().fit(X, LABELS).tol_ == 1e-8
    assert KernelMachineSVC(tol=0.1).fit(X, LABELS).tol_ == 0.1


def test_svc_with_rows_of_weight_zero_on_a_precomputed_kernel():
    used = WEIGHTS > 0
    got = KernelMachineSVC(kernel="precomputed").fit(gaussian_kernel(X), LABELS, WEIGHTS)
    want = SVC(kernel="rbf", gamma=0.3, tol=1e-8).fit(X[used], LABELS[used], WEIGHTS[used])
    close(got.decision_function(gaussian_kernel(X_TEST, X)), want.decision_function(X_TEST), 1e-6)
    assert (got.support_ == used.nonzero()[0][want.support_]).all()


@pytest.mark.parametrize("outputs", [slice(0, 1), slice(0, 2)])
def test_gp_equals_that_of_scikit_learn(outputs):
    y = Y[:, outputs]
    want = GaussianProcessRegressor(RBF(1.3), alpha=0.05, optimizer=None).fit(X, y)
    got = KernelMachineGP(gamma=0.5 / 1.3**2, ridge=0.05).fit(X, y)
    mean, std = got.predict(X_TEST, return_std=True)
    wanted, deviation = want.predict(X_TEST, return_std=True)
    close(mean, wanted.reshape(mean.shape))
    close(std, deviation if deviation.ndim == 1 else deviation[:, 0])
    covariance = want.predict(X_TEST, return_cov=True)[1]
    close(got.predict(X_TEST, return_cov=True)[1], covariance if covariance.ndim == 2 else covariance[:, :, 0])
    assert got.log_evidence_ == pytest.approx(want.log_marginal_likelihood_value_, rel=1e-9)
    close(got.predict(X_TEST), KernelMachineRegressor(gamma=0.5 / 1.3**2, ridge=0.05).fit(X, y).predict(X_TEST))
    table = KernelMachineGP(kernel="precomputed", ridge=0.05).fit(gaussian_kernel(X, gamma=0.5 / 1.3**2), y)
    K_test = gaussian_kernel(X_TEST, X, gamma=0.5 / 1.3**2)
    close(table.predict(K_test, return_std=True, K_test_diag=np.ones(M))[1], std)
    with pytest.raises(InputError, match="K_test_diag"):
        table.predict(K_test, return_std=True)
    with pytest.raises(InputError, match="K_test_test"):
        table.predict(K_test, return_cov=True, K_test_test=np.ones(M))
    with pytest.raises(InputError, match="one of them"):
        got.predict(X_TEST, return_std=True, return_cov=True)


def test_gp_of_a_singular_kernel_is_that_of_its_directions():
    with pytest.warns(LinAlgWarning, match="singular"):
        got = KernelMachineGP(kernel="linear", ridge=0.0).fit(X, X @ [1.0, 2.0, 3.0])
    mean, std = got.predict(X_TEST, return_std=True)
    close(mean, X_TEST @ [1.0, 2.0, 3.0])
    assert std.max() < 1e-6
    values, V = np.linalg.eigh(X @ X.T)
    spectral = V[:, -3:].T @ (X @ [1.0, 2.0, 3.0])
    want = -0.5 * ((spectral**2 / values[-3:]).sum() + np.log(values[-3:]).sum() + 3 * np.log(2 * np.pi))
    assert got.log_evidence_ == pytest.approx(want, rel=1e-9)


def test_gp_of_a_conditionally_positive_kernel_has_a_mean_and_no_variance():
    K = gaussian_kernel(X) - 2.0
    got = KernelMachineGP(kernel="precomputed").fit(K, Y)
    assert got.solution_.code == "conditionally_positive"
    assert np.isnan(got.log_evidence_)
    close(got.predict(K), KernelMachineRegressor(kernel="precomputed").fit(K, Y).predict(K))
    with pytest.raises(NumericalError, match="zero-sum"):
        got.predict(K, return_std=True, K_test_diag=np.ones(N))


@pytest.mark.parametrize("make", [KernelMachineRegressor, KernelMachineGP])
def test_interpolation_as_the_ridge_goes_to_zero(make):
    gaps = [np.abs(make(gamma=3.0, ridge=ridge).fit(X, Y).predict(X) - Y).max() for ridge in (1e-2, 1e-5, 1e-8, 0.0)]
    assert gaps[0] > 1e-3
    assert all(after < before / 100 for before, after in pairwise(gaps[:3]))
    assert gaps[3] < 1e-10


def makers():
    return [
        KernelMachineRegressor(ridge=0.1),
        KernelMachineRegressor(ridge="gcv"),
        KernelMachineRegressor(ridge="loo"),
        KernelMachineClassifier(ridge=0.1),
        KernelMachineSVC(),
        KernelMachineGP(ridge=0.1),
    ]


def outputs_of(machine, *arguments):
    targets = LABELS if hasattr(machine, "decision_function") else Y
    machine = clone(machine)
    rows = arguments[0] if arguments else slice(None)
    machine.fit(X[rows], targets[rows], *arguments[1:])
    return getattr(machine, "decision_function", machine.predict)(X_TEST)


@pytest.mark.parametrize("machine", makers(), ids=str)
def test_the_order_of_rows_does_not_matter(machine):
    close(outputs_of(machine, RNG.permutation(N)), outputs_of(machine), 1e-7)


@pytest.mark.parametrize("machine", makers()[:5], ids=str)
def test_a_duplicated_row_equals_a_doubled_weight(machine):
    weights = 1.0 + (np.arange(N) < 5)
    rows = np.concatenate([np.arange(N), np.arange(5)])
    close(outputs_of(machine, slice(None), weights), outputs_of(machine, rows), 1e-7)


@pytest.mark.parametrize("machine", makers()[:5], ids=str)
def test_a_row_of_weight_zero_is_not_there(machine):
    rows = np.arange(N) >= 7
    close(outputs_of(machine, slice(None), rows.astype(float)), outputs_of(machine, rows), 1e-7)


@pytest.mark.parametrize("scale", [1e-6, 42.0])
@pytest.mark.parametrize("ridge", [0.1, "loo", "gcv"])
def test_scaling_kernel_and_ridge_leaves_predictions(scale, ridge):
    K, K_test = gaussian_kernel(X), gaussian_kernel(X_TEST, X)
    want = KernelMachineRegressor(kernel="precomputed", ridge=ridge).fit(K, Y).predict(K_test)
    scaled = ridge if isinstance(ridge, str) else scale * ridge
    got = KernelMachineRegressor(kernel="precomputed", ridge=scaled).fit(scale * K, Y).predict(scale * K_test)
    close(got, want, 1e-8)


@pytest.mark.parametrize("weights", [None, WEIGHTS, 0.3 + WEIGHTS / 3, np.full(N, 0.5)])
def test_the_ridge_of_least_left_out_error_by_literal_refits(weights):
    machine = KernelMachineRegressor(gamma=0.3, ridge="loo").fit(X, Y, weights)
    w = np.ones(N) if weights is None else weights

    def left_out_error(ridge):
        total = 0.0
        for i in range(N):
            rest = w.copy()
            rest[i] = max(0.0, rest[i] - 1)  # one copy less
            refit = clone(machine).set_params(ridge=ridge).fit(X, Y, rest)
            total += w[i] * np.square(refit.predict(X[[i]]) - Y[i]).sum()
        return total / w.sum() / 2

    choice = machine.ridge_choice_
    for index in (choice.index - 2, choice.index, choice.index + 2):
        assert float(choice.errors[index]) == pytest.approx(left_out_error(float(choice.grid[index])), rel=1e-8)
    assert choice.index == int(choice.errors.argmin())
    assert machine.ridge_ == choice.ridge
    if weights is None:
        error = leave_one_out(gaussian_kernel(X), Y, machine.ridge_).errors.square().mean()
        assert float(choice.errors.min()) == pytest.approx(float(error), rel=1e-9)


@pytest.mark.parametrize("criterion", ["loo", "gcv"])
def test_the_ridges_that_are_tried_count_repeated_rows(criterion):
    weights = 1.0 + 3 * (np.abs(X[:, 0]) > 1)
    rows = np.repeat(np.arange(N), weights.astype(int))
    machine = KernelMachineRegressor(kernel="poly", degree=2, ridge=criterion)
    weighted = machine.fit(X, Y, weights).ridge_choice_
    repeated = machine.fit(X[rows], Y[rows]).ridge_choice_
    assert np.allclose(weighted.grid, repeated.grid, rtol=1e-12)
    assert weighted.index == repeated.index


def test_generalized_cross_validation_is_its_definition():
    machine = KernelMachineRegressor(gamma=0.3, ridge="gcv").fit(X, Y)
    K = gaussian_kernel(X)
    for index in (20, machine.ridge_choice_.index, 40):
        H = K @ np.linalg.inv(K + float(machine.ridge_choice_.grid[index]) * np.eye(N))
        want = np.square(Y - H @ Y).mean() / (1 - np.trace(H) / N) ** 2
        assert float(machine.ridge_choice_.errors[index]) == pytest.approx(want, rel=1e-8)
    assert 1e-4 < machine.ridge_ < 10


@pytest.mark.parametrize("make", [KernelMachineRegressor, KernelMachineClassifier, KernelMachineSVC, KernelMachineGP])
def test_every_kind_of_kernel_gives_the_same_machine(make, tmp_path):
    targets = LABELS if issubclass(make, KernelMachineClassifier | KernelMachineSVC) else Y
    want = make(kernel="rbf", gamma=0.3).fit(X, targets)
    score = getattr(want, "decision_function", want.predict)(X_TEST)

    def check(machine, rows, tests):
        fitted = machine.fit(rows, targets)
        close(getattr(fitted, "decision_function", fitted.predict)(tests), score, 1e-7)

    both = np.concatenate([X, X_TEST])
    np.save(tmp_path / "K.npy", gaussian_kernel(both))
    stored = np.load(tmp_path / "K.npy", mmap_mode="r")
    train, test = np.arange(N), np.arange(N, N + M)
    check(make(kernel=rbf), X, X_TEST)
    check(make(kernel=lambda A, B, g: gaussian_kernel(A, B, g), kernel_params={"g": 0.3}), X, X_TEST)
    check(make(kernel=lambda A, B: torch.from_numpy(gaussian_kernel(A, B))), X, X_TEST)
    check(make(kernel="precomputed"), gaussian_kernel(X), gaussian_kernel(X_TEST, X))
    check(make(kernel="precomputed"), stored[:N, :N], stored[N:, :N])
    check(make(kernel=stored), train, test)
    check(make(kernel=stored), train[:, None], test[:, None])
    check(make(kernel=StoredKernel(stored)), train[:, None], test[:, None])


def test_a_stored_kernel_is_shared_by_clones_and_serves_cross_validation():
    K = gaussian_kernel(X)
    machine = KernelMachineRegressor(kernel=StoredKernel(K), ridge=0.1)
    assert clone(machine).kernel is machine.kernel
    got = cross_val_predict(machine, np.arange(N)[:, None], Y)
    close(got, cross_val_predict(KernelMachineRegressor(gamma=0.3, ridge=0.1), X, Y))
    assert StoredKernel(K)(np.arange(N)) is K
    for rows in ([-1], [N], [0.5], [[0, 1]], ["a"]):
        with pytest.raises(InputError, match="row numbers"):
            StoredKernel(K)(rows)
    with pytest.raises(InputError, match="stored kernel"):
        StoredKernel(K[:5])([0])


def test_a_prior_is_added_to_the_learned_change():
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        outputs = lambda rows: model(torch.tensor(rows, dtype=torch.float32)).double().numpy()  # noqa: E731
        change = KernelMachineRegressor(ridge=0.1).fit(X, Y - outputs(X)).predict(X_TEST)
        for prior in (model, outputs):
            close(KernelMachineRegressor(ridge=0.1, prior=prior).fit(X, Y).predict(X_TEST), outputs(X_TEST) + change)
            close(KernelMachineGP(ridge=0.1, prior=prior).fit(X, Y).predict(X_TEST), outputs(X_TEST) + change)
        far = KernelMachineRegressor(prior=outputs).fit(X, Y).predict(X_TEST + 1e3)
        close(far, outputs(X_TEST + 1e3))
    prior = lambda rows: np.eye(3)[[0] * len(rows)]  # noqa: E731
    far = KernelMachineClassifier(prior=prior).fit(X, LABELS)
    assert (far.predict(X_TEST + 1e3) == "ant").all()
    assert (far.predict(X) == LABELS).mean() > 0.9
    flat = KernelMachineRegressor(prior=lambda rows: rows[:, 0]).fit(X, X[:, 0])
    assert not flat.dual_coef_.any()
    for wrong in (lambda rows: np.ones((len(rows), 3)), lambda rows: np.ones(2)):
        with pytest.raises(InputError, match="prior"):
            KernelMachineRegressor(prior=wrong).fit(X, Y)
    with pytest.raises(InputError, match="precomputed"):
        KernelMachineRegressor(kernel="precomputed", prior=model).fit(gaussian_kernel(X), Y)


@pytest.mark.parametrize("make", [KernelMachineRegressor, KernelMachineSVC, KernelMachineGP])
@pytest.mark.parametrize("kind", ["asymmetric", "indefinite"])
def test_bad_kernels_raise(make, kind):
    for seed in range(10):
        K, y, _ = invalid_system(kind, seed)
        targets = y[:, 0] > np.median(y[:, 0]) if make is KernelMachineSVC else y
        with pytest.raises(NumericalError, match="symmetric" if kind == "asymmetric" else "negative"):
            make(kernel="precomputed").fit(K, targets)
        K[0, 0] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            make(kernel="precomputed").fit(K, targets)
        with pytest.raises((ValueError, NumericalError), match="NaN"):
            make(kernel=lambda A, B, K=K: K).fit(y, targets)


def test_a_ridge_lost_in_rounding_warns():
    for seed in range(10):
        K, y, _ = invalid_system("condition", seed)
        with pytest.warns(LinAlgWarning, match="singular"):
            KernelMachineRegressor(kernel="precomputed", ridge=0.0).fit(K, y)


def test_integers_and_float32_that_were_positive_before_rounding_are_solved():
    K = 100 * gaussian_kernel(X, gamma=0.05)
    assert np.linalg.eigvalsh(K.astype(int))[0] < -0.1
    assert KernelMachineSVC(kernel="precomputed").fit(K.astype(int), LABELS).n_features_in_ == N
    with pytest.raises(NumericalError, match="negative"):
        KernelMachineSVC(kernel="precomputed").fit(np.trunc(K), LABELS)
    with pytest.warns(LinAlgWarning, match="singular"):
        KernelMachineRegressor(kernel="precomputed").fit(K.astype(int), Y)
    rough = gaussian_kernel(X, gamma=0.01).astype(np.float32)
    assert np.linalg.eigvalsh(rough.astype(float))[0] < -1e-9
    with pytest.warns(LinAlgWarning, match="singular"):
        got = KernelMachineRegressor(kernel="precomputed", ridge=1e-12).fit(rough, Y)
    # What lies below twice the most negative eigenvalue, which rounding made, is not divided by.
    noise = -np.linalg.eigvalsh(rough.astype(float))[0]
    assert np.linalg.norm(got.dual_coef_) <= np.linalg.norm(Y) / (2 * noise) * (1 + 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KernelMachineRegressor(kernel="precomputed", ridge=1e-3).fit(rough, Y)


@pytest.mark.parametrize("machine", makers(), ids=str)
def test_machines_are_copied_pickled_and_searched(machine):
    targets = LABELS if hasattr(machine, "decision_function") else Y
    fitted = clone(machine).fit(X, targets)
    for twin in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert (twin.predict(X_TEST) == fitted.predict(X_TEST)).all()
    search = GridSearchCV(machine, {"gamma": [0.1, 1.0]}, cv=2).fit(X, targets)
    assert search.best_params_["gamma"] in (0.1, 1.0)


@pytest.mark.parametrize(
    "parameters",
    [
        {"kernel": "nope"},
        {"ridge": "cv"},
        {"ridge": -1},
        {"gamma": "wide"},
        {"solver": "lu"},
        {"kernel": lambda A, B: A},
    ],
)
def test_parameters_that_mean_nothing_are_refused(parameters):
    with pytest.raises(InputError):
        KernelMachineRegressor(**parameters).fit(X, Y)


def test_labels_of_one_class_are_refused_and_so_are_kernels_that_are_not_square():
    with pytest.raises(InputError, match="class"):
        KernelMachineClassifier().fit(X, np.zeros(N, dtype=int))
    with pytest.raises(InputError, match="class"):
        KernelMachineSVC().fit(X, LABELS, (LABELS == "ant").astype(float))
    with pytest.raises(InputError, match="square"):
        KernelMachineRegressor(kernel="precomputed").fit(gaussian_kernel(X)[:, :-1], Y)
    with pytest.raises(ValueError, match="Negative values"):
        KernelMachineRegressor().fit(X, Y, -WEIGHTS)


def test_solvers_are_chosen_by_name_and_take_their_parameters():
    want = KernelMachineRegressor(ridge=0.1).fit(X, Y).predict(X_TEST)
    machine = KernelMachineRegressor(ridge=0.1, solver="cg", solver_params={"tolerance": 1e-12}).fit(X, Y)
    close(machine.predict(X_TEST), want)
    assert machine.solution_.solver == "cg"
    with pytest.raises(NumericalError, match="iterations"):
        KernelMachineRegressor(ridge=1e-6, solver="cg", solver_params={"max_iter": 2, "rank": 0}).fit(X, Y)


def test_rows_of_weight_zero_take_their_class_with_them():
    weights = (LABELS != "ant").astype(float)
    machine = KernelMachineClassifier(ridge=0.1).fit(X, LABELS, weights)
    assert machine.classes_.tolist() == ["bee", "cat"]
    keep = weights > 0
    close(
        machine.decision_function(X_TEST),
        KernelMachineClassifier(ridge=0.1).fit(X[keep], LABELS[keep]).decision_function(X_TEST),
    )


def test_kernels_have_the_requested_spectrum():
    assert np.allclose(np.linalg.eigvalsh(kernel_with_spectrum(np.array([1.0, 2.0]), RNG)), [1.0, 2.0])


def test_a_process_with_a_kernel_negative_by_rounding_keeps_the_ridge():
    values, ridge = np.array([1.0, 3e-7, -1e-7]), 5e-8
    y = np.array([[0.3], [2e-4], [0.0]])
    with pytest.warns(LinAlgWarning):
        machine = KernelMachineGP("precomputed", ridge=ridge).fit(np.diag(values), y)
    kept = values[:2] + ridge
    want = -0.5 * ((y[:2, 0] ** 2 / kept).sum() + np.log(kept).sum() + 2 * np.log(2 * np.pi))
    assert machine.log_evidence_ == pytest.approx(want, rel=1e-9)
    cross = np.array([[0.0, 2e-7, 0.0]])
    _, std = machine.predict(cross, return_std=True, K_test_diag=np.array([1e-6]))
    assert std[0] == pytest.approx(np.sqrt(1e-6 - 4e-14 / kept[1]), rel=1e-9)
