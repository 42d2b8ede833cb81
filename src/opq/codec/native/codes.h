/* All codes of a weight: those with kernels as kernels.h says, others here; and the decoder in what a processor is best at. */
#ifndef OPQ_CODES_H
#define OPQ_CODES_H

#include "kernels.h"

#if defined(OPQ_RECENT)
#include <cpuid.h>
#endif

/* A weight without kernels. Nothing tells a sign: a raw bit. */
ALWAYS_INLINE void code_plain(Walk *walk, int decoding, const int rows) {
    const int64_t inputs = walk->shape->inputs;
    const int shift = walk->shape->shift;
    Coder *const coder = &walk->coder;
    uint16_t bounds[24] = {0};
    uint32_t row[ABREAST];
    for (int j = 0; j < rows; j++) row[j] = one_of(walk->means, j);
    for (walk->column = 0; walk->column < inputs; walk->column++) {
        uint32_t column = column_mean(walk), sum = 0;
        uint32_t column_level = level_offset(column) / LEVELS;
        renew_raw(coder, decoding); /* as many signs as there are rows, at least */
        UNROLLED
        for (int j = 0; j < rows; j++) {
            int32_t *code = &walk->codes[j * inputs + walk->column];
            Row *states = row_at(walk->model, level_offset(row[j]) + column_level);
            int32_t given = decoding ? 0 : *code, found = 0;
            uint32_t mean = 0, raw = 0;
            if (j % 2 == 0) renew_seldom(coder, decoding);
            uint32_t high = code_high(walk, decoding, 1, bounds, states, column_level, given, &raw);
            if (high) {
                int32_t negative = -(int32_t)code_raw(coder, decoding, given < 0, 1);
                found = ((int32_t)(((high - 1) << shift | raw) + 1) ^ negative) - negative;
                mean = (high < CAP ? high : CAP) * ONE;
            }
            if (decoding) *code = found;
            row[j] += (uint32_t)((int32_t)(mean - row[j]) >> 4);
            sum += mean;
        }
        learn_column(walk, column, sum, 4, 8);
    }
}

/* All rows that are left. */
ALWAYS_INLINE void code_rows(Walk *caller, int decoding, Kernels *kernels) {
    Walk own = *caller, *walk = &own; /* without an address, in registers */
    if (walk->shape->positions > 1) {
        code_kernels(walk, NULL, decoding, kernels, NULL);
    } else {
        do {
            if (walk->rows == ABREAST) code_plain(walk, decoding, ABREAST);
            else code_plain(walk, decoding, walk->rows);
            walk->column = walk->shape->inputs - 1, walk->codes += walk->column;
        } while (advance(walk));
    }
    *caller = own;
}

/* Whether two weights have kernels of one shape. */
static int are_alike(const Shape *one, const Shape *two) {
    return one->positions > 1 && one->positions == two->positions && one->width == two->width;
}

/* Two such weights, until one of them has no rows left. */
ALWAYS_INLINE void decode_in_step(Walk *first, Walk *second, int decoding, Kernels *kernels, Kernels *others) {
    Walk one = *first, two = *second;
    code_kernels(&one, &two, decoding, kernels, others);
    *first = one, *second = two;
}

RARE void encode_rows(Walk *walk, Kernels *kernels) { code_rows(walk, ENCODE, kernels); }

RARE void decode_rows_anywhere(Walk *walk, Kernels *kernels) { code_rows(walk, DECODE, kernels); }

RARE void decode_pair_anywhere(Walk *one, Walk *two, Kernels *kernels, Kernels *others) {
    decode_in_step(one, two, DECODE, kernels, others);
}

#if defined(OPQ_RECENT)
/* The same with instructions that nearly every x86-64 of the last ten years has. */
#define FOR_RECENT __attribute__((target("avx2,bmi,bmi2,lzcnt"))) RARE

FOR_RECENT void decode_rows_recently(Walk *walk, Kernels *kernels) { code_rows(walk, RECENT, kernels); }

FOR_RECENT void decode_pair_recently(Walk *one, Walk *two, Kernels *kernels, Kernels *others) {
    decode_in_step(one, two, RECENT, kernels, others);
}

/* Found once, by choose_decoder, when the module is loaded: to ask a virtual processor takes microseconds. */
static int recent;

/* All that FOR_RECENT compiles for: without lzcnt its instruction is another, and gives other numbers. */
static void choose_decoder(void) {
    unsigned int a, b, c = 0, d;
    const int counts = __get_cpuid(0x80000001u, &a, &b, &c, &d) && (c >> 5 & 1);
    recent = counts && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

/* Only damaged data are not within the range, from their first bytes on. What such data say is what decode_lanes does not know. */
static int is_recent(const Walk *walk) { return recent && walk->coder.low >> 48 < walk->coder.range; }

static void decode_rows(Walk *walk, Kernels *kernels) {
    if (is_recent(walk)) decode_rows_recently(walk, kernels);
    else decode_rows_anywhere(walk, kernels);
}

static void decode_pair(Walk *one, Walk *two, Kernels *kernels, Kernels *others) {
    if (is_recent(one) && is_recent(two)) decode_pair_recently(one, two, kernels, others);
    else decode_pair_anywhere(one, two, kernels, others);
}
#else
static void choose_decoder(void) {}

static void decode_rows(Walk *walk, Kernels *kernels) { decode_rows_anywhere(walk, kernels); }

static void decode_pair(Walk *one, Walk *two, Kernels *kernels, Kernels *others) {
    decode_pair_anywhere(one, two, kernels, others);
}
#endif

#endif
