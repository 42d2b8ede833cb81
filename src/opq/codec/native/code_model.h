/* What the codes of a weight look like: adaptive binary models of magnitudes and signs, integers alone.
 *
 * The weight is seen as (outputs, inputs, positions): row o, column i, and the position inside a kernel, which is `width` wide.
 * A magnitude is coded in unary decisions "larger than b?", each the mean of three predictions whose contexts hold the kernel's
 * neighbours coded so far, the running magnitudes of its row and column, and the same position of the kernels before and above.
 * A sign inside a kernel is predicted from its neighbours' signs by three models mixed in the logistic domain.
 */
#ifndef OPQ_CODE_MODEL_H
#define OPQ_CODE_MODEL_H

#include "range_coder.h"

enum { LEVELS = 24, UNARY = 14, DECISIONS = 16, PLACES = 16, CAP = 1 << 15, ONE = 1 << 12, SIGN_MODELS = 3, SUMS = 17, HEAVIEST = 1 << 20 };
enum { FIRST_SET = (LEVELS + 1) * LEVELS, SECOND_SET = PLACES * LEVELS, THIRD_SET = 64 * LEVELS };
enum { CONTEXTS = FIRST_SET + SECOND_SET + THIRD_SET };
enum { SIGN_FIRST = 81 * PLACES, SIGN_OTHER = SUMS * PLACES * 2 };

typedef struct {
    uint32_t magnitude[DECISIONS * CONTEXTS]; /* the first decisions, most of all, stand close together */
    uint32_t sign[SIGN_FIRST + 2 * SIGN_OTHER];
    uint32_t tail[32];
    int32_t weights[PLACES][SIGN_MODELS];
} Model;

/* The same for all; prepare_tables fills it once, when the module is loaded. */
static struct {
    int32_t rate[1024];
    int16_t stretch[4096], squash[4095]; /* squash of x at x + 2047 */
    uint8_t level[(1 << 12) + 1]; /* of a magnitude's 4096ths over 64 */
} tables;

static inline int highest_bit(uint32_t x) { /* floor(log2 x), x > 0 */
#if defined(__GNUC__)
    return 31 - __builtin_clz(x);
#else
    int bit = 0;
    if (x >= 1u << 16) x >>= 16, bit += 16;
    if (x >= 1u << 8) x >>= 8, bit += 8;
    if (x >= 1u << 4) x >>= 4, bit += 4;
    if (x >= 1u << 2) x >>= 2, bit += 2;
    return bit + (int)(x >> 1);
#endif
}

/* Half octaves of a magnitude in 4096ths: 0 under 1/32, LEVELS - 1 from 64 on. */
static inline int level(uint32_t x) {
    x >>= 6;
    return tables.level[x < 1 << 12 ? x : 1 << 12];
}

/* Octaves of a whole number: 0, 1, 2, 3..4, 5..8, 9..16, 17..32, more. */
static inline int octave(uint32_t m) {
    m = m < 33 ? m : 33;
    return highest_bit((m << 2 | 1) - 2 * (m > 0));
}

static inline int signed_octave(int32_t v) {
    int size = octave((uint32_t)(v < 0 ? -v : v)), sign = -(v < 0);
    return 8 + ((size ^ sign) - sign);
}

static inline int trit(int32_t v) { return (v > 0) - (v < 0) + 1; }

/* 4096 / (1 + exp(-x / 256)) for x in -2047..2047, between points half a unit apart. */
static int squash(int x) {
    static const int16_t table[33] = {1,    2,    4,    6,    10,   17,   27,   45,   74,   120,  194,
                                      311,  488,  747,  1102, 1546, 2048, 2550, 2994, 3349, 3608, 3785,
                                      3902, 3976, 4022, 4051, 4069, 4079, 4086, 4090, 4092, 4094, 4095};
    if (x > 2047) x = 2047;
    if (x < -2047) x = -2047;
    int at = (x + 2048) >> 7, part = (x + 2048) & 127;
    return (table[at] * (128 - part) + table[at + 1] * part + 64) >> 7;
}

static void fill(uint32_t *states, size_t count) {
    for (size_t k = 0; k < count; k++) states[k] = (uint32_t)1 << 31;
}

/* Where the states of a magnitude's decisions begin: at the probability of "larger" in a geometric law whose mean is the middle of
 * the level, as if seen twice. A tensor of a few thousand weights is half over before states that begin at 1/2 have learned it. */
static void begin_magnitudes(Model *model, int shift) {
    uint32_t begin[LEVELS];
    for (int k = 0; k < LEVELS; k++) {
        uint64_t mean = 75u * (k ? (uint64_t)(2 + (k - 1) % 2) << ((k - 1) / 2) : 1u);
        uint64_t one = 65536 * mean / (mean + ((uint64_t)ONE << shift));
        begin[k] = (uint32_t)(one < 1311 ? 1311 : one > 64225 ? 64225 : one) << 16 | 2;
    }
    uint32_t *state = model->magnitude;
    for (int near = 0; near <= LEVELS; near++)
        for (int around = 0; around < LEVELS; around++) *state++ = begin[near < LEVELS ? (near + around) / 2 : around];
    for (int other = 0; other < PLACES + 64; other++)
        for (int expected = 0; expected < LEVELS; expected++) *state++ = begin[expected];
    for (int k = 1; k < DECISIONS; k++) memcpy(&model->magnitude[k * CONTEXTS], model->magnitude, CONTEXTS * sizeof *state);
}

static void reset(Model *model, int shift) {
    begin_magnitudes(model, shift);
    fill(model->sign, sizeof model->sign / sizeof *model->sign);
    fill(model->tail, sizeof model->tail / sizeof *model->tail);
    for (int place = 0; place < PLACES; place++)
        for (int k = 0; k < SIGN_MODELS; k++) model->weights[place][k] = 26214;
}

static void prepare_tables(void) {
    for (int n = 0; n < 1024; n++) tables.rate[n] = 655360 / (10 * n + 16);
    for (int x = -2047; x <= 2047; x++) tables.squash[x + 2047] = (int16_t)squash(x);
    int p = 0;
    for (int x = -2047; x <= 2047; x++) /* the inverse of squash */
        for (; p <= squash(x); p++) tables.stretch[p] = (int16_t)x;
    for (; p < 4096; p++) tables.stretch[p] = 2047;
    for (uint32_t x = 2; x <= 1 << 12; x++) { /* powers of two, and half as much again, begin a level */
        int bit = highest_bit(x), half = 2 * bit + (int)(x >> (bit - 1) & 1) - 1;
        tables.level[x] = (uint8_t)(half < LEVELS ? half : LEVELS - 1);
    }
}

/* A state is a probability of 1 (22 bits) over a count (10 bits): the more it has seen, the less it moves. */
ALWAYS_INLINE void adapt(uint32_t *state, int bit) {
    uint32_t seen = *state & 1023;
    int32_t p = (int32_t)(*state >> 10), end = -bit & 0x3FFFFF;
    p += (int32_t)((int64_t)(end - p) * tables.rate[seen] >> 16);
    *state = (uint32_t)p << 10 | (seen + (seen < 1023));
}

/* The mean of three states, in 65536ths. */
ALWAYS_INLINE uint32_t mean(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t one = ((a >> 16) + (b >> 16) + (c >> 16)) * 21845u >> 16; /* under 2^32 before the shift */
    return one < 8 ? 8 : one > 65528 ? 65528 : one;
}

ALWAYS_INLINE int code_mean(Coder *coder, int decoding, uint32_t *a, uint32_t *b, uint32_t *c, int bit) {
    if (code_bit(coder, decoding, bit, mean(*a, *b, *c))) {
        adapt(a, 1);
        adapt(b, 1);
        adapt(c, 1);
        return 1;
    }
    adapt(a, 0);
    adapt(b, 0);
    adapt(c, 0);
    return 0;
}

ALWAYS_INLINE int code_mixed(Coder *coder, int decoding, uint32_t **states, int32_t *weights, int bit) {
    int x[SIGN_MODELS];
    int64_t sum = 0;
    for (int k = 0; k < SIGN_MODELS; k++) {
        x[k] = tables.stretch[*states[k] >> 20];
        sum += (int64_t)weights[k] * x[k];
    }
    sum >>= 16;
    int one = tables.squash[sum > 2047 ? 4094 : sum < -2047 ? 0 : (int)sum + 2047];
    bit = code_even(coder, decoding, bit, (uint32_t)one * 16 + (one < 4095 ? 8 : 0));
    int error = (bit << 12) - one;
    for (int k = 0; k < SIGN_MODELS; k++) {
        int32_t weight = weights[k] + ((x[k] * error * 5 + 2048) >> 12);
        weights[k] = weight > HEAVIEST ? HEAVIEST : weight < -HEAVIEST ? -HEAVIEST : weight;
        adapt(states[k], bit);
    }
    return bit;
}

ALWAYS_INLINE int code_adaptive(Coder *coder, int decoding, uint32_t *state, int bit) {
    uint32_t one = *state >> 16;
    bit = code_bit(coder, decoding, bit, one < 8 ? 8 : one > 65528 ? 65528 : one);
    adapt(state, bit);
    return bit;
}

ALWAYS_INLINE uint32_t code_tail_here(Coder *coder, int decoding, uint32_t *states, uint32_t value) {
    int length = 0, wanted = decoding ? 0 : highest_bit(value + 1);
    while (length < 25 && code_adaptive(coder, decoding, &states[length], length < wanted)) length++;
    return ((1u << length) | code_raw(coder, decoding, value + 1, length)) - 1;
}

RARE uint32_t encode_tail(Coder *coder, uint32_t *states, uint32_t value) { return code_tail_here(coder, 0, states, value); }

RARE uint32_t decode_tail(Coder *coder, uint32_t *states) { return code_tail_here(coder, 1, states, 0); }

/* A whole number >= 0 in Exp-Golomb form; the length adapts, the rest is raw. Rare, so that a call is worth its code. */
ALWAYS_INLINE uint32_t code_tail(Coder *coder, int decoding, uint32_t *states, uint32_t value) {
    Coder apart = *coder; /* the caller's own stays without an address */
    value = decoding ? decode_tail(&apart, states) : encode_tail(&apart, states, value);
    *coder = apart;
    return value;
}

#endif
