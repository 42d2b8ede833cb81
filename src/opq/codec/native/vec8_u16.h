/* Eight 16-bit numbers: a vector of SSE2, which every x86-64 has, or an array and plain loops that give the same numbers. */
#ifndef OPQ_VEC8_U16_H
#define OPQ_VEC8_U16_H

#include <string.h>

#include "compiler.h"

#if defined(OPQ_SSE2)
typedef __m128i Vec8;

ALWAYS_INLINE Vec8 vec8_load(const uint16_t *from) { return _mm_loadu_si128((const __m128i *)from); }
ALWAYS_INLINE void vec8_store(uint16_t *to, Vec8 v) { _mm_storeu_si128((__m128i *)to, v); }
ALWAYS_INLINE Vec8 vec8_add(Vec8 a, Vec8 b) { return _mm_add_epi16(a, b); }
/* v[k] * factor >> 16, for a factor below 2^16 */
ALWAYS_INLINE Vec8 vec8_scale(Vec8 v, uint32_t factor) { return _mm_mulhi_epu16(v, _mm_set1_epi16((short)factor)); }
/* The number of elements above `limit`, which is below 2^16. The elements must not increase. */
ALWAYS_INLINE int vec8_count_above(Vec8 v, uint32_t limit) {
    Vec8 excess = _mm_subs_epu16(v, _mm_set1_epi16((short)limit));
    uint32_t none = (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi16(excess, _mm_setzero_si128())) | 1u << 16;
    return __builtin_ctz(none) >> 1;
}
#if defined(OPQ_AVX2)
/* The smallest element, and above its 16 bits the index of the first such element. Not ALWAYS_INLINE, which compilers refuse
 * in callers without AVX2; the decoders in dispatch.h are `flatten`, which inlines it there. */
TARGET_AVX2 static inline uint32_t vec8_min_and_index(Vec8 v) { return (uint32_t)_mm_cvtsi128_si32(_mm_minpos_epu16(v)); }
/* The last element of `first`, then all but the last of v. */
TARGET_AVX2 static inline Vec8 vec8_shift_in(Vec8 first, Vec8 v) { return _mm_alignr_epi8(v, first, 14); }
#endif
#else
typedef struct {
    uint16_t at[8];
} Vec8;

ALWAYS_INLINE Vec8 vec8_load(const uint16_t *from) {
    Vec8 v;
    memcpy(v.at, from, sizeof v.at);
    return v;
}
ALWAYS_INLINE void vec8_store(uint16_t *to, Vec8 v) { memcpy(to, v.at, sizeof v.at); }
ALWAYS_INLINE Vec8 vec8_add(Vec8 a, Vec8 b) {
    for (int k = 0; k < 8; k++) a.at[k] = (uint16_t)(a.at[k] + b.at[k]);
    return a;
}
ALWAYS_INLINE Vec8 vec8_scale(Vec8 v, uint32_t factor) {
    for (int k = 0; k < 8; k++) v.at[k] = (uint16_t)(v.at[k] * factor >> 16);
    return v;
}
ALWAYS_INLINE int vec8_count_above(Vec8 v, uint32_t limit) {
    int count = 0;
    for (int k = 0; k < 8; k++) count += v.at[k] > limit;
    return count;
}
#endif

#endif
