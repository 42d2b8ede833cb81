/* What the codes of a weight look like: adaptive models of magnitudes and signs, integers alone.
 *
 * A magnitude is coded as one symbol, 0 to 7 or "8 and more", from a row of probabilities that its context chooses. A row
 * counts what it has seen; its probabilities are worked out anew now and then, ever more seldom. A sign is a binary decision
 * from a state that adapts with every decision.
 */
#ifndef OPQ_CODE_MODEL_H
#define OPQ_CODE_MODEL_H

#include "range_coder.h"

enum { ENCODE, DECODE, AVX2 }; /* what `decoding` is; the last with instructions that not all processors have */
enum { LANES = 8, NUM_LEVELS = 20, SIGN_PLACES = 16, SIGN_BINS = 16, CONTEXT_MAX = 63, MEAN_ONE = 1 << 12 };
enum { COUNT_UNIT = 64, PRIOR_TOTAL = 8, HALVING_TOTAL = 960, MAX_UPDATE_INTERVAL = 32 };
enum { SET_A = 0, SET_B = NUM_LEVELS * NUM_LEVELS, SET_C = SET_B + NUM_LEVELS, NUM_DISTRIBUTIONS = SET_C + NUM_LEVELS };

typedef struct {
    uint16_t larger[LANES]; /* the probability that the symbol is larger than k, in 65536ths */
    uint16_t left, total;   /* symbols until the next renewal; symbols counted, with those assumed before */
    uint16_t seen[LANES];   /* COUNT_UNITs, for every symbol larger than k */
} Distribution;

typedef struct {
    Distribution rows[NUM_DISTRIBUTIONS];
    uint32_t sign[SIGN_PLACES * SIGN_BINS], tail[32];
} CodeModel;

/* The same for all; init_tables fills it once, when the module is loaded. */
static struct {
    int32_t rate[1024];
    uint32_t reciprocal[HALVING_TOTAL + MAX_UPDATE_INTERVAL];
    uint16_t level[((CONTEXT_MAX + 1) * MEAN_ONE >> 6)]; /* of a 4096th over 64: offset of its first row in SET_A */
    uint16_t larger[LANES + 1][LANES];      /* COUNT_UNITs of a symbol */
    CodeModel start;
} tables;

/* log2 x in eighths, by straight lines between the powers of two; 0 < x < 2^29 */
static inline int log2_eighths(uint32_t x) {
    int bit = highest_bit(x);
    return 8 * bit + (int)((x << 3 >> bit) & 7);
}

static inline uint32_t level_offset(uint32_t x) { return tables.level[x >> 6]; }

static inline uint32_t level_number(uint32_t x) { return level_offset(x) / (NUM_LEVELS * (uint32_t)sizeof(Distribution)); }

static inline Distribution *distribution_at(CodeModel *model, uint32_t offset) { return (Distribution *)((char *)model->rows + offset); }

COLD void update_probabilities(Distribution *row, uint32_t total) {
    if (total >= HALVING_TOTAL) {
        total = (total + 1) / 2;
        for (int k = 0; k < LANES; k++) row->seen[k] /= 2;
    }
    for (int k = 0; k < LANES; k++) {
        uint32_t p = 2 * (row->seen[k] * tables.reciprocal[total] >> 16);
        row->larger[k] = (uint16_t)(p - (p >> 11) + 2 * (uint32_t)(LANES - k));
    }
    uint32_t wait = total / 2;
    row->total = (uint16_t)total;
    row->left = (uint16_t)(wait < 1 ? 1 : wait > MAX_UPDATE_INTERVAL ? MAX_UPDATE_INTERVAL : wait);
}

/* One symbol more, which was counted. */
ALWAYS_INLINE void update_if_due(Distribution *row) {
    if (UNLIKELY(--row->left == 0)) {
        uint32_t wait = row->total / 2u;
        update_probabilities(row, row->total + (wait < 1 ? 1 : wait > MAX_UPDATE_INTERVAL ? MAX_UPDATE_INTERVAL : wait));
    }
}

ALWAYS_INLINE void count_symbol(Distribution *row, int symbol) {
    vec8_store(row->seen, vec8_add(vec8_load(row->seen), vec8_load(tables.larger[symbol])));
    update_if_due(row);
}

/* A symbol, all lanes at once; bounds[7] to bounds[16] hold the range, what the lanes come to, and 0. */
ALWAYS_INLINE int code_symbol_vec8(RangeCoder *coder, int decoding, uint16_t *bounds, const Distribution *row, int symbol) {
    Vec8 scaled = vec8_scale(vec8_load(row->larger), coder->range);
    bounds[7] = (uint16_t)coder->range;
    vec8_store(bounds + 8, scaled);
    if (decoding) symbol = vec8_count_above(scaled, coder->low);
    code_interval(coder, decoding, bounds[8 + symbol], bounds[7 + symbol]);
    return symbol;
}

#if defined(OPQ_AVX2)
/* The same, without a way through memory. The distance to the largest bound that is not above the code is what remains of the
 * code, and that to the least bound above it the rest of the new range; distances the other way are larger, modulo 2^16. */
ALWAYS_INLINE int decode_symbol_avx2(RangeCoder *coder, const Distribution *row) {
    const uint32_t code = (uint32_t)(coder->low >> 48);
    const Vec8 range = _mm_set1_epi16((short)coder->range), here = _mm_set1_epi16((short)code);
    const Vec8 scaled = _mm_mulhi_epu16(vec8_load(row->larger), range), next = _mm_sub_epi16(here, _mm_set1_epi16(-1));
    const uint32_t below = vec8_min_position(_mm_sub_epi16(here, scaled));
    const uint32_t above = vec8_min_position(_mm_sub_epi16(vec8_shift_in(range, scaled), next));
    if (UNLIKELY((below & 65535) > code)) { /* all bounds are above */
        code_interval(coder, AVX2, 0, coder->range * row->larger[LANES - 1] >> 16);
        return LANES;
    }
    coder->low += (uint64_t)(below - code) << 48;
    coder->range = (below & 65535) + (above & 65535) + 1;
    renormalize(coder, AVX2);
    return (int)(below >> 16 & 7);
}
#endif

/* A symbol, after `refill`, and counted. */
ALWAYS_INLINE int code_any_symbol(RangeCoder *coder, int decoding, uint16_t *bounds, Distribution *row, int symbol) {
#if defined(OPQ_AVX2)
    if (decoding == AVX2) symbol = decode_symbol_avx2(coder, row);
    else
#endif
        symbol = code_symbol_vec8(coder, decoding, bounds, row, symbol);
    count_symbol(row, symbol);
    return symbol;
}

/* The same. Where most are 0, a branch costs a processor that foresees it little. */
ALWAYS_INLINE int code_symbol(RangeCoder *coder, int decoding, int branching, uint16_t *bounds, Distribution *row, int symbol) {
    if (branching) {
        uint32_t first = coder->range * row->larger[0] >> 16;
        if (decoding ? (uint32_t)(coder->low >> 48) >= first : symbol == 0) {
            code_interval(coder, decoding, first, coder->range);
            update_if_due(row);
            return 0;
        }
    }
    return code_any_symbol(coder, decoding, bounds, row, symbol);
}

/* A state is a probability of 1 (22 bits) over a count (10 bits): the more it has seen, the less it moves. */
ALWAYS_INLINE void update_bit(uint32_t *state, int bit) {
    uint32_t seen = *state & 1023;
    int32_t p = (int32_t)(*state >> 10), end = -bit & 0x3FFFFF;
    p += (int32_t)((int64_t)(end - p) * tables.rate[seen] >> 16);
    *state = (uint32_t)p << 10 | (seen + (seen < 1023));
}

ALWAYS_INLINE uint32_t bit_probability(uint32_t one) { return one - (one >> 11) + 16; }

ALWAYS_INLINE int code_adaptive_bit(RangeCoder *coder, int decoding, uint32_t *state, int bit) {
    bit = code_bit(coder, decoding, bit, bit_probability(*state >> 16));
    update_bit(state, bit);
    return bit;
}

static void reset_bits(uint32_t *states, size_t count) {
    for (size_t k = 0; k < count; k++) states[k] = (uint32_t)1 << 31;
}

/* What follows a symbol of 8: another, and after another 8 a whole number in Exp-Golomb form. */
ALWAYS_INLINE uint32_t code_escape_inline(RangeCoder *coder, int decoding, CodeModel *model, uint16_t *bounds, Distribution *row, uint32_t value) {
    refill(coder, decoding);
    int symbol = code_any_symbol(coder, decoding, bounds, row, value < LANES ? (int)value : LANES);
    if (symbol < LANES) return (uint32_t)symbol;
    int length = 0, wanted = decoding ? 0 : highest_bit(value - LANES + 1);
    for (; length < 25; length++) {
        refill(coder, decoding);
        if (!code_adaptive_bit(coder, decoding, &model->tail[length], length < wanted)) break;
    }
    refill(coder, decoding);
    refill_raw_bits(coder, decoding);
    uint32_t low = code_raw_bits(coder, decoding, (value - LANES + 1) & ((1u << length) - 1), length);
    refill_raw_bits(coder, decoding);
    return ((1u << length) | low) - 1 + LANES;
}

COLD uint32_t encode_escape(RangeCoder *coder, CodeModel *model, uint16_t *bounds, Distribution *row, uint32_t value) {
    return code_escape_inline(coder, ENCODE, model, bounds, row, value);
}

COLD uint32_t decode_escape(RangeCoder *coder, CodeModel *model, uint16_t *bounds, Distribution *row) {
    return code_escape_inline(coder, DECODE, model, bounds, row, 0);
}

ALWAYS_INLINE uint32_t code_escape(RangeCoder *coder, int decoding, CodeModel *model, uint16_t *bounds, uint32_t level, uint32_t value) {
    Distribution *row = distribution_at(model, SET_C * sizeof(Distribution) + level);
    RangeCoder apart = *coder; /* the caller's own stays without an address */
    value = decoding ? decode_escape(&apart, model, bounds, row) : encode_escape(&apart, model, bounds, row, value);
    *coder = apart;
    return value;
}

/* The middle of a level, in 4096ths. */
static uint32_t level_mean(int level) { return 75u * (level ? (2u + (level - 1) % 2) << (level - 1) / 2 : 1u); }

static int level_index(uint32_t x) { /* half octaves of 4096ths: 0 under 1/32, LEVELS - 1 from 16 on */
    if (x < 128) return 0;
    int bit = highest_bit(x), half = 2 * bit - 13 + (int)(x >> (bit - 1) & 1);
    return half < NUM_LEVELS ? half : NUM_LEVELS - 1;
}

/* Rows begin at a geometric law whose mean is the middle of their level, as if seen PRIOR_TOTAL times: a tensor of a few thousand
 * weights is half over before rows that begin with nothing have learned it. */
static void init_distribution(Distribution *row, int level) {
    uint32_t mean = level_mean(level), one = (uint32_t)(((uint64_t)mean << 16) / (mean + MEAN_ONE)), p = COUNT_UNIT * PRIOR_TOTAL << 8;
    for (int k = 0; k < LANES; k++) {
        p = (uint32_t)((uint64_t)p * one >> 16);
        row->seen[k] = (uint16_t)(p >> 8 ? p >> 8 : 1);
    }
    update_probabilities(row, PRIOR_TOTAL);
}

static void init_tables(void) {
    /* 65536 / (1 + exp(-1.66 * 2^((k - 8.5) / 2))), at least 1/2, at most 0.98 */
    static const uint16_t agreement[SIGN_BINS] = {32768, 34787, 35620, 36791, 38428, 40694, 43760, 47743,
                                             52529, 57544, 61750, 64225, 64225, 64225, 64225, 64225};
    CodeModel *start = &tables.start;
    for (int n = 0; n < 1024; n++) tables.rate[n] = 655360 / (10 * n + 16);
    for (uint32_t n = 1; n < HALVING_TOTAL + MAX_UPDATE_INTERVAL; n++) tables.reciprocal[n] = ((uint32_t)1 << 31) / COUNT_UNIT / n;
    for (uint32_t x = 0; x < sizeof tables.level / 2; x++)
        tables.level[x] = (uint16_t)((uint32_t)level_index(x << 6) * NUM_LEVELS * sizeof(Distribution));
    for (int symbol = 0; symbol <= LANES; symbol++)
        for (int k = 0; k < LANES; k++) tables.larger[symbol][k] = k < symbol ? COUNT_UNIT : 0;
    for (int a = 0; a < NUM_LEVELS; a++)
        for (int b = 0; b < NUM_LEVELS; b++)
            init_distribution(&start->rows[SET_A + a * NUM_LEVELS + b], (a + b) / 2);
    for (int k = SET_B; k < NUM_DISTRIBUTIONS; k++) init_distribution(&start->rows[k], (k - SET_B) % NUM_LEVELS);
    for (int k = 0; k < SIGN_PLACES * SIGN_BINS; k++) start->sign[k] = (uint32_t)agreement[k % SIGN_BINS] << 16 | 7;
    reset_bits(start->tail, 32);
}

#endif
