/* Memory of large results, recycled. Included by _memory.pyx alone.
 *
 * A fresh page costs a microsecond or two at first touch, so that an array of 10 MB that is mapped
 * and unmapped at every step costs as much as the arithmetic on it. Blocks that are given back are
 * kept, and handed out again for sizes like theirs.
 *
 * What is held, in use and kept together, never exceeds the most that was ever in use at once by more
 * than a quarter and MEMORY_SLACK, without which steps of a few sizes would throw out each other's: a
 * request that finds no block of its size sends kept ones of other sizes back to the system first.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sys/mman.h>
static pthread_mutex_t memory_mutex = PTHREAD_MUTEX_INITIALIZER;
static void memory_lock(void) { pthread_mutex_lock(&memory_mutex); }
static void memory_unlock(void) { pthread_mutex_unlock(&memory_mutex); }
static int memory_init(void) {
    return pthread_atfork(memory_lock, memory_unlock, memory_unlock) ? -1 : 0;
}
static void *memory_new(size_t alignment, size_t bytes) {
    void *p;
    return posix_memalign(&p, alignment, bytes) ? NULL : p;
}
#else
#error "there is no recycling here: setup.py leaves this module out"
#endif

#define MEMORY_HUGE ((size_t)2 << 20) /* from here on, whole pages of this size are asked for */
#define MEMORY_SLACK ((size_t)4 << 20)

/* Sizes are rounded up to an eighth of a power of two, so a block fits what is like it. */
#define MEMORY_STEPS 8
#define MEMORY_CLASSES (MEMORY_STEPS * 48)

/* In front of what is handed out, which is aligned like it: to 64 bytes. */
typedef struct memory_block {
    struct memory_block *next;
    size_t bytes; /* all of it, this header included */
    char unused[48];
} memory_block;

static memory_block *memory_kept[MEMORY_CLASSES];
static size_t memory_kept_bytes, memory_used_bytes, memory_most_bytes;

/* The class of at least `bytes`, whose size replaces them; -1 if there is none so large. */
static int memory_class(size_t *bytes) {
    size_t size = *bytes, step = 512;
    int at = 0;
    for (; size > 2 * MEMORY_STEPS * step; step *= 2) {
        at += MEMORY_STEPS;
        if (at >= MEMORY_CLASSES - 2 * MEMORY_STEPS) return -1;
    }
    const size_t steps = (size + step - 1) / step;
    *bytes = steps * step;
    return at + (int)steps;
}

/* Send kept blocks back until no more than `most` bytes are kept; the largest go first. */
static void memory_trim(size_t most) {
    for (int i = MEMORY_CLASSES - 1; i >= 0 && memory_kept_bytes > most; i--)
        while (memory_kept[i] && memory_kept_bytes > most) {
            memory_block *block = memory_kept[i];
            memory_kept[i] = block->next;
            memory_kept_bytes -= block->bytes;
            free(block);
        }
}

static void *memory_malloc(void *context, size_t size) {
    (void)context;
    size_t bytes = size + sizeof(memory_block);
    const int class = bytes < size ? -1 : memory_class(&bytes);
    if (class < 0) return NULL;
    memory_lock();
    memory_block *block = memory_kept[class];
    const size_t before = memory_most_bytes;
    memory_used_bytes += bytes;
    if (memory_used_bytes > before) memory_most_bytes = memory_used_bytes;
    if (block) {
        memory_kept[class] = block->next;
        memory_kept_bytes -= bytes;
        memory_unlock();
        return block + 1;
    }
    const size_t most = memory_most_bytes, alignment = bytes >= MEMORY_HUGE ? MEMORY_HUGE : 64;
    memory_trim(most + most / 4 + MEMORY_SLACK - memory_used_bytes);
    memory_unlock();
    block = memory_new(alignment, bytes);
    if (!block) { /* perhaps because of what is kept */
        memory_lock();
        memory_trim(0);
        memory_unlock();
        block = memory_new(alignment, bytes);
    }
    if (!block) { /* it was never in use */
        memory_lock();
        memory_used_bytes -= bytes;
        if (memory_most_bytes == most)
            memory_most_bytes = before > memory_used_bytes ? before : memory_used_bytes;
        memory_unlock();
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    if (bytes >= MEMORY_HUGE) madvise(block, bytes, MADV_HUGEPAGE);
#endif
    block->bytes = bytes;
    return block + 1;
}

static void memory_free(void *context, void *p, size_t size) {
    (void)context, (void)size;
    if (!p) return;
    memory_block *block = (memory_block *)p - 1;
    size_t bytes = block->bytes;
    const int class = memory_class(&bytes);
    memory_lock();
    memory_used_bytes -= bytes;
    memory_kept_bytes += bytes;
    block->next = memory_kept[class];
    memory_kept[class] = block;
    memory_unlock();
}

static void *memory_calloc(void *context, size_t n, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) return NULL;
    void *p = memory_malloc(context, bytes);
    if (p) memset(p, 0, bytes);
    return p;
}

static void *memory_realloc(void *context, void *p, size_t size) {
    void *fresh = memory_malloc(context, size);
    if (fresh && p) {
        const size_t old = ((memory_block *)p - 1)->bytes - sizeof(memory_block);
        memcpy(fresh, p, old < size ? old : size);
        memory_free(context, p, old);
    }
    return fresh;
}

static void memory_release(void) {
    memory_lock();
    memory_trim(0);
    memory_most_bytes = memory_used_bytes;
    memory_unlock();
}
