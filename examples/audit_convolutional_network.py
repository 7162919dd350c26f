"""Audit of a convolutional network
================================

Audit a small convolutional network: any module whose output is (n, C) works.

Run: python examples/audit_convolutional_network.py
"""

import torch
from torch import nn

import kernelmem as km
from kernelmem.training import digits, train_classifier

data = digits(n_train=300, seed=1)
images, test_images = data.x_train.reshape(-1, 1, 8, 8), data.x_test.reshape(-1, 1, 8, 8)[:300]
noisy = km.corrupt_labels(data.y_train, 0.1, "confusable", seed=1, x=data.x_train)

torch.manual_seed(1)
model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(8, 16, 3, stride=2),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(144, 10),
)
train_classifier(model, images, noisy.y, epochs=80, batch_size=32, lr=3e-3, seed=1)

audit = km.audit(
    model,
    (images, noisy.y),
    (test_images, data.y_test[:300]),
    flipped=noisy.flipped,
    out="out/convolutional",
    options=km.AuditOptions(name="digits", image_shape=(8, 8)),
)
print(audit)

figure = audit.plot()
figure.savefig("out/convolutional/memorization.png", dpi=120)
print("figure: out/convolutional/memorization.png")
