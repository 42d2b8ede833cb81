/* Blocks of a fast plane -> bytes, and planes -> words. docs/format.md, "Fast planes". */
#ifndef OPQ_FAST_PLANE_H
#define OPQ_FAST_PLANE_H

#include <stdlib.h>

#include "fast_decoder.h"
#include "fast_table.h"

#define FAST_BLOCK (1 << 18) /* bytes of a plane that are decoded alone */
#define FAST_GROUP 256       /* bytes that have one table */
#define FAST_PLANE_TABLES 8
#define FAST_STEP 2048 /* bytes of each plane that are decoded before words are made of them */
#define FAST_MAX_SIZE 8

typedef enum { STORED, EQUAL, CODED } FastForm;

/* A block that is being decoded. */
typedef struct {
    FastForm form;
    const uint8_t *data; /* stored bytes; or the classes of groups */
    int64_t count, at;   /* bytes of the block; those that were decoded */
    int tables;
    FastMatrix matrix;
    FastDecoder decoder;
    uint32_t entries[FAST_PLANE_TABLES * FAST_TABLE];
    uint8_t bytes[FAST_STEP]; /* those that were decoded last */
} FastBlock;

/* The class of a group: three bits, the lowest first. A second byte is read only if the class has bits in it. */
ALWAYS_INLINE int fast_class(const uint8_t *classes, int64_t group) {
    const int64_t bit = 3 * group;
    const int shift = (int)(bit & 7), more = shift > 5 ? classes[(bit >> 3) + 1] : 0;
    return (classes[bit >> 3] | more << 8) >> shift & 7;
}

/* Classes are below the number of tables, and bits after the last one are 0. */
static int fast_check_classes(const uint8_t *classes, int64_t groups, int tables) {
    for (int64_t group = 0; group < groups; group++)
        if (fast_class(classes, group) >= tables) return 0;
    const int used = (int)(3 * groups & 7);
    return !used || classes[3 * groups >> 3] >> used == 0;
}

/* Begins a block of `count` bytes, at least 1, which `length` bytes of data hold; what is wrong with them, or NULL. */
static const char *fast_start_block(FastBlock *b, const uint8_t *data, size_t length, int64_t count) {
    b->data = data, b->count = count, b->at = 0;
    b->form = length == (size_t)count ? STORED : length == 1 ? EQUAL : CODED;
    if (b->form == EQUAL) memset(b->bytes, *data, sizeof b->bytes);
    if (b->form != CODED) return NULL;
    if (length < 3 || length > (size_t)count) return "a block has too few or too many bytes";
    const int first = data[0], last = data[1];
    if (last < 1 || first + last > 255) return "a block must have 2 or more symbols, which are bytes";
    b->tables = data[2] + 1;
    if (b->tables > FAST_PLANE_TABLES) return "a block must have at most 8 tables";
    const uint8_t *const end = data + length;
    const int64_t groups = (count + FAST_GROUP - 1) / FAST_GROUP, class_bytes = b->tables > 1 ? (3 * groups + 7) / 8 : 0;
    data += 3;
    if (end - data < class_bytes + b->tables * (last + 1)) return "a block ends within its tables";
    b->data = data;
    if (class_bytes && !fast_check_classes(data, groups, b->tables)) return "a block has a class without a table";
    data += class_bytes;
    for (int table = 0; table < b->tables; table++, data += last + 1) {
        uint16_t shares[FAST_SYMBOLS];
        const char *problem = fast_shares(data, 1, first, last, shares);
        if (problem) return problem;
        fast_fill_tables(shares, b->entries + table * FAST_TABLE, 1);
    }
    memset(&b->matrix, 0, sizeof b->matrix);
    b->matrix.contexts = 1, b->decoder.matrix = &b->matrix;
    const int lanes = count < FAST_LANES ? (int)count : FAST_LANES;
    return fast_start(&b->decoder, data, (size_t)(end - data), lanes) ? NULL : "a stream does not begin with its states";
}

/* Decodes `columns` of `lanes` bytes; whether the stream has them. */
static int fast_decode_bytes(FastDecoder *d, int64_t columns, int lanes, uint8_t *bytes) {
    static const uint8_t no_classes[FAST_LANES];
    uint32_t no_states[FAST_LANES] = {0};
    uint16_t tile[FAST_STEP];
#if defined(OPQ_AVX2)
    if (cpu_has_avx2 && lanes == FAST_LANES) return fast_decode_bytes_avx2(d, columns, bytes);
#endif
    if (lanes == FAST_LANES ? !fast_decode_32(d, no_classes, no_states, 0, columns, tile)
                            : !fast_decode_few(d, no_classes, no_states, 0, columns, tile, lanes))
        return 0;
    for (int64_t k = 0; k < columns * lanes; k++) bytes[k] = (uint8_t)tile[k];
    return 1;
}

/* Decodes the next `count` bytes, at most FAST_STEP, and a multiple of it unless they are the last; NULL if the stream ends before. */
static const uint8_t *fast_next_bytes(FastBlock *b, int64_t count) {
    const int64_t start = b->at;
    b->at += count;
    if (b->form == STORED) return b->data + start;
    if (b->form == EQUAL) return b->bytes;
    const int64_t span = b->tables > 1 ? FAST_GROUP : FAST_STEP; /* bytes that have one table */
    for (int64_t done = 0; done < count; done += span) {
        const int64_t size = count - done < span ? count - done : span, columns = size / FAST_LANES;
        const int rest = (int)(size % FAST_LANES);
        const int table = b->tables > 1 ? fast_class(b->data, (start + done) / FAST_GROUP) : 0;
        uint8_t *const to = b->bytes + done;
        b->decoder.tables = b->entries + table * FAST_TABLE;
        if (!fast_decode_bytes(&b->decoder, columns, FAST_LANES, to)) return NULL;
        if (rest && !fast_decode_bytes(&b->decoder, 1, rest, to + columns * FAST_LANES)) return NULL;
    }
    return b->bytes;
}

/* Whether a block that was decoded ends there. */
static int fast_end_block(const FastBlock *b) {
    if (b->form != CODED) return 1;
    const FastDecoder *d = &b->decoder;
    for (int lane = 0; lane < FAST_LANES && lane < b->count; lane++)
        if (d->x[lane] != FAST_LOWEST_STATE) return 0;
    return d->words == d->end;
}

static const char FAST_NO_END[] = "the data of a block do not end with its last byte";

/* Decodes a block to bytes; `b` is memory to work in. */
static const char *fast_decode_block(FastBlock *b, const uint8_t *data, size_t length, uint8_t *bytes, int64_t count) {
    const char *problem = fast_start_block(b, data, length, count);
    for (int64_t at = 0; at < count && !problem; at += FAST_STEP) {
        const int64_t size = count - at < FAST_STEP ? count - at : FAST_STEP;
        const uint8_t *found = fast_next_bytes(b, size);
        if (!found) return FAST_NO_END;
        memcpy(bytes + at, found, (size_t)size);
    }
    return problem ? problem : fast_end_block(b) ? NULL : FAST_NO_END;
}

#endif
