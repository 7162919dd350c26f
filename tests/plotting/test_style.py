"""kernelmem.plotting: figures for notebooks, equal files, one look, no result classes needed."""

import pickle
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from kernelmem.plotting import comparison_figure, figure_files, spectrum_figure
from kernelmem.plotting.style import RC, as_array, new_figure, number_ticks, style


@dataclass(frozen=True)
class Line:
    """A power law."""

    exponent: float = 1.0
    se: float = 0.1
    scale: float = 2.0
    first: int = 1
    last: int = 3


@dataclass(frozen=True)
class Fit:
    """A kernel machine."""

    name: str
    status: str
    error: float = 0.1
    null_error: float = 1.1
    stability: float = 2.5

    @property
    def title(self) -> str:
        return f"method {self.name}"


def test_notebooks_show_figures_without_pyplot():
    figure = spectrum_figure(torch.tensor([2.0, 1.0, 0.5]), 1e-12, fit=Line())
    png, size = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert size == {"width": round(96 * 6.4), "height": round(96 * 4.0)}
    code = (
        "import sys, torch, kernelmem.plotting as p\n"
        "p.spectrum_figure(torch.ones(3), 0.0)._repr_png_()\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_equal_figures_give_equal_files():
    first, second = (figure_files(spectrum_figure(torch.tensor([2.0, 1.0, 1e-20]), 1e-12), "k") for _ in range(2))
    assert first == second
    assert list(first) == ["k.svg", "k.png"]
    assert pickle.loads(pickle.dumps(spectrum_figure(torch.ones(2), 0.0))).axes


def test_the_style_ends_with_its_context():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    with style({"font.size": 5}):
        assert mpl.rcParams["font.size"] == 5
        assert mpl.rcParams["legend.frameon"] is RC["legend.frameon"] is False
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(("limits", "expected"), [((1.0, 3.0), 3), ((1.0, 90.0), 4), ((1e-3, 1e3), 3)])
def test_logarithmic_axes_have_readable_ticks(limits, expected):
    with style():
        axes = new_figure(4, 3).add_subplot()
        axes.set_xscale("log")
        axes.set_xlim(limits)
        number_ticks(axes.xaxis, limits)
        labels = [tick.get_text() for tick in axes.get_xticklabels()]
        inside = [text for text, at in zip(labels, axes.get_xticks(), strict=True) if limits[0] <= at <= limits[1]]
    assert len([text for text in inside if text]) >= expected
    assert not any("$" in text for text in labels)


def test_methods_without_an_error_are_named():
    fits = [Fit("a", "computed"), Fit("b", "diverges"), Fit("c", "undefined"), Fit("null", "computed", error=1.2)]
    (axes,) = comparison_figure(fits).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()][::-1] == [
        f"method {name}" for name in ("a", "b", "c", "null")
    ]
    texts = [text.get_text() for text in axes.texts]
    assert any("diverges" in text and "2.5" in text for text in texts)
    assert "undefined" in texts
    assert [float(line.get_xdata()[0]) for line in axes.lines[:4]] == [1.2, 1.1, 0.1, 1.1]


def test_arrays_and_tensors_are_read_alike():
    values = np.arange(3.0)
    assert np.array_equal(as_array(torch.from_numpy(values).requires_grad_()), values)
    assert np.array_equal(as_array([0.0, 1.0, 2.0]), values)
