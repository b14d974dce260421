/* The pool of csrc/pool.c.h without Python and without kernels: four threads use it at once, change
 * its size, nest, and fork, while the system refuses a thread now and then.
 *
 * It is plain counters that the tasks write: what goes wrong shows in them, and to ThreadSanitizer.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>

/* Two of three new threads are refused. */
static int refuse(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *), void *x) {
    static unsigned asked;
    if (__atomic_fetch_add(&asked, 1, __ATOMIC_RELAXED) % 3) return EAGAIN;
    return pthread_create(thread, attributes, body, x);
}

#define pthread_create refuse
#include "pool.c.h"
#undef pthread_create

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef FORKS
#define FORKS 1
#endif
#define ROUNDS 4000
#define MOST_TASKS 200

typedef struct {
    long done[MOST_TASKS];
    long nested[MOST_TASKS];
    int busy[POOL_MOST_THREADS];
    int threads;
} counters;

static int wrong;

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    __atomic_store_n(&wrong, 1, __ATOMIC_RELAXED);
}

static void add_one(void *context, ptrdiff_t task, int worker) {
    counters *c = context;
    (void)worker;
    c->nested[task]++;
}

static void body(void *context, ptrdiff_t task, int worker) {
    counters *c = context;
    if (worker < 0 || worker >= c->threads) fail("a worker beyond those that were asked for");
    if (c->busy[worker]++) fail("two calls with the same worker at once");
    c->done[task]++;
    if (task == 7) pool_table.run(add_one, c, MOST_TASKS, 4);
    c->busy[worker]--;
}

static void run(counters *c, ptrdiff_t n, int threads) {
    memset(c, 0, sizeof *c);
    c->threads = threads;
    pool_table.run(body, c, n, threads);
    for (ptrdiff_t i = 0; i < MOST_TASKS; i++) {
        if (c->done[i] != (i < n)) fail("a task was not done once");
        if (c->nested[i] != (n > 7)) fail("a nested task was not done once");
    }
}

static void forked(counters *c, ptrdiff_t n, int threads, int generations) {
    pid_t child = fork();
    if (child == 0) {
        alarm(60);
        run(c, n, threads);
        if (generations > 1) forked(c, n, threads, generations - 1);
        run(c, n, threads);
        _exit(wrong);
    }
    run(c, n, threads);
    int status = 1;
    if (child < 0 || waitpid(child, &status, 0) != child || status) fail("a child failed");
}

/* Two tasks that wait for one another: a worker has to come, awake or asleep. */
static void meet(void *context, ptrdiff_t task, int worker) {
    int *arrived = context;
    (void)task, (void)worker;
    __atomic_fetch_add(arrived, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(arrived, __ATOMIC_SEQ_CST) < 2) sched_yield();
}

static void *caller(void *argument) {
    counters *c = calloc(1, sizeof *c);
    unsigned long random = (unsigned long)(intptr_t)argument * 7919 + 1;
    for (int i = 0; i < ROUNDS; i++) {
        random = random * 6364136223846793005ul + 1442695040888963407ul;
        const ptrdiff_t n = 1 + (random >> 33) % MOST_TASKS;
        const int threads = 1 + (random >> 41) % 6;
        char *memory = pool_table.scratch(1 + (random >> 20) % 100000);
        if (!memory) fail("no scratch memory");
        else memory[0] = memory[(random >> 20) % 100000] = 1;
        if ((random >> 44) % 16 == 0) pool_set_threads(1 + (random >> 48) % 6, 2);
        if ((random >> 50) % 16 == 0) pool_release_scratch();
        if ((random >> 54) % 64 == 0) usleep(100); /* long enough for workers to fall asleep */
        if (FORKS && (random >> 56) % 128 == 0) forked(c, n, threads, 2);
        else run(c, n, threads);
    }
    free(c);
    return NULL;
}

int main(void) {
    pthread_t threads[4];
    alarm(180);
    if (pool_init()) return 2;
    for (int i = 0; i < 40; i++) {
        int arrived = 0;
        pool_set_threads(2, 2 - i % 2); /* with and without spinning */
        pool_table.run(meet, &arrived, 2, 2);
        usleep(5 * i);
    }
    pool_set_threads(4, 2);
    for (intptr_t i = 0; i < 4; i++)
        if (pthread_create(&threads[i], NULL, caller, (void *)i)) return 2;
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    if (pool_scratch_bytes()) fail("scratch memory of threads that have ended");
    if (!pool_jobs() || pool_threads() > 6 || smallpebble_get_num_threads() != pool_threads())
        fail("the pool has not been used");
    return wrong;
}
