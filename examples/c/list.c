/* Prints the tensors of a .opq file, and the mean magnitude of each.
 *
 *     cc -O3 -Ibuild/c examples/c/list.c build/c/opq.c -lz -o list && ./list model.opq        (after `make c`) */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "opq.h"

/* A whole file in memory; NULL if it cannot be read. */
static void *read_whole(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) return NULL;
    *size = (size_t)ftell(file);
    void *bytes = malloc(*size + 1);
    rewind(file);
    return bytes && fread(bytes, 1, *size, file) == *size ? bytes : NULL;
}

int main(int argc, char **argv) {
    size_t size = 0;
    void *bytes = argc == 2 ? read_whole(argv[1], &size) : NULL;
    opq_error error = {OPQ_MISUSE, "usage: list FILE"};
    opq_file *file = bytes ? opq_open(bytes, size, 0, &error) : NULL;
    for (size_t k = 0; file && k < opq_count(file); k++) {
        const opq_tensor *tensor = opq_tensor_at(file, k);
        float *values = malloc(sizeof *values * tensor->count + 1);
        double sum = 0.0;
        if (!values || opq_read_float32(file, k, values, tensor->count, &error)) break;
        for (size_t i = 0; i < tensor->count; i++) sum += fabs((double)values[i]);
        printf("%-9s %10u  %.3g  %s\n", opq_dtype_name(tensor->dtype), tensor->count, sum / (tensor->count + !tensor->count), tensor->name);
        free(values);
    }
    if (error.status) fprintf(stderr, "%s\n", error.message);
    opq_close(file), free(bytes);
    return error.status != OPQ_OK;
}
