"""Files of a recorded run.

- ``tape``: SQLite rows for steps, inputs and checkpoints, chained by hashes.
- ``step``: one step as a value, as a row, and as a link of the hash chain.
- ``average_log``: rows for updates of averaged weights.
- ``header``: facts about the whole run, checked before the first step.
- ``directory``: one recorder at a time, and errors of writing.
- ``inputs``: batches, with each distinct input stored once.
- ``checkpoints``: weights, optimizer state and random state in safetensors files.
- ``param_groups``: hyper-parameters of an optimizer as plain values.
- ``pytree``, ``npy``: trees of tensors and arrays as bytes.
"""
