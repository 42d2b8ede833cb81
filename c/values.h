/* Codes and stored words -> values. docs/format.md, "Values". */
#ifndef OPQ_VALUES_H
#define OPQ_VALUES_H

#include "bytes.h"
#include "opq.h"

/* To nearest, ties to even; NaN stays NaN. */
static uint16_t half_of_float(float value) {
    const uint32_t word = bits_of_float(value), sign = word >> 16 & 0x8000, magnitude = word & 0x7FFFFFFF;
    uint32_t half, dropped;
    if (magnitude > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (magnitude >> 13 & 0x3FF));
    if (magnitude >= 0x47800000) return (uint16_t)(sign | 0x7C00);
    if (magnitude >= 0x38800000) { /* normal: rebias the exponent */
        dropped = 13, half = magnitude - 0x38000000;
    } else { /* subnormal: a multiple of 2^-24 */
        const uint32_t exponent = magnitude >> 23;
        if (exponent < 101) return (uint16_t)sign;
        dropped = 126 - exponent, half = (magnitude & 0x7FFFFF) | 0x800000;
    }
    const uint32_t kept = half >> dropped, rest = half & ((1u << dropped) - 1), tie = 1u << (dropped - 1);
    return (uint16_t)(sign | (kept + (rest > tie || (rest == tie && (kept & 1)))));
}

static float float_of_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3FF;
    if (exponent == 31) return float_of_bits(sign | 0x7F800000 | fraction << 13);
    if (exponent) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    const float value = (float)fraction * 0x1p-24f;
    return sign ? -value : value;
}

static uint16_t bfloat_of_float(float value) {
    const uint32_t word = bits_of_float(value);
    if ((word & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)((word >> 16 & 0x8000) | 0x7FC0);
    return (uint16_t)((word + 0x7FFF + (word >> 16 & 1)) >> 16);
}

static float float_of_bfloat(uint16_t word) { return float_of_bits((uint32_t)word << 16); }

/* Stores a float32 number as element k of one of the four dtypes of weights. */
static void store_float(void *output, opq_dtype dtype, uint64_t k, float value) {
    if (dtype == OPQ_FLOAT32) ((float *)output)[k] = value;
    else if (dtype == OPQ_FLOAT64) ((double *)output)[k] = value;
    else ((uint16_t *)output)[k] = dtype == OPQ_FLOAT16 ? half_of_float(value) : bfloat_of_float(value);
}

/* A weight whose codes become values of its dtype. */
typedef struct {
    void *output;
    opq_dtype dtype;
    float step;
    uint64_t width;                /* scaled: columns of the matrix */
    const uint8_t *rows, *columns; /* scaled: scales plus 128, or NULL */
    const uint64_t *levels;        /* levels: words, of code 0 in the middle */
    int32_t positives, negatives;
} Values;

/* step * M_(e mod 8) * 2^floor(e / 8). */
static double scaled_step(float step, int e) {
    static const uint32_t multipliers[8] = {8388608, 9147842, 9975792, 10878679, 11863283, 12937002, 14107901, 15384775};
    const int octave = e >> 3;
    const float product = (float)((double)step * (multipliers[e & 7] * 0x1p-23)); /* exact, then rounded once */
    const double power = octave < 0 ? 1.0 / (double)((uint64_t)1 << -octave) : (double)((uint64_t)1 << octave);
    return (double)product * power;
}

/* The product of a step and a code, rounded to float32, or to float64 for that dtype. */
static void store_product(const Values *to, uint64_t k, double step, int32_t code) {
    const double product = step * (double)code; /* of 24 bits each: exact */
    if (to->dtype == OPQ_FLOAT64) ((double *)to->output)[k] = product;
    else store_float(to->output, to->dtype, k, (float)product);
}

static Problem take_steps(void *context, uint64_t start, const int32_t *codes, size_t count) {
    const Values *to = (const Values *)context;
    if (to->dtype == OPQ_FLOAT32) {
        float *output = (float *)to->output + start;
        for (size_t k = 0; k < count; k++) output[k] = to->step * (float)codes[k];
    } else {
        for (size_t k = 0; k < count; k++) store_product(to, start + k, to->step, codes[k]);
    }
    return NULL;
}

static Problem take_scaled(void *context, uint64_t start, const int32_t *codes, size_t count) {
    const Values *to = (const Values *)context;
    double steps[2 * 254 + 1];
    for (int e = -254; e <= 254; e++) steps[e + 254] = scaled_step(to->step, e);
    uint64_t row = start / to->width, column = start % to->width;
    for (size_t k = 0; k < count; k++) {
        const int e = (to->rows ? to->rows[row] - 128 : 0) + (to->columns ? to->columns[column] - 128 : 0);
        store_product(to, start + k, steps[e + 254], codes[k]);
        if (++column == to->width) column = 0, row++;
    }
    return NULL;
}

static Problem take_levels(void *context, uint64_t start, const int32_t *codes, size_t count) {
    const Values *to = (const Values *)context;
    for (size_t k = 0; k < count; k++) {
        if (codes[k] > to->positives || codes[k] < -to->negatives) return "a code is beyond the table of levels";
        const uint64_t word = to->levels[codes[k]];
        if (to->dtype == OPQ_FLOAT64) ((uint64_t *)to->output)[start + k] = word;
        else if (to->dtype == OPQ_FLOAT32) ((uint32_t *)to->output)[start + k] = (uint32_t)word;
        else ((uint16_t *)to->output)[start + k] = (uint16_t)word;
    }
    return NULL;
}

/* Codes as they are. `levels` or `dtype` do not matter; codes of levels must be within the table. */
static Problem take_plain(void *context, uint64_t start, const int32_t *codes, size_t count) {
    const Values *to = (const Values *)context;
    for (size_t k = 0; k < count && to->levels; k++)
        if (codes[k] > to->positives || codes[k] < -to->negatives) return "a code is beyond the table of levels";
    memcpy((int32_t *)to->output + start, codes, sizeof *codes * count);
    return NULL;
}

static void restore_half(const uint8_t *data, uint64_t count, opq_dtype dtype, void *output) {
    for (uint64_t k = 0; k < count; k++) {
        uint16_t half;
        memcpy(&half, data + 2 * k, sizeof half);
        if (dtype == OPQ_FLOAT16) ((uint16_t *)output)[k] = half;
        else store_float(output, dtype, k, float_of_half(half));
    }
}

static void restore_linear(const uint8_t *data, uint64_t count, float lowest, float highest, opq_dtype dtype, void *output) {
    for (uint64_t k = 0; k < count; k++) {
        const double value = (double)lowest + ((double)highest - (double)lowest) * data[k] / 255.0;
        if (dtype == OPQ_FLOAT64) ((double *)output)[k] = value;
        else ((float *)output)[k] = (float)value;
    }
}

static void restore_relative(const uint8_t *data, uint64_t count, float lowest, float highest, opq_dtype dtype, void *output) {
    const int64_t first = bits_of_float(lowest), last = bits_of_float(highest);
    for (uint64_t k = 0; k < count; k++) {
        const int64_t word = data[k] ? first + (((int64_t)data[k] - 1) * (last - first) + 127) / 254 : 0;
        store_float(output, dtype, k, float_of_bits((uint32_t)word));
    }
}

#endif
