/* Reads files with opq.h and prints one line of JSON for each: what tests/readers/vectors.py expects of every reader.
 *
 *     dump VECTORS
 *
 * VECTORS has for each file its size, 32 bits with the lowest byte first, and its bytes. Text and data are in hexadecimal, but
 * for data of more than a megabyte, of which there is the CRC-32. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "opq.h"

static void print_hex(const char *key, const void *data, size_t size) {
    static const char digits[] = "0123456789abcdef";
    char text[4096];
    printf("\"%s\":\"", key);
    for (size_t start = 0, length = 0; start < size; start += 2048, length = 0) {
        for (size_t k = start; k < size && k < start + 2048; k++) {
            const unsigned char byte = ((const unsigned char *)data)[k];
            text[length++] = digits[byte >> 4], text[length++] = digits[byte & 15];
        }
        fwrite(text, 1, length, stdout);
    }
    putchar('"');
}

static uint32_t crc32_of(const unsigned char *data, size_t size) {
    uint32_t table[256], crc = 0xFFFFFFFFu;
    for (uint32_t k = 0; k < 256; k++) {
        table[k] = k;
        for (int bit = 0; bit < 8; bit++) table[k] = table[k] >> 1 ^ (table[k] & 1 ? 0xEDB88320u : 0);
    }
    for (size_t k = 0; k < size; k++) crc = crc >> 8 ^ table[(crc ^ data[k]) & 255];
    return ~crc;
}

/* Memory of exactly this size, so that a sanitizer sees what is written or read beyond it. */
static void *exactly(size_t size) {
    void *memory = malloc(size);
    if (!memory && size) exit(2);
    return memory;
}

static void print_read(const char *key, opq_status status, const void *data, size_t size, const opq_error *error) {
    putchar(',');
    if (status == OPQ_OK && size > 1 << 16) printf("\"%s\":{\"crc32\":%u}", key, (unsigned)crc32_of(data, size));
    else if (status == OPQ_OK) print_hex(key, data, size);
    else if (status == OPQ_MISUSE) printf("\"%s\":null", key);
    else printf("\"%s\":{", key), print_hex("error", error->message, strlen(error->message)), putchar('}');
}

static void print_tensor(opq_file *file, size_t number) {
    const opq_tensor *tensor = opq_tensor_at(file, number);
    const size_t count = tensor->count, size = (size_t)opq_tensor_bytes(file, number);
    opq_error error;
    putchar('{');
    print_hex("name", tensor->name, tensor->name_length);
    printf(",\"dtype\":\"%s\",\"step\":%.9g,\"shape\":[", opq_dtype_name(tensor->dtype), (double)tensor->step);
    for (int axis = 0; axis < tensor->rank; axis++) printf("%s%u", axis ? "," : "", (unsigned)tensor->shape[axis]);
    putchar(']');
    void *own = exactly(size), *floats = exactly(sizeof(float) * count), *codes = exactly(sizeof(int32_t) * count);
    opq_status status = opq_read(file, number, own, size, &error);
    print_read("bytes", status, own, size, &error);
    status = opq_read_float32(file, number, (float *)floats, count, &error);
    print_read("float32", status, floats, sizeof(float) * count, &error);
    status = opq_read_codes(file, number, (int32_t *)codes, count, &error);
    print_read("codes", status, codes, sizeof(int32_t) * count, &error);
    free(own), free(floats), free(codes);
    putchar('}');
}

static void print_file(const void *bytes, size_t size) {
    opq_error error;
    opq_file *file = opq_open(bytes, size, 0, &error);
    putchar('{');
    if (!file) {
        print_hex("error", error.message, strlen(error.message));
    } else {
        printf("\"metadata\":[");
        for (size_t k = 0; k < opq_metadata_count(file); k++) {
            const opq_metadata *pair = opq_metadata_at(file, k);
            printf(k ? ",{" : "{");
            print_hex("key", pair->key, pair->key_length), putchar(','), print_hex("value", pair->value, pair->value_length);
            putchar('}');
        }
        printf("],\"tensors\":[");
        for (size_t k = 0; k < opq_count(file); k++) {
            if (k) putchar(',');
            print_tensor(file, k);
        }
        putchar(']');
    }
    puts("}");
    opq_close(file);
}

int main(int argc, char **argv) {
    FILE *vectors = argc == 2 ? fopen(argv[1], "rb") : NULL;
    unsigned char size[4];
    if (!vectors) return 2;
    while (fread(size, 1, 4, vectors) == 4) {
        const size_t count = (size_t)size[0] | (size_t)size[1] << 8 | (size_t)size[2] << 16 | (size_t)size[3] << 24;
        void *bytes = exactly(count);
        if (fread(bytes, 1, count, vectors) != count) return 2;
        print_file(bytes, count);
        free(bytes);
    }
    fclose(vectors);
    return 0;
}
