/* Fast sections -> codes. docs/format.md, "Fast sections". */
#ifndef OPQ_FAST_H
#define OPQ_FAST_H

#include "codes.h"
#include "fast_decoder.h"
#include "fast_table.h"
#include "pack.h"

#define LARGEST_CODE ((1 << 24) - 1)

/* A parsed section; arrays are owned. */
typedef struct {
    FastMatrix matrix;
    uint8_t *classes;  /* of rows, then of columns */
    uint8_t *sets;     /* of each row of a stream: 0, as all rows have the same codes */
    uint32_t *tables;
    uint8_t *patches;  /* words of 32 bits: gaps, then folded codes */
    uint64_t num_patches;
    int num_tables, last; /* last: the last symbol */
    int32_t codes[2 * FAST_SYMBOLS]; /* of each symbol; of quantizer 0, then of 1 */
    Streams streams;
} FastSection;

static void free_fast(FastSection *fast) { free(fast->classes), free(fast->sets), free(fast->tables), free(fast->patches); }

/* The entries of a table, from the bytes of its symbols, `stride` apart. */
static Problem fill_table(const uint8_t *marks, int stride, int last, uint32_t *entries) {
    uint16_t shares[FAST_SYMBOLS];
    const Problem problem = fast_shares(marks, stride, 0, last, shares);
    if (problem) return problem;
    return fast_fill_tables(shares, entries, 1) ? NULL : NO_END;
}

static Problem parse_tables(Bytes *in, FastSection *fast) {
    uint8_t *marks = NULL;
    const Bytes pack = take_counted(in);
    if (in->problem) return in->problem;
    fast->tables = (uint32_t *)allocate((uint64_t)fast->num_tables * FAST_TABLE, sizeof *fast->tables);
    if (!fast->tables) return OUT_OF_MEMORY;
    Problem problem = decode_bytes(pack, (uint64_t)(fast->last + 1) * (uint64_t)fast->num_tables, &marks);
    if (problem) return problem;
    for (int table = 0; table < fast->num_tables && !problem; table++)
        problem = fill_table(marks + table, fast->num_tables, fast->last, fast->tables + table * FAST_TABLE);
    free(marks);
    return problem;
}

static uint32_t patch_word(const FastSection *fast, uint64_t k) {
    uint32_t word;
    memcpy(&word, fast->patches + 4 * k, sizeof word);
    return word;
}

static int32_t unfolded(uint32_t word) { return (int32_t)(word >> 1 ^ (0u - (word & 1))); }

static Problem parse_patches(Bytes *in, FastSection *fast, uint64_t count) {
    fast->num_patches = take_varint(in, count / 64);
    if (in->problem || !fast->num_patches) return in->problem;
    const Bytes pack = take_counted(in);
    if (in->problem) return in->problem;
    Words words = {4, 0, 0, 2 * fast->num_patches, 0};
    const Problem problem = decode_pack(pack, &words, 1, &fast->patches);
    if (problem) return problem;
    uint64_t next = 0;
    for (uint64_t k = 0; k < fast->num_patches; k++) {
        next += (uint64_t)patch_word(fast, k) + 1;
        const int64_t code = unfolded(patch_word(fast, fast->num_patches + k));
        if (code > LARGEST_CODE || code < -LARGEST_CODE) return "the magnitude of a code is too large";
    }
    return next > count ? "a patch is beyond the weight" : NULL;
}

static Problem parse_classes(Bytes *in, FastSection *fast, int contexts) {
    FastMatrix *m = &fast->matrix;
    const uint64_t rows = (uint64_t)m->rows, columns = (uint64_t)m->columns;
    m->base = contexts > 1 ? take_byte(in) : 0;
    if (contexts > 1) {
        const Bytes pack = take_counted(in);
        if (in->problem) return in->problem;
        const Problem problem = decode_bytes(pack, rows + columns, &fast->classes);
        if (problem) return problem;
    } else if (!(fast->classes = (uint8_t *)allocate(rows + columns, 1))) {
        return OUT_OF_MEMORY;
    }
    m->row_classes = fast->classes, m->column_classes = fast->classes + rows;
    return in->problem;
}

/* The code of each symbol. A table has no symbol after the last. */
static void fill_codes(FastSection *fast) {
    for (int symbol = 0; symbol < FAST_SYMBOLS; symbol++) {
        const int number = symbol <= fast->last ? symbol + fast->matrix.lowest : 0, sign = (number > 0) - (number < 0);
        fast->codes[symbol] = fast->matrix.trellis ? 2 * number : number;
        fast->codes[FAST_SYMBOLS + symbol] = 2 * number - sign;
    }
}

static Problem parse_fast(Bytes *in, const Shape *shape, FastSection *fast) {
    FastMatrix *m = &fast->matrix;
    m->rows = shape->outputs, m->columns = shape->inputs * shape->positions;
    const uint64_t count = (uint64_t)(m->rows * m->columns);
    const int first = take_byte(in), below = take_byte(in), last = take_byte(in), contexts = take_byte(in) + 1;
    if (in->problem) return in->problem;
    if (first != FAST_SECTION && first != FAST_SECTION + 32) return "the first byte of a fast section must be 31 or 63";
    m->trellis = first != FAST_SECTION, m->lowest = -below, m->contexts = contexts;
    if (m->trellis && shape->positions > 1) return NO_KERNELS;
    if (last < 1 || below > 128 || last - below > 127) return "the range of symbols must be 2 or more numbers from -128 to 127";
    if (contexts > FAST_MAX_CONTEXTS || (uint64_t)contexts > count / FAST_TABLE) return "there are too many contexts";
    fast->last = last, fast->num_tables = contexts * (m->trellis ? 2 : 1);
    Problem problem = parse_classes(in, fast, contexts);
    if (!problem) problem = parse_tables(in, fast);
    if (!problem) problem = parse_patches(in, fast, count);
    fill_codes(fast);
    return problem;
}

/* Puts the codes of patches in their places of a piece; `next` is the number of the next patch, and `place` its place. */
static void put_patches(const FastSection *fast, uint64_t *next, uint64_t *place, uint64_t start, int32_t *codes, uint64_t count) {
    for (; *next < fast->num_patches; (*next)++) {
        const uint64_t here = *place + patch_word(fast, *next);
        if (here >= start + count) return;
        codes[here - start] = unfolded(patch_word(fast, fast->num_patches + *next));
        *place = here + 1;
    }
}

static Problem decode_blocks(FastSection *fast, int64_t height, int32_t *codes, Sink sink) {
    FastMatrix *m = &fast->matrix;
    const int64_t rows = m->rows;
    uint64_t next = 0, place = 0;
    FastDecoder decoder;
    decoder.matrix = m, decoder.tables = fast->tables;
    const FastValues values = {fast->codes, fast->sets, sizeof *codes};
    for (int64_t top = 0; top < rows; top += height) {
        m->rows = rows - top < height ? rows - top : height;
        m->row_classes = fast->classes + top;
        const uint64_t start = (uint64_t)(top * m->columns), count = (uint64_t)(m->rows * m->columns);
        const Bytes stream = next_stream(&fast->streams, top + height >= rows);
        if (!fast_decode(&decoder, stream.data, stream.size, &values, (uint8_t *)codes)) return NO_END;
        put_patches(fast, &next, &place, start, codes, count);
        const Problem problem = sink.take(sink.to, start, codes, (size_t)count);
        if (problem) return problem;
    }
    return NULL;
}

static Problem decode_fast(Bytes in, const Shape *shape, Sink sink) {
    FastSection fast;
    memset(&fast, 0, sizeof fast);
    Problem problem = parse_fast(&in, shape, &fast);
    const int64_t rows = shape->outputs, columns = shape->inputs * shape->positions;
    const int64_t height = FAST_LANES * (columns < 8192 ? 8192 / columns : 1), most = rows < height ? rows : height;
    int32_t *codes = NULL;
    if (!problem) {
        const uint64_t count = (uint64_t)((rows + height - 1) / height);
        fast.streams = take_streams(&in, count);
        problem = in.problem ? in.problem : check_streams(fast.streams, count);
    }
    if (!problem) {
        codes = (int32_t *)allocate((uint64_t)(most * columns), sizeof *codes);
        fast.sets = (uint8_t *)allocate((uint64_t)most, 1);
        if (!codes || !fast.sets) problem = OUT_OF_MEMORY;
    }
    if (!problem) problem = decode_blocks(&fast, height, codes, sink);
    free(codes);
    free_fast(&fast);
    return problem;
}

/* The codes of a section of either kind. */
static Problem decode_codes(Bytes in, const opq_tensor *tensor, Sink sink) {
    const Shape shape = shape_of(tensor);
    if (!in.size) return all_zero(tensor->count, sink);
    if ((in.data[0] & 31) == FAST_SECTION) return decode_fast(in, &shape, sink);
    return decode_adaptive(in, shape, sink);
}

/* Whether the codes of a section follow the trellis. */
static int follows_trellis(Bytes in) {
    if (!in.size) return 0;
    return (in.data[0] & 31) == FAST_SECTION ? in.data[0] >> 5 == 1 : (in.data[0] & 31) > MAX_RAW_BITS;
}

#endif
