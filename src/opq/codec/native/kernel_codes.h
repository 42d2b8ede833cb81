/* Codes of weights with kernels, positions > 1. docs/format.md, "Sections of codes".
 *
 * In each column of a band all magnitudes come first, then the signs: the magnitudes tell how well a sign can be predicted from
 * those of its neighbours.
 *
 * Two weights with kernels of one shape are decoded interleaved, a step of one after a step of the other. Each step of a decoder
 * waits for the one before, and a processor works on the other weight meanwhile. The streams are those of single weights.
 */
#ifndef OPQ_KERNEL_CODES_H
#define OPQ_KERNEL_CODES_H

#include "band.h"

/* A mask has one bit for each position and row, bit p * BAND_ROWS + j, in words of 64 bits. */
enum { WORD_POSITIONS = 64 / BAND_ROWS, MASK_WORDS = MAX_POSITIONS / WORD_POSITIONS };

/* The kernels of one column of a band. */
typedef struct {
    Vec4 sum, sum_of_squares;         /* of the magnitudes so far, at most CONTEXT_MAX each */
    uint32_t coarse_level[BAND_ROWS]; /* K in docs/format.md, as a byte offset in a set */
    uint32_t column_mean;
    int has_large;                                                /* decoder: a magnitude is in `large` */
    uint64_t nonzero[MASK_WORDS], nonzero_neighbours[MASK_WORDS]; /* masks: the code is not 0; a neighbour of it is not 0 */
    uint32_t large[MAX_POSITIONS * BAND_ROWS]; /* magnitudes that are not in PaddedKernels, which has no raw bits and stops at CONTEXT_MAX */
} KernelColumn;

ALWAYS_INLINE int lowest_bit(uint64_t x) { return __builtin_ctzll(x); } /* x > 0 */

ALWAYS_INLINE void start_column(const BandState *band, KernelColumn *kernels) {
    const uint32_t level = level_number(kernels->column_mean = column_mean(band));
    for (int j = 0; j < BAND_ROWS; j++)
        kernels->coarse_level[j] = (level_number(vec4_get(band->row_means, j)) + level + 1) / 4 * 2 * (uint32_t)sizeof(Distribution);
    kernels->sum = kernels->sum_of_squares = vec4_make(0, 0, 0, 0);
    kernels->has_large = band->shape->raw_bits > 0;
    for (int k = 0; k < MASK_WORDS; k++) kernels->nonzero[k] = kernels->nonzero_neighbours[k] = 0;
}

/* The distribution of each row at position p, from the expected magnitude: N in docs/format.md. Clears the neighbours' sum. */
ALWAYS_INLINE void select_distributions(const BandState *band, KernelColumn *kernels, const PositionContext *context, int p,
                                        Distribution **distributions) {
    int32_t *cell = &band->padded->neighbours[context->cell];
    const Vec4 neighbours = vec4_load(cell);
    vec4_store(cell, vec4_make(0, 0, 0, 0));
    const Vec4 expected = vec4_add(vec4_scale(neighbours, context->neighbour_weight), vec4_scale(kernels->sum, context->average_weight));
    const Vec4 index = vec4_shift_right(expected, 6);
    for (int j = 0; j < BAND_ROWS; j++)
        distributions[j] = distribution_at(band->model, context->set + tables.level[vec4_get(index, j)] + kernels->coarse_level[j]);
    kernels->nonzero_neighbours[p / WORD_POSITIONS] |= (uint64_t)vec4_nonzero_mask(neighbours) << p % WORD_POSITIONS * BAND_ROWS;
}

/* The magnitude at position p of row j, without its raw bits. */
ALWAYS_INLINE uint32_t code_position(BandState *band, Direction direction, InstructionSet isa, int zero_branch, uint16_t *bounds,
                                     KernelColumn *kernels, Distribution **distributions, int p, int j) {
    const int64_t stride = band->shape->inputs * band->shape->positions;
    const int raw_bits = band->shape->raw_bits;
    uint32_t raw = 0;
    const int32_t code = direction == DECODE ? 0 : band->codes[j * stride + p];
    uint32_t high = code_magnitude(band, direction, isa, zero_branch, bounds, distributions[j], kernels->coarse_level[j], code, &raw);
    if (direction == DECODE && UNLIKELY(high >= CONTEXT_MAX || raw_bits)) {
        kernels->has_large = 1;
        kernels->large[p * BAND_ROWS + j] = ((high - 1) << raw_bits | raw) + 1;
    }
    return high;
}

/* Adds the magnitudes at position p to the sums of the positions that follow. `line` is the numbers of a line of cells. */
ALWAYS_INLINE void update_neighbours(BandState *band, KernelColumn *kernels, const PositionContext *context, int p,
                                     const uint32_t *high, int line) {
    const Vec4 once = vec4_min(vec4_make(high[0], high[1], high[2], high[3]), CONTEXT_MAX), twice = vec4_add(once, once);
    int32_t *cell = &band->padded->neighbours[context->cell];
    vec4_add_to(cell + BAND_ROWS, twice);       /* to the right */
    vec4_add_to(cell + line - BAND_ROWS, once); /* below, to the left */
    vec4_add_to(cell + line, twice);            /* below */
    vec4_add_to(cell + line + BAND_ROWS, once); /* below, to the right */
    vec4_store(&band->padded->value[context->cell], once);
    kernels->sum = vec4_add(kernels->sum, once);
    kernels->sum_of_squares = vec4_add(kernels->sum_of_squares, vec4_square(once));
    kernels->nonzero[p / WORD_POSITIONS] |= (uint64_t)vec4_nonzero_mask(once) << p % WORD_POSITIONS * BAND_ROWS;
}

/* The running means after a column: h and H in docs/format.md. */
ALWAYS_INLINE void update_kernel_means(BandState *band, const KernelColumn *kernels, uint32_t factor) {
    const Vec4 means = vec4_scale(kernels->sum, factor);
    uint32_t sum = 0;
    for (int j = 0; j < BAND_ROWS; j++) sum += vec4_get(means, j);
    band->row_means = vec4_move_towards(band->row_means, means, 2);
    update_column_mean(band, kernels->column_mean, sum, 3, 5);
}

/* The signs of codes whose neighbours are all 0, which nothing predicts: raw bits. */
ALWAYS_INLINE void code_isolated_signs(BandState *band, Direction direction, const KernelColumn *kernels, int word) {
    const int64_t stride = band->shape->inputs * band->shape->positions;
    uint64_t left = kernels->nonzero[word] & ~kernels->nonzero_neighbours[word];
    for (int count = 0; left; count++, left &= left - 1) {
        const int bit = lowest_bit(left), p = WORD_POSITIONS * word + bit / BAND_ROWS, j = bit % BAND_ROWS;
        if (count % 32 == 0) refill_raw_bits(&band->coder, direction);
        int32_t *value = &band->padded->value[band->contexts[p].cell + j];
        const int given = direction == DECODE ? 0 : band->codes[j * stride + p] < 0;
        int32_t negative = -(int32_t)code_raw_bits(&band->coder, direction, (uint32_t)given, 1); /* all ones, or 0 */
        *value = (*value ^ negative) - negative;
    }
}

/* The part of a sign's context that depends on its kernel alone: eighths(5 Q + 2 positions) - 32 in docs/format.md. */
ALWAYS_INLINE void sign_scales(const BandState *band, const KernelColumn *kernels, int *scales) {
    for (int j = 0; j < BAND_ROWS; j++)
        scales[j] = log2_eighths(5 * vec4_get(kernels->sum_of_squares, j) + 2 * (uint32_t)band->shape->positions) - 32;
}

/* The sign at bit `bit` of a mask's word, predicted from the neighbours: v, k and F_k in docs/format.md. */
ALWAYS_INLINE void code_context_sign(BandState *band, Direction direction, int word, int bit, const int *scales, int line) {
    const int p = WORD_POSITIONS * word + bit / BAND_ROWS, j = bit % BAND_ROWS;
    const PositionContext *context = &band->contexts[p];
    int32_t *value = &band->padded->value[context->cell + j];
    int32_t pull = 4 * (value[-BAND_ROWS] + value[-line]) - value[-line - BAND_ROWS];
    int32_t pull_sign = -(pull < 0); /* all ones, or 0 */
    uint32_t strength = (uint32_t)((pull ^ pull_sign) - pull_sign) * ((uint32_t)*value * (uint32_t)band->shape->positions);
    int64_t bin = (log2_eighths(strength | 1) - scales[j]) >> 2; /* with 64 bits, GCC clamps in general registers, which is faster */
    bin = bin < 0 ? 0 : bin < SIGN_BINS ? bin : SIGN_BINS - 1;
    uint32_t *state = &band->model->sign[context->signs + (uint32_t)bin];
    const int32_t code = direction == DECODE ? 0 : band->codes[j * (band->shape->inputs * band->shape->positions) + p];
    refill(&band->coder, direction);
    int agrees = code_adaptive_bit(&band->coder, direction, state, (code < 0) == -pull_sign);
    int32_t negative = ~(-agrees ^ pull_sign); /* all ones, or 0 */
    *value = (*value ^ negative) - negative;
}

/* Writes the magnitudes in `large` over the codes that were written for them. */
COLD void store_large_codes(const BandState *band, const KernelColumn *kernels) {
    const int64_t positions = band->shape->positions, stride = band->shape->inputs * positions;
    for (int j = 0; j < band->rows; j++) {
        int32_t *codes = band->codes + j * stride;
        for (int64_t p = 0; p < positions; p++) {
            const int32_t large = (int32_t)kernels->large[p * BAND_ROWS + j];
            if (codes[p] && (band->shape->raw_bits || codes[p] == CONTEXT_MAX || codes[p] == -CONTEXT_MAX))
                codes[p] = codes[p] < 0 ? -large : large;
        }
    }
}

/* Writes the decoded codes of a column. */
ALWAYS_INLINE void store_codes(const BandState *band, const KernelColumn *kernels) {
    const int64_t positions = band->shape->positions, stride = band->shape->inputs * positions;
    int32_t *const codes = band->codes;
    for (int64_t p = 0; p < positions; p++) {
        const int32_t *values = &band->padded->value[band->contexts[p].cell];
        codes[p] = values[0];
        if (band->rows == BAND_ROWS) codes[stride + p] = values[1], codes[2 * stride + p] = values[2], codes[3 * stride + p] = values[3];
        else for (int j = 1; j < band->rows; j++) codes[j * stride + p] = values[j];
    }
    if (UNLIKELY(kernels->has_large)) {
        const BandState copy = *band; /* the address of the caller's own is not taken: it stays in registers */
        store_large_codes(&copy, kernels);
    }
}

/* All columns and bands that are left. With a second weight, both interleaved, until one of them has no more. */
ALWAYS_INLINE void code_kernels(BandState *one, BandState *two, Direction direction, InstructionSet isa, KernelColumn *first,
                                KernelColumn *second) {
    const int both = two != NULL, zero_branch = !both;
    const PositionContext *const contexts = one->contexts;
    const int positions = (int)one->shape->positions, line = (int)(one->shape->width + 2) * BAND_ROWS;
    const int words = (positions + WORD_POSITIONS - 1) / WORD_POSITIONS;
    const uint32_t factor = MEAN_ONE / (uint32_t)positions;
    uint16_t bounds[24] = {0}, others[24] = {0};
    int more = 1, scales[BAND_ROWS], scales_of_two[BAND_ROWS];
    while (more) {
        start_column(one, first);
        if (both) start_column(two, second);
        for (int p = 0; p < positions; p++) {
            Distribution *chosen[BAND_ROWS], *chosen_of_two[BAND_ROWS];
            uint32_t high[BAND_ROWS] = {0}, high_of_two[BAND_ROWS] = {0};
            select_distributions(one, first, &contexts[p], p, chosen);
            if (both) select_distributions(two, second, &contexts[p], p, chosen_of_two);
            if (one->rows == BAND_ROWS && (!both || two->rows == BAND_ROWS)) {
                UNROLLED
                for (int j = 0; j < BAND_ROWS; j++) {
                    if (j % 2 == 0) refill(&one->coder, direction);
                    if (j % 2 == 0 && both) refill(&two->coder, direction);
                    high[j] = code_position(one, direction, isa, zero_branch, bounds, first, chosen, p, j);
                    if (both) high_of_two[j] = code_position(two, direction, isa, zero_branch, others, second, chosen_of_two, p, j);
                }
            } else {
                for (int j = 0; j < one->rows; j++) {
                    refill(&one->coder, direction);
                    high[j] = code_position(one, direction, isa, zero_branch, bounds, first, chosen, p, j);
                }
                for (int j = 0; both && j < two->rows; j++) {
                    refill(&two->coder, direction);
                    high_of_two[j] = code_position(two, direction, isa, zero_branch, others, second, chosen_of_two, p, j);
                }
            }
            update_neighbours(one, first, &contexts[p], p, high, line);
            if (both) update_neighbours(two, second, &contexts[p], p, high_of_two, line);
        }
        update_kernel_means(one, first, factor);
        if (both) update_kernel_means(two, second, factor);
        sign_scales(one, first, scales);
        if (both) sign_scales(two, second, scales_of_two);
        for (int word = 0; word < words; word++) {
            code_isolated_signs(one, direction, first, word);
            if (both) code_isolated_signs(two, direction, second, word);
        }
        for (int word = 0; word < words; word++) {
            uint64_t left = first->nonzero[word] & first->nonzero_neighbours[word];
            uint64_t left_of_two = both ? second->nonzero[word] & second->nonzero_neighbours[word] : 0;
            for (; left && left_of_two; left &= left - 1, left_of_two &= left_of_two - 1) {
                code_context_sign(one, direction, word, lowest_bit(left), scales, line);
                code_context_sign(two, direction, word, lowest_bit(left_of_two), scales_of_two, line);
            }
            for (; left; left &= left - 1) code_context_sign(one, direction, word, lowest_bit(left), scales, line);
            for (; both && left_of_two; left_of_two &= left_of_two - 1)
                code_context_sign(two, direction, word, lowest_bit(left_of_two), scales_of_two, line);
        }
        if (direction == DECODE) store_codes(one, first);
        if (direction == DECODE && both) store_codes(two, second);
        more = advance(one);
        if (both) more &= advance(two);
    }
}

#endif
