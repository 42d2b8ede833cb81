/* Weights with kernels: all magnitudes of a column's kernels, then their signs, for which the magnitudes tell how far a neighbour's
 * sign is to be trusted.
 *
 * Two weights with kernels of one shape are decoded in step: what a decoder does next depends on what it did last, and a
 * processor waits for it, or works on the other. Nothing in their bytes tells of it.
 */
#ifndef OPQ_KERNEL_CODES_H
#define OPQ_KERNEL_CODES_H

#include "band.h"

enum { MASK_WORDS = MAX_POSITIONS / 16 };

/* The kernels of a column, side by side. */
typedef struct {
    Vec4 energy, squares;
    uint32_t rough[BAND_ROWS], column;
    int wide;                          /* whether a magnitude is more than contexts know of it: it stands in `large` */
    uint64_t some[MASK_WORDS], meet[MASK_WORDS]; /* from the lowest bit on, position by position: not 0; with a neighbour that is not 0 */
    uint32_t large[MAX_POSITIONS * BAND_ROWS];
} KernelColumn;

ALWAYS_INLINE int lowest_bit(uint64_t x) { /* x > 0 */
#if defined(__GNUC__)
    return __builtin_ctzll(x);
#else
    const uint64_t lowest = x & (0 - x);
    return lowest >> 32 ? 32 + highest_bit((uint32_t)(lowest >> 32)) : highest_bit((uint32_t)lowest);
#endif
}

ALWAYS_INLINE void start_column(const BandState *band, KernelColumn *kernels) {
    const uint32_t level = level_number(kernels->column = column_mean(band));
    for (int j = 0; j < BAND_ROWS; j++) /* every other row of a set */
        kernels->rough[j] = (level_number(vec4_get(band->means, j)) + level + 1) / 4 * 2 * (uint32_t)sizeof(Distribution);
    kernels->energy = kernels->squares = vec4_make(0, 0, 0, 0);
    kernels->wide = band->shape->shift > 0;
    for (int k = 0; k < MASK_WORDS; k++) kernels->some[k] = kernels->meet[k] = 0;
}

/* The contexts' rows of a position, which then has no use any more for what its neighbours left. */
ALWAYS_INLINE void select_distributions(const BandState *band, KernelColumn *kernels, const PositionContext *here, int p, Distribution **rows) {
    int32_t *near = &band->frame->near[here->cell];
    const Vec4 around = vec4_load(near);
    vec4_store(near, vec4_make(0, 0, 0, 0));
    const Vec4 expected = vec4_add(vec4_scale(around, here->near), vec4_scale(kernels->energy, here->energy));
    const Vec4 index = vec4_shift_right(expected, 6);
    for (int j = 0; j < BAND_ROWS; j++)
        rows[j] = distribution_at(band->model, here->set + tables.level[vec4_get(index, j)] + kernels->rough[j]);
    kernels->meet[p / 16] |= (uint64_t)vec4_nonzero_mask(around) << p % 16 * BAND_ROWS;
}

ALWAYS_INLINE uint32_t code_position(BandState *band, int decoding, int branching, uint16_t *bounds, KernelColumn *kernels, Distribution **rows, int p,
                                  int j) {
    const int64_t stride = band->shape->inputs * band->shape->positions;
    const int shift = band->shape->shift;
    uint32_t raw = 0;
    const int32_t code = decoding ? 0 : band->codes[j * stride + p];
    uint32_t high = code_magnitude(band, decoding, branching, bounds, rows[j], kernels->rough[j], code, &raw);
    if (decoding && UNLIKELY(high >= CONTEXT_MAX || shift)) {
        kernels->wide = 1;
        kernels->large[p * BAND_ROWS + j] = ((high - 1) << shift | raw) + 1;
    }
    return high;
}

/* What the magnitudes at a position mean for those that follow. */
ALWAYS_INLINE void update_neighbours(BandState *band, KernelColumn *kernels, const PositionContext *here, int p, const uint32_t *high, int line) {
    const Vec4 capped = vec4_min(vec4_make(high[0], high[1], high[2], high[3]), CONTEXT_MAX), doubled = vec4_add(capped, capped);
    int32_t *near = &band->frame->near[here->cell];
    vec4_add_to(near + BAND_ROWS, doubled);
    vec4_add_to(near + line - BAND_ROWS, capped);
    vec4_add_to(near + line, doubled);
    vec4_add_to(near + line + BAND_ROWS, capped);
    vec4_store(&band->frame->value[here->cell], capped);
    kernels->energy = vec4_add(kernels->energy, capped);
    kernels->squares = vec4_add(kernels->squares, vec4_square(capped));
    kernels->some[p / 16] |= (uint64_t)vec4_nonzero_mask(capped) << p % 16 * BAND_ROWS;
}

ALWAYS_INLINE void update_kernel_means(BandState *band, const KernelColumn *kernels, uint32_t each) {
    const Vec4 mean = vec4_scale(kernels->energy, each);
    uint32_t sum = 0;
    for (int j = 0; j < BAND_ROWS; j++) sum += vec4_get(mean, j);
    band->means = vec4_move_towards(band->means, mean, 2);
    update_column_mean(band, kernels->column, sum, 3, 5);
}

/* The signs of codes without a neighbour that is not 0, which nothing predicts: raw bits. */
ALWAYS_INLINE void code_isolated_signs(BandState *band, int decoding, const KernelColumn *kernels, int word) {
    const int64_t stride = band->shape->inputs * band->shape->positions;
    uint64_t left = kernels->some[word] & ~kernels->meet[word];
    for (int count = 0; left; count++, left &= left - 1) {
        const int place = lowest_bit(left), p = 16 * word + place / BAND_ROWS, j = place % BAND_ROWS;
        if (count % 32 == 0) refill_raw_bits(&band->coder, decoding);
        int32_t *value = &band->frame->value[band->table[p].cell + j];
        int32_t negative = -(int32_t)code_raw_bits(&band->coder, decoding, decoding ? 0 : band->codes[j * stride + p] < 0, 1);
        *value = (*value ^ negative) - negative;
    }
}

/* The sign of one of the others. `scale` is what a prediction is measured by. */
ALWAYS_INLINE void code_context_sign(BandState *band, int decoding, int word, int place, const int *scale, int line) {
    const int p = 16 * word + place / BAND_ROWS, j = place % BAND_ROWS;
    const PositionContext *here = &band->table[p];
    int32_t *value = &band->frame->value[here->cell + j];
    int32_t pull = 4 * (value[-BAND_ROWS] + value[-line]) - value[-line - BAND_ROWS];
    int32_t back = -(pull < 0);
    uint32_t strength = (uint32_t)((pull ^ back) - back) * ((uint32_t)*value * (uint32_t)band->shape->positions);
    int64_t bin = (log2_eighths(strength | 1) - scale[j]) >> 2; /* of 64 bits, which GCC limits in ordinary registers */
    bin = bin < 0 ? 0 : bin < SIGN_BINS ? bin : SIGN_BINS - 1;
    uint32_t *state = &band->model->sign[here->signs + (uint32_t)bin];
    const int32_t code = decoding ? 0 : band->codes[j * (band->shape->inputs * band->shape->positions) + p];
    refill(&band->coder, decoding);
    int agrees = code_adaptive_bit(&band->coder, decoding, state, (code < 0) == -back);
    int32_t negative = ~(-agrees ^ back); /* all ones for a negative code */
    *value = (*value ^ negative) - negative;
}

ALWAYS_INLINE void sign_scales(const BandState *band, const KernelColumn *kernels, int *scale) {
    for (int j = 0; j < BAND_ROWS; j++)
        scale[j] = log2_eighths(5 * vec4_get(kernels->squares, j) + 2 * (uint32_t)band->shape->positions) - 32;
}

/* Magnitudes that contexts do not know, in place of what they know of them. */
COLD void store_large_codes(const BandState *band, const KernelColumn *kernels) {
    const int64_t positions = band->shape->positions, stride = band->shape->inputs * positions;
    for (int j = 0; j < band->rows; j++) {
        int32_t *codes = band->codes + j * stride;
        for (int64_t p = 0; p < positions; p++) {
            const int32_t large = (int32_t)kernels->large[p * BAND_ROWS + j];
            if (codes[p] && (band->shape->shift || codes[p] == CONTEXT_MAX || codes[p] == -CONTEXT_MAX)) codes[p] = codes[p] < 0 ? -large : large;
        }
    }
}

ALWAYS_INLINE void store_codes(const BandState *band, const KernelColumn *kernels) {
    const int64_t positions = band->shape->positions, stride = band->shape->inputs * positions;
    int32_t *const codes = band->codes;
    for (int64_t p = 0; p < positions; p++) {
        const int32_t *values = &band->frame->value[band->table[p].cell];
        codes[p] = values[0];
        if (band->rows == BAND_ROWS) codes[stride + p] = values[1], codes[2 * stride + p] = values[2], codes[3 * stride + p] = values[3];
        else for (int j = 1; j < band->rows; j++) codes[j * stride + p] = values[j];
    }
    if (UNLIKELY(kernels->wide)) {
        const BandState here = *band; /* the caller's own stays without an address */
        store_large_codes(&here, kernels);
    }
}

/* All rows, or until `two`, where there is another weight with such kernels, or `one` has no more. */
ALWAYS_INLINE void code_kernels(BandState *one, BandState *two, int decoding, KernelColumn *first, KernelColumn *second) {
    const int both = two != NULL, branching = !both;
    const PositionContext *const table = one->table;
    const int positions = (int)one->shape->positions, line = (int)(one->shape->width + 2) * BAND_ROWS;
    const uint32_t each = MEAN_ONE / (uint32_t)positions;
    uint16_t bounds[24] = {0}, others[24] = {0};
    int more = 1, scale[BAND_ROWS], measure_of_two[BAND_ROWS];
    while (more) {
        start_column(one, first);
        if (both) start_column(two, second);
        for (int p = 0; p < positions; p++) {
            Distribution *rows[BAND_ROWS], *rows_of_two[BAND_ROWS];
            uint32_t high[BAND_ROWS] = {0}, high_of_two[BAND_ROWS] = {0};
            select_distributions(one, first, &table[p], p, rows);
            if (both) select_distributions(two, second, &table[p], p, rows_of_two);
            if (one->rows == BAND_ROWS && (!both || two->rows == BAND_ROWS)) {
                UNROLLED
                for (int j = 0; j < BAND_ROWS; j++) {
                    if (j % 2 == 0) refill(&one->coder, decoding);
                    if (j % 2 == 0 && both) refill(&two->coder, decoding);
                    high[j] = code_position(one, decoding, branching, bounds, first, rows, p, j);
                    if (both) high_of_two[j] = code_position(two, decoding, branching, others, second, rows_of_two, p, j);
                }
            } else {
                for (int j = 0; j < one->rows; j++) {
                    refill(&one->coder, decoding);
                    high[j] = code_position(one, decoding, branching, bounds, first, rows, p, j);
                }
                for (int j = 0; both && j < two->rows; j++) {
                    refill(&two->coder, decoding);
                    high_of_two[j] = code_position(two, decoding, branching, others, second, rows_of_two, p, j);
                }
            }
            update_neighbours(one, first, &table[p], p, high, line);
            if (both) update_neighbours(two, second, &table[p], p, high_of_two, line);
        }
        update_kernel_means(one, first, each);
        if (both) update_kernel_means(two, second, each);
        sign_scales(one, first, scale);
        if (both) sign_scales(two, second, measure_of_two);
        for (int word = 0; word <= (positions - 1) / 16; word++) {
            code_isolated_signs(one, decoding, first, word);
            if (both) code_isolated_signs(two, decoding, second, word);
        }
        for (int word = 0; word <= (positions - 1) / 16; word++) {
            uint64_t left = first->some[word] & first->meet[word], left_of_two = both ? second->some[word] & second->meet[word] : 0;
            for (; left && left_of_two; left &= left - 1, left_of_two &= left_of_two - 1) {
                code_context_sign(one, decoding, word, lowest_bit(left), scale, line);
                code_context_sign(two, decoding, word, lowest_bit(left_of_two), measure_of_two, line);
            }
            for (; left; left &= left - 1) code_context_sign(one, decoding, word, lowest_bit(left), scale, line);
            for (; both && left_of_two; left_of_two &= left_of_two - 1)
                code_context_sign(two, decoding, word, lowest_bit(left_of_two), measure_of_two, line);
        }
        if (decoding) store_codes(one, first);
        if (decoding && both) store_codes(two, second);
        more = advance(one);
        if (both) more &= advance(two);
    }
}

#endif
