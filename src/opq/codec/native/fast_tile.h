/* The inner loop of decoding a fast section: some columns of a band of rows. docs/format.md, "Fast sections". */
#ifndef OPQ_FAST_TILE_H
#define OPQ_FAST_TILE_H

#include "fast_coder.h"

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

/* Decodes columns `from` to `to` of a band to `tile`: symbols, plus 256 for quantizer 1, in `lanes` of each column. What the inner
 * loop changes is in local arrays, so that no store can change a pointer. */
ALWAYS_INLINE int fast_decode_tile(FastDecoder *d, const uint8_t *row_classes, uint32_t *row_states, int64_t from, int64_t to,
                                   uint16_t *restrict tile, const int lanes, const int contexts, const int trellis) {
    const FastMatrix *m = d->matrix;
    const uint32_t *const tables = d->tables, second = (uint32_t)m->contexts << FAST_TABLE_BITS, lowest = (uint32_t)m->lowest;
    uint32_t states[FAST_LANES], trellis_states[FAST_LANES], classes[FAST_LANES];
    for (int lane = 0; lane < lanes; lane++) {
        states[lane] = d->x[lane], trellis_states[lane] = row_states[lane], classes[lane] = row_classes[lane];
    }
    for (int64_t column = from; column < to; column++, tile += FAST_LANES) {
        if (UNLIKELY(!fast_refill(d))) return 0;
        const uint32_t *const starts = contexts ? d->starts + m->column_classes[column] : NULL;
        const uint8_t *words = d->words;
        UNROLLED
        for (int lane = 0; lane < lanes; lane++) {
            uint32_t x = states[lane], quantizer = 0;
            const uint32_t *table = tables;
            if (contexts) table += starts[classes[lane]];
            if (trellis) {
                quantizer = trellis_states[lane] & 1;
                table += second & (0u - quantizer);
            }
            const uint32_t entry = table[x & (FAST_TABLE - 1)], symbol = entry >> 24;
            x = ((entry & (FAST_TABLE - 1)) + 1) * (x >> FAST_TABLE_BITS) + (entry >> FAST_TABLE_BITS & (FAST_TABLE - 1));
            const uint32_t refilled = x << 16 | (uint32_t)words[0] | (uint32_t)words[1] << 8, low = x < FAST_LOWEST_STATE;
            words += 2 * low;
            states[lane] = x ^ ((x ^ refilled) & (0u - low)); /* no branch: it could not be predicted */
            tile[lane] = (uint16_t)(symbol | quantizer << 8);
            if (trellis) trellis_states[lane] = fast_next_state(trellis_states[lane], symbol + lowest);
        }
        d->words = words;
    }
    for (int lane = 0; lane < lanes; lane++) d->x[lane] = states[lane], row_states[lane] = trellis_states[lane];
    return 1;
}

#endif
