"""Online (prequential) code length of labels, from a label-free kernel or from a learner."""

import numpy as np
import torch
from torch import Tensor

from kernelmem.compression.coder import precision
from kernelmem.compression.online.learner_scores import Train
from kernelmem.compression.online.options import MAX_CLASSES, OnlineOptions
from kernelmem.compression.online.result import OnlineCode
from kernelmem.compression.online.sources import Kernels, as_source, check_memory, mixture_of
from kernelmem.compression.online.stream import encode_labels, row_order
from kernelmem.core import ArrayLike, Batch
from kernelmem.core.checks import as_count, as_labels, as_seed, check_instance
from kernelmem.core.options import MEMORY, Progress, as_bytes, as_progress


def online_code(
    source: Kernels | Train,
    y: ArrayLike,
    *,
    x: Batch | None = None,
    n_classes: int | None = None,
    order_seed: int = 0,
    options: OnlineOptions | None = None,
    memory: int | str = MEMORY,
    progress: Progress = None,
) -> OnlineCode:
    """Code labels one after the other, each with probabilities predicted from the labels before it.

    A receiver that has the rows and the same kernel or learner decodes the labels; no network and no weights are sent. The
    length is what the labels cost a learner, and grows by the information of label noise::

        bits = header + coder + Σ_i −log₂ q_i(y_i),        q_i from y_1, ..., y_{i−1} and the rows

    From a kernel, q_i mixes Gaussian process regressions of one-hot labels, with blocks of one row: one Cholesky
    factorization for each kernel and ridge predicts every row from those before it, without retraining. From a function
    ``train(x, y)``, the learner is trained again whenever the number of known labels has grown by ``options.growth``. In
    both, a Bayesian mixture over ridges, temperatures and floors (``options``) decides, and a uniform expert of prior weight
    1/2, so that random labels cost at most n log₂ C + 1 bits, and save d bits with a probability of at most 2^−d.

    The kernel must not depend on the labels. The tangent kernel of a network that was trained on them does: with it, the
    length is not that of a code. Use ``km.infinite_ntk``, an RBF kernel, or the tangent kernel of an untrained network.

    Args:
        source: kernel (n, n), a list of kernels, a dict of kernels by name; or a function ``train(x, y)`` that returns
            ``predict_proba(x) -> (m, C)`` or a fitted scikit-learn classifier. A symmetric KernelStore is read in blocks and
            takes half of a matrix of memory.
        y: (n,) class indices.
        x: rows of the learner: an array, a tensor, or a dict or tuple of them. The learner is given arrays if x is an array,
            otherwise tensors.
        n_classes: number C of classes; None: the largest label plus one. A receiver is assumed to know it.
        order_seed: seed of the random order in which rows are coded; seeds above 0 cost one or more bytes. Lengths depend
            on the order: report the mean of several (``lengths_over_orders``), never the shortest.
        options: grids of the mixture, and blocks; None: ``OnlineOptions()``.
        memory: limit of what is allocated besides the kernels in float64 and a learner, in bytes or as text such as "4GiB".
        progress: called with (rows done, n), with a learner.

    Returns:
        OnlineCode: bits, bits per example, weights of the experts, the stream.

    Raises:
        InputError: kernels that are not square, finite, of the same rows, or have a negative diagonal entry; labels that are
            not class indices or do not fit the rows; a learner whose predictions are not probabilities of C classes, or that
            raises an error; arrays that exceed ``memory``.
        NumericalError: an asymmetric kernel, or one that is not positive definite with the smallest ridge.

    Cost: for each kernel and ridge n³/3 + 2 n² C operations; memory: four n² float64 arrays besides the
    kernels (3.2 GB for 10,000 rows), and 8 (kernels × ridges + 7) n C bytes. Decoding holds kernels × ridges n² arrays more.
    From a learner: its training on about log(n / 8) / log(growth) growing subsets.

    A decoder trains again, and needs the same predictions up to ``tolerance`` of the result. Random initialization is
    reproduced: the global generators of Python, NumPy and torch (CPU) are seeded before each training and restored after it.
    Training on a GPU, or with another number of threads, may not be. With torch, e.g.::

        def train(x, y):
            model = nn.Linear(x.shape[1], 10)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            for _ in range(100):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            return lambda rows: model(rows).softmax(1)

    Source: prequential codes: Dawid 1984, Blier and Ollivier 2018; the exact code of a kernel with blocks of one row:
    derived here.

    >>> x = torch.linspace(0, 1, 40, dtype=torch.float64)
    >>> kernel = torch.exp(-((x[:, None] - x) ** 2) / 0.1)
    >>> code = online_code(kernel, x > 0.5)
    >>> code.ideal < 0.6 * code.uniform
    True
    >>> bool((OnlineCode.decode(code.encode(), kernel) == (x > 0.5)).all())
    True
    """
    options = OnlineOptions() if options is None else options
    check_instance(options, "options", OnlineOptions)
    seed, report = as_seed(order_seed, "order_seed"), as_progress(progress, "online code", "row")
    C = None if n_classes is None else as_count(n_classes, "n_classes", maximum=MAX_CLASSES)
    max_bytes, checked = as_bytes(memory), as_source(source, x, streamed=True)
    labels = as_labels(y, "y", n=checked.n, n_classes=MAX_CLASSES if C is None else C).cpu().clone()
    C = int(labels.max()) + 1 if C is None else C
    order = row_order(checked.n, seed)
    scores = checked.scores(C, options, order, report)
    mixture, ordered = mixture_of(scores, C, options), labels.numpy()[order]
    check_memory(scores, mixture, max_bytes)
    predictions = mixture.predict_all(scores, ordered)
    q = predictions.probabilities
    stream = encode_labels(q, ordered, seed)
    per_example = np.empty(len(q))
    per_example[order] = np.abs(
        np.log2(np.minimum(q[np.arange(len(q)), ordered], 1.0))
    )  # q is at most 1, but for rounding
    wrong = np.empty(len(q), dtype=bool)
    wrong[order] = q.argmax(1) != ordered
    return OnlineCode(
        bits=stream.bits,
        per_example=torch.from_numpy(per_example),
        wrong=torch.from_numpy(wrong),
        labels=labels,
        n_classes=C,
        expert_names=mixture.names(scores.names),
        expert_weights=torch.from_numpy(predictions.posterior),
        order_seed=seed,
        kind=checked.kind,
        options=options,
        stream=torch.from_numpy(np.frombuffer(stream.data, dtype=np.uint8).copy()),
        tolerance=stream.margin / 2.0 ** precision(C),
    )


def lengths_over_orders(
    source: Kernels | Train,
    y: ArrayLike,
    *,
    n_orders: int = 6,
    x: Batch | None = None,
    n_classes: int | None = None,
    options: OnlineOptions | None = None,
    memory: int | str = MEMORY,
    progress: Progress = None,
) -> Tensor:
    """Return the ideal lengths of :func:`online_code` for the order seeds 0, 1, ..., (n_orders,) float64, in bits.

    Their mean and standard deviation say how much the length depends on the order of the rows. The shortest is not the
    length of a code unless log₂ n_orders bits are paid for the choice.

    The number of orders is ``n_orders``; ``progress`` is called with (orders done, all orders); the other arguments are
    those of :func:`online_code`.

    Raises:
        InputError, NumericalError: as :func:`online_code`.

    Cost: n_orders times that of :func:`online_code`.

    >>> x = torch.linspace(0, 1, 30, dtype=torch.float64)
    >>> lengths = lengths_over_orders(torch.exp(-((x[:, None] - x) ** 2)), x > 0.5, n_orders=3)
    >>> bool((lengths < 30).all())
    True
    """
    n_orders, report = as_count(n_orders, "n_orders", maximum=1000), as_progress(progress, "orders", "order")
    lengths = torch.empty(n_orders, dtype=torch.float64)
    for seed in range(n_orders):
        code = online_code(
            source, y, x=x, n_classes=n_classes, order_seed=seed, options=options, memory=memory, progress=False
        )
        lengths[seed] = code.ideal
        report(seed + 1, n_orders)
    return lengths
