/* An adaptive binary and multi-symbol range coder with integers alone, and raw bits beside it. docs/format.md, "Coder".
 *
 *     stream:   | range coder bytes  ->  ...  <-  raw bit bytes |
 *
 * The range has 16 bits and is at least 2^15 before every decision. A decision chooses a part [from, to) of [0, range);
 * `code_interval` makes this part the new interval, and `renormalize` doubles it until the range has 16 bits again.
 *
 * The encoder keeps the low end of the interval. Once 32 bits have been shifted above its last 16, `shift_out` appends them to the
 * output, and a carry is propagated into the bytes that were written before. The decoder keeps code - low, the distance of the
 * code from the low end, in the highest 16 bits of a word, and some bits that follow in the code below them. `refill` reads more
 * of these without a branch, as no processor would predict it.
 *
 * Functions named code_... do both: they encode their argument, or ignore it and decode. They return the value in both cases.
 */
#ifndef OPQ_RANGE_CODER_H
#define OPQ_RANGE_CODER_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "compiler.h"

/* Bytes that grow as they are appended to. */
typedef struct {
    uint8_t *data; /* owned */
    size_t length, capacity;
    int out_of_memory;
} ByteBuffer;

/* Loops work on a copy of this in a local variable whose address is never taken, so that it stays in registers. */
typedef struct {
    uint64_t low;      /* encoder: a carry bit and 16 + num_bits bits; decoder: code - low, in the highest 16 + num_bits bits */
    uint32_t range;    /* 2^15 to 2^16 - 1 */
    int num_bits;      /* encoder: bits not yet written, beside the last 16; decoder: bits read ahead */
    uint64_t raw_bits; /* encoder: not yet written; decoder: read ahead; the next one is the lowest */
    /* encoder */
    ByteBuffer *output, *raw_output;
    int num_raw_bits; /* of raw_bits */
    /* decoder */
    const uint8_t *input;
    size_t input_size, position; /* position: bytes read from the start, up to 8 of them beyond the end */
    uint64_t raw_position;       /* bits taken from the end */
} RangeCoder;

static inline int highest_bit(uint32_t x) { return 31 - __builtin_clz(x); } /* floor(log2 x), x > 0 */

/* Returns whether `count` bytes can be appended. If memory is exhausted, the buffer is emptied and used again, with invalid
 * bytes. */
static int reserve(ByteBuffer *buffer, size_t count) {
    if (buffer->length + count <= buffer->capacity) return 1;
    size_t capacity = buffer->capacity * 2 + count + 4096;
    uint8_t *data = (uint8_t *)realloc(buffer->data, capacity);
    if (data) {
        buffer->data = data;
        buffer->capacity = capacity;
        return 1;
    }
    buffer->out_of_memory = 1;
    buffer->length = 0;
    return buffer->capacity >= count;
}

/* The last `count` bytes of `value`, highest first. */
static void append(ByteBuffer *buffer, uint64_t value, int count) {
    if (!reserve(buffer, (size_t)count)) return;
    while (count-- > 0) buffer->data[buffer->length++] = (uint8_t)(value >> (8 * count));
}

static void propagate_carry(ByteBuffer *buffer) {
    size_t k = buffer->length;
    while (k > 0 && ++buffer->data[--k] == 0) {
    }
}

/* Writes the highest 32 of `low`'s 16 + num_bits bits, and returns the rest. */
COLD uint64_t shift_out(ByteBuffer *buffer, uint64_t low, int num_bits) {
    if (low >> (num_bits + 16)) propagate_carry(buffer);
    append(buffer, (uint32_t)(low >> (num_bits - 16)), 4);
    return low & (((uint64_t)1 << (num_bits - 16)) - 1);
}

/* Eight bytes from `position` on, the first one highest; used if fewer than eight are left. Bytes beyond the end are 0. */
COLD uint64_t load_be64_near_end(const uint8_t *bytes, size_t size, size_t position) {
    uint64_t word = 0;
    for (size_t k = 0; k < 8; k++) word = word << 8 | (position + k < size ? bytes[position + k] : 0u);
    return word;
}

/* Eight bytes backwards, the first one lowest; `position` counts from the end. Bytes before the start are 0. */
COLD uint64_t load_raw_near_start(const uint8_t *bytes, size_t size, size_t position) {
    uint64_t word = 0;
    for (size_t k = 0; k < 8; k++) word |= (uint64_t)(position + k < size ? bytes[size - 1 - position - k] : 0u) << 8 * k;
    return word;
}

ALWAYS_INLINE uint64_t load_be64(const uint8_t *bytes) {
    uint64_t word = 0;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && !defined(OPQ_PORTABLE)
    memcpy(&word, bytes, 8);
    return __builtin_bswap64(word);
#else
    for (int k = 0; k < 8; k++) word = word << 8 | bytes[k];
    return word;
#endif
}

static RangeCoder start_encoder(ByteBuffer *output, ByteBuffer *raw_output) {
    RangeCoder coder;
    memset(&coder, 0, sizeof coder);
    memset(output, 0, sizeof *output);
    memset(raw_output, 0, sizeof *raw_output);
    coder.range = 65535, coder.output = output, coder.raw_output = raw_output;
    return coder;
}

static RangeCoder start_decoder(const uint8_t *input, size_t size) {
    RangeCoder coder;
    memset(&coder, 0, sizeof coder);
    coder.input = input, coder.input_size = size;
    coder.range = 65535, coder.position = 2, coder.low = load_be64_near_end(input, size, 0) >> 48 << 48;
    return coder;
}

/* The decoder then has at least 41 bits read ahead, enough for two decisions: each takes 15 at most. Bits that are read again
 * have the same values. */
ALWAYS_INLINE void refill(RangeCoder *coder, Direction direction) {
    if (direction == ENCODE) return;
    uint64_t word = coder->position + 8 <= coder->input_size
                        ? load_be64(coder->input + coder->position)
                        : load_be64_near_end(coder->input, coder->input_size, coder->position);
    int count = (48 - coder->num_bits) >> 3;
    coder->low |= word >> 16 >> coder->num_bits;
    coder->position += (size_t)count;
    coder->num_bits += 8 * count;
}

/* As `refill`, with a branch. It is faster if decisions take few bits, because the branch is then predicted well. */
ALWAYS_INLINE void refill_if_low(RangeCoder *coder, Direction direction) {
    if (direction == DECODE && UNLIKELY(coder->num_bits < 30)) refill(coder, direction);
}

ALWAYS_INLINE void renormalize(RangeCoder *coder, Direction direction) {
    int shift = 15 - highest_bit(coder->range);
    coder->range <<= shift;
    coder->low <<= shift;
    if (direction == DECODE) {
        coder->num_bits -= shift;
    } else {
        coder->num_bits += shift;
        if (UNLIKELY(coder->num_bits >= 32)) {
            coder->low = shift_out(coder->output, coder->low, coder->num_bits);
            coder->num_bits -= 32;
        }
    }
}

/* Makes [from, to) the new interval: the decision is made. */
ALWAYS_INLINE void code_interval(RangeCoder *coder, Direction direction, uint32_t from, uint32_t to) {
    coder->low = direction == DECODE ? coder->low - ((uint64_t)from << 48) : coder->low + from;
    coder->range = to - from;
    renormalize(coder, direction);
}

/* The code's distance from the low end of the interval. Only damaged data put it at or beyond the range. */
ALWAYS_INLINE uint32_t code_offset(const RangeCoder *coder) { return (uint32_t)(coder->low >> 48); }

/* A binary decision, after `refill`. `one` is the probability of a 1 in 65536ths, from 2 to 65534. There is no branch on the bit,
 * as no processor would predict it. */
ALWAYS_INLINE int code_bit(RangeCoder *coder, Direction direction, int bit, uint32_t one) {
    uint32_t bound = coder->range * one >> 16;
    if (direction == DECODE) bit = code_offset(coder) < bound;
    uint32_t if_zero = (uint32_t)bit - 1; /* all ones if the bit is 0 */
    code_interval(coder, direction, bound & if_zero, (bound & ~if_zero) | (coder->range & if_zero));
    return bit;
}

/* The decoder then has at least 57 raw bits read ahead, the encoder space for 32. */
ALWAYS_INLINE void refill_raw_bits(RangeCoder *coder, Direction direction) {
    if (direction == DECODE) {
        size_t position = (size_t)(coder->raw_position / 8);
        uint64_t word = position + 8 <= coder->input_size ? load_be64(coder->input + (coder->input_size - position - 8))
                                                          : load_raw_near_start(coder->input, coder->input_size, position);
        coder->raw_bits = word >> coder->raw_position % 8;
    } else if (coder->num_raw_bits >= 32) {
        uint32_t word = (uint32_t)coder->raw_bits;
        append(coder->raw_output, __builtin_bswap32(word), 4);
        coder->raw_bits >>= 32;
        coder->num_raw_bits -= 32;
    }
}

/* The lowest `count` <= 31 bits of `value`, the lowest one first. At most 32 bits may be coded after a `refill_raw_bits`. */
ALWAYS_INLINE uint32_t code_raw_bits(RangeCoder *coder, Direction direction, uint32_t value, int count) {
    if (direction == DECODE) {
        value = (uint32_t)coder->raw_bits & ((1u << count) - 1);
        coder->raw_bits >>= count;
        coder->raw_position += (uint64_t)count;
    } else {
        coder->raw_bits |= (uint64_t)value << coder->num_raw_bits;
        coder->num_raw_bits += count;
    }
    return value;
}

/* Writes the end of the code, the smallest multiple of 2^14 from low on, which lies in the interval whatever bytes follow; then
 * the raw bytes, in reverse order. */
static void finish_encoder(RangeCoder *coder) {
    uint64_t point = (coder->low + (1 << 14) - 1) >> 14;
    int num_bits = coder->num_bits + 2, count = (num_bits + 7) / 8;
    if (point >> num_bits) propagate_carry(coder->output);
    append(coder->output, point << (8 * count - num_bits), count);
    while (coder->num_raw_bits > 0) {
        append(coder->raw_output, coder->raw_bits & 255, 1);
        coder->raw_bits >>= 8;
        coder->num_raw_bits -= 8;
    }
    ByteBuffer *output = coder->output, *raw = coder->raw_output;
    if (!reserve(output, raw->length)) return;
    while (raw->length > 0) output->data[output->length++] = raw->data[--raw->length];
}

/* Whether the decoder has used more bits than its input has, so that `consumed_exactly` cannot become true: at most 6 bytes are
 * read ahead. A decision takes at least 16/65536 of the range, or 1/2840 of a bit, so data that end too early are given up after
 * at most 22,720 decisions for each of their bytes, whatever shape was declared. */
ALWAYS_INLINE int is_exhausted(const RangeCoder *coder) { return coder->position > coder->input_size + 8; }

/* Whether the decoder has used every byte of its input, from both ends, and no byte twice. */
static int consumed_exactly(const RangeCoder *coder) {
    uint64_t num_shifts = 8 * (uint64_t)coder->position - 16 - (uint64_t)coder->num_bits; /* w in docs/format.md */
    return (num_shifts + 9) / 8 + (coder->raw_position + 7) / 8 == coder->input_size;
}

#endif
