"""Networks of the validation: MLPs and a small CNN, trained together on subsets of the rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import kernelmem as km
from kernelmem.auditing.retraining import SHARE
from kernelmem.memorization.shadows import ShadowEnsemble
from kernelmem.training import EnsembleOptions, Member, Recipe, mlp, train_mlps, train_modules

__all__ = ["Training", "make_cnn"]

N_CLASSES = 10
MODELS_PER_BATCH = 100


def make_cnn(width: int | tuple[int, ...]) -> nn.Module:
    """Return a network of two convolutions with ``width`` and twice as many channels, for images (1, 8, 8).

    The first convolution has stride 2 and no max pooling follows it, which under vmap takes most of the time.
    """
    assert isinstance(width, int)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * width, N_CLASSES),
    )


@dataclass(frozen=True)
class Training:
    """Full-batch Adam on rows of digits: MLPs 64-width-10, or the CNN."""

    steps: int
    lr: float = 0.02
    width: int = 64
    convolutional: bool = False

    @property
    def shadows(self) -> km.EnsembleTraining:
        """The same training for :func:`km.shadow_ensemble` and :class:`km.AuditOptions`."""
        recipe = Recipe(lr=self.lr, steps=self.steps)
        if self.convolutional:
            return km.EnsembleTraining(recipe, width=self.width, make_model=make_cnn)
        return km.EnsembleTraining(recipe, width=self.width)

    def rows(self, x: Tensor) -> Tensor:
        """Return digits (n, 64) in the shape that the network takes."""
        return x.reshape(len(x), 1, 8, 8) if self.convolutional else x

    def outputs(self, x: Tensor, y: Tensor, subsets: Sequence[Tensor], seeds: Sequence[int]) -> Tensor:
        """Train one network per subset and seed, and return their outputs on all rows, (M, n, C) float64."""
        parts = []
        for start in range(0, len(subsets), MODELS_PER_BATCH):
            stop = start + MODELS_PER_BATCH
            parts.append(self._train(x, y, subsets[start:stop], seeds[start:stop], (x, y), keep_parameters=False)[0])
        return torch.cat(parts)

    def networks(self, x: Tensor, y: Tensor, subsets: Sequence[Tensor], seeds: Sequence[int]) -> list[nn.Module]:
        """Return the trained networks."""
        states = self._train(x, y, subsets, seeds, (x[:1], y[:1]), keep_parameters=True)[1]
        networks = []
        for state in states:
            network = make_cnn(self.width) if self.convolutional else mlp(x.shape[1], self.width, N_CLASSES, seed=0)
            network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
            networks.append(network)
        return networks

    def shadow_models(
        self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], n: int, seed: int
    ) -> ShadowEnsemble:
        """Return n shadow models on random subsets of the rows, as large as those of an audit."""
        options = km.ShadowOptions(n_models=n, share=SHARE, sampling="balanced", n_classes=N_CLASSES)
        return km.shadow_ensemble(train, self.shadows, test=test, seed=seed, options=options, progress=False)

    def _train(
        self,
        x: Tensor,
        y: Tensor,
        subsets: Sequence[Tensor],
        seeds: Sequence[int],
        test: tuple[Tensor, Tensor],
        *,
        keep_parameters: bool,
    ) -> tuple[Tensor, list[dict[str, Tensor]]]:
        members = [Member(self.width, rows, y[rows], seed, 0) for rows, seed in zip(subsets, seeds, strict=True)]
        options = EnsembleOptions(keep_parameters=keep_parameters, keep_outputs=True, n_classes=N_CLASSES)
        recipe = Recipe(lr=self.lr, steps=self.steps)
        if self.convolutional:
            ensemble = train_modules(make_cnn, members, x, test=test, recipe=recipe, options=options, progress=False)
        else:
            ensemble = train_mlps(members, x, test=test, recipe=recipe, options=options, progress=False)
        logits = ensemble.metrics[-1].logits
        assert logits is not None
        return logits.to(torch.float64), ensemble.parameters or []
