/* Codes of weights with kernels, positions > 1. docs/format.md, "Sections of codes".
 *
 * In each column of a band all magnitudes come first, then the signs: the magnitudes determine how well a sign can be predicted
 * from those of its neighbours.
 *
 * Two weights with kernels of one shape are decoded interleaved, a step of one after a step of the other. Each step of a decoder
 * waits for the one before, and a processor works on the other weight meanwhile. The streams are those of single weights.
 */
#ifndef OPQ_KERNEL_CODES_H
#define OPQ_KERNEL_CODES_H

#include "band.h"

ALWAYS_INLINE int lowest_bit(uint64_t x) { return __builtin_ctzll(x); } /* x > 0 */

ALWAYS_INLINE void start_column(const BandState *band) {
    KernelColumn *const kernels = band->kernels;
    const uint32_t level = level_number(kernels->column_mean = column_mean(band));
    for (int j = 0; j < BAND_ROWS; j++)
        kernels->coarse_level[j] =
            (level_number(vec4_get(band->row_means, j)) + level + 1) / 4 * 2 * (uint32_t)sizeof(Distribution);
    kernels->sum = kernels->sum_of_squares = vec4_make(0, 0, 0, 0);
    kernels->has_large = band->shape->raw_bits > 0;
    for (int k = 0; k < MASK_WORDS; k++) kernels->nonzero[k] = kernels->nonzero_neighbours[k] = 0;
}

/* The distribution of each row at position p, from the expected magnitude: N in docs/format.md. Clears the neighbours' sum. */
ALWAYS_INLINE void select_distributions(const BandState *band, const PositionContext *context, int p, Distribution **chosen) {
    KernelColumn *const kernels = band->kernels;
    int32_t *cell = &band->padded->neighbours[context->cell];
    const Vec4 neighbours = vec4_load(cell);
    vec4_store(cell, vec4_make(0, 0, 0, 0));
    const Vec4 expected =
        vec4_add(vec4_scale(neighbours, context->neighbour_weight), vec4_scale(kernels->sum, context->average_weight));
    const Vec4 index = vec4_shift_right(expected, 6);
    for (int j = 0; j < BAND_ROWS; j++)
        chosen[j] = distribution_at(band->model, context->set + tables.level[vec4_get(index, j)] + kernels->coarse_level[j]);
    kernels->nonzero_neighbours[p / WORD_POSITIONS] |= (uint64_t)vec4_nonzero_mask(neighbours) << p % WORD_POSITIONS * BAND_ROWS;
}

/* The magnitude at position p of row j, without its raw bits. */
ALWAYS_INLINE uint32_t code_position(BandState *band, Direction direction, InstructionSet isa, int zero_branch, uint16_t *bounds,
                                     Distribution **chosen, int p, int j) {
    KernelColumn *const kernels = band->kernels;
    const int64_t stride = band->shape->inputs * band->shape->positions;
    const int raw_bits = band->shape->raw_bits;
    uint32_t raw = 0;
    const int32_t code = direction == DECODE ? 0 : band->codes[j * stride + p];
    uint32_t high = code_magnitude(band, direction, isa, zero_branch, bounds, chosen[j], kernels->coarse_level[j], code, &raw);
    if (direction == DECODE && UNLIKELY(high >= CONTEXT_MAX || raw_bits)) {
        kernels->has_large = 1;
        kernels->large[p * BAND_ROWS + j] = ((high - 1) << raw_bits | raw) + 1;
    }
    return high;
}

/* Adds the magnitudes at position p to the sums of the positions that follow. `line` is the numbers of a line of cells. */
ALWAYS_INLINE void update_neighbours(BandState *band, const PositionContext *context, int p, const uint32_t *high, int line) {
    KernelColumn *const kernels = band->kernels;
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
ALWAYS_INLINE void update_kernel_means(BandState *band, uint32_t factor) {
    KernelColumn *const kernels = band->kernels;
    const Vec4 means = vec4_scale(kernels->sum, factor);
    uint32_t sum = 0;
    for (int j = 0; j < BAND_ROWS; j++) sum += vec4_get(means, j);
    band->row_means = vec4_move_towards(band->row_means, means, 2);
    update_column_mean(band, kernels->column_mean, sum, 3, 5);
}

/* The signs of codes whose neighbours are all 0, which nothing predicts: raw bits. */
ALWAYS_INLINE void code_isolated_signs(BandState *band, Direction direction, int word) {
    KernelColumn *const kernels = band->kernels;
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
ALWAYS_INLINE void sign_scales(const BandState *band, int *scales) {
    for (int j = 0; j < BAND_ROWS; j++)
        scales[j] = log2_eighths(5 * vec4_get(band->kernels->sum_of_squares, j) + 2 * (uint32_t)band->shape->positions) - 32;
}

/* The sign at bit `bit` of a mask's word, predicted from the neighbours: v, k and F_k in docs/format.md. */
ALWAYS_INLINE void code_context_sign(BandState *band, Direction direction, int word, int bit, const int *scales, int line) {
    const int p = WORD_POSITIONS * word + bit / BAND_ROWS, j = bit % BAND_ROWS;
    const PositionContext *context = &band->contexts[p];
    int32_t *value = &band->padded->value[context->cell + j];
    int32_t pull = 4 * (value[-BAND_ROWS] + value[-line]) - value[-line - BAND_ROWS];
    int32_t pull_sign = -(pull < 0); /* all ones, or 0 */
    uint32_t strength = (uint32_t)((pull ^ pull_sign) - pull_sign) * ((uint32_t)*value * (uint32_t)band->shape->positions);
    int64_t bin = (log2_eighths(strength | 1) - scales[j]) >> 2; /* in 64 bits GCC clamps it in a general register: faster */
    bin = bin < 0 ? 0 : bin < SIGN_BINS ? bin : SIGN_BINS - 1;
    uint32_t *state = &band->model->sign[context->signs + (uint32_t)bin];
    const int32_t code = direction == DECODE ? 0 : band->codes[j * (band->shape->inputs * band->shape->positions) + p];
    refill(&band->coder, direction);
    int agrees = code_adaptive_bit(&band->coder, direction, state, (code < 0) == -pull_sign);
    int32_t negative = ~(-agrees ^ pull_sign); /* all ones, or 0 */
    *value = (*value ^ negative) - negative;
}

/* Writes the magnitudes in `large` over the codes that were written for them. */
COLD void store_large_codes(const BandState *band) {
    const int64_t positions = band->shape->positions, stride = band->shape->inputs * positions;
    for (int j = 0; j < band->rows; j++) {
        int32_t *codes = band->codes + j * stride;
        for (int64_t p = 0; p < positions; p++) {
            const int32_t large = (int32_t)band->kernels->large[p * BAND_ROWS + j];
            if (codes[p] && (band->shape->raw_bits || codes[p] == CONTEXT_MAX || codes[p] == -CONTEXT_MAX))
                codes[p] = codes[p] < 0 ? -large : large;
        }
    }
}

/* Writes the decoded codes of a column. */
ALWAYS_INLINE void store_codes(const BandState *band) {
    const int64_t positions = band->shape->positions, stride = band->shape->inputs * positions;
    int32_t *const codes = band->codes;
    for (int64_t p = 0; p < positions; p++) {
        const int32_t *values = &band->padded->value[band->contexts[p].cell];
        codes[p] = values[0];
        if (band->rows == BAND_ROWS) {
            codes[stride + p] = values[1], codes[2 * stride + p] = values[2], codes[3 * stride + p] = values[3];
        } else {
            for (int j = 1; j < band->rows; j++) codes[j * stride + p] = values[j];
        }
    }
    if (UNLIKELY(band->kernels->has_large)) {
        const BandState copy = *band; /* so that the address of the caller's band is not taken and it stays in registers */
        store_large_codes(&copy);
    }
}

/* `count` is a constant wherever code_kernels is inlined. Unrolled, the loop leaves all of `bands` in registers. */
#define FOR_EACH_WEIGHT UNROLLED for (int w = 0; w < count; w++)

/* All remaining columns and bands of `count` weights, 1 or 2, whose kernels have one shape, until one of them has no more. */
ALWAYS_INLINE void code_kernels(BandState *bands, const int count, Direction direction, InstructionSet isa) {
    const int zero_branch = count == 1;
    const PositionContext *const contexts = bands[0].contexts;
    const int positions = (int)bands[0].shape->positions, line = (int)(bands[0].shape->width + 2) * BAND_ROWS;
    const int words = (positions + WORD_POSITIONS - 1) / WORD_POSITIONS;
    const uint32_t factor = MEAN_ONE / (uint32_t)positions;
    uint16_t bounds[2][24] = {{0}};
    int more, scales[2][BAND_ROWS];
    do {
        FOR_EACH_WEIGHT start_column(&bands[w]);
        for (int p = 0; p < positions; p++) {
            Distribution *chosen[2][BAND_ROWS];
            uint32_t high[2][BAND_ROWS] = {{0}};
            FOR_EACH_WEIGHT select_distributions(&bands[w], &contexts[p], p, chosen[w]);
            if (bands[0].rows == BAND_ROWS && bands[count - 1].rows == BAND_ROWS) {
                UNROLLED
                for (int j = 0; j < BAND_ROWS; j++) {
                    if (j % 2 == 0) FOR_EACH_WEIGHT refill(&bands[w].coder, direction);
                    FOR_EACH_WEIGHT high[w][j] = code_position(&bands[w], direction, isa, zero_branch, bounds[w], chosen[w], p, j);
                }
            } else {
                FOR_EACH_WEIGHT for (int j = 0; j < bands[w].rows; j++) {
                    refill(&bands[w].coder, direction);
                    high[w][j] = code_position(&bands[w], direction, isa, zero_branch, bounds[w], chosen[w], p, j);
                }
            }
            FOR_EACH_WEIGHT update_neighbours(&bands[w], &contexts[p], p, high[w], line);
        }
        FOR_EACH_WEIGHT update_kernel_means(&bands[w], factor);
        FOR_EACH_WEIGHT sign_scales(&bands[w], scales[w]);
        for (int word = 0; word < words; word++) FOR_EACH_WEIGHT code_isolated_signs(&bands[w], direction, word);
        for (int word = 0; word < words; word++) {
            uint64_t left[2] = {0};
            FOR_EACH_WEIGHT left[w] = bands[w].kernels->nonzero[word] & bands[w].kernels->nonzero_neighbours[word];
            for (; left[0] && left[1]; left[0] &= left[0] - 1, left[1] &= left[1] - 1)
                FOR_EACH_WEIGHT code_context_sign(&bands[w], direction, word, lowest_bit(left[w]), scales[w], line);
            FOR_EACH_WEIGHT for (; left[w]; left[w] &= left[w] - 1) {
                code_context_sign(&bands[w], direction, word, lowest_bit(left[w]), scales[w], line);
            }
        }
        if (direction == DECODE) FOR_EACH_WEIGHT store_codes(&bands[w]);
        more = 1;
        FOR_EACH_WEIGHT more &= advance(&bands[w]);
    } while (more);
}

#endif
