"""Where compiled kernels get the memory of their results.

They look `empty` up here at every call, so that a test can hand them memory filled with NaN, or
memory that ends at a guard page, and see a byte that is left unwritten or touched beyond the end.
"""

from numpy import empty

__all__ = ["empty"]
