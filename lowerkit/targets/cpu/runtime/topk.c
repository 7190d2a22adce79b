/* TopK by a heap of the k best elements so far, the worst of them at its root: O(size log k) for a row. */
#include <string.h>

#include "internal.h"

/* A number in the order of the element at x, whatever its type: one for both zeros, the largest for NaN. */
static uint64_t order(char kind, int width, const unsigned char *x) {
    static const uint64_t infinity[] = {[2] = 0x7c00, [4] = 0x7f800000, [8] = 0x7ff0000000000000};
    const uint64_t middle = (uint64_t)1 << 63, sign = (uint64_t)1 << (8 * width - 1);
    uint64_t bits = 0;
    for (int byte = 0; byte < width; byte++) bits |= (uint64_t)x[byte] << 8 * byte;
    if (kind == 'u') return bits;
    if (kind == 'i') return middle + bits - (bits & sign ? sign << 1 : 0);
    uint64_t magnitude = bits & (sign - 1);
    if (magnitude > infinity[width]) return UINT64_MAX;
    return bits & sign ? middle - magnitude : middle + magnitude;
}

/* Whether element i of a row is better than element j: larger, or as large and before it. */
static bool better(const uint64_t *row, int64_t i, int64_t j) {
    return row[i] != row[j] ? row[i] > row[j] : i < j;
}

/* Puts `element` into the hole at `hole` of a heap whose elements are better than their parents. */
static void sift(const uint64_t *row, int64_t *heap, int64_t count, int64_t hole, int64_t element) {
    for (int64_t child; (child = 2 * hole + 1) < count; hole = child) {
        if (child + 1 < count && better(row, heap[child], heap[child + 1])) child++;
        if (!better(row, element, heap[child])) break;
        heap[hole] = heap[child];
    }
    heap[hole] = element;
}

/* The k best elements of a row, the best first. */
static void choose(const uint64_t *row, int64_t size, int64_t *heap, int64_t k) {
    for (int64_t i = 0; i < k; i++) heap[i] = i;
    for (int64_t i = k / 2; i-- > 0;) sift(row, heap, k, i, heap[i]);
    for (int64_t i = k; i < size; i++)
        if (better(row, i, heap[0])) sift(row, heap, k, 0, i);
    for (int64_t count = k - 1; count > 0; count--) {
        int64_t worst = heap[0];
        sift(row, heap, count, 0, heap[count]);
        heap[count] = worst;
    }
}

int lk_topk(const void *x, char kind, int width, int64_t outer, int64_t size, int64_t inner, int64_t k, int largest,
            void *values, void *indices) {
    if (k == 0) return 0;
    uint64_t *row = lk_allocate(size * sizeof *row);
    int64_t *heap = lk_allocate(k * sizeof *heap);
    for (int64_t o = 0; row && heap && o < outer; o++)
        for (int64_t i = 0; i < inner; i++) {
            const unsigned char *first = (const unsigned char *)x + (o * size * inner + i) * width;
            for (int64_t at = 0; at < size; at++) {
                uint64_t key = order(kind, width, first + at * inner * width);
                row[at] = largest ? key : ~key;
            }
            choose(row, size, heap, k);
            for (int64_t rank = 0; rank < k; rank++) {
                int64_t to = (o * k + rank) * inner + i;
                memcpy((unsigned char *)values + to * width, first + heap[rank] * inner * width, width);
                ((int64_t *)indices)[to] = heap[rank];
            }
        }
    int status = row && heap ? LOWERKIT_OK : lk_fail(LOWERKIT_RESOURCES, "no memory for TopK");
    lk_free(row);
    lk_free(heap);
    return status;
}
