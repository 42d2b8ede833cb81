/* Bytes -> the stream of a block of a fast plane. docs/format.md, "Fast planes".
 *
 * AVX2 and plain C give the same bytes. Both encode backwards: the words of a column are written from the last lane to the first.
 */
#ifndef OPQ_FAST_PLANE_ENCODER_H
#define OPQ_FAST_PLANE_ENCODER_H

#include "fast_plane.h"

/* What encoding a symbol takes: floor(2^(32 + shift) / share), with shift = floor(log2 share); and share, begin and shift in one
 * number. A quotient by this multiplication is at most one too small, as x < 2^20 share. */
typedef struct {
    uint32_t reciprocals[FAST_PLANE_TABLES * FAST_SYMBOLS], packed[FAST_PLANE_TABLES * FAST_SYMBOLS];
} FastPlaneCodes;

#define FAST_SHARE_BITS 13

static void fast_fill_plane_codes(FastPlaneCodes *codes, const uint16_t *shares, int tables) {
    for (int table = 0; table < tables; table++) {
        uint32_t begin = 0;
        for (int k = table * FAST_SYMBOLS; k < (table + 1) * FAST_SYMBOLS; k++) {
            const uint32_t share = shares[k], shift = share ? 31u - (uint32_t)__builtin_clz(share) : 0;
            const uint64_t reciprocal = share ? ((uint64_t)1 << (32 + shift)) / share : 0;
            codes->reciprocals[k] = reciprocal > UINT32_MAX ? UINT32_MAX : (uint32_t)reciprocal;
            codes->packed[k] = share | begin % FAST_TABLE << FAST_SHARE_BITS | shift << (FAST_SHARE_BITS + FAST_TABLE_BITS);
            begin += share;
        }
    }
}

/* Encodes `lanes` bytes of a column; whether all symbols have a share. */
ALWAYS_INLINE int fast_encode_column(
    const FastPlaneCodes *codes, uint32_t *states, const uint8_t *bytes, int table, int lanes, uint8_t **end) {
    int valid = 1;
    for (int lane = lanes - 1; lane >= 0; lane--) {
        const int k = table * FAST_SYMBOLS + bytes[lane];
        const uint32_t packed = codes->packed[k], share = packed & ((1u << FAST_SHARE_BITS) - 1);
        uint32_t x = states[lane];
        if (x >> 20 >= share) {
            *end -= 2;
            (*end)[0] = (uint8_t)x, (*end)[1] = (uint8_t)(x >> 8);
            x >>= 16;
        }
        const uint32_t shift = packed >> (FAST_SHARE_BITS + FAST_TABLE_BITS), begin = packed >> FAST_SHARE_BITS & (FAST_TABLE - 1);
        uint32_t quotient = (uint32_t)((uint64_t)x * codes->reciprocals[k] >> 32) >> shift, rest = x - quotient * share;
        const uint32_t more = rest >= share;
        quotient += more, rest -= share & (0u - more);
        states[lane] = (quotient << FAST_TABLE_BITS) + rest + begin;
        valid &= share > 0;
    }
    return valid;
}

#if defined(OPQ_AVX2)

/* For each set of lanes that write a word: where the word of each place comes from; the last places have them in order. */
static uint64_t fast_written_order[256];

static void fast_init_written_order(void) {
    for (int mask = 0; mask < 256; mask++) {
        uint64_t order = 0;
        for (int lane = 7, place = 7; lane >= 0; lane--)
            if (mask >> lane & 1) order |= (uint64_t)lane << 8 * place--;
        fast_written_order[mask] = order;
    }
}

/* As fast_encode_column, for `columns` of 32 lanes, the last one first. Sixteen bytes before the stream are written too. */
TARGET_AVX2 NOINLINE int fast_encode_columns_avx2(
    const FastPlaneCodes *codes, uint32_t *states, const uint8_t *bytes, int table, int64_t columns, uint8_t **end) {
    const __m256i shares = _mm256_set1_epi32((1 << FAST_SHARE_BITS) - 1), slots = _mm256_set1_epi32(FAST_TABLE - 1);
    const __m256i start = _mm256_set1_epi32(table * FAST_SYMBOLS), low = _mm256_set1_epi32(0xFFFF);
    __m256i x[4], none = _mm256_setzero_si256();
    uint8_t *to = *end;
    for (int k = 0; k < 4; k++) x[k] = _mm256_loadu_si256((const __m256i *)(states + 8 * k));
    for (int64_t column = columns - 1; column >= 0; column--) {
        for (int k = 3; k >= 0; k--) {
            const __m256i symbols = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(bytes + column * FAST_LANES + 8 * k)));
            const __m256i at = _mm256_add_epi32(symbols, start);
            const __m256i packed = fast_gather(codes->packed, at), reciprocal = fast_gather(codes->reciprocals, at);
            const __m256i share = _mm256_and_si256(packed, shares);
            const __m256i stays = _mm256_cmpgt_epi32(share, _mm256_srli_epi32(x[k], 20));
            const unsigned mask = 255u ^ (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(stays));
            const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)&fast_written_order[mask]));
            const __m256i words = _mm256_permutevar8x32_epi32(_mm256_and_si256(x[k], low), order);
            _mm_storeu_si128((__m128i *)(to - 16), _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
            to -= 2 * __builtin_popcount(mask);
            x[k] = _mm256_blendv_epi8(_mm256_srli_epi32(x[k], 16), x[k], stays);
            const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x[k], reciprocal), 32);
            const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x[k], 32), _mm256_srli_epi64(reciprocal, 32));
            const __m256i high = _mm256_blend_epi32(even, odd, 0xAA);
            const __m256i quotient = _mm256_srlv_epi32(high, _mm256_srli_epi32(packed, FAST_SHARE_BITS + FAST_TABLE_BITS));
            const __m256i rest = _mm256_sub_epi32(x[k], _mm256_mullo_epi32(quotient, share));
            /* Of x = 4096 quotient + rest + begin, one more in the quotient is 4096 - share more. */
            const __m256i less = _mm256_cmpgt_epi32(share, rest);
            const __m256i more = _mm256_andnot_si256(less, _mm256_sub_epi32(_mm256_set1_epi32(FAST_TABLE), share));
            const __m256i begin = _mm256_and_si256(_mm256_srli_epi32(packed, FAST_SHARE_BITS), slots);
            x[k] = _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(quotient, FAST_TABLE_BITS), rest), _mm256_add_epi32(begin, more));
            none = _mm256_or_si256(none, _mm256_cmpeq_epi32(share, _mm256_setzero_si256()));
        }
    }
    for (int k = 0; k < 4; k++) _mm256_storeu_si256((__m256i *)(states + 8 * k), x[k]);
    *end = to;
    return _mm256_testz_si256(none, none);
}

#endif

static int fast_encode_columns(
    const FastPlaneCodes *codes, uint32_t *states, const uint8_t *bytes, int table, int64_t columns, uint8_t **end) {
#if defined(OPQ_AVX2)
    if (cpu_has_avx2) return fast_encode_columns_avx2(codes, states, bytes, table, columns, end);
#endif
    int valid = 1;
    for (int64_t column = columns - 1; column >= 0; column--)
        valid &= fast_encode_column(codes, states, bytes + column * FAST_LANES, table, FAST_LANES, end);
    return valid;
}

/* Encodes a block whose groups have tables, backwards from `end`, before which there must be fast_longest_block bytes. Returns where
 * the stream begins; NULL if a byte has no share. */
static uint8_t *fast_encode_block(
    const FastPlaneCodes *codes, const uint8_t *bytes, int64_t count, const uint8_t *tables, uint8_t *end) {
    uint32_t states[FAST_LANES];
    const int lanes = count < FAST_LANES ? (int)count : FAST_LANES;
    int valid = 1;
    for (int lane = 0; lane < FAST_LANES; lane++) states[lane] = FAST_LOWEST_STATE;
    for (int64_t group = (count - 1) / FAST_GROUP; group >= 0; group--) {
        const int64_t start = group * FAST_GROUP, size = count - start < FAST_GROUP ? count - start : FAST_GROUP;
        const int64_t columns = size / FAST_LANES;
        const uint8_t *const rest = bytes + start + columns * FAST_LANES;
        valid &= fast_encode_column(codes, states, rest, tables[group], (int)(size % FAST_LANES), &end);
        valid &= fast_encode_columns(codes, states, bytes + start, tables[group], columns, &end);
    }
    for (int lane = lanes - 1; lane >= 0; lane--) {
        end -= 4;
        for (int byte = 0; byte < 4; byte++) end[byte] = (uint8_t)(states[lane] >> 8 * byte);
    }
    return valid ? end : NULL;
}

/* Every symbol is at most one word. */
static size_t fast_longest_block(int64_t count) { return 16 + 4 * FAST_LANES + 2 * (size_t)count; }

/* Adds the sum of each group. */
static void fast_sum_groups(const uint8_t *bytes, int64_t count, uint32_t *sums) {
    for (int64_t start = 0; start < count; start += FAST_GROUP) {
        const int64_t size = count - start < FAST_GROUP ? count - start : FAST_GROUP;
        uint32_t sum = 0;
        for (int64_t k = 0; k < size; k++) sum += bytes[start + k];
        sums[start / FAST_GROUP] += sum;
    }
}

/* Adds how often each byte occurs in the groups of each table. Equal bytes often follow each other, so four counts take turns. */
static void fast_count_groups(const uint8_t *bytes, int64_t count, const uint8_t *tables, uint32_t *counts) {
    uint32_t found[FAST_PLANE_TABLES][4][FAST_SYMBOLS];
    memset(found, 0, sizeof found);
    for (int64_t start = 0; start < count; start += FAST_GROUP) {
        const int64_t size = count - start < FAST_GROUP ? count - start : FAST_GROUP;
        uint32_t(*const turns)[FAST_SYMBOLS] = found[tables[start / FAST_GROUP]];
        const uint8_t *const group = bytes + start;
        int64_t k = 0;
        for (; k + 4 <= size; k += 4) turns[0][group[k]]++, turns[1][group[k + 1]]++, turns[2][group[k + 2]]++, turns[3][group[k + 3]]++;
        for (; k < size; k++) turns[0][group[k]]++;
    }
    for (int table = 0; table < FAST_PLANE_TABLES; table++)
        for (int symbol = 0; symbol < FAST_SYMBOLS; symbol++, counts++)
            for (int turn = 0; turn < 4; turn++) *counts += found[table][turn][symbol];
}

#endif
