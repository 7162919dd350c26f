"""Quantile-regression attack: compare a row with the quantile predicted for a non-member like it."""

import warnings

import torch
from torch import Tensor

from kernelmem.core.errors import InputError
from kernelmem.memorization.membership.lira import moments
from kernelmem.memorization.membership.signals import MembershipOptions, Signals


def quantile_scores(signals: Signals, k: int, without_row: Tensor, options: MembershipOptions) -> tuple[Tensor, Tensor]:
    """Return φ − q(features) (n,) of model k, with q fitted by pinball loss to its test rows, and rows with features.

    Raises:
        InputError: fewer test rows than 5 / (1 − quantile).
    """
    t = signals.test_phi.shape[1]
    needed = 5 / (1 - options.quantile)
    if t < needed:
        raise InputError(
            f'attack="quantile" with {t} test rows of the target and quantile={options.quantile:g}',
            expected=f"at least {needed:.0f} test rows, which no model was trained on",
            hint="evaluate the shadow models and the target on more test rows, or lower options.quantile",
        )
    if signals.features is not None:
        (rows, test_rows), enough = signals.features, torch.ones(signals.phi.shape[1], dtype=torch.bool)
    else:
        rows, test_rows, enough = _features_of_other_models(signals, k, without_row)
    predicted = _fit(test_rows, signals.test_phi[k], rows, options)
    return signals.phi[k] - predicted, enough


def _features_of_other_models(signals: Signals, k: int, without_row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and standard deviation of φ over other models: (n, 2), (t, 2), and rows (n,) with two models or more.

    No model was trained on a test row. As many of them are used for it as there are models without a row on average, so
    that both features have the same sampling error.
    """
    t = signals.test_phi.shape[1]
    others = without_row.any(1)
    others[k] = False
    share = float(without_row[others].double().mean())
    generator = torch.Generator().manual_seed(signals.seed)
    drawn = (torch.rand(signals.n_models, t, generator=generator, dtype=torch.float64) < share) & others[:, None]
    drawn[:, drawn.sum(0) < 2] = others[:, None].expand(-1, t)[:, drawn.sum(0) < 2]
    columns = []
    for values, used in ((signals.phi, without_row), (signals.test_phi, drawn)):
        count, mean, squares = moments(values, used)
        columns.append(torch.stack([mean, (squares / (count - 1).clamp_min(1)).sqrt()], 1))
    return columns[0], columns[1], without_row.sum(0) >= 2


def _fit(x: Tensor, y: Tensor, x_new: Tensor, options: MembershipOptions) -> Tensor:
    """Return the predicted quantile (n,) at ``x_new``; features are standardized."""
    mean, scale = x.mean(0), x.std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    x, x_new = (x - mean) / scale, (x_new - mean) / scale
    if options.quantile_model == "linear":
        from sklearn.linear_model import QuantileRegressor

        model = QuantileRegressor(quantile=options.quantile, alpha=0.0, solver="highs")
    else:
        from sklearn.ensemble import GradientBoostingRegressor

        model = GradientBoostingRegressor(
            loss="quantile", alpha=options.quantile, n_estimators=50, max_depth=3, random_state=0
        )
    with warnings.catch_warnings(action="ignore"):  # a linear program that stops early is still a predictor
        model.fit(x.numpy(), y.numpy())
    return torch.from_numpy(model.predict(x_new.numpy())).to(torch.float64)
