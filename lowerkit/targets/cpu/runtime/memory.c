/* Aligned memory, on large pages where it is large: weights and arenas are read from end to end, and a page of 4 KiB
 * ends the processor's prefetching every 64 lines. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "internal.h"

#define LARGE_PAGE ((size_t)2 << 20)

void *lk_allocate(size_t size) {
    size_t alignment = size >= LARGE_PAGE ? LARGE_PAGE : LOWERKIT_ALIGNMENT;
    if (size > SIZE_MAX - alignment) return NULL;
    size = (size + alignment - 1) / alignment * alignment;
    void *memory = aligned_alloc(alignment, size ? size : alignment);
#ifdef __linux__
    if (memory && alignment == LARGE_PAGE) madvise(memory, size, MADV_HUGEPAGE);
#endif
    return memory;
}

void lk_free(void *memory) {
    free(memory);
}

int lk_copy(void *target, const void *source, size_t size) {
    if (size) memcpy(target, source, size);
    return 0;
}
