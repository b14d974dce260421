/* A fork-join pool of threads, shared by the kernel modules of all tiers through a capsule.
 *
 * run(body, context, n, threads) calls body(context, task, worker) for every task in [0, n); worker
 * is below `threads`, and no two calls with the same worker overlap. One job at a time: a second
 * caller, or a body that calls run, does its tasks itself, one after the other. Which thread takes
 * which task is left open, so a body must own what it writes.
 */
#ifndef SMALLPEBBLE_POOL_H
#define SMALLPEBBLE_POOL_H

#include <stddef.h>

#define POOL_MOST_THREADS 256
#define POOL_CAPSULE "smallpebble.kernels._pool.api"

typedef void (*pool_body)(void *context, ptrdiff_t task, int worker);

typedef struct {
    void (*run)(pool_body body, void *context, ptrdiff_t n_tasks, int threads);
    int (*threads)(void);
    void *(*scratch)(size_t bytes); /* of the calling thread, until its next call; NULL if none */
} pool_api;

#endif
