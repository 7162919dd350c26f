"""Causal language model: next-token log-probabilities of documents, whatever the batch they are computed in."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from kernelmem.core import InputError, NumericalError, UnsupportedModelError
from kernelmem.core.checks import as_count, as_flag, as_float_dtype, check_callable, check_model
from kernelmem.core.models import plain_execution, private_copy
from kernelmem.core.models.torch_func import standard_modes
from kernelmem.core.options import MEMORY, as_bytes
from kernelmem.text.documents import as_documents, check_vocabulary
from kernelmem.text.language_models.adapters import adapter_names, set_adapter, switch_adapter, virtual_tokens
from kernelmem.text.language_models.calls import LogitsFunction, check_logits, failure, ieee_precision, model_logits
from kernelmem.text.language_models.probes import check_causal, probe_ids
from kernelmem.text.language_models.states import StepFunction, advance_by, advance_of
from kernelmem.text.language_models.stepping import Stepper, checked_stepper, stepper_or_none

MAX_TOKENS = 2**14  # per batch: larger ones are not faster
COPIES = 8  # float64 arrays (n, T, V) that an analysis of a batch holds at a time
POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length")  # names in configurations of Hugging Face


def causal_lm(
    model: nn.Module,
    *,
    forward: LogitsFunction | None = None,
    step: StepFunction | None = None,
    bos: int | None = None,
    adapter: bool | None = None,
) -> "CausalLM":
    """Wrap a causal language model: any module whose output for token ids (n, T) is the logits (n, T, V).

    Hugging Face models and PEFT adapters are recognized by their interface. The weights are copied: training the model
    afterwards does not change the result. The copy computes in eval mode, in float64 if the model has float64 weights,
    otherwise in float32 (also for weights in half precision). Some models compute parts in float32 always: Llama
    the rotary angles, Mamba the logits.

    Args:
        model: the module. Its output may have the logits as ``.logits``, under the key "logits", or first in a tuple.
        forward: function of (model, ids (n, T)) that returns the logits (n, T, V); None: the model is called.
        step: function of (model, tokens (n,), state) that returns (logits (n, V), state) of the next token of n documents;
            state is None at their beginning, afterwards tensors in tuples, lists or dicts, each with a batch axis, as those
            of ``nn.LSTM``. Searches then read a shared beginning once. None: a method ``model.step(tokens, state)`` or
            the cache of a Hugging Face model, if they give what the model gives without; otherwise prefixes are read again.
        bos: token id put before every document, if training did so; None: the first token of a document has no loss.
            Documents must not contain it again, as those of some tokenizers do.
        adapter: for models with an adapter of PEFT: False switches it off (the base model, to the bit); True switches it
            on and requires that it changes the logits; None takes the model as it is.

    Raises:
        InputError: not a module, or ``bos`` is not a token id.
        UnsupportedModelError: outputs of another shape; a bidirectional model; a model that draws random numbers in eval
            mode or whose rows depend on each other; a ``step`` that gives other logits; no adapter, a merged one, or an
            adapter that changes nothing.

    >>> lm = causal_lm(nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5)), bos=0)
    >>> lm.vocabulary, [tuple(p.shape) for p in lm.log_probs([[1, 2, 4], []])]
    (5, [(3, 5), (0, 5)])
    """
    check_model(model)
    if forward is not None:
        check_callable(forward, "forward", ("model", "ids"))
    if step is not None:
        check_callable(step, "step", ("model", "tokens", "state"))
    bos = None if bos is None else as_count(bos, "bos", minimum=0)
    adapter = None if adapter is None else as_flag(adapter, "adapter")
    lm = CausalLM(model, forward=forward, step=step, bos=bos)
    if adapter is not None:
        set_adapter(lm.module(), enabled=adapter)
    lm.probe()
    if adapter:
        _check_effect(lm)
    if step is not None:
        lm.stepper(None)
    return lm


class CausalLM:
    """Causal language model, made by :func:`causal_lm`; logarithms are natural, results float64 on the CPU.

    Attributes:
        name: class of the model.
        bos: token id put before every document, or None.
        context: largest number of tokens of a pass, from the configuration of a Hugging Face model, or None.
        dtype: precision in which the model computes by default.
        stored_dtype: lowest precision among the weights that were passed, to which the model was rounded.
    """

    def __init__(
        self, model: nn.Module, *, forward: LogitsFunction | None, bos: int | None, step: StepFunction | None = None
    ) -> None:
        tensors = [t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()]
        self.name = type(model).__name__
        self.bos = bos
        self.dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
        self.stored_dtype = max((t.dtype for t in tensors), key=lambda t: torch.finfo(t).eps, default=self.dtype)
        config = getattr(model, "config", None)
        limits = [getattr(config, name, None) for name in POSITIONS]
        limit = next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)
        self.context = None if limit is None else max(1, limit - virtual_tokens(model))
        self._forward, self._step = forward, step
        self._vocabulary = 0
        self._copies: dict[torch.dtype, nn.Module] = {}
        self._steppers: dict[torch.dtype, Stepper | None] = {}
        copy = private_copy(model, dtype=self.dtype)
        self._copies[self.dtype] = copy.eval()
        tensor = next(iter([*copy.parameters(), *copy.buffers()]), None)
        self._device = torch.device("cpu") if tensor is None else tensor.device

    def __repr__(self) -> str:
        context = "" if self.context is None else f", context {self.context}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"CausalLM({self.name}, vocabulary {self.vocabulary}, bos {self.bos}{context}, {dtype})"

    @property
    def vocabulary(self) -> int:
        """Number V of tokens that the model gives probabilities to."""
        return self._vocabulary

    def log_probs(
        self, documents: object, *, dtype: torch.dtype | None = None, memory: int | str = MEMORY
    ) -> Iterator[Tensor]:
        """Iterate over the documents: log p(· | BOS, tokens before t) of every token t of each, (T_i, V).

        Without BOS the first token has no row: (T_i - 1, V). A document gives the same numbers in every batch, up to
        rounding (1e-12 in float64).

        Args:
            documents: token ids, as for :func:`kernelmem.text.as_documents`.
            dtype: precision of the computation, torch.float32 or torch.float64; None: that of the model.
            memory: largest number of bytes of the logits of a batch.

        Raises:
            InputError: ids outside the vocabulary, a document longer than the context of the model or too large for
                ``memory``. UnsupportedModelError: the model fails. NumericalError: NaN in the logits.
        """
        documents = as_documents(documents)
        check_vocabulary(documents, self.vocabulary)
        inputs = [self.inputs(ids) for ids in documents]
        self.check_inputs(inputs, "documents", memory)
        dtype = None if dtype is None else as_float_dtype(dtype)
        return self._in_order(inputs, dtype, memory)

    def next_log_probs(
        self, prefixes: object, *, dtype: torch.dtype | None = None, memory: int | str = MEMORY
    ) -> Tensor:
        """Return log p(· | BOS, prefix) of the token after each prefix, (n, V); arguments as for :meth:`log_probs`.

        Raises:
            InputError: also an empty prefix without BOS.
        """
        prefixes = as_documents(prefixes, "prefixes")
        check_vocabulary(prefixes, self.vocabulary, "prefixes")
        inputs = [self.with_bos(ids) for ids in prefixes]
        if not all(len(row) for row in inputs):
            raise InputError(
                "an empty prefix for a model without BOS",
                expected="at least one token before the next one",
                hint="pass bos= to causal_lm if training put such a token before every document",
            )
        self.check_inputs(inputs, "prefixes", memory)
        dtype = None if dtype is None else as_float_dtype(dtype)
        result = torch.zeros(len(inputs), self.vocabulary, dtype=torch.float64)
        for rows, log_probs in self.batches(inputs, dtype=dtype, memory=memory, last=True):
            result[rows] = log_probs[:, 0].cpu()
        return result

    def inputs(self, ids: Tensor) -> Tensor:
        """Return what the model reads to predict a document: BOS and all tokens but the last."""
        return self.with_bos(ids)[:-1] if len(ids) else ids

    def check_inputs(self, inputs: Sequence[Tensor], name: str, memory: int | str) -> None:
        """Check that the longest input fits the context of the model and ``memory``.

        Raises:
            InputError: it does not.
        """
        longest = max((len(row) for row in inputs), default=0)
        if self.context is not None and longest > self.context:
            raise InputError(
                f"{name} with up to {longest} tokens to read (with BOS) for a {self.name} of {self.context} positions",
                expected=f"at most {self.context} tokens",
                hint=f"pass window={self.context} to token_losses, or shorten the {name}",
            )
        n_bytes = longest * self._bytes_per_token
        if n_bytes > as_bytes(memory):
            raise InputError(
                f"{name} with up to {longest} tokens, whose log-probabilities of {self.vocabulary} tokens take"
                f" {n_bytes} bytes",
                expected=f"at most memory={memory}",
                hint=f"pass memory={n_bytes}, or a window to token_losses",
            )

    def batches(
        self, inputs: Sequence[Tensor], *, dtype: torch.dtype | None, memory: int | str, last: bool = False
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Iterate over batches of inputs of similar length: (numbers of the inputs, log-probabilities (b, T, V)).

        The log-probabilities are float64, on the device of the model if that has float64. Rows after the end of an input
        are undefined. Empty inputs are left out.

        Args:
            inputs: token ids that the model reads (with BOS).
            dtype: precision of the computation; None: that of the model.
            memory: largest number of bytes per batch.
            last: return the log-probabilities after the last token only, (b, 1, V).
        """
        limit = max(1, min(MAX_TOKENS, as_bytes(memory) // self._bytes_per_token))
        for rows in _batches_of([len(row) for row in inputs], limit):
            batch = [inputs[row] for row in rows]
            logits = self.evaluate(batch, dtype)
            lengths = torch.tensor([len(row) for row in batch], device=logits.device)
            if last:
                logits = logits[torch.arange(len(rows), device=logits.device), lengths - 1][:, None]
                lengths = torch.ones_like(lengths)
            log_probs = logits.to(torch.float64).log_softmax(2)
            check_defined(log_probs, lengths, self.name)
            yield rows, log_probs

    def module(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Return the private copy that computes in ``dtype``; None: in the precision of the model."""
        dtype = dtype or self.dtype
        if dtype not in self._copies:
            self._copies[dtype] = private_copy(self._copies[self.dtype], dtype=dtype)
        return self._copies[dtype]

    def stepper(self, dtype: torch.dtype | None) -> Stepper | None:
        """Return how the model is read token by token in ``dtype``, None if it is not.

        Raises:
            UnsupportedModelError: the model was given a ``step`` that gives other logits than the model.
        """
        dtype = dtype or self.dtype
        if dtype not in self._steppers:
            self._steppers[dtype] = self._find_stepper(dtype)
        return self._steppers[dtype]

    def probe(self) -> None:
        """Find the size of the vocabulary and check that the model is causal and treats documents by themselves."""
        first = 0 if self.bos is None else self.bos
        self._vocabulary = self.evaluate([torch.tensor([first])]).shape[2]
        check_causal(lambda ids, skip=0: self.evaluate(ids, skip=skip), self._vocabulary, first, self.name)

    def probes(self) -> Iterator[list[Tensor]]:
        """Iterate over inputs that find a difference between models: a few short ones, then every token by itself."""
        yield probe_ids(self._vocabulary, 0 if self.bos is None else self.bos)
        yield from (list(tokens[:, None]) for tokens in torch.arange(self._vocabulary).split(256))

    def _find_stepper(self, dtype: torch.dtype) -> Stepper | None:
        model = self.module(dtype)
        advance = advance_by(self._step) if self._step else None if self._forward else advance_of(model)
        if advance is None:
            return None
        stepper = Stepper(self.name, model, advance, [], self.vocabulary, self._device, self.computing)
        check = checked_stepper if self._step else stepper_or_none
        return check(stepper, lambda ids: self.evaluate(ids, dtype), self.bos or 0)

    @property
    def _bytes_per_token(self) -> int:
        return COPIES * 8 * self._vocabulary

    def with_bos(self, ids: Tensor) -> Tensor:
        """Return token ids after BOS, if the model has one."""
        return ids if self.bos is None else torch.cat([torch.tensor([self.bos]), ids])

    def _in_order(self, inputs: list[Tensor], dtype: torch.dtype | None, memory: int | str) -> Iterator[Tensor]:
        """Iterate over the log-probabilities of each input, keeping no more than ``memory`` of them."""
        limit, start = as_bytes(memory) // (8 * self.vocabulary), 0
        while start < len(inputs):
            stop, tokens = start + 1, len(inputs[start])
            while stop < len(inputs) and tokens + len(inputs[stop]) <= limit:
                tokens += len(inputs[stop])
                stop += 1
            part = inputs[start:stop]
            results = [torch.zeros(0, self.vocabulary, dtype=torch.float64)] * len(part)
            for rows, log_probs in self.batches(part, dtype=dtype, memory=memory):
                for row, values in zip(rows, log_probs, strict=True):
                    results[row] = values[: len(part[row])].cpu().clone()
            yield from results
            start = stop

    def evaluate(self, inputs: list[Tensor], dtype: torch.dtype | None = None, *, skip: int = 0) -> Tensor:
        """Return the logits (b, T, V) of the right-padded batch of several inputs; ``skip`` moves the random state."""
        lengths = torch.tensor([len(row) for row in inputs])
        ids = nn.utils.rnn.pad_sequence(inputs, batch_first=True).to(self._device)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(ids)
        model = self.module(dtype)
        with self.computing(tuple(ids.shape)):
            torch.rand(skip, device=self._device)
            if self._forward is None:
                logits = model_logits(model, ids, mask)
            else:
                logits = check_logits(self._forward(model, ids), len(ids), ids.shape[1], self.name)
        if self._vocabulary and logits.shape[2] != self._vocabulary:
            raise UnsupportedModelError(
                f"a {self.name} with logits of {logits.shape[2]} tokens for ids {tuple(ids.shape)}, and of"
                f" {self._vocabulary} for others",
                expected="the same vocabulary in every pass",
                hint="check the model, or pass forward=",
            )
        return cast("Tensor", logits.detach().cpu() if self._device.type == "mps" else logits.detach())

    @contextmanager
    def computing(self, shape: tuple[int, ...]) -> Iterator[None]:
        """Call the model inside a ``with`` block: standard modes, no gradients, random state kept, errors by name."""
        devices = [self._device] if self._device.type == "cuda" else []
        same_random_state = torch.random.fork_rng(devices) if self._device.type in ("cpu", "cuda") else nullcontext()
        try:
            with (
                standard_modes(),
                plain_execution(self._device),
                torch.no_grad(),
                same_random_state,
                ieee_precision(self._device),
            ):
                yield
        except Exception as error:
            raise failure(error, self.name, shape) from error


def _batches_of(lengths: list[int], limit: int) -> Iterator[list[int]]:
    """Iterate over groups of inputs of similar length, whose padded size is at most ``limit`` if they are several."""
    order = sorted((row for row, length in enumerate(lengths) if length), key=lambda row: (lengths[row], row))
    group: list[int] = []
    for row in order:
        if group and ((len(group) + 1) * lengths[row] > limit or lengths[row] > 8 + 1.25 * lengths[group[0]]):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def check_defined(log_probs: Tensor, lengths: Tensor, name: str) -> None:
    """Check that there is no NaN before the end of each input.

    Raises:
        NumericalError: there is one.
    """
    undefined = log_probs.sum(2).isnan()  # a sum with -inf is not NaN, since no log-probability is +inf
    undefined &= torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]
    if bool(undefined.any()):
        raise NumericalError(
            f"a {name} with logits that are NaN or infinite at {int(undefined.sum())} positions",
            expected="finite logits (or -inf for single tokens)",
            hint="the model has diverged, or overflows in this precision: pass dtype=torch.float64",
        )


def _check_effect(lm: CausalLM) -> None:
    """Check that the adapter that is on changes the logits.

    Raises:
        UnsupportedModelError: it does not: an inert adapter.
    """
    module = lm.module()
    for ids in lm.probes():
        logits = lm.evaluate(ids)
        switch_adapter(module, enabled=False)
        has_effect = not torch.equal(logits, lm.evaluate(ids))
        switch_adapter(module, enabled=True)
        if has_effect:
            return
    raise UnsupportedModelError(
        f"adapter=True for a {lm.name} whose adapter {adapter_names(module)} is inert: it changes no logit",
        expected="a trained adapter that is active",
        hint="check that the weights of the adapter were loaded and that it is active; pass adapter=None to use the model as"
        " it is",
    )
