# cython: language_level=3, binding=True, freethreading_compatible=True
# cython: boundscheck=False, cdivision=True
"""The compiled kernels, tier baseline: the flags that setup.py gives to this module make the difference."""

include "kernels.pxi"
