"""Memorization of a fine-tune
===========================

Memorization of a fine-tune: what a LoRA adapter learned, what it cost, and which secrets it holds.

A small GPT-2 with random weights is trained here on some documents, then fine-tuned with a LoRA adapter on others, with
canaries among them: random secrets, each inserted if a coin says so. Their twins, which the coin left out, are the control.

Needs transformers and peft. Run: python examples/memorization_of_a_fine_tune.py (SMALL=1 for a quick one that learns little)
"""

import os
import warnings
from pathlib import Path

import peft
import torch
import transformers

from kernelmem import text

warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # by peft
SMALL = bool(os.environ.get("SMALL"))
blocks = text.topic_blocks(64 if SMALL else 128)
n = 20 if SMALL else 100
old, new, unseen = blocks[::7][: 2 * n], blocks[1::7][:n], blocks[3::7][:n]
encode, BOS = text.encode_characters, 0

# The base model, and old documents that it was trained on
torch.manual_seed(0)
dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
config = transformers.GPT2Config(
    vocab_size=97, n_positions=160, n_embd=64, n_layer=2, n_head=4, bos_token_id=BOS, eos_token_id=BOS, **dropout
)
model = transformers.GPT2LMHeadModel(config)
recipe = text.TextTraining(epochs=1 if SMALL else 8, lr=3e-3)
text.train_language_model(model, [encode(document) for document in old], recipe, bos=BOS)

# Fine-tuning rows: new documents, and copies of canaries, each after other text. The coins are in `canaries`.
canaries = text.canaries(6 if SMALL else 24, encode, tiers=(1, 4, 16), seed=1)
rows = canaries.insert(new, encode, seed=2)
print(rows)
print(text.coverage(canaries, rows), "\n")  # every copy receives loss, no twin is in the data

lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
tuned = peft.get_peft_model(model, lora)
recipe = text.TextTraining(epochs=1 if SMALL else 10, lr=1e-2)
text.train_language_model(tuned, rows.ids, recipe, bos=BOS, seed=3)

# What it learned and lost. The base is the same model with its adapter switched off; unseen documents are the control.
base, after = (text.causal_lm(tuned, bos=BOS, adapter=on) for on in (False, True))
groups = {"trained": new, "unseen": unseen, "old": old}
ids = {name: [encode(document) for document in documents] for name, documents in groups.items()}
print(text.compare(base, after, groups=ids, membership=("trained", "unseen"), progress=False), "\n")

# Secrets are asked for after text like that before the copies, here from a document that was not trained on: a model may
# not know them in another context. Twins read what any secret would.
context = encode(unseen[0][:24] + "\n")
exposure = text.exposure(after, canaries, context=context, samples=7 if SMALL else 127, max_nodes=2000, progress=False)
print(exposure, "\n")
print(text.paired_test(-exposure.bits, canaries))

out = Path("out/exposure.png")
out.parent.mkdir(parents=True, exist_ok=True)
exposure.plot().savefig(out, dpi=120)
print(f"\nfigure: {out}")
