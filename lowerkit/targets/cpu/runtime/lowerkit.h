/* A compiled model as a C library, model.so: no Python, no TVM.
 *
 *     lowerkit_model *model;
 *     if (lowerkit_open(&model, 0) || lowerkit_run(model, inputs, outputs))
 *         fprintf(stderr, "%s\n", lowerkit_error());
 *     lowerkit_close(model);
 *
 * A library is one model. To use two in one process, load each with dlopen(path, RTLD_LOCAL).
 *
 * Threads. A model has threads of its own, which compute beside the calling one; between calls they sleep. Any thread
 * may call; calls on one model take turns. A model does not survive fork() in the child: open it there again.
 */
#ifndef LOWERKIT_H
#define LOWERKIT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Addresses that are multiples of this are used as they are; what lies elsewhere is copied. */
#define LOWERKIT_ALIGNMENT 64

/* What functions return; lowerkit_error() says more. */
enum lowerkit_status {
    LOWERKIT_OK = 0,
    LOWERKIT_UNSUPPORTED = 1, /* the processor lacks a feature that the model was compiled for */
    LOWERKIT_RESOURCES = 2,   /* no memory, or no thread */
    LOWERKIT_INVALID = 3,     /* an argument is wrong, or the process was forked since the model was opened */
    LOWERKIT_FAILED = 4       /* a kernel stopped: its input breaks what the model assumes */
};

/* An input or output. Its elements lie one after the other, the last axis fastest. */
typedef struct lowerkit_tensor {
    const char *name;
    const char *dtype; /* as numpy names it: "float32", "int64", "bool", ... */
    int rank;
    const int64_t *shape;
    size_t size; /* in bytes */
} lowerkit_tensor;

typedef struct lowerkit_model lowerkit_model;

/* The version of lowerkit that compiled the library. */
const char *lowerkit_version(void);

/* The text of this thread's last error, in one line; valid until its next one. */
const char *lowerkit_error(void);

int lowerkit_input_count(void);
int lowerkit_output_count(void);
/* NULL where there is no such input or output. */
const lowerkit_tensor *lowerkit_input(int index);
const lowerkit_tensor *lowerkit_output(int index);

/* Opens the model for `threads` threads, the calling one included; 0 for every processor the process may use. */
int lowerkit_open(lowerkit_model **model, int threads);

/* Runs it once: one pointer for each input, one for each output. An output overlaps no input and no other output. */
int lowerkit_run(lowerkit_model *model, const void *const *inputs, void *const *outputs);

/* The same, and the seconds that every step took, of which there are lowerkit_step_count(). */
int lowerkit_profile(lowerkit_model *model, const void *const *inputs, void *const *outputs, double *seconds);
int lowerkit_step_count(void);
const char *lowerkit_step_name(int step);

/* Ends the model's threads and frees its memory. NULL is ignored. */
void lowerkit_close(lowerkit_model *model);

#ifdef __cplusplus
}
#endif

#endif
