/* The inner loop of fast_tile.h for processors with AVX2: eight lanes in a vector. It gives the same symbols. */
#ifndef OPQ_FAST_AVX2_H
#define OPQ_FAST_AVX2_H

#include "fast_tile.h"

#if defined(OPQ_AVX2)

/* For each set of lanes that take a word: which of the next eight words each lane takes, one byte for each lane. */
static uint64_t fast_word_order[256];

static void fast_init_word_order(void) {
    for (int mask = 0; mask < 256; mask++) {
        uint64_t order = 0;
        for (int lane = 0, next = 0; lane < 8; lane++)
            if (mask >> lane & 1) order |= (uint64_t)next++ << 8 * lane;
        fast_word_order[mask] = order;
    }
}

/* Eight 32-bit numbers, loaded one by one. The instruction for this was not faster where it was measured (docs/log.md). */
TARGET_AVX2 ALWAYS_INLINE __m256i fast_gather(const uint32_t *base, __m256i index) {
    const __m128i low = _mm256_castsi256_si128(index), high = _mm256_extracti128_si256(index, 1);
    const uint64_t at[4] = {(uint64_t)_mm_cvtsi128_si64(low), (uint64_t)_mm_extract_epi64(low, 1),
                            (uint64_t)_mm_cvtsi128_si64(high), (uint64_t)_mm_extract_epi64(high, 1)};
    __m128i pairs[4];
    for (int k = 0; k < 4; k++)
        pairs[k] = _mm_unpacklo_epi32(_mm_cvtsi32_si128((int)base[(uint32_t)at[k]]), _mm_cvtsi32_si128((int)base[at[k] >> 32]));
    return _mm256_set_m128i(_mm_unpacklo_epi64(pairs[2], pairs[3]), _mm_unpacklo_epi64(pairs[0], pairs[1]));
}

/* Stores the symbols of a column: 16 bits each, or 8 if `narrow`. */
TARGET_AVX2 ALWAYS_INLINE void fast_store_column(const __m256i symbols[4], uint16_t *restrict tile, const int narrow) {
    const __m256i low = _mm256_packus_epi32(symbols[0], symbols[1]), high = _mm256_packus_epi32(symbols[2], symbols[3]);
    if (narrow) {
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256((__m256i *)tile, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order));
    } else {
        _mm256_storeu_si256((__m256i *)tile, _mm256_permute4x64_epi64(low, 0xD8));
        _mm256_storeu_si256((__m256i *)(tile + 16), _mm256_permute4x64_epi64(high, 0xD8));
    }
}

/* As fast_decode_tile, for all lanes; `narrow` symbols are bytes. */
TARGET_AVX2 ALWAYS_INLINE int fast_decode_tile_avx2(FastDecoder *d, const uint8_t *row_classes, uint32_t *row_states, int64_t from,
                                                    int64_t to, uint16_t *restrict tile, const int contexts, const int trellis,
                                                    const int narrow) {
    const FastMatrix *m = d->matrix;
    const uint32_t *const tables = d->tables;
    const __m256i slots = _mm256_set1_epi32(FAST_TABLE - 1), one = _mm256_set1_epi32(1), zero = _mm256_setzero_si256();
    const __m256i last_context = _mm256_set1_epi32(m->contexts - 1), lowest = _mm256_set1_epi32(m->lowest);
    const __m256i second = _mm256_set1_epi32(m->contexts << FAST_TABLE_BITS);
    __m256i x[4], states[4], classes[4];
    for (int k = 0; k < 4; k++) {
        x[k] = _mm256_loadu_si256((const __m256i *)(d->x + 8 * k));
        states[k] = _mm256_loadu_si256((const __m256i *)(row_states + 8 * k));
        classes[k] = _mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(row_classes + 8 * k))),
                                      _mm256_set1_epi32(m->base));
    }
    for (int64_t column = from; column < to; column++, tile += narrow ? FAST_LANES / 2 : FAST_LANES) {
        if (UNLIKELY(!fast_refill(d))) return 0;
        const __m256i column_class = contexts ? _mm256_set1_epi32(m->column_classes[column]) : zero;
        const uint8_t *words = d->words;
        __m256i symbols[4];
        UNROLLED
        for (int k = 0; k < 4; k++) {
            __m256i at = _mm256_and_si256(x[k], slots), quantizers = zero;
            if (contexts) {
                const __m256i sum = _mm256_max_epi32(_mm256_add_epi32(classes[k], column_class), zero);
                at = _mm256_or_si256(at, _mm256_slli_epi32(_mm256_min_epi32(sum, last_context), FAST_TABLE_BITS));
            }
            if (trellis) {
                quantizers = _mm256_and_si256(states[k], one);
                at = _mm256_add_epi32(at, _mm256_and_si256(second, _mm256_sub_epi32(zero, quantizers)));
            }
            const __m256i entry = fast_gather(tables, at), symbol = _mm256_srli_epi32(entry, 24);
            const __m256i share = _mm256_add_epi32(_mm256_and_si256(entry, slots), one);
            const __m256i place = _mm256_and_si256(_mm256_srli_epi32(entry, FAST_TABLE_BITS), slots);
            const __m256i y = _mm256_add_epi32(_mm256_mullo_epi32(share, _mm256_srli_epi32(x[k], FAST_TABLE_BITS)), place);
            const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(y, 16), zero);
            const unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(low));
            const __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)words));
            const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)&fast_word_order[mask]));
            const __m256i refilled = _mm256_or_si256(_mm256_slli_epi32(y, 16), _mm256_permutevar8x32_epi32(next, order));
            x[k] = _mm256_blendv_epi8(y, refilled, low);
            words += 2 * __builtin_popcount(mask);
            if (trellis) {
                const __m256i number = _mm256_add_epi32(symbol, lowest), s = states[k];
                const __m256i bit = _mm256_xor_si256(number, _mm256_xor_si256(_mm256_srli_epi32(s, 1), _mm256_srli_epi32(s, 2)));
                states[k] = _mm256_or_si256(_mm256_and_si256(_mm256_slli_epi32(s, 1), _mm256_set1_epi32(6)),
                                            _mm256_and_si256(bit, one));
                symbols[k] = _mm256_or_si256(symbol, _mm256_slli_epi32(quantizers, 8));
            } else {
                symbols[k] = symbol;
            }
        }
        d->words = words;
        fast_store_column(symbols, tile, narrow);
    }
    for (int k = 0; k < 4; k++) {
        _mm256_storeu_si256((__m256i *)(d->x + 8 * k), x[k]);
        _mm256_storeu_si256((__m256i *)(row_states + 8 * k), states[k]);
    }
    return 1;
}

TARGET_AVX2 NOINLINE int fast_decode_32_avx2(
    FastDecoder *d, const uint8_t *row_classes, uint32_t *states, int64_t from, int64_t to, uint16_t *tile) {
    if (d->matrix->trellis) return fast_decode_tile_avx2(d, row_classes, states, from, to, tile, 1, 1, 0);
    if (d->matrix->contexts > 1) return fast_decode_tile_avx2(d, row_classes, states, from, to, tile, 1, 0, 0);
    return fast_decode_tile_avx2(d, row_classes, states, from, to, tile, 0, 0, 0);
}

/* Columns of one context, to bytes. */
TARGET_AVX2 NOINLINE int fast_decode_bytes_avx2(FastDecoder *d, int64_t columns, uint8_t *bytes) {
    static const uint8_t no_classes[FAST_LANES];
    uint32_t no_states[FAST_LANES] = {0};
    return fast_decode_tile_avx2(d, no_classes, no_states, 0, columns, (uint16_t *)bytes, 0, 0, 1);
}

/* Eight rows of eight 32-bit numbers, from eight columns. */
TARGET_AVX2 ALWAYS_INLINE void fast_transpose(__m256i v[8]) {
    __m256i a[8], b[8];
    for (int k = 0; k < 8; k += 2) {
        a[k] = _mm256_unpacklo_epi32(v[k], v[k + 1]);
        a[k + 1] = _mm256_unpackhi_epi32(v[k], v[k + 1]);
    }
    for (int k = 0; k < 8; k += 4)
        for (int half = 0; half < 2; half++) {
            b[k + 2 * half] = _mm256_unpacklo_epi64(a[k + half], a[k + 2 + half]);
            b[k + 2 * half + 1] = _mm256_unpackhi_epi64(a[k + half], a[k + 2 + half]);
        }
    for (int k = 0; k < 4; k++) {
        v[k] = _mm256_permute2x128_si256(b[k], b[k + 4], 0x20);
        v[k + 4] = _mm256_permute2x128_si256(b[k], b[k + 4], 0x31);
    }
}

/* Writes a tile of 32 rows and 32 columns as values of four bytes, rows `stride` values apart. */
TARGET_AVX2 NOINLINE void fast_write_32_avx2(
    const uint16_t *tile, const uint32_t *values, const uint8_t *sets, int set_size, uint32_t *output, int64_t stride) {
    for (int lane = 0; lane < FAST_LANES; lane += 8) {
        const __m256i set = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(sets + lane)));
        const __m256i start = _mm256_mullo_epi32(set, _mm256_set1_epi32(set_size));
        for (int column = 0; column < FAST_TILE; column += 8) {
            __m256i v[8];
            for (int k = 0; k < 8; k++) {
                const uint16_t *symbols = tile + (column + k) * FAST_LANES + lane;
                const __m256i at = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)symbols));
                v[k] = fast_gather(values, _mm256_add_epi32(start, at));
            }
            fast_transpose(v);
            for (int k = 0; k < 8; k++) _mm256_storeu_si256((__m256i *)(output + (lane + k) * stride + column), v[k]);
        }
    }
}

#endif
#endif
