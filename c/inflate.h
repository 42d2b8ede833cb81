/* Inflates headers, and graphs of ONNX models: raw deflate streams (RFC 1951) that end with their last byte. zlib does it; or, if
 * OPQ_OWN_INFLATE is defined, the code here. */
#ifndef OPQ_INFLATE_H
#define OPQ_INFLATE_H

#include "bytes.h"

static const char NOT_INFLATED[] = "it cannot be inflated: it is damaged, has bytes too many, or inflates to too many bytes";

/* The most bytes that so many may inflate to. */
static size_t largest_inflated(size_t packed_bytes) {
    const uint64_t expanded = ((uint64_t)1 << 20) + 64 * (uint64_t)packed_bytes;
    return (size_t)(expanded < (1 << 26) ? expanded : 1 << 26);
}

/* Doubles `capacity`, up to `limit`, which it is below. */
static Problem grow(uint8_t **output, size_t *capacity, size_t limit) {
    const size_t larger = *capacity > limit / 2 ? limit : *capacity ? 2 * *capacity : limit < 4096 ? limit : 4096;
    uint8_t *moved = (uint8_t *)realloc(*output, larger ? larger : 1);
    if (!moved) return OUT_OF_MEMORY;
    *output = moved, *capacity = larger;
    return NULL;
}

#if defined(OPQ_OWN_INFLATE)

enum { DEFLATE_BITS = 15, LITERALS = 288, DISTANCES = 30 };

/* A canonical Huffman code: the number of codes of each length, and the symbols in the order of their codes. */
typedef struct {
    uint16_t counts[DEFLATE_BITS + 1], symbols[LITERALS];
} HuffmanCode;

typedef struct {
    Bytes input;
    uint32_t bits;
    int num_bits;
    uint8_t *output;
    size_t length, capacity, limit;
    Problem problem;
} Inflater;

static uint32_t inflate_bits(Inflater *in, int count) {
    while (in->num_bits < count) {
        in->bits |= (uint32_t)take_byte(&in->input) << in->num_bits;
        in->num_bits += 8;
    }
    const uint32_t value = in->bits & ((1u << count) - 1);
    in->bits >>= count, in->num_bits -= count;
    if (in->input.problem) in->problem = NOT_INFLATED;
    return value;
}

/* Whether lengths make a code: no more codes than there are; and fewer only if all have length 1, unless all must be there. */
static int build_code(HuffmanCode *code, const uint8_t *lengths, int count, int complete) {
    uint16_t starts[DEFLATE_BITS + 2] = {0};
    int left = 1, longest = 0;
    memset(code, 0, sizeof *code);
    for (int k = 0; k < count; k++) code->counts[lengths[k]]++;
    code->counts[0] = 0;
    for (int bits = 1; bits <= DEFLATE_BITS; bits++) {
        left = 2 * left - code->counts[bits];
        if (left < 0) return 0;
        if (code->counts[bits]) longest = bits;
        starts[bits + 1] = (uint16_t)(starts[bits] + code->counts[bits]);
    }
    for (int k = 0; k < count; k++)
        if (lengths[k]) code->symbols[starts[lengths[k]]++] = (uint16_t)k;
    return !left || !longest || (longest == 1 && !complete);
}

/* The next symbol; -1 if the bits are no code. */
static int inflate_symbol(Inflater *in, const HuffmanCode *code) {
    int value = 0, first = 0, index = 0;
    for (int bits = 1; bits <= DEFLATE_BITS && !in->problem; bits++) {
        value |= (int)inflate_bits(in, 1);
        const int count = code->counts[bits];
        if (value - count < first) return code->symbols[index + value - first];
        index += count, first = (first + count) << 1, value <<= 1;
    }
    in->problem = NOT_INFLATED;
    return -1;
}

static void inflate_put(Inflater *in, uint8_t byte) {
    if (in->length == in->limit) in->problem = NOT_INFLATED;
    else if (in->length == in->capacity) in->problem = grow(&in->output, &in->capacity, in->limit);
    if (!in->problem) in->output[in->length++] = byte;
}

static void inflate_stored(Inflater *in) {
    in->bits = 0, in->num_bits = 0; /* fewer than 8 bits are read ahead */
    const uint32_t length = inflate_bits(in, 16), complement = inflate_bits(in, 16);
    if (length != (complement ^ 0xFFFF)) in->problem = NOT_INFLATED;
    for (uint32_t k = 0; k < length && !in->problem; k++) inflate_put(in, (uint8_t)inflate_bits(in, 8));
}

static void inflate_codes(Inflater *in, const HuffmanCode *literals, const HuffmanCode *distances) {
    while (!in->problem) {
        const int symbol = inflate_symbol(in, literals);
        if (symbol < 0 || symbol == 256) return;
        if (symbol < 256) {
            inflate_put(in, (uint8_t)symbol);
            continue;
        }
        /* From the ninth length on, and the fifth distance, extra bits double with each group of four, or of two. */
        const int group = (symbol - 257) / 4;
        uint32_t length = 258;
        if (symbol > 285) in->problem = NOT_INFLATED;
        else if (symbol < 265) length = (uint32_t)symbol - 254;
        else if (symbol < 285)
            length = ((4u + (uint32_t)(symbol - 257) % 4) << (group - 1)) + 3 + inflate_bits(in, group - 1);
        const int place = inflate_symbol(in, distances);
        if (place >= DISTANCES) in->problem = NOT_INFLATED;
        if (in->problem) return;
        uint32_t distance = (uint32_t)place + 1;
        if (place > 3) distance = ((2u + (uint32_t)place % 2) << (place / 2 - 1)) + 1 + inflate_bits(in, place / 2 - 1);
        if (distance > in->length) in->problem = NOT_INFLATED;
        for (; length && !in->problem; length--) inflate_put(in, in->output[in->length - distance]);
    }
}

static void inflate_dynamic(Inflater *in) {
    static const uint8_t order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    uint8_t lengths[LITERALS + 32 + 2] = {0};
    HuffmanCode literals, distances;
    const int num_literals = (int)inflate_bits(in, 5) + 257, num_distances = (int)inflate_bits(in, 5) + 1;
    const int num_orders = (int)inflate_bits(in, 4) + 4, total = num_literals + num_distances;
    if (num_literals > 286 || num_distances > DISTANCES) in->problem = NOT_INFLATED;
    for (int k = 0; k < num_orders; k++) lengths[order[k]] = (uint8_t)inflate_bits(in, 3);
    if (in->problem || !build_code(&literals, lengths, 19, 1)) {
        in->problem = NOT_INFLATED;
        return;
    }
    for (int k = 0; k < total && !in->problem;) {
        const int symbol = inflate_symbol(in, &literals);
        if (symbol < 16 && symbol >= 0) {
            lengths[k++] = (uint8_t)symbol;
            continue;
        }
        if (symbol < 0) return;
        const uint8_t repeated = symbol == 16 && k ? lengths[k - 1] : 0;
        int times = symbol == 16 ? 3 + (int)inflate_bits(in, 2) : symbol == 17 ? 3 + (int)inflate_bits(in, 3)
                                                                               : 11 + (int)inflate_bits(in, 7);
        if ((symbol == 16 && !k) || k + times > total) in->problem = NOT_INFLATED;
        for (; times && !in->problem; times--) lengths[k++] = repeated;
    }
    if (in->problem) return;
    if (!lengths[256] || !build_code(&literals, lengths, num_literals, 0) ||
        !build_code(&distances, lengths + num_literals, num_distances, 0))
        in->problem = NOT_INFLATED;
    else inflate_codes(in, &literals, &distances);
}

static void inflate_fixed(Inflater *in) {
    uint8_t lengths[LITERALS];
    HuffmanCode literals, distances;
    for (int k = 0; k < LITERALS; k++) lengths[k] = k < 144 ? 8 : k < 256 ? 9 : k < 280 ? 7 : 8;
    build_code(&literals, lengths, LITERALS, 1);
    memset(lengths, 5, 32);
    build_code(&distances, lengths, 32, 1);
    inflate_codes(in, &literals, &distances);
}

static Problem inflate_stream(Bytes packed, uint8_t **output, size_t *length) {
    Inflater in = {packed, 0, 0, NULL, 0, 0, largest_inflated(packed.size), NULL};
    in.problem = grow(&in.output, &in.capacity, in.limit); /* so that an empty stream has memory too */
    for (uint32_t last = 0; !last && !in.problem;) {
        last = inflate_bits(&in, 1);
        const uint32_t kind = inflate_bits(&in, 2);
        if (in.problem) break;
        if (kind == 0) inflate_stored(&in);
        else if (kind == 1) inflate_fixed(&in);
        else if (kind == 2) inflate_dynamic(&in);
        else in.problem = NOT_INFLATED;
    }
    if (!in.problem && in.input.at != in.input.size) in.problem = NOT_INFLATED;
    if (in.problem) free(in.output);
    else *output = in.output, *length = in.length;
    return in.problem;
}

#else

#include <zlib.h>

static Problem inflate_stream(Bytes packed, uint8_t **output, size_t *length) {
    const size_t limit = largest_inflated(packed.size);
    z_stream stream;
    memset(&stream, 0, sizeof stream);
    if (inflateInit2(&stream, -15) != Z_OK) return OUT_OF_MEMORY;
    uint8_t *data = NULL;
    size_t capacity = 0;
    int result = Z_OK;
    Problem problem = NULL;
    stream.next_in = (Bytef *)(uintptr_t)packed.data, stream.avail_in = (uInt)packed.size; /* its length has 32 bits */
    do {
        const size_t done = capacity;
        problem = grow(&data, &capacity, limit);
        if (problem) break;
        stream.next_out = data + done, stream.avail_out = (uInt)(capacity - done);
        result = inflate(&stream, Z_SYNC_FLUSH);
    } while ((result == Z_OK || result == Z_BUF_ERROR) && stream.avail_out == 0 && capacity < limit);
    if (!problem && (result != Z_STREAM_END || stream.avail_in)) problem = result == Z_MEM_ERROR ? OUT_OF_MEMORY : NOT_INFLATED;
    *length = capacity - stream.avail_out;
    inflateEnd(&stream);
    if (problem) free(data);
    else *output = data;
    return problem;
}

#endif
#endif
