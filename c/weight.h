/* Sections of weights: a step, scales or a table of levels, and codes. docs/format.md, "Sections of scaled codes", "of levels". */
#ifndef OPQ_WEIGHT_H
#define OPQ_WEIGHT_H

#include "fast.h"
#include "header.h"
#include "values.h"

/* Smallest and largest scale of an axis, or a problem. */
static Problem check_scales(const uint8_t *scales, uint64_t count, int ends[2]) {
    int lowest = 255, highest = 0;
    for (uint64_t k = 0; k < count; k++) {
        if (scales[k] < lowest) lowest = scales[k];
        if (scales[k] > highest) highest = scales[k];
    }
    if (lowest == 0) return "scales must be from -127 to 127";
    if (lowest == 128 && highest == 128) return "scales of an axis must not all be 0";
    ends[0] += lowest - 128, ends[1] += highest - 128;
    return NULL;
}

static Problem parse_scales(Bytes *in, const opq_tensor *tensor, Values *values, uint8_t **scales) {
    const int axes = take_byte(in);
    int ends[2] = {0, 0};
    values->width = tensor->count / tensor->shape[0];
    const uint64_t rows = axes & 1 ? tensor->shape[0] : 0, columns = axes & 2 ? values->width : 0;
    if (!in->problem && (axes < 1 || axes > 3)) return "the axes that have scales must be 1, 2 or 3";
    const Bytes pack = take_counted(in);
    if (in->problem) return in->problem;
    Problem problem = decode_bytes(pack, rows + columns, scales);
    if (problem) return problem;
    if (rows) problem = check_scales(values->rows = *scales, rows, ends);
    if (columns && !problem) problem = check_scales(values->columns = *scales + rows, columns, ends);
    if (problem) return problem;
    const double lowest = scaled_step(tensor->step, ends[0]), highest = scaled_step(tensor->step, ends[1]);
    if (tensor->step < 0x1p-126f || tensor->step > 0x1p127f || lowest < 0x1p-126 || highest >= 0x1p128)
        return "the steps of all rows and columns must be normal numbers of float32";
    return NULL;
}

/* Levels from gaps: sums of gaps, of which none is 0 and the last at most `largest`. */
static Problem sum_gaps(const uint8_t *gaps, int size, int32_t count, uint64_t largest, uint64_t *levels, int direction, uint64_t sign) {
    uint64_t sum = 0;
    for (int32_t k = 0; k < count; k++, gaps += size) {
        uint64_t gap = 0;
        for (int byte = 0; byte < size; byte++) gap = gap << 8 | gaps[place_of_byte(size, byte)];
        if (!gap || gap > largest - sum) return "levels must be strictly ascending and finite in their dtype";
        sum += gap;
        levels[direction * (k + 1)] = sign ? (sum - 1) | sign : sum;
    }
    return NULL;
}

static Problem parse_levels(Bytes *in, const opq_tensor *tensor, Values *values, uint64_t **table) {
    const int size = dtypes[tensor->dtype].bytes;
    const uint64_t infinity = tensor->dtype == OPQ_FLOAT16   ? 0x7C00
                              : tensor->dtype == OPQ_BFLOAT16 ? 0x7F80
                              : tensor->dtype == OPQ_FLOAT32  ? 0x7F800000
                                                              : (uint64_t)0x7FF << 52;
    const uint64_t most = tensor->count < 65536 ? tensor->count : 65536;
    const uint64_t positives = take_varint(in, most), negatives = take_varint(in, most - positives);
    const Bytes pack = take_counted(in);
    if (in->problem) return in->problem;
    if (!(positives + negatives)) return "the table must have at least one level";
    uint8_t *gaps = NULL;
    Words words = {size, 0, 0, positives + negatives, 0};
    Problem problem = decode_pack(pack, &words, 1, &gaps);
    if (problem) return problem;
    *table = (uint64_t *)allocate(positives + negatives + 1, sizeof **table);
    if (*table) {
        uint64_t *const levels = *table + negatives;
        values->levels = levels, values->positives = (int32_t)positives, values->negatives = (int32_t)negatives;
        problem = sum_gaps(gaps, size, values->positives, infinity - 1, levels, 1, 0);
        const uint64_t sign = (uint64_t)1 << (8 * size - 1);
        if (!problem)
            problem = sum_gaps(gaps + (uint64_t)size * positives, size, values->negatives, infinity, levels, -1, sign);
    } else {
        problem = OUT_OF_MEMORY;
    }
    free(gaps);
    return problem;
}

/* Decodes a weight to its dtype, or to its codes. */
static Problem decode_weight(Bytes in, const opq_tensor *tensor, int to_codes, void *output) {
    Values values = {output, tensor->dtype, tensor->step, 0, NULL, NULL, NULL, 0, 0};
    Sink sink = {take_steps, &values};
    uint8_t *scales = NULL;
    uint64_t *table = NULL;
    Problem problem = NULL;
    if (tensor->storage == OPQ_SCALED) {
        sink.take = take_scaled;
        problem = parse_scales(&in, tensor, &values, &scales);
    } else if (tensor->storage == OPQ_LEVELS) {
        sink.take = take_levels;
        problem = parse_levels(&in, tensor, &values, &table);
    }
    if (to_codes) sink.take = take_plain;
    const Bytes codes = take_rest(&in);
    if (!problem) problem = in.problem;
    if (!problem && table && follows_trellis(codes)) problem = "codes of a table of levels cannot follow the trellis";
    if (!problem) problem = decode_codes(codes, tensor, sink);
    free(scales), free(table);
    return problem;
}

#endif
