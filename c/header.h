/* The header of a file: the entries of all tensors. docs/format.md, "Header". */
#ifndef OPQ_HEADER_H
#define OPQ_HEADER_H

#include "inflate.h"
#include "opq.h"

#define LARGEST_COUNT ((uint64_t)1 << 17)
#define LARGEST_NAME 65535
#define LARGEST_NAMES ((uint64_t)1 << 24)
#define LARGEST_METADATA 4096
#define LARGEST_RANK 32
#define LARGEST_TENSOR INT32_MAX
#define NUM_DTYPES 23
#define NONE UINT32_MAX /* the number of no tensor */

/* Bytes of an element; whether its word is rotated in a pack; the largest word it may have, 0 for any. */
static const struct {
    const char *name;
    uint8_t bytes, rotated, largest;
} dtypes[NUM_DTYPES] = {
    {"bool", 1, 0, 1},          {"uint8", 1, 0, 0},           {"int8", 1, 0, 0},
    {"uint16", 2, 0, 0},        {"int16", 2, 0, 0},           {"uint32", 4, 0, 0},
    {"int32", 4, 0, 0},         {"uint64", 8, 0, 0},          {"int64", 8, 0, 0},
    {"float16", 2, 1, 0},       {"bfloat16", 2, 1, 0},        {"float32", 4, 1, 0},
    {"float64", 8, 1, 0},       {"float8_e4m3fn", 1, 1, 0},   {"float8_e5m2", 1, 1, 0},
    {"complex64", 8, 0, 0},     {"float8_e8m0fnu", 1, 1, 0},  {"float8_e4m3fnuz", 1, 1, 0},
    {"float8_e5m2fnuz", 1, 1, 0}, {"float4_e2m1fn", 1, 1, 15}, {"float6_e2m3fn", 1, 1, 63},
    {"float6_e3m2fn", 1, 1, 63}, {"complex128", 16, 1, 0},
};

typedef struct {
    uint64_t length;
    const uint8_t *data;
    uint32_t checksum, first; /* first: the number of its first tensor */
    Problem problem;          /* of its checksum, once it was checked */
    int checked;
} Section;

/* What belongs to a tensor beside the public part. */
typedef struct {
    float lowest, highest; /* bounds of an 8-bit grid */
    uint32_t next;         /* the next tensor of its section, or NONE */
} Member;

/* A parsed header; all arrays are owned. */
typedef struct {
    uint8_t *columns, *names;
    uint32_t *sizes;
    opq_tensor *tensors;
    Member *members;
    Section *sections;
    opq_metadata *metadata;
    size_t count, num_sections, num_metadata;
} Header;

static void free_header(Header *header) {
    free(header->columns), free(header->names), free(header->sizes), free(header->tensors);
    free(header->members), free(header->sections), free(header->metadata);
}

static int is_weight(const opq_tensor *tensor) {
    return tensor->storage == OPQ_CODES || tensor->storage == OPQ_LEVELS || tensor->storage == OPQ_SCALED;
}

static int has_step(const opq_tensor *tensor) { return tensor->storage == OPQ_CODES || tensor->storage == OPQ_SCALED; }
static int has_bounds(const opq_tensor *tensor) { return tensor->storage == OPQ_LINEAR8 || tensor->storage == OPQ_RELATIVE8; }

static int is_utf8(const uint8_t *text, size_t size) {
    for (size_t k = 0; k < size;) {
        const uint8_t first = text[k++];
        if (first < 0x80) continue;
        const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
        if (first < 0xC2 || first > 0xF4 || size - k < (size_t)more) return 0;
        /* The second byte excludes longer forms than needed, surrogates, and numbers above 0x10FFFF. */
        const uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80, high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
        if (text[k] < low || text[k] > high) return 0;
        for (int j = 1; j < more; j++)
            if ((text[k + (size_t)j] & 0xC0) != 0x80) return 0;
        k += (size_t)more;
    }
    return 1;
}

static int compare_text(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size) {
    const int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

static const uint8_t *take_text(Bytes *in, size_t *size) {
    const Bytes part = take_counted(in);
    *size = part.size;
    if (!in->problem && !is_utf8(part.data, part.size)) fail(in, "text must be UTF-8");
    return part.data;
}

static void parse_metadata(Bytes *in, Header *header) {
    header->num_metadata = (size_t)take_varint(in, LARGEST_METADATA);
    header->metadata = (opq_metadata *)allocate(header->num_metadata, sizeof *header->metadata);
    if (!header->metadata) fail(in, OUT_OF_MEMORY);
    for (size_t k = 0; k < header->num_metadata && !in->problem; k++) {
        opq_metadata *pair = &header->metadata[k];
        pair->key = (const char *)take_text(in, &pair->key_length);
        pair->value = (const char *)take_text(in, &pair->value_length);
        if (in->problem || k == 0) continue;
        if (compare_text((const uint8_t *)pair[-1].key, pair[-1].key_length, (const uint8_t *)pair->key, pair->key_length) >= 0)
            fail(in, "metadata keys must be in ascending order");
    }
}

/* Names share their first bytes with the name before. They are copied, each with a zero byte after it. */
static void parse_names(Bytes *in, Header *header) {
    uint64_t total = header->count;
    for (size_t k = 0; k < header->count; k++) /* `section` and `count` hold both lengths until they have values of their own */
        total += header->tensors[k].section = (uint32_t)take_varint(in, LARGEST_NAME);
    for (size_t k = 0; k < header->count; k++) total += header->tensors[k].count = (uint32_t)take_varint(in, LARGEST_NAME);
    if (total - header->count > LARGEST_NAMES) fail(in, "its names have too many bytes");
    if (in->problem) return;
    uint8_t *name = header->names = (uint8_t *)allocate(total, 1), *last = name;
    if (!name) fail(in, OUT_OF_MEMORY);
    size_t last_length = 0;
    for (size_t k = 0; k < header->count && !in->problem; k++) {
        opq_tensor *tensor = &header->tensors[k];
        const size_t shared = tensor->section, suffix = tensor->count, length = shared + suffix;
        if (shared > last_length || length > LARGEST_NAME) fail(in, "a name repeats more than the name before it has, or is too long");
        const uint8_t *rest = take(in, suffix);
        if (in->problem) return;
        memcpy(name, last, shared);
        memcpy(name + shared, rest, suffix);
        if (k && compare_text(last, last_length, name, length) >= 0) fail(in, "names must be in ascending order");
        if (!is_utf8(name, length)) fail(in, "text must be UTF-8");
        tensor->name = (const char *)name, tensor->name_length = length;
        last = name, last_length = length;
        name += length + 1;
    }
}

static void parse_shapes(Bytes *in, Header *header) {
    uint64_t total = 0;
    for (size_t k = 0; k < header->count; k++)
        total += (uint64_t)(header->tensors[k].rank = (int)take_varint(in, LARGEST_RANK));
    if (in->problem) return;
    uint32_t *size = header->sizes = (uint32_t *)allocate(total, sizeof *size);
    if (!size) fail(in, OUT_OF_MEMORY);
    for (size_t k = 0; k < header->count && !in->problem; k++) {
        opq_tensor *tensor = &header->tensors[k];
        uint64_t nonzero = 1, count = 1;
        tensor->shape = size;
        for (int axis = 0; axis < tensor->rank && !in->problem; axis++) {
            *size = (uint32_t)take_varint(in, LARGEST_TENSOR);
            count *= *size;
            nonzero *= *size ? *size : 1;
            if (nonzero > LARGEST_TENSOR) fail(in, "a tensor has too many elements");
            size++;
        }
        tensor->count = (uint32_t)count;
    }
}

/* The number of each tensor's section; tensors of one section become a list. */
static void parse_sections(Bytes *in, Header *header, uint32_t *lasts) {
    for (uint32_t k = 0; k < header->count && !in->problem; k++) {
        const uint64_t reference = take_varint(in, header->num_sections);
        const size_t section = reference ? (size_t)reference - 1 : header->num_sections++;
        header->tensors[k].section = (uint32_t)section, header->members[k].next = NONE;
        if (reference) header->members[lasts[section]].next = k;
        else header->sections[section].first = k;
        lasts[section] = k;
    }
}

static void parse_bounds(Bytes *in, Header *header) {
    uint64_t count = 0;
    for (size_t k = 0; k < header->count; k++) count += 2 * (uint64_t)has_bounds(&header->tensors[k]);
    const uint8_t *planes = take(in, 4 * count);
    for (size_t k = 0; k < header->count && planes; k++) {
        if (!has_bounds(&header->tensors[k])) continue;
        float found[2];
        for (int end = 0; end < 2; end++, planes++)
            found[end] = float_of_bits((uint32_t)planes[0] << 24 | (uint32_t)planes[count] << 16 |
                                       (uint32_t)planes[2 * count] << 8 | planes[3 * count]);
        header->members[k].lowest = found[0], header->members[k].highest = found[1];
    }
}

static int is_finite(float value) { return (bits_of_float(value) & 0x7F800000u) != 0x7F800000u; }

/* What the format does not allow of a tensor. */
static Problem check_tensor(const opq_tensor *tensor, const Member *member) {
    const int wide = tensor->dtype == OPQ_FLOAT32 || tensor->dtype == OPQ_FLOAT64;
    const int narrow = tensor->dtype == OPQ_FLOAT16 || tensor->dtype == OPQ_BFLOAT16;
    if (tensor->storage != OPQ_EXACT && !wide && (!narrow || has_bounds(tensor)))
        return "a tensor has a dtype that cannot be stored in its way";
    if (is_weight(tensor) && !tensor->count) return "an empty tensor must not be stored as codes";
    if (tensor->storage == OPQ_SCALED && !tensor->rank) return "a tensor without dimensions must not be stored as scaled codes";
    if (has_step(tensor) && !(tensor->step > 0.0f && is_finite(tensor->step))) return "a step must be positive and finite";
    if (has_bounds(tensor)) {
        const int ordered = is_finite(member->lowest) && is_finite(member->highest) && member->lowest <= member->highest;
        if (!ordered || (tensor->storage == OPQ_RELATIVE8 && !(member->lowest >= 0x1p-126f)))
            return "the bounds of a grid must be finite and ascending";
    }
    return NULL;
}

/* Whether two tensors may be in one section. */
static int may_share(const opq_tensor *a, const opq_tensor *b) {
    if (!is_weight(a) || !is_weight(b)) return !is_weight(a) && !is_weight(b);
    if (a->storage != b->storage) return 0;
    if (a->storage == OPQ_SCALED) return a->rank == b->rank && !memcmp(a->shape, b->shape, sizeof *a->shape * (size_t)a->rank);
    return a->count == b->count && (a->storage == OPQ_CODES || a->dtype == b->dtype);
}

static void parse_columns(Bytes *in, Header *header) {
    parse_metadata(in, header);
    header->count = (size_t)take_varint(in, LARGEST_COUNT);
    const size_t count = header->count;
    header->tensors = (opq_tensor *)allocate(count, sizeof *header->tensors);
    header->members = (Member *)allocate(count, sizeof *header->members);
    header->sections = (Section *)allocate(count, sizeof *header->sections);
    uint32_t *lasts = (uint32_t *)allocate(count, sizeof *lasts);
    if (!header->tensors || !header->members || !header->sections || !lasts) fail(in, OUT_OF_MEMORY);
    if (!in->problem) parse_names(in, header);
    for (size_t k = 0; k < count && !in->problem; k++)
        if ((header->tensors[k].dtype = (opq_dtype)take_byte(in)) >= NUM_DTYPES) fail(in, "unknown dtype");
    for (size_t k = 0; k < count && !in->problem; k++)
        if ((header->tensors[k].storage = (opq_storage)take_byte(in)) > OPQ_SCALED) fail(in, "unknown storage");
    if (!in->problem) parse_shapes(in, header);
    if (!in->problem) parse_sections(in, header, lasts);
    free(lasts);
    for (size_t k = 0; k < count && !in->problem; k++)
        if (has_step(&header->tensors[k])) header->tensors[k].step = float_of_bits(take_word(in));
    if (!in->problem) parse_bounds(in, header);
    for (size_t k = 0; k < header->num_sections && !in->problem; k++) header->sections[k].length = take_varint(in, INT64_MAX);
    for (size_t k = 0; k < header->num_sections && !in->problem; k++) header->sections[k].checksum = take_word(in);
    end_of(in);
    for (size_t k = 0; k < count && !in->problem; k++) {
        const Problem problem = check_tensor(&header->tensors[k], &header->members[k]);
        if (problem) fail(in, problem);
        else if (!may_share(&header->tensors[header->sections[header->tensors[k].section].first], &header->tensors[k]))
            fail(in, "a section must not hold tensors of two kinds or sizes");
    }
}

/* Inflates and parses a header; it must be freed even if there is a problem. */
static Problem parse_header(Bytes packed, Header *header) {
    size_t length = 0;
    memset(header, 0, sizeof *header);
    const Problem problem = inflate_stream(packed, &header->columns, &length);
    if (problem) return problem;
    Bytes in = bytes_of(header->columns, length);
    parse_columns(&in, header);
    return in.problem;
}

#endif
