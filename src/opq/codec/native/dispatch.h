/* All codes of a weight, with kernels (kernel_codes.h) or without, by the decoder that the processor runs best. */
#ifndef OPQ_DISPATCH_H
#define OPQ_DISPATCH_H

#include "kernel_codes.h"

#if defined(OPQ_AVX2)
#include <cpuid.h>
#endif

/* A band of a weight without kernels, positions = 1. docs/format.md, "Sections of codes". Signs are raw bits. */
ALWAYS_INLINE void code_matrix_band(BandState *band, Direction direction, InstructionSet isa, const int rows) {
    const int64_t inputs = band->shape->inputs;
    const int raw_bits = band->shape->raw_bits;
    RangeCoder *const coder = &band->coder;
    uint16_t bounds[24] = {0};
    uint32_t row_means[BAND_ROWS];
    for (int j = 0; j < rows; j++) row_means[j] = vec4_get(band->row_means, j);
    for (band->column = 0; band->column < inputs; band->column++) {
        const uint32_t mean_of_column = column_mean(band), level = level_offset(mean_of_column) / NUM_LEVELS;
        uint32_t sum = 0;
        refill_raw_bits(coder, direction); /* for the signs of all rows */
        UNROLLED
        for (int j = 0; j < rows; j++) {
            int32_t *code = &band->codes[j * inputs + band->column];
            Distribution *d = distribution_at(band->model, level_offset(row_means[j]) + level);
            int32_t given = direction == DECODE ? 0 : *code, found = 0;
            uint32_t mean = 0, raw = 0;
            if (j % 2 == 0) refill_if_low(coder, direction);
            uint32_t high = code_magnitude(band, direction, isa, 1, bounds, d, level, given, &raw);
            if (high) {
                int32_t negative = -(int32_t)code_raw_bits(coder, direction, given < 0, 1); /* all ones, or 0 */
                found = ((int32_t)(((high - 1) << raw_bits | raw) + 1) ^ negative) - negative;
                mean = (high < CONTEXT_MAX ? high : CONTEXT_MAX) * MEAN_ONE;
            }
            if (direction == DECODE) *code = found;
            row_means[j] += (uint32_t)((int32_t)(mean - row_means[j]) >> 4);
            sum += mean;
        }
        update_column_mean(band, mean_of_column, sum, 4, 8);
    }
}

/* All bands that are left. */
ALWAYS_INLINE void code_bands(BandState *caller, Direction direction, InstructionSet isa, KernelColumn *kernels) {
    BandState copy = *caller, *band = &copy; /* its address does not leave this function: it stays in registers */
    if (band->shape->positions > 1) {
        code_kernels(band, NULL, direction, isa, kernels, NULL);
    } else {
        do {
            if (band->rows == BAND_ROWS) code_matrix_band(band, direction, isa, BAND_ROWS);
            else code_matrix_band(band, direction, isa, band->rows);
            band->column = band->shape->inputs - 1, band->codes += band->column;
        } while (advance(band));
    }
    *caller = copy;
}

/* Whether two weights have kernels of one shape, and can be decoded interleaved. */
static int have_same_kernels(const Shape *one, const Shape *two) {
    return one->positions > 1 && one->positions == two->positions && one->width == two->width;
}

/* Two such weights, until one of them has no bands left. */
ALWAYS_INLINE void decode_interleaved(BandState *first, BandState *second, InstructionSet isa, KernelColumn *kernels,
                                      KernelColumn *others) {
    BandState one = *first, two = *second;
    code_kernels(&one, &two, DECODE, isa, kernels, others);
    *first = one, *second = two;
}

COLD void encode_bands(BandState *band, KernelColumn *kernels) { code_bands(band, ENCODE, BASELINE, kernels); }

COLD void decode_bands_baseline(BandState *band, KernelColumn *kernels) { code_bands(band, DECODE, BASELINE, kernels); }

COLD void decode_pair_baseline(BandState *one, BandState *two, KernelColumn *kernels, KernelColumn *others) {
    decode_interleaved(one, two, BASELINE, kernels, others);
}

#if defined(OPQ_AVX2)
/* The same with instructions that nearly every x86-64 of the last ten years has. `flatten` inlines the functions of vec8_u16.h that
 * need them. */
__attribute__((flatten)) TARGET_AVX2 COLD void decode_bands_avx2(BandState *band, KernelColumn *kernels) {
    code_bands(band, DECODE, AVX2, kernels);
}

__attribute__((flatten)) TARGET_AVX2 COLD void decode_pair_avx2(BandState *one, BandState *two, KernelColumn *kernels,
                                                                KernelColumn *others) {
    decode_interleaved(one, two, AVX2, kernels, others);
}

/* detect_avx2 sets it once, when the module is loaded: under a virtual machine, CPUID takes microseconds. */
static int cpu_has_avx2;

/* Whether the processor has all that TARGET_AVX2 names. One without lzcnt runs this instruction as bsr, with other results. */
static void detect_avx2(void) {
    unsigned int a, b, c = 0, d;
    const int has_lzcnt = __get_cpuid(0x80000001u, &a, &b, &c, &d) && (c >> 5 & 1);
    cpu_has_avx2 = has_lzcnt && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

/* decode_symbol_avx2 needs a code offset below the range. Every decision keeps it there; only damaged data begin at or beyond it. */
static int can_use_avx2(const BandState *band) { return cpu_has_avx2 && code_offset(&band->coder) < band->coder.range; }

static void decode_bands(BandState *band, KernelColumn *kernels) {
    if (can_use_avx2(band)) decode_bands_avx2(band, kernels);
    else decode_bands_baseline(band, kernels);
}

static void decode_pair(BandState *one, BandState *two, KernelColumn *kernels, KernelColumn *others) {
    if (can_use_avx2(one) && can_use_avx2(two)) decode_pair_avx2(one, two, kernels, others);
    else decode_pair_baseline(one, two, kernels, others);
}
#else
static void detect_avx2(void) {}

static void decode_bands(BandState *band, KernelColumn *kernels) { decode_bands_baseline(band, kernels); }

static void decode_pair(BandState *one, BandState *two, KernelColumn *kernels, KernelColumn *others) {
    decode_pair_baseline(one, two, kernels, others);
}
#endif

#endif
