/* CRC-32 as in zlib: of sections and headers.
 *
 * With PCLMULQDQ, products of polynomials without carries, 64 bytes are folded at a time: V. Gopal et al., "Fast CRC Computation for
 * Generic Polynomials Using PCLMULQDQ Instruction" (Intel, 2009). Elsewhere tables of four bytes.
 */
#ifndef OPQ_CRC32_H
#define OPQ_CRC32_H

#include <stddef.h>

#include "compiler.h"

#if defined(OPQ_AVX2)
static int cpu_has_pclmul;
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

/* 128 bits moved forward by the distance that `factors` are for, plus the bits that are there. */
TARGET_PCLMUL ALWAYS_INLINE __m128i crc_fold(__m128i bits, __m128i factors, __m128i there) {
    const __m128i low = _mm_clmulepi64_si128(bits, factors, 0x00), high = _mm_clmulepi64_si128(bits, factors, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), there);
}

/* As crc_bytes, of a multiple of 64 bytes. Sixteen bytes with the same remainder are left at the end. */
TARGET_PCLMUL NOINLINE uint32_t crc_blocks(uint32_t crc, const uint8_t *data, size_t size) {
    /* x^(n + 32) and x^(n - 32) modulo the polynomial, bits reversed, for n = 512 and n = 128. */
    const __m128i by_64 = _mm_set_epi64x(0x01C6E41596, 0x0154442BD4), by_16 = _mm_set_epi64x(0x00CCAA009E, 0x01751997D0);
    const uint8_t *const end = data + size;
    __m128i bits[4];
    for (int k = 0; k < 4; k++) bits[k] = _mm_loadu_si128((const __m128i *)(data + 16 * k));
    bits[0] = _mm_xor_si128(bits[0], _mm_cvtsi32_si128((int)crc));
    for (data += 64; data < end; data += 64)
        for (int k = 0; k < 4; k++) bits[k] = crc_fold(bits[k], by_64, _mm_loadu_si128((const __m128i *)(data + 16 * k)));
    for (int k = 1; k < 4; k++) bits[k] = crc_fold(bits[k - 1], by_16, bits[k]);
    uint8_t last[16];
    _mm_storeu_si128((__m128i *)last, bits[3]);
    return crc_bytes(0, last, sizeof last);
}
#endif

/* The CRC-32 of bytes that follow others, whose CRC-32 is `crc`; 0 at first. */
static uint32_t checksum(uint32_t crc, const uint8_t *data, size_t size) {
    crc = ~crc;
#if defined(OPQ_AVX2)
    const size_t blocks = cpu_has_pclmul ? size / 64 * 64 : 0;
    if (blocks) crc = crc_blocks(crc, data, blocks);
    data += blocks, size -= blocks;
#endif
    return ~crc_bytes(crc, data, size);
}

#endif
