/* Bytes of auxiliary tensors, one byte plane at a time: each bit the mean of three adaptive predictions, whose contexts are the
 * bits of the byte so far alone, with the byte before, and with the byte of the plane above at the same place. */
#ifndef OPQ_BYTE_MODEL_H
#define OPQ_BYTE_MODEL_H

#include "code_model.h"

typedef struct {
    uint32_t alone[256], before[256 * 256], above[256 * 256];
} ByteModel;

ALWAYS_INLINE int code_mixed_bit(RangeCoder *coder, int decoding, uint32_t *a, uint32_t *b, uint32_t *c, int bit) {
    bit = code_bit(coder, decoding, bit, bit_probability(((*a >> 16) + (*b >> 16) + (*c >> 16)) * 21845u >> 16)); /* under 2^32 before >> */
    update_bit(a, bit);
    update_bit(b, bit);
    update_bit(c, bit);
    return bit;
}

static inline void code_plane(RangeCoder *coder, int decoding, ByteModel *model, const uint8_t *above, uint8_t *plane,
                              int64_t count) {
    reset_bits(model->alone, 256);
    reset_bits(model->before, 256 * 256);
    reset_bits(model->above, 256 * 256);
    uint32_t last = 0;
    for (int64_t k = 0; k < count; k++) {
        uint32_t value = plane[k], node = 1, upper = above ? above[k] : 0;
        for (int bit = 7; bit >= 0; bit--) {
            refill(coder, decoding);
            node = node << 1 | (uint32_t)code_mixed_bit(coder, decoding, &model->alone[node], &model->before[last << 8 | node],
                                                   &model->above[upper << 8 | node], value >> bit & 1);
        }
        plane[k] = (uint8_t)node;
        last = plane[k];
    }
}

#endif
