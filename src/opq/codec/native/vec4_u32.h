/* Four 32-bit numbers, one for each row of a band. Vector types of GCC and Clang, which compile for every processor. */
#ifndef OPQ_VEC4_U32_H
#define OPQ_VEC4_U32_H

#include <string.h>

#include "compiler.h"

typedef uint32_t Vec4 __attribute__((vector_size(16)));
typedef int32_t SignedVec4 __attribute__((vector_size(16)));

ALWAYS_INLINE uint32_t vec4_get(Vec4 v, int k) { return v[k]; }
ALWAYS_INLINE Vec4 vec4_make(uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return (Vec4){a, b, c, d}; }
ALWAYS_INLINE Vec4 vec4_add(Vec4 a, Vec4 b) { return a + b; }
ALWAYS_INLINE Vec4 vec4_scale(Vec4 v, uint32_t factor) { return v * factor; }
ALWAYS_INLINE Vec4 vec4_square(Vec4 v) { return v * v; }
ALWAYS_INLINE Vec4 vec4_shift_right(Vec4 v, int bits) { return v >> bits; }
/* A step of an exponential moving average: v + (sample - v) / 2^bits, rounded down */
ALWAYS_INLINE Vec4 vec4_move_towards(Vec4 v, Vec4 sample, int bits) { return v + (Vec4)((SignedVec4)(sample - v) >> bits); }
ALWAYS_INLINE Vec4 vec4_min(Vec4 v, uint32_t limit) {
    Vec4 above = (Vec4)(v > limit);
    return (v & ~above) | (limit & above);
}
/* Bit k is set if v[k] is not 0. */
ALWAYS_INLINE uint32_t vec4_nonzero_mask(Vec4 v) {
#if defined(OPQ_SSE2)
    return (uint32_t)_mm_movemask_ps((__m128)(v == 0)) ^ 15;
#else
    uint32_t bits = 0;
    for (int k = 0; k < 4; k++) bits |= (uint32_t)(v[k] != 0) << k;
    return bits;
#endif
}

ALWAYS_INLINE Vec4 vec4_load(const int32_t *from) {
    Vec4 v;
    memcpy(&v, from, sizeof v);
    return v;
}
ALWAYS_INLINE void vec4_store(int32_t *to, Vec4 v) { memcpy(to, &v, sizeof v); }
ALWAYS_INLINE void vec4_add_to(int32_t *to, Vec4 v) { vec4_store(to, vec4_add(vec4_load(to), v)); }

#endif
