"""kernelmem.recording.trainers.huggingface: Hugging Face models with keyword arguments and output objects."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.kernels import reference


@dataclass
class Output:
    """What such a model returns."""

    logits: torch.Tensor
    hidden_states: tuple | None = None


class TinyClassifier(nn.Module):
    """Token and position embeddings, one attention block with a padding mask, a pooler, a classifier."""

    def __init__(self, every_position=False):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, 8, padding_idx=0), nn.Embedding(6, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
        self.pooler, self.classifier = nn.Linear(8, 8), nn.Linear(8, 3)
        self.every_position = every_position

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        x = self.block(x, src_key_padding_mask=None if attention_mask is None else attention_mask == 0)
        return Output(self.classifier(x if self.every_position else torch.tanh(self.pooler(x[:, 0]))))


@pytest.fixture
def batch():
    torch.manual_seed(0)
    mask = torch.ones(5, 6, dtype=torch.int64)
    mask[1, 4:] = mask[3, 2:] = 0
    return {"input_ids": torch.randint(1, 20, (5, 6)) * mask, "attention_mask": mask}


@pytest.mark.parametrize("every_position", [False, True])
def test_kernel_of_a_model_with_dict_batches(batch, every_position):
    torch.manual_seed(0)
    model = TinyClassifier(every_position).double().eval()
    found = km.ntk(model, batch, forward=km.logits, outputs="full")
    expected = reference.ntk(model, batch, forward=km.logits, outputs="full")
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-12
    loss = km.ntk(model, batch, forward=km.logits, target="loss", labels=[0, 1, 2, 0, 1])
    assert loss.shape == (5, 5)


def test_unsupported_inputs_are_refused(batch):
    with pytest.raises(km.InputError, match="dict of tensors"):
        km.logits(TinyClassifier(), batch["input_ids"])

    class Headless(nn.Module):
        def forward(self, **batch):
            return Output(None)

    with pytest.raises(km.UnsupportedModelError, match="has no logits"):
        km.logits(Headless(), batch)


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "GPT2"])
def test_real_models_with_random_weights(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {
        "Bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
        "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12, "pad_token_id": 0},
    }[kind]
    config = getattr(transformers, f"{kind}Config")(vocab_size=30, num_labels=3, **small)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).double().eval()
    batch = {"input_ids": torch.randint(1, 30, (4, 7)), "attention_mask": torch.ones(4, 7, dtype=torch.int64)}
    found = km.ntk(model, batch, forward=km.logits)
    expected = reference.ntk(model, batch, forward=km.logits)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-10
