/* Whether this processor has what a model was compiled for. Compiled for the oldest processor of the architecture, so
 * that it runs on all of them. */
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)
#include <cpuid.h>

enum { EBX, ECX, EDX, EAX };
/* Registers that the operating system has to save: XMM and YMM; and the masks, and ZMM. */
enum { AVX = 0x06, AVX512 = 0xe6 };

/* Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A, CPUID. */
static const struct feature {
    const char *name;
    unsigned leaf, subleaf;
    int word, bit;
    unsigned long long state; /* bits of XCR0 that it needs */
} FEATURES[] = {
    {"ssse3", 1, 0, ECX, 9, 0},
    {"fma", 1, 0, ECX, 12, AVX},
    {"cx16", 1, 0, ECX, 13, 0},
    {"sse4_1", 1, 0, ECX, 19, 0},
    {"sse4_2", 1, 0, ECX, 20, 0},
    {"movbe", 1, 0, ECX, 22, 0},
    {"popcnt", 1, 0, ECX, 23, 0},
    {"avx", 1, 0, ECX, 28, AVX},
    {"f16c", 1, 0, ECX, 29, AVX},
    {"bmi1", 7, 0, EBX, 3, 0},
    {"avx2", 7, 0, EBX, 5, AVX},
    {"bmi2", 7, 0, EBX, 8, 0},
    {"avx512f", 7, 0, EBX, 16, AVX512},
    {"avx512dq", 7, 0, EBX, 17, AVX512},
    {"avx512cd", 7, 0, EBX, 28, AVX512},
    {"avx512bw", 7, 0, EBX, 30, AVX512},
    {"avx512vl", 7, 0, EBX, 31, AVX512},
    {"avx512_vnni", 7, 0, ECX, 11, AVX512},
    {"avx512_bf16", 7, 1, EAX, 5, AVX512},
    {"lahf_lm", 0x80000001, 0, ECX, 0, 0},
    {"abm", 0x80000001, 0, ECX, 5, 0},
};

static unsigned long long saved_registers(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (unsigned long long)high << 32 | low;
}

static bool has(const char *name) {
    for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++) {
        const struct feature *feature = &FEATURES[i];
        if (strcmp(feature->name, name)) continue;
        unsigned words[4];
        if (!__get_cpuid_count(feature->leaf, feature->subleaf, &words[EAX], &words[EBX], &words[ECX], &words[EDX]))
            return false;
        return words[feature->word] >> feature->bit & 1 && (saved_registers() & feature->state) == feature->state;
    }
    return false;
}
#else
static bool has(const char *name) {
    (void)name;
    return false;
}
#endif

const char *lk_lacking(const char *const *features) {
    for (; *features; features++)
        if (!has(*features)) return *features;
    return NULL;
}
