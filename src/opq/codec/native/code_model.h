/* What the codes of a weight look like: adaptive models of magnitudes and signs, integers alone.
 *
 * A magnitude is coded as one symbol, 0 to 7 or "8 and more", from a row of probabilities that its context chooses. A row
 * counts what it has seen; its probabilities are worked out anew now and then, ever more seldom. A sign is a binary decision
 * from a state that adapts with every decision.
 */
#ifndef OPQ_CODE_MODEL_H
#define OPQ_CODE_MODEL_H

#include "range_coder.h"

enum { ENCODE, DECODE, RECENT }; /* what `decoding` is; the last with instructions that not all processors have */
enum { LANES = 8, LEVELS = 20, PLACES = 16, BINS = 16, CAP = 63, ONE = 1 << 12 };
enum { UNIT = 64, BEFORE = 8, OLD = 960, LONGEST = 32 };
enum { NEAR = 0, FIRST = LEVELS * LEVELS, LARGE = FIRST + LEVELS, ROWS = LARGE + LEVELS };

typedef struct {
    uint16_t larger[LANES]; /* the probability that the symbol is larger than k, in 65536ths */
    uint16_t left, total;   /* symbols until the next renewal; symbols counted, with those assumed before */
    uint16_t seen[LANES];   /* UNITs, for every symbol larger than k */
} Row;

typedef struct {
    Row rows[ROWS];
    uint32_t sign[PLACES * BINS], tail[32];
} Model;

/* The same for all; prepare_tables fills it once, when the module is loaded. */
static struct {
    int32_t rate[1024];
    uint32_t reciprocal[OLD + LONGEST];
    uint16_t level[((CAP + 1) * ONE >> 6)]; /* of a 4096th over 64: offset of its first row in NEAR */
    uint16_t larger[LANES + 1][LANES];      /* UNITs of a symbol */
    Model start;
} tables;

/* log2 x in eighths, by straight lines between the powers of two; 0 < x < 2^29 */
static inline int eighths(uint32_t x) {
    int bit = highest_bit(x);
    return 8 * bit + (int)((x << 3 >> bit) & 7);
}

static inline uint32_t level_offset(uint32_t x) { return tables.level[x >> 6]; }

static inline uint32_t level_number(uint32_t x) { return level_offset(x) / (LEVELS * (uint32_t)sizeof(Row)); }

static inline Row *row_at(Model *model, uint32_t offset) { return (Row *)((char *)model->rows + offset); }

RARE void renew_row(Row *row, uint32_t total) {
    if (total >= OLD) {
        total = (total + 1) / 2;
        for (int k = 0; k < LANES; k++) row->seen[k] /= 2;
    }
    for (int k = 0; k < LANES; k++) {
        uint32_t p = 2 * (row->seen[k] * tables.reciprocal[total] >> 16);
        row->larger[k] = (uint16_t)(p - (p >> 11) + 2 * (uint32_t)(LANES - k));
    }
    uint32_t wait = total / 2;
    row->total = (uint16_t)total;
    row->left = (uint16_t)(wait < 1 ? 1 : wait > LONGEST ? LONGEST : wait);
}

/* One symbol more, which was counted. */
ALWAYS_INLINE void age(Row *row) {
    if (UNLIKELY(--row->left == 0)) {
        uint32_t wait = row->total / 2u;
        renew_row(row, row->total + (wait < 1 ? 1 : wait > LONGEST ? LONGEST : wait));
    }
}

ALWAYS_INLINE void count(Row *row, int symbol) {
    store_lanes(row->seen, sum_lanes(load_lanes(row->seen), load_lanes(tables.larger[symbol])));
    age(row);
}

/* A symbol, all lanes at once; bounds[7] to bounds[16] hold the range, what the lanes come to, and 0. */
ALWAYS_INLINE int code_lanes(Coder *coder, int decoding, uint16_t *bounds, const Row *row, int symbol) {
    Lanes scaled = scale_lanes(load_lanes(row->larger), coder->range);
    bounds[7] = (uint16_t)coder->range;
    store_lanes(bounds + 8, scaled);
    if (decoding) symbol = count_larger(scaled, coder->low);
    narrow(coder, decoding, bounds[8 + symbol], bounds[7 + symbol]);
    return symbol;
}

#if defined(OPQ_RECENT)
/* The same, without a way through memory. The distance to the largest bound that is not above the code is what remains of the
 * code, and that to the least bound above it the rest of the new range; distances the other way are larger, modulo 2^16. */
ALWAYS_INLINE int decode_lanes(Coder *coder, const Row *row) {
    const uint32_t code = (uint32_t)(coder->low >> 48);
    const Lanes range = _mm_set1_epi16((short)coder->range), here = _mm_set1_epi16((short)code);
    const Lanes scaled = _mm_mulhi_epu16(load_lanes(row->larger), range), next = _mm_sub_epi16(here, _mm_set1_epi16(-1));
    const uint32_t below = least_lane(_mm_sub_epi16(here, scaled));
    const uint32_t above = least_lane(_mm_sub_epi16(behind_lane(range, scaled), next));
    if (UNLIKELY((below & 65535) > code)) { /* all bounds are above */
        narrow(coder, RECENT, 0, coder->range * row->larger[LANES - 1] >> 16);
        return LANES;
    }
    coder->low += (uint64_t)(below - code) << 48;
    coder->range = (below & 65535) + (above & 65535) + 1;
    widen(coder, RECENT);
    return (int)(below >> 16 & 7);
}
#endif

/* A symbol, after `renew`, and counted. */
ALWAYS_INLINE int code_larger(Coder *coder, int decoding, uint16_t *bounds, Row *row, int symbol) {
#if defined(OPQ_RECENT)
    if (decoding == RECENT) symbol = decode_lanes(coder, row);
    else
#endif
        symbol = code_lanes(coder, decoding, bounds, row, symbol);
    count(row, symbol);
    return symbol;
}

/* The same. Where most are 0, a branch costs a processor that foresees it little. */
ALWAYS_INLINE int code_symbol(Coder *coder, int decoding, int branching, uint16_t *bounds, Row *row, int symbol) {
    if (branching) {
        uint32_t first = coder->range * row->larger[0] >> 16;
        if (decoding ? (uint32_t)(coder->low >> 48) >= first : symbol == 0) {
            narrow(coder, decoding, first, coder->range);
            age(row);
            return 0;
        }
    }
    return code_larger(coder, decoding, bounds, row, symbol);
}

/* A state is a probability of 1 (22 bits) over a count (10 bits): the more it has seen, the less it moves. */
ALWAYS_INLINE void adapt(uint32_t *state, int bit) {
    uint32_t seen = *state & 1023;
    int32_t p = (int32_t)(*state >> 10), end = -bit & 0x3FFFFF;
    p += (int32_t)((int64_t)(end - p) * tables.rate[seen] >> 16);
    *state = (uint32_t)p << 10 | (seen + (seen < 1023));
}

ALWAYS_INLINE uint32_t inner(uint32_t one) { return one - (one >> 11) + 16; }

ALWAYS_INLINE int code_adaptive(Coder *coder, int decoding, uint32_t *state, int bit) {
    bit = code_bit(coder, decoding, bit, inner(*state >> 16));
    adapt(state, bit);
    return bit;
}

static void fill(uint32_t *states, size_t count) {
    for (size_t k = 0; k < count; k++) states[k] = (uint32_t)1 << 31;
}

/* What follows a symbol of 8: another, and after another 8 a whole number in Exp-Golomb form. */
ALWAYS_INLINE uint32_t code_tail_here(Coder *coder, int decoding, Model *model, uint16_t *bounds, Row *row, uint32_t value) {
    renew(coder, decoding);
    int symbol = code_larger(coder, decoding, bounds, row, value < LANES ? (int)value : LANES);
    if (symbol < LANES) return (uint32_t)symbol;
    int length = 0, wanted = decoding ? 0 : highest_bit(value - LANES + 1);
    for (; length < 25; length++) {
        renew(coder, decoding);
        if (!code_adaptive(coder, decoding, &model->tail[length], length < wanted)) break;
    }
    renew(coder, decoding);
    renew_raw(coder, decoding);
    uint32_t low = code_raw(coder, decoding, (value - LANES + 1) & ((1u << length) - 1), length);
    renew_raw(coder, decoding);
    return ((1u << length) | low) - 1 + LANES;
}

RARE uint32_t encode_tail(Coder *coder, Model *model, uint16_t *bounds, Row *row, uint32_t value) {
    return code_tail_here(coder, ENCODE, model, bounds, row, value);
}

RARE uint32_t decode_tail(Coder *coder, Model *model, uint16_t *bounds, Row *row) {
    return code_tail_here(coder, DECODE, model, bounds, row, 0);
}

ALWAYS_INLINE uint32_t code_tail(Coder *coder, int decoding, Model *model, uint16_t *bounds, uint32_t level, uint32_t value) {
    Row *row = row_at(model, LARGE * sizeof(Row) + level);
    Coder apart = *coder; /* the caller's own stays without an address */
    value = decoding ? decode_tail(&apart, model, bounds, row) : encode_tail(&apart, model, bounds, row, value);
    *coder = apart;
    return value;
}

/* The middle of a level, in 4096ths. */
static uint32_t middle(int level) { return 75u * (level ? (2u + (level - 1) % 2) << (level - 1) / 2 : 1u); }

static int level_of(uint32_t x) { /* half octaves of 4096ths: 0 under 1/32, LEVELS - 1 from 16 on */
    if (x < 128) return 0;
    int bit = highest_bit(x), half = 2 * bit - 13 + (int)(x >> (bit - 1) & 1);
    return half < LEVELS ? half : LEVELS - 1;
}

/* Rows begin at a geometric law whose mean is the middle of their level, as if seen BEFORE times: a tensor of a few thousand
 * weights is half over before rows that begin with nothing have learned it. */
static void begin_row(Row *row, int level) {
    uint32_t mean = middle(level), one = (uint32_t)(((uint64_t)mean << 16) / (mean + ONE)), p = UNIT * BEFORE << 8;
    for (int k = 0; k < LANES; k++) {
        p = (uint32_t)((uint64_t)p * one >> 16);
        row->seen[k] = (uint16_t)(p >> 8 ? p >> 8 : 1);
    }
    renew_row(row, BEFORE);
}

static void prepare_tables(void) {
    /* 65536 / (1 + exp(-1.66 * 2^((k - 8.5) / 2))), at least 1/2, at most 0.98 */
    static const uint16_t agreement[BINS] = {32768, 34787, 35620, 36791, 38428, 40694, 43760, 47743,
                                             52529, 57544, 61750, 64225, 64225, 64225, 64225, 64225};
    Model *start = &tables.start;
    for (int n = 0; n < 1024; n++) tables.rate[n] = 655360 / (10 * n + 16);
    for (uint32_t n = 1; n < OLD + LONGEST; n++) tables.reciprocal[n] = ((uint32_t)1 << 31) / UNIT / n;
    for (uint32_t x = 0; x < sizeof tables.level / 2; x++)
        tables.level[x] = (uint16_t)((uint32_t)level_of(x << 6) * LEVELS * sizeof(Row));
    for (int symbol = 0; symbol <= LANES; symbol++)
        for (int k = 0; k < LANES; k++) tables.larger[symbol][k] = k < symbol ? UNIT : 0;
    for (int a = 0; a < LEVELS; a++)
        for (int b = 0; b < LEVELS; b++)
            begin_row(&start->rows[NEAR + a * LEVELS + b], (a + b) / 2);
    for (int k = FIRST; k < ROWS; k++) begin_row(&start->rows[k], (k - FIRST) % LEVELS);
    for (int k = 0; k < PLACES * BINS; k++) start->sign[k] = (uint32_t)agreement[k % BINS] << 16 | 7;
    fill(start->tail, 32);
}

#endif
