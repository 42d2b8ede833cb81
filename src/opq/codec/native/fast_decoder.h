/* A stream of a fast section -> values. docs/format.md, "Fast sections". */
#ifndef OPQ_FAST_DECODER_H
#define OPQ_FAST_DECODER_H

#include "dispatch.h"
#include "fast_avx2.h"
#include "fast_tile.h"

static void fast_init(void) {
#if defined(OPQ_AVX2)
    fast_init_word_order();
#endif
}

static int fast_decode_32(FastDecoder *d, const uint8_t *row_classes, uint32_t *states, int64_t from, int64_t to, uint16_t *tile) {
#if defined(OPQ_AVX2)
    if (cpu_has_avx2) return fast_decode_32_avx2(d, row_classes, states, from, to, tile);
#endif
    if (d->matrix->trellis) return fast_decode_tile(d, row_classes, states, from, to, tile, FAST_LANES, 1, 1);
    if (d->matrix->contexts > 1) return fast_decode_tile(d, row_classes, states, from, to, tile, FAST_LANES, 1, 0);
    return fast_decode_tile(d, row_classes, states, from, to, tile, FAST_LANES, 0, 0);
}

static int fast_decode_few(
    FastDecoder *d, const uint8_t *row_classes, uint32_t *states, int64_t from, int64_t to, uint16_t *tile, int lanes) {
    if (d->matrix->trellis) return fast_decode_tile(d, row_classes, states, from, to, tile, lanes, 1, 1);
    return fast_decode_tile(d, row_classes, states, from, to, tile, lanes, d->matrix->contexts > 1, 0);
}

/* Values of symbols: 256 of `size` bytes, 1, 2, 4 or 8, and with a trellis 256 more for quantizer 1. Each row has one of several
 * such sets. */
typedef struct {
    const void *values;
    const uint8_t *sets;
    int size;
} FastValues;

/* The values of a tile, row by row. */
#define FAST_WRITE(type)                                                                                  \
    for (int lane = 0; lane < rows; lane++) {                                                             \
        type *const line = (type *)output + lane * m->columns + from;                                     \
        const type *const values = (const type *)v->values + set_size * v->sets[top + lane];              \
        for (int64_t k = 0; k < to - from; k++) line[k] = values[tile[k * FAST_LANES + lane]];            \
    }

/* Decodes a stream to values; whether the stream is valid. */
static int fast_decode(FastDecoder *d, const uint8_t *stream, size_t length, const FastValues *v, uint8_t *output) {
    const int size = v->size, set_size = d->matrix->trellis ? 2 * FAST_SYMBOLS : FAST_SYMBOLS;
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
#if defined(OPQ_AVX2)
            if (cpu_has_avx2 && size == 4 && rows == FAST_LANES && to - from == FAST_TILE) {
                const uint32_t *values = (const uint32_t *)v->values;
                fast_write_32_avx2(tile, values, v->sets + top, set_size, (uint32_t *)output + from, m->columns);
                continue;
            }
#endif
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
