/* The public functions: see lowerkit.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define MODEL (&lk_the_program)

struct lowerkit_model {
    lk_pool *pool;
    unsigned char *arena;
    unsigned char **staging;  /* by input, then output: aligned memory in place of the caller's, or NULL */
    unsigned char **pointers; /* of the current run, in the same order */
    pthread_mutex_t turn;
    pid_t process;
};

static _Thread_local char last_error[LK_TEXT];

int lk_fail(int status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

double lk_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

const char *lowerkit_error(void) {
    return last_error;
}

const char *lowerkit_version(void) {
    return MODEL->version;
}

int lowerkit_input_count(void) {
    return MODEL->inputs;
}

int lowerkit_output_count(void) {
    return MODEL->outputs;
}

const lowerkit_tensor *lowerkit_input(int index) {
    return index >= 0 && index < MODEL->inputs ? &MODEL->input[index] : NULL;
}

const lowerkit_tensor *lowerkit_output(int index) {
    return index >= 0 && index < MODEL->outputs ? &MODEL->output[index] : NULL;
}

int lowerkit_step_count(void) {
    return MODEL->steps;
}

const char *lowerkit_step_name(int step) {
    return step >= 0 && step < MODEL->steps ? MODEL->step[step] : NULL;
}

static int usable_processors(void) {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (int)count : 1;
}

int lowerkit_open(lowerkit_model **result, int threads) {
    if (!result) return lk_fail(LOWERKIT_INVALID, "there is nowhere to put the model");
    *result = NULL;
    if (threads < 0) return lk_fail(LOWERKIT_INVALID, "threads must be 0 (all) or a positive number");
    const char *lacking = lk_lacking(MODEL->features);
    if (lacking)
        return lk_fail(LOWERKIT_UNSUPPORTED,
                       "the artifact is for %s, and this processor lacks %s. Compile with an older `cpu` option",
                       MODEL->cpu, lacking);
    lowerkit_model *model = calloc(1, sizeof *model);
    if (!model) return lk_fail(LOWERKIT_RESOURCES, "no memory for the model");
    int tensors = MODEL->inputs + MODEL->outputs;
    model->process = getpid();
    pthread_mutex_init(&model->turn, NULL);
    model->arena = lk_allocate(MODEL->arena);
    model->staging = calloc(tensors + 1, sizeof *model->staging);
    model->pointers = calloc(tensors + 1, sizeof *model->pointers);
    if (!model->arena || !model->staging || !model->pointers)
        lk_fail(LOWERKIT_RESOURCES, "no memory for %zu bytes of intermediate values", MODEL->arena);
    else
        model->pool = lk_pool_open(threads ? threads : usable_processors());
    if (!model->pool) {
        lowerkit_close(model);
        return LOWERKIT_RESOURCES;
    }
    *result = model;
    return LOWERKIT_OK;
}

void lowerkit_close(lowerkit_model *model) {
    if (!model) return;
    /* A child of fork() has no threads to end. */
    if (model->pool && model->process == getpid()) lk_pool_close(model->pool);
    for (int i = 0; model->staging && i < MODEL->inputs + MODEL->outputs; i++) lk_free(model->staging[i]);
    free(model->staging);
    free(model->pointers);
    lk_free(model->arena);
    pthread_mutex_destroy(&model->turn);
    free(model);
}

/* Where tensor `index` is computed: the caller's memory, or aligned memory in its place. NULL without memory. */
static unsigned char *place(lowerkit_model *model, int index, const void *given, size_t size) {
    if ((uintptr_t)given % LOWERKIT_ALIGNMENT == 0) return (unsigned char *)given;
    if (!model->staging[index]) model->staging[index] = lk_allocate(size);
    return model->staging[index];
}

static int run(lowerkit_model *model, const void *const *inputs, void *const *outputs, double *seconds) {
    unsigned char **in = model->pointers, **out = in + MODEL->inputs;
    for (int i = 0; i < MODEL->inputs; i++) {
        size_t size = MODEL->input[i].size;
        if (!inputs[i] && size) return lk_fail(LOWERKIT_INVALID, "input '%s' is NULL", MODEL->input[i].name);
        in[i] = place(model, i, inputs[i], size);
        if (!in[i] && size) return lk_fail(LOWERKIT_RESOURCES, "no memory for a copy of '%s'", MODEL->input[i].name);
        if (in[i] != inputs[i]) memcpy(in[i], inputs[i], size);
    }
    for (int i = 0; i < MODEL->outputs; i++) {
        size_t size = MODEL->output[i].size;
        if (!outputs[i] && size) return lk_fail(LOWERKIT_INVALID, "output '%s' is NULL", MODEL->output[i].name);
        out[i] = place(model, MODEL->inputs + i, outputs[i], size);
        if (!out[i] && size) return lk_fail(LOWERKIT_RESOURCES, "no memory for a copy of '%s'", MODEL->output[i].name);
    }
    const lk_run this = {model->arena, in, out, seconds};
    lk_pool_enter(model->pool, MODEL->parallel);
    int failed = MODEL->run(&this);
    lk_pool_leave(model->pool);
    if (failed) {
        char reason[LK_TEXT];
        snprintf(reason, sizeof reason, "%s", last_error);
        return lk_fail(LOWERKIT_FAILED, "kernel '%s' stopped: %s", MODEL->step[failed - 1], reason);
    }
    for (int i = 0; i < MODEL->outputs; i++)
        if (out[i] != outputs[i]) memcpy(outputs[i], out[i], MODEL->output[i].size);
    return LOWERKIT_OK;
}

int lowerkit_profile(lowerkit_model *model, const void *const *inputs, void *const *outputs, double *seconds) {
    if (!model) return lk_fail(LOWERKIT_INVALID, "there is no model");
    if (model->process != getpid())
        return lk_fail(LOWERKIT_INVALID, "the model was opened before fork(), and its threads are not in this process. "
                                         "Open it again here");
    pthread_mutex_lock(&model->turn);
    int status = run(model, inputs, outputs, seconds);
    pthread_mutex_unlock(&model->turn);
    return status;
}

int lowerkit_run(lowerkit_model *model, const void *const *inputs, void *const *outputs) {
    return lowerkit_profile(model, inputs, outputs, NULL);
}
