/* The C reader for WebAssembly: the functions of the C library that it needs, and opq.h with numbers for arguments and results.
 *
 * Built without a C library: clang --target=wasm32 -nostdlib (see build.sh). */
#include <stddef.h>
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(#name), used))
#define PAGE 65536u
#define ALIGNMENT 16u

/* A block of memory, and behind this its bytes. Free blocks are a list in order of their addresses. */
typedef struct Block {
    size_t size; /* of the bytes, a multiple of ALIGNMENT */
    struct Block *next;
    size_t unused[2]; /* so that the bytes are aligned */
} Block;

extern unsigned char __heap_base;
static Block *free_blocks;
static uintptr_t heap_end;

/* Memory from the end of the heap; NULL if there is no more. */
static Block *extend(size_t size) {
    if (!heap_end) heap_end = ((uintptr_t)&__heap_base + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const uint64_t end = (uint64_t)heap_end + sizeof(Block) + size, have = (uint64_t)__builtin_wasm_memory_size(0) * PAGE;
    if (end > UINT32_MAX - PAGE) return NULL;
    if (end > have && __builtin_wasm_memory_grow(0, (size_t)((end - have + PAGE - 1) / PAGE)) == (size_t)-1) return NULL;
    Block *block = (Block *)heap_end;
    block->size = size;
    heap_end = (uintptr_t)end;
    return block;
}

EXPORT(opq_malloc) void *malloc(size_t size) {
    if (size > UINT32_MAX - PAGE) return NULL;
    size = (size + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    for (Block **at = &free_blocks; *at; at = &(*at)->next) {
        Block *block = *at;
        if (block->size < size) continue;
        *at = block->next;
        if (block->size >= size + sizeof(Block) + ALIGNMENT) { /* its end stays free */
            Block *rest = (Block *)((unsigned char *)(block + 1) + size);
            rest->size = block->size - size - sizeof(Block), rest->next = *at;
            *at = rest, block->size = size;
        }
        return block + 1;
    }
    Block *block = extend(size);
    return block ? block + 1 : NULL;
}

static int touch(const Block *one, const Block *two) { return (const unsigned char *)(one + 1) + one->size == (const unsigned char *)two; }

static void join_next(Block *block) {
    if (!block->next || !touch(block, block->next)) return;
    block->size += sizeof(Block) + block->next->size;
    block->next = block->next->next;
}

EXPORT(opq_free) void free(void *memory) {
    if (!memory) return;
    Block *block = (Block *)memory - 1, *before = NULL, **at = &free_blocks;
    for (; *at && *at < block; at = &(*at)->next) before = *at;
    block->next = *at;
    *at = block;
    join_next(block);
    if (before) join_next(before);
}

void *memcpy(void *to, const void *from, size_t size) { return __builtin_memcpy(to, from, size); } /* memory.copy */
void *memmove(void *to, const void *from, size_t size) { return __builtin_memmove(to, from, size); }
void *memset(void *to, int byte, size_t size) { return __builtin_memset(to, byte, size); } /* memory.fill */

int memcmp(const void *a, const void *b, size_t size) {
    const unsigned char *one = a, *two = b;
    for (size_t k = 0; k < size; k++)
        if (one[k] != two[k]) return one[k] - two[k];
    return 0;
}

size_t strlen(const char *text) {
    size_t length = 0;
    while (text[length]) length++;
    return length;
}

void *calloc(size_t count, size_t size) {
    const uint64_t total = (uint64_t)count * size;
    void *memory = total > UINT32_MAX ? NULL : malloc((size_t)total);
    return memory ? memset(memory, 0, (size_t)total) : NULL;
}

void *realloc(void *memory, size_t size) {
    void *moved = malloc(size);
    if (moved && memory) {
        const size_t old = ((Block *)memory - 1)->size;
        memcpy(moved, memory, old < size ? old : size);
        free(memory);
    }
    return moved;
}

#define OPQ_OWN_INFLATE
#include "opq.c"

static opq_error error;

EXPORT(error_status) int error_status(void) { return (int)error.status; }
EXPORT(error_message) const char *error_message(void) { return error.message; }
EXPORT(open) opq_file *open_bytes(const void *bytes, size_t size, double max_bytes) {
    return opq_open(bytes, size, (uint64_t)max_bytes, &error);
}
EXPORT(close) void close_file(opq_file *file) { opq_close(file); }
EXPORT(count) size_t count_of(const opq_file *file) { return opq_count(file); }
EXPORT(name) const char *name_of(const opq_file *file, size_t k) { return opq_tensor_at(file, k)->name; }
EXPORT(name_length) size_t name_length_of(const opq_file *file, size_t k) { return opq_tensor_at(file, k)->name_length; }
EXPORT(dtype) int dtype_of(const opq_file *file, size_t k) { return (int)opq_tensor_at(file, k)->dtype; }
EXPORT(dtype_name) const char *dtype_name_of(int dtype) { return opq_dtype_name((opq_dtype)dtype); }
EXPORT(storage) int storage_of(const opq_file *file, size_t k) { return (int)opq_tensor_at(file, k)->storage; }
EXPORT(step) float step_of(const opq_file *file, size_t k) { return opq_tensor_at(file, k)->step; }
EXPORT(rank) int rank_of(const opq_file *file, size_t k) { return opq_tensor_at(file, k)->rank; }
EXPORT(shape) const uint32_t *shape_at(const opq_file *file, size_t k) { return opq_tensor_at(file, k)->shape; }
EXPORT(elements) uint32_t elements_of(const opq_file *file, size_t k) { return opq_tensor_at(file, k)->count; }
EXPORT(bytes) double bytes_in(const opq_file *file, size_t k) { return (double)opq_tensor_bytes(file, k); }
EXPORT(metadata_count) size_t metadata_count_of(const opq_file *file) { return opq_metadata_count(file); }
EXPORT(metadata) const opq_metadata *metadata_at(const opq_file *file, size_t k) { return opq_metadata_at(file, k); }
EXPORT(read) int read_bytes(opq_file *file, size_t k, void *to, size_t size) { return (int)opq_read(file, k, to, size, &error); }
EXPORT(read_float32) int read_floats(opq_file *file, size_t k, float *to, size_t count) {
    return (int)opq_read_float32(file, k, to, count, &error);
}
EXPORT(read_codes) int read_ints(opq_file *file, size_t k, int32_t *to, size_t count) {
    return (int)opq_read_codes(file, k, to, count, &error);
}

static size_t inflated_size;

/* The graph of an ONNX model, of inflated_size() bytes, which opq_free frees; NULL if it fails. */
EXPORT(inflate_graph) uint8_t *inflate_graph(const void *packed, size_t size) {
    uint8_t *graph = NULL;
    const Problem problem = inflate_stream(bytes_of(packed, size), &graph, &inflated_size);
    if (problem) report(&error, "the ONNX graph", NULL, problem);
    return graph;
}
EXPORT(inflated_size) size_t size_of_inflated(void) { return inflated_size; }
