/* CRC-32 as in zlib: of sections and headers.
 *
 * With PCLMULQDQ, products of polynomials without carries, 64 or 128 bytes are folded at a time: V. Gopal et al., "Fast CRC Computation for
 * Generic Polynomials Using PCLMULQDQ Instruction" (Intel, 2009). Elsewhere tables of four bytes.
 */
#ifndef OPQ_CRC32_H
#define OPQ_CRC32_H

#include <stddef.h>

#include "compiler.h"

#if defined(OPQ_AVX2)
static int cpu_has_pclmul, cpu_has_vpclmul;
#endif

static uint32_t crc_table[4][256];

static void init_crc(void) {
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int bit = 0; bit < 8; bit++) c = c >> 1 ^ (0xEDB88320u & (0u - (c & 1)));
        crc_table[0][n] = c;
    }
    for (int k = 1; k < 4; k++)
        for (int n = 0; n < 256; n++) crc_table[k][n] = crc_table[k - 1][n] >> 8 ^ crc_table[0][crc_table[k - 1][n] & 255];
#if defined(OPQ_AVX2)
    cpu_has_pclmul = __builtin_cpu_supports("pclmul") != 0;
    cpu_has_vpclmul = cpu_has_pclmul && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("vpclmulqdq");
#endif
}

/* The remainder of `size` bytes after the remainder `crc`. */
static uint32_t crc_bytes(uint32_t crc, const uint8_t *data, size_t size) {
    for (; size >= 4; data += 4, size -= 4) {
        crc ^= (uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
        crc = crc_table[3][crc & 255] ^ crc_table[2][crc >> 8 & 255] ^ crc_table[1][crc >> 16 & 255] ^ crc_table[0][crc >> 24];
    }
    for (; size; data++, size--) crc = crc >> 8 ^ crc_table[0][(crc ^ *data) & 255];
    return crc;
}

#if defined(OPQ_AVX2)
#define TARGET_PCLMUL __attribute__((target("pclmul")))
#define TARGET_VPCLMUL __attribute__((target("pclmul,vpclmulqdq,avx2")))

/* To fold by n bits: x^(n + 32) and x^(n - 32) modulo the polynomial, bits reversed. */
#define CRC_FACTORS(above, below) _mm_set_epi64x(below, above)

/* 128 bits moved forward by the distance that `factors` are for, plus the bits that are there. */
TARGET_PCLMUL ALWAYS_INLINE __m128i crc_fold(__m128i bits, __m128i factors, __m128i there) {
    const __m128i low = _mm_clmulepi64_si128(bits, factors, 0x00), high = _mm_clmulepi64_si128(bits, factors, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), there);
}

/* The remainder of vectors that follow each other: they are folded to the last one, whose bytes have the same remainder. */
TARGET_PCLMUL ALWAYS_INLINE uint32_t crc_of_vectors(const __m128i *bits, int count) {
    const __m128i by_16 = CRC_FACTORS(0x01751997D0, 0x00CCAA009E);
    uint8_t last[16];
    __m128i whole = bits[0];
    for (int k = 1; k < count; k++) whole = crc_fold(whole, by_16, bits[k]);
    _mm_storeu_si128((__m128i *)last, whole);
    return crc_bytes(0, last, sizeof last);
}

/* As crc_bytes, of a multiple of 64 bytes, at least 64. */
TARGET_PCLMUL NOINLINE uint32_t crc_of_64(uint32_t crc, const uint8_t *data, size_t size) {
    const __m128i by_64 = CRC_FACTORS(0x0154442BD4, 0x01C6E41596);
    const uint8_t *const end = data + size;
    __m128i bits[4];
    for (int k = 0; k < 4; k++) bits[k] = _mm_loadu_si128((const __m128i *)(data + 16 * k));
    bits[0] = _mm_xor_si128(bits[0], _mm_cvtsi32_si128((int)crc));
    for (data += 64; data < end; data += 64)
        for (int k = 0; k < 4; k++) bits[k] = crc_fold(bits[k], by_64, _mm_loadu_si128((const __m128i *)(data + 16 * k)));
    return crc_of_vectors(bits, 4);
}

/* As crc_bytes, of a multiple of 128 bytes, at least 128, with two products in an instruction. */
TARGET_VPCLMUL NOINLINE uint32_t crc_of_128(uint32_t crc, const uint8_t *data, size_t size) {
    const __m256i by_128 = _mm256_broadcastsi128_si256(CRC_FACTORS(0x1E88EF372, 0x14A7FE880));
    const uint8_t *const end = data + size;
    __m256i bits[4];
    for (int k = 0; k < 4; k++) bits[k] = _mm256_loadu_si256((const __m256i *)(data + 32 * k));
    bits[0] = _mm256_xor_si256(bits[0], _mm256_zextsi128_si256(_mm_cvtsi32_si128((int)crc)));
    for (data += 128; data < end; data += 128)
        for (int k = 0; k < 4; k++) {
            const __m256i low = _mm256_clmulepi64_epi128(bits[k], by_128, 0x00), high = _mm256_clmulepi64_epi128(bits[k], by_128, 0x11);
            bits[k] = _mm256_xor_si256(_mm256_xor_si256(low, high), _mm256_loadu_si256((const __m256i *)(data + 32 * k)));
        }
    __m128i halves[8];
    for (int k = 0; k < 4; k++) _mm256_storeu_si256((__m256i *)(halves + 2 * k), bits[k]);
    return crc_of_vectors(halves, 8);
}
#endif

/* The CRC-32 of bytes that follow others, whose CRC-32 is `crc`; 0 at first. */
static uint32_t checksum(uint32_t crc, const uint8_t *data, size_t size) {
    crc = ~crc;
#if defined(OPQ_AVX2)
    if (cpu_has_vpclmul && size >= 128) {
        crc = crc_of_128(crc, data, size / 128 * 128);
        data += size / 128 * 128, size %= 128;
    }
    if (cpu_has_pclmul && size >= 64) {
        crc = crc_of_64(crc, data, size / 64 * 64);
        data += size / 64 * 64, size %= 64;
    }
#endif
    return ~crc_bytes(crc, data, size);
}

#endif
