# cython: language_level=3, freethreading_compatible=True
"""Arrays whose memory is recycled (csrc/memory.c.h), by NumPy's hook for memory handlers (NEP 49).

The hook is set for the moment in which an array is made, so that no array but the kernels' own
results comes from here.
"""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

cimport numpy as cnp

import numpy as np

cdef extern from "memory.c.h":
    int memory_init()
    void *memory_malloc(void *, size_t)
    void *memory_calloc(void *, size_t, size_t)
    void *memory_realloc(void *, void *, size_t)
    void memory_free(void *, void *, size_t)
    void memory_release()
    size_t memory_kept_bytes, memory_used_bytes, memory_most_bytes

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyDataMemAllocator:
        void *ctx
        void *(*malloc)(void *, size_t)
        void *(*calloc)(void *, size_t, size_t)
        void *(*realloc)(void *, void *, size_t)
        void (*free)(void *, void *, size_t)
    ctypedef struct PyDataMem_Handler:
        char name[127]
        uint8_t version
        PyDataMemAllocator allocator
    object PyDataMem_SetHandler(object)

cdef enum:
    SMALLEST = 16384  # bytes; below, NumPy's own memory is as good
    FEW_AXES = 8

cdef PyDataMem_Handler handler
cdef object numpy_empty = np.empty
cdef object FLOAT32 = np.dtype(np.float32), FLOAT64 = np.dtype(np.float64)

cnp.import_array()
if memory_init():
    raise ImportError("the recycling of memory could not be set up")
memcpy(handler.name, b"smallpebble", 12)
handler.version = 1
handler.allocator.ctx = NULL
handler.allocator.malloc = memory_malloc
handler.allocator.calloc = memory_calloc
handler.allocator.realloc = memory_realloc
handler.allocator.free = memory_free
cdef object capsule = PyCapsule_New(&handler, b"mem_handler", NULL)


def empty(tuple shape, dtype):
    """As `numpy.empty`; large arrays are aligned to 64 bytes, in memory that may be recycled."""
    cdef double nbytes = 4 if dtype is FLOAT32 else 8 if dtype is FLOAT64 else dtype.itemsize
    cdef cnp.npy_intp size
    for size in shape:
        nbytes *= size
    if nbytes < SMALLEST:
        return new(shape, dtype)
    previous = PyDataMem_SetHandler(capsule)
    try:
        return new(shape, dtype)
    finally:
        PyDataMem_SetHandler(previous)


cdef object new(tuple shape, object dtype):
    """`numpy.empty`, for the two commonest dtypes without its reading of arguments."""
    cdef cnp.npy_intp sizes[FEW_AXES]
    cdef int i, n = <int>len(shape)
    if n > FEW_AXES or not (dtype is FLOAT32 or dtype is FLOAT64):
        return numpy_empty(shape, dtype)
    for i in range(n):
        sizes[i] = shape[i]
    return cnp.PyArray_EMPTY(
        n, sizes, cnp.NPY_FLOAT32 if dtype is FLOAT32 else cnp.NPY_FLOAT64, False)


def held():
    """Bytes in use by arrays, kept for arrays to come, and the most that was in use at once."""
    return memory_used_bytes, memory_kept_bytes, memory_most_bytes


def release():
    """Give all that is kept back to the system."""
    memory_release()
