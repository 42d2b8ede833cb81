/* Packs of auxiliary tensors, tables of levels, scales, and tables of fast sections. docs/format.md, "Packs of auxiliary tensors". */
#ifndef OPQ_PACK_H
#define OPQ_PACK_H

#include "byte_model.h"
#include "bytes.h"
#include "fast_plane.h"

/* Words of a pack: those of one tensor, or both parts of each of its complex numbers. */
typedef struct {
    int size;         /* bytes of a word: 1, 2, 4 or 8 */
    int rotated;      /* whether it was rotated left by one bit */
    int largest;      /* the largest word; 0: any */
    uint64_t count;
    size_t offset;    /* where `decode_pack` puts the first one in its output */
} Words;

/* The place of a word's byte, counted from the highest, in memory. */
static size_t place_of_byte(int size, int byte) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return (size_t)(size - 1 - byte);
#else
    (void)size;
    return (size_t)byte;
#endif
}

#define FEWEST_OF_FAST 4096

/* A fast plane, whose blocks follow their lengths. */
static void decode_fast_plane(Bytes *in, uint8_t *plane, uint64_t count) {
    const uint64_t blocks = (count + FAST_BLOCK - 1) / FAST_BLOCK;
    Bytes lengths = *in;
    FastBlock *block = (FastBlock *)malloc(sizeof *block);
    if (!block) fail(in, OUT_OF_MEMORY);
    for (uint64_t k = 0; k < blocks && !in->problem; k++) take_varint(in, FAST_BLOCK);
    for (uint64_t start = 0; start < count && !in->problem; start += FAST_BLOCK) {
        const uint64_t size = count - start < FAST_BLOCK ? count - start : FAST_BLOCK, length = take_varint(&lengths, size);
        const uint8_t *data = take(in, length);
        const Problem problem = data ? fast_decode_block(block, data, (size_t)length, plane + start, (int64_t)size) : NULL;
        if (lengths.problem || problem) fail(in, lengths.problem ? lengths.problem : problem);
    }
    free(block);
}

/* A plane of `count` bytes, of which `above` is the one before; either in the pack itself or in `buffer`. */
static const uint8_t *decode_plane(Bytes *in, ByteModel *model, const uint8_t *above, uint8_t *buffer, uint64_t count) {
    const uint64_t length = take_varint(in, count + (count >= FEWEST_OF_FAST));
    if (length > count) {
        decode_fast_plane(in, buffer, count);
        return buffer;
    }
    const uint8_t *data = take(in, length);
    if (in->problem || length == count) return data;
    RangeCoder coder = start_decoder(data, (size_t)length);
    code_plane(&coder, DECODE, model, above, buffer, (int64_t)count);
    if (!consumed_exactly(&coder)) fail(in, "the data of a plane do not end with its values");
    return buffer;
}

/* All words of one size, from planes; `first` has the place of the first of each byte. */
static void decode_planes(Bytes *in, ByteModel *model, uint8_t *output, int size, uint64_t count, uint8_t *buffers) {
    const uint8_t *plane = NULL;
    for (int byte = 0; byte < size && !in->problem; byte++) {
        plane = decode_plane(in, model, plane, buffers + (byte & 1 ? count : 0), count);
        if (in->problem) return;
        uint8_t *to = output + place_of_byte(size, byte);
        for (uint64_t k = 0; k < count; k++, to += size) *to = plane[k];
    }
}

#define ROTATE(type, bits)                                                       \
    for (uint64_t k = 0; k < words->count; k++) {                                \
        type word;                                                               \
        memcpy(&word, data + k * sizeof word, sizeof word);                      \
        word = (type)(word >> 1 | word << (bits - 1));                           \
        memcpy(data + k * sizeof word, &word, sizeof word);                      \
    }

/* Rotates words back, and checks them. */
static Problem finish_words(const Words *words, uint8_t *data) {
    if (words->rotated) {
        if (words->size == 1) ROTATE(uint8_t, 8)
        else if (words->size == 2) ROTATE(uint16_t, 16)
        else if (words->size == 4) ROTATE(uint32_t, 32)
        else ROTATE(uint64_t, 64)
    }
    if (words->largest)
        for (uint64_t k = 0; k < words->count; k++)
            if (data[k] > words->largest) return "a byte is too large for its dtype";
    return NULL;
}

/* Decodes a pack to `*output`, which the caller frees: words in the byte order of the machine, at the offsets that this sets. */
static Problem decode_pack(Bytes in, Words *words, size_t count, uint8_t **output) {
    static const int sizes[] = {1, 2, 4, 8};
    uint64_t totals[9] = {0}, whole = 0, largest = 0;
    for (size_t k = 0; k < count; k++) totals[words[k].size] += words[k].count;
    for (int s = 0; s < 4; s++) {
        const int size = sizes[s];
        uint64_t at = whole;
        for (size_t k = 0; k < count; k++) {
            if (words[k].size != size) continue;
            words[k].offset = (size_t)at;
            at += words[k].count * (uint64_t)size;
        }
        whole = at;
        if (totals[size] > largest) largest = totals[size];
    }
    uint8_t *data = (uint8_t *)allocate(whole, 1), *buffers = (uint8_t *)allocate(largest, 2);
    ByteModel *model = (ByteModel *)malloc(sizeof *model);
    if (!data || !buffers || !model) fail(&in, OUT_OF_MEMORY);
    uint8_t *at = data;
    for (int s = 0; s < 4 && !in.problem; s++) {
        if (totals[sizes[s]]) decode_planes(&in, model, at, sizes[s], totals[sizes[s]], buffers);
        at += totals[sizes[s]] * (uint64_t)sizes[s];
    }
    Problem problem = end_of(&in);
    for (size_t k = 0; k < count && !problem; k++) problem = finish_words(&words[k], data + words[k].offset);
    free(buffers), free(model);
    if (problem) free(data);
    else *output = data;
    return problem;
}

/* A pack of bytes. */
static Problem decode_bytes(Bytes in, uint64_t count, uint8_t **output) {
    Words words = {1, 0, 0, count, 0};
    return decode_pack(in, &words, 1, output);
}

#endif
