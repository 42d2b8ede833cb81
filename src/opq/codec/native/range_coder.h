/* Binary arithmetic coding with integers alone, so that every machine finds the same intervals.
 *
 * The encoder keeps [low, low + range) of a 64-bit unit interval and puts out its leading 32 bits whenever the range has shrunk
 * under 2^32; a carry runs back into what is already out. The decoder keeps the code's distance from low. Data end where only
 * zero bytes would follow; a decoder reads zeros past the end.
 */
#ifndef OPQ_RANGE_CODER_H
#define OPQ_RANGE_CODER_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define RARE static __attribute__((noinline))
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#elif defined(_MSC_VER)
#define ALWAYS_INLINE static __forceinline
#define RARE static __declspec(noinline)
#define UNLIKELY(condition) (condition)
#else
#define ALWAYS_INLINE static inline
#define RARE static
#define UNLIKELY(condition) (condition)
#endif

typedef struct {
    uint8_t *bytes;  /* encoder: owned, grows; decoder: borrowed */
    size_t at, size; /* encoder: used, allocated; decoder: next to read, length */
    int failed;
} Stream;

/* The hot loops work on a copy of their own, which never leaves the processor's registers: only the stream has an address. */
typedef struct {
    uint64_t low, range; /* encoder; the decoder keeps code - low in `low` */
    Stream *stream;
} Coder;

RARE void put_word(Stream *stream, uint64_t low) {
    if (stream->at + 16 > stream->size) {
        size_t size = stream->size * 2 + 4096;
        uint8_t *bytes = (uint8_t *)realloc(stream->bytes, size);
        if (!bytes) {
            stream->failed = 1;
            stream->at = 0;
            return;
        }
        stream->bytes = bytes;
        stream->size = size;
    }
    for (int shift = 56; shift >= 32; shift -= 8) stream->bytes[stream->at++] = (uint8_t)(low >> shift);
}

RARE uint32_t get_word(Stream *stream) {
    uint32_t word = 0;
    for (int k = 0; k < 4; k++, stream->at++) word = word << 8 | (stream->at < stream->size ? stream->bytes[stream->at] : 0u);
    return word;
}

RARE void carry(Stream *stream) {
    size_t k = stream->at;
    while (k > 0 && ++stream->bytes[--k] == 0) {
    }
}

static Coder start_encoding(Stream *stream) {
    memset(stream, 0, sizeof *stream);
    return (Coder){0, UINT64_MAX, stream};
}

static Coder start_decoding(Stream *stream, const uint8_t *bytes, size_t size) {
    *stream = (Stream){(uint8_t *)bytes, 0, size, 0};
    uint64_t high = get_word(stream);
    return (Coder){high << 32 | get_word(stream), UINT64_MAX, stream};
}

/* Whenever the range has shrunk under 2^32, a word goes out or comes in. */
ALWAYS_INLINE void renew(Coder *coder, int decoding) {
    if (UNLIKELY(coder->range < (uint64_t)1 << 32)) {
        if (decoding) {
            coder->low = coder->low << 32 | get_word(coder->stream);
        } else {
            put_word(coder->stream, coder->low);
            coder->low <<= 32;
        }
        coder->range <<= 32;
    }
}

/* The upper part of the interval: a decided 0. */
ALWAYS_INLINE void skip(Coder *coder, int decoding, uint64_t bound) {
    if (decoding) {
        coder->low -= bound;
    } else {
        coder->low += bound;
        if (UNLIKELY(coder->low < bound)) carry(coder->stream);
    }
}

/* One binary decision; `one` is the probability of 1 in 65536ths, 1..65535. Encodes `bit`, or ignores it and decodes. */
ALWAYS_INLINE int code_bit(Coder *coder, int decoding, int bit, uint32_t one) {
    uint64_t bound = (coder->range >> 16) * one;
    if (decoding) bit = coder->low < bound;
    if (bit) {
        coder->range = bound;
        renew(coder, decoding);
        return 1;
    }
    coder->range -= bound;
    skip(coder, decoding, bound);
    renew(coder, decoding);
    return 0;
}

/* The same without a branch on the bit, for bits that no processor foresees: signs and raw bits. */
ALWAYS_INLINE int code_even(Coder *coder, int decoding, int bit, uint32_t one) {
    uint64_t bound = (coder->range >> 16) * one;
    if (decoding) bit = coder->low < bound;
    uint64_t zero = (uint64_t)bit - 1; /* all ones where the bit is 0 */
    coder->range = (bound & ~zero) | ((coder->range - bound) & zero);
    skip(coder, decoding, bound & zero);
    renew(coder, decoding);
    return bit;
}

/* `count` bits of `value`, highest first, all equally likely. */
ALWAYS_INLINE uint32_t code_raw(Coder *coder, int decoding, uint32_t value, int count) {
    uint32_t result = 0;
    while (count-- > 0) result = result << 1 | (uint32_t)code_even(coder, decoding, value >> count & 1, 32768);
    return result;
}

/* Put out the fewest bytes that name a point of the interval, and drop zero bytes at the end. */
static void finish_encoding(Coder *coder) {
    int count = 0;
    uint64_t point = 0;
    for (; count <= 8; count++) {
        uint64_t rest = count < 8 ? UINT64_MAX >> (8 * count) : 0;
        point = (coder->low + rest) & ~rest;
        if (point - coder->low < coder->range) break;
    }
    if (point < coder->low) carry(coder->stream);
    put_word(coder->stream, point);
    put_word(coder->stream, point << 32);
    Stream *stream = coder->stream;
    while (stream->at > 0 && stream->bytes[stream->at - 1] == 0) stream->at--;
}

#endif
