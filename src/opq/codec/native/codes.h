/* The walk over a weight's codes, the same for both directions.
 *
 * The weight is seen as (outputs, inputs, positions): row o, column i, and the position inside a kernel, which is `width` wide.
 * ABREAST rows are walked at once, column after column, position after position: while a processor works on the code of one row,
 * the contexts of the others do not wait for it. A kernel's signs follow its magnitudes, which tell how far a neighbour's sign
 * is to be trusted; without kernels signs are raw bits.
 */
#ifndef OPQ_CODES_H
#define OPQ_CODES_H

#include "code_model.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <cpuid.h>
#endif

enum { ABREAST = 4, POSITIONS = 128, CELLS = 3 * (POSITIONS + 2) };

typedef struct {
    int64_t outputs, inputs, positions, width; /* positions <= POSITIONS */
    int shift;                                 /* low bits of a magnitude that go raw */
    uint32_t start;                            /* first mean of all, in 4096ths */
} Shape;

typedef struct {
    uint32_t set;          /* offset of the rows of its first context */
    uint32_t near, energy; /* what the neighbours' sum, and that of all positions before, count in the expected magnitude */
    uint32_t signs;        /* first of its states, for the position squeezed into PLACES */
    int cell;              /* its first number in a kernel's frame */
} Position;

/* The codes of ABREAST kernels side by side, each with a frame of zeros: where a neighbour is missing, a zero stands. */
typedef struct {
    int32_t near[CELLS * ABREAST];  /* of the neighbours' magnitudes so far */
    int32_t value[CELLS * ABREAST]; /* signed */
} Frame;

typedef struct {
    Model *model;
    const Shape *shape;
    const Position *table;
    Frame *frame;
    uint32_t *columns, global; /* running means in 4096ths */
    int failed;                /* only damaged data lead there */
} Walk;

typedef struct {
    uint32_t magnitude, capped; /* capped: without its raw bits, for contexts */
} Magnitude;

typedef struct {
    uint32_t magnitude;
    uint16_t position, row;
} Signed;

static void describe(Position *table, const Shape *shape) {
    for (int64_t p = 0; p < shape->positions; p++) {
        int64_t y = p / shape->width, x = p % shape->width;
        uint32_t total = 2u * (x > 0) + 2u * (y > 0) + (x > 0 && y > 0) + (y > 0 && x + 1 < shape->width) + (p > 0);
        table[p].set = p ? NEAR : FIRST * (uint32_t)sizeof(Row);
        table[p].near = total ? ONE / total : 0;
        table[p].energy = p ? table[p].near / (uint32_t)p : 0;
        uint32_t place = (uint32_t)(shape->positions <= PLACES ? p : p * PLACES / shape->positions);
        table[p].signs = place * BINS;
        table[p].cell = (int)((y + 1) * (shape->width + 2) + x + 1) * ABREAST;
    }
}

ALWAYS_INLINE Magnitude code_magnitude(Coder *coder, int decoding, Walk *walk, uint16_t *bounds, const int shift, Row *row,
                                       uint32_t level, int32_t code) {
    uint32_t magnitude = code < 0 ? 0u - (uint32_t)code : (uint32_t)code, rest = magnitude - 1;
    uint32_t high = decoding || !magnitude ? 0 : 1 + (rest >> shift);
    int symbol = code_symbol(coder, decoding, bounds, row, high < LANES ? (int)high : LANES);
    if (decoding) high = (uint32_t)symbol;
    if (!high) return (Magnitude){0, 0};
    if (UNLIKELY(high >= LANES)) {
        high = LANES + code_tail(coder, decoding, walk->model, bounds, level, high - LANES);
        if ((high - 1) >> (24 - shift)) {
            walk->failed = 1;
            high = 1;
        }
    }
    if (decoding) magnitude = high;
    if (UNLIKELY(shift)) {
        renew_raw(coder, decoding);
        uint32_t low = code_raw(coder, decoding, rest & ((1u << shift) - 1), shift);
        renew_raw(coder, decoding);
        if (decoding) magnitude = ((high - 1) << shift | low) + 1;
    }
    return (Magnitude){magnitude, high < CAP ? high : CAP};
}

/* The signs of the kernels' codes that are not 0, in the order of their magnitudes. `scale` is what a prediction is measured by. */
ALWAYS_INLINE void code_signs(Coder *coder, int decoding, const Walk *walk, const Signed *list, int count, const int *scale,
                              int32_t *codes, int64_t stride) {
    const int line = (int)(walk->shape->width + 2) * ABREAST;
    const uint32_t positions = (uint32_t)walk->shape->positions;
    const Position *const table = walk->table;
    uint32_t *const signs = walk->model->sign;
    int32_t *const values = walk->frame->value;
    for (int k = 0; k < count; k++) {
        int row = list[k].row, position = list[k].position;
        int32_t *value = &values[table[position].cell + row];
        int32_t pull = 4 * (value[-ABREAST] + value[-line]) - value[-line - ABREAST];
        int32_t back = -(pull < 0);
        uint32_t strength = (uint32_t)((pull ^ back) - back) * (uint32_t)*value * positions;
        int bin = (eighths(strength | 1) - scale[row]) >> 2;
        bin = bin < 0 ? 0 : bin < BINS ? bin : BINS - 1;
        int32_t *code = codes + row * stride + position;
        uint32_t *state = &signs[table[position].signs + (uint32_t)bin];
        int agrees = code_adaptive(coder, decoding, state, decoding ? 0 : (*code < 0) == -back);
        int32_t negative = ~(-agrees ^ back); /* all ones for a negative code */
        *value = (*value ^ negative) - negative;
        if (decoding) *code = ((int32_t)list[k].magnitude ^ negative) - negative;
    }
}

/* The signs of codes without a neighbour that is not 0: raw bits. */
ALWAYS_INLINE void code_lone_signs(Coder *coder, int decoding, const Walk *walk, const Signed *list, int count, int32_t *codes,
                                   int64_t stride) {
    for (int k = 0; k < count; k++) {
        if (k % 32 == 0) renew_raw(coder, decoding);
        int32_t *value = &walk->frame->value[walk->table[list[k].position].cell + list[k].row];
        int32_t *code = codes + list[k].row * stride + list[k].position;
        int32_t negative = -(int32_t)code_raw(coder, decoding, decoding ? 0 : *code < 0, 1);
        *value = (*value ^ negative) - negative;
        if (decoding) *code = ((int32_t)list[k].magnitude ^ negative) - negative;
    }
}

/* `rows` <= ABREAST rows of kernels, the first of them at `codes`. */
ALWAYS_INLINE void code_kernels(Coder *caller, int decoding, Walk *walk, const int rows, int is_first, int32_t *codes) {
    Coder own = *caller, *coder = &own;
    Model *const model = walk->model;
    Frame *const frame = walk->frame;
    const Position *const table = walk->table;
    const int shift = walk->shape->shift;
    uint16_t bounds[24] = {0};
    const int64_t inputs = walk->shape->inputs;
    const int positions = (int)walk->shape->positions, width = (int)walk->shape->width, line = (width + 2) * ABREAST;
    const int64_t stride = inputs * positions;
    const uint32_t each = ONE / (uint32_t)positions;
    uint32_t row[ABREAST];
    for (int j = 0; j < rows; j++) row[j] = walk->global;
    Signed list[POSITIONS * ABREAST], lone[POSITIONS * ABREAST];
    for (int64_t i = 0; i < inputs; i++, codes += positions) {
        uint32_t column = is_first ? walk->global : walk->columns[i], rough[ABREAST], energy[ABREAST] = {0}, squares[ABREAST] = {0};
        uint32_t column_level = level_number(column);
        for (int j = 0; j < rows; j++) /* every other row of a set */
            rough[j] = (level_number(row[j]) + column_level + 1) / 4 * 2 * (uint32_t)sizeof(Row);
        int count = 0, alone = 0;
        for (int p = 0; p < positions; p++) {
            const Position *here = &table[p];
            int32_t *near = &frame->near[here->cell];
            UNROLLED
            for (int j = 0; j < rows; j++) {
                uint32_t expected = (uint32_t)near[j] * here->near + energy[j] * here->energy;
                Row *states = row_at(model, here->set + level_offset(expected) + rough[j]);
                Magnitude m = code_magnitude(coder, decoding, walk, bounds, shift, states, rough[j], codes[j * stride + p]);
                if (!m.magnitude) continue;
                int32_t u = (int32_t)m.capped;
                list[count] = lone[alone] = (Signed){m.magnitude, (uint16_t)p, (uint16_t)j};
                int meets = near[j] != 0;
                count += meets;
                alone += !meets;
                near[j + ABREAST] += 2 * u;
                near[j + line - ABREAST] += u;
                near[j + line] += 2 * u;
                near[j + line + ABREAST] += u;
                frame->value[here->cell + j] = u;
                energy[j] += m.capped;
                squares[j] += m.capped * m.capped;
            }
        }
        uint32_t sum = 0;
        for (int j = 0; j < rows; j++) {
            uint32_t mean = energy[j] * each;
            row[j] += (uint32_t)((int32_t)(mean - row[j]) >> 2);
            sum += mean;
        }
        walk->columns[i] = column + (uint32_t)((int32_t)(sum - (uint32_t)rows * column) >> 3);
        walk->global += (uint32_t)((int32_t)(sum - (uint32_t)rows * walk->global) >> 5);
        if (!(count + alone)) continue;
        code_lone_signs(coder, decoding, walk, lone, alone, codes, stride);
        int scale[ABREAST];
        for (int j = 0; j < rows; j++) scale[j] = eighths(5 * squares[j] + 2 * (uint32_t)positions) - 32;
        code_signs(coder, decoding, walk, list, count, scale, codes, stride);
        size_t cells = (size_t)(positions / width + 2) * (size_t)(width + 2);
        memset(frame->near, 0, cells * ABREAST * sizeof(int32_t));
        memset(frame->value, 0, cells * ABREAST * sizeof(int32_t));
    }
    *caller = own;
}

/* The same for weights without kernels. */
ALWAYS_INLINE void code_plain(Coder *caller, int decoding, Walk *walk, const int rows, int is_first, int32_t *codes) {
    Coder own = *caller, *coder = &own;
    Model *const model = walk->model;
    const int shift = walk->shape->shift;
    uint16_t bounds[24] = {0};
    const int64_t inputs = walk->shape->inputs;
    uint32_t row[ABREAST];
    for (int j = 0; j < rows; j++) row[j] = walk->global;
    for (int64_t i = 0; i < inputs; i++) {
        uint32_t column = is_first ? walk->global : walk->columns[i], sum = 0;
        uint32_t column_level = level_offset(column) / LEVELS;
        renew_raw(coder, decoding); /* as many signs as there are rows, at least */
        UNROLLED
        for (int j = 0; j < rows; j++) {
            int32_t *code = &codes[j * inputs + i];
            Row *states = row_at(model, level_offset(row[j]) + column_level);
            int32_t given = decoding ? 0 : *code;
            uint32_t mean = 0;
            Magnitude m = code_magnitude(coder, decoding, walk, bounds, shift, states, column_level, given);
            if (m.magnitude) {
                int32_t negative = -(int32_t)code_raw(coder, decoding, given < 0, 1);
                if (decoding) *code = ((int32_t)m.magnitude ^ negative) - negative;
                mean = m.capped * ONE;
            }
            row[j] += (uint32_t)((int32_t)(mean - row[j]) >> 4);
            sum += mean;
        }
        walk->columns[i] = column + (uint32_t)((int32_t)(sum - (uint32_t)rows * column) >> 4);
        walk->global += (uint32_t)((int32_t)(sum - (uint32_t)rows * walk->global) >> 8);
    }
    *caller = own;
}

/* Codes the whole weight; whether it can be one. `codes` are all 0 where they are decoded. */
ALWAYS_INLINE int code_weight(Coder *coder, int decoding, Walk *walk, int32_t *codes) {
    const Shape *shape = walk->shape;
    const int64_t stride = shape->inputs * shape->positions, whole = shape->outputs - shape->outputs % ABREAST;
    walk->global = shape->start;
    for (int64_t o = 0; o < whole; o += ABREAST, codes += ABREAST * stride) {
        if (shape->positions > 1) code_kernels(coder, decoding, walk, ABREAST, o == 0, codes);
        else code_plain(coder, decoding, walk, ABREAST, o == 0, codes);
    }
    const int rest = (int)(shape->outputs - whole);
    if (rest && shape->positions > 1) code_kernels(coder, decoding, walk, rest, whole == 0, codes);
    else if (rest) code_plain(coder, decoding, walk, rest, whole == 0, codes);
    return !walk->failed;
}

RARE int encode_weight(Coder *coder, Walk *walk, int32_t *codes) { return code_weight(coder, 0, walk, codes); }

RARE int decode_any(Coder *coder, Walk *walk, int32_t *codes) { return code_weight(coder, 1, walk, codes); }

#if defined(__GNUC__) && defined(__x86_64__)
/* The same with instructions that nearly every x86-64 of the last ten years has; some 5% faster. */
__attribute__((target("avx2,bmi,bmi2,lzcnt"))) RARE int decode_recent(Coder *coder, Walk *walk, int32_t *codes) {
    return code_weight(coder, 1, walk, codes);
}

/* Found once, by choose_decoder, when the module is loaded: to ask a virtual processor takes microseconds. */
static int recent;

/* All that decode_recent was compiled for: without lzcnt its instruction is another, and gives other numbers. */
static void choose_decoder(void) {
    unsigned int a, b, c = 0, d;
    const int counts = __get_cpuid(0x80000001u, &a, &b, &c, &d) && (c >> 5 & 1);
    recent = counts && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

static int decode_weight(Coder *coder, Walk *walk, int32_t *codes) {
    return recent ? decode_recent(coder, walk, codes) : decode_any(coder, walk, codes);
}
#else
static void choose_decoder(void) {}

static int decode_weight(Coder *coder, Walk *walk, int32_t *codes) { return decode_any(coder, walk, codes); }
#endif

#endif
