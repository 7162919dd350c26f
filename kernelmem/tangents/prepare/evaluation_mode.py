"""Check of a model's modes: an example's output must not depend on its batch, or on random numbers."""

from torch import nn

from kernelmem.core.errors import UnsupportedModelError


def check_eval_mode(model: nn.Module) -> None:
    """Check that the output of an example does not depend on the other examples of its batch, or on random numbers.

    Raises:
        UnsupportedModelError: BatchNorm in training mode or without running statistics, or active dropout.
    """
    for name, module in model.named_modules():
        uses_batch_statistics = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
        if not module.training and not uses_batch_statistics:
            continue
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        is_recurrent_with_dropout = isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1
        is_attention_with_dropout = isinstance(module, nn.MultiheadAttention) and module.dropout > 0
        is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_dropout or is_recurrent_with_dropout or is_attention_with_dropout or is_batch_norm:
            effect = "mixes the rows of a batch" if is_batch_norm else "drops units at random"
            raise UnsupportedModelError(
                f"module {name or '(root)'!r} ({type(module).__name__})"
                f" {'in training mode' if module.training else 'without running statistics'}, which {effect}",
                expected="a model in which an example's output depends on that example alone",
                hint="call model.eval() first (and model.train() afterwards, to continue training)",
            )
