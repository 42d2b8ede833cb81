/* Prints the name, the dtype, the number of elements and the first element of each tensor of a .opq file.
 *
 *     cc -O3 -Ibuild/c examples/c/list.c build/c/opq.c -lz -lm -o list && ./list < model.opq        (after `make c`) */
#include <stdio.h>
#include <stdlib.h>

#include "opq.h"

static unsigned char bytes[1 << 28]; /* of files up to 256 MiB */

int main(void) {
    opq_error error;
    opq_file *file = opq_open(bytes, fread(bytes, 1, sizeof bytes, stdin), 0, &error);
    if (!file) return fprintf(stderr, "%s\n", error.message), 1;
    for (size_t k = 0; k < opq_count(file); k++) {
        const opq_tensor *tensor = opq_tensor_at(file, k);
        float *values = calloc((size_t)tensor->count + 1, sizeof *values);
        if (!values) return perror(tensor->name), 1;
        if (opq_read_float32(file, k, values, tensor->count, &error)) fprintf(stderr, "%s: %s\n", tensor->name, error.message);
        else printf("%s\t%s\t%u\t%.9g\n", tensor->name, opq_dtype_name(tensor->dtype), tensor->count, (double)values[0]);
        free(values);
    }
    opq_close(file);
}
