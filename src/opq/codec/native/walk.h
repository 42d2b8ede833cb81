/* Where the coder stands in a weight, and what it has seen of it, the same for both directions.
 *
 * The weight is seen as (outputs, inputs, positions): row o, column i, and the position inside a kernel, which is `width` wide.
 * ABREAST rows are walked at once, column after column, position after position: while a processor works on the code of one row,
 * the contexts of the others do not wait for it.
 */
#ifndef OPQ_WALK_H
#define OPQ_WALK_H

#include "code_model.h"
#include "fours.h"

enum { ABREAST = 4, POSITIONS = 128, CELLS = 3 * (POSITIONS + 2) };

typedef struct {
    int64_t outputs, inputs, positions, width; /* positions <= POSITIONS */
    int shift;                                 /* low bits of a magnitude that go raw */
    uint32_t start;                            /* first mean of all, in 4096ths */
} Shape;

typedef struct {
    uint32_t set;          /* offset of the rows of its first context */
    uint32_t near, energy; /* what the neighbours' sum, and that of all positions before, count in the expected magnitude */
    uint32_t signs;        /* first of its states, for the position squeezed into PLACES */
    int cell;              /* its first number in a kernel's frame */
} Position;

/* The codes of ABREAST kernels side by side, each with a frame: where a neighbour is missing, there is a value of 0. */
typedef struct {
    int32_t near[CELLS * ABREAST];  /* of the neighbours' magnitudes so far; 0 again once it was used */
    int32_t value[CELLS * ABREAST]; /* signed */
} Frame;

typedef struct {
    Coder coder;
    Model *model;
    const Shape *shape;
    const Position *table;
    Frame *frame;
    uint32_t *columns, global; /* running means in 4096ths */
    Four means;                /* of the rows */
    int32_t *codes;            /* where it stands: */
    int64_t row, column;
    int rows;   /* that are walked together, ABREAST but for the last */
    int failed; /* only damaged data lead there */
} Walk;

static void describe(Position *table, const Shape *shape) {
    for (int64_t p = 0; p < shape->positions; p++) {
        int64_t y = p / shape->width, x = p % shape->width;
        uint32_t total = 2u * (x > 0) + 2u * (y > 0) + (x > 0 && y > 0) + (y > 0 && x + 1 < shape->width) + (p > 0);
        table[p].set = p ? NEAR : FIRST * (uint32_t)sizeof(Row);
        table[p].near = total ? ONE / total : 0;
        table[p].energy = p ? table[p].near / (uint32_t)p : 0;
        uint32_t place = (uint32_t)(shape->positions <= PLACES ? p : p * PLACES / shape->positions);
        table[p].signs = place * BINS;
        table[p].cell = (int)((y + 1) * (shape->width + 2) + x + 1) * ABREAST;
    }
}

/* Whether there are rows at the place where it stands; they begin with the mean of all. */
ALWAYS_INLINE int begin_rows(Walk *walk) {
    const int64_t left = walk->shape->outputs - walk->row;
    walk->rows = left < ABREAST ? (int)left : ABREAST;
    walk->means = four_of(walk->global, walk->global, walk->global, walk->global);
    return left > 0;
}

/* On to the next column or, after the last, to the next rows. */
ALWAYS_INLINE int advance(Walk *walk) {
    const Shape *shape = walk->shape;
    walk->codes += shape->positions;
    if (++walk->column < shape->inputs) return 1;
    walk->column = 0;
    walk->codes += (walk->rows - 1) * shape->inputs * shape->positions;
    walk->row += walk->rows;
    return begin_rows(walk);
}

ALWAYS_INLINE uint32_t column_mean(const Walk *walk) { return walk->row ? walk->columns[walk->column] : walk->global; }

/* `sum` of the means of the column's codes in all rows moves the column's mean, and the mean of all. */
ALWAYS_INLINE void learn_column(Walk *walk, uint32_t column, uint32_t sum, int column_bits, int global_bits) {
    const uint32_t rows = (uint32_t)walk->rows;
    walk->columns[walk->column] = column + (uint32_t)((int32_t)(sum - rows * column) >> column_bits);
    walk->global += (uint32_t)((int32_t)(sum - rows * walk->global) >> global_bits);
}

/* A magnitude without its raw bits, for contexts; these stand in `raw`. */
ALWAYS_INLINE uint32_t code_high(Walk *walk, int decoding, int branching, uint16_t *bounds, Row *row, uint32_t level, int32_t code,
                                 uint32_t *raw) {
    const int shift = walk->shape->shift;
    uint32_t magnitude = code < 0 ? 0u - (uint32_t)code : (uint32_t)code, rest = magnitude - 1;
    uint32_t high = decoding || !magnitude ? 0 : 1 + (rest >> shift);
    int symbol = code_symbol(&walk->coder, decoding, branching, bounds, row, high < LANES ? (int)high : LANES);
    if (decoding) high = (uint32_t)symbol;
    if (UNLIKELY(symbol == LANES)) {
        high = LANES + code_tail(&walk->coder, decoding, walk->model, bounds, level, high - LANES);
        if ((high - 1) >> (24 - shift)) {
            walk->failed = 1;
            high = 1;
        }
    }
    if (UNLIKELY(shift) && high) {
        renew_raw(&walk->coder, decoding);
        *raw = code_raw(&walk->coder, decoding, rest & ((1u << shift) - 1), shift);
        renew_raw(&walk->coder, decoding);
    }
    return high;
}

#endif
