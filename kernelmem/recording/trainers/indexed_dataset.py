"""Dataset whose items carry their positions."""

from torch.utils.data import Dataset, Subset


class Indexed(Dataset):
    """Prepend its position to every item of a map-style dataset: (x, y) becomes (position, x, y), z becomes (position, z).

    For a Subset, positions are those in the underlying dataset.

    >>> import torch
    >>> dataset = torch.utils.data.TensorDataset(torch.zeros(5, 2), torch.arange(5))
    >>> Indexed(torch.utils.data.Subset(dataset, [3, 1]))[0]
    (3, tensor([0., 0.]), tensor(3))
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # map-style

    def __getitem__(self, index: int) -> tuple[object, ...]:
        item = self.dataset[index]
        return (position_in(self.dataset, index), *(item if isinstance(item, tuple | list) else (item,)))


def position_in(dataset: Dataset, index: int) -> int:
    """Return the position of item ``index`` of ``dataset`` in the underlying dataset, if it is a torch Subset (of a Subset).

    For other datasets it is ``index``.

    >>> position_in(Subset(Subset(range(9), [2, 4, 6]), [2, 0]), 0)
    6
    """
    while isinstance(dataset, Subset):
        index, dataset = int(dataset.indices[index]), dataset.dataset
    return index
