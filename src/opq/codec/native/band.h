/* Position of the coder in a weight, and the running means that it keeps there. docs/format.md, "Sections of codes".
 *
 * A weight is an array of kernels with `outputs` rows and `inputs` columns. A kernel has `positions` codes, in lines of `width`.
 * BAND_ROWS rows make a band. Bands are coded from top to bottom, the kernels of a band column by column, and these position by
 * position, with the rows side by side:
 *
 *              input 0    input 1    input 2                     a kernel, width 3        contexts of position 4
 *     row 0  +----------+----------+----------+ --+                +---+---+---+            +---+---+---+
 *     row 1  |          |          |          |   | band 0         | 0 | 1 | 2 |            | 1 | 2 | 1 |   weights of the
 *     row 2  | kernel   |          |          |   |                +---+---+---+            +---+---+---+   neighbours'
 *     row 3  +----------+----------+----------+ --+                | 3 | 4 | 5 |            | 2 | x |       magnitudes
 *     row 4  |          |          |          |   | band 1         +---+---+---+            +---+---+
 *      ...     column 0 ->  then column 1 ->                       | 6 | 7 | 8 |
 *                                                                  +---+---+---+
 *     order in a column: position 0 of rows 0, 1, 2, 3; position 1 of rows 0, 1, 2, 3; ...
 *     a magnitude's context: its neighbours in the kernel, the sum of all positions before it, the mean of its row (r), and the
 *     mean of its column (c_i)
 *
 * The rows of a band do not depend on each other within a position. A processor computes their contexts as a vector, and works on
 * one row while it waits for the results of another.
 */
#ifndef OPQ_BAND_H
#define OPQ_BAND_H

#include "code_model.h"
#include "vec4_u32.h"

enum {
    BAND_ROWS = 4,                         /* rows of a band; the last one of a weight may have fewer */
    MAX_POSITIONS = 128,                   /* codes of a kernel; larger kernels are coded as rows of a matrix */
    FRAME_CELLS = 3 * (MAX_POSITIONS + 2), /* cells of a padded kernel; kernels of one line of 128 need the most */
    MAX_MAGNITUDE_BITS = 24,               /* bits of the largest magnitude of a code */
    MAX_RAW_BITS = 20,                     /* without a trellis; with one, at most 10 */
};

typedef struct {
    int64_t outputs, inputs, positions, width; /* positions <= MAX_POSITIONS */
    int raw_bits;                              /* low bits of a magnitude that are raw: s in docs/format.md */
    int trellis;                               /* whether codes follow the trellis; then positions = 1 */
    uint32_t initial_mean;                     /* in 4096ths */
} Shape;

/* What contexts of one position in a kernel need. */
typedef struct {
    uint32_t set;                              /* byte offset of set A or set B */
    uint32_t neighbour_weight, average_weight; /* in the expected magnitude: of the neighbours' sum, and of all positions before */
    uint32_t signs;                            /* index of the first of its bit states for signs */
    int cell;                                  /* index of its first number in padded kernels */
} PositionContext;

/* The codes of BAND_ROWS kernels side by side, with a border of zeros for missing neighbours: cell k, row j is number
 * k * BAND_ROWS + j. A line takes width + 2 cells. */
typedef struct {
    int32_t neighbours[FRAME_CELLS * BAND_ROWS]; /* weighted sum of the neighbours' magnitudes so far; 0 once it has been read */
    int32_t value[FRAME_CELLS * BAND_ROWS];      /* m in docs/format.md, negative if the code is, once its sign is known */
} PaddedKernels;

/* A mask has one bit for each position and row, bit p * BAND_ROWS + j, in words of 64 bits. */
enum { WORD_POSITIONS = 64 / BAND_ROWS, MASK_WORDS = MAX_POSITIONS / WORD_POSITIONS };

/* The kernels of one column of a band. */
typedef struct {
    Vec4 sum, sum_of_squares;         /* of the magnitudes so far, at most CONTEXT_MAX each */
    uint32_t coarse_level[BAND_ROWS]; /* K in docs/format.md, as a byte offset in a set */
    uint32_t column_mean;
    uint64_t nonzero[MASK_WORDS], nonzero_neighbours[MASK_WORDS]; /* masks: the code is not 0; a neighbour of it is not 0 */
    /* decoder: magnitudes of CONTEXT_MAX or more or with raw bits, which PaddedKernels cannot hold, by position and row */
    uint32_t large[MAX_POSITIONS * BAND_ROWS];
    int has_large;
} KernelColumn;

typedef struct {
    RangeCoder coder;
    CodeModel *model;
    uint32_t second_set; /* trellis: byte offset, from set A, of its contexts for quantizer 1 */
    const Shape *shape;
    const PositionContext *contexts; /* of each position */
    PaddedKernels *padded;
    KernelColumn *kernels; /* of the current column */
    uint32_t *column_means, global_mean; /* in 4096ths: c_i and G in docs/format.md */
    Vec4 row_means;                      /* r */
    int32_t *codes;                      /* of the current column in the first row of the band */
    int64_t row, column;
    int rows;           /* of this band; 0 or less after the last */
    int out_of_range;   /* a decoded magnitude was too large: the data are damaged */
    int breaks_trellis; /* a code to encode is not one of its state's quantizer */
} BandState;

#define FAST_SECTION 31 /* the lowest five bits of a section that fast_coder.h describes */

/* Sets the values in the first byte of a section, s + 32 h in docs/format.md, "Sections of codes". Returns whether codes of
 * this many bytes can have this shape. */
static int complete_shape(Shape *shape, int first, int64_t bytes) {
    if (first < 0 || first > 255 || (first & 31) == FAST_SECTION) return 0;
    shape->raw_bits = first & 31, shape->initial_mean = (uint32_t)(2 * MEAN_ONE) >> (first >> 5);
    shape->trellis = shape->raw_bits > MAX_RAW_BITS;
    if (shape->trellis) shape->raw_bits -= MAX_RAW_BITS + 1;
    if (shape->outputs < 1 || shape->inputs < 1 || shape->positions < 1 || shape->positions > MAX_POSITIONS) return 0;
    if (shape->width < 1 || shape->positions % shape->width || (shape->trellis && shape->positions > 1)) return 0;
    const int64_t count = bytes / 4;
    return bytes % 4 == 0 && count % shape->positions == 0 && count / shape->positions % shape->inputs == 0 &&
           count / shape->positions / shape->inputs == shape->outputs;
}

static void init_positions(PositionContext *contexts, const Shape *shape) {
    for (int64_t p = 0; p < shape->positions; p++) {
        int64_t y = p / shape->width, x = p % shape->width;
        uint32_t total = 2u * (x > 0) + 2u * (y > 0) + (x > 0 && y > 0) + (y > 0 && x + 1 < shape->width) + (p > 0);
        contexts[p].set = (p ? SET_A : SET_B) * (uint32_t)sizeof(Distribution);
        contexts[p].neighbour_weight = total ? MEAN_ONE / total : 0;
        contexts[p].average_weight = p ? contexts[p].neighbour_weight / (uint32_t)p : 0;
        uint32_t place = (uint32_t)(shape->positions <= SIGN_PLACES ? p : p * SIGN_PLACES / shape->positions);
        contexts[p].signs = place * SIGN_BINS;
        contexts[p].cell = (int)((y + 1) * (shape->width + 2) + x + 1) * BAND_ROWS;
    }
}

/* Starts the band at `row`, whose rows begin with the global mean. Returns whether there is one. */
ALWAYS_INLINE int start_band(BandState *band) {
    const int64_t left = band->shape->outputs - band->row;
    band->rows = left < BAND_ROWS ? (int)left : BAND_ROWS;
    band->row_means = vec4_make(band->global_mean, band->global_mean, band->global_mean, band->global_mean);
    return left > 0;
}

/* Moves to the next column or, after the last one, to the next band. Returns whether there is one, and data for it. */
ALWAYS_INLINE int advance(BandState *band) {
    const Shape *shape = band->shape;
    if (UNLIKELY(is_exhausted(&band->coder))) {
        band->rows = 0;
        return 0;
    }
    band->codes += shape->positions;
    if (++band->column < shape->inputs) return 1;
    band->column = 0;
    band->codes += (band->rows - 1) * shape->inputs * shape->positions;
    band->row += band->rows;
    return start_band(band);
}

ALWAYS_INLINE uint32_t column_mean(const BandState *band) {
    return band->row ? band->column_means[band->column] : band->global_mean;
}

/* `sum` is that of the column's means in all rows of the band: H in docs/format.md, "Sections of codes". */
ALWAYS_INLINE void update_column_mean(BandState *band, uint32_t mean, uint32_t sum, int column_bits, int global_bits) {
    const uint32_t rows = (uint32_t)band->rows;
    band->column_means[band->column] = mean + (uint32_t)((int32_t)(sum - rows * mean) >> column_bits);
    band->global_mean += (uint32_t)((int32_t)(sum - rows * band->global_mean) >> global_bits);
}

/* The magnitude of a code without its raw bits, which go to `raw`: u in docs/format.md, "Sections of codes". `level` is the byte
 * offset of the context in set C. */
ALWAYS_INLINE uint32_t code_magnitude(BandState *band, Direction direction, InstructionSet isa, int zero_branch, uint16_t *bounds,
                                      Distribution *d, uint32_t level, int32_t code, uint32_t *raw) {
    const int raw_bits = band->shape->raw_bits;
    uint32_t magnitude = code < 0 ? 0u - (uint32_t)code : (uint32_t)code, rest = magnitude - 1;
    uint32_t high = direction == DECODE || !magnitude ? 0 : 1 + (rest >> raw_bits);
    int symbol = code_symbol(&band->coder, direction, isa, zero_branch, bounds, d, high < ESCAPE ? (int)high : ESCAPE);
    if (direction == DECODE) high = (uint32_t)symbol;
    if (UNLIKELY(symbol == ESCAPE)) {
        high = ESCAPE + code_escape(&band->coder, direction, band->model, bounds, level, high - ESCAPE);
        if ((high - 1) >> (MAX_MAGNITUDE_BITS - raw_bits)) {
            band->out_of_range = 1;
            high = 1;
        }
    }
    if (UNLIKELY(raw_bits) && high) {
        refill_raw_bits(&band->coder, direction);
        *raw = code_raw_bits(&band->coder, direction, rest & ((1u << raw_bits) - 1), raw_bits);
        refill_raw_bits(&band->coder, direction);
    }
    return high;
}

#endif
