/* Symbols of a matrix <-> a stream of interleaved rANS states. docs/format.md, "Fast sections".
 *
 * Plain C without vectors: 32 chains of states are independent of each other, which keeps a processor busy.
 */
#ifndef OPQ_FAST_CODER_H
#define OPQ_FAST_CODER_H

#include <stddef.h>
#include <string.h>

#include "compiler.h"

#define FAST_LANES 32
#define FAST_TABLE_BITS 12
#define FAST_TABLE (1 << FAST_TABLE_BITS)
#define FAST_LOWEST_STATE 65536u
#define FAST_MAX_CONTEXTS 16
#define FAST_TILE 32 /* columns that are decoded before they are written row by row */
#define FAST_SYMBOLS 256

/* Rows and columns whose symbols are one stream, and how their contexts follow from classes. */
typedef struct {
    int64_t rows, columns;
    const uint8_t *row_classes, *column_classes; /* `rows` and `columns` bytes; without meaning for one context */
    int contexts, base;                          /* context = row class + column class - base, within 0 to contexts - 1 */
    int trellis, lowest;                         /* lowest: the number k of symbol 0 */
} FastMatrix;

/* The start of the table of each sum of classes, in entries of tables that have `size` of them. */
static void fast_context_starts(const FastMatrix *matrix, uint32_t size, uint32_t starts[511]) {
    for (int sum = 0; sum < 511; sum++) {
        int context = sum - matrix->base;
        if (context > matrix->contexts - 1) context = matrix->contexts - 1;
        starts[sum] = context > 0 ? (uint32_t)context * size : 0;
    }
}

/* docs/format.md, "Trellis": s2 s1 s0 -> s1 s0 b. The parity of k is that of |k|. */
ALWAYS_INLINE uint32_t fast_next_state(uint32_t state, uint32_t k) {
    return (state << 1 & 6) | ((k ^ state >> 1 ^ state >> 2) & 1);
}

/* Counts of symbols by quantizer, context and symbol: 256 for each context, those of quantizer 1 after those of quantizer 0. */
static void fast_count(const FastMatrix *m, const uint8_t *symbols, uint32_t *counts) {
    uint32_t starts[511];
    fast_context_starts(m, FAST_SYMBOLS, starts);
    const uint32_t second = m->trellis ? (uint32_t)m->contexts * FAST_SYMBOLS : 0;
    for (int64_t row = 0; row < m->rows; row++) {
        uint32_t state = 0;
        const uint32_t *of_row = starts + (m->contexts > 1 ? m->row_classes[row] : 0);
        for (int64_t column = 0; column < m->columns; column++, symbols++) {
            const uint32_t start = m->contexts > 1 ? of_row[m->column_classes[column]] : 0;
            counts[start + (second & (0u - (state & 1))) + *symbols]++;
            if (m->trellis) state = fast_next_state(state, (uint32_t)(*symbols + m->lowest));
        }
    }
}

/* What encoding a symbol takes: its share of 4096, where it begins, and 2^43 / share for a division by multiplication. */
typedef struct {
    uint64_t reciprocal;
    uint32_t share, begin;
} FastCode;

static void fast_fill_codes(FastCode *codes, const uint16_t *shares, int tables) {
    for (int table = 0; table < tables; table++) {
        uint32_t begin = 0;
        for (int symbol = 0; symbol < FAST_SYMBOLS; symbol++, codes++, shares++) {
            codes->share = *shares, codes->begin = begin;
            codes->reciprocal = *shares ? ((uint64_t)1 << 43) / *shares + 1 : 0;
            begin += *shares;
        }
    }
}

ALWAYS_INLINE uint32_t fast_encode_symbol(uint32_t x, const FastCode *code, uint8_t **end) {
    if ((uint64_t)x >= (uint64_t)code->share << 20) {
        *end -= 2;
        (*end)[0] = (uint8_t)x, (*end)[1] = (uint8_t)(x >> 8);
        x >>= 16;
    }
    /* x < 2^20 share. The quotient is at most one too large, and then the remainder is negative. */
    uint32_t quotient = (uint32_t)(((uint64_t)x * code->reciprocal) >> 43);
    uint32_t rest = x - quotient * code->share;
    const uint32_t negative = 0u - (rest >> 31);
    quotient += negative, rest += code->share & negative;
    return (quotient << FAST_TABLE_BITS) + rest + code->begin;
}

/* Encodes backwards, from `end` of a buffer that has at least fast_longest_stream bytes before it. `marks` has one byte for each
 * column, for the quantizers of a band. Returns where the stream begins; NULL if a symbol has no share. */
static uint8_t *fast_encode(const FastMatrix *m, const uint8_t *symbols, const FastCode *codes, uint32_t *quantizers, uint8_t *end) {
    uint32_t starts[511], x[FAST_LANES];
    fast_context_starts(m, FAST_SYMBOLS, starts);
    const uint32_t second = m->trellis ? (uint32_t)m->contexts * FAST_SYMBOLS : 0;
    const int lanes = m->rows < FAST_LANES ? (int)m->rows : FAST_LANES;
    for (int lane = 0; lane < lanes; lane++) x[lane] = FAST_LOWEST_STATE;
    const int64_t last = (m->rows - 1) / FAST_LANES * FAST_LANES;
    for (int64_t top = last; top >= 0; top -= FAST_LANES) {
        const int rows = m->rows - top < FAST_LANES ? (int)(m->rows - top) : FAST_LANES;
        const uint8_t *band = symbols + top * m->columns;
        for (int lane = 0; m->trellis && lane < rows; lane++) {
            uint32_t state = 0;
            for (int64_t column = 0; column < m->columns; column++) {
                const uint32_t bit = 1u << lane;
                quantizers[column] = (quantizers[column] & ~bit) | (bit & (0u - (state & 1)));
                state = fast_next_state(state, (uint32_t)(band[lane * m->columns + column] + m->lowest));
            }
        }
        for (int64_t column = m->columns - 1; column >= 0; column--) {
            const uint32_t *of_column = starts + (m->contexts > 1 ? m->column_classes[column] : 0);
            for (int lane = rows - 1; lane >= 0; lane--) {
                uint32_t start = m->contexts > 1 ? of_column[m->row_classes[top + lane]] : 0;
                if (m->trellis) start += second & (0u - (quantizers[column] >> lane & 1));
                const FastCode *code = codes + start + band[lane * m->columns + column];
                if (!code->share) return NULL;
                x[lane] = fast_encode_symbol(x[lane], code, &end);
            }
        }
    }
    for (int lane = lanes - 1; lane >= 0; lane--) {
        end -= 4;
        for (int byte = 0; byte < 4; byte++) end[byte] = (uint8_t)(x[lane] >> 8 * byte);
    }
    return end;
}

/* Every symbol is at most one word. */
static size_t fast_longest_stream(const FastMatrix *m) { return 4 * FAST_LANES + 2 * (size_t)(m->rows * m->columns); }

/* An entry of a table: share - 1 in the lowest 12 bits, then in 12 bits the place in the share, then the symbol. */
typedef struct {
    const FastMatrix *matrix;
    const uint32_t *tables;
    const uint8_t *words, *end; /* words that are left */
    uint8_t tail[4 * FAST_LANES]; /* the last words, followed by zeros */
    int in_tail;
    uint32_t x[FAST_LANES], starts[511];
} FastDecoder;

/* Whether the stream has its states. */
static int fast_start(FastDecoder *d, const uint8_t *stream, size_t length, int lanes) {
    if (length < 4 * (size_t)lanes || length % 2) return 0;
    for (int lane = 0; lane < lanes; lane++, stream += 4) {
        d->x[lane] = (uint32_t)stream[0] | (uint32_t)stream[1] << 8 | (uint32_t)stream[2] << 16 | (uint32_t)stream[3] << 24;
        if (d->x[lane] < FAST_LOWEST_STATE) return 0;
    }
    d->words = stream, d->end = stream + (length - 4 * (size_t)lanes), d->in_tail = 0;
    return 1;
}

/* Makes 32 words readable, zeros after the end; 0 if more was read than there is. */
ALWAYS_INLINE int fast_refill(FastDecoder *d) {
    if (d->end - d->words >= 2 * FAST_LANES) return 1;
    if (!d->in_tail) {
        const size_t left = (size_t)(d->end - d->words);
        memset(d->tail, 0, sizeof d->tail);
        memcpy(d->tail, d->words, left);
        d->words = d->tail, d->end = d->tail + left, d->in_tail = 1;
    }
    return d->words <= d->end;
}

/* Decodes columns `from` to `to` of a band to `tile`: symbols, plus 256 for quantizer 1, in `lanes` of each column. */
ALWAYS_INLINE int fast_decode_tile(FastDecoder *d, const uint8_t *row_classes, uint32_t *states, int64_t from, int64_t to,
                                   uint16_t *tile, const int lanes, const int contexts, const int trellis) {
    const FastMatrix *m = d->matrix;
    const uint32_t second = (uint32_t)m->contexts << FAST_TABLE_BITS, lowest = (uint32_t)m->lowest;
    for (int64_t column = from; column < to; column++, tile += FAST_LANES) {
        if (UNLIKELY(!fast_refill(d))) return 0;
        const uint32_t *starts = contexts ? d->starts + m->column_classes[column] : NULL;
        const uint8_t *words = d->words;
        for (int lane = 0; lane < lanes; lane++) {
            uint32_t x = d->x[lane], at = x & (FAST_TABLE - 1), quantizer = 0;
            if (contexts) at += starts[row_classes[lane]];
            if (trellis) {
                quantizer = states[lane] & 1;
                at += second & (0u - quantizer);
            }
            const uint32_t entry = d->tables[at], symbol = entry >> 24;
            x = ((entry & (FAST_TABLE - 1)) + 1) * (x >> FAST_TABLE_BITS) + (entry >> FAST_TABLE_BITS & (FAST_TABLE - 1));
            const uint32_t refilled = x << 16 | (uint32_t)words[0] | (uint32_t)words[1] << 8, low = 0u - (x < FAST_LOWEST_STATE);
            words += low & 2;
            d->x[lane] = (x & ~low) | (refilled & low);
            tile[lane] = (uint16_t)(symbol | quantizer << 8);
            if (trellis) states[lane] = fast_next_state(states[lane], symbol + lowest);
        }
        d->words = words;
    }
    return 1;
}

static int fast_decode_32(FastDecoder *d, const uint8_t *row_classes, uint32_t *states, int64_t from, int64_t to, uint16_t *tile) {
    if (d->matrix->trellis) return fast_decode_tile(d, row_classes, states, from, to, tile, FAST_LANES, 1, 1);
    if (d->matrix->contexts > 1) return fast_decode_tile(d, row_classes, states, from, to, tile, FAST_LANES, 1, 0);
    return fast_decode_tile(d, row_classes, states, from, to, tile, FAST_LANES, 0, 0);
}

static int fast_decode_few(
    FastDecoder *d, const uint8_t *row_classes, uint32_t *states, int64_t from, int64_t to, uint16_t *tile, int lanes) {
    if (d->matrix->trellis) return fast_decode_tile(d, row_classes, states, from, to, tile, lanes, 1, 1);
    return fast_decode_tile(d, row_classes, states, from, to, tile, lanes, d->matrix->contexts > 1, 0);
}

/* The values of a tile, row by row; `values` has the value of each symbol, and 256 more for quantizer 1. */
#define FAST_WRITE(type)                                                                                  \
    for (int lane = 0; lane < rows; lane++) {                                                             \
        type *const line = (type *)output + lane * m->columns + from;                                     \
        for (int64_t k = 0; k < to - from; k++) line[k] = ((const type *)values)[tile[k * FAST_LANES + lane]]; \
    }

/* Decodes a stream to values of `size` bytes, 1, 2, 4 or 8; whether the stream is valid. */
static int fast_decode(FastDecoder *d, const uint8_t *stream, size_t length, const void *values, int size, uint8_t *output) {
    const FastMatrix *m = d->matrix;
    uint16_t tile[FAST_TILE * FAST_LANES];
    const int lanes = m->rows < FAST_LANES ? (int)m->rows : FAST_LANES;
    if (!fast_start(d, stream, length, lanes)) return 0;
    fast_context_starts(m, FAST_TABLE, d->starts);
    for (int64_t top = 0; top < m->rows; top += FAST_LANES, output += (int64_t)FAST_LANES * m->columns * size) {
        const int rows = m->rows - top < FAST_LANES ? (int)(m->rows - top) : FAST_LANES;
        uint32_t states[FAST_LANES] = {0};
        for (int64_t from = 0; from < m->columns; from += FAST_TILE) {
            const int64_t to = m->columns - from < FAST_TILE ? m->columns : from + FAST_TILE;
            const uint8_t *classes = m->row_classes + top;
            if (rows == FAST_LANES ? !fast_decode_32(d, classes, states, from, to, tile)
                                   : !fast_decode_few(d, classes, states, from, to, tile, rows))
                return 0;
            if (size == 1) FAST_WRITE(uint8_t)
            else if (size == 2) FAST_WRITE(uint16_t)
            else if (size == 4) FAST_WRITE(uint32_t)
            else FAST_WRITE(uint64_t)
        }
    }
    for (int lane = 0; lane < lanes; lane++)
        if (d->x[lane] != FAST_LOWEST_STATE) return 0;
    return d->words == d->end;
}

#endif
