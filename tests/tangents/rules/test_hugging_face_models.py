"""kernelmem.tangents.rules: Hugging Face models, with and without adapters of PEFT, have no parameter without a rule."""

import pytest
import torch

from kernelmem.core.batches import as_rows
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.recording import logits
from kernelmem.tangents.prepare import prepare
from kernelmem.tangents.rules import RULES
from kernelmem.tangents.survey import survey
from kernelmem.testing.closeness import assert_close, scale_of

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
TEXT = {"vocab_size": 40, "max_position_embeddings": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def model_of(kind, *, target="ForSequenceClassification", **options):
    """A small model of random weights, in eval mode."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(num_labels=3, **options)
    return getattr(transformers, f"{kind}{target}")(config).eval()


def text(n=4, *, types=False):
    ids = torch.randint(3, 40, (n, 6), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": (torch.arange(6) < torch.arange(4, 4 + n)[:, None]).long()}
    return batch | ({"token_type_ids": torch.arange(6).expand(n, 6).ge(3).long()} if types else {})


def images(n=4):
    return {"pixel_values": torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


def mixture(implementation):
    options = {"num_key_value_heads": 1, "num_local_experts": 3, "experts_implementation": implementation}
    return model_of("Mixtral", **SIZES, **TEXT, **options)


GPT2 = {"n_positions": 12, "n_embd": 8, "n_layer": 1, "n_head": 2}
DISTIL = {"dim": 8, "hidden_dim": 12, "n_layers": 1, "n_heads": 2}
MODELS = {
    "BERT": (lambda: model_of("Bert", **SIZES, **TEXT), text),
    "BERT, token types": (lambda: model_of("Bert", **SIZES, **TEXT), lambda: text(types=True)),
    "RoBERTa": (lambda: model_of("Roberta", **SIZES, **TEXT), text),
    "DistilBERT": (lambda: model_of("DistilBert", **DISTIL, **TEXT), text),
    "GPT-2": (lambda: model_of("GPT2", **GPT2, **{k: v for k, v in TEXT.items() if "max" not in k}), text),
    "Llama": (lambda: model_of("Llama", num_key_value_heads=1, **SIZES, **TEXT), text),
    "Mixtral, grouped": (lambda: mixture("grouped_mm"), text),
    "Mixtral, loop": (lambda: mixture("eager"), text),
    "Mixtral, batched": (lambda: mixture("batched_mm"), text),
    "ViT": (lambda: model_of("ViT", target="ForImageClassification", image_size=8, patch_size=4, **SIZES), images),
}
SINGLE_PRECISION = {"Mixtral, grouped"}  # torch has no grouped product in float64


def assert_no_dense_parameter(model, batch, dtype):
    model = model.to(dtype)
    batch = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
    rows = as_rows(batch)
    assert survey(prepare(model, rows, forward=logits), rows, RULES).dense == ()
    J = reference.jacobian(model, batch, forward=logits)
    K = ntk(model, batch, forward=logits)
    assert_close(K, reference.kernel_of(J, J), 1e-10 if dtype == torch.float64 else 1e-4, scale_of(J))


@pytest.mark.parametrize("name", MODELS)
def test_no_parameter_is_dense(name):
    make, batch = MODELS[name]
    assert_no_dense_parameter(make(), batch(), torch.float32 if name in SINGLE_PRECISION else torch.float64)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("adapter", ["LoRA", "DoRA", "IA3"])
def test_no_parameter_of_an_adapter_is_dense(adapter):
    peft = pytest.importorskip("peft")
    if adapter == "IA3":
        layers = {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]}
        config = peft.IA3Config(task_type="SEQ_CLS", **layers)
    else:
        layers = {"target_modules": ["query", "value", "output.dense"], "use_dora": adapter == "DoRA"}
        config = peft.LoraConfig(r=2, task_type="SEQ_CLS", lora_dropout=0.0, **layers)
    model = peft.get_peft_model(MODELS["BERT"][0](), config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # adapters begin as zeros or ones
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    assert_no_dense_parameter(model, text(), torch.float64)
