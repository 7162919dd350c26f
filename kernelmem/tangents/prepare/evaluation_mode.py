"""Check of a model's modes: an example's output must not depend on its batch, or on random numbers."""

from torch import nn

from kernelmem.core.errors import UnsupportedModelError


def check_eval_mode(model: nn.Module) -> None:
    """Check that the output of an example does not depend on the other examples of its batch, or on random numbers.

    Raises:
        UnsupportedModelError: BatchNorm in training mode or without running statistics, or active dropout.
    """
    for name, module in model.named_modules():
        kind = str(getattr(module, "original_name", type(module).__name__))  # TorchScript hides the class
        is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) or kind.startswith("BatchNorm")
        uses_batch_statistics = is_batch_norm and module.running_mean is None
        if not module.training and not uses_batch_statistics:
            continue
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd) or kind.endswith("Dropout")
        is_active_dropout = is_dropout and getattr(module, "p", 0) > 0
        is_recurrent_with_dropout = isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1
        is_attention_with_dropout = isinstance(module, nn.MultiheadAttention) and module.dropout > 0
        if is_active_dropout or is_recurrent_with_dropout or is_attention_with_dropout or is_batch_norm:
            effect = "mixes the rows of a batch" if is_batch_norm else "drops units at random"
            raise UnsupportedModelError(
                f"module {name or '(root)'!r} ({kind})"
                f" {'in training mode' if module.training else 'without running statistics'}, which {effect}",
                expected="a model in which an example's output depends on that example alone",
                hint="call model.eval() first (and model.train() afterwards, to continue training)",
            )
