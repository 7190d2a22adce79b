/* Runs a compiled model: inputs on stdin and outputs on stdout, as raw bytes, one tensor after the other.
 *
 *     gcc -O2 example.c model.so -Wl,-rpath,'$ORIGIN' -o example
 *     ./example [THREADS [RUNS]] < inputs.bin > outputs.bin
 */
#include <stdio.h>
#include <stdlib.h>

#include "lowerkit.h"

static void describe(const char *what, const lowerkit_tensor *tensor) {
    fprintf(stderr, "%s %s: %s [", what, tensor->name, tensor->dtype);
    for (int axis = 0; axis < tensor->rank; axis++) fprintf(stderr, axis ? ", %lld" : "%lld", (long long)tensor->shape[axis]);
    fprintf(stderr, "]\n");
}

/* Memory for a tensor; at least one byte, and aligned so that nothing is copied. */
static void *allocate(const lowerkit_tensor *tensor) {
    void *memory = aligned_alloc(LOWERKIT_ALIGNMENT, (tensor->size / LOWERKIT_ALIGNMENT + 1) * LOWERKIT_ALIGNMENT);
    if (!memory) {
        fprintf(stderr, "no memory for %s\n", tensor->name);
        exit(1);
    }
    return memory;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 0, runs = argc > 2 ? atoi(argv[2]) : 1;
    int input_count = lowerkit_input_count(), output_count = lowerkit_output_count();
    void **inputs = calloc(input_count + 1, sizeof *inputs), **outputs = calloc(output_count + 1, sizeof *outputs);
    if (!inputs || !outputs) return 1;
    for (int i = 0; i < input_count; i++) {
        const lowerkit_tensor *tensor = lowerkit_input(i);
        describe("input", tensor);
        inputs[i] = allocate(tensor);
        if (fread(inputs[i], 1, tensor->size, stdin) != tensor->size) {
            fprintf(stderr, "stdin ends before input %s does\n", tensor->name);
            return 1;
        }
    }
    for (int i = 0; i < output_count; i++) {
        describe("output", lowerkit_output(i));
        outputs[i] = allocate(lowerkit_output(i));
    }

    lowerkit_model *model;
    int status = lowerkit_open(&model, threads);
    for (int run = 0; run < runs && !status; run++) status = lowerkit_run(model, (const void *const *)inputs, outputs);
    if (status) fprintf(stderr, "error: %s\n", lowerkit_error());
    for (int i = 0; i < output_count && !status; i++) fwrite(outputs[i], 1, lowerkit_output(i)->size, stdout);

    lowerkit_close(model);
    for (int i = 0; i < input_count; i++) free(inputs[i]);
    for (int i = 0; i < output_count; i++) free(outputs[i]);
    free(inputs);
    free(outputs);
    return status;
}
