"""Settings."""
import torch
from kernelmem.runs.data import LabeledData
from kernelmem.ground.checks import seed_sequence

def digits_pool(seed: int = 0):
    from sklearn.datasets import load_digits
    import numpy as np
    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy((x/16-.3)*2); y = torch.from_numpy(y).long()
    order = np.random.default_rng(seed_sequence(seed, ["split"])["split"]).permutation(len(y))
    te, tr = order[:800], order[800:]
    return LabeledData("scikit-learn digits", x[tr], y[tr], x[te], y[te], image_shape=(8,8))
