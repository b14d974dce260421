/* Every kernel body twice, for float and for double, and a table of both: table[0] is float's. */
#ifndef SMALLPEBBLE_KERNELS_H
#define SMALLPEBBLE_KERNELS_H

#include "pool.h"
#include "vector.h"

#include <fenv.h>

#define ARITHMETIC_AXES 8      /* of broadcast operands, neighbours that behave alike taken as one */
#define ARITHMETIC_RAISED (FE_DIVBYZERO | FE_OVERFLOW | FE_UNDERFLOW | FE_INVALID)
#define ARITHMETIC_SHARED 2e5  /* bytes that are worth a second thread */

#define REAL float
#define REAL_BYTES 4
#define NAME(name) name##_float
#include "bodies.h"
#undef REAL
#undef REAL_BYTES
#undef NAME

#define REAL double
#define REAL_BYTES 8
#define NAME(name) name##_double
#include "bodies.h"
#undef REAL
#undef REAL_BYTES
#undef NAME

#define BOTH(name) {name##_float, name##_double}

typedef int (*matmul_function)(const pool_api *, const void *, const void *, const void *, void *,
                               ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                               ptrdiff_t);
typedef int (*conv_function)(const pool_api *, const geometry *, const void *, const void *, void *,
                             const pooling *);
typedef void (*unpool_function)(const pool_api *, const pooling *, const void *, void *);
typedef int (*window_function)(const pool_api *, const geometry *, const void *, void *, uint8_t *,
                               double);
typedef int (*sum_function)(const pool_api *, const void *, void *, const ptrdiff_t *);
typedef int (*arithmetic_function)(const pool_api *, char, const void *, const void *, void *, int,
                                   const ptrdiff_t *, const unsigned char *);
typedef int (*leaky_function)(const pool_api *, const void *, const void *, void *, ptrdiff_t,
                              double);
typedef int (*row_function)(const pool_api *, const void *, const void *, void *, const ptrdiff_t *,
                            ptrdiff_t, ptrdiff_t);
typedef int (*add_rows_function)(const ptrdiff_t *, ptrdiff_t, ptrdiff_t, const void *, void *);
typedef int (*adam_function)(const pool_api *, const void *, const void *, void *, void *, void *,
                             ptrdiff_t, double, double, double, double, double);

static const matmul_function matmul_table[2] = BOTH(matmul);
static const conv_function conv2d_table[2] = BOTH(conv2d);
static const conv_function conv2d_grad_images_table[2] = BOTH(conv2d_grad_images);
static const conv_function conv2d_grad_kernels_table[2] = BOTH(conv2d_grad_kernels);
static const conv_function winograd_table[2] = BOTH(winograd);
static const conv_function winograd_grad_images_table[2] = BOTH(winograd_grad_images);
static const conv_function winograd_grad_kernels_table[2] = BOTH(winograd_grad_kernels);
static const conv_function picked_grad_kernels_table[2] = BOTH(picked_grad_kernels);
static const pool_body check_codes_table[2] = BOTH(check_codes_task);
static const unpool_function unpool_table[2] = BOTH(unpool);
static const window_function maxpool2d_table[2] = BOTH(maxpool2d);
static const window_function maxpool2d_gather_table[2] = BOTH(maxpool2d_gather);
static const window_function maxpool2d_scatter_table[2] = BOTH(maxpool2d_scatter);
static const window_function avgpool2d_table[2] = BOTH(avgpool2d);
static const window_function avgpool2d_grad_images_table[2] = BOTH(avgpool2d_grad_images);
static const window_function patches_table[2] = BOTH(patches);
static const window_function patches_sum_table[2] = BOTH(patches_sum);
static const sum_function sum_to_table[2] = BOTH(sum_to);
static const sum_function broadcast_to_table[2] = BOTH(broadcast_to);
static const arithmetic_function arithmetic_table[2] = BOTH(arithmetic);
static const leaky_function leaky_relu_table[2] = BOTH(leaky_relu);
static const leaky_function leaky_relu_grad_a_table[2] = BOTH(leaky_relu_grad_a);
static const row_function softmax_table[2] = BOTH(softmax);
static const row_function log_softmax_table[2] = BOTH(log_softmax);
static const row_function softmax_grad_table[2] = BOTH(softmax_grad);
static const row_function log_softmax_grad_table[2] = BOTH(log_softmax_grad);
static const row_function loss_table[2] = BOTH(loss);
static const row_function loss_grad_table[2] = BOTH(loss_grad);
static const add_rows_function add_rows_table[2] = BOTH(add_rows);
static const adam_function adam_table[2] = BOTH(adam);

/* Products of a batch: c[i] = a[i] @ b[i] + bias for an index i of `dims` axes. Small ones are tasks, large
 * ones share each its own work. */
#define BATCH_DIMS 64  /* an array of NumPy has no more axes */
#define BATCH_WORK 2e7 /* so many operations or more are shared */

typedef struct {
    matmul_function function;
    const pool_api *pool;
    const char *a, *b, *bias;
    char *c;
    ptrdiff_t m, n, k, ai, ak, bk, bj;                /* of each product, see matmul */
    ptrdiff_t count, size, tasks;                     /* size: bytes of a product */
    ptrdiff_t shape[BATCH_DIMS], a_steps[BATCH_DIMS], b_steps[BATCH_DIMS]; /* steps in bytes */
    int dims, status;
} matmul_batch;

static void matmul_batch_task(void *context, ptrdiff_t task, int worker) {
    matmul_batch *job = context;
    const ptrdiff_t end = part(job->count, job->tasks, task + 1);
    (void)worker;
    for (ptrdiff_t i = part(job->count, job->tasks, task); i < end; i++) {
        const char *a = job->a, *b = job->b;
        ptrdiff_t index = i;
        for (int d = job->dims - 1; d >= 0; d--) {
            a += index % job->shape[d] * job->a_steps[d];
            b += index % job->shape[d] * job->b_steps[d];
            index /= job->shape[d];
        }
        if (job->function(job->pool, a, b, job->bias, job->c + i * job->size, job->m, job->n, job->k,
                          job->ai, job->ak, job->bk, job->bj))
            __atomic_store_n(&job->status, -1, __ATOMIC_RELAXED);
    }
}

static int run_matmul_batch(matmul_batch *job) {
    const double work = 2.0 * (double)job->m * (double)job->n * (double)job->k;
    const int threads =
        work * (double)job->count < 4e5 || work >= BATCH_WORK ? 1 : job->pool->threads();
    job->tasks = threads == 1 ? 1 : least(job->count, 8 * threads);
    if (job->count) job->pool->run(matmul_batch_task, job, job->tasks, threads);
    return job->status;
}

/* y[i, :] = a[index[i], :], rows of any type by their bytes */
typedef struct {
    const char *a;
    char *y;
    const ptrdiff_t *index;
    ptrdiff_t n, bytes, tasks;
} take_job;

static void take_task(void *context, ptrdiff_t task, int worker) {
    const take_job *job = context;
    const ptrdiff_t end = part(job->n, job->tasks, task + 1);
    (void)worker;
    for (ptrdiff_t i = part(job->n, job->tasks, task); i < end; i++)
        memcpy(job->y + i * job->bytes, job->a + job->index[i] * job->bytes, (size_t)job->bytes);
}

static void take_rows(const pool_api *pool, const void *a, const ptrdiff_t *index, ptrdiff_t n,
                      ptrdiff_t bytes, void *y) {
    take_job job = {a, y, index, n, bytes, 1};
    const int threads = (double)n * (double)bytes < 4e5 ? 1 : pool->threads();
    if (threads > 1) job.tasks = least(n, 4 * threads);
    if (n && bytes) pool->run(take_task, &job, job.tasks, threads);
}

#endif
