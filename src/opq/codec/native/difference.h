/* Words less those of a base, their symbols, contexts and raw bits. docs/format.md, "Integers of tensors" and "Differences". */
#ifndef OPQ_DIFFERENCE_H
#define OPQ_DIFFERENCE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "dispatch.h"

#define DIFFERENCE_DIRECT 16 /* magnitudes below have tokens of their own */
#define DIFFERENCE_OCTAVE 12 /* the token of an octave less its logarithm */
#define DIFFERENCE_SYMBOLS 151
#define DIFFERENCE_KEYS 256
#define DIFFERENCE_SUMS (3 * 255 + 1) /* of the classes of a row, a column and a key */
#define DIFFERENCE_COUNTS 256 /* numbers for each sum, one for each symbol */

/* How words are integers. */
typedef struct {
    int bits, is_float, shift;
} WordKind;

ALWAYS_INLINE uint64_t integer_of(uint64_t word, const WordKind kind) {
    const uint64_t sign = word >> (kind.bits - 1) & 1;
    if (kind.is_float) return (word & (((uint64_t)1 << (kind.bits - 1)) - 1)) >> kind.shift ^ (0 - sign);
    return (uint64_t)((int64_t)(word << (64 - kind.bits)) >> (64 - kind.bits) >> kind.shift);
}

ALWAYS_INLINE uint64_t word_of(uint64_t integer, const WordKind kind) {
    const uint64_t sign = integer >> 63;
    if (kind.is_float) return (integer ^ (0 - sign)) << kind.shift | sign << (kind.bits - 1);
    return integer << kind.shift;
}

/* `part` for words of each size, as a constant type. */
#define FOR_WORDS(bits, part) \
    if ((bits) == 8) part(uint8_t) else if ((bits) == 16) part(uint16_t) else if ((bits) == 32) part(uint32_t) else part(uint64_t)

/* All bits that are set in words that differ, of both sides. */
static uint64_t changed_bits(const void *base, const void *new, int bits, size_t count) {
#define PART(type)                                                                                          \
    {                                                                                                       \
        const type *const b = (const type *)base, *const n = (const type *)new;                             \
        type all = 0;                                                                                       \
        for (size_t k = 0; k < count; k++) all |= b[k] != n[k] ? (type)(b[k] | n[k]) : 0;                   \
        return all;                                                                                         \
    }
    FOR_WORDS(bits, PART)
#undef PART
}

static void subtract_words(const void *base, const void *new, WordKind kind, int64_t *differences, size_t count) {
#define PART(type)                                                                                          \
    {                                                                                                       \
        const WordKind own = {8 * (int)sizeof(type), kind.is_float, kind.shift};                            \
        const type *const b = (const type *)base, *const n = (const type *)new;                             \
        for (size_t k = 0; k < count; k++) differences[k] = (int64_t)(integer_of(n[k], own) - integer_of(b[k], own)); \
    }
    FOR_WORDS(kind.bits, PART)
#undef PART
}

typedef enum { WORDS_ADDED, LOW_BITS_ARE_SET, OUT_OF_RANGE } AddedWords;

/* The inverse; where a difference is 0, the word is the base's. */
static AddedWords add_words(const void *base, const int64_t *differences, WordKind kind, void *output, size_t count) {
    const uint64_t low = ((uint64_t)1 << kind.shift) - 1, half = (uint64_t)1 << (kind.bits - 1 - kind.shift);
    uint64_t low_bits = 0, beyond = 0;
#define PART(type)                                                                                          \
    {                                                                                                       \
        const WordKind own = {8 * (int)sizeof(type), kind.is_float, kind.shift};                            \
        const type *const b = (const type *)base;                                                           \
        type *const words = (type *)output;                                                                 \
        for (size_t k = 0; k < count; k++) {                                                                \
            const uint64_t changed = 0 - (uint64_t)(differences[k] != 0);                                   \
            const uint64_t integer = integer_of(b[k], own) + (uint64_t)differences[k];                      \
            low_bits |= b[k] & low & changed;                                                               \
            beyond |= (integer ^ (0 - (integer >> 63))) & ~(half - 1) & changed;                            \
            words[k] = changed ? (type)word_of(integer, own) : b[k];                                        \
        }                                                                                                   \
    }
    FOR_WORDS(kind.bits, PART)
#undef PART
    return low_bits ? LOW_BITS_ARE_SET : beyond ? OUT_OF_RANGE : WORDS_ADDED;
}

/* |d|, of -2^63 too. */
ALWAYS_INLINE uint64_t magnitude_of(int64_t difference) {
    return difference < 0 ? 0 - (uint64_t)difference : (uint64_t)difference;
}

ALWAYS_INLINE int octave_of(uint64_t magnitude) { return 63 - __builtin_clzll(magnitude); }

static void difference_symbols(const int64_t *differences, uint8_t *symbols, size_t count) {
    for (size_t k = 0; k < count; k++) {
        const uint64_t magnitude = magnitude_of(differences[k]);
        const int token = magnitude < DIFFERENCE_DIRECT ? (int)magnitude : DIFFERENCE_OCTAVE + octave_of(magnitude);
        symbols[k] = (uint8_t)(2 * token - (differences[k] > 0));
    }
}

/* How many low bits of the magnitude are raw. */
ALWAYS_INLINE int raw_bits_of(uint8_t symbol) {
    const int token = (symbol + 1) >> 1;
    return token < DIFFERENCE_DIRECT ? 0 : token - DIFFERENCE_OCTAVE;
}

/* Elements in rows, their keys, and classes of rows, columns and keys, each below 256. `columns` is 0 if there are none. */
typedef struct {
    const uint8_t *keys, *row_classes, *column_classes, *key_classes;
    const int64_t *ends; /* of rows */
    int64_t rows, columns;
} DifferenceGrid;

/* Calls `use(k, sum)` for each element with the sum of its classes. */
#define FOR_SUMS(g, use)                                                                                    \
    for (int64_t row = 0, first = 0; row < (g)->rows; first = (g)->ends[row++]) {                           \
        const int own = (g)->row_classes[row];                                                              \
        if ((g)->columns)                                                                                   \
            for (int64_t k = first; k < (g)->ends[row]; k++)                                                \
                use(k, own + (g)->key_classes[(g)->keys[k]] + (g)->column_classes[k - first])               \
        else                                                                                                \
            for (int64_t k = first; k < (g)->ends[row]; k++) use(k, own + (g)->key_classes[(g)->keys[k]])   \
    }

/* How often each symbol occurs with each sum. */
static void count_differences(const DifferenceGrid *g, const uint8_t *symbols, uint32_t *counts) {
#define USE(k, sum) counts[(sum) * DIFFERENCE_COUNTS + symbols[k]]++;
    FOR_SUMS(g, USE)
#undef USE
}

/* The context of each element; adds how many have each to `sizes`, 256 numbers. */
static void difference_contexts(const DifferenceGrid *g, int base, int count, uint8_t *contexts, int64_t *sizes) {
    uint8_t clipped[DIFFERENCE_SUMS];
    for (int sum = 0; sum < DIFFERENCE_SUMS; sum++)
        clipped[sum] = (uint8_t)(sum < base ? 0 : sum - base < count ? sum - base : count - 1);
#define USE(k, sum) sizes[contexts[k] = clipped[sum]]++;
    FOR_SUMS(g, USE)
#undef USE
}

/* Adds the numbers that keys and symbols have in `table`, times that of the row and at most `largest`, to sums of rows and columns. */
static void sum_differences(const DifferenceGrid *g, const uint8_t *symbols, const double *table, const double *factors,
                            double largest, double *row_sums, double *column_sums) {
    for (int64_t row = 0, first = 0; row < g->rows; first = g->ends[row++]) {
        double sum = 0.0;
        for (int64_t k = first; k < g->ends[row]; k++) {
            if (!symbols[k]) continue; /* often most */
            const double found = table[g->keys[k] * DIFFERENCE_COUNTS + symbols[k]] * factors[row];
            const double part = found < largest ? found : largest;
            sum += part;
            if (g->columns) column_sums[k - first] += part;
        }
        row_sums[row] += sum;
    }
}

/* Moves each symbol to the next place of its context, or back. Whether all places are below `length`. */
static int sort_symbols(const uint8_t *contexts, int64_t *places, uint8_t *symbols, size_t count, uint8_t *lines, int64_t length, int back) {
    for (size_t k = 0; k < count; k++) {
        const int64_t place = places[contexts[k]]++;
        if (UNLIKELY((uint64_t)place >= (uint64_t)length)) return 0;
        if (back) symbols[k] = lines[place];
        else lines[place] = symbols[k];
    }
    return 1;
}

/* The codes of the numbers k of a trellis, row by row, in their place; all are from -2^30 to 2^30 - 1. */
static void follow_trellis(int32_t *numbers, int64_t rows, int64_t columns) {
    for (int64_t row = 0; row < rows; row++, numbers += columns) {
        uint32_t state = 0;
        for (int64_t column = 0; column < columns; column++) {
            const int32_t k = numbers[column], odd = (int32_t)(state & 1);
            numbers[column] = 2 * k - (k > 0 ? odd : 0) + (k < 0 ? odd : 0);
            state = next_state(state, (uint32_t)k);
        }
    }
}

/* Where the raw bits of elements with each number of them begin, and how many such elements there are or were so far. */
typedef struct {
    size_t starts[65], counts[64], seen[64];
} RawBits;

static void place_raw_bits(RawBits *raw) {
    size_t at = 0;
    for (int bits = 0; bits < 64; bits++) {
        raw->starts[bits] = at, raw->seen[bits] = 0;
        at += raw->counts[bits] * (size_t)(bits / 8) + (raw->counts[bits] * (size_t)(bits % 8) + 7) / 8;
    }
    raw->starts[64] = at;
}

static void count_raw_bits(RawBits *raw, const uint8_t *symbols, size_t count) {
    size_t counts[256] = {0};
    memset(raw->counts, 0, sizeof raw->counts);
    for (size_t k = 0; k < count; k++) counts[symbols[k]]++;
    for (int symbol = 0; symbol < DIFFERENCE_SYMBOLS; symbol++) raw->counts[raw_bits_of((uint8_t)symbol)] += counts[symbol];
    raw->counts[0] = 0;
    place_raw_bits(raw);
}

/* Writes raw bits to bytes that are 0. */
static void write_raw_bits(RawBits *raw, const uint8_t *symbols, const int64_t *differences, uint8_t *bytes, size_t count) {
    for (size_t k = 0; k < count; k++) {
        const int bits = raw_bits_of(symbols[k]);
        if (!bits) continue;
        const size_t number = raw->seen[bits]++, others = raw->counts[bits];
        uint64_t magnitude = magnitude_of(differences[k]) & (((uint64_t)1 << bits) - 1);
        uint8_t *plane = bytes + raw->starts[bits];
        for (int byte = 0; byte < bits / 8; byte++, plane += others, magnitude >>= 8) plane[number] = (uint8_t)magnitude;
        if (bits % 8) {
            const size_t at = number * (size_t)(bits % 8);
            const int high = (int)(at % 8) + bits % 8;
            plane[at / 8] |= (uint8_t)(magnitude << at % 8);
            if (high > 8) plane[at / 8 + 1] |= (uint8_t)(magnitude >> (8 - at % 8));
        }
    }
}

/* Differences of symbols, all below DIFFERENCE_SYMBOLS, and raw bits. */
static void read_raw_bits(RawBits *raw, const uint8_t *symbols, const uint8_t *bytes, int64_t *differences, size_t count) {
    for (size_t k = 0; k < count; k++) {
        const int bits = raw_bits_of(symbols[k]);
        uint64_t magnitude = (uint64_t)((symbols[k] + 1) >> 1);
        if (bits) {
            const size_t number = raw->seen[bits]++, others = raw->counts[bits];
            const uint8_t *plane = bytes + raw->starts[bits];
            magnitude = (uint64_t)1 << bits;
            for (int byte = 0; byte < bits / 8; byte++, plane += others) magnitude |= (uint64_t)plane[number] << 8 * byte;
            if (bits % 8) {
                const size_t at = number * (size_t)(bits % 8);
                uint32_t top = plane[at / 8];
                if (at % 8 + (size_t)(bits % 8) > 8) top |= (uint32_t)plane[at / 8 + 1] << 8;
                magnitude |= (uint64_t)(top >> at % 8 & ((1u << bits % 8) - 1)) << bits / 8 * 8;
            }
        }
        differences[k] = (int64_t)(symbols[k] & 1 ? magnitude : 0 - magnitude);
    }
}

#endif
