"""Shipped to users for their own tests: networks of every supported layer, and the rows they take.

``cases`` holds a network with its rows; ``modules`` the small networks that use parameters in unusual ways; ``zoo`` one
named case for each feature; ``kernels`` linear systems, good ones and ones broken in a chosen way; ``layers`` and
``strategies`` draw random compositions (these two need ``hypothesis``).
"""
