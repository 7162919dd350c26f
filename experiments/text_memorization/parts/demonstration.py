"""Demonstration: what the built-in model remembers of canaries and documents, with every control, for one seed."""

import time
from dataclasses import dataclass

from experiments.text_memorization.parts.recall import TWINS, recall
from kernelmem import text

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
    recalled = recall(lm, shown.canaries, shown.contexts)
    exposed = text.exposure(
        lm,
        shown.canaries,
        context=shown.contexts[0].tolist(),
        samples=setting.samples,
        max_nodes=setting.max_nodes,
        seed=seed,
        progress=False,
    )
    pairs = text.paired_test(-recalled.bits.mean(0), shown.canaries, seed=seed)
    records: list[dict] = []
    for tier in exposed.tiers:
        chosen = exposed.copies == tier.repetitions
        record = {"copies": tier.repetitions or "twins", **recalled.record(tier.repetitions)}
        record |= {"exposure": tier.mean, "exact_ranks": tier.n_exact, "rank_1": int((exposed.rank[chosen] == 1).sum())}
        if tier.repetitions == TWINS:
            record["z"] = (tier.mean - tier.null_mean) / tier.null_se
        records.append(record)
    whole: dict = {"copies": ALL, "training_seconds": trained - start, "canary_share": shown.rows.canary_share}
    whole |= {"pairs_right": pairs.all_pairs.n_right, "epsilon": pairs.epsilon, "ceiling": pairs.all_pairs.ceiling}
    whole |= documents(setting, shown, lm, seed)
    whole["audit_seconds"] = time.process_time() - trained
    return [*records, whole]


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
