"""Valid calls of the analysis of texts and language models."""

import torch
from torch import nn

import kernelmem as km
from kernelmem import text
from tests.border.driver import Call

TEXTS = ["the same text twice", "the same text again", "", "another"]

LOG_P = torch.tensor([-3.0, -0.5, -40.0], dtype=torch.float64)
LM = text.causal_lm(nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4)).requires_grad_(requires_grad=False), bos=0)
FOUND = text.extraction(LM, [[1, 2, 3], [2, 2, 2]], unseen=[[3, 1, 2]], prefix=1, suffix=2)


NEAR = text.near_verbatim(LM, [[1, 2, 3], [2, 2, 2]], unseen=[[3, 1, 2]], prefix=1, suffix=2, ngram=1)


def near_arguments() -> dict[str, object]:
    arguments = extraction_arguments() | {"ngram": 1, "progress": False}
    return {name: value for name, value in arguments.items() if name not in ("reference", "sampling")}


def extraction_arguments() -> dict[str, object]:
    return {
        "lm": LM,
        "documents": [[1, 2, 3, 1], torch.tensor([2, 2, 2])],
        "prefix": 1,
        "suffix": 2,
        "stride": 1,
        "contexts": [[3]],
        "unseen": [[3, 1, 2]],
        "reference": text.ngram_model([[0, 1, 2, 3]]),
        "sampling": text.Sampling(temperature=0.5, top_k=3, top_p=0.9, n=10, p=0.5),
        "memory": "1GiB",
    }


def language_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4))


def document_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss, without the random numbers that dropout draws in training mode, and lazy layers for their weights."""
    with torch.random.fork_rng():
        return text.document_loss(model, batch)


PADDED = torch.tensor([[0, 1, 2], [3, 0, 0]])


def membership_arguments() -> dict[str, object]:
    return {
        "lm": LM,
        "members": [[1 + i % 3, 1 + i // 3 % 3, 1] for i in range(20)],
        "unseen": [[1 + i % 3, 2, 1 + i // 3 % 3] for i in range(20)],
        "reference": LM,
        "scores": ["loss", "min_k", "reference"],
        "k": 0.5,
        "texts": (["abc"] * 20, ["abd"] * 20),
        "level": 0.9,
        "seed": 0,
        "memory": "1GiB",
    }


def audit_arguments() -> dict[str, object]:
    options = {"encode": lambda text: [1 + ord(c) % 3 for c in text], "samples": 3, "contexts": [[1]], "n_listed": 2}
    return {
        "lm": LM,
        "train": [[1 + i % 3, 1 + i // 3 % 3, 1] for i in range(9)],
        "unseen": [[1 + i % 3, 2, 1 + i // 3 % 3, 1] for i in range(9)],
        "canaries": None,
        "reference": LM,
        "out": None,
        "seed": 0,
        "memory": "1GiB",
        "options": km.TextAuditOptions(**options),
        "progress": False,
    }


CALLS = {
    "text_audit": Call(km.text_audit, audit_arguments, examples=0.05),
    "TextAuditOptions": Call(
        km.TextAuditOptions,
        lambda: {
            "encode": lambda text: [1],
            "decode": lambda ids: "a",
            "epochs": 2,
            "prefix": 3,
            "suffix": 2,
            "n_documents": 30,
            "samples": 7,
            "repeat_length": 9,
            "n_listed": 3,
            "reveal": "all",
            "reason": "a test",
            "salt": "s",
            "name": "n",
            "model_name": None,
            "date": "2026-01-02",
            "overwrite": True,
        },
    ),
    "as_documents": Call(text.as_documents, lambda: {"value": PADDED.clone(), "lengths": [3, 1]}),
    "as_documents(dict)": Call(
        lambda input_ids, attention_mask: text.as_documents({"input_ids": input_ids, "attention_mask": attention_mask}),
        lambda: {"input_ids": PADDED.clone(), "attention_mask": [[1, 1, 1], [1, 0, 0]]},
    ),
    "causal_lm": Call(
        text.causal_lm,
        lambda: (
            {"model": language_model(), "forward": lambda model, ids: model(ids), "bos": 1, "adapter": None}
            | {"step": lambda model, tokens, state: (model(tokens), state)}
        ),
        examples=0.3,
    ),
    "CausalLM.log_probs": Call(
        lambda documents, dtype, memory: list(LM.log_probs(documents, dtype=dtype, memory=memory)),
        lambda: {"documents": [[0, 1, 2], [3], []], "dtype": torch.float64, "memory": "1MiB"},
    ),
    "CausalLM.next_log_probs": Call(
        LM.next_log_probs, lambda: {"prefixes": [[0, 1, 2], [3], []], "dtype": None, "memory": "1MiB"}
    ),
    "token_losses": Call(
        text.token_losses,
        lambda: {
            "lm": LM,
            "documents": [torch.tensor([0, 1, 2]), torch.tensor([3])],
            "targets": [torch.tensor([True, False, True]), [3]],
            "window": 2,
            "stride": 1,
            "dtype": torch.float32,
            "memory": "1MiB",
            "progress": False,
        },
    ),
    "token_losses(...).per_byte": Call(text.token_losses(LM, [[0, 1], [2]]).per_byte, lambda: {"texts": ["ab", b"c"]}),
    "document_loss": Call(
        document_loss,
        lambda: {"model": language_model(), "batch": {"input_ids": PADDED.clone(), "labels": PADDED.clone()}},
        changes=frozenset({"model"}),
    ),
    "document_batch": Call(
        text.document_batch, lambda: {"documents": [[0, 1], [2]], "bos": 3, "targets": [[True, False], [True]]}
    ),
    "suffix_array": Call(text.suffix_array, lambda: {"texts": list(TEXTS), "memory": "1GiB"}),
    "suffix_array(ids).count": Call(
        lambda texts, spans: text.suffix_array(texts).count(spans),
        lambda: {"texts": [[1, 2], [2]], "spans": [[2], [1]]},
    ),
    "duplicates": Call(text.duplicates, lambda: {"texts": list(TEXTS), "length": 8, "memory": "1GiB"}),
    "shared_text": Call(
        text.shared_text, lambda: {"documents": list(TEXTS), "others": list(TEXTS[:2]), "length": 8, "memory": "1GiB"}
    ),
    "near_duplicates": Call(
        text.near_duplicates,
        lambda: {"texts": list(TEXTS), "threshold": 0.5, "shingle": 3, "hashes": 32, "seed": 0, "memory": "1GiB"},
    ),
    "ngram_model": Call(
        text.ngram_model, lambda: {"documents": [[0, 1, 2], [1]], "order": 2, "vocabulary": 3, "memory": "1GiB"}
    ),
    "ngram_model.log_probs": Call(
        lambda documents, memory: list(text.ngram_model([[0, 1, 2]]).log_probs(documents, memory=memory)),
        lambda: {"documents": [[0, 1], [2]], "memory": "1GiB"},
    ),
    "ngram_model.next_log_probs": Call(
        text.ngram_model([[0, 1, 2]]).next_log_probs, lambda: {"prefixes": [[0, 1], []], "memory": "1GiB"}
    ),
    "extraction": Call(text.extraction, extraction_arguments, examples=0.5),
    "Extraction.rate": Call(FOUND.rate, lambda: {"method": "sampled", "context": 0, "level": 0.9}),
    "Extraction.excess": Call(FOUND.excess, lambda: {"method": "greedy", "context": None, "level": 0.9}),
    "Extraction.classes": Call(FOUND.classes, lambda: {"method": "greedy", "recited": 2}),
    "Extraction.spans": Call(
        FOUND.spans,
        lambda: {
            "method": "greedy",
            "documents": [[1, 2, 3], [2, 2, 2]],
            "corpus": [[1, 2], [2]],
            "decode": lambda ids: "a" * len(ids),
        },
    ),
    "Extraction.heat": Call(lambda document: FOUND.heat(document).clamp(min=-99), lambda: {"document": 1}),
    "near_verbatim": Call(text.near_verbatim, near_arguments, examples=0.3),
    "NearVerbatim.rate": Call(NEAR.rate, lambda: {"measure": "common", "at": 0.5, "level": 0.9}),
    "NearVerbatim.excess": Call(NEAR.excess, lambda: {"measure": "ngrams", "at": 0.5, "level": 0.9}),
    "extraction_strength": Call(text.extraction_strength, lambda: {"losses": text.token_losses(LM, [[0, 1], [2]])}),
    "text_template": Call(text.text_template, lambda: {"text": "1 2 3 4", "terms": 4}),
    "Sampling": Call(text.Sampling, lambda: {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "n": 10, "p": 0.5}),
    "Sampling.log_probs": Call(
        lambda **options: text.Sampling(**options).log_probs(LOG_P[None]), lambda: {"top_k": 2, "top_p": 0.5}
    ),
    "emission_probability": Call(text.emission_probability, lambda: {"log_p": LOG_P, "n": 10}),
    "log10_queries": Call(text.log10_queries, lambda: {"log_p": LOG_P, "p": 0.5}),
    "text_membership": Call(text.text_membership, membership_arguments, examples=0.1),
}
