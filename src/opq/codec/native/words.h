/* Words <-> planes of their bytes, the highest first. docs/format.md, "Packs of auxiliary tensors". */
#ifndef OPQ_WORDS_H
#define OPQ_WORDS_H

#include <stddef.h>
#include <stdint.h>

#include "dispatch.h"

#define LARGEST_WORD 8 /* bytes */
#define SPLIT_STEP 2048 /* words, which fit the first cache */

/* Byte `byte` of each word, counted from the highest; rotated left by one bit before if `rotated` is 1. */
#define SPLIT(type)                                                                                    \
    {                                                                                                  \
        const type *const word = (const type *)words;                                                  \
        const int bits = 8 * (int)sizeof *word, shift = bits - 8 - 8 * byte;                           \
        if (rotated)                                                                                   \
            for (size_t k = 0; k < count; k++) plane[k] = (uint8_t)((type)(word[k] << 1 | word[k] >> (bits - 1)) >> shift); \
        else                                                                                           \
            for (size_t k = 0; k < count; k++) plane[k] = (uint8_t)(word[k] >> shift);                 \
    }

ALWAYS_INLINE void split_any(const void *words, int size, int rotated, int byte, uint8_t *plane, size_t count) {
    if (size == 1) SPLIT(uint8_t)
    else if (size == 2) SPLIT(uint16_t)
    else if (size == 4) SPLIT(uint32_t)
    else SPLIT(uint64_t)
}

#define MERGE(type, value)                                                                             \
    {                                                                                                  \
        type *const word = (type *)words;                                                              \
        const int bits = 8 * (int)sizeof *word;                                                        \
        if (rotated)                                                                                   \
            for (size_t k = 0; k < count; k++) {                                                       \
                const type whole = (type)(value);                                                      \
                word[k] = (type)(whole >> 1 | whole << (bits - 1));                                    \
            }                                                                                          \
        else                                                                                           \
            for (size_t k = 0; k < count; k++) word[k] = (type)(value);                                \
    }

/* The inverse, from the planes of all bytes. */
ALWAYS_INLINE void merge_any(const uint8_t *const p[LARGEST_WORD], int size, int rotated, void *words, size_t count) {
#define PAIR(byte) ((uint32_t)p[byte][k] << 8 | p[(byte) + 1][k])
    if (size == 1) MERGE(uint8_t, p[0][k])
    else if (size == 2) MERGE(uint16_t, PAIR(0))
    else if (size == 4) MERGE(uint32_t, PAIR(0) << 16 | PAIR(2))
    else MERGE(uint64_t, (uint64_t)(PAIR(0) << 16 | PAIR(2)) << 32 | (PAIR(4) << 16 | PAIR(6)))
#undef PAIR
}

#if defined(OPQ_AVX2)
TARGET_AVX2 NOINLINE void split_plane_avx2(const void *words, int size, int rotated, int byte, uint8_t *plane, size_t count) {
    split_any(words, size, rotated, byte, plane, count);
}

TARGET_AVX2 NOINLINE void merge_words_avx2(
    const uint8_t *const planes[LARGEST_WORD], int size, int rotated, void *words, size_t count) {
    merge_any(planes, size, rotated, words, count);
}
#endif

static void split_plane(const void *words, int size, int rotated, int byte, uint8_t *plane, size_t count) {
#if defined(OPQ_AVX2)
    if (cpu_has_avx2) {
        split_plane_avx2(words, size, rotated, byte, plane, count);
        return;
    }
#endif
    split_any(words, size, rotated, byte, plane, count);
}

/* The planes of all bytes, one after the other. Words are read from memory once. */
static void split_words(const uint8_t *words, int size, int rotated, uint8_t *planes, size_t count) {
    for (size_t at = 0; at < count; at += SPLIT_STEP) {
        const size_t step = count - at < SPLIT_STEP ? count - at : SPLIT_STEP;
        for (int byte = 0; byte < size; byte++)
            split_plane(words + at * (size_t)size, size, rotated, byte, planes + (size_t)byte * count + at, step);
    }
}

static void merge_words(const uint8_t *const planes[LARGEST_WORD], int size, int rotated, void *words, size_t count) {
#if defined(OPQ_AVX2)
    if (cpu_has_avx2) {
        merge_words_avx2(planes, size, rotated, words, count);
        return;
    }
#endif
    merge_any(planes, size, rotated, words, count);
}

#endif
