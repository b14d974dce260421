/* The pool behind pool.h. Included by _pool.pyx alone.
 *
 * Workers start with the first job that wants them. Between jobs a worker spins for a moment, since
 * the next kernel is often microseconds away; for some longer it lets anybody else who is waiting for
 * the core have it, and then sleeps, from which it takes tens of microseconds to wake. A job is open
 * while its tasks last; a worker enters an open job by saying so, and the caller returns when the job
 * is closed and everybody who entered has left, so a worker that wakes up late is not waited for.
 *
 * Everybody has a share of the tasks, which are neighbours, and takes from those of others when it is
 * done: jobs that cut their arrays alike then find in a core's cache what the last one left there. What
 * threads write lies in lines of its own, since a line that moves to another core and back may cost
 * half a microsecond.
 *
 * Before fork() the workers are stopped and joined; parent and child both begin afresh.
 */
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#define SPIN_NANOSECONDS 50000
#define YIELD_NANOSECONDS 300000
#define STACK_BYTES (512 * 1024)

static int pool_wanted = 1;

static void pool_serial(pool_body body, void *context, ptrdiff_t n_tasks) {
    for (ptrdiff_t task = 0; task < n_tasks; task++) body(context, task, 0);
}

static pthread_mutex_t pool_busy = PTHREAD_MUTEX_INITIALIZER;  /* held by who runs a job */
static pthread_mutex_t pool_state = PTHREAD_MUTEX_INITIALIZER; /* guards sleeping and stopping */
static pthread_cond_t pool_wake = PTHREAD_COND_INITIALIZER;

static pthread_t pool_workers[POOL_MOST_THREADS];
static int pool_started = 0;      /* workers that exist; changed only with pool_busy held */
static int pool_stop = 0;         /* with pool_state held, or no worker there */
static int pool_sleepers = 0;     /* with pool_state held */
static int pool_spins = 1;        /* whether there are cores to spin on */

#define POOL_LINES _Alignas(128) /* two lines, which some processors fetch together */

/* Written by the caller. */
static POOL_LINES struct {
    unsigned generation; /* number of the newest job, which is how many there were */
    int open;
    int sharers; /* who may take part, the caller among them */
    pool_body body;
    void *context;
} pool_job;

/* The tasks [next, end) that are left of a thread's share, and whether it is inside the job. */
typedef struct {
    POOL_LINES ptrdiff_t next;
    ptrdiff_t end;
    int inside;
} pool_share;
static pool_share pool_shares[POOL_MOST_THREADS];

static void pool_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    __asm__ volatile("" ::: "memory");
#endif
}

static int64_t pool_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pool_take_tasks(int worker) {
    const pool_body body = pool_job.body;
    void *const context = pool_job.context;
    const int sharers = pool_job.sharers;
    for (int i = 0, owner = worker; i < sharers; i++, owner = owner + 1 < sharers ? owner + 1 : 0) {
        pool_share *share = &pool_shares[owner];
        const ptrdiff_t end = share->end;
        while (__atomic_load_n(&share->next, __ATOMIC_RELAXED) < end) {
            const ptrdiff_t task = __atomic_fetch_add(&share->next, 1, __ATOMIC_RELAXED);
            if (task < end) body(context, task, worker);
        }
    }
}

static void *pool_worker(void *argument) {
    int worker = (int)(intptr_t)argument;
    unsigned seen = 0;
    for (;;) {
        int spins = __atomic_load_n(&pool_spins, __ATOMIC_RELAXED);
        int64_t idle = 0, since = spins ? pool_now() : 0;
        unsigned generation = __atomic_load_n(&pool_job.generation, __ATOMIC_ACQUIRE);
        while (spins && generation == seen && idle < YIELD_NANOSECONDS) {
            if (idle >= SPIN_NANOSECONDS) sched_yield();
            for (int i = 0; i < 32 && generation == seen; i++) {
                pool_pause();
                generation = __atomic_load_n(&pool_job.generation, __ATOMIC_ACQUIRE);
            }
            idle = pool_now() - since;
        }
        if (generation == seen) {
            pthread_mutex_lock(&pool_state);
            pool_sleepers++;
            while (!pool_stop &&
                   (generation = __atomic_load_n(&pool_job.generation, __ATOMIC_SEQ_CST)) == seen)
                pthread_cond_wait(&pool_wake, &pool_state);
            pool_sleepers--;
            int stop = pool_stop;
            pthread_mutex_unlock(&pool_state);
            if (stop) return NULL;
        }
        seen = generation;
        int *inside = &pool_shares[worker].inside;
        __atomic_store_n(inside, 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&pool_job.open, __ATOMIC_SEQ_CST) && worker < pool_job.sharers)
            pool_take_tasks(worker);
        __atomic_store_n(inside, 0, __ATOMIC_RELEASE);
    }
}

/* With pool_busy held: end all workers. */
static void pool_join(void) {
    pthread_mutex_lock(&pool_state);
    pool_stop = 1;
    pthread_cond_broadcast(&pool_wake);
    pthread_mutex_unlock(&pool_state);
    for (int i = 0; i < pool_started; i++) pthread_join(pool_workers[i], NULL);
    pool_started = 0;
    pool_stop = 0;
}

/* With pool_busy held: have `n` workers, or as many as the system grants. */
static void pool_start(int n) {
    pthread_attr_t attributes;
    if (pool_started >= n) return;
    sigset_t all, before;
    if (pthread_attr_init(&attributes)) return;
    /* Signals are for the program's own threads, except those that a fault of the thread raises. */
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    while (pool_started < n) {
        void *number = (void *)(intptr_t)(pool_started + 1);
        if (pthread_create(&pool_workers[pool_started], &attributes, pool_worker, number)) break;
        pool_started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

static void pool_before_fork(void) {
    pthread_mutex_lock(&pool_busy);
    pool_join();
}

static void pool_after_fork(void) { pthread_mutex_unlock(&pool_busy); }

static void pool_run(pool_body body, void *context, ptrdiff_t n_tasks, int threads) {
    int helpers = threads - 1;
    if (helpers > n_tasks - 1) helpers = (int)(n_tasks - 1);
    if (helpers < 1 || pthread_mutex_trylock(&pool_busy)) {
        pool_serial(body, context, n_tasks);
        return;
    }
    pool_start(helpers);
    if (pool_started == 0) {
        pthread_mutex_unlock(&pool_busy);
        pool_serial(body, context, n_tasks);
        return;
    }
    const int sharers = helpers < pool_started ? helpers + 1 : pool_started + 1;
    for (int i = 0; i < sharers; i++) {
        pool_shares[i].end = n_tasks / sharers * (i + 1) + n_tasks % sharers * (i + 1) / sharers;
        pool_shares[i].next = i ? pool_shares[i - 1].end : 0;
    }
    pool_job.body = body;
    pool_job.context = context;
    pool_job.sharers = sharers;
    __atomic_store_n(&pool_job.open, 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&pool_job.generation, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&pool_state);
    if (pool_sleepers) pthread_cond_broadcast(&pool_wake);
    pthread_mutex_unlock(&pool_state);
    pool_take_tasks(0);
    __atomic_store_n(&pool_job.open, 0, __ATOMIC_SEQ_CST);
    for (int worker = 1, i = 0; worker <= pool_started; worker++)
        for (; __atomic_load_n(&pool_shares[worker].inside, __ATOMIC_SEQ_CST); i++) {
            if (i < 2000) pool_pause();
            else sched_yield();
        }
    pthread_mutex_unlock(&pool_busy);
}

/* Thread-local scratch memory, kept for the next call, and freed when its thread ends or asks. */
static pthread_key_t pool_scratch_key;
static size_t pool_scratch_held; /* by all threads together; after a fork, also by those left behind */

typedef struct {
    size_t bytes;
    void *memory;
} pool_scratch_block;

/* A block of `bytes` in the place of what was there; 0 if it could be had. */
static int pool_resize_scratch(pool_scratch_block *block, size_t bytes) {
    free(block->memory);
    __atomic_fetch_sub(&pool_scratch_held, block->bytes, __ATOMIC_RELAXED);
    block->memory = NULL;
    block->bytes = 0;
    if (!bytes) return 0;
    if (posix_memalign(&block->memory, 64, bytes)) {
        block->memory = NULL;
        return -1;
    }
    block->bytes = bytes;
    __atomic_fetch_add(&pool_scratch_held, bytes, __ATOMIC_RELAXED);
    return 0;
}

static void pool_end_scratch(void *block) {
    pool_resize_scratch(block, 0);
    free(block);
}

static void *pool_scratch(size_t bytes) {
    pool_scratch_block *block = pthread_getspecific(pool_scratch_key);
    if (!block) {
        block = calloc(1, sizeof *block);
        if (!block) return NULL;
        if (pthread_setspecific(pool_scratch_key, block)) {
            free(block);
            return NULL;
        }
    }
    if (block->bytes < bytes && pool_resize_scratch(block, bytes)) return NULL;
    return block->memory;
}

/* Not from the body of a job: free what the calling thread has, and end the workers, which frees
 * theirs. */
static void pool_release_scratch(void) {
    pthread_mutex_lock(&pool_busy);
    pool_join();
    pthread_mutex_unlock(&pool_busy);
    pool_scratch_block *block = pthread_getspecific(pool_scratch_key);
    if (block) pool_resize_scratch(block, 0);
}

static size_t pool_scratch_bytes(void) {
    return __atomic_load_n(&pool_scratch_held, __ATOMIC_RELAXED);
}

static int pool_init(void) {
    if (pthread_key_create(&pool_scratch_key, pool_end_scratch)) return -1;
    return pthread_atfork(pool_before_fork, pool_after_fork, pool_after_fork) ? -1 : 0;
}

static void pool_set_threads(int n, int cores) {
    if (n < 1) n = 1;
    if (n > POOL_MOST_THREADS) n = POOL_MOST_THREADS;
    __atomic_store_n(&pool_wanted, n, __ATOMIC_RELAXED);
    __atomic_store_n(&pool_spins, n <= cores, __ATOMIC_RELAXED);
    pthread_mutex_lock(&pool_busy);
    if (pool_started >= n) pool_join(); /* surplus workers would wake, and spin, at every job */
    pthread_mutex_unlock(&pool_busy);
}

static int pool_threads(void) { return __atomic_load_n(&pool_wanted, __ATOMIC_RELAXED); }
static unsigned pool_jobs(void) { return __atomic_load_n(&pool_job.generation, __ATOMIC_RELAXED); }

/* The one name that the shared library shows: by it threadpoolctl knows the library. */
__attribute__((visibility("default"))) int smallpebble_get_num_threads(void) {
    return pool_threads();
}

static pool_api pool_table = {pool_run, pool_threads, pool_scratch};
