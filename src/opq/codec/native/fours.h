/* Four 32-bit numbers at once, one for each of the rows that are walked abreast: vectors where the compiler has them, or plain
 * loops that give the same numbers. */
#ifndef OPQ_FOURS_H
#define OPQ_FOURS_H

#include "lanes.h"

#if defined(__GNUC__)
typedef uint32_t Four __attribute__((vector_size(16)));
typedef int32_t SignedFour __attribute__((vector_size(16)));

ALWAYS_INLINE uint32_t one_of(Four four, int k) { return four[k]; }
ALWAYS_INLINE Four four_of(uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return (Four){a, b, c, d}; }
ALWAYS_INLINE Four sum_fours(Four a, Four b) { return a + b; }
ALWAYS_INLINE Four scale_four(Four four, uint32_t factor) { return four * factor; }
ALWAYS_INLINE Four square_four(Four four) { return four * four; }
ALWAYS_INLINE Four shift_four(Four four, int bits) { return four >> bits; }
/* `four`, moved towards `to` by a part of 1 / 2^bits */
ALWAYS_INLINE Four approach_four(Four four, Four to, int bits) { return four + (Four)((SignedFour)(to - four) >> bits); }
ALWAYS_INLINE Four cap_four(Four four, uint32_t most) {
    Four larger = (Four)(four > most);
    return (four & ~larger) | (most & larger);
}
/* Bit k where number k is not 0. */
ALWAYS_INLINE uint32_t which_are_some(Four four) {
#if defined(__SSE2__) && !defined(OPQ_PLAIN_LANES)
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
} Four;

ALWAYS_INLINE uint32_t one_of(Four four, int k) { return four.at[k]; }
ALWAYS_INLINE Four four_of(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    Four four = {{a, b, c, d}};
    return four;
}
ALWAYS_INLINE Four sum_fours(Four a, Four b) {
    for (int k = 0; k < 4; k++) a.at[k] += b.at[k];
    return a;
}
ALWAYS_INLINE Four scale_four(Four four, uint32_t factor) {
    for (int k = 0; k < 4; k++) four.at[k] *= factor;
    return four;
}
ALWAYS_INLINE Four square_four(Four four) {
    for (int k = 0; k < 4; k++) four.at[k] *= four.at[k];
    return four;
}
ALWAYS_INLINE Four shift_four(Four four, int bits) {
    for (int k = 0; k < 4; k++) four.at[k] >>= bits;
    return four;
}
ALWAYS_INLINE Four approach_four(Four four, Four to, int bits) {
    for (int k = 0; k < 4; k++) four.at[k] += (uint32_t)((int32_t)(to.at[k] - four.at[k]) >> bits);
    return four;
}
ALWAYS_INLINE Four cap_four(Four four, uint32_t most) {
    for (int k = 0; k < 4; k++) four.at[k] = four.at[k] < most ? four.at[k] : most;
    return four;
}
ALWAYS_INLINE uint32_t which_are_some(Four four) {
    uint32_t bits = 0;
    for (int k = 0; k < 4; k++) bits |= (uint32_t)(four.at[k] != 0) << k;
    return bits;
}
#endif

ALWAYS_INLINE Four load_four(const int32_t *from) {
    Four four;
    memcpy(&four, from, sizeof four);
    return four;
}
ALWAYS_INLINE void store_four(int32_t *to, Four four) { memcpy(to, &four, sizeof four); }
ALWAYS_INLINE void add_four(int32_t *to, Four four) { store_four(to, sum_fours(load_four(to), four)); }

#endif
