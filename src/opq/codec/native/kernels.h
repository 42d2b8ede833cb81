/* Weights with kernels: all magnitudes of a column's kernels, then their signs, for which the magnitudes tell how far a neighbour's
 * sign is to be trusted.
 *
 * Two weights with kernels of one shape are decoded in step: what a decoder does next depends on what it did last, and a
 * processor waits for it, or works on the other. Nothing in their bytes tells of it.
 */
#ifndef OPQ_KERNELS_H
#define OPQ_KERNELS_H

#include "walk.h"

enum { WORDS = POSITIONS / 16 };

/* The kernels of a column, side by side. */
typedef struct {
    Four energy, squares;
    uint32_t rough[ABREAST], column;
    int wide;                          /* whether a magnitude is more than contexts know of it: it stands in `large` */
    uint64_t some[WORDS], meet[WORDS]; /* from the lowest bit on, position by position: not 0; with a neighbour that is not 0 */
    uint32_t large[POSITIONS * ABREAST];
} Kernels;

ALWAYS_INLINE int lowest_bit(uint64_t x) { /* x > 0 */
#if defined(__GNUC__)
    return __builtin_ctzll(x);
#else
    const uint64_t lowest = x & (0 - x);
    return lowest >> 32 ? 32 + highest_bit((uint32_t)(lowest >> 32)) : highest_bit((uint32_t)lowest);
#endif
}

ALWAYS_INLINE void begin_kernels(const Walk *walk, Kernels *kernels) {
    const uint32_t level = level_number(kernels->column = column_mean(walk));
    for (int j = 0; j < ABREAST; j++) /* every other row of a set */
        kernels->rough[j] = (level_number(one_of(walk->means, j)) + level + 1) / 4 * 2 * (uint32_t)sizeof(Row);
    kernels->energy = kernels->squares = four_of(0, 0, 0, 0);
    kernels->wide = walk->shape->shift > 0;
    for (int k = 0; k < WORDS; k++) kernels->some[k] = kernels->meet[k] = 0;
}

/* The contexts' rows of a position, which then has no use any more for what its neighbours left. */
ALWAYS_INLINE void find_rows(const Walk *walk, Kernels *kernels, const Position *here, int p, Row **rows) {
    int32_t *near = &walk->frame->near[here->cell];
    const Four around = load_four(near);
    store_four(near, four_of(0, 0, 0, 0));
    const Four expected = sum_fours(scale_four(around, here->near), scale_four(kernels->energy, here->energy));
    const Four index = shift_four(expected, 6);
    for (int j = 0; j < ABREAST; j++)
        rows[j] = row_at(walk->model, here->set + tables.level[one_of(index, j)] + kernels->rough[j]);
    kernels->meet[p / 16] |= (uint64_t)which_are_some(around) << p % 16 * ABREAST;
}

ALWAYS_INLINE uint32_t code_place(Walk *walk, int decoding, int branching, uint16_t *bounds, Kernels *kernels, Row **rows, int p,
                                  int j) {
    const int64_t stride = walk->shape->inputs * walk->shape->positions;
    const int shift = walk->shape->shift;
    uint32_t raw = 0;
    const int32_t code = decoding ? 0 : walk->codes[j * stride + p];
    uint32_t high = code_high(walk, decoding, branching, bounds, rows[j], kernels->rough[j], code, &raw);
    if (decoding && UNLIKELY(high >= CAP || shift)) {
        kernels->wide = 1;
        kernels->large[p * ABREAST + j] = ((high - 1) << shift | raw) + 1;
    }
    return high;
}

/* What the magnitudes at a position mean for those that follow. */
ALWAYS_INLINE void learn_place(Walk *walk, Kernels *kernels, const Position *here, int p, const uint32_t *high, int line) {
    const Four capped = cap_four(four_of(high[0], high[1], high[2], high[3]), CAP), doubled = sum_fours(capped, capped);
    int32_t *near = &walk->frame->near[here->cell];
    add_four(near + ABREAST, doubled);
    add_four(near + line - ABREAST, capped);
    add_four(near + line, doubled);
    add_four(near + line + ABREAST, capped);
    store_four(&walk->frame->value[here->cell], capped);
    kernels->energy = sum_fours(kernels->energy, capped);
    kernels->squares = sum_fours(kernels->squares, square_four(capped));
    kernels->some[p / 16] |= (uint64_t)which_are_some(capped) << p % 16 * ABREAST;
}

ALWAYS_INLINE void learn_kernels(Walk *walk, const Kernels *kernels, uint32_t each) {
    const Four mean = scale_four(kernels->energy, each);
    uint32_t sum = 0;
    for (int j = 0; j < ABREAST; j++) sum += one_of(mean, j);
    walk->means = approach_four(walk->means, mean, 2);
    learn_column(walk, kernels->column, sum, 3, 5);
}

/* The signs of codes without a neighbour that is not 0, which nothing predicts: raw bits. */
ALWAYS_INLINE void code_lone_signs(Walk *walk, int decoding, const Kernels *kernels, int word) {
    const int64_t stride = walk->shape->inputs * walk->shape->positions;
    uint64_t left = kernels->some[word] & ~kernels->meet[word];
    for (int count = 0; left; count++, left &= left - 1) {
        const int place = lowest_bit(left), p = 16 * word + place / ABREAST, j = place % ABREAST;
        if (count % 32 == 0) renew_raw(&walk->coder, decoding);
        int32_t *value = &walk->frame->value[walk->table[p].cell + j];
        int32_t negative = -(int32_t)code_raw(&walk->coder, decoding, decoding ? 0 : walk->codes[j * stride + p] < 0, 1);
        *value = (*value ^ negative) - negative;
    }
}

/* The sign of one of the others. `scale` is what a prediction is measured by. */
ALWAYS_INLINE void code_sign(Walk *walk, int decoding, int word, int place, const int *scale, int line) {
    const int p = 16 * word + place / ABREAST, j = place % ABREAST;
    const Position *here = &walk->table[p];
    int32_t *value = &walk->frame->value[here->cell + j];
    int32_t pull = 4 * (value[-ABREAST] + value[-line]) - value[-line - ABREAST];
    int32_t back = -(pull < 0);
    uint32_t strength = (uint32_t)((pull ^ back) - back) * ((uint32_t)*value * (uint32_t)walk->shape->positions);
    int64_t bin = (eighths(strength | 1) - scale[j]) >> 2; /* of 64 bits, which GCC limits in ordinary registers */
    bin = bin < 0 ? 0 : bin < BINS ? bin : BINS - 1;
    uint32_t *state = &walk->model->sign[here->signs + (uint32_t)bin];
    const int32_t code = decoding ? 0 : walk->codes[j * (walk->shape->inputs * walk->shape->positions) + p];
    renew(&walk->coder, decoding);
    int agrees = code_adaptive(&walk->coder, decoding, state, (code < 0) == -back);
    int32_t negative = ~(-agrees ^ back); /* all ones for a negative code */
    *value = (*value ^ negative) - negative;
}

ALWAYS_INLINE void measure(const Walk *walk, const Kernels *kernels, int *scale) {
    for (int j = 0; j < ABREAST; j++)
        scale[j] = eighths(5 * one_of(kernels->squares, j) + 2 * (uint32_t)walk->shape->positions) - 32;
}

/* Magnitudes that contexts do not know, in place of what they know of them. */
RARE void put_large(const Walk *walk, const Kernels *kernels) {
    const int64_t positions = walk->shape->positions, stride = walk->shape->inputs * positions;
    for (int j = 0; j < walk->rows; j++) {
        int32_t *codes = walk->codes + j * stride;
        for (int64_t p = 0; p < positions; p++) {
            const int32_t large = (int32_t)kernels->large[p * ABREAST + j];
            if (codes[p] && (walk->shape->shift || codes[p] == CAP || codes[p] == -CAP)) codes[p] = codes[p] < 0 ? -large : large;
        }
    }
}

ALWAYS_INLINE void put_codes(const Walk *walk, const Kernels *kernels) {
    const int64_t positions = walk->shape->positions, stride = walk->shape->inputs * positions;
    int32_t *const codes = walk->codes;
    for (int64_t p = 0; p < positions; p++) {
        const int32_t *values = &walk->frame->value[walk->table[p].cell];
        codes[p] = values[0];
        if (walk->rows == ABREAST) codes[stride + p] = values[1], codes[2 * stride + p] = values[2], codes[3 * stride + p] = values[3];
        else for (int j = 1; j < walk->rows; j++) codes[j * stride + p] = values[j];
    }
    if (UNLIKELY(kernels->wide)) {
        const Walk here = *walk; /* the caller's own stays without an address */
        put_large(&here, kernels);
    }
}

/* All rows, or until `two`, where there is another weight with such kernels, or `one` has no more. */
ALWAYS_INLINE void code_kernels(Walk *one, Walk *two, int decoding, Kernels *first, Kernels *second) {
    const int both = two != NULL, branching = !both;
    const Position *const table = one->table;
    const int positions = (int)one->shape->positions, line = (int)(one->shape->width + 2) * ABREAST;
    const uint32_t each = ONE / (uint32_t)positions;
    uint16_t bounds[24] = {0}, others[24] = {0};
    int more = 1, scale[ABREAST], measure_of_two[ABREAST];
    while (more) {
        begin_kernels(one, first);
        if (both) begin_kernels(two, second);
        for (int p = 0; p < positions; p++) {
            Row *rows[ABREAST], *rows_of_two[ABREAST];
            uint32_t high[ABREAST] = {0}, high_of_two[ABREAST] = {0};
            find_rows(one, first, &table[p], p, rows);
            if (both) find_rows(two, second, &table[p], p, rows_of_two);
            if (one->rows == ABREAST && (!both || two->rows == ABREAST)) {
                UNROLLED
                for (int j = 0; j < ABREAST; j++) {
                    if (j % 2 == 0) renew(&one->coder, decoding);
                    if (j % 2 == 0 && both) renew(&two->coder, decoding);
                    high[j] = code_place(one, decoding, branching, bounds, first, rows, p, j);
                    if (both) high_of_two[j] = code_place(two, decoding, branching, others, second, rows_of_two, p, j);
                }
            } else {
                for (int j = 0; j < one->rows; j++) {
                    renew(&one->coder, decoding);
                    high[j] = code_place(one, decoding, branching, bounds, first, rows, p, j);
                }
                for (int j = 0; both && j < two->rows; j++) {
                    renew(&two->coder, decoding);
                    high_of_two[j] = code_place(two, decoding, branching, others, second, rows_of_two, p, j);
                }
            }
            learn_place(one, first, &table[p], p, high, line);
            if (both) learn_place(two, second, &table[p], p, high_of_two, line);
        }
        learn_kernels(one, first, each);
        if (both) learn_kernels(two, second, each);
        measure(one, first, scale);
        if (both) measure(two, second, measure_of_two);
        for (int word = 0; word <= (positions - 1) / 16; word++) {
            code_lone_signs(one, decoding, first, word);
            if (both) code_lone_signs(two, decoding, second, word);
        }
        for (int word = 0; word <= (positions - 1) / 16; word++) {
            uint64_t left = first->some[word] & first->meet[word], left_of_two = both ? second->some[word] & second->meet[word] : 0;
            for (; left && left_of_two; left &= left - 1, left_of_two &= left_of_two - 1) {
                code_sign(one, decoding, word, lowest_bit(left), scale, line);
                code_sign(two, decoding, word, lowest_bit(left_of_two), measure_of_two, line);
            }
            for (; left; left &= left - 1) code_sign(one, decoding, word, lowest_bit(left), scale, line);
            for (; both && left_of_two; left_of_two &= left_of_two - 1)
                code_sign(two, decoding, word, lowest_bit(left_of_two), measure_of_two, line);
        }
        if (decoding) put_codes(one, first);
        if (decoding && both) put_codes(two, second);
        more = advance(one);
        if (both) more &= advance(two);
    }
}

#endif
