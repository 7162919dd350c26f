"""Labels in bits
==============

Labels in bits: what they cost without a network, what a network memorized, and a length that is not that of a code.

A code length can be checked: the labels come back from the stream. Noise makes labels expensive, and a network that fits
them has to hold that noise somewhere. The account says how many bits of it are in the network, without knowing which labels
are wrong.

Run: python examples/bits_of_labels.py
"""

from pathlib import Path

import torch
import torch.nn.functional as F

import kernelmem as km
from kernelmem.compression import OnlineCode
from kernelmem.training import digits, standardized_mlp, train_classifier

data = digits(n_train=300, seed=0)
x, clean = data.x_train, data.y_train
noisy = km.corrupt_labels(clean, 0.2, seed=0)
random = torch.randint(10, (300,), generator=torch.Generator().manual_seed(0))

# A code for the labels: a kernel predicts each from those before it. Wrong labels cost bits, and random ones are not
# compressed. The kernel must not depend on the labels, so it is that of infinitely wide networks, not of a trained one.
kernel = km.infinite_ntk(x.double(), depth=2)
for name, y in {"clean": clean, "20 % wrong": noisy.y, "random": random}.items():
    code = km.online_code(kernel, y, n_classes=10)
    decoded = OnlineCode.decode(code.encode(), kernel)
    print(f"{name:>10} labels: {code.bits:5} of {code.uniform:.0f} bits, decoded: {torch.equal(decoded, y)}")

# The account of a network that fits all labels: what follows from the other rows, what is memorized, what is noise. The
# null is the same network before training, which holds nothing.
model = standardized_mlp(x, 10, widths=(128, 128), seed=0)
train_classifier(model, x, noisy.y, epochs=150, seed=0)
account = km.account(model, (x, noisy.y), reference=kernel)
print(f"\n{account}\n")
for row in account.to_frame().index[:5]:
    flipped = "a wrong label" if noisy.flipped[row] else "an odd digit"
    print(f"    row {row:3}: {account.memorized_rows[row]:.1f} bits memorized, {flipped}")


# Not every length is that of a code. This predictor gives every row a mean over the labels of similar rows, and seems to be
# shorter than the code above. But it uses the labels of later rows, too, which a decoder does not have yet: they do not come
# back. With `similarity.tril(-1)` in place of `similarity` it would be a code.
def left_out(x, y):
    """Return the shares of the labels of similar rows, (n, 10)."""
    similarity = torch.exp(-torch.cdist(x, x).square()).fill_diagonal_(0)
    shares = similarity.double() @ F.one_hot(y, 10).double() + 0.01
    return shares / shares.sum(1, keepdim=True)


print(f"\n{km.verify_code(left_out, x, noisy.y, positions=16)}")

out = Path("out/bits_of_labels.png")
out.parent.mkdir(parents=True, exist_ok=True)
account.plot().savefig(out, dpi=120)
print(f"\nfigure: {out}")
