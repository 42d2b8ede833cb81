/* Range coding with integers alone, so that every machine finds the same intervals; and raw bits beside it.
 *
 * The range has 16 bits, 2^15 or more before every decision. The encoder keeps the low end of the interval, puts out its leading
 * 32 bits whenever so many have gathered above the last 16, and lets a carry run back into what is already out. The decoder keeps
 * the code's distance from the low end in the leading 16 bits of a word, and behind it bits that are still to come: `refill` tops
 * them up, without a branch that a processor would have to foresee. Raw bits stand at the end of the data, backwards.
 */
#ifndef OPQ_RANGE_CODER_H
#define OPQ_RANGE_CODER_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vec8_u16.h"

typedef struct {
    uint8_t *bytes; /* owned, grow */
    size_t at, size; /* used, allocated */
    int failed;
} ByteBuffer;

/* The hot loops work on a copy of their own, which never leaves the processor's registers: only the streams have an address. */
typedef struct {
    uint64_t low; /* encoder: 16 + have bits and a carry; the decoder keeps code - low in the leading 16 bits, `have` more behind */
    uint32_t range;
    int have;
    uint64_t bits; /* raw bits, the next one lowest */
    ByteBuffer *stream, *raw; /* encoder */
    int held;             /* encoder: of `bits` */
    const uint8_t *bytes; /* decoder: */
    size_t size, at;      /* their number, and of these taken from the start */
    uint64_t taken;       /* bits taken from the end */
} RangeCoder;

static inline int highest_bit(uint32_t x) { /* floor(log2 x), x > 0 */
#if defined(__GNUC__)
    return 31 - __builtin_clz(x);
#else
    int bit = 0;
    if (x >= 1u << 16) x >>= 16, bit += 16;
    if (x >= 1u << 8) x >>= 8, bit += 8;
    if (x >= 1u << 4) x >>= 4, bit += 4;
    if (x >= 1u << 2) x >>= 2, bit += 2;
    return bit + (int)(x >> 1);
#endif
}

static int reserve(ByteBuffer *stream, size_t count) {
    if (stream->at + count <= stream->size) return 1;
    size_t size = stream->size * 2 + count + 4096;
    uint8_t *bytes = (uint8_t *)realloc(stream->bytes, size);
    if (bytes) {
        stream->bytes = bytes;
        stream->size = size;
        return 1;
    }
    stream->failed = 1;
    stream->at = 0;
    return stream->size >= count;
}

static void append(ByteBuffer *stream, uint64_t value, int count) { /* `count` bytes, highest first */
    if (!reserve(stream, (size_t)count)) return;
    while (count-- > 0) stream->bytes[stream->at++] = (uint8_t)(value >> (8 * count));
}

static void propagate_carry(ByteBuffer *stream) {
    size_t k = stream->at;
    while (k > 0 && ++stream->bytes[--k] == 0) {
    }
}

COLD uint64_t shift_out(ByteBuffer *stream, uint64_t low, int have) { /* what is left of low */
    if (low >> (have + 16)) propagate_carry(stream);
    append(stream, (uint32_t)(low >> (have - 16)), 4);
    return low & (((uint64_t)1 << (have - 16)) - 1);
}

/* Eight bytes from `at` on, highest first, counted from the start or from the end. Past the data every byte is 0. */
COLD uint64_t load_be64_near_end(const uint8_t *bytes, size_t size, size_t at) {
    uint64_t word = 0;
    for (size_t k = 0; k < 8; k++) word = word << 8 | (at + k < size ? bytes[at + k] : 0u);
    return word;
}

COLD uint64_t load_raw_near_start(const uint8_t *bytes, size_t size, size_t at) {
    uint64_t word = 0;
    for (size_t k = 0; k < 8; k++) word |= (uint64_t)(at + k < size ? bytes[size - 1 - at - k] : 0u) << 8 * k;
    return word;
}

ALWAYS_INLINE uint64_t load_be64(const uint8_t *bytes) {
    uint64_t word;
#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    memcpy(&word, bytes, 8);
    return __builtin_bswap64(word);
#else
    word = 0;
    for (int k = 0; k < 8; k++) word = word << 8 | bytes[k];
    return word;
#endif
}

static RangeCoder start_encoder(ByteBuffer *stream, ByteBuffer *raw) {
    RangeCoder coder;
    memset(&coder, 0, sizeof coder);
    memset(stream, 0, sizeof *stream);
    memset(raw, 0, sizeof *raw);
    coder.range = 65535, coder.stream = stream, coder.raw = raw;
    return coder;
}

static RangeCoder start_decoder(const uint8_t *bytes, size_t size) {
    RangeCoder coder;
    memset(&coder, 0, sizeof coder);
    coder.bytes = bytes, coder.size = size;
    coder.range = 65535, coder.at = 2, coder.low = load_be64_near_end(bytes, size, 0) >> 48 << 48;
    return coder;
}

/* Makes at least 41 bits ready for the decoder, enough for two decisions. Bits that stood there already come out the same. */
ALWAYS_INLINE void refill(RangeCoder *coder, int decoding) {
    if (!decoding) return;
    uint64_t word = coder->at + 8 <= coder->size ? load_be64(coder->bytes + coder->at)
                                                 : load_be64_near_end(coder->bytes, coder->size, coder->at);
    int count = (48 - coder->have) >> 3;
    coder->low |= word >> 16 >> coder->have;
    coder->at += (size_t)count;
    coder->have += 8 * count;
}

/* As `refill`, where decisions take so few bits that a processor foresees whether there are enough. */
ALWAYS_INLINE void refill_if_low(RangeCoder *coder, int decoding) {
    if (decoding && UNLIKELY(coder->have < 30)) refill(coder, decoding);
}

ALWAYS_INLINE void renormalize(RangeCoder *coder, int decoding) {
    int shift = 15 - highest_bit(coder->range);
    coder->range <<= shift;
    coder->low <<= shift;
    if (decoding) {
        coder->have -= shift;
    } else {
        coder->have += shift;
        if (UNLIKELY(coder->have >= 32)) {
            coder->low = shift_out(coder->stream, coder->low, coder->have);
            coder->have -= 32;
        }
    }
}

ALWAYS_INLINE void code_interval(RangeCoder *coder, int decoding, uint32_t from, uint32_t to) {
    coder->low = decoding ? coder->low - ((uint64_t)from << 48) : coder->low + from;
    coder->range = to - from;
    renormalize(coder, decoding);
}

/* One binary decision, after `refill`; `one` is the probability of 1 in 65536ths, 2..65534. Encodes `bit`, or ignores it and
 * decodes; without a branch on the bit, because no processor foresees it. */
ALWAYS_INLINE int code_bit(RangeCoder *coder, int decoding, int bit, uint32_t one) {
    uint32_t bound = coder->range * one >> 16;
    if (decoding) bit = (uint32_t)(coder->low >> 48) < bound;
    uint32_t zero = (uint32_t)bit - 1; /* all ones where the bit is 0 */
    code_interval(coder, decoding, bound & zero, (bound & ~zero) | (coder->range & zero));
    return bit;
}

/* Makes at least 57 raw bits ready to be taken, or room for 32. */
ALWAYS_INLINE void refill_raw_bits(RangeCoder *coder, int decoding) {
    if (decoding) {
        size_t at = (size_t)(coder->taken / 8);
        uint64_t word = at + 8 <= coder->size ? load_be64(coder->bytes + (coder->size - at - 8))
                                              : load_raw_near_start(coder->bytes, coder->size, at);
        coder->bits = word >> coder->taken % 8;
    } else if (coder->held >= 32) {
        uint32_t word = (uint32_t)coder->bits;
        append(coder->raw, (uint64_t)(word & 255) << 24 | (word >> 8 & 255) << 16 | (word >> 16 & 255) << 8 | word >> 24, 4);
        coder->bits >>= 32;
        coder->held -= 32;
    }
}

/* `count` <= 31 bits of `value`, lowest first; after refill_raw_bits, and at most 32 bits until the next. */
ALWAYS_INLINE uint32_t code_raw_bits(RangeCoder *coder, int decoding, uint32_t value, int count) {
    if (decoding) {
        value = (uint32_t)coder->bits & ((1u << count) - 1);
        coder->bits >>= count;
        coder->taken += (uint64_t)count;
    } else {
        coder->bits |= (uint64_t)value << coder->held;
        coder->held += count;
    }
    return value;
}

/* Two bits more than were shifted out name an interval within the last one, whatever bytes follow; then the raw bytes. */
static void finish_encoder(RangeCoder *coder) {
    uint64_t point = (coder->low + (1 << 14) - 1) >> 14;
    int bits = coder->have + 2, count = (bits + 7) / 8;
    if (point >> bits) propagate_carry(coder->stream);
    append(coder->stream, point << (8 * count - bits), count);
    while (coder->held > 0) {
        append(coder->raw, coder->bits & 255, 1);
        coder->bits >>= 8;
        coder->held -= 8;
    }
    ByteBuffer *stream = coder->stream, *raw = coder->raw;
    if (!reserve(stream, raw->at)) return;
    while (raw->at > 0) stream->bytes[stream->at++] = raw->bytes[--raw->at];
}

/* Whether the data are as long as what was taken from both their ends. */
static int consumed_exactly(const RangeCoder *coder) {
    uint64_t shifted = 8 * (uint64_t)coder->at - 16 - (uint64_t)coder->have;
    return (shifted + 9) / 8 + (coder->taken + 7) / 8 == coder->size;
}

#endif
