# cython: language_level=3, freethreading_compatible=True
"""The thread pool of the compiled kernels (csrc/pool.h), and how many threads it may use."""

from cpython.pycapsule cimport PyCapsule_New

cdef extern from "pool.c.h":
    ctypedef struct pool_api:
        pass
    const char *POOL_CAPSULE
    pool_api pool_table
    int pool_init()
    int pool_threads()
    void pool_set_threads(int n, int cores) nogil
    unsigned pool_jobs()
    size_t pool_scratch_bytes()
    void pool_release_scratch() nogil


if pool_init():
    raise ImportError("the thread pool could not be set up")

api = PyCapsule_New(&pool_table, POOL_CAPSULE, NULL)


def get_num_threads():
    """How many threads a kernel may use, the calling one included."""
    return pool_threads()


def set_num_threads(int n, int cores):
    """Use up to `n` threads on `cores` cores; idle ones spin for a moment only where n <= cores."""
    with nogil:  # a job of another thread may have to end first
        pool_set_threads(n, cores)


def jobs():
    """How many jobs the pool has shared among threads, modulo 2**32."""
    return pool_jobs()


def scratch_bytes():
    """Bytes of scratch memory that the threads keep for their next kernel, all threads together."""
    return pool_scratch_bytes()


def release_scratch():
    """Free the scratch memory of the calling thread and of the pool, whose threads end."""
    with nogil:  # a job of another thread may have to end first
        pool_release_scratch()
