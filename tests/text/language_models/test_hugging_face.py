"""kernelmem.text.language_models: models of transformers and adapters of PEFT, which are recognized without an import."""

import copy
import math

import pytest
import torch

from kernelmem import InputError, UnsupportedModelError
from kernelmem.text import causal_lm, compare, neighbour_memory, token_losses
from tests.text.language_models.test_prefixes import assert_extended_as_read_again
from tests.text.small_models import V, random_documents

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
TEXT = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {"num_key_value_heads": 1, "max_position_embeddings": 16, **SIZES, **TEXT}
DOCUMENTS = [torch.tensor([0, 0]), *random_documents(3, 0, 1, 12, 7, 12)]  # token 0 is padding in the configuration


def model_of(kind, target="ForCausalLM", **options):
    """A small model with random weights, large enough for probabilities that are far from uniform."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}{target}")(getattr(transformers, f"{kind}Config")(**options))
    return perturbed(model)


def perturbed(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def gpt2():
    return model_of("GPT2", "LMHeadModel", n_positions=16, n_embd=8, n_layer=1, n_head=2, **TEXT)


def lora(base, **options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, **options)
    return peft.get_peft_model(base, config)


def prompt_tuned(base):
    peft = pytest.importorskip("peft")
    return perturbed(peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)))


MODELS = {
    "GPT-2": gpt2,
    "Llama": lambda: model_of("Llama", **LLAMA),
    "Llama, eager": lambda: model_of("Llama", attn_implementation="eager", **LLAMA),
    "GPT-NeoX": lambda: model_of("GPTNeoX", max_position_embeddings=16, **SIZES, **TEXT),
    "Mamba": lambda: model_of("Mamba", hidden_size=8, state_size=4, num_hidden_layers=1, conv_kernel=3, **TEXT),
    "LoRA": lambda: perturbed(lora(gpt2())),
    "LoRA, CAUSAL_LM": lambda: perturbed(lora(gpt2(), task_type="CAUSAL_LM")),
    "prompt tuning": lambda: prompt_tuned(gpt2()),
}
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


@pytest.mark.parametrize("name", MODELS)
def test_losses_do_not_depend_on_the_batch(name):
    model = MODELS[name]()
    for dtype, tolerance in ((torch.float32, 1e-5 / math.log(2)), (torch.float64, 1e-12)):
        lm = causal_lm(model.to(dtype), bos=1)
        together = token_losses(lm, DOCUMENTS).per_document()
        alone = torch.cat([token_losses(lm, [ids]).per_document() for ids in DOCUMENTS])
        torch.testing.assert_close(together, alone, rtol=0, atol=tolerance)
    virtual = 3 if name == "prompt tuning" else 0  # logits before those of the document
    with torch.no_grad():  # the reference: one document without padding, mask or batch, through the user's own module
        logits = model.eval()(torch.tensor([[1, *DOCUMENTS[4].tolist()]])).logits[0, virtual:-1]
    bits = -logits.double().log_softmax(1)[range(12), DOCUMENTS[4]].sum() / math.log(2)
    is_rounded = logits.dtype == torch.float32  # by Mamba, whatever its weights
    torch.testing.assert_close(alone[4], bits, rtol=0, atol=1e-5 if is_rounded else 1e-11)


def test_padded_batches_of_tokenizers():
    lm = causal_lm(gpt2(), bos=1)
    rows = {"input_ids": torch.tensor([[5, 3, 0], [0, 0, 4]]), "attention_mask": torch.tensor([[1, 1, 0], [0, 1, 1]])}
    batch = transformers.BatchEncoding(rows)
    assert torch.equal(token_losses(lm, batch).token_bits, token_losses(lm, [[5, 3], [0, 4]]).token_bits)


def test_documents_beyond_the_context_are_refused():
    lm = causal_lm(model_of("Llama", **LLAMA), bos=1)
    assert lm.context == 16
    with pytest.raises(ValueError, match="window=16"):
        token_losses(lm, [[3] * 17])
    assert len(token_losses(lm, [[3] * 17], window=16).token_bits) == 17


def test_virtual_tokens_count_for_the_context():
    lm = causal_lm(prompt_tuned(gpt2()), bos=1)
    assert lm.context == 13
    assert len(token_losses(lm, [[3] * 13]).token_bits) == 13
    with pytest.raises(ValueError, match="window=13"):
        token_losses(lm, [[3] * 14])


def test_bidirectional_and_encoder_models_are_refused():
    for target in ("LMHeadModel", "ForMaskedLM"):
        with pytest.raises(UnsupportedModelError, match=f"bidirectional Bert{target}"):
            causal_lm(model_of("Bert", target, **SIZES, **TEXT))


class TestAdapters:
    def test_off_is_the_base_to_the_bit(self):
        base = gpt2()
        bits = token_losses(causal_lm(base, bos=1), DOCUMENTS).token_bits
        adapted = perturbed(lora(copy.deepcopy(base)))
        off = token_losses(causal_lm(adapted, bos=1, adapter=False), DOCUMENTS).token_bits
        on = token_losses(causal_lm(adapted, bos=1, adapter=True), DOCUMENTS).token_bits
        assert torch.equal(off, bits)
        assert (on - bits).abs().max() > 0.1
        assert torch.equal(token_losses(causal_lm(adapted, bos=1), DOCUMENTS).token_bits, on)
        assert not any(getattr(module, "disable_adapters", False) is True for module in adapted.modules())

    def test_an_inert_adapter_is_refused_by_name(self):
        fresh = lora(gpt2())
        with pytest.raises(UnsupportedModelError, match=r'adapter "default" is inert'):
            causal_lm(fresh, bos=1, adapter=True)
        assert torch.equal(
            token_losses(causal_lm(fresh, bos=1), DOCUMENTS).token_bits,
            token_losses(causal_lm(gpt2(), bos=1), DOCUMENTS).token_bits,
        )

    def test_an_adapter_of_few_tokens_has_an_effect(self):
        """An adapter of embeddings that changes one token, which the probe of causality does not have."""
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(gpt2(), peft.LoraConfig(r=2, target_modules=["wte"]))
        with torch.no_grad():
            embedding = model.base_model.model.transformer.wte
            embedding.lora_embedding_A["default"][:, 10] = 1.0
            embedding.lora_embedding_B["default"].fill_(1.0)
        assert causal_lm(model, bos=1, adapter=True).vocabulary == V

    @pytest.mark.parametrize(
        ("make", "match"),
        [
            (gpt2, "without adapter layers"),
            (lambda: lora(gpt2()).merge_and_unload(), "without adapter layers"),
            (lambda: merged(perturbed(lora(gpt2()))), "merged"),
            (lambda: perturbed(lora(gpt2(), bias="lora_only")), "biases"),
        ],
    )
    def test_what_has_no_base_is_refused(self, make, match):
        with pytest.raises(UnsupportedModelError, match=match):
            causal_lm(make(), bos=1, adapter=False)


def merged(model):
    model.merge_adapter()
    return model


def test_comparison_of_an_adapter_with_its_base():
    base, documents = gpt2(), {"all": [[1, 5, 2], [3, 3]]}
    fresh = lora(copy.deepcopy(base))  # its second factor is 0
    off, untrained = causal_lm(fresh, bos=1, adapter=False), causal_lm(fresh, bos=1)
    for after in (off, untrained):  # 0.0 to the bit
        with pytest.raises(InputError, match="equal bits"):
            compare(causal_lm(base, bos=1), after, groups=documents)
    with pytest.raises(InputError, match="equal bits"):
        compare(off, untrained, groups=documents)
    trained = perturbed(fresh)
    change = compare(
        causal_lm(trained, bos=1, adapter=False), causal_lm(trained, bos=1, adapter=True), groups=documents
    )
    assert torch.equal(change.before, token_losses(causal_lm(base, bos=1), documents["all"]).per_document())
    assert bool((change.gain != 0).all())


@pytest.mark.parametrize("name", MODELS)
def test_caches_give_what_whole_documents_give(name):
    model = MODELS[name]().double()
    rounded = name == "Mamba"  # its logits are float32
    prefixes = assert_extended_as_read_again(causal_lm(model, bos=1), tolerance=1e-5 if rounded else 1e-12)
    assert (prefixes.stepper is None) == (name == "prompt tuning")  # it puts its vectors before every call


@pytest.mark.parametrize("name", ["GPT-2", "LoRA"])
def test_memory_of_documents_over_the_last_hidden_state(name):
    lm = causal_lm(MODELS[name]().double(), bos=1)
    store, unseen = random_documents(7, 3, 9), random_documents(5, 4, seed=1)
    default = neighbour_memory(lm, store, unseen, k=2)
    state = lambda model, ids: model(ids, output_hidden_states=True).hidden_states[-1]  # noqa: E731
    chosen = neighbour_memory(lm, store, unseen, k=2, state=state)
    torch.testing.assert_close(default.token_bits, chosen.token_bits, rtol=0, atol=1e-12)
    assert bool((default.memorization[:3] > 0).all())
