/* All codes of a weight, with kernels (kernel_codes.h) or without, by the decoder that the processor runs best. */
#ifndef OPQ_DISPATCH_H
#define OPQ_DISPATCH_H

#include "kernel_codes.h"

#if defined(OPQ_AVX2)
#include <cpuid.h>
#endif

/* The state that follows `state` after a code of this parity. docs/format.md, "Trellis": s2 s1 s0 -> s1 s0 b. */
ALWAYS_INLINE uint32_t next_state(uint32_t state, uint32_t code) {
    return (state << 1 & 6) | ((code ^ state >> 1 ^ state >> 2) & 1);
}

/* A band of a weight without kernels, positions = 1. docs/format.md, "Sections of codes". Signs are raw bits. With a trellis, codes
 * in memory are the n of docs/format.md, "Trellis", and `magnitude` is that of the k that is coded in their place. */
ALWAYS_INLINE void code_matrix_band(BandState *band, Direction direction, InstructionSet isa, const int trellis, const int rows) {
    const int64_t inputs = band->shape->inputs;
    const int raw_bits = band->shape->raw_bits;
    RangeCoder *const coder = &band->coder;
    uint16_t bounds[24] = {0};
    uint32_t row_means[BAND_ROWS], states[BAND_ROWS] = {0}, all = 0;
    for (int j = 0; j < rows; j++) row_means[j] = vec4_get(band->row_means, j);
    for (band->column = 0; band->column < inputs; band->column++) {
        const uint32_t mean_of_column = column_mean(band), level = level_offset(mean_of_column) / NUM_LEVELS;
        uint32_t sum = 0;
        if (direction == DECODE && UNLIKELY(is_exhausted(coder))) break; /* a row can be the whole weight */
        refill_raw_bits(coder, direction); /* for the signs of all rows */
        UNROLLED
        for (int j = 0; j < rows; j++) {
            int32_t *code = &band->codes[j * inputs + band->column];
            const uint32_t quantizer = trellis ? states[j] & 1 : 0;
            const uint32_t set = trellis ? band->second_set & (0u - quantizer) : 0;
            Distribution *d = distribution_at(band->model, set + level_offset(row_means[j]) + level);
            int32_t given = direction == DECODE ? 0 : *code, found = 0;
            uint32_t mean = 0, raw = 0, magnitude = 0;
            if (trellis && direction == ENCODE) {
                const uint32_t n = given < 0 ? 0u - (uint32_t)given : (uint32_t)given;
                const int32_t k = (int32_t)((n + quantizer) / 2);
                all |= ((n ^ quantizer) & (n != 0)) | n >> MAX_MAGNITUDE_BITS;
                given = given < 0 ? -k : k;
            }
            if (j % 2 == 0) refill_if_low(coder, direction);
            uint32_t high = code_magnitude(band, direction, isa, 1, bounds, d, level, given, &raw);
            if (high) {
                int32_t negative = -(int32_t)code_raw_bits(coder, direction, given < 0, 1); /* all ones, or 0 */
                magnitude = ((high - 1) << raw_bits | raw) + 1;
                if (trellis && direction == DECODE) all |= 2 * magnitude - quantizer;
                found = ((int32_t)(trellis ? 2 * magnitude - quantizer : magnitude) ^ negative) - negative;
                mean = (high < CONTEXT_MAX ? high : CONTEXT_MAX) * MEAN_ONE;
            }
            if (direction == DECODE) *code = found;
            if (trellis) states[j] = next_state(states[j], magnitude);
            row_means[j] += (uint32_t)((int32_t)(mean - row_means[j]) >> 4);
            sum += mean;
        }
        update_column_mean(band, mean_of_column, sum, 4, 8);
    }
    if (trellis && direction == DECODE) band->out_of_range |= all >> MAX_MAGNITUDE_BITS != 0;
    if (trellis && direction == ENCODE) band->breaks_trellis |= all != 0;
}

/* All remaining bands of a weight without kernels. */
ALWAYS_INLINE void code_matrix(BandState *caller, Direction direction, InstructionSet isa, const int trellis) {
    BandState band = *caller; /* its address does not leave this function: it stays in registers */
    do {
        if (band.rows == BAND_ROWS) code_matrix_band(&band, direction, isa, trellis, BAND_ROWS);
        else code_matrix_band(&band, direction, isa, trellis, band.rows);
        band.column = band.shape->inputs - 1, band.codes += band.column;
    } while (advance(&band));
    *caller = band;
}

/* All remaining bands of a weight with kernels. */
ALWAYS_INLINE void code_weight(BandState *caller, Direction direction, InstructionSet isa) {
    BandState band = *caller;
    code_kernels(&band, 1, direction, isa);
    *caller = band;
}

static int has_kernels(const Shape *shape) { return shape->positions > 1; }

/* Whether two weights have kernels of one shape, and can be decoded interleaved. */
static int have_same_kernels(const Shape *one, const Shape *two) {
    return has_kernels(one) && one->positions == two->positions && one->width == two->width;
}

/* Two such weights, until one of them has no bands left. */
ALWAYS_INLINE void decode_interleaved(BandState *one, BandState *two, InstructionSet isa) {
    BandState bands[2] = {*one, *two};
    code_kernels(bands, 2, DECODE, isa);
    *one = bands[0], *two = bands[1];
}

/* Each loop is compiled as a separate function, so that registers are allocated for this loop only. */
NOINLINE void encode_matrix(BandState *band) { code_matrix(band, ENCODE, BASELINE, 0); }
NOINLINE void encode_trellis(BandState *band) { code_matrix(band, ENCODE, BASELINE, 1); }
NOINLINE void encode_kernels(BandState *band) { code_weight(band, ENCODE, BASELINE); }
NOINLINE void decode_matrix_baseline(BandState *band) { code_matrix(band, DECODE, BASELINE, 0); }
NOINLINE void decode_trellis_baseline(BandState *band) { code_matrix(band, DECODE, BASELINE, 1); }
NOINLINE void decode_kernels_baseline(BandState *band) { code_weight(band, DECODE, BASELINE); }
NOINLINE void decode_pair_baseline(BandState *one, BandState *two) { decode_interleaved(one, two, BASELINE); }

#if defined(OPQ_AVX2)
/* With instructions that nearly every x86-64 of the last ten years has. `flatten` inlines the functions of vec8_u16.h that need
 * them. */
#define FOR_AVX2 __attribute__((flatten)) TARGET_AVX2 NOINLINE
FOR_AVX2 void decode_matrix_avx2(BandState *band) { code_matrix(band, DECODE, AVX2, 0); }
FOR_AVX2 void decode_trellis_avx2(BandState *band) { code_matrix(band, DECODE, AVX2, 1); }
FOR_AVX2 void decode_kernels_avx2(BandState *band) { code_weight(band, DECODE, AVX2); }
FOR_AVX2 void decode_pair_avx2(BandState *one, BandState *two) { decode_interleaved(one, two, AVX2); }

/* detect_avx2 sets it once, when the module is loaded: under a virtual machine, CPUID takes microseconds. */
static int cpu_has_avx2;

/* Whether the processor has all that TARGET_AVX2 names. One without lzcnt runs this instruction as bsr, with other results. */
static void detect_avx2(void) {
    unsigned int a, b, c = 0, d;
    const int has_lzcnt = __get_cpuid(0x80000001u, &a, &b, &c, &d) && (c >> 5 & 1);
    cpu_has_avx2 = has_lzcnt && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

/* decode_symbol_avx2 needs a code offset below the range. Every decision keeps it there; only damaged data begin beyond it. */
static int can_use_avx2(const BandState *band) { return cpu_has_avx2 && code_offset(&band->coder) < band->coder.range; }
#else
static void detect_avx2(void) {}
#endif

/* All remaining bands of a weight. */
static void encode_bands(BandState *band) {
    if (has_kernels(band->shape)) encode_kernels(band);
    else if (band->shape->trellis) encode_trellis(band);
    else encode_matrix(band);
}

static void decode_bands(BandState *band) {
#if defined(OPQ_AVX2)
    if (can_use_avx2(band)) {
        if (has_kernels(band->shape)) decode_kernels_avx2(band);
        else if (band->shape->trellis) decode_trellis_avx2(band);
        else decode_matrix_avx2(band);
        return;
    }
#endif
    if (has_kernels(band->shape)) decode_kernels_baseline(band);
    else if (band->shape->trellis) decode_trellis_baseline(band);
    else decode_matrix_baseline(band);
}

/* Two weights with kernels of one shape, until one of them has no bands left. */
static void decode_pair(BandState *one, BandState *two) {
#if defined(OPQ_AVX2)
    if (can_use_avx2(one) && can_use_avx2(two)) {
        decode_pair_avx2(one, two);
        return;
    }
#endif
    decode_pair_baseline(one, two);
}

#endif
