"""Labels in a small file
======================

A network, the labels given the network, and what a code without a network needs.

A card is made with the labels and opened without them: the receiver has the images and the file, and gets every label back,
also the wrong ones. The control are labels without a pattern, which no code makes shorter.

Run: python examples/labels_in_a_file.py
"""

from pathlib import Path
from tempfile import mkdtemp

from matplotlib.figure import Figure

import kernelmem as km
from kernelmem.compression import CardOptions, card, open_card
from kernelmem.training import digits

data = digits(n_train=400, seed=0)
options = CardOptions(steps=300, sweeps=0)
lengths = {}

for noise, name in ((0.0, "clean digits"), (0.2, "20 % wrong labels"), (0.9, "labels without a pattern")):
    y = km.corrupt_labels(data.y_train, noise, seed=0).y  # 90 % wrong: each of ten labels is as probable as any other
    made = card((data.x_train, y), (data.x_test, data.y_test), n_classes=10, name=name, options=options)
    path = made.save(Path(mkdtemp()) / "card.km")
    opened = open_card(path, data.x_train)
    assert opened.labels is not None
    assert bool((opened.labels == y).all())
    if noise == 0:
        print(opened, end="\n\n")  # with bounds on error rates; the first is the one to quote
    parts = ", ".join(f"{part} {bits:,.0f}" for part, bits in opened.parts.items())
    print(f"{name}: {opened.bits:,} bits ({parts}) in a file of {path.stat().st_size:,} bytes;")
    print(f"    uniform labels {opened.uniform:,.0f}, online code {opened.online:,}\n")
    lengths[name] = (opened.uniform, opened.online, opened.bits)

figure = Figure(figsize=(7.2, 3.2), layout="constrained")
axes = figure.subplots()
for at, (code, color) in enumerate({"uniform": "#aab1be", "online code": "#d9780f", "card": "#3b6fc4"}.items()):
    places = [place + 0.26 * (at - 1) for place in range(len(lengths))]
    axes.bar(places, [bits[at] for bits in lengths.values()], width=0.24, color=color, label=code)
axes.set_xticks(range(len(lengths)), list(lengths))
axes.set_ylabel("bits of all labels")
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
axes.spines[["top", "right"]].set_visible(False)
out = Path("out/labels_in_a_file.png")
out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(out, dpi=120)
print(f"figure: {out}")
