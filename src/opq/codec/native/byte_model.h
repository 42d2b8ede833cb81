/* Bytes of auxiliary tensors, one byte plane at a time. docs/format.md, "Packs of auxiliary tensors".
 *
 * Each bit has the mean of three adaptive probabilities. The context of all three is the bits of the byte so far; the second also
 * has the byte before, and the third the byte at the same place of the plane above, of the next higher bytes.
 */
#ifndef OPQ_BYTE_MODEL_H
#define OPQ_BYTE_MODEL_H

#include "code_model.h"

/* Bit states by their context. The bits of the byte so far are a number from 1 to 255: a 1, and these bits after it. */
typedef struct {
    uint32_t own[256], previous[256 * 256], above[256 * 256];
} ByteModel;

ALWAYS_INLINE int code_mixed_bit(RangeCoder *coder, Direction direction, uint32_t *a, uint32_t *b, uint32_t *c, int bit) {
    const uint32_t mean = ((*a >> 16) + (*b >> 16) + (*c >> 16)) * 21845u >> 16; /* a third of the sum; the product is below 2^32 */
    bit = code_bit(coder, direction, bit, bit_probability(mean));
    update_bit(a, bit);
    update_bit(b, bit);
    update_bit(c, bit);
    return bit;
}

/* `above` is NULL for the plane of the highest bytes. */
static inline void code_plane(RangeCoder *coder, Direction direction, ByteModel *model, const uint8_t *above, uint8_t *plane,
                              int64_t count) {
    uint8_t has_previous[256] = {0}, has_above[256] = {0}; /* contexts that were reset: a short plane has few of the 131,072 states */
    reset_bits(model->own, 256);
    uint32_t previous = 0;
    for (int64_t k = 0; k < count && !(direction == DECODE && UNLIKELY(is_exhausted(coder))); k++) {
        uint32_t value = plane[k], node = 1, upper = above ? above[k] : 0;
        if (!has_previous[previous]) reset_bits(model->previous + 256 * previous, 256), has_previous[previous] = 1;
        if (!has_above[upper]) reset_bits(model->above + 256 * upper, 256), has_above[upper] = 1;
        for (int bit = 7; bit >= 0; bit--) {
            refill(coder, direction);
            node = node << 1 | (uint32_t)code_mixed_bit(coder, direction, &model->own[node], &model->previous[previous << 8 | node],
                                                        &model->above[upper << 8 | node], value >> bit & 1);
        }
        plane[k] = (uint8_t)node;
        previous = plane[k];
    }
}

#endif
