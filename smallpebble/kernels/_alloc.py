"""Where compiled kernels get the memory of their results.

They look `empty` up here at every call, so that a test can hand them memory filled with NaN, or
memory that ends at a guard page, and see a byte that is left unwritten or touched beyond the end.
"""

try:
    from ._memory import empty, held, release
except ImportError:  # not compiled, or a NumPy without memory handlers
    from numpy import empty

    def held():
        """Bytes in use by arrays, kept for arrays to come, and the most in use at once: unknown."""
        return 0, 0, 0

    def release():
        """Nothing is kept."""


__all__ = ["empty", "held", "release"]
