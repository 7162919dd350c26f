"""Demonstration: what the built-in model remembers of canaries and documents, with every control, for one seed."""

import math
import time
from dataclasses import dataclass

import torch

from experiments.text_memorization.parts.recall import TWINS, recall
from kernelmem import text
from kernelmem.core import seed_sequence

__all__ = ["ALL", "Demonstrations", "demonstration"]

ALL = "all"


@dataclass(frozen=True)
class Demonstrations:
    """Size of the demonstration, and of the extraction test on its documents."""

    n_documents: int = 800
    n_canaries: int = 80
    epochs: int = 12
    hidden: int = 200
    prefix: int = 64
    suffix: int = 16
    samples: int = 255
    max_nodes: int = 20_000
    fresh_sets: int = 4
    """Sets of canaries that no model saw, of ``n_canaries`` pairs each: the null of exposure."""


def demonstration(setting: Demonstrations, seed: int) -> list[dict]:
    """Return a record for each number of copies (0: twins), and one of the whole."""
    start = time.process_time()
    shown = text.demonstration(
        seed=seed,
        n_documents=setting.n_documents,
        n_canaries=setting.n_canaries,
        epochs=setting.epochs,
        hidden=setting.hidden,
        progress=False,
    )
    trained = time.process_time()
    lm = text.causal_lm(shown.model, bos=shown.bos)
    recalled, after_bos = recall(lm, shown.canaries, shown.contexts), recall(lm, shown.canaries, ())
    context = shown.contexts[0].tolist()
    exposed, exposed_after_bos = (exposure(setting, lm, shown.canaries, before, seed) for before in (context, []))
    pairs = text.paired_test(-recalled.bits.mean(0), shown.canaries, seed=seed)
    records: list[dict] = []
    for tier, tier_after_bos in zip(exposed.tiers, exposed_after_bos.tiers, strict=True):
        chosen = exposed.copies == tier.repetitions
        record = {"copies": tier.repetitions or "twins", **recalled.record(tier.repetitions)}
        record |= {"exposure": tier.mean, "exact_ranks": tier.n_exact, "rank_1": int((exposed.rank[chosen] == 1).sum())}
        record |= {f"{name}_after_bos": value for name, value in after_bos.record(tier.repetitions).items()}
        record["exposure_after_bos"] = tier_after_bos.mean
        if tier.repetitions == TWINS:
            record["z"] = (tier.mean - tier.null_mean) / tier.null_se
            record["z_after_bos"] = (tier_after_bos.mean - tier.null_mean) / tier.null_se
        records.append(record)
    whole: dict = {"copies": ALL, "training_seconds": trained - start, "canary_share": shown.rows.canary_share}
    whole |= {"pairs_right": pairs.all_pairs.n_right, "epsilon": pairs.epsilon, "ceiling": pairs.all_pairs.ceiling}
    whole |= documents(setting, shown, lm, seed)
    whole["audit_seconds"] = time.process_time() - trained
    return [*records, whole | fresh_canaries(setting, lm, context, seed)]


def exposure(
    setting: Demonstrations, lm: text.CausalLM, canaries: text.Canaries, context: list[int], seed: int
) -> text.SecretExposure:
    """Return the exposure of the canaries after these token ids."""
    return text.exposure(
        lm,
        canaries,
        context=context,
        samples=setting.samples,
        max_nodes=setting.max_nodes,
        seed=seed,
        progress=False,
    )


def fresh_canaries(setting: Demonstrations, lm: text.CausalLM, context: list[int], seed: int) -> dict[str, float]:
    """Return the mean exposure of canaries that were never inserted, and its z-score: the null."""
    sets = range(setting.fresh_sets)
    seeds = seed_sequence(seed, [f"fresh canaries {i}" for i in sets])
    designs = [
        text.canaries(setting.n_canaries, text.encode_characters, seed=seeds[f"fresh canaries {i}"]) for i in sets
    ]
    found = [exposure(setting, lm, design, context, seed) for design in designs]
    values = torch.cat([each.exposure.flatten() for each in found])
    twins = found[0].tiers[0]
    error = twins.null_se * math.sqrt(twins.n_canaries / len(values))
    mean = float(values.mean())
    return {"fresh_exposure": mean, "fresh_expected": twins.null_mean, "fresh_z": (mean - twins.null_mean) / error}


def documents(setting: Demonstrations, shown: text.Demonstration, lm: text.CausalLM, seed: int) -> dict[str, float]:
    """Return membership with its gates, and extraction with its excess over unseen documents."""
    assert shown.reference_model is not None
    reference = text.causal_lm(shown.reference_model, bos=shown.bos)
    membership = text.text_membership(
        lm,
        shown.members,
        shown.unseen,
        reference=reference,
        texts=(shown.member_texts, shown.unseen_texts),
        seed=seed,
    )
    found = {f"gate_{gate.name}": gate.auroc.value for gate in membership.gates}
    found["gates_failed"] = len(membership.failed)
    for name, rates in membership.results.items():
        found |= {f"auroc_{name}": rates.auroc.value, f"tpr_{name}": rates.rates[0].value}
    extracted = text.extraction(lm, shown.members, prefix=setting.prefix, suffix=setting.suffix, unseen=shown.unseen)
    excess = extracted.excess()
    found |= {"extracted": extracted.rate().value, "extracted_unseen": extracted.unseen_rate().value}
    return found | {"excess": excess.value, "excess_low": excess.low, "excess_high": excess.high}
