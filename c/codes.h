/* Sections of codes -> codes, in pieces that follow each other. docs/format.md, "Sections of codes". */
#ifndef OPQ_CODES_H
#define OPQ_CODES_H

#include "bytes.h"
#include "opq.h"
#include "workspace.h"

static const char NO_END[] = "the data do not end with the last weight";
static const char NO_KERNELS[] = "codes of a weight with kernels cannot follow the trellis";

/* Takes `count` codes, of which the first is at `start` of the weight, row-major. */
typedef Problem (*TakeCodes)(void *to, uint64_t start, const int32_t *codes, size_t count);

typedef struct {
    TakeCodes take;
    void *to;
} Sink;

/* A weight as rows of kernels, without what the first byte of its section says. */
static Shape shape_of(const opq_tensor *tensor) {
    Shape shape;
    memset(&shape, 0, sizeof shape);
    shape.outputs = tensor->rank > 1 ? tensor->shape[0] : 1;
    shape.inputs = tensor->rank ? tensor->shape[tensor->rank > 1] : 1;
    shape.positions = 1;
    for (int axis = 2; axis < tensor->rank; axis++) shape.positions *= tensor->shape[axis];
    shape.width = shape.positions > 1 ? tensor->shape[tensor->rank - 1] : 1;
    if (shape.positions > MAX_POSITIONS) {
        shape.outputs *= shape.inputs, shape.inputs = shape.positions;
        shape.positions = shape.width = 1;
    }
    return shape;
}

/* Streams after their lengths; the last one has none. */
typedef struct {
    Bytes lengths, streams;
} Streams;

static Streams take_streams(Bytes *in, uint64_t count) {
    Streams all = {*in, *in};
    for (uint64_t k = 1; k < count && !in->problem; k++) take_varint(in, INT64_MAX);
    all.streams = take_rest(in);
    return all;
}

static Bytes next_stream(Streams *all, int is_last) {
    if (is_last) return take_rest(&all->streams);
    const uint64_t length = take_varint(&all->lengths, INT64_MAX);
    const uint8_t *data = take(&all->streams, length);
    Bytes stream = {data, data ? (size_t)length : 0, 0, all->streams.problem};
    return stream;
}

/* The first problem of lengths or streams, before any of them is decoded. */
static Problem check_streams(Streams all, uint64_t count) {
    for (uint64_t k = 1; k < count && !all.streams.problem; k++) next_stream(&all, 0);
    return all.streams.problem;
}

static Problem decode_stream(Bytes stream, const Shape *shape, int32_t *codes) {
    Workspace *work = new_workspace(shape, codes);
    if (!work) return OUT_OF_MEMORY;
    BandState *band = &work->band;
    band->coder = start_decoder(stream.data, stream.size);
    decode_bands(band);
    const int valid = !band->out_of_range && consumed_exactly(&band->coder);
    free(work);
    return valid ? NULL : NO_END;
}

static Problem decode_adaptive(Bytes in, Shape shape, Sink sink) {
    const int64_t row = shape.inputs * shape.positions, limit = (int64_t)1 << 22, outputs = shape.outputs;
    const int64_t height = row < limit ? limit / row : 1;
    const uint64_t count = (uint64_t)((outputs + height - 1) / height);
    const int first = take_byte(&in);
    shape.outputs = outputs < height ? outputs : height;
    if (!complete_shape(&shape, first, 4 * shape.outputs * row)) return NO_KERNELS;
    Streams all = take_streams(&in, count);
    Problem problem = in.problem ? in.problem : check_streams(all, count);
    if (problem) return problem;
    int32_t *codes = (int32_t *)allocate((uint64_t)(shape.outputs * row), sizeof *codes);
    if (!codes) return OUT_OF_MEMORY;
    for (int64_t top = 0; top < outputs && !problem; top += height) {
        if (outputs - top < height) shape.outputs = outputs - top;
        const size_t size = (size_t)(shape.outputs * row);
        problem = decode_stream(next_stream(&all, top + height >= outputs), &shape, codes);
        if (!problem) problem = sink.take(sink.to, (uint64_t)(top * row), codes, size);
    }
    free(codes);
    return problem;
}

/* A section without bytes: all codes are 0. */
static Problem all_zero(uint64_t count, Sink sink) {
    static const int32_t zeros[4096];
    Problem problem = NULL;
    for (uint64_t at = 0; at < count && !problem; at += 4096)
        problem = sink.take(sink.to, at, zeros, (size_t)(count - at < 4096 ? count - at : 4096));
    return problem;
}

#endif
