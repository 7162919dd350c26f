"""Engine: computes kernels of two sets of rows as a plan says.

plan         tile sizes, operation and byte counts
methods      contraction method of each parameter group
backward     output gradients of one forward pass, direction by direction
accumulate   tangents put together, contractions added up, the symmetric half filled in
engine       the loop over tiles, or over directions
"""
