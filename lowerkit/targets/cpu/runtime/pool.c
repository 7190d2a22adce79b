/* Threads that share the parallel loops of one run at a time.
 *
 * A loop is cut into LK_PARTS parts for each thread. Each thread takes its own parts first, so that the same core sees the
 * same rows from kernel to kernel, and then any that nobody has taken: a thread that the system holds up, or whose core
 * is slower, delays nobody by more than a part. Who computes a part changes no number.
 *
 * Threads spin for up to SPIN seconds for the next loop of a run, which comes sooner than the system could wake them;
 * then, and between runs, they sleep.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "internal.h"

#define SPIN 50e-6

typedef struct lk_worker {
    _Alignas(LOWERKIT_ALIGNMENT) _Atomic uint64_t taken; /* how many of its parts of the last loop are, see next_part */
    lk_pool *pool;
    int index;
    int failure; /* of the current loop */
    pthread_t thread;
    char error[LK_TEXT];
    lk_scratch scratch;
} lk_worker;

struct lk_pool {
    int threads;
    lk_task task; /* the current loop */
    void *data;
    _Alignas(LOWERKIT_ALIGNMENT) _Atomic uint64_t loop; /* its number */
    atomic_bool running, closing;
    atomic_int asleep, waiting; /* workers that sleep; whether the caller does */
    _Alignas(LOWERKIT_ALIGNMENT) atomic_int left; /* parts that are not done */
    pthread_mutex_t mutex;
    pthread_cond_t wake, done;
    lk_worker workers[];
};

static _Thread_local lk_worker *current;

lk_scratch *lk_my_scratch(void) {
    return &current->scratch;
}

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Takes the next of the parts of loop number `loop` that are for `owner`; LK_PARTS when none is left. `taken` counts on
 * from loop to loop, in steps of LK_PARTS + 1. */
static int next_part(lk_worker *owner, uint64_t loop) {
    uint64_t first = loop * (LK_PARTS + 1), taken = atomic_load(&owner->taken);
    while (taken < first + LK_PARTS) {
        uint64_t part = taken < first ? 0 : taken - first;
        if (atomic_compare_exchange_weak(&owner->taken, &taken, first + part + 1)) return part;
    }
    return LK_PARTS;
}

/* Takes parts of loop number `loop` until none is left. The loop cannot end, and so the pool's fields cannot change,
 * while a part that was taken is not done; of a loop that has ended nothing can be taken. */
static void take_parts(lk_worker *self, uint64_t loop) {
    lk_pool *pool = self->pool;
    for (int offset = 0; offset < pool->threads; offset++) {
        int owner = (self->index + offset) % pool->threads;
        for (int part; (part = next_part(&pool->workers[owner], loop)) < LK_PARTS;) {
            int failure = pool->task(owner * LK_PARTS + part, pool->threads * LK_PARTS, pool->data);
            if (failure) {
                self->failure = failure;
                snprintf(self->error, sizeof self->error, "%s", lowerkit_error());
            }
            if (atomic_fetch_sub(&pool->left, 1) == 1 && atomic_load(&pool->waiting)) {
                pthread_mutex_lock(&pool->mutex);
                pthread_cond_signal(&pool->done);
                pthread_mutex_unlock(&pool->mutex);
            }
        }
    }
}

/* The number of the next loop after `seen`. */
static uint64_t await_loop(lk_pool *pool, uint64_t seen) {
    uint64_t loop;
    double end = 0;
    for (unsigned spins = 0; atomic_load(&pool->running); spins++) {
        if ((loop = atomic_load(&pool->loop)) != seen) return loop;
        relax();
        if (spins % 32) continue;
        double now = lk_seconds();
        if (spins == 0) end = now + SPIN;
        if (now > end) break;
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->asleep, 1);
    /* Once more after every wake: a run that has begun is worth spinning for. */
    bool woken = false;
    while ((loop = atomic_load(&pool->loop)) == seen && !atomic_load(&pool->closing) && !woken) {
        pthread_cond_wait(&pool->wake, &pool->mutex);
        woken = atomic_load(&pool->running);
    }
    atomic_fetch_sub(&pool->asleep, 1);
    pthread_mutex_unlock(&pool->mutex);
    return loop;
}

static void *work(void *argument) {
    lk_worker *self = current = argument;
    lk_pool *pool = self->pool;
    uint64_t seen = 0;
    while (!atomic_load(&pool->closing)) {
        uint64_t loop = await_loop(pool, seen);
        if (loop != seen) take_parts(self, seen = loop);
    }
    return NULL;
}

static void wake_workers(lk_pool *pool) {
    if (atomic_load(&pool->asleep) == 0) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

lk_pool *lk_pool_open(int threads) {
    size_t size = sizeof(lk_pool) + threads * sizeof(lk_worker);
    lk_pool *pool = lk_allocate(size);
    if (!pool) {
        lk_fail(LOWERKIT_RESOURCES, "no memory for %d threads", threads);
        return NULL;
    }
    *pool = (lk_pool){.threads = 1};
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    for (int index = 0; index < threads; index++) pool->workers[index] = (lk_worker){.pool = pool, .index = index};
    for (int index = 1; index < threads; index++) {
        if (pthread_create(&pool->workers[index].thread, NULL, work, &pool->workers[index])) {
            lk_fail(LOWERKIT_RESOURCES, "the system starts no more than %d of %d threads", index, threads);
            lk_pool_close(pool);
            return NULL;
        }
        pool->threads = index + 1;
    }
    return pool;
}

void lk_pool_close(lk_pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->closing, true);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (int index = 1; index < pool->threads; index++) pthread_join(pool->workers[index].thread, NULL);
    for (int index = 0; index < pool->threads; index++)
        for (int block = 0; block < LK_SCRATCH_BLOCKS; block++) lk_free(pool->workers[index].scratch.blocks[block].memory);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->done);
    pthread_mutex_destroy(&pool->mutex);
    lk_free(pool);
}

void lk_pool_enter(lk_pool *pool, bool loops) {
    current = &pool->workers[0];
    if (!loops || pool->threads == 1) return;
    atomic_store(&pool->running, true);
    wake_workers(pool);
}

void lk_pool_leave(lk_pool *pool) {
    atomic_store(&pool->running, false);
    current = NULL;
}

int lk_parallel(lk_task task, void *data) {
    lk_worker *self = current;
    lk_pool *pool = self->pool;
    if (pool->threads == 1) return task(0, 1, data);
    pool->task = task;
    pool->data = data;
    for (int index = 0; index < pool->threads; index++) pool->workers[index].failure = 0;
    atomic_store(&pool->left, pool->threads * LK_PARTS);
    uint64_t loop = atomic_fetch_add(&pool->loop, 1) + 1;
    wake_workers(pool);
    take_parts(self, loop);
    double end = 0;
    for (unsigned spins = 0; atomic_load(&pool->left); spins++) {
        relax();
        if (spins % 32) continue;
        double now = lk_seconds();
        if (spins == 0) end = now + SPIN;
        if (now < end) continue;
        pthread_mutex_lock(&pool->mutex);
        atomic_store(&pool->waiting, 1);
        while (atomic_load(&pool->left)) pthread_cond_wait(&pool->done, &pool->mutex);
        atomic_store(&pool->waiting, 0);
        pthread_mutex_unlock(&pool->mutex);
    }
    for (int index = 0; index < pool->threads; index++) {
        lk_worker *worker = &pool->workers[index];
        if (worker->failure) return lk_fail(worker->failure, "%s", worker->error);
    }
    return 0;
}
