# The compiled kernels as Python functions: each takes what its namesake in
# smallpebble/kernels/reference.py takes, checks it, and hands C the addresses.
#
# float32 and float64 run here, in any memory layout: what is not C-contiguous, aligned and native
# is copied once. Every other dtype goes to the reference. Nothing that a caller passes is trusted:
# shapes, geometry, labels and indices are checked before C sees them.

cimport cython
from cpython.buffer cimport PyObject_GetBuffer, PyBuffer_Release, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport pow
from libc.stdint cimport uint8_t, uintptr_t
from libc.string cimport memcpy

import numpy as np

from smallpebble.kernels import _alloc, _choice
from smallpebble.kernels import _pool
from smallpebble.kernels import reference

cdef extern from "kernels.h" nogil:
    const char *POOL_CAPSULE
    ctypedef void (*pool_body)(void *, Py_ssize_t, int) noexcept
    ctypedef struct pool_api:
        void (*run)(pool_body, void *, Py_ssize_t, int) noexcept nogil
        int (*threads)() noexcept nogil
    ctypedef struct geometry:
        Py_ssize_t n, h, w, c, m, kh, kw, sy, sx, top, left, oh, ow
    ctypedef int (*matmul_function)(
        const pool_api *, const void *, const void *, const void *, void *, Py_ssize_t, Py_ssize_t,
        Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t) noexcept
    const int VECTOR_BYTES, CODE_SCALED, WINOGRAD_FEW
    const double PICKED_COST
    ctypedef struct pooling:
        geometry window
        uint8_t *codes
        double alpha
        int bad
    ctypedef int (*conv_function)(
        const pool_api *, const geometry *, const void *, const void *, void *,
        const pooling *) noexcept
    ctypedef void (*unpool_function)(
        const pool_api *, const pooling *, const void *, void *) noexcept
    ctypedef int (*window_function)(
        const pool_api *, const geometry *, const void *, void *, uint8_t *, double) noexcept
    ctypedef int (*sum_function)(
        const pool_api *, const void *, void *, const Py_ssize_t *) noexcept
    const int FE_DIVBYZERO, FE_OVERFLOW, FE_UNDERFLOW, FE_INVALID
    ctypedef int (*arithmetic_function)(
        const pool_api *, char, const void *, const void *, void *, int, const Py_ssize_t *,
        const unsigned char *) noexcept
    ctypedef int (*leaky_function)(
        const pool_api *, const void *, const void *, void *, Py_ssize_t, double) noexcept
    ctypedef int (*row_function)(
        const pool_api *, const void *, const void *, void *, const Py_ssize_t *, Py_ssize_t,
        Py_ssize_t) noexcept
    ctypedef int (*add_rows_function)(
        const Py_ssize_t *, Py_ssize_t, Py_ssize_t, const void *, void *) noexcept
    ctypedef int (*adam_function)(
        const pool_api *, const void *, const void *, void *, void *, void *, Py_ssize_t, double,
        double, double, double, double) noexcept
    const matmul_function *matmul_table
    const conv_function *conv2d_table
    const conv_function *conv2d_grad_images_table
    const conv_function *conv2d_grad_kernels_table
    const conv_function *winograd_table
    const conv_function *winograd_grad_images_table
    const conv_function *winograd_grad_kernels_table
    const conv_function *picked_grad_kernels_table
    const pool_body *check_codes_table
    const unpool_function *unpool_table
    const window_function *maxpool2d_table
    const window_function *maxpool2d_gather_table
    const window_function *maxpool2d_scatter_table
    const window_function *avgpool2d_table
    const window_function *avgpool2d_grad_images_table
    const window_function *patches_table
    const window_function *patches_sum_table
    const sum_function *sum_to_table
    const sum_function *broadcast_to_table
    const arithmetic_function *arithmetic_table
    const leaky_function *leaky_relu_table
    const leaky_function *leaky_relu_grad_a_table
    const row_function *softmax_table
    const row_function *log_softmax_table
    const row_function *softmax_grad_table
    const row_function *log_softmax_grad_table
    const row_function *loss_table
    const row_function *loss_grad_table
    const add_rows_function *add_rows_table
    const adam_function *adam_table
    ctypedef struct matmul_batch:
        matmul_function function
        const pool_api *pool
        const char *a
        const char *b
        const char *bias
        char *c
        Py_ssize_t m, n, k, ai, ak, bk, bj, count, size
        Py_ssize_t shape[]
        Py_ssize_t a_steps[]
        Py_ssize_t b_steps[]
        int dims, status
    int run_matmul_batch(matmul_batch *) nogil
    void take_rows(const pool_api *, const void *, const Py_ssize_t *, Py_ssize_t, Py_ssize_t,
                   void *) noexcept

cdef extern from "numpy/ndarraytypes.h" nogil:
    ctypedef struct PyArrayObject:
        pass
    ctypedef struct PyArray_Descr:
        pass
    PyArray_Descr *PyArray_DESCR(PyArrayObject *)
    int PyArray_NDIM(PyArrayObject *)
    Py_ssize_t *PyArray_DIMS(PyArrayObject *)
    Py_ssize_t *PyArray_STRIDES(PyArrayObject *)
    void *PyArray_DATA(PyArrayObject *)
    int PyArray_FLAGS(PyArrayObject *)
    const int NPY_ARRAY_WRITEABLE, NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_F_CONTIGUOUS

# From here on, which is after the kernels, code is small rather than fast: a module is a sixth
# smaller for it, and a call takes less than a tenth of a microsecond more.
cdef extern from *:
    """
    #ifdef __GNUC__
    #pragma GCC optimize ("Os")
    #endif
    """

cdef const pool_api *pool = <const pool_api *>PyCapsule_GetPointer(_pool.api, POOL_CAPSULE)

cdef object ndarray = np.ndarray
cdef object FLOAT32 = np.dtype(np.float32)
cdef object FLOAT64 = np.dtype(np.float64)
cdef object UINT8 = np.dtype(np.uint8)
cdef object INTP = np.dtype(np.intp)
cdef tuple REALS = (FLOAT32, FLOAT64)
cdef Py_ssize_t[2] REAL_BYTES = [4, 8]
cdef object LARGEST = 2**62  # of a size
cdef dict memory = _alloc.__dict__  # looked up there at every call, as a test may hand out its own

cdef enum:
    OTHER = -1  # the dtype index of what is neither float32 nor float64
    FEW_PRODUCTS = 16384  # of numbers: fewer take less time than to let other threads run
    HELD_AXES = 6  # of arrays that are read without the buffer protocol; patches have 6


# ------------------------------------------------------------------------------------- operands


@cython.final
@cython.no_gc
@cython.freelist(16)
cdef class Operand:
    """The numbers of an array, which lives as long as this object, and its shape as it was."""

    cdef Py_buffer view
    cdef bint held
    cdef object array
    cdef Py_ssize_t[2 * HELD_AXES] sizes

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    cdef Py_ssize_t size(self) noexcept:
        cdef Py_ssize_t total = 1
        cdef int i
        for i in range(self.view.ndim):
            total *= self.view.shape[i]
        return total


cdef Operand hold(object array, int flags, Py_ssize_t itemsize=0):
    """With the size of its elements, an ndarray is read here, which takes less than a buffer does."""
    cdef Operand operand = Operand.__new__(Operand)
    cdef PyArrayObject *a = <PyArrayObject *>array
    cdef Py_buffer *view = &operand.view
    cdef int i, ndim
    operand.array = array
    if (not itemsize or type(array) is not ndarray or PyArray_NDIM(a) > HELD_AXES
            or flags & PyBUF_WRITABLE and not can_write(array)):
        PyObject_GetBuffer(array, view, flags)
        operand.held = True
        return operand
    ndim = PyArray_NDIM(a)
    view.buf, view.itemsize, view.ndim = PyArray_DATA(a), itemsize, ndim
    view.shape, view.strides = &operand.sizes[0], &operand.sizes[HELD_AXES]
    for i in range(ndim):
        view.shape[i], view.strides[i] = PyArray_DIMS(a)[i], PyArray_STRIDES(a)[i]
    # Where nothing moves along an axis, of length 1 or 0, NumPy's stride may be any number.
    if PyArray_FLAGS(a) & NPY_ARRAY_C_CONTIGUOUS:
        for i in range(ndim - 1, -1, -1):
            view.strides[i] = itemsize
            itemsize *= view.shape[i]
    elif PyArray_FLAGS(a) & NPY_ARRAY_F_CONTIGUOUS:
        for i in range(ndim):
            view.strides[i] = itemsize
            itemsize *= view.shape[i]
    return operand


cdef bint can_write(object array) noexcept:
    cdef int flags = PyArray_FLAGS(<PyArrayObject *>array)
    return flags & NPY_ARRAY_WRITEABLE and flags > 0  # below 0, NumPy has a warning to give


cdef object dtype_of(object array):
    """array.dtype; as those below, without an attribute's cost, which a small call would feel."""
    return <object>PyArray_DESCR(<PyArrayObject *>array)


cdef int dims_of(object array) noexcept:
    return PyArray_NDIM(<PyArrayObject *>array)


cdef Py_ssize_t size_of(object array, int axis) noexcept:
    return PyArray_DIMS(<PyArrayObject *>array)[axis]


cdef object plain(object array, str kernel):
    """The array itself, seen without what a subclass may say about it, in native byte order."""
    if type(array) is not ndarray:
        if not isinstance(array, ndarray):
            raise TypeError(f"{kernel}: expected an ndarray, got {type(array).__name__}")
        array = np.asarray(array)
    cdef object dtype = dtype_of(array)
    if dtype is FLOAT32 or dtype is FLOAT64:
        return array
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    return array


cdef int real_of(object array) except -2:
    """0 for float32, 1 for float64, OTHER for any other dtype."""
    cdef object dtype = dtype_of(array)
    if dtype is FLOAT32 or dtype == FLOAT32:
        return 0
    if dtype is FLOAT64 or dtype == FLOAT64:
        return 1
    return OTHER


cdef int common(int a, int b) noexcept:
    """The dtype index in which two operands are computed together."""
    if a == OTHER or b == OTHER:
        return OTHER
    return a if a > b else b


cdef bint is_packed(Py_buffer *view) noexcept:
    """Whether elements follow one another in C order, at addresses fit for their size."""
    cdef Py_ssize_t expected = view.itemsize
    cdef int i
    if <uintptr_t>view.buf % view.itemsize:
        return False
    for i in range(view.ndim):
        if view.shape[i] == 0:
            return True
    for i in range(view.ndim - 1, -1, -1):
        if view.shape[i] != 1 and view.strides[i] != expected:
            return False
        expected *= view.shape[i]
    return True


cdef Operand read_as(object array, object dtype, Py_ssize_t itemsize):
    """The array as C-contiguous, aligned numbers of `dtype`; a copy only where it is not so."""
    cdef Operand operand
    if dtype_of(array) is dtype or array.dtype == dtype:
        operand = hold(array, PyBUF_STRIDES, itemsize)
        if is_packed(&operand.view):
            return operand
    return hold(np.array(array, dtype, order="C"), PyBUF_STRIDES, itemsize)


cdef Operand read(object array, int real):
    return read_as(array, REALS[real], REAL_BYTES[real])


cdef Operand write(object array, int real):
    """An array that is updated in place, or, where it is not packed, a copy to be written back."""
    cdef Operand operand = hold(array, PyBUF_STRIDES | PyBUF_WRITABLE, REAL_BYTES[real])
    if is_packed(&operand.view):
        return operand
    array = np.array(array, REALS[real], order="C")
    return hold(array, PyBUF_STRIDES | PyBUF_WRITABLE, REAL_BYTES[real])


cdef Operand fresh(tuple shape, object dtype):
    """A new, uninitialised array."""
    cdef Py_ssize_t itemsize = 4 if dtype is FLOAT32 else 8 if dtype is FLOAT64 else 0
    return hold(memory["empty"](shape, dtype), PyBUF_STRIDES | PyBUF_WRITABLE, itemsize)


cdef double number(object value, str what) except? -1:
    try:
        return value
    except OverflowError:
        raise ValueError(f"{what} is too large: {value!r}") from None


cdef object finished(int status, Operand y, str kernel):
    if status == -1:
        raise MemoryError(f"{kernel}: no memory for scratch space")
    if status == -2:
        raise IndexError(f"{kernel}: an index names no cell of its window")
    return y.array


cdef str shapes_of(arrays):
    return ", ".join([str(a.shape) for a in arrays])


cdef int misfit(str kernel, tuple arrays) except -1:
    raise ValueError(
        f"{kernel}: these shapes do not fit the window or each other: {shapes_of(arrays)}"
    )


# -------------------------------------------------------------------------- windows over images


cdef int read_window(object window, geometry *s, str kernel) except -1:
    """The sizes of a window, checked as if they came from anywhere."""
    cdef Py_ssize_t most = 2147483647
    try:
        s.h, s.w, s.kh, s.kw, s.sy, s.sx, s.top, s.left, s.oh, s.ow = window
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{kernel}: expected a Window, got {window!r}") from None
    for size in (s.h, s.w, s.kh, s.kw, s.sy, s.sx, s.oh, s.ow):
        if not 1 <= size <= most:
            raise ValueError(f"{kernel}: impossible geometry {window!r}")
    if not (0 <= s.top < s.kh and 0 <= s.left < s.kw):
        raise ValueError(f"{kernel}: impossible geometry {window!r}")
    # The first output starts inside of the image or its padding; the last must touch the image.
    if (s.oh - 1) * s.sy - s.top >= s.h or (s.ow - 1) * s.sx - s.left >= s.w:
        raise ValueError(f"{kernel}: impossible geometry {window!r}")
    return 0


cdef bint is_image(Operand a, const geometry *s) noexcept:
    return a.view.ndim == 4 and a.view.shape[1] == s.h and a.view.shape[2] == s.w


cdef bint is_output(Operand a, const geometry *s) noexcept:
    return a.view.ndim == 4 and a.view.shape[1] == s.oh and a.view.shape[2] == s.ow


cdef bint same_shape(Operand a, Operand b) noexcept:
    cdef int i
    if a.view.ndim != b.view.ndim:
        return False
    for i in range(a.view.ndim):
        if a.view.shape[i] != b.view.shape[i]:
            return False
    return True


cdef bint is_weights(Operand a, const geometry *s) noexcept:
    return a.view.ndim == 4 and a.view.shape[0] == s.kh and a.view.shape[1] == s.kw


cdef Py_ssize_t tiles_of(const geometry *s) noexcept:
    return ((s.oh + 2) // 3) * ((s.ow + 2) // 3)


cdef bint use_winograd(const geometry *s, bint of_kernels=False) except -1:
    """Whether to convolve by Winograd's algorithm: where it applies, and is asked for or pays.

    The gradient in the kernels has no kernels to transform, but gains nothing with tiles of two
    outputs. The choice depends on the shapes alone, so that results do not depend on the threads.
    """
    cdef str wanted = _choice.algorithm
    cdef Py_ssize_t tiles = tiles_of(s)
    if wanted == "direct" or s.kh != 3 or s.kw != 3 or s.sy != 1 or s.sx != 1:
        return False
    if wanted == "winograd":
        return True
    # Rows of tiles are taken whole, so wide images would take much scratch memory.
    if s.c < 16 or s.m < 16 or s.oh < 3 or s.ow < 3 or s.ow > 512:
        return False
    if of_kernels:
        return s.n * tiles >= 24 and 9 * tiles <= 2 * s.oh * s.ow
    return s.n * tiles >= 8


cdef object convolve(conv_function *direct, conv_function *winograd, str kernel, geometry *s,
                     Operand a, Operand b, Operand y, int real, pooling *pooled=NULL):
    """Run one of the three convolutions, all of whose sizes are in `s`."""
    cdef bint of_kernels = direct == <conv_function *>conv2d_grad_kernels_table
    cdef bint fast = use_winograd(s, of_kernels)
    cdef conv_function function = winograd[real] if fast else direct[real]
    cdef int status = 0
    if s.n == 0 or s.c == 0 or s.m == 0:
        y.array[...] = 0
        return y.array
    with nogil:
        status = function(pool, s, a.view.buf, b.view.buf, y.view.buf, pooled)
    return finished(status, y, kernel)


def conv2d(images, kernels, window):
    """Cross-correlation: (n, h, w, c) images, (kh, kw, c, m) kernels -> (n, oh, ow, m)."""
    images = plain(images, "conv2d")
    kernels = plain(kernels, "conv2d")
    cdef int real = common(real_of(images), real_of(kernels))
    cdef geometry s
    if real == OTHER:
        return reference.conv2d(images, kernels, window)
    read_window(window, &s, "conv2d")
    cdef Operand x = read(images, real), k = read(kernels, real)
    if not (is_image(x, &s) and is_weights(k, &s) and x.view.shape[3] == k.view.shape[2]):
        misfit("conv2d", (images, kernels))
    s.n, s.c, s.m = x.view.shape[0], x.view.shape[3], k.view.shape[3]
    cdef Operand y = fresh((s.n, s.oh, s.ow, s.m), REALS[real])
    return convolve(<conv_function *>conv2d_table, <conv_function *>winograd_table, "conv2d", &s,
                    x, k, y, real)


def conv2d_grad_images(g, kernels, window):
    """Adjoint of `conv2d` in the images: (n, oh, ow, m), (kh, kw, c, m) -> (n, h, w, c)."""
    g = plain(g, "conv2d_grad_images")
    kernels = plain(kernels, "conv2d_grad_images")
    cdef str name = "conv2d_grad_images"
    cdef int real = common(real_of(g), real_of(kernels))
    cdef geometry s
    if real == OTHER:
        return reference.conv2d_grad_images(g, kernels, window)
    read_window(window, &s, name)
    cdef Operand x = read(g, real), k = read(kernels, real)
    if not (is_output(x, &s) and is_weights(k, &s) and x.view.shape[3] == k.view.shape[3]):
        misfit(name, (g, kernels))
    s.n, s.c, s.m = x.view.shape[0], k.view.shape[2], k.view.shape[3]
    cdef Operand y = fresh((s.n, s.h, s.w, s.c), REALS[real])
    return convolve(<conv_function *>conv2d_grad_images_table,
                    <conv_function *>winograd_grad_images_table, name, &s, x, k, y, real)


def conv2d_grad_kernels(g, images, window):
    """Adjoint of `conv2d` in the kernels: (n, oh, ow, m), (n, h, w, c) -> (kh, kw, c, m)."""
    g = plain(g, "conv2d_grad_kernels")
    images = plain(images, "conv2d_grad_kernels")
    cdef str name = "conv2d_grad_kernels"
    cdef int real = common(real_of(g), real_of(images))
    cdef geometry s
    if real == OTHER:
        return reference.conv2d_grad_kernels(g, images, window)
    read_window(window, &s, name)
    cdef Operand x = read(g, real), k = read(images, real)
    if not (is_output(x, &s) and is_image(k, &s) and x.view.shape[0] == k.view.shape[0]):
        misfit(name, (g, images))
    s.n, s.c, s.m = k.view.shape[0], k.view.shape[3], x.view.shape[3]
    cdef Operand y = fresh((s.kh, s.kw, s.c, s.m), REALS[real])
    return convolve(<conv_function *>conv2d_grad_kernels_table,
                    <conv_function *>winograd_grad_kernels_table, name, &s, x, k, y, real)


# ------------------------------------------------- convolution, leaky_relu and max pooling at once


cdef enum:
    PICKED_IMAGES = 16  # the fewest images for sums over picked outputs, whose parts are images
    PICKED_BYTES = 1 << 20  # most memory for the outputs of an image, which are in the cache at once


cdef int read_pooling(object window, object pool, object alpha, geometry *s, pooling *p,
                      str kernel) except -1:
    """Both windows and the slope, checked; the channels are set where they are known."""
    p.alpha = number(alpha, f"{kernel}: alpha")
    p.codes, p.bad = NULL, 0
    read_window(window, s, kernel)
    read_window(pool, &p.window, kernel)
    if p.window.h != s.oh or p.window.w != s.ow:
        raise ValueError(f"{kernel}: {pool!r} does not go over the outputs of {window!r}")
    if p.window.kh > p.window.sy or p.window.kw > p.window.sx:
        raise ValueError(f"{kernel}: windows of {pool!r} overlap")
    if p.window.kh * p.window.kw > CODE_SCALED:
        raise ValueError(f"{kernel}: {pool!r} has more than {CODE_SCALED} cells")
    return 0


cdef bint pools_at_once(const geometry *s, bint of_kernels=False) except -1:
    """Whether outputs are pooled in the cache, and do not become an array. Bits do not differ.

    A window of one pixel is a matrix product, whose sums may have another order than tiles' have.
    Of few tiles, the points of the kernels would be most of the work, and are done otherwise.
    """
    if s.c == 0 or s.m == 0 or s.kh * s.kw * s.sy * s.sx == 1:
        return False
    return of_kernels or s.n * tiles_of(s) > WINOGRAD_FEW or not use_winograd(s)


cdef bint picks_outputs(const geometry *s, const pooling *p, int real) except -1:
    """Whether the gradient in the kernels sums only over outputs that were the largest: where the
    library may choose, and such sums, of whole vectors in rows of windows, are enough fewer.

    The order of the sums is another one than without pooling.
    """
    if (_choice.algorithm != "auto" or s.n < PICKED_IMAGES
            or s.oh * s.ow > PICKED_BYTES // s.m // REAL_BYTES[real]):
        return False
    cdef Py_ssize_t lanes = VECTOR_BYTES // REAL_BYTES[real], run = s.kw * s.c
    cdef double all = <double>s.oh * s.ow * run
    cdef double picked = <double>p.window.oh * p.window.ow * ((run + lanes - 1) // lanes * lanes)
    # Winograd's algorithm has about a third of the products, but transforms images and gradients.
    return (s.m >= 16 and 2 * s.n * all * s.kh * s.m >= 2e7
            and PICKED_COST * (2.4 if use_winograd(s, True) else 1) * picked <= all)


cdef bint sum_picked(const geometry *s, Operand g, Operand images, Operand y, int real,
                     const pooling *p, str kernel) except -1:
    """The gradient in the kernels from the outputs that were the largest; False if it has to be
    formed otherwise, since numbers are not finite."""
    cdef conv_function function = picked_grad_kernels_table[real]
    cdef int status
    with nogil:
        status = function(pool, s, g.view.buf, images.view.buf, y.view.buf, p)
    if status < 0:
        finished(status, y, kernel)
    return status == 0


cdef object known_codes(Operand codes, const geometry *s, pooling *p, int real, str kernel):
    """Take `codes`, of the shape of g, for the pooling, after a check that they name pixels."""
    cdef pool_body check = check_codes_table[real]
    cdef int threads = pool.threads() if codes.size() > 100000 else 1
    p.window.n, p.window.c = s.n, s.m
    p.codes = <uint8_t *>codes.view.buf
    with nogil:
        pool.run(check, p, s.n, threads)
    if p.bad:
        raise IndexError(f"{kernel}: a code names no cell of its window")


cdef object unpooled(Operand g, const geometry *s, const pooling *p, int real):
    """The gradient in the outputs of the convolution, as an array."""
    cdef unpool_function unpool = unpool_table[real]
    cdef Operand y = fresh((s.n, s.oh, s.ow, s.m), REALS[real])
    if s.n and s.m:
        with nogil:
            unpool(pool, p, g.view.buf, y.view.buf)
    return y.array


def conv2d_maxpool2d(images, kernels, window, pool, alpha=1.0):
    """leaky_relu(maxpool2d(conv2d(images, kernels))) -> values and codes, two (n, ph, pw, m).

    The outputs of the convolution are pooled while they are in the cache: on small images that is
    most of the memory that the three kernels would go through.
    """
    images = plain(images, "conv2d_maxpool2d")
    kernels = plain(kernels, "conv2d_maxpool2d")
    cdef str name = "conv2d_maxpool2d"
    cdef int real = common(real_of(images), real_of(kernels))
    cdef geometry s
    cdef pooling p
    if real == OTHER:
        return reference.conv2d_maxpool2d(images, kernels, window, pool, alpha)
    read_pooling(window, pool, alpha, &s, &p, name)
    cdef Operand x = read(images, real), k = read(kernels, real), y, codes
    if not (is_image(x, &s) and is_weights(k, &s) and x.view.shape[3] == k.view.shape[2]):
        misfit(name, (images, kernels))
    s.n, s.c, s.m = x.view.shape[0], x.view.shape[3], k.view.shape[3]
    if not pools_at_once(&s):
        largest, indices = maxpool2d(conv2d(images, kernels, window), pool)
        indices += np.uint8(CODE_SCALED) * ~(largest > 0)
        return leaky_relu(largest, alpha), indices
    p.window.n, p.window.c = s.n, s.m
    shape = (s.n, p.window.oh, p.window.ow, s.m)
    y, codes = fresh(shape, REALS[real]), fresh(shape, UINT8)
    p.codes = <uint8_t *>codes.view.buf
    convolve(<conv_function *>conv2d_table, <conv_function *>winograd_table, name, &s, x, k, y,
             real, &p)
    return y.array, codes.array


def conv2d_maxpool2d_grad_images(g, codes, kernels, window, pool, alpha=1.0):
    """Adjoint of `conv2d_maxpool2d` in the images: g and codes (n, ph, pw, m) -> (n, h, w, c)."""
    g = plain(g, "conv2d_maxpool2d_grad_images")
    codes = plain(codes, "conv2d_maxpool2d_grad_images")
    kernels = plain(kernels, "conv2d_maxpool2d_grad_images")
    cdef str name = "conv2d_maxpool2d_grad_images"
    cdef int real = common(real_of(g), real_of(kernels))
    cdef geometry s
    cdef pooling p
    if real == OTHER or codes.dtype != UINT8:
        return reference.conv2d_maxpool2d_grad_images(g, codes, kernels, window, pool, alpha)
    read_pooling(window, pool, alpha, &s, &p, name)
    cdef Operand x = read(g, real), i = read_as(codes, UINT8, 1), k = read(kernels, real), y
    if not (is_output(x, &p.window) and same_shape(x, i) and is_weights(k, &s)
            and x.view.shape[3] == k.view.shape[3]):
        misfit(name, (g, codes, kernels))
    s.n, s.c, s.m = x.view.shape[0], k.view.shape[2], k.view.shape[3]
    known_codes(i, &s, &p, real, name)
    # The direct kernel reads each output for many pixels, so it needs the whole array.
    if not pools_at_once(&s) or not use_winograd(&s):
        return conv2d_grad_images(unpooled(x, &s, &p, real), kernels, window)
    y = fresh((s.n, s.h, s.w, s.c), REALS[real])
    return convolve(<conv_function *>conv2d_grad_images_table,
                    <conv_function *>winograd_grad_images_table, name, &s, x, k, y, real, &p)


def conv2d_maxpool2d_grad_kernels(g, codes, images, window, pool, alpha=1.0):
    """Adjoint of `conv2d_maxpool2d` in the kernels: g, codes (n, ph, pw, m) -> (kh, kw, c, m)."""
    g = plain(g, "conv2d_maxpool2d_grad_kernels")
    codes = plain(codes, "conv2d_maxpool2d_grad_kernels")
    images = plain(images, "conv2d_maxpool2d_grad_kernels")
    cdef str name = "conv2d_maxpool2d_grad_kernels"
    cdef int real = common(real_of(g), real_of(images))
    cdef geometry s
    cdef pooling p
    if real == OTHER or codes.dtype != UINT8:
        return reference.conv2d_maxpool2d_grad_kernels(g, codes, images, window, pool, alpha)
    read_pooling(window, pool, alpha, &s, &p, name)
    cdef Operand x = read(g, real), i = read_as(codes, UINT8, 1), k = read(images, real), y
    if not (is_output(x, &p.window) and same_shape(x, i) and is_image(k, &s)
            and x.view.shape[0] == k.view.shape[0]):
        misfit(name, (g, codes, images))
    s.n, s.c, s.m = k.view.shape[0], k.view.shape[3], x.view.shape[3]
    known_codes(i, &s, &p, real, name)
    if not pools_at_once(&s, of_kernels=True):
        return conv2d_grad_kernels(unpooled(x, &s, &p, real), images, window)
    y = fresh((s.kh, s.kw, s.c, s.m), REALS[real])
    if picks_outputs(&s, &p, real) and sum_picked(&s, x, k, y, real, &p, name):
        return y.array
    return convolve(<conv_function *>conv2d_grad_kernels_table,
                    <conv_function *>winograd_grad_kernels_table, name, &s, x, k, y, real, &p)


cdef object over_windows(window_function *table, str kernel, geometry *s, Operand x, Operand y,
                         Operand indices, int real):
    """Run one of the kernels that go over windows; `indices` is None for those without."""
    cdef window_function function = table[real]
    cdef uint8_t *codes = NULL if indices is None else <uint8_t *>indices.view.buf
    cdef double nbytes = <double>x.size() * x.view.itemsize + <double>y.size() * y.view.itemsize
    cdef int status = 0
    if s.n and s.c:
        with nogil:
            status = function(pool, s, x.view.buf, y.view.buf, codes, nbytes)
    return finished(status, y, kernel)


def maxpool2d(images, window):
    """Largest pixel under each window and its index in the window: two (n, oh, ow, c)."""
    images = plain(images, "maxpool2d")
    cdef int real = real_of(images)
    cdef geometry s
    if real != OTHER:
        read_window(window, &s, "maxpool2d")
    if real == OTHER or s.kh * s.kw > 256:
        return reference.maxpool2d(images, window)
    cdef Operand x = read(images, real)
    if not is_image(x, &s):
        misfit("maxpool2d", (images,))
    s.n, s.c = x.view.shape[0], x.view.shape[3]
    shape = (s.n, s.oh, s.ow, s.c)
    cdef Operand y = fresh(shape, REALS[real]), indices = fresh(shape, UINT8)
    over_windows(<window_function *>maxpool2d_table, "maxpool2d", &s, x, y, indices, real)
    return y.array, indices.array


def maxpool2d_gather(images, indices, window):
    """The pixels at the `indices` of `maxpool2d`: (n, h, w, c) -> (n, oh, ow, c)."""
    images = plain(images, "maxpool2d_gather")
    indices = plain(indices, "maxpool2d_gather")
    cdef str name = "maxpool2d_gather"
    cdef int real = real_of(images)
    cdef geometry s
    if real != OTHER:
        read_window(window, &s, name)
    if real == OTHER or s.kh * s.kw > 256 or indices.dtype is not UINT8:
        return reference.maxpool2d_gather(images, indices, window)
    cdef Operand x = read(images, real), i = read_as(indices, UINT8, 1)
    if not (is_image(x, &s) and is_output(i, &s) and x.view.shape[0] == i.view.shape[0]
            and x.view.shape[3] == i.view.shape[3]):
        misfit(name, (images, indices))
    s.n, s.c = x.view.shape[0], x.view.shape[3]
    cdef Operand y = fresh((s.n, s.oh, s.ow, s.c), REALS[real])
    return over_windows(<window_function *>maxpool2d_gather_table, name, &s, x, y, i, real)


def maxpool2d_scatter(g, indices, window):
    """Adjoint of `maxpool2d_gather`: each g added to the pixel it came from, -> (n, h, w, c)."""
    g = plain(g, "maxpool2d_scatter")
    indices = plain(indices, "maxpool2d_scatter")
    cdef str name = "maxpool2d_scatter"
    cdef int real = real_of(g)
    cdef geometry s
    if real != OTHER:
        read_window(window, &s, name)
    if real == OTHER or s.kh * s.kw > 256 or indices.dtype is not UINT8:
        return reference.maxpool2d_scatter(g, indices, window)
    cdef Operand x = read(g, real), i = read_as(indices, UINT8, 1)
    if not (is_output(x, &s) and is_output(i, &s) and x.view.shape[0] == i.view.shape[0]
            and x.view.shape[3] == i.view.shape[3]):
        misfit(name, (g, indices))
    s.n, s.c = x.view.shape[0], x.view.shape[3]
    cdef Operand y = fresh((s.n, s.h, s.w, s.c), REALS[real])
    return over_windows(<window_function *>maxpool2d_scatter_table, name, &s, x, y, i, real)


def avgpool2d(images, window):
    """Mean of the pixels under each window; padding does not count: -> (n, oh, ow, c)."""
    images = plain(images, "avgpool2d")
    cdef int real = real_of(images)
    cdef geometry s
    if real == OTHER:
        return reference.avgpool2d(images, window)
    read_window(window, &s, "avgpool2d")
    cdef Operand x = read(images, real)
    if not is_image(x, &s):
        misfit("avgpool2d", (images,))
    s.n, s.c = x.view.shape[0], x.view.shape[3]
    cdef Operand y = fresh((s.n, s.oh, s.ow, s.c), REALS[real])
    return over_windows(<window_function *>avgpool2d_table, "avgpool2d", &s, x, y, None, real)


def avgpool2d_grad_images(g, window):
    """Adjoint of `avgpool2d`: each g spread evenly over its window: -> (n, h, w, c)."""
    g = plain(g, "avgpool2d_grad_images")
    cdef str name = "avgpool2d_grad_images"
    cdef int real = real_of(g)
    cdef geometry s
    if real == OTHER:
        return reference.avgpool2d_grad_images(g, window)
    read_window(window, &s, name)
    cdef Operand x = read(g, real)
    if not is_output(x, &s):
        misfit(name, (g,))
    s.n, s.c = x.view.shape[0], x.view.shape[3]
    cdef Operand y = fresh((s.n, s.h, s.w, s.c), REALS[real])
    return over_windows(<window_function *>avgpool2d_grad_images_table, name, &s, x, y, None, real)


def patches(images, window):
    """im2col: the pixels under every window, zero where padded: -> (n, oh, ow, kh, kw, c)."""
    images = plain(images, "patches")
    cdef int real = real_of(images)
    cdef geometry s
    if real == OTHER:
        return reference.patches(images, window)
    read_window(window, &s, "patches")
    cdef Operand x = read(images, real)
    if not is_image(x, &s):
        misfit("patches", (images,))
    s.n, s.c = x.view.shape[0], x.view.shape[3]
    cdef Operand y = fresh((s.n, s.oh, s.ow, s.kh, s.kw, s.c), REALS[real])
    return over_windows(<window_function *>patches_table, "patches", &s, x, y, None, real)


def patches_sum(patches, window):
    """col2im, the adjoint of `patches`: (n, oh, ow, kh, kw, c) summed into (n, h, w, c)."""
    patches = plain(patches, "patches_sum")
    cdef int real = real_of(patches)
    cdef geometry s
    if real == OTHER:
        return reference.patches_sum(patches, window)
    read_window(window, &s, "patches_sum")
    cdef Operand p = read(patches, real)
    if p.view.ndim != 6 or not (
            p.view.shape[1] == s.oh and p.view.shape[2] == s.ow and p.view.shape[3] == s.kh
            and p.view.shape[4] == s.kw):
        misfit("patches_sum", (patches,))
    s.n, s.c = p.view.shape[0], p.view.shape[5]
    cdef Operand y = fresh((s.n, s.h, s.w, s.c), REALS[real])
    return over_windows(<window_function *>patches_sum_table, "patches_sum", &s, p, y, None, real)


# ---------------------------------------------------------------------------- sums and products


cdef bint as_groups(tuple small, tuple large, Py_ssize_t *groups) except -1:
    """See `large` as (k0, r0, k1, r1): axes that `small` keeps and axes of length 1 in it, in turn.

    False if the axes alternate more often than that.
    """
    cdef Py_ssize_t lead = len(large) - len(small), i, size
    cdef int at = 0, wanted
    for i in range(4):
        groups[i] = 1
    for i in range(len(large)):
        size = large[i]
        if size == 1:
            continue
        wanted = 1 if i < lead or small[i - lead] == 1 else 0
        while at % 2 != wanted:
            at += 1
        if at > 3:
            return False
        groups[at] *= size
    if at <= 1:  # what is summed, if anything, lies together: the faster form
        groups[2], groups[3] = groups[0], groups[1]
        groups[0] = groups[1] = 1
    return True


cdef tuple as_shape(object shape, str kernel):
    if type(shape) is tuple:
        for size in shape:
            if type(size) is not int or not 0 <= size <= LARGEST:
                break
        else:
            return shape
    try:
        shape = tuple(shape)
        for size in shape:
            if size < 0 or size > LARGEST or size != int(size):
                raise ValueError
        return tuple([int(size) for size in shape])
    except (TypeError, ValueError):
        raise ValueError(f"{kernel}: expected a shape, got {shape!r}") from None


cdef bint broadcasts(tuple small, tuple large):
    cdef Py_ssize_t lead = len(large) - len(small), i
    if lead < 0:
        return False
    for i in range(len(small)):
        if small[i] != large[lead + i] and small[i] != 1:
            return False
    return True


def sum_to(a, shape):
    """Sum `a` down to `shape`, which must broadcast to `a.shape`."""
    a = plain(a, "sum_to")
    cdef int real = real_of(a)
    cdef Py_ssize_t groups[4]
    cdef int status = 0
    shape = as_shape(shape, "sum_to")
    if not broadcasts(shape, a.shape):
        raise ValueError(f"sum_to: shape {shape} does not broadcast to {a.shape}")
    if real == OTHER or not as_groups(shape, a.shape, groups):
        return reference.sum_to(a, shape)
    cdef Operand x = read(a, real), y = fresh(shape, REALS[real])
    cdef sum_function function = sum_to_table[real]
    with nogil:
        status = function(pool, x.view.buf, y.view.buf, groups)
    return finished(status, y, "sum_to")


def broadcast_to(a, shape):
    """`a` repeated to `shape`, as a new array."""
    a = plain(a, "broadcast_to")
    cdef int real = real_of(a)
    cdef Py_ssize_t groups[4]
    cdef int status = 0
    shape = as_shape(shape, "broadcast_to")
    if not broadcasts(a.shape, shape):
        raise ValueError(f"broadcast_to: shape {a.shape} does not broadcast to {shape}")
    if real == OTHER:
        return reference.broadcast_to(a, shape)
    cdef Operand y = fresh(shape, REALS[real])  # refuses sizes whose product overflows
    if not as_groups(a.shape, shape, groups):
        return reference.broadcast_to(a, shape)
    cdef Operand x = read(a, real)
    cdef sum_function function = broadcast_to_table[real]
    with nogil:
        status = function(pool, x.view.buf, y.view.buf, groups)
    return finished(status, y, "broadcast_to")


cdef struct broadcasting:
    int axes
    Py_ssize_t[8] size  # ARITHMETIC_AXES; the last axis is the last of 8
    unsigned char[8] varies  # bit 0: the first operand has an element for each index; bit 1: the second
    double total
    bint whole[2]  # whether the result has the shape of this operand

cdef enum:
    FEW = 16384  # results, with those that the time for a run would do: fewer are left to NumPy
    RUN = 80


cdef bint collapse(int i, const Py_ssize_t *p, int j, const Py_ssize_t *q, broadcasting *s) noexcept:
    """Two shapes broadcast, neighbouring axes that behave alike taken as one.

    False if they do not broadcast, or to nothing or too many axes.
    """
    cdef Py_ssize_t one, two, size
    cdef int at = 8, which
    s.total = 1
    s.whole[0], s.whole[1] = i >= j, j >= i
    while i > 0 or j > 0:
        i -= 1
        j -= 1
        one = p[i] if i >= 0 else 1
        two = q[j] if j >= 0 else 1
        if one == two == 1:
            continue
        which = (one != 1) + 2 * (two != 1)
        if which == 3 and one != two:
            return False
        if which != 3:
            s.whole[2 - which] = False
        size = two if one == 1 else one
        s.total *= size
        if at < 8 and s.varies[at] == which:
            s.size[at] *= size
        elif at == 0:
            return False
        else:
            at -= 1
            s.size[at], s.varies[at] = size, which
    s.axes = 8 - at
    return s.axes > 0 and s.total > 0


cdef object by_element(char operation, object ufunc, object a, object b):
    """`ufunc` of two arrays, broadcast: here if they are packed, of one dtype and not small.

    All else is left to NumPy, whatever it is. So are warnings: where results overflow or are no
    numbers, NumPy finds them once more, and says what it has been told to say about it.
    """
    cdef PyArrayObject *x
    cdef PyArrayObject *y
    cdef broadcasting s
    cdef int raised, flag
    if type(a) is not ndarray or type(b) is not ndarray:
        return ufunc(a, b)
    x, y = <PyArrayObject *>a, <PyArrayObject *>b
    if (PyArray_DESCR(x) != PyArray_DESCR(y)
            or not collapse(PyArray_NDIM(x), PyArray_DIMS(x), PyArray_NDIM(y), PyArray_DIMS(y), &s)
            or s.total * (1 + <double>RUN / s.size[7]) < FEW):
        return ufunc(a, b)
    cdef int real = real_of(a)
    if real == OTHER:
        return ufunc(a, b)
    cdef Operand u = hold(a, PyBUF_STRIDES, REAL_BYTES[real])
    cdef Operand v = hold(b, PyBUF_STRIDES, REAL_BYTES[real])
    if not (is_packed(&u.view) and is_packed(&v.view)):
        return ufunc(a, b)
    shape = (a if s.whole[0] else b).shape
    if not (s.whole[0] or s.whole[1]):
        shape = np.broadcast_shapes(a.shape, b.shape)
    cdef Operand z = fresh(shape, REALS[real])
    # From here on only what is held counts: another thread could give an array another shape.
    if (not collapse(u.view.ndim, u.view.shape, v.view.ndim, v.view.shape, &s)
            or z.size() != s.total):
        raise ValueError(f"{ufunc.__name__}: an array changed its shape while it was in use")
    cdef arithmetic_function function = arithmetic_table[real]
    with nogil:
        raised = function(pool, operation, u.view.buf, v.view.buf, z.view.buf, s.axes,
                          &s.size[8 - s.axes], &s.varies[8 - s.axes])
    if raised:
        handling = np.geterr()
        for flag, kind in ((FE_DIVBYZERO, "divide"), (FE_OVERFLOW, "over"),
                           (FE_UNDERFLOW, "under"), (FE_INVALID, "invalid")):
            if raised & flag and handling[kind] != "ignore":
                return ufunc(a, b)
    return z.array


cdef object np_add = np.add, np_subtract = np.subtract
cdef object np_multiply = np.multiply, np_divide = np.true_divide


def add(a, b):
    """a + b, broadcast."""
    return by_element(b"+", np_add, a, b)


def sub(a, b):
    """a - b, broadcast."""
    return by_element(b"-", np_subtract, a, b)


def mul(a, b):
    """a * b, broadcast."""
    return by_element(b"*", np_multiply, a, b)


def div(a, b):
    """a / b, broadcast."""
    return by_element(b"/", np_divide, a, b)


cdef Operand read_matrix(object array, int real):
    """An operand of matmul: rows or columns contiguous, each matrix alike; a copy where not so."""
    cdef Operand operand
    cdef Py_buffer *view
    cdef Py_ssize_t row, column, item, axis
    if dtype_of(array) is REALS[real] or array.dtype == REALS[real]:
        operand = hold(array, PyBUF_STRIDES, REAL_BYTES[real])
        view = &operand.view
        if view.ndim < 2:
            return operand
        row, column = view.strides[view.ndim - 2], view.strides[view.ndim - 1]
        item = view.itemsize
        if not (<uintptr_t>view.buf % item or row % item or column % item or row <= 0
                or column <= 0) and (row == item or column == item):
            for axis in range(view.ndim - 2):
                if view.strides[axis] % item:
                    break
            else:
                return operand
    return hold(np.array(array, REALS[real], order="C"), PyBUF_STRIDES, REAL_BYTES[real])


cdef Py_ssize_t batch_step(Py_buffer *view, Py_ssize_t axis) noexcept:
    """Bytes between matrices along a batch axis, counted from the last one; 0 where it is spread."""
    axis += view.ndim - 2
    return view.strides[axis] if axis >= 0 and view.shape[axis] > 1 else 0


def matmul(a, b, bias=None):
    """Matrix product as `numpy.matmul`, batches broadcast: (..., i, k) @ (..., k, j) + (j,)."""
    a = plain(a, "matmul")
    b = plain(b, "matmul")
    cdef int real = common(real_of(a), real_of(b))
    cdef Operand row = None
    if bias is not None:
        bias = plain(bias, "matmul")
        real = common(real, real_of(bias))
    cdef Py_ssize_t m, n, k, i, item
    cdef int status, a_dims = dims_of(a), b_dims = dims_of(b)
    if not a_dims or not b_dims:
        raise ValueError(f"matmul: scalars have no product: {a.shape} and {b.shape}")
    if bias is not None and (b_dims < 2 or dims_of(bias) != 1
                             or size_of(bias, 0) != size_of(b, b_dims - 1)):
        raise ValueError(f"matmul: a bias of shape {bias.shape} does not fit columns of {b.shape}")
    if real == OTHER:
        return reference.matmul(a, b, bias)
    cdef bint is_row = a_dims == 1, is_column = b_dims == 1
    if is_row:
        a = a.reshape(1, -1)
    if is_column:
        b = b.reshape(-1, 1)
    if size_of(a, dims_of(a) - 1) != size_of(b, dims_of(b) - 2):
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit: (i, k) @ (k, j)")
    cdef Operand x = read_matrix(a, real), y = read_matrix(b, real)
    cdef Py_buffer *va = &x.view
    cdef Py_buffer *vb = &y.view
    # From here on only what is held counts: another thread could give an array another shape.
    if va.ndim < 2 or vb.ndim < 2 or vb.shape[vb.ndim - 2] != va.shape[va.ndim - 1]:
        raise ValueError("matmul: an array changed its shape while it was in use")
    m, k, n = va.shape[va.ndim - 2], va.shape[va.ndim - 1], vb.shape[vb.ndim - 1]
    if bias is not None:
        row = read(bias, real)
        if row.size() != n:
            raise ValueError("matmul: an array changed its shape while it was in use")
    item = va.itemsize
    batch = ()
    if va.ndim > 2 or vb.ndim > 2:
        batch = np.broadcast_shapes(
            tuple([va.shape[i] for i in range(va.ndim - 2)]),
            tuple([vb.shape[i] for i in range(vb.ndim - 2)]),
        )
    cdef tuple shape = (m, n)
    if batch or is_row or is_column:
        shape = batch + (() if is_row else (m,)) + (() if is_column else (n,))
    cdef Operand z = fresh(shape, REALS[real])
    cdef matmul_batch job
    job.function, job.pool, job.status = matmul_table[real], pool, 0
    job.a, job.b, job.c = <const char *>va.buf, <const char *>vb.buf, <char *>z.view.buf
    job.bias = NULL
    if row is not None:
        job.bias = <const char *>row.view.buf
    job.m, job.n, job.k, job.size = m, n, k, m * n * item
    job.ai, job.ak = va.strides[va.ndim - 2] // item, va.strides[va.ndim - 1] // item
    job.bk, job.bj = vb.strides[vb.ndim - 2] // item, vb.strides[vb.ndim - 1] // item
    job.dims, job.count = len(batch), 1
    for i in range(job.dims):
        job.count *= z.view.shape[i]
        job.shape[i] = z.view.shape[i]
        job.a_steps[i] = batch_step(va, i - job.dims)
        job.b_steps[i] = batch_step(vb, i - job.dims)
    if vb.ndim == 2 and va.ndim > 2 and is_packed(va):  # one b for all: the rows of one matrix
        job.m *= job.count
        job.count, job.dims = 1, 0
        job.ai, job.ak = k, 1
    if <double>m * n * (k + 1) * job.count < FEW_PRODUCTS:
        status = run_matmul_batch(&job)
    else:
        with nogil:
            status = run_matmul_batch(&job)
    return finished(status, z, "matmul")


# ----------------------------------------------------------------------- activations and losses


def leaky_relu(a, alpha=0.02):
    """`a` where a > 0, else alpha * a."""
    a = plain(a, "leaky_relu")
    # First, since what runs here may be anybody's __float__.
    cdef double slope = number(alpha, "leaky_relu: alpha")
    cdef int real = real_of(a)
    if real == OTHER:
        return reference.leaky_relu(a, alpha)
    cdef Operand x = read(a, real), y = fresh(a.shape, REALS[real])
    cdef leaky_function function = leaky_relu_table[real]
    cdef Py_ssize_t n = x.size()
    with nogil:
        function(pool, NULL, x.view.buf, y.view.buf, n, slope)
    return y.array


def leaky_relu_grad_a(g, a, alpha=0.02):
    """Adjoint of `leaky_relu` at `a`: g where a > 0, else alpha * g."""
    g = plain(g, "leaky_relu_grad_a")
    a = plain(a, "leaky_relu_grad_a")
    cdef str name = "leaky_relu_grad_a"
    # First, since what runs here may be anybody's __float__.
    cdef double slope = number(alpha, "leaky_relu_grad_a: alpha")
    cdef int real = common(real_of(g), real_of(a))
    if g.shape != a.shape:
        raise ValueError(f"{name}: shapes {g.shape} and {a.shape} differ")
    if real == OTHER or g.dtype != a.dtype:
        return reference.leaky_relu_grad_a(g, a, alpha)
    cdef Operand x = read(a, real), d = read(g, real), y = fresh(a.shape, REALS[real])
    cdef leaky_function function = leaky_relu_grad_a_table[real]
    cdef Py_ssize_t n = x.size()
    with nogil:
        function(pool, d.view.buf, x.view.buf, y.view.buf, n, slope)
    return y.array


cdef object along_axis(row_function *table, object fallback, str kernel, object a, object axis,
                       object g=None):
    """Run a kernel of rows along one axis, which is moved last for it; of `g` too if there is one."""
    a = plain(a, kernel)
    cdef int real = real_of(a)
    cdef Py_ssize_t ndim = a.ndim, at, classes, rows
    if not isinstance(axis, (int, np.integer)):
        raise TypeError(f"{kernel}: axis must be an integer, got {axis!r}")
    if not -ndim <= axis < ndim:
        raise ValueError(f"{kernel}: axis {axis} is out of range for {ndim} dimension(s)")
    if g is not None:
        if g.shape != a.shape:
            raise ValueError(f"{kernel}: shapes {g.shape} and {a.shape} differ")
        if real == OTHER or g.dtype != a.dtype:
            return fallback(g, a, axis)
    elif real == OTHER:
        return fallback(a, axis)
    at = axis
    at += ndim if at < 0 else 0
    if a.shape[at] == 0:
        raise ValueError(f"{kernel}: nothing along axis {axis} of shape {a.shape}")
    moved = a if at == ndim - 1 else np.moveaxis(a, at, -1)
    cdef Operand x = read(moved, real), y = fresh(moved.shape, REALS[real]), d = None
    cdef row_function function = table[real]
    cdef const void *incoming = NULL
    if g is not None:
        d = read(g if at == ndim - 1 else np.moveaxis(g, at, -1), real)
        incoming = d.view.buf
    classes = x.view.shape[x.view.ndim - 1]
    rows = x.size() // classes if classes else 0
    if not same_shape(x, y) or not (d is None or same_shape(x, d)):
        raise ValueError(f"{kernel}: an array changed its shape while it was in use")
    with nogil:
        function(pool, incoming, x.view.buf, y.view.buf, NULL, rows, classes)
    return y.array if at == ndim - 1 else np.ascontiguousarray(np.moveaxis(y.array, -1, at))


def softmax(a, axis=-1):
    """exp(a) / sum(exp(a)) along one `axis`, shifted by each row's own maximum."""
    return along_axis(<row_function *>softmax_table, reference.softmax, "softmax", a, axis)


def log_softmax(a, axis=-1):
    """log(softmax(a)) along one `axis`, without taking the log of an underflowed number."""
    return along_axis(
        <row_function *>log_softmax_table, reference.log_softmax, "log_softmax", a, axis)


def softmax_grad_a(g, y, axis=-1):
    """Adjoint of `softmax` where it gave `y`: y * (g - sum(g * y)) along one `axis`."""
    return along_axis(<row_function *>softmax_grad_table, reference.softmax_grad_a,
                      "softmax_grad_a", y, axis, plain(g, "softmax_grad_a"))


def log_softmax_grad_a(g, y, axis=-1):
    """Adjoint of `log_softmax` where it gave `y`: g - exp(y) * sum(g) along one `axis`."""
    return along_axis(<row_function *>log_softmax_grad_table, reference.log_softmax_grad_a,
                      "log_softmax_grad_a", y, axis, plain(g, "log_softmax_grad_a"))


cdef Operand read_labels(object logits, object labels, str kernel):
    """Labels as machine integers, each checked against the number of classes."""
    cdef Py_ssize_t i, classes
    if dtype_of(labels) is not INTP and labels.dtype.kind not in "iu":
        raise TypeError(f"{kernel}: labels must be integers, got {labels.dtype}")
    if dims_of(logits) != 2 or dims_of(labels) != 1 or size_of(labels, 0) != size_of(logits, 0):
        raise ValueError(
            f"{kernel}: logits must be (n, classes) and labels (n,), "
            f"got {logits.shape} and {labels.shape}"
        )
    classes = size_of(logits, 1)
    # Its own copy: nobody may change a label after the check.
    own = labels.copy() if dtype_of(labels) is INTP else np.array(labels, INTP, order="C")
    cdef Operand operand = hold(own, PyBUF_STRIDES, sizeof(Py_ssize_t))
    cdef const Py_ssize_t *label = <const Py_ssize_t *>operand.view.buf
    for i in range(operand.view.shape[0]):
        if not 0 <= label[i] < classes:
            raise IndexError(f"{kernel}: labels must be 0 to {classes - 1}, got {labels[i]}")
    return operand


def softmax_cross_entropy(logits, labels):
    """-log(softmax(logits))[i, labels[i]]: (n, classes) logits, (n,) integers -> (n,) losses."""
    logits = plain(logits, "softmax_cross_entropy")
    labels = plain(labels, "softmax_cross_entropy")
    cdef str name = "softmax_cross_entropy"
    cdef int real = real_of(logits)
    cdef Py_ssize_t n_classes = size_of(logits, 1) if dims_of(logits) == 2 else 0
    cdef Operand index = read_labels(logits, labels, name)
    if real == OTHER:
        return reference.softmax_cross_entropy(logits, labels)
    cdef Operand x = read(logits, real), y = fresh(labels.shape, REALS[real])
    cdef row_function function = loss_table[real]
    if x.view.ndim != 2 or x.view.shape[0] != index.size() or x.view.shape[1] != n_classes:
        raise ValueError(f"{name}: an array changed its shape while it was in use")
    cdef Py_ssize_t rows = x.view.shape[0], classes = x.view.shape[1]
    with nogil:
        function(pool, NULL, x.view.buf, y.view.buf, <const Py_ssize_t *>index.view.buf, rows,
                 classes)
    return y.array


def softmax_cross_entropy_grad_logits(g, logits, labels):
    """Adjoint of `softmax_cross_entropy`: g (n,) times softmax(logits) - onehot(labels)."""
    g = plain(g, "softmax_cross_entropy_grad_logits")
    logits = plain(logits, "softmax_cross_entropy_grad_logits")
    labels = plain(labels, "softmax_cross_entropy_grad_logits")
    cdef str name = "softmax_cross_entropy_grad_logits"
    cdef int real = common(real_of(g), real_of(logits))
    cdef Py_ssize_t n_classes = size_of(logits, 1) if dims_of(logits) == 2 else 0
    cdef Operand index = read_labels(logits, labels, name)
    if g.shape != labels.shape:
        raise ValueError(f"{name}: g has shape {g.shape}, labels {labels.shape}")
    if real == OTHER:
        return reference.softmax_cross_entropy_grad_logits(g, logits, labels)
    cdef Operand x = read(logits, real), d = read(g, real), y = fresh(logits.shape, REALS[real])
    cdef row_function function = loss_grad_table[real]
    if x.view.ndim != 2 or x.view.shape[0] != index.size() or x.view.shape[1] != n_classes:
        raise ValueError(f"{name}: an array changed its shape while it was in use")
    cdef Py_ssize_t rows = x.view.shape[0], classes = x.view.shape[1]
    with nogil:
        function(pool, d.view.buf, x.view.buf, y.view.buf, <const Py_ssize_t *>index.view.buf, rows,
                 classes)
    return y.array


# ---------------------------------------------------------------------------- indexing and steps


cdef Operand read_indices(object indices, Py_ssize_t rows, str kernel):
    """Indices of rows as machine integers from 0, negative ones counted from the end."""
    cdef Py_ssize_t i
    cdef Py_ssize_t *index
    array = np.array(indices, INTP, order="C")  # its own copy: negative indices are rewritten
    if indices.dtype.kind == "u" and indices.size and int(indices.max()) >= rows:
        raise IndexError(f"{kernel}: index {indices.max()} is out of range for {rows} row(s)")
    cdef Operand operand = hold(array, PyBUF_STRIDES | PyBUF_WRITABLE)
    index = <Py_ssize_t *>operand.view.buf
    for i in range(operand.size()):
        if not -rows <= index[i] < rows:
            raise IndexError(f"{kernel}: index {index[i]} is out of range for {rows} row(s)")
        if index[i] < 0:
            index[i] += rows
    return operand


def add_at(a, indices, b):
    """A copy of `a` with `b` added at a[indices], repeated indices adding up (`numpy.add.at`)."""
    a = plain(a, "add_at")
    cdef int real = real_of(a)
    cdef Py_ssize_t n, width, nbytes
    if isinstance(b, ndarray):
        b = plain(b, "add_at")
    if (real == OTHER or type(b) is not ndarray or type(indices) is not ndarray
            or indices.dtype.kind not in "iu" or a.ndim < 1 or b.dtype != a.dtype
            or b.shape != indices.shape + a.shape[1:]):
        return reference.add_at(a, indices, b)
    cdef Operand index = read_indices(indices, a.shape[0], "add_at")
    cdef Operand x = read(a, real), d = read(b, real), y = fresh(a.shape, REALS[real])
    cdef add_rows_function function = add_rows_table[real]
    n = index.size()
    width = d.size() // n if n else 0
    if n and x.size() != a.shape[0] * width:
        raise ValueError("add_at: an array changed its shape while it was in use")
    nbytes = x.size() * x.view.itemsize
    with nogil:
        memcpy(y.view.buf, x.view.buf, nbytes)
        function(<const Py_ssize_t *>index.view.buf, n, width, d.view.buf, y.view.buf)
    return y.array


def take(a, indices):
    """Rows ``a[indices]`` for a 1-D array of integers: (rows, ...), (n,) -> (n, ...)."""
    a = plain(a, "take")
    indices = plain(indices, "take")
    cdef Py_ssize_t nbytes, n, i
    cdef Operand x
    if (indices.ndim != 1 or indices.dtype.kind not in "iu" or a.ndim < 1
            or a.dtype.hasobject or a.dtype.kind not in "fiubc"):
        return reference.take(a, indices)
    x = hold(a, PyBUF_STRIDES)
    if not is_packed(&x.view):
        return np.ascontiguousarray(reference.take(a, indices))
    cdef Operand index = read_indices(indices, x.view.shape[0], "take")
    n = index.view.shape[0]
    nbytes = x.view.itemsize
    for i in range(1, x.view.ndim):
        nbytes *= x.view.shape[i]
    shape = (n, *[x.view.shape[i] for i in range(1, x.view.ndim)])
    cdef Operand y = fresh(shape, a.dtype)
    with nogil:
        take_rows(pool, x.view.buf, <const Py_ssize_t *>index.view.buf, n, nbytes, y.view.buf)
    return y.array


cdef bint is_common_step(list parameters, list gradients, list means, list variances, list steps):
    """Whether these are ndarrays of float32 or float64 that `_check_adam_step` would not refuse.

    That one is asked only if not: it takes longer than a step of few numbers.
    """
    cdef Py_ssize_t i, j, k, n = len(steps)
    if not len(parameters) == len(gradients) == len(means) == len(variances) == n:
        return False
    for i in range(n):
        first = parameters[i]
        for k, one in enumerate((first, gradients[i], means[i], variances[i])):
            if type(one) is not ndarray or k > 1 and not can_write(one):
                return False
            if dtype_of(one) is not FLOAT32 and dtype_of(one) is not FLOAT64:
                return False
            if dims_of(one) != dims_of(first):
                return False
            for j in range(dims_of(one)):
                if size_of(one, j) != size_of(first, j):
                    return False
        if type(steps[i]) is not int or not 1 <= steps[i] <= LARGEST:
            return False
    return True


def adam_step(parameters, gradients, means, variances, steps, alpha, beta1, beta2, eps):
    """One step of Adam for lists of arrays (Kingma & Ba, arXiv:1412.6980, Algorithm 1).

    Returns the list of new parameters; `means` and `variances` are updated in place.
    """
    cdef double step, correction
    cdef double b1 = number(beta1, "adam_step: beta1"), b2 = number(beta2, "adam_step: beta2")
    cdef double rate = number(alpha, "adam_step: alpha"), small = number(eps, "adam_step: eps")
    cdef int real
    cdef Py_ssize_t n, i
    cdef Operand p, g, m, v, y
    cdef adam_function function
    cdef list jobs = [], new = []
    # Lists and numbers of its own: what is checked is what is used.
    parameters, gradients, means, variances, steps = [
        list(one) for one in (parameters, gradients, means, variances, steps)
    ]
    if not is_common_step(parameters, gradients, means, variances, steps):
        reference._check_adam_step(parameters, gradients, means, variances, steps)
    # All memory first: an error leaves everything as it was.
    for parameter, gradient, mean, variance in zip(parameters, gradients, means, variances):
        arrays = [plain(one, "adam_step") for one in (parameter, gradient, mean, variance)]
        real = real_of(arrays[0])
        for one in arrays:
            if real_of(one) != real:
                real = OTHER
        if real == OTHER:
            jobs.append(None)
            continue
        p, g = read(arrays[0], real), read(arrays[1], real)
        m, v = write(arrays[2], real), write(arrays[3], real)
        y = fresh(parameter.shape, REALS[real])
        n = p.size()
        if not g.size() == m.size() == v.size() == y.size() == n:
            raise ValueError("adam_step: an array changed its size while it was in use")
        jobs.append((p, g, m, v, y, real))
    for i, (job, t) in enumerate(zip(jobs, steps)):
        t = int(t)
        if job is None:
            new += reference.adam_step(
                [parameters[i]], [gradients[i]], [means[i]], [variances[i]], [t], alpha, beta1,
                beta2, eps)
            continue
        p, g, m, v, y, real = job
        step, correction = rate / (1 - pow(b1, <double>t)), 1 - pow(b2, <double>t)
        function = adam_table[real]
        n = p.size()
        with nogil:
            function(pool, p.view.buf, g.view.buf, m.view.buf, v.view.buf, y.view.buf, n, step,
                     correction, b1, b2, small)
        if m.array is not means[i]:
            means[i][...] = m.array
        if v.array is not variances[i]:
            variances[i][...] = v.array
        new.append(y.array)
    return new
