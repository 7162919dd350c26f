"""kernelmem.plotting.ledger: the figure shows the numbers of the ledger."""

import io

import numpy as np
import pytest
import torch
from matplotlib.image import AxesImage
from matplotlib.offsetbox import AnnotationBbox

from kernelmem.core.errors import InputError
from kernelmem.plotting.ledger import _spread_apart, ledger_figure
from kernelmem.trajectory.ledger.ledger import Ledger


def account(values, **lines):
    """A ledger of one row and one output with these contributions."""
    contributions = torch.tensor(values, dtype=torch.float64)[None, :, None]
    zero = torch.zeros(1, 1, dtype=torch.float64)
    parts = {"initial": zero, "decay": zero, "rounding": zero, "buffers": zero, "residual": zero}
    parts |= {name: zero + value for name, value in lines.items()}
    final = contributions.sum(1) + sum(parts.values())
    return Ledger(
        contributions, final=final, residuals=zero[None], evaluations=torch.ones(1), names=("margin",), **parts
    )


VALUES = [0.5, -2.0, 0.0, 3.0, -0.25, 1.0]


def bars(axes):
    return [bar.get_width() for bar in axes.patches]


def texts(figure):
    labels = [text.get_text() for axes in figure.axes for text in axes.texts]
    labels += [tick.get_text() for axes in figure.axes for tick in axes.get_yticklabels()]
    return [
        *labels,
        *(axes.get_title(loc="left") for axes in figure.axes),
        figure.get_suptitle(),
        figure.get_supxlabel(),
    ]


def test_bars_are_contributions_from_the_largest_up_to_the_largest_down():
    figure = ledger_figure(account(VALUES), 0)
    examples, account_axes = figure.axes
    assert bars(examples) == [3.0, 1.0, 0.5, -0.25, -2.0]
    names = [tick.get_text() for tick in examples.get_yticklabels()]
    assert names == ["no. 3", "no. 5", "no. 0", "no. 4", "no. 1"]
    assert bars(account_axes)[1:3] == [4.5, -2.25]
    assert {bar.get_facecolor() for bar in examples.patches[:3]}.isdisjoint(
        {bar.get_facecolor() for bar in examples.patches[3:]}
    )
    assert bars(ledger_figure(account(VALUES), 0, n=1).axes[0]) == [3.0, -2.0]


def test_every_line_and_the_cancellation_are_there():
    figure = ledger_figure(
        account(VALUES, initial=0.5, decay=-0.125, rounding=1e-3, buffers=0.75, residual=2e-13), 0, n=1
    )
    assert bars(figure.axes[1]) == pytest.approx([0.5, 4.5, -2.25, -0.125, 1e-3, 0.75, 2e-13, 3.376])
    text = texts(figure)
    assert "Contributions to margin of row 0: +2.88" in text
    assert {"+0.500", "+4.50", "\N{MINUS SIGN}0.125", "+2.00e\N{MINUS SIGN}13", "+3.38"} <= set(text)
    caption = figure.get_supxlabel()
    assert "Σ|c| over the 6 examples is 6.75, 3.0 times |Σc|; the bars hold 74% of it." in caption
    assert "for counterfactuals use kernelmem.influence" in caption


def test_the_output_that_is_largest_after_training_is_drawn():
    one, two = account([1.0, 2.0]), account([5.0, -1.0])
    tensors = [name for name, value in vars(one).items() if name not in OTHER and isinstance(value, torch.Tensor)]
    both = {name: torch.cat([getattr(a, name) for a in (one, two)], -1) for name in tensors}
    joined = Ledger(**both, evaluations=torch.ones(1), names=("0", "1"))
    assert "Contributions to output 1 of row 0" in ledger_figure(joined, 0).get_suptitle()
    assert bars(ledger_figure(joined, 0, output=0).axes[0]) == [2.0, 1.0]


OTHER = ("evaluations", "names", "by", "sources", "history", "tape")


def test_images_and_labels_belong_to_their_bars():
    thumbnails = np.arange(6 * 4).reshape(6, 2, 2)
    figure = ledger_figure(
        account(VALUES), 0, image=np.eye(3), images=torch.tensor(thumbnails), labels=torch.arange(6), n=2
    )
    row, examples, _ = figure.axes
    (shown,) = (child for child in row.get_children() if isinstance(child, AxesImage))
    assert np.array_equal(shown.get_array(), np.eye(3))
    boxes = [child for child in examples.get_children() if isinstance(child, AnnotationBbox)]
    pixels = {box.xy[1]: box.offsetbox.get_data() for box in boxes}
    places = examples.get_yticks()
    for place, example in zip(places, [3, 5, 4, 1], strict=True):
        assert np.array_equal(pixels[place], thumbnails[example])
    assert examples.get_yticklabels()[0].get_text() == "3 · no. 3"
    assert {box.offsetbox.image.get_clim() for box in boxes} == {(0.0, 23.0)}


def test_curves_end_at_the_contributions():
    steps = np.linspace(0, 1, 5)[:, None] * np.array(VALUES)
    axes = ledger_figure(account(VALUES), 0, steps=steps).axes[-1]
    ends = sorted(line.get_ydata()[-1] for line in axes.lines[1:])
    assert ends == sorted(v for v in VALUES if v)
    assert all(len(line.get_ydata()) == 6 and line.get_ydata()[0] == 0.0 for line in axes.lines[1:])
    total = ledger_figure(account(VALUES), 0, steps=steps.sum(1)).axes[-1]
    assert np.allclose(total.lines[1].get_ydata()[1:], steps.sum(1))


def test_labels_are_spread_apart_and_keep_their_order():
    spread = _spread_apart([1.0, 0.0, 1.001, 0.999, -5.0], 0.5)
    assert np.diff(np.sort(spread)).min() > 0.499
    assert np.argsort(spread).tolist() == np.argsort([1.0, 0.0, 1.001, 0.999, -5.0]).tolist()
    assert _spread_apart([0.0, 2.0], 0.5) == [0.0, 2.0]
    assert _spread_apart([0.0, 0.2], 0.4) == pytest.approx([-0.1, 0.3])


def test_zero_contributions_and_one_sign_alone():
    figure = ledger_figure(account([0.0, 0.0]), 0)
    assert "all contributions are zero" in texts(figure)
    assert "Σc is zero" in figure.get_supxlabel()
    assert bars(ledger_figure(account([1.0, 2.0]), 0).axes[0]) == [2.0, 1.0]
    figure.savefig(io.BytesIO(), format="svg")


def test_labels_are_not_parsed_as_mathematics_and_equal_ledgers_give_equal_bytes():
    files = []
    for _ in range(2):
        figure = ledger_figure(account(VALUES), 0, labels=["$x_1$"] * 6, images=np.zeros((6, 3, 3, 3)))
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
        files.append(stream.getvalue())
    assert files[0] == files[1]
    assert not any(text.get_parse_math() for text in figure.axes[0].get_yticklabels())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row": 1}, "row=1"),
        ({"output": 1}, "output=1"),
        ({"row": -1}, "row=-1"),
        ({"n": 0}, "n=0"),
        ({"images": np.zeros((5, 2, 2))}, "images"),
        ({"images": np.zeros((6, 4))}, "images"),
        ({"labels": [1, 2]}, "labels"),
        ({"steps": np.zeros((3, 5))}, "steps"),
        ({"image": np.zeros(4)}, "image"),
    ],
)
def test_wrong_shapes_and_indices_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ledger_figure(account(VALUES), options.pop("row", 0), **options)
