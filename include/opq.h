/* Reads .opq files: named tensors of compressed networks. docs/format.md describes the format.
 *
 *     opq_error error;
 *     opq_file *file = opq_open(bytes, size, 0, &error);
 *     for (size_t k = 0; k < opq_count(file); k++) {
 *         const opq_tensor *tensor = opq_tensor_at(file, k);
 *         float *values = malloc(sizeof(float) * tensor->count);
 *         if (opq_read_float32(file, k, values, tensor->count, &error)) puts(error.message);
 *     }
 *     opq_close(file);
 *
 * Bytes may come from anyone. Every length and checksum is checked before it is used; what docs/format.md tells readers to refuse
 * is refused. A file reads the caller's bytes while it is open and copies none. One file must not be used by two threads at once;
 * each thread may open the same bytes.
 */
#ifndef OPQ_H
#define OPQ_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    OPQ_OK = 0,
    OPQ_INVALID = 1,       /* the bytes are not a valid .opq file, or are damaged */
    OPQ_OUT_OF_MEMORY = 2,
    OPQ_MISUSE = 3,        /* no such tensor, an output of another size, or a conversion that does not exist */
} opq_status;

/* The message is one line of UTF-8: "not a valid .opq file: PLACE: PROBLEM", or what was wrong with the call. */
typedef struct {
    opq_status status;
    char message[400];
} opq_error;

/* The codes of the format. An element of float4 or float6 is the low bits of one byte. */
typedef enum {
    OPQ_BOOL, OPQ_UINT8, OPQ_INT8, OPQ_UINT16, OPQ_INT16, OPQ_UINT32, OPQ_INT32, OPQ_UINT64, OPQ_INT64, OPQ_FLOAT16,
    OPQ_BFLOAT16, OPQ_FLOAT32, OPQ_FLOAT64, OPQ_FLOAT8_E4M3FN, OPQ_FLOAT8_E5M2, OPQ_COMPLEX64, OPQ_FLOAT8_E8M0FNU,
    OPQ_FLOAT8_E4M3FNUZ, OPQ_FLOAT8_E5M2FNUZ, OPQ_FLOAT4_E2M1FN, OPQ_FLOAT6_E2M3FN, OPQ_FLOAT6_E3M2FN, OPQ_COMPLEX128,
} opq_dtype;

/* How a file holds a tensor. Those of codes, levels and scaled are weights, and have integer codes. */
typedef enum { OPQ_EXACT, OPQ_HALF, OPQ_CODES, OPQ_LEVELS, OPQ_LINEAR8, OPQ_RELATIVE8, OPQ_SCALED } opq_storage;

typedef struct {
    const char *name; /* UTF-8, with a zero byte after it; it may have zero bytes within */
    size_t name_length;
    opq_dtype dtype;
    opq_storage storage;
    int rank;
    const uint32_t *shape; /* of `rank` sizes; tensors are row-major */
    uint32_t count;        /* of elements */
    float step;            /* the value of code 1 with OPQ_CODES, and with OPQ_SCALED where scales are 0; else 0 */
    uint32_t section;      /* tensors of one section share its bytes */
} opq_tensor;

/* A key and a value of the metadata: UTF-8, with no zero byte after it. */
typedef struct {
    const char *key;
    size_t key_length;
    const char *value;
    size_t value_length;
} opq_metadata;

typedef struct opq_file opq_file;

/* Opens a file that is in memory. Only its header is decoded.
 *
 * max_bytes: the largest allowed sum of the tensors' sizes; 0: 64 MiB plus 4096 times `size`.
 * Returns NULL if it fails. `error` may be NULL here and below. */
opq_file *opq_open(const void *bytes, size_t size, uint64_t max_bytes, opq_error *error);

/* Frees all that belongs to a file. NULL is allowed. */
void opq_close(opq_file *file);

/* The number of tensors, which are in ascending order of their names. */
size_t opq_count(const opq_file *file);

/* A tensor by its number; NULL if there is none. It lives as long as the file. */
const opq_tensor *opq_tensor_at(const opq_file *file, size_t tensor);

/* The number of the tensor of a name that ends with a zero byte; opq_count(file) if there is none. */
size_t opq_find(const opq_file *file, const char *name);

/* Bytes of the tensor in its own dtype; 0 if there is none. */
uint64_t opq_tensor_bytes(const opq_file *file, size_t tensor);

size_t opq_metadata_count(const opq_file *file);
const opq_metadata *opq_metadata_at(const opq_file *file, size_t pair);

/* The name of a dtype in NumPy, such as "float32". */
const char *opq_dtype_name(opq_dtype dtype);

/* Decodes a tensor to its own dtype, in the byte order of the machine. `size` must be opq_tensor_bytes(file, tensor). */
opq_status opq_read(opq_file *file, size_t tensor, void *output, size_t size, opq_error *error);

/* Decodes a tensor to float32: values of its own dtype, rounded to nearest. Complex, float4, float6 and float8 are OPQ_MISUSE.
 * `count` must be that of the tensor. */
opq_status opq_read_float32(opq_file *file, size_t tensor, float *output, size_t count, opq_error *error);

/* Decodes the codes of a weight, of magnitudes below 2^24. With OPQ_CODES the value of a code is tensor->step * code. Other
 * tensors are OPQ_MISUSE. `count` must be that of the tensor. */
opq_status opq_read_codes(opq_file *file, size_t tensor, int32_t *output, size_t count, opq_error *error);

#ifdef __cplusplus
}
#endif

#endif
