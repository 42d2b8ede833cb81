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

#endif
