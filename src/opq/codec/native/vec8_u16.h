/* Eight 16-bit numbers at once: SSE2, which every x86-64 has, or plain loops that give the same numbers. */
#ifndef OPQ_VEC8_U16_H
#define OPQ_VEC8_U16_H

#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__)
#define UNROLLED _Pragma("GCC unroll 4")
#else
#define UNROLLED
#endif

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define COLD static __attribute__((noinline))
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#elif defined(_MSC_VER)
#define ALWAYS_INLINE static __forceinline
#define COLD static __declspec(noinline)
#define UNLIKELY(condition) (condition)
#else
#define ALWAYS_INLINE static inline
#define COLD static
#define UNLIKELY(condition) (condition)
#endif

#if (defined(__SSE2__) || defined(_M_X64)) && !defined(OPQ_PORTABLE)
#include <emmintrin.h>
typedef __m128i Vec8;

ALWAYS_INLINE Vec8 vec8_load(const uint16_t *from) { return _mm_loadu_si128((const __m128i *)from); }
ALWAYS_INLINE void vec8_store(uint16_t *to, Vec8 lanes) { _mm_storeu_si128((__m128i *)to, lanes); }
ALWAYS_INLINE Vec8 vec8_add(Vec8 a, Vec8 b) { return _mm_add_epi16(a, b); }
/* lane * factor / 65536 */
ALWAYS_INLINE Vec8 vec8_scale(Vec8 lanes, uint32_t factor) { return _mm_mulhi_epu16(lanes, _mm_set1_epi16((short)factor)); }
/* How many lanes are larger than `x`, where they do not increase; `x` as the leading 16 bits of a word. */
ALWAYS_INLINE int vec8_count_above(Vec8 lanes, uint64_t word) {
    Vec8 rest = _mm_subs_epu16(lanes, _mm_set1_epi16((short)(word >> 48)));
    uint32_t none = (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi16(rest, _mm_setzero_si128())) | 1u << 16;
#if defined(__GNUC__)
    return __builtin_ctz(none) >> 1;
#else
    int count = 0;
    while (!(none >> (2 * count) & 1)) count++;
    return count;
#endif
}

#if defined(__GNUC__) && defined(__x86_64__)
#define OPQ_AVX2
/* For processors with AVX2 alone, wherever it is compiled: the least lane, and above its 16 bits the number of the first. */
ALWAYS_INLINE uint32_t vec8_min_position(Vec8 lanes) {
    __asm__("vphminposuw %0, %0" : "+x"(lanes));
    return (uint32_t)_mm_cvtsi128_si32(lanes);
}

/* Of those lanes, all but the last, behind the last of `first`; for the same processors. */
ALWAYS_INLINE Vec8 vec8_shift_in(Vec8 first, Vec8 lanes) {
    __asm__("vpalignr $14, %1, %0, %0" : "+x"(lanes) : "x"(first));
    return lanes;
}
#endif
#else
typedef struct {
    uint16_t at[8];
} Vec8;

ALWAYS_INLINE Vec8 vec8_load(const uint16_t *from) {
    Vec8 lanes;
    memcpy(lanes.at, from, sizeof lanes.at);
    return lanes;
}
ALWAYS_INLINE void vec8_store(uint16_t *to, Vec8 lanes) { memcpy(to, lanes.at, sizeof lanes.at); }
ALWAYS_INLINE Vec8 vec8_add(Vec8 a, Vec8 b) {
    for (int k = 0; k < 8; k++) a.at[k] = (uint16_t)(a.at[k] + b.at[k]);
    return a;
}
ALWAYS_INLINE Vec8 vec8_scale(Vec8 lanes, uint32_t factor) {
    for (int k = 0; k < 8; k++) lanes.at[k] = (uint16_t)(lanes.at[k] * factor >> 16);
    return lanes;
}
ALWAYS_INLINE int vec8_count_above(Vec8 lanes, uint64_t word) {
    int count = 0;
    for (int k = 0; k < 8; k++) count += lanes.at[k] > word >> 48;
    return count;
}
#endif

#endif
