/* Four 32-bit numbers at once, one for each of the rows that are walked abreast: vectors where the compiler has them, or plain
 * loops that give the same numbers. */
#ifndef OPQ_VEC4_U32_H
#define OPQ_VEC4_U32_H

#include "vec8_u16.h"

#if defined(__GNUC__)
typedef uint32_t Vec4 __attribute__((vector_size(16)));
typedef int32_t SignedVec4 __attribute__((vector_size(16)));

ALWAYS_INLINE uint32_t vec4_get(Vec4 four, int k) { return four[k]; }
ALWAYS_INLINE Vec4 vec4_make(uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return (Vec4){a, b, c, d}; }
ALWAYS_INLINE Vec4 vec4_add(Vec4 a, Vec4 b) { return a + b; }
ALWAYS_INLINE Vec4 vec4_scale(Vec4 four, uint32_t factor) { return four * factor; }
ALWAYS_INLINE Vec4 vec4_square(Vec4 four) { return four * four; }
ALWAYS_INLINE Vec4 vec4_shift_right(Vec4 four, int bits) { return four >> bits; }
/* `four`, moved towards `to` by a part of 1 / 2^bits */
ALWAYS_INLINE Vec4 vec4_move_towards(Vec4 four, Vec4 to, int bits) { return four + (Vec4)((SignedVec4)(to - four) >> bits); }
ALWAYS_INLINE Vec4 vec4_min(Vec4 four, uint32_t most) {
    Vec4 larger = (Vec4)(four > most);
    return (four & ~larger) | (most & larger);
}
/* Bit k where number k is not 0. */
ALWAYS_INLINE uint32_t vec4_nonzero_mask(Vec4 four) {
#if defined(__SSE2__) && !defined(OPQ_PORTABLE)
    return (uint32_t)_mm_movemask_ps((__m128)(four == 0)) ^ 15;
#else
    uint32_t bits = 0;
    for (int k = 0; k < 4; k++) bits |= (uint32_t)(four[k] != 0) << k;
    return bits;
#endif
}
#else
typedef struct {
    uint32_t at[4];
} Vec4;

ALWAYS_INLINE uint32_t vec4_get(Vec4 four, int k) { return four.at[k]; }
ALWAYS_INLINE Vec4 vec4_make(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    Vec4 four = {{a, b, c, d}};
    return four;
}
ALWAYS_INLINE Vec4 vec4_add(Vec4 a, Vec4 b) {
    for (int k = 0; k < 4; k++) a.at[k] += b.at[k];
    return a;
}
ALWAYS_INLINE Vec4 vec4_scale(Vec4 four, uint32_t factor) {
    for (int k = 0; k < 4; k++) four.at[k] *= factor;
    return four;
}
ALWAYS_INLINE Vec4 vec4_square(Vec4 four) {
    for (int k = 0; k < 4; k++) four.at[k] *= four.at[k];
    return four;
}
ALWAYS_INLINE Vec4 vec4_shift_right(Vec4 four, int bits) {
    for (int k = 0; k < 4; k++) four.at[k] >>= bits;
    return four;
}
ALWAYS_INLINE Vec4 vec4_move_towards(Vec4 four, Vec4 to, int bits) {
    for (int k = 0; k < 4; k++) four.at[k] += (uint32_t)((int32_t)(to.at[k] - four.at[k]) >> bits);
    return four;
}
ALWAYS_INLINE Vec4 vec4_min(Vec4 four, uint32_t most) {
    for (int k = 0; k < 4; k++) four.at[k] = four.at[k] < most ? four.at[k] : most;
    return four;
}
ALWAYS_INLINE uint32_t vec4_nonzero_mask(Vec4 four) {
    uint32_t bits = 0;
    for (int k = 0; k < 4; k++) bits |= (uint32_t)(four.at[k] != 0) << k;
    return bits;
}
#endif

ALWAYS_INLINE Vec4 vec4_load(const int32_t *from) {
    Vec4 four;
    memcpy(&four, from, sizeof four);
    return four;
}
ALWAYS_INLINE void vec4_store(int32_t *to, Vec4 four) { memcpy(to, &four, sizeof four); }
ALWAYS_INLINE void vec4_add_to(int32_t *to, Vec4 four) { vec4_store(to, vec4_add(vec4_load(to), four)); }

#endif
