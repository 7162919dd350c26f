"""Checks of a training step that the recorder makes when the step happens.

- ``forward_observer``: random state, number and precision of the forward passes of the training loop.
- ``backward_hooks``: gradient hooks, and a gradient without them.
- ``loss_rows``: outputs of shape (n, C), and losses of which each depends on its own row only.
- ``hidden_state``: changes of model, loss or forward that are neither in parameters nor in buffers.
- ``random_state``: temporary states of torch's random generator.
- ``optimizer_mirror``: the optimizer's formula, applied to copies of the weights.
"""
