/* Where the coder stands in a weight, and what it has seen of it, the same for both directions.
 *
 * The weight is seen as (outputs, inputs, positions): row o, column i, and the position inside a kernel, which is `width` wide.
 * BAND_ROWS rows are walked at once, column after column, position after position: while a processor works on the code of one row,
 * the contexts of the others do not wait for it.
 */
#ifndef OPQ_BAND_H
#define OPQ_BAND_H

#include "code_model.h"
#include "vec4_u32.h"

enum { BAND_ROWS = 4, MAX_POSITIONS = 128, FRAME_CELLS = 3 * (MAX_POSITIONS + 2) };

typedef struct {
    int64_t outputs, inputs, positions, width; /* positions <= POSITIONS */
    int shift;                                 /* low bits of a magnitude that go raw */
    uint32_t start;                            /* first mean of all, in 4096ths */
} Shape;

typedef struct {
    uint32_t set;          /* offset of the rows of its first context */
    uint32_t near, energy; /* what the neighbours' sum, and that of all positions before, count in the expected magnitude */
    uint32_t signs;        /* first of its states, for the position squeezed into SIGN_PLACES */
    int cell;              /* its first number in a kernel's frame */
} PositionContext;

/* The codes of BAND_ROWS kernels side by side, each with a frame: where a neighbour is missing, there is a value of 0. */
typedef struct {
    int32_t near[FRAME_CELLS * BAND_ROWS];  /* of the neighbours' magnitudes so far; 0 again once it was used */
    int32_t value[FRAME_CELLS * BAND_ROWS]; /* signed */
} PaddedKernels;

typedef struct {
    RangeCoder coder;
    CodeModel *model;
    const Shape *shape;
    const PositionContext *table;
    PaddedKernels *frame;
    uint32_t *columns, global; /* running means in 4096ths */
    Vec4 means;                /* of the rows */
    int32_t *codes;            /* where it stands: */
    int64_t row, column;
    int rows;   /* that are walked together, BAND_ROWS but for the last */
    int failed; /* only damaged data lead there */
} BandState;

static void init_positions(PositionContext *table, const Shape *shape) {
    for (int64_t p = 0; p < shape->positions; p++) {
        int64_t y = p / shape->width, x = p % shape->width;
        uint32_t total = 2u * (x > 0) + 2u * (y > 0) + (x > 0 && y > 0) + (y > 0 && x + 1 < shape->width) + (p > 0);
        table[p].set = p ? SET_A : SET_B * (uint32_t)sizeof(Distribution);
        table[p].near = total ? MEAN_ONE / total : 0;
        table[p].energy = p ? table[p].near / (uint32_t)p : 0;
        uint32_t place = (uint32_t)(shape->positions <= SIGN_PLACES ? p : p * SIGN_PLACES / shape->positions);
        table[p].signs = place * SIGN_BINS;
        table[p].cell = (int)((y + 1) * (shape->width + 2) + x + 1) * BAND_ROWS;
    }
}

/* Whether there are rows at the place where it stands; they begin with the mean of all. */
ALWAYS_INLINE int start_band(BandState *band) {
    const int64_t left = band->shape->outputs - band->row;
    band->rows = left < BAND_ROWS ? (int)left : BAND_ROWS;
    band->means = vec4_make(band->global, band->global, band->global, band->global);
    return left > 0;
}

/* On to the next column or, after the last, to the next rows. */
ALWAYS_INLINE int advance(BandState *band) {
    const Shape *shape = band->shape;
    band->codes += shape->positions;
    if (++band->column < shape->inputs) return 1;
    band->column = 0;
    band->codes += (band->rows - 1) * shape->inputs * shape->positions;
    band->row += band->rows;
    return start_band(band);
}

ALWAYS_INLINE uint32_t column_mean(const BandState *band) { return band->row ? band->columns[band->column] : band->global; }

/* `sum` of the means of the column's codes in all rows moves the column's mean, and the mean of all. */
ALWAYS_INLINE void update_column_mean(BandState *band, uint32_t column, uint32_t sum, int column_bits, int global_bits) {
    const uint32_t rows = (uint32_t)band->rows;
    band->columns[band->column] = column + (uint32_t)((int32_t)(sum - rows * column) >> column_bits);
    band->global += (uint32_t)((int32_t)(sum - rows * band->global) >> global_bits);
}

/* A magnitude without its raw bits, for contexts; these stand in `raw`. */
ALWAYS_INLINE uint32_t code_magnitude(BandState *band, int decoding, int branching, uint16_t *bounds, Distribution *row, uint32_t level, int32_t code,
                                 uint32_t *raw) {
    const int shift = band->shape->shift;
    uint32_t magnitude = code < 0 ? 0u - (uint32_t)code : (uint32_t)code, rest = magnitude - 1;
    uint32_t high = decoding || !magnitude ? 0 : 1 + (rest >> shift);
    int symbol = code_symbol(&band->coder, decoding, branching, bounds, row, high < LANES ? (int)high : LANES);
    if (decoding) high = (uint32_t)symbol;
    if (UNLIKELY(symbol == LANES)) {
        high = LANES + code_escape(&band->coder, decoding, band->model, bounds, level, high - LANES);
        if ((high - 1) >> (24 - shift)) {
            band->failed = 1;
            high = 1;
        }
    }
    if (UNLIKELY(shift) && high) {
        refill_raw_bits(&band->coder, decoding);
        *raw = code_raw_bits(&band->coder, decoding, rest & ((1u << shift) - 1), shift);
        refill_raw_bits(&band->coder, decoding);
    }
    return high;
}

#endif
