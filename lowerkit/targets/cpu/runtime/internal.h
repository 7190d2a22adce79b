/* What the parts of the runtime, and the generated program, know of each other. */
#ifndef LOWERKIT_INTERNAL_H
#define LOWERKIT_INTERNAL_H

#include <stdbool.h>

#include "lowerkit.h"

/* features.c: the first of a NULL-terminated list of features that this processor or its system lacks, or NULL.
 * Names are those of /proc/cpuinfo. */
const char *lk_lacking(const char *const *features);

/* memory.c: zero bytes give a pointer too; NULL when there is no memory. */
void *lk_allocate(size_t size);
void lk_free(void *memory);

/* The longest text of an error. */
#define LK_TEXT 512
/* Records the text that lowerkit_error() returns on this thread, and returns `status`. */
int lk_fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));

double lk_seconds(void);

/* pool.c: threads that share parallel loops. */
typedef struct lk_pool lk_pool;

/* Part `index` of `count` of a loop; other than 0 where it failed. */
typedef int (*lk_task)(int index, int count, void *data);

/* Parts of a loop for each thread of several. */
#define LK_PARTS 4

/* A pool of `threads` threads, the caller's included, or NULL (lk_fail() has been called). */
lk_pool *lk_pool_open(int threads);
void lk_pool_close(lk_pool *pool);
/* Between these the calling thread is one of the pool's, and the others are awake if loops are to come. */
void lk_pool_enter(lk_pool *pool, bool loops);
void lk_pool_leave(lk_pool *pool);
/* Runs all parts of a loop on the pool that the calling thread has entered. */
int lk_parallel(lk_task task, void *data);

/* Memory that a thread of a pool keeps from one kernel to the next. */
#define LK_SCRATCH_BLOCKS 32
typedef struct lk_scratch {
    struct lk_block {
        void *memory;
        size_t size;
        bool used;
    } blocks[LK_SCRATCH_BLOCKS];
} lk_scratch;
lk_scratch *lk_my_scratch(void);

/* The generated program. */
typedef struct lk_run {
    unsigned char *arena;
    unsigned char *const *inputs;
    unsigned char *const *outputs;
    double *seconds; /* NULL, or where the time of each step goes */
} lk_run;

typedef struct lk_program {
    const char *version;
    const char *cpu;
    const char *const *features;
    int inputs, outputs, steps;
    const lowerkit_tensor *input, *output;
    const char *const *step;
    size_t arena;
    bool parallel; /* whether any kernel shares a loop */
    int (*run)(const lk_run *run);
} lk_program;

extern const lk_program lk_the_program;

/* Runs `call` as step `index` of the generated program. */
#define LK_STEP(index, call)                         \
    do {                                             \
        double start = run->seconds ? lk_seconds() : 0; \
        if (call) return index + 1;                  \
        if (run->seconds) run->seconds[index] = lk_seconds() - start; \
    } while (0)

/* memcpy, as a step. */
int lk_copy(void *target, const void *source, size_t size);

/* topk.c: the k largest or smallest of each row, in order. x is [outer, size, inner], of integers ('i'), unsigned ones
 * ('u') or floats ('f') of `width` bytes; `values`, of its type, and `indices`, of int64, are [outer, k, inner]. Of
 * equal elements the first comes first; NaN is above every number. */
int lk_topk(const void *x, char kind, int width, int64_t outer, int64_t size, int64_t inner, int64_t k, int largest,
            void *values, void *indices);

#endif
