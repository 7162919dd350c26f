"""Path kernel of a recorded run, and the kernel machines built on it.

- ``path_kernel.py``: the tangent kernel averaged along the path of the weights;
- ``exact_kernel_machine.py``: the kernel machine that equals the network, with atoms (example, step);
- ``domingos_kernel_machine.py``: one atom per example, with coefficients that depend on x;
- ``kernel_at_weights.py``: the tangent kernel at any recorded weights;
- ``example_gradients.py``: tangents and loss derivatives of the examples of a step.
"""
