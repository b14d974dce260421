/* What one tier offers: the width of its vectors, and its table of register tiles.
 *
 * A kernel is written once, in a file ending in .inc, for a type REAL; kernels.h includes the
 * bodies for float and for double. Vectors are GCC's (also Clang's): no intrinsics, so the compiler
 * flags of the tier alone decide the instructions.
 */
#ifndef SMALLPEBBLE_VECTOR_H
#define SMALLPEBBLE_VECTOR_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

#define INLINE static inline __attribute__((always_inline, unused))

/* Register tiles: ROWS_V is the most rows whose accumulators, V vectors each, stay in registers
 * together with V vectors of the right-hand side and one broadcast number.
 * WINOGRAD_TILES: about so many tiles at once, so that their points and the products of a panel stay
 * in L2; of narrow panels there may be more.
 * PICKED_COST is the time of a product in picked.inc, which loads a vector for each, beside that of
 * one in a tile.
 * COPIED_SIZE is 0 where tiles are wide. Narrow ones read nearly as much as the caches deliver, so that
 * it must lie well: a task of matmul copies so many bytes of a's rows, a fourth of L2, and gradients in
 * the kernels take less at once (GRAD_FEW_PIXELS). */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define WINOGRAD_TILES 48
#define COPIED_SIZE 0
#define PICKED_COST 2.5
#define TILE_VECTORS 4
#define ROWS_1 12
#define ROWS_2 12
#define ROWS_3 8
#define ROWS_4 6
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define WINOGRAD_TILES 64
#define COPIED_SIZE (1 << 17)
#define PICKED_COST 1.25
#define TILE_VECTORS 2
#define ROWS_1 12
#define ROWS_2 6
#define ROWS_3 0
#define ROWS_4 0
#elif defined(__ARM_NEON)
#define VECTOR_BYTES 16
#define WINOGRAD_TILES 64
#define COPIED_SIZE 0
#define PICKED_COST 1.25
#define TILE_VECTORS 4
#define ROWS_1 12
#define ROWS_2 12
#define ROWS_3 8
#define ROWS_4 6
#else
#define VECTOR_BYTES 16
#define WINOGRAD_TILES 64
#define COPIED_SIZE (1 << 17)
#define PICKED_COST 1.25
#define TILE_VECTORS 2
#define ROWS_1 12
#define ROWS_2 5
#define ROWS_3 0
#define ROWS_4 0
#endif

static const int tile_rows[5] = {0, ROWS_1, ROWS_2, ROWS_3, ROWS_4};

INLINE ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
INLINE ptrdiff_t most(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
INLINE ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

/* The i-th of n nearly equal parts of `total`: where it begins. */
INLINE ptrdiff_t part(ptrdiff_t total, ptrdiff_t n, ptrdiff_t i) {
    return total / n * i + least(i, total % n);
}

/* Tasks that touch `bytes`. Where the caches of the cores hold these, one for each thread, so that the
 * next kernel's lines are as a rule where the last one's were; else more, lest one thread be late. */
INLINE ptrdiff_t shares(double bytes, int threads) {
    return threads == 1 || bytes < 1.6e7 * threads ? threads : 8 * threads;
}

/* How many things a worker has for `count`, so that what two workers write is in different pairs of
 * lines of memory: one would else wait for the other's. */
INLINE ptrdiff_t apart(ptrdiff_t count) { return ceil_div(count, 32) * 32; }

/* Memory that is read soon, in up to three places: a kernel that is busy with products fetches it
 * meanwhile, a little at a time. What is read in strides would else be waited for line by line. */
typedef struct {
    const char *at[3];
    ptrdiff_t left[3]; /* bytes */
    ptrdiff_t share;   /* bytes at once */
} ahead;

/* Add `count` things of `bytes` bytes from the `first` of all on; fetch all in about `calls` calls. */
INLINE void look_ahead(ahead *next, int place, const void *from, ptrdiff_t first, ptrdiff_t count,
                       size_t bytes, ptrdiff_t calls) {
    next->at[place] = (const char *)from + (size_t)first * bytes;
    next->left[place] = count > 0 ? (ptrdiff_t)((size_t)count * bytes) : 0;
    next->share += next->left[place] / calls + 64;
}

INLINE void fetch(ahead *next) {
    for (int i = 0; i < 3; i++)
        for (ptrdiff_t done = 0; done < next->share && next->left[i] > 0; done += 64) {
            __builtin_prefetch(next->at[i], 0, 2);
            next->at[i] += 64;
            next->left[i] -= 64;
        }
}

/* Geometry of windows over images, as checked by the caller (see shapes.Window). */
typedef struct {
    ptrdiff_t n, h, w, c, m, kh, kw, sy, sx, top, left, oh, ow;
} geometry;

/* Max pooling that is done together with the convolution before it: its windows over the outputs of
 * the convolution, and leaky_relu's slope below 0. A code is the index of the largest cell of its
 * window, plus CODE_SCALED where the largest was not above 0 and so was scaled. */
#define CODE_SCALED 128

typedef struct {
    geometry window;
    uint8_t *codes;
    double alpha;
    int bad; /* whether a code has named no cell of its window */
} pooling;

/* A range of outputs o, all of which see the cells k of the window in [first, last). */
typedef struct {
    ptrdiff_t begin, end, first, last;
} span;

/* The cells that output o sees on an axis of `size` pixels. */
INLINE void cells_of(ptrdiff_t o, ptrdiff_t size, ptrdiff_t kernel, ptrdiff_t stride,
                     ptrdiff_t before, ptrdiff_t *first, ptrdiff_t *last) {
    ptrdiff_t origin = o * stride - before;
    *first = most(0, -origin);
    *last = most(*first, least(kernel, size - origin));
}

/* How many outputs on an axis see all cells of their windows. */
INLINE ptrdiff_t inner_outputs(ptrdiff_t outputs, ptrdiff_t size, ptrdiff_t kernel, ptrdiff_t stride,
                               ptrdiff_t before) {
    const ptrdiff_t last = size - kernel + before; /* where such a window may begin at most */
    return last < 0 ? 0 : most(0, least(outputs, last / stride + 1) - ceil_div(before, stride));
}

/* The longest span of outputs from `begin`, before `end`, that all see the same cells. */
INLINE span span_from(ptrdiff_t begin, ptrdiff_t end, ptrdiff_t size, ptrdiff_t kernel,
                      ptrdiff_t stride, ptrdiff_t before) {
    span s = {begin, begin + 1, 0, 0};
    cells_of(begin, size, kernel, stride, before, &s.first, &s.last);
    for (; s.end < end; s.end++) {
        ptrdiff_t first, last;
        cells_of(s.end, size, kernel, stride, before, &first, &last);
        if (first != s.first || last != s.last) break;
    }
    return s;
}

/* The cells first, first + stride, ... of a window of `kernel` cells on an axis: how many they are,
 * and how many those of phases before. */
typedef struct {
    ptrdiff_t cells, before;
} phase;

INLINE phase phase_of(ptrdiff_t first, ptrdiff_t kernel, ptrdiff_t stride) {
    const ptrdiff_t before = part(kernel, stride, first);
    return (phase){part(kernel, stride, first + 1) - before, before};
}

#endif
