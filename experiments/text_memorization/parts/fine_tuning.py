"""Fine-tuning: what LoRA and full fine-tuning of a small GPT-2 learn, and what they lose."""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from experiments.text_memorization.parts.recall import recall
from kernelmem import text
from kernelmem.core import seed_sequence

__all__ = ["FineTunings", "fine_tunings"]

BOS, VOCABULARY, SIZE = 0, 97, 128
RATES = {"full": 6e-3, "lora r=4": 1e-2, "lora r=16": 1e-2}


@dataclass(frozen=True)
class FineTunings:
    """Base model and its training, fine-tunes and theirs."""

    rates: Mapping[str, float] = field(default_factory=lambda: dict(RATES))
    """Methods and their learning rates, within 4 % of the largest gain on the documents of the fine-tune, for seed 7: of 1.5e-3,
    3e-3, 6e-3 and 1e-2 for full fine-tuning, of 5e-3, 1e-2 and 3e-2 for LoRA."""
    n_old: int = 400
    old_pairs: int = 40
    n_documents: int = 160
    pairs: int = 40
    tiers: tuple[int, ...] = (1, 4, 8, 16)
    size: int = 64
    layers: int = 2
    epochs: int = 16
    """Of the base model."""
    lr: float = 3e-3
    """Of the base model."""
    fine_tune_epochs: int = 10


def fine_tunings(setting: FineTunings, seed: int) -> list[dict]:
    """Return a record for each method and number of copies (0: twins), and one of the documents."""
    seeds = seed_sequence(
        seed, ["division", "old canaries", "canaries", "rows", "weights", "order", "lora", "contexts"]
    )
    blocks = text.topic_blocks(SIZE)
    order = np.random.default_rng(seeds["division"]).permutation(len(blocks))
    texts = [blocks[i] for i in order[: setting.n_old + 3 * setting.n_documents]]
    old, new, unseen, other = np.split(
        np.array(texts, dtype=object), np.cumsum([setting.n_old, setting.n_documents, setting.n_documents])
    )
    old_pairs = text.canaries(
        setting.old_pairs, encode, format="code of cell {code}: {secret}", seed=seeds["old canaries"]
    )
    pairs = text.canaries(setting.pairs, encode, tiers=setting.tiers, seed=seeds["canaries"])
    contexts = [torch.tensor(encode(f"{piece[:24]}\n")) for piece in other[:5]]
    base = gpt2(setting, seeds["weights"])
    start = time.process_time()
    rows = old_pairs.insert(old.tolist(), encode, seed=seeds["rows"])
    recipe = text.TextTraining(epochs=setting.epochs, lr=setting.lr)
    text.train_language_model(base, rows.ids, recipe, bos=BOS, seed=seeds["order"])
    base_seconds = time.process_time() - start
    new_rows = pairs.insert(new.tolist(), encode, seed=seeds["rows"])
    groups = {"trained": ids(new), "unseen": ids(unseen), "old": ids(old)}
    before = text.causal_lm(base, bos=BOS)
    records: list[dict] = []
    for method, lr in setting.rates.items():
        start, model, is_lora = time.process_time(), copy.deepcopy(base), method != "full"
        if is_lora:
            model = with_lora(model, int(method.removeprefix("lora r=")), seeds["lora"])
        recipe = replace(recipe, epochs=setting.fine_tune_epochs, lr=lr)
        text.train_language_model(model, new_rows.ids, recipe, bos=BOS, seed=seeds["order"])
        seconds = time.process_time() - start
        after = text.causal_lm(model, bos=BOS, adapter=True if is_lora else None)
        base_lm = text.causal_lm(model, bos=BOS, adapter=False) if is_lora else before
        change = text.compare(base_lm, after, groups=groups, membership=("trained", "unseen"), progress=False)
        for name, design in (("new", pairs), ("old", old_pairs)):
            earlier, later = (recall(lm, design, contexts) for lm in (base_lm, after))
            for copies in later.copies.unique().tolist():
                found = later.record(copies)
                gained = earlier.record(copies)["secret_bits"] - found["secret_bits"]
                group = f"{name} canaries, {copies} copies" if copies else f"{name} twins"
                records.append({"method": method, "group": group, **found, "gained": gained})
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        costs = {"trained_parameters": parameters, "seconds": seconds, "base_seconds": base_seconds}
        for group in change.groups:
            record = {"method": method, "group": f"{group.name} documents"}
            record |= {"gained_per_token": group.per_token.value, "worse": group.worse.value}
            records.append(record | (membership(change) | costs if group.name == "trained" else {}))
    return records


def membership(change: text.Change) -> dict[str, float]:
    """Return AUROCs of trained documents against unseen ones: base model alone, fine-tune alone, fine-tune relative to base."""
    found = change.membership
    assert found is not None
    intervals = {"auroc_base": found.base, "auroc_loss": found.loss, "auroc_gain": found.gain}
    return {name: interval.value for name, interval in intervals.items() if interval is not None}


def encode(document: str) -> list[int]:
    return text.encode_characters(document)


def ids(documents: np.ndarray) -> list[Tensor]:
    return [torch.tensor(encode(document)) for document in documents]


def gpt2(setting: FineTunings, seed: int) -> nn.Module:
    """Return a GPT-2 with random weights, without dropout."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=SIZE + 32,
        n_embd=setting.size,
        n_layer=setting.layers,
        n_head=4,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        bos_token_id=BOS,
        eos_token_id=BOS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.GPT2LMHeadModel(config)


def with_lora(model: nn.Module, rank: int, seed: int) -> nn.Module:
    """Return the model with adapters of this rank on all its linear layers."""
    import peft

    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config)  # pyright: ignore
