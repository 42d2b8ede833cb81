/* The functions of opq.h. The entropy decoder is that of the Python package (src/opq/codec/native); `make c` makes one file of all.
 *
 *     bytes.h    bounds-checked reading; checksums are those of codec/native/crc32.h
 *     inflate.h  raw deflate: with zlib (-lz), or with OPQ_OWN_INFLATE without it
 *     header.h   the header of a file             docs/format.md, "Header"
 *     pack.h     auxiliary tensors                "Packs of auxiliary tensors"
 *     codes.h    codes; fast.h: fast sections     "Sections of codes", "Fast sections"
 *     values.h   rounding                         "Values"
 *     weight.h   steps, scales, levels            "Sections of scaled codes", "Sections of levels"
 */
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function" /* those that encode */
#endif

#include "crc32.h"
#include "header.h"
#include "pack.h"
#include "weight.h"

enum { NOT_READY, STARTING, READY };

static int readiness;

struct opq_file {
    const uint8_t *bytes;
    size_t size;
    Header header;
    /* the pack that was decoded last: its section, or NONE; its words and where each tensor's begin, or what is wrong with it */
    uint32_t pack;
    uint8_t *words;
    size_t *offsets; /* of each tensor of the file; those of the pack are set */
    Problem pack_problem;
};

/* Constant tables are computed once, whichever thread comes first. */
static void make_ready(void) {
    int expected = NOT_READY;
    if (__atomic_compare_exchange_n(&readiness, &expected, STARTING, 0, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)) {
        init_crc();
        init_tables();
        detect_avx2();
        fast_init();
        __atomic_store_n(&readiness, READY, __ATOMIC_RELEASE);
    }
    while (__atomic_load_n(&readiness, __ATOMIC_ACQUIRE) != READY) {
    }
}

/* Appends as much of a text as the message has space for, without cutting a character of UTF-8. */
static void append_text(opq_error *error, size_t *at, const char *text, size_t length) {
    const size_t space = sizeof error->message - 1 - *at;
    if (length > space) {
        length = space;
        while (length && ((unsigned char)text[length] & 0xC0) == 0x80) length--;
    }
    memcpy(error->message + *at, text, length);
    *at += length;
    error->message[*at] = 0;
}

static opq_status report(opq_error *error, const char *where, const opq_tensor *tensor, Problem problem) {
    const opq_status status = problem == OUT_OF_MEMORY ? OPQ_OUT_OF_MEMORY : OPQ_INVALID;
    if (!error) return status;
    size_t at = 0;
    error->status = status;
    if (status == OPQ_INVALID) append_text(error, &at, "not a valid .opq file: ", 23);
    append_text(error, &at, where, strlen(where));
    if (tensor) {
        append_text(error, &at, " '", 2);
        append_text(error, &at, tensor->name, tensor->name_length < 200 ? tensor->name_length : 200);
        append_text(error, &at, "'", 1);
    }
    append_text(error, &at, ": ", 2);
    append_text(error, &at, problem, strlen(problem));
    return status;
}

static opq_status misuse(opq_error *error, const char *problem) {
    size_t at = 0;
    if (error) {
        append_text(error, &at, problem, strlen(problem));
        error->status = OPQ_MISUSE;
    }
    return OPQ_MISUSE;
}

static opq_status no_error(opq_error *error) {
    if (error) error->status = OPQ_OK, error->message[0] = 0;
    return OPQ_OK;
}

uint64_t opq_tensor_bytes(const opq_file *file, size_t tensor) {
    if (tensor >= file->header.count) return 0;
    const opq_tensor *of = &file->header.tensors[tensor];
    return (uint64_t)of->count * dtypes[of->dtype].bytes;
}

/* Parses a file; `where` becomes the part that has a problem. */
static Problem open_file(opq_file *file, uint64_t max_bytes, const char **where) {
    Bytes in = bytes_of(file->bytes, file->size);
    *where = "start";
    if (file->size >= 3 && !memcmp(file->bytes, "OPD", 3)) return "it is a delta; expand it with its base first (opq expand)";
    if (file->size < 3 || memcmp(file->bytes, "OPQ", 3)) return "expected OPQ";
    if (file->size < 12) return "expected at least 12 bytes";
    take(&in, 3);
    if (take_byte(&in) != 1) return "this is another version of the format than 1; install another version of opq";
    const uint32_t length = take_word(&in), expected = take_word(&in);
    *where = "header";
    const uint8_t *packed = take(&in, length);
    if (!packed) return "it ends beyond the end of the file; is it truncated?";
    if (checksum(checksum(0, file->bytes, 8), packed, length) != expected) return "the checksum does not match: the file is damaged";
    const Problem problem = parse_header(bytes_of(packed, length), &file->header);
    if (problem) return problem;
    *where = "sections";
    for (size_t k = 0; k < file->header.num_sections; k++)
        if (!(file->header.sections[k].data = take(&in, file->header.sections[k].length))) break;
    if (end_of(&in)) return "they do not end where the file ends; is it truncated?";
    uint64_t decoded = 0;
    for (size_t k = 0; k < file->header.count; k++) decoded += opq_tensor_bytes(file, k);
    *where = "header";
    if (decoded > (max_bytes ? max_bytes : ((uint64_t)1 << 26) + 4096 * (uint64_t)file->size))
        return "the tensors have too many bytes; see max_bytes";
    file->offsets = (size_t *)allocate(file->header.count, sizeof *file->offsets);
    return file->offsets ? NULL : OUT_OF_MEMORY;
}

opq_file *opq_open(const void *bytes, size_t size, uint64_t max_bytes, opq_error *error) {
    make_ready();
    const char *where = "start";
    opq_file *file = (opq_file *)calloc(1, sizeof *file);
    if (!file) {
        report(error, where, NULL, OUT_OF_MEMORY);
        return NULL;
    }
    file->bytes = (const uint8_t *)bytes, file->size = size, file->pack = NONE;
    const Problem problem = open_file(file, max_bytes, &where);
    if (problem) {
        report(error, where, NULL, problem);
        opq_close(file);
        return NULL;
    }
    no_error(error);
    return file;
}

void opq_close(opq_file *file) {
    if (!file) return;
    free_header(&file->header);
    free(file->words), free(file->offsets);
    free(file);
}

size_t opq_count(const opq_file *file) { return file->header.count; }
size_t opq_metadata_count(const opq_file *file) { return file->header.num_metadata; }

const opq_tensor *opq_tensor_at(const opq_file *file, size_t tensor) {
    return tensor < file->header.count ? &file->header.tensors[tensor] : NULL;
}

const opq_metadata *opq_metadata_at(const opq_file *file, size_t pair) {
    return pair < file->header.num_metadata ? &file->header.metadata[pair] : NULL;
}

const char *opq_dtype_name(opq_dtype dtype) { return (unsigned)dtype < NUM_DTYPES ? dtypes[dtype].name : "unknown"; }

size_t opq_find(const opq_file *file, const char *name) {
    size_t low = 0, high = file->header.count;
    const size_t length = strlen(name);
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const opq_tensor *tensor = &file->header.tensors[middle];
        const int order = compare_text((const uint8_t *)tensor->name, tensor->name_length, (const uint8_t *)name, length);
        if (order == 0) return middle;
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return file->header.count;
}

/* The bytes of a section; its checksum is checked once. */
static Bytes section_bytes(opq_file *file, uint32_t number) {
    Section *section = &file->header.sections[number];
    Bytes bytes = bytes_of(section->data, (size_t)section->length);
    if (!section->checked) {
        if (checksum(0, section->data, bytes.size) != section->checksum)
            section->problem = "the checksum does not match: the file is damaged";
        section->checked = 1;
    }
    bytes.problem = section->problem;
    return bytes;
}

/* Decodes the pack of a section, unless it was the last one. */
static Problem use_pack(opq_file *file, uint32_t number) {
    const Header *header = &file->header;
    size_t count = 0, k = 0;
    if (file->pack == number) return file->pack_problem;
    free(file->words);
    file->words = NULL, file->pack = number;
    const Bytes in = section_bytes(file, number);
    if ((file->pack_problem = in.problem)) return in.problem;
    for (uint32_t of = header->sections[number].first; of != NONE; of = header->members[of].next) count++;
    Words *words = (Words *)allocate(count, sizeof *words);
    if (!words) {
        file->pack = NONE;
        return OUT_OF_MEMORY;
    }
    for (uint32_t of = header->sections[number].first; of != NONE; of = header->members[of].next, k++) {
        const opq_tensor *tensor = &header->tensors[of];
        const opq_dtype dtype = has_bounds(tensor) ? OPQ_UINT8 : tensor->storage == OPQ_HALF ? OPQ_FLOAT16 : tensor->dtype;
        const int parts = dtypes[dtype].bytes == 16 ? 2 : 1;
        words[k].size = dtypes[dtype].bytes / parts, words[k].count = (uint64_t)tensor->count * (uint64_t)parts;
        words[k].rotated = dtypes[dtype].rotated, words[k].largest = dtypes[dtype].largest;
    }
    file->pack_problem = decode_pack(in, words, count, &file->words);
    k = 0;
    for (uint32_t of = header->sections[number].first; of != NONE; of = header->members[of].next)
        file->offsets[of] = words[k++].offset;
    free(words);
    if (file->pack_problem == OUT_OF_MEMORY) file->pack = NONE; /* it may be tried again */
    return file->pack_problem;
}

static Problem read_auxiliary(opq_file *file, size_t number, void *output) {
    const opq_tensor *tensor = &file->header.tensors[number];
    const Member *member = &file->header.members[number];
    const Problem problem = use_pack(file, tensor->section);
    if (problem) return problem;
    const uint8_t *data = file->words + file->offsets[number];
    if (tensor->storage == OPQ_HALF) restore_half(data, tensor->count, tensor->dtype, output);
    else if (tensor->storage == OPQ_LINEAR8)
        restore_linear(data, tensor->count, member->lowest, member->highest, tensor->dtype, output);
    else if (tensor->storage == OPQ_RELATIVE8)
        restore_relative(data, tensor->count, member->lowest, member->highest, tensor->dtype, output);
    else memcpy(output, data, (size_t)opq_tensor_bytes(file, number));
    return NULL;
}

static opq_status read_tensor(opq_file *file, size_t number, int to_codes, void *output, opq_error *error) {
    const opq_tensor *tensor = &file->header.tensors[number];
    const Bytes in = section_bytes(file, tensor->section);
    Problem problem = in.problem;
    if (!problem) problem = is_weight(tensor) ? decode_weight(in, tensor, to_codes, output) : read_auxiliary(file, number, output);
    return problem ? report(error, "tensor", tensor, problem) : no_error(error);
}

opq_status opq_read(opq_file *file, size_t tensor, void *output, size_t size, opq_error *error) {
    if (tensor >= file->header.count) return misuse(error, "there is no tensor of this number");
    if (size != opq_tensor_bytes(file, tensor)) return misuse(error, "the output must have opq_tensor_bytes bytes");
    return read_tensor(file, tensor, 0, output, error);
}

opq_status opq_read_codes(opq_file *file, size_t tensor, int32_t *output, size_t count, opq_error *error) {
    if (tensor >= file->header.count) return misuse(error, "there is no tensor of this number");
    if (!is_weight(&file->header.tensors[tensor])) return misuse(error, "the tensor has no codes");
    if (count != file->header.tensors[tensor].count) return misuse(error, "the output must have as many elements as the tensor");
    return read_tensor(file, tensor, 1, output, error);
}

#define TO_FLOAT(type)                                                        \
    for (size_t k = 0; k < count; k++) output[k] = (float)((const type *)data)[k];

static int convert(const void *data, opq_dtype dtype, float *output, size_t count) {
    switch (dtype) {
        case OPQ_BOOL: case OPQ_UINT8: TO_FLOAT(uint8_t) return 1;
        case OPQ_INT8: TO_FLOAT(int8_t) return 1;
        case OPQ_UINT16: TO_FLOAT(uint16_t) return 1;
        case OPQ_INT16: TO_FLOAT(int16_t) return 1;
        case OPQ_UINT32: TO_FLOAT(uint32_t) return 1;
        case OPQ_INT32: TO_FLOAT(int32_t) return 1;
        case OPQ_UINT64: TO_FLOAT(uint64_t) return 1;
        case OPQ_INT64: TO_FLOAT(int64_t) return 1;
        case OPQ_FLOAT64: TO_FLOAT(double) return 1;
        case OPQ_FLOAT16:
            for (size_t k = 0; k < count; k++) output[k] = float_of_half(((const uint16_t *)data)[k]);
            return 1;
        case OPQ_BFLOAT16:
            for (size_t k = 0; k < count; k++) output[k] = float_of_bfloat(((const uint16_t *)data)[k]);
            return 1;
        default: return 0;
    }
}

opq_status opq_read_float32(opq_file *file, size_t tensor, float *output, size_t count, opq_error *error) {
    if (tensor >= file->header.count) return misuse(error, "there is no tensor of this number");
    const opq_tensor *of = &file->header.tensors[tensor];
    if (count != of->count) return misuse(error, "the output must have as many elements as the tensor");
    if (of->dtype == OPQ_FLOAT32) return read_tensor(file, tensor, 0, output, error);
    if (of->dtype > OPQ_FLOAT64) return misuse(error, "this dtype is not converted to float32; read it in its own dtype");
    void *data = allocate(opq_tensor_bytes(file, tensor), 1);
    if (!data) return report(error, "tensor", of, OUT_OF_MEMORY);
    const opq_status status = read_tensor(file, tensor, 0, data, error);
    if (status == OPQ_OK) convert(data, of->dtype, output, count);
    free(data);
    return status;
}
