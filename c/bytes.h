/* Bounds-checked reading of untrusted bytes; what went wrong. */
#ifndef OPQ_BYTES_H
#define OPQ_BYTES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A problem is a text, or NULL for none. Functions that return one have freed what they took. */
typedef const char *Problem;

static const char OUT_OF_MEMORY[] = "memory is exhausted";

/* A position in bytes. After the first problem every read gives 0 or NULL, and the problem stays. */
typedef struct {
    const uint8_t *data;
    size_t size, at;
    Problem problem;
} Bytes;

static Bytes bytes_of(const uint8_t *data, size_t size) {
    Bytes bytes = {data, size, 0, NULL};
    return bytes;
}

static void fail(Bytes *bytes, Problem problem) {
    if (!bytes->problem) bytes->problem = problem;
}

static const uint8_t *take(Bytes *bytes, uint64_t count) {
    if (bytes->problem) return NULL;
    if (count > bytes->size - bytes->at) {
        fail(bytes, "it is cut off: more bytes are expected than are left");
        return NULL;
    }
    const uint8_t *start = bytes->data + bytes->at;
    bytes->at += (size_t)count;
    return start;
}

static int take_byte(Bytes *bytes) {
    const uint8_t *byte = take(bytes, 1);
    return byte ? *byte : 0;
}

/* An integer of at most `limit`: seven bits per byte, lowest first, in its shortest form, at most 9 bytes. */
static uint64_t take_varint(Bytes *bytes, uint64_t limit) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        if (shift > 56) fail(bytes, "an integer is longer than 9 bytes");
        const int byte = take_byte(bytes);
        if (bytes->problem) return 0;
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) {
            if (byte == 0 && shift > 0) fail(bytes, "an integer is not in its shortest form");
            break;
        }
    }
    if (value > limit) fail(bytes, "an integer is above its limit");
    return bytes->problem ? 0 : value;
}

static uint32_t take_word(Bytes *bytes) {
    const uint8_t *b = take(bytes, 4);
    return b ? (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24 : 0;
}

/* What a varint counts, as bytes of their own. */
static Bytes take_counted(Bytes *bytes) {
    const uint64_t count = take_varint(bytes, INT64_MAX);
    const uint8_t *start = take(bytes, count);
    Bytes part = {start, start ? (size_t)count : 0, 0, bytes->problem};
    return part;
}

/* All bytes that are left. */
static Bytes take_rest(Bytes *bytes) {
    const size_t count = bytes->problem ? 0 : bytes->size - bytes->at;
    Bytes part = {take(bytes, count), count, 0, bytes->problem};
    return part;
}

static Problem end_of(Bytes *bytes) {
    if (bytes->at != bytes->size) fail(bytes, "there are bytes too many at the end");
    return bytes->problem;
}

/* `count` items of zeros; never a request for none, for which NULL could be a success. */
static void *allocate(uint64_t count, size_t size) {
    if (count > SIZE_MAX / size) return NULL;
    return calloc(count ? (size_t)count : 1, size);
}

static float float_of_bits(uint32_t word) {
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

static uint32_t bits_of_float(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    return word;
}

#endif
