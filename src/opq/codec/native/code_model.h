/* Adaptive probabilities of the codes of a weight. Integers alone.
 *
 * A magnitude is coded as a symbol, 0 to 7 or ESCAPE ("8 or more"), from the distribution that its context chooses. A distribution
 * counts the symbols that were coded with it. Its probabilities are computed from the counts at intervals, which become
 * longer as the counts grow. A sign is a binary decision with a probability that adapts after every decision.
 *
 * Words in docs/format.md, "Adaptive states and rows": a row is a Distribution here, and a state a bit state (uint32_t).
 */
#ifndef OPQ_CODE_MODEL_H
#define OPQ_CODE_MODEL_H

#include "range_coder.h"
#include "vec8_u16.h"

enum {
    LANES = 8,                /* thresholds of a distribution, each in a 16-bit lane of a vector: symbol > 0, ..., symbol > 7 */
    ESCAPE = LANES,           /* the symbol for 8 or more; the excess over 8 follows */
    MEAN_ONE = 1 << 12,       /* 1 in the unit of running means and expected magnitudes, which are in 4096ths */
    CONTEXT_MAX = 63,         /* largest magnitude in contexts and means; larger ones count as this */
    NUM_LEVELS = 20,          /* classes of a running mean or an expected magnitude, half octaves from 1/32 to 16 */
    MAX_ESCAPE_BITS = 25,     /* binary digits, without the leading one, of the largest Exp-Golomb number */
    SIGN_PLACES = 16,         /* classes of a position in its kernel, for signs */
    SIGN_BINS = 16,           /* classes of how well a sign can be predicted, of 1/2 octave each */
    COUNT_UNIT = 64,          /* what one symbol adds to a count: counts are in 64ths of a symbol */
    PRIOR_TOTAL = 8,          /* symbols that a new distribution counts as seen */
    HALVING_TOTAL = 960,      /* symbols: a distribution that counts so many is halved, so that old ones lose weight */
    MAX_UPDATE_INTERVAL = 32, /* most symbols between two computations of a distribution's probabilities */
    MAX_BIT_COUNT = 1023,     /* decisions: a bit state counts no further, and its rate of adaptation stays as it is */
};

/* Where the three sets of contexts in docs/format.md, "Sections of codes", begin among the distributions of a model. */
enum {
    SET_A = 0,                               /* two levels: of the neighbours or the row, and of the row and column */
    SET_B = SET_A + NUM_LEVELS * NUM_LEVELS, /* first position of a kernel: one level, of the row and column */
    SET_C = SET_B + NUM_LEVELS,              /* what follows an ESCAPE: one level, of the row and column */
    NUM_DISTRIBUTIONS = SET_C + NUM_LEVELS,
};

typedef struct {
    uint16_t above[LANES];        /* probability that the symbol is larger than k, in 65536ths */
    uint16_t until_update, total; /* symbols until probabilities are computed again; symbols counted, with PRIOR_TOTAL */
    uint16_t counts[LANES];       /* of symbols larger than k, each symbol COUNT_UNIT */
} Distribution;

/* A bit state is the probability of a 1 in the upper 22 bits, and in the lower 10 the number of decisions seen. */
typedef struct {
    Distribution distributions[NUM_DISTRIBUTIONS];
    uint32_t sign[SIGN_PLACES * SIGN_BINS], escape[32];
} CodeModel;

/* Constants, which init_tables computes when the module is loaded. */
static struct {
    int32_t rate[MAX_BIT_COUNT + 1];                          /* of a bit state after n decisions, in 65536ths */
    uint32_t reciprocal[HALVING_TOTAL + MAX_UPDATE_INTERVAL]; /* 2^31 / (COUNT_UNIT n) */
    uint16_t level[((CONTEXT_MAX + 1) * MEAN_ONE >> 6)];      /* by x >> 6: byte offset in set A of its level's first context */
    uint16_t increments[LANES + 1][LANES];                    /* what a symbol adds to counts */
    CodeModel initial;
} tables;

/* log2 x in eighths, linear between powers of two, for 0 < x < 2^29. docs/format.md: eighths(x). */
static inline int log2_eighths(uint32_t x) {
    int bit = highest_bit(x);
    return 8 * bit + (int)((x << 3 >> bit) & 7);
}

/* Contexts are byte offsets, so that a pointer is one addition. Set A has NUM_LEVELS distributions for each first level. */
static inline uint32_t level_offset(uint32_t x) { return tables.level[x >> 6]; }

static inline uint32_t level_number(uint32_t x) { return level_offset(x) / (NUM_LEVELS * (uint32_t)sizeof(Distribution)); }

static inline Distribution *distribution_at(CodeModel *model, uint32_t offset) {
    return (Distribution *)((char *)model->distributions + offset);
}

static inline uint32_t update_interval(uint32_t total) {
    uint32_t interval = total / 2;
    return interval < 1 ? 1 : interval > MAX_UPDATE_INTERVAL ? MAX_UPDATE_INTERVAL : interval;
}

/* Computes the probabilities from the counts, of `total` symbols. docs/format.md, "Adaptive states and rows": P_k. */
COLD void update_probabilities(Distribution *d, uint32_t total) {
    if (total >= HALVING_TOTAL) {
        total = (total + 1) / 2;
        for (int k = 0; k < LANES; k++) d->counts[k] /= 2;
    }
    for (int k = 0; k < LANES; k++) {
        uint32_t p = 2 * (d->counts[k] * tables.reciprocal[total] >> 16);
        d->above[k] = (uint16_t)(p - (p >> 11) + 2 * (uint32_t)(LANES - k));
    }
    d->total = (uint16_t)total;
    d->until_update = (uint16_t)update_interval(total);
}

/* A symbol was coded and its counts are up to date. */
ALWAYS_INLINE void update_if_due(Distribution *d) {
    if (UNLIKELY(--d->until_update == 0)) update_probabilities(d, d->total + update_interval(d->total));
}

ALWAYS_INLINE void count_symbol(Distribution *d, int symbol) {
    vec8_store(d->counts, vec8_add(vec8_load(d->counts), vec8_load(tables.increments[symbol])));
    update_if_due(d);
}

/* A symbol, all thresholds at once. docs/format.md, "Adaptive states and rows": B_k. bounds[7] to bounds[16] are the range, B_0 to
 * B_7, and 0, which is there already. */
ALWAYS_INLINE int code_symbol_vec8(RangeCoder *coder, Direction direction, uint16_t *bounds, const Distribution *d, int symbol) {
    Vec8 scaled = vec8_scale(vec8_load(d->above), coder->range);
    bounds[7] = (uint16_t)coder->range;
    vec8_store(bounds + 8, scaled);
    if (direction == DECODE) symbol = vec8_count_above(scaled, code_offset(coder));
    code_interval(coder, direction, bounds[8 + symbol], bounds[7 + symbol]);
    return symbol;
}

#if defined(OPQ_AVX2)
/* Decodes as `code_symbol_vec8` does, without storing to memory. The new code offset is the distance to the largest bound that
 * is not above the code, and the distance to the smallest bound above the code is the rest of the new range. Distances in the
 * other direction wrap modulo 2^16 and are larger. */
ALWAYS_INLINE int decode_symbol_avx2(RangeCoder *coder, const Distribution *d) {
    const uint32_t code = code_offset(coder);
    const Vec8 range = _mm_set1_epi16((short)coder->range), here = _mm_set1_epi16((short)code);
    const Vec8 bounds = vec8_scale(vec8_load(d->above), coder->range), next = _mm_sub_epi16(here, _mm_set1_epi16(-1));
    const uint32_t below = vec8_min_and_index(_mm_sub_epi16(here, bounds));
    const uint32_t above = vec8_min_and_index(_mm_sub_epi16(vec8_shift_in(range, bounds), next));
    if (UNLIKELY((below & 65535) > code)) { /* all bounds are above the code */
        code_interval(coder, DECODE, 0, coder->range * d->above[LANES - 1] >> 16);
        return ESCAPE;
    }
    coder->low += (uint64_t)(below - code) << 48; /* the index, above the 16 bits, is shifted out */
    coder->range = (below & 65535) + (above & 65535) + 1;
    renormalize(coder, DECODE);
    return (int)(below >> 16 & 7);
}
#endif

/* A symbol, after `refill`, and its count. */
ALWAYS_INLINE int code_any_symbol(RangeCoder *coder, Direction direction, InstructionSet isa, uint16_t *bounds, Distribution *d,
                                  int symbol) {
#if defined(OPQ_AVX2)
    if (direction == DECODE && isa == AVX2) symbol = decode_symbol_avx2(coder, d);
    else
#endif
        symbol = code_symbol_vec8(coder, direction, bounds, d, symbol);
    (void)isa;
    count_symbol(d, symbol);
    return symbol;
}

/* As `code_any_symbol`. With `zero_branch`, a branch handles the symbol 0 first: faster if most are 0 and nothing else could be
 * computed meanwhile. */
ALWAYS_INLINE int code_symbol(RangeCoder *coder, Direction direction, InstructionSet isa, int zero_branch, uint16_t *bounds,
                              Distribution *d, int symbol) {
    if (zero_branch) {
        uint32_t bound = coder->range * d->above[0] >> 16;
        if (direction == DECODE ? code_offset(coder) >= bound : symbol == 0) {
            code_interval(coder, direction, bound, coder->range);
            update_if_due(d);
            return 0;
        }
    }
    return code_any_symbol(coder, direction, isa, bounds, d, symbol);
}

/* docs/format.md, "Adaptive states and rows": how p and n change. */
ALWAYS_INLINE void update_bit(uint32_t *state, int bit) {
    uint32_t n = *state & MAX_BIT_COUNT;
    int32_t p = (int32_t)(*state >> 10), target = -bit & 0x3FFFFF;
    p += (int32_t)((int64_t)(target - p) * tables.rate[n] >> 16);
    *state = (uint32_t)p << 10 | (n + (n < MAX_BIT_COUNT));
}

/* The probability of a 1 that a decision uses: `p`, kept away from 0 and 1. Both are in 65536ths. */
ALWAYS_INLINE uint32_t bit_probability(uint32_t p) { return p - (p >> 11) + 16; }

ALWAYS_INLINE int code_adaptive_bit(RangeCoder *coder, Direction direction, uint32_t *state, int bit) {
    bit = code_bit(coder, direction, bit, bit_probability(*state >> 16));
    update_bit(state, bit);
    return bit;
}

static void reset_bits(uint32_t *states, size_t count) {
    for (size_t k = 0; k < count; k++) states[k] = (uint32_t)1 << 31; /* probability 1/2, nothing seen */
}

/* What follows an ESCAPE: a second symbol for `excess`, and after a second ESCAPE the rest as an adaptive Exp-Golomb number, whose
 * low bits are raw. docs/format.md, "Sections of codes": set C and v. */
ALWAYS_INLINE uint32_t code_escape_inline(RangeCoder *coder, Direction direction, CodeModel *model, uint16_t *bounds,
                                          Distribution *d, uint32_t excess) {
    refill(coder, direction);
    int symbol = code_any_symbol(coder, direction, BASELINE, bounds, d, excess < ESCAPE ? (int)excess : ESCAPE);
    if (symbol < ESCAPE) return (uint32_t)symbol;
    int num_bits = 0, wanted = direction == DECODE ? 0 : highest_bit(excess - ESCAPE + 1);
    for (; num_bits < MAX_ESCAPE_BITS; num_bits++) {
        refill(coder, direction);
        if (!code_adaptive_bit(coder, direction, &model->escape[num_bits], num_bits < wanted)) break;
    }
    refill(coder, direction);
    refill_raw_bits(coder, direction);
    uint32_t low = code_raw_bits(coder, direction, (excess - ESCAPE + 1) & ((1u << num_bits) - 1), num_bits);
    refill_raw_bits(coder, direction);
    return ((1u << num_bits) | low) - 1 + ESCAPE;
}

COLD uint32_t encode_escape(RangeCoder *coder, CodeModel *model, uint16_t *bounds, Distribution *d, uint32_t excess) {
    return code_escape_inline(coder, ENCODE, model, bounds, d, excess);
}

COLD uint32_t decode_escape(RangeCoder *coder, CodeModel *model, uint16_t *bounds, Distribution *d) {
    return code_escape_inline(coder, DECODE, model, bounds, d, 0);
}

/* `level` is the byte offset, within set C, of the context. */
ALWAYS_INLINE uint32_t code_escape(RangeCoder *coder, Direction direction, CodeModel *model, uint16_t *bounds, uint32_t level,
                                   uint32_t excess) {
    Distribution *d = distribution_at(model, SET_C * sizeof(Distribution) + level);
    RangeCoder copy = *coder; /* so that the address of the caller's coder is not taken and it stays in registers */
    excess = direction == DECODE ? decode_escape(&copy, model, bounds, d) : encode_escape(&copy, model, bounds, d, excess);
    *coder = copy;
    return excess;
}

/* The mean of a level, in 4096ths. docs/format.md, "Adaptive states and rows": z. */
static uint32_t level_mean(int level) { return 75u * (level ? (2u + (level - 1) % 2) << (level - 1) / 2 : 1u); }

/* The level of x in 4096ths: 0 below 1/32, NUM_LEVELS - 1 from 16 on. docs/format.md: level(x). */
static int level_index(uint32_t x) {
    if (x < 128) return 0;
    int bit = highest_bit(x), level = 2 * bit - 13 + (int)(x >> (bit - 1) & 1);
    return level < NUM_LEVELS ? level : NUM_LEVELS - 1;
}

/* A distribution begins as the geometric one whose mean is that of its level, as if PRIOR_TOTAL symbols had been seen. Without this
 * prior, a tensor of a few thousand weights would be half coded before its distributions have adapted. */
static void init_distribution(Distribution *d, int level) {
    uint32_t mean = level_mean(level), ratio = (uint32_t)(((uint64_t)mean << 16) / (mean + MEAN_ONE));
    uint32_t count = COUNT_UNIT * PRIOR_TOTAL << 8;
    for (int k = 0; k < LANES; k++) {
        count = (uint32_t)((uint64_t)count * ratio >> 16);
        d->counts[k] = (uint16_t)(count >> 8 ? count >> 8 : 1);
    }
    update_probabilities(d, PRIOR_TOTAL);
}

static void init_tables(void) {
    /* F_k of docs/format.md, "Sections of codes": 65536 / (1 + exp(-1.66 * 2^((k - 8.5) / 2))), from 1/2 to 0.98 */
    static const uint16_t agreement[SIGN_BINS] = {32768, 34787, 35620, 36791, 38428, 40694, 43760, 47743,
                                                  52529, 57544, 61750, 64225, 64225, 64225, 64225, 64225};
    CodeModel *initial = &tables.initial;
    for (int n = 0; n <= MAX_BIT_COUNT; n++) tables.rate[n] = 655360 / (10 * n + 16);
    for (uint32_t n = 1; n < HALVING_TOTAL + MAX_UPDATE_INTERVAL; n++) tables.reciprocal[n] = ((uint32_t)1 << 31) / COUNT_UNIT / n;
    for (uint32_t x = 0; x < sizeof tables.level / sizeof *tables.level; x++)
        tables.level[x] = (uint16_t)((uint32_t)level_index(x << 6) * NUM_LEVELS * sizeof(Distribution));
    for (int symbol = 0; symbol <= LANES; symbol++)
        for (int k = 0; k < LANES; k++) tables.increments[symbol][k] = k < symbol ? COUNT_UNIT : 0;
    for (int a = 0; a < NUM_LEVELS; a++)
        for (int b = 0; b < NUM_LEVELS; b++)
            init_distribution(&initial->distributions[SET_A + a * NUM_LEVELS + b], (a + b) / 2);
    for (int k = SET_B; k < NUM_DISTRIBUTIONS; k++) init_distribution(&initial->distributions[k], (k - SET_B) % NUM_LEVELS);
    for (int k = 0; k < SIGN_PLACES * SIGN_BINS; k++) initial->sign[k] = (uint32_t)agreement[k % SIGN_BINS] << 16 | 7;
    reset_bits(initial->escape, 32);
}

#endif
