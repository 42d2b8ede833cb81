/* All codes of a weight: those with kernels as kernel_codes.h says, others here; and the decoder in what a processor is best at. */
#ifndef OPQ_DISPATCH_H
#define OPQ_DISPATCH_H

#include "kernel_codes.h"

#if defined(OPQ_AVX2)
#include <cpuid.h>
#endif

/* A weight without kernels. Nothing tells a sign: a raw bit. */
ALWAYS_INLINE void code_matrix_band(BandState *band, int decoding, const int rows) {
    const int64_t inputs = band->shape->inputs;
    const int shift = band->shape->shift;
    RangeCoder *const coder = &band->coder;
    uint16_t bounds[24] = {0};
    uint32_t row[BAND_ROWS];
    for (int j = 0; j < rows; j++) row[j] = vec4_get(band->means, j);
    for (band->column = 0; band->column < inputs; band->column++) {
        uint32_t column = column_mean(band), sum = 0;
        uint32_t column_level = level_offset(column) / NUM_LEVELS;
        refill_raw_bits(coder, decoding); /* as many signs as there are rows, at least */
        UNROLLED
        for (int j = 0; j < rows; j++) {
            int32_t *code = &band->codes[j * inputs + band->column];
            Distribution *states = distribution_at(band->model, level_offset(row[j]) + column_level);
            int32_t given = decoding ? 0 : *code, found = 0;
            uint32_t mean = 0, raw = 0;
            if (j % 2 == 0) refill_if_low(coder, decoding);
            uint32_t high = code_magnitude(band, decoding, 1, bounds, states, column_level, given, &raw);
            if (high) {
                int32_t negative = -(int32_t)code_raw_bits(coder, decoding, given < 0, 1);
                found = ((int32_t)(((high - 1) << shift | raw) + 1) ^ negative) - negative;
                mean = (high < CONTEXT_MAX ? high : CONTEXT_MAX) * MEAN_ONE;
            }
            if (decoding) *code = found;
            row[j] += (uint32_t)((int32_t)(mean - row[j]) >> 4);
            sum += mean;
        }
        update_column_mean(band, column, sum, 4, 8);
    }
}

/* All rows that are left. */
ALWAYS_INLINE void code_bands(BandState *caller, int decoding, KernelColumn *kernels) {
    BandState own = *caller, *band = &own; /* without an address, in registers */
    if (band->shape->positions > 1) {
        code_kernels(band, NULL, decoding, kernels, NULL);
    } else {
        do {
            if (band->rows == BAND_ROWS) code_matrix_band(band, decoding, BAND_ROWS);
            else code_matrix_band(band, decoding, band->rows);
            band->column = band->shape->inputs - 1, band->codes += band->column;
        } while (advance(band));
    }
    *caller = own;
}

/* Whether two weights have kernels of one shape. */
static int have_same_kernels(const Shape *one, const Shape *two) {
    return one->positions > 1 && one->positions == two->positions && one->width == two->width;
}

/* Two such weights, until one of them has no rows left. */
ALWAYS_INLINE void decode_interleaved(BandState *first, BandState *second, int decoding, KernelColumn *kernels, KernelColumn *others) {
    BandState one = *first, two = *second;
    code_kernels(&one, &two, decoding, kernels, others);
    *first = one, *second = two;
}

COLD void encode_bands(BandState *band, KernelColumn *kernels) { code_bands(band, ENCODE, kernels); }

COLD void decode_bands_baseline(BandState *band, KernelColumn *kernels) { code_bands(band, DECODE, kernels); }

COLD void decode_pair_baseline(BandState *one, BandState *two, KernelColumn *kernels, KernelColumn *others) {
    decode_interleaved(one, two, DECODE, kernels, others);
}

#if defined(OPQ_AVX2)
/* The same with instructions that nearly every x86-64 of the last ten years has. */
#define TARGET_AVX2 __attribute__((target("avx2,bmi,bmi2,lzcnt"))) COLD

TARGET_AVX2 void decode_bands_avx2(BandState *band, KernelColumn *kernels) { code_bands(band, AVX2, kernels); }

TARGET_AVX2 void decode_pair_avx2(BandState *one, BandState *two, KernelColumn *kernels, KernelColumn *others) {
    decode_interleaved(one, two, AVX2, kernels, others);
}

/* Found once, by detect_avx2, when the module is loaded: to ask a virtual processor takes microseconds. */
static int cpu_has_avx2;

/* All that TARGET_AVX2 compiles for: without lzcnt its instruction is another, and gives other numbers. */
static void detect_avx2(void) {
    unsigned int a, b, c = 0, d;
    const int counts = __get_cpuid(0x80000001u, &a, &b, &c, &d) && (c >> 5 & 1);
    cpu_has_avx2 = counts && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

/* Only damaged data are not within the range, from their first bytes on. What such data say is what decode_symbol_avx2 does not know. */
static int can_use_avx2(const BandState *band) { return cpu_has_avx2 && band->coder.low >> 48 < band->coder.range; }

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
