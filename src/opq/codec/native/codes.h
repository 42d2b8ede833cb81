/* The walk over a weight's codes, the same for both directions. */
#ifndef OPQ_CODES_H
#define OPQ_CODES_H

#include "code_model.h"

typedef struct {
    int64_t outputs, inputs, positions, width; /* positions <= 128 */
    int shift;                                 /* low bits of a magnitude that go raw */
} Shape;

typedef struct {
    uint8_t left, up, up_left, up_right; /* whether these neighbours exist in the kernel */
    uint32_t share;                      /* 65536 over the neighbours' total weight */
    uint32_t mean;                       /* 65536 over the number of positions before this one */
    int place;                           /* position, squeezed into PLACES */
} Position;

static void describe(Position *table, const Shape *shape) {
    for (int64_t p = 0; p < shape->positions; p++) {
        int64_t y = p / shape->width, x = p % shape->width;
        Position *here = &table[p];
        here->left = x > 0;
        here->up = y > 0;
        here->up_left = x > 0 && y > 0;
        here->up_right = y > 0 && x + 1 < shape->width;
        uint32_t total = 2u * here->left + 2u * here->up + here->up_left + here->up_right + (p > 0);
        here->share = total ? 65536u / total : 0;
        here->mean = p ? 65536u / (uint32_t)p : 0;
        here->place = (int)(shape->positions <= PLACES ? p : p * PLACES / shape->positions);
    }
}

static inline uint32_t capped(int32_t code) {
    uint32_t m = code < 0 ? 0u - (uint32_t)code : (uint32_t)code;
    return m < CAP ? m : CAP;
}

ALWAYS_INLINE int code_sign(Coder *coder, int decoding, Model *model, const Shape *shape, const Position *here, const int32_t *at,
                            int64_t sum, int large, int negative) {
    if (shape->positions == 1) return code_even(coder, decoding, negative, 32768);
    int32_t left = here->left ? at[-1] : 0, up = here->up ? at[-shape->width] : 0;
    int32_t up_left = here->up_left ? at[-shape->width - 1] : 0, up_right = here->up_right ? at[-shape->width + 1] : 0;
    int64_t pull = 2 * ((int64_t)left + up);
    int32_t near = (int32_t)(pull > CAP ? CAP : pull < -CAP ? -CAP : pull), all = (int32_t)(sum > CAP ? CAP : sum < -CAP ? -CAP : sum);
    uint32_t *states[SIGN_MODELS] = {
        &model->sign[(((trit(left) * 3 + trit(up)) * 3 + trit(up_left)) * 3 + trit(up_right)) * PLACES + here->place],
        &model->sign[SIGN_FIRST + (signed_octave(near) * PLACES + here->place) * 2 + large],
        &model->sign[SIGN_FIRST + SIGN_OTHER + (signed_octave(all) * PLACES + here->place) * 2 + large],
    };
    return code_mixed(coder, decoding, states, model->weights[here->place], negative);
}

ALWAYS_INLINE uint32_t code_magnitude(Coder *coder, int decoding, Model *model, uint32_t *a, uint32_t *b, uint32_t *c, int shift,
                                      uint32_t magnitude) {
    uint32_t rest = magnitude - (magnitude > 0), high = magnitude ? 1 + (rest >> shift) : 0, count = 0;
    for (; count < UNARY && code_mean(coder, decoding, a, b, c, high > count); count++) a += CONTEXTS, b += CONTEXTS, c += CONTEXTS;
    if (count == 0) return 0;
    if (count == UNARY) count += code_tail(coder, decoding, model->tail, high - UNARY);
    if ((count - 1) >> (24 - shift)) return 1u << 24; /* only damaged data lead here */
    return ((count - 1) << shift | code_raw(coder, decoding, rest & ((1u << shift) - 1), shift)) + 1;
}

/* The walk, for weights with kernels or without, with raw bits or without. */
ALWAYS_INLINE int code_kind(Coder *caller, int decoding, int kernel, int raw, Model *model, const Shape *of, const Position *table,
                            uint32_t *columns, int32_t *codes) {
    const Shape copy = {of->outputs, of->inputs, kernel ? of->positions : 1, of->width, raw ? of->shift : 0}, *shape = &copy;
    const int slow = kernel ? 5 : 4;
    Coder own = *caller, *coder = &own;
    uint32_t global = ONE;
    for (int64_t o = 0; o < shape->outputs; o++) {
        uint32_t row = global, m = 0;
        for (int64_t i = 0; i < shape->inputs; i++) {
            int32_t *at = codes + (o * shape->inputs + i) * shape->positions;
            uint32_t column = o ? columns[i] : global;
            uint64_t energy = 0;
            int64_t sum = 0;
            for (int64_t p = 0; p < shape->positions; p++, at++) {
                const Position *here = &table[p];
                int row_level = level(row), column_level = level(column), first, expected;
                if (kernel && here->share) {
                    uint64_t near = (energy << 12) * here->mean >> 16;
                    if (here->left) near += (uint64_t)m << 13;
                    if (here->up) near += (uint64_t)capped(at[-shape->width]) << 13;
                    if (here->up_left) near += (uint64_t)capped(at[-shape->width - 1]) << 12;
                    if (here->up_right) near += (uint64_t)capped(at[-shape->width + 1]) << 12;
                    near = near * here->share >> 16;
                    expected = level((uint32_t)((2 * near + row + column) >> 2));
                    first = level((uint32_t)near) * LEVELS + ((row_level + column_level + 1) >> 1);
                } else {
                    expected = level((row + column) >> 1);
                    first = kernel ? LEVELS * LEVELS + ((row_level + column_level + 1) >> 1) : row_level * LEVELS + column_level;
                }
                int before = kernel ? i ? octave(capped(at[-shape->positions]) >> shape->shift) : 0 : octave(m >> shape->shift);
                int above = o ? octave(capped(at[-shape->inputs * shape->positions]) >> shape->shift) : 0;
                uint32_t *a = &model->magnitude[first];
                uint32_t *b = &model->magnitude[FIRST_SET + here->place * LEVELS + expected];
                uint32_t *c = &model->magnitude[FIRST_SET + SECOND_SET + (before * 8 + above) * LEVELS + expected];
                int32_t code = decoding ? 0 : *at;
                uint32_t magnitude = code < 0 ? 0u - (uint32_t)code : (uint32_t)code;
                magnitude = code_magnitude(coder, decoding, model, a, b, c, shape->shift, magnitude);
                if (decoding && magnitude >= 1u << 24) return -1;
                if (magnitude) {
                    int negative = code_sign(coder, decoding, model, shape, here, at, sum, magnitude > 1u << shape->shift, code < 0);
                    if (decoding) code = negative ? -(int32_t)magnitude : (int32_t)magnitude;
                } else {
                    code = 0;
                }
                if (decoding) *at = code; /* what is encoded may be read-only */
                m = magnitude < CAP ? magnitude : CAP;
                energy += m;
                sum += code;
                int32_t fixed = (int32_t)(m << 12);
                row += (uint32_t)((fixed - (int32_t)row) >> slow);
                column += (uint32_t)((fixed - (int32_t)column) >> slow);
                global += (uint32_t)((fixed - (int32_t)global) >> 8);
            }
            columns[i] = column;
        }
    }
    *caller = own;
    return own.stream->failed ? -2 : 0;
}

/* Codes the whole weight; 0, -1 when a decoded magnitude is out of range, -2 without memory. `columns` holds `inputs` numbers. */
ALWAYS_INLINE int code_weight(Coder *coder, int decoding, Model *model, const Shape *shape, const Position *table, uint32_t *columns,
                              int32_t *codes) {
    if (shape->shift) return code_kind(coder, decoding, shape->positions > 1, 1, model, shape, table, columns, codes);
    if (shape->positions > 1) return code_kind(coder, decoding, 1, 0, model, shape, table, columns, codes);
    return code_kind(coder, decoding, 0, 0, model, shape, table, columns, codes);
}

#endif
