/* Runs many short loops on pools of threads, with pauses in which they fall asleep, and checks that every part of every
 * loop ran once. Built with ThreadSanitizer by test_cpu_runtime.py. */
#include <stdlib.h>
#include <time.h>

#include "internal.h"

enum { POOLS = 2, RUNS = 150, LOOPS = 20, FAILURE = 7 };

const lk_program lk_the_program;

static int part(int index, int count, void *data) {
    long *done = data;
    done[index] += count;
    return index == count - 1 && done[index] % (5 * count) == 0 ? FAILURE : 0;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 4, parts = threads * LK_PARTS, wrong = 0;
    for (int round = 0; round < POOLS; round++) {
        lk_pool *pool = lk_pool_open(threads);
        long *done = calloc(parts, sizeof *done);
        if (!pool || !done) return 2;
        for (int run = 0; run < RUNS; run++) {
            lk_pool_enter(pool, true);
            for (int loop = 0; loop < LOOPS; loop++) {
                int expected = (run * LOOPS + loop + 1) % 5 == 0 ? FAILURE : 0;
                wrong += lk_parallel(part, done) != expected;
                struct timespec pause = {0, loop == 10 && run % 25 == 0 ? 200000 : 0};
                if (pause.tv_nsec) nanosleep(&pause, NULL);
            }
            lk_pool_leave(pool);
        }
        for (int index = 0; index < parts; index++) wrong += done[index] != (long)RUNS * LOOPS * parts;
        free(done);
        lk_pool_close(pool);
    }
    return wrong ? 1 : 0;
}
