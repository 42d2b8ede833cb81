/* Fuzzes the native module through its Python functions, with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer.
 *
 * An input is a few bytes that choose a function and a shape, which may be invalid; the rest is data. Every buffer has exactly
 * the size that is passed, so that the sanitizer detects every access beyond it. Laws: valid data can be decoded, encoded and
 * decoded again to the same; whatever is encoded is decoded to the same; the only exception is ValueError, for a wrong shape.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

PyMODINIT_FUNC PyInit__native(void);

static PyObject *module;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    PyPreConfig config;
    PyPreConfig_InitIsolatedConfig(&config);
    config.allocator = PYMEM_ALLOCATOR_MALLOC; /* Python's own allocator would hide its buffers from the sanitizer */
    Py_PreInitialize(&config);
    PyImport_AppendInittab("_native", PyInit__native);
    Py_InitializeEx(0);
    module = PyImport_ImportModule("_native");
    if (!module) abort();
    return 0;
}

static void *allocate(size_t size) {
    void *bytes = malloc(size ? size : 1);
    if (!bytes) abort();
    return bytes;
}

static void *copy(const void *data, size_t size) { return memcpy(allocate(size), data, size); }

static PyObject *view(void *data, size_t size, int flags) { return PyMemoryView_FromMemory((char *)data, (Py_ssize_t)size, flags); }

/* Returns whether the data are valid; -1 if the function refused the shape. Steals the reference. */
static int outcome(PyObject *result) {
    if (!result) {
        if (!PyErr_ExceptionMatches(PyExc_ValueError)) abort();
        PyErr_Clear();
        return -1;
    }
    int valid = PyObject_IsTrue(result);
    Py_DECREF(result);
    return valid;
}

typedef struct {
    long long outputs, inputs, positions, width;
    int first;
    size_t count; /* number of codes in the buffer, which may not match the shape */
    enum { ALONE, TWICE, WITH_A_WRONG_ONE } list;
} Geometry;

/* Decoded alone, twice in one list, or in one with a job that is refused: the list is then refused as a whole. */
static int decode_codes(const Geometry *g, const uint8_t *data, size_t size, int32_t *codes) {
    uint8_t *input = copy(data, size);
    int32_t *second = allocate(4 * g->count);
    PyObject *stream = view(input, size, PyBUF_READ), *jobs = PyList_New(0);
    for (int k = 0; k < (g->list == ALONE ? 1 : 2); k++) {
        PyObject *out = view(k ? second : codes, 4 * g->count, PyBUF_WRITE);
        long long outputs = g->outputs + (k && g->list == WITH_A_WRONG_ONE);
        PyObject *job = Py_BuildValue("(OOLLLLi)", stream, out, outputs, g->inputs, g->positions, g->width, g->first);
        if (!job || PyList_Append(jobs, job)) abort();
        Py_DECREF(job);
        Py_DECREF(out);
    }
    PyObject *counter = PyByteArray_FromStringAndSize("\0\0\0\0\0\0\0", 8);
    PyObject *result = PyObject_CallMethod(module, "decode_codes", "OO", jobs, counter);
    Py_DECREF(counter);
    const long done = result ? PyLong_AsLong(result) : -1;
    int valid = outcome(result);
    if (g->list == TWICE && done >= 0 && (done == 1 || memcmp(codes, second, 4 * g->count * (done == 2)))) abort();
    if (g->list == WITH_A_WRONG_ONE && done >= 0) abort();
    Py_DECREF(jobs);
    Py_DECREF(stream);
    free(second);
    free(input);
    return valid;
}

static void check_codes(const Geometry *g, int32_t *codes) {
    PyObject *in = view(codes, 4 * g->count, PyBUF_READ);
    PyObject *stream = PyObject_CallMethod(module, "encode_codes", "OLLLLi", in, g->outputs, g->inputs, g->positions, g->width, g->first);
    Py_DECREF(in);
    if (!stream) {
        outcome(NULL);
        return;
    }
    int32_t *decoded = allocate(4 * g->count);
    if (decode_codes(g, (uint8_t *)PyBytes_AsString(stream), (size_t)PyBytes_Size(stream), decoded) != 1) abort();
    if (memcmp(codes, decoded, 4 * g->count)) abort();
    free(decoded);
    Py_DECREF(stream);
}

static int decode_plane(const uint8_t *data, size_t size, uint8_t *above, size_t above_size, uint8_t *plane, size_t count) {
    uint8_t *input = copy(data, size);
    PyObject *stream = view(input, size, PyBUF_READ), *upper = view(above, above_size, PyBUF_READ), *out = view(plane, count, PyBUF_WRITE);
    int valid = outcome(PyObject_CallMethod(module, "decode_plane", "OOO", stream, upper, out));
    Py_DECREF(stream);
    Py_DECREF(upper);
    Py_DECREF(out);
    free(input);
    return valid;
}

static void check_plane(uint8_t *plane, size_t count, uint8_t *above, size_t above_size) {
    PyObject *in = view(plane, count, PyBUF_READ), *upper = view(above, above_size, PyBUF_READ);
    PyObject *stream = PyObject_CallMethod(module, "encode_plane", "OO", in, upper);
    Py_DECREF(in);
    Py_DECREF(upper);
    if (!stream) {
        outcome(NULL);
        return;
    }
    uint8_t *decoded = allocate(count);
    if (decode_plane((uint8_t *)PyBytes_AsString(stream), (size_t)PyBytes_Size(stream), above, above_size, decoded, count) != 1) abort();
    if (memcmp(plane, decoded, count)) abort();
    free(decoded);
    Py_DECREF(stream);
}

enum { SYMBOLS = 256, SHARES = 4096 };

/* A matrix, its classes, and as many tables as it has contexts, with a trellis twice as many. */
typedef struct {
    long long rows, columns;
    int contexts, base, trellis, lowest, tables;
    size_t count;
    uint8_t *row_classes, *column_classes;
    uint16_t *shares;
    uint32_t *entries;
} Matrix;

/* Equal shares of up to eight symbols, which the bytes choose; the last one has the rest. */
static void make_table(uint16_t *shares, uint32_t *entries, const uint8_t *bytes) {
    const int used = 1 + bytes[0] % 8;
    memset(shares, 0, sizeof *shares * SYMBOLS);
    for (int k = 0; k < used; k++) shares[bytes[1 + k]] += (uint16_t)(k < used - 1 ? 1 + bytes[0] : SHARES - (used - 1) * (1 + bytes[0]));
    for (uint32_t symbol = 0; symbol < SYMBOLS; symbol++)
        for (uint32_t place = 0; place < shares[symbol]; place++) *entries++ = (shares[symbol] - 1u) | place << 12 | symbol << 24;
}

static Matrix make_matrix(const uint8_t *head, const uint8_t *data, size_t size) {
    Matrix m = {1 + head[1] % 70, 1 + head[2] % 40, head[4] % 2 ? 1 + head[3] % 16 : 1, head[5], head[4] >> 1 & 1, -(head[4] >> 1), 0, 0, 0, 0, 0, 0};
    m.tables = m.contexts * (1 + m.trellis), m.count = (size_t)(m.rows * m.columns);
    m.row_classes = allocate((size_t)m.rows), m.column_classes = allocate((size_t)m.columns);
    for (int k = 0; k < m.rows; k++) m.row_classes[k] = size ? data[(size_t)k % size] : 0;
    for (int k = 0; k < m.columns; k++) m.column_classes[k] = size ? data[(size_t)k * 3 % size] : 255;
    m.shares = allocate(sizeof *m.shares * SYMBOLS * (size_t)m.tables), m.entries = allocate(4 * SHARES * (size_t)m.tables);
    for (int k = 0; k < m.tables; k++) {
        uint8_t bytes[9];
        for (int j = 0; j < 9; j++) bytes[j] = size ? data[(size_t)(k * 5 + j * (k % 3 + 1)) % size] : (uint8_t)j;
        make_table(m.shares + k * SYMBOLS, m.entries + k * SHARES, bytes);
    }
    return m;
}

static PyObject *call_fast(const char *name, const Matrix *m, PyObject *rest) {
    PyObject *rows = view(m->row_classes, (size_t)m->rows, PyBUF_READ), *columns = view(m->column_classes, (size_t)m->columns, PyBUF_READ);
    PyObject *start = Py_BuildValue("(LLOOiiii)", m->rows, m->columns, rows, columns, m->contexts, m->base, m->trellis, m->lowest);
    PyObject *all = PySequence_Concat(start, rest), *function = PyObject_GetAttrString(module, name);
    PyObject *result = PyObject_CallObject(function, all);
    Py_DECREF(function), Py_DECREF(all), Py_DECREF(start), Py_DECREF(rest), Py_DECREF(columns), Py_DECREF(rows);
    return result;
}

/* Decodes to symbols: values of one byte. */
static int decode_fast(const Matrix *m, const uint8_t *data, size_t size, uint8_t *symbols) {
    uint8_t *input = copy(data, size), *values = allocate(2 * SYMBOLS);
    for (int k = 0; k < 2 * SYMBOLS; k++) values[k] = (uint8_t)k;
    PyObject *stream = view(input, size, PyBUF_READ), *tables = view(m->entries, 4 * SHARES * (size_t)m->tables, PyBUF_READ);
    PyObject *found = view(values, (size_t)SYMBOLS * (1 + m->trellis), PyBUF_READ), *out = view(symbols, m->count, PyBUF_WRITE);
    uint8_t *sets = allocate((size_t)m->rows);
    memset(sets, 0, (size_t)m->rows);
    PyObject *of_rows = view(sets, (size_t)m->rows, PyBUF_READ);
    int valid = outcome(call_fast("fast_decode", m, Py_BuildValue("(NNNiNN)", stream, tables, found, 1, of_rows, out)));
    free(sets);
    free(values);
    free(input);
    return valid;
}

static PyObject *encode_fast(const Matrix *m, uint8_t *symbols) {
    PyObject *in = view(symbols, m->count, PyBUF_READ), *shares = view(m->shares, 2 * SYMBOLS * (size_t)m->tables, PyBUF_READ);
    return call_fast("fast_encode", m, Py_BuildValue("(NN)", in, shares));
}

/* A stream that is valid is the one that its symbols give; symbols that can be encoded come back. */
static void check_fast(const uint8_t *head, const uint8_t *data, size_t size) {
    Matrix m = make_matrix(head, data, size);
    uint8_t *symbols = allocate(m.count), *decoded = allocate(m.count);
    int valid = 0;
    if (head[0] % 2) {
        for (size_t k = 0; k < m.count; k++) symbols[k] = size ? data[k % size] : 0;
    } else {
        valid = decode_fast(&m, data, size, symbols) == 1;
    }
    if (valid || head[0] % 2) {
        PyObject *stream = encode_fast(&m, symbols);
        if (!stream && (valid || outcome(NULL) != -1)) abort();
        if (stream) {
            uint8_t *bytes = (uint8_t *)PyBytes_AsString(stream);
            if (valid && ((size_t)PyBytes_Size(stream) != size || memcmp(bytes, data, size))) abort();
            if (decode_fast(&m, bytes, (size_t)PyBytes_Size(stream), decoded) != 1 || memcmp(symbols, decoded, m.count)) abort();
            Py_DECREF(stream);
        }
    }
    free(symbols), free(decoded), free(m.row_classes), free(m.column_classes), free(m.shares), free(m.entries);
}

enum { GROUP = 256, MOST_TABLES = 8 };

/* Blocks of the input, one for each byte of a word, to words; -1 if the function refused the buffers, else whether they are valid. */
static int merge_blocks(const uint8_t *data, size_t size, int bytes, int rotated, uint8_t *words, size_t count) {
    PyObject *list = PyList_New(0);
    uint8_t *parts[MOST_TABLES];
    for (int k = 0; k < bytes; k++) {
        const size_t start = size * (size_t)k / (size_t)bytes, part = size * (size_t)(k + 1) / (size_t)bytes - start;
        parts[k] = copy(data + start, part);
        PyObject *block = view(parts[k], part, PyBUF_READ);
        if (PyList_Append(list, block)) abort();
        Py_DECREF(block);
    }
    PyObject *out = view(words, count * (size_t)bytes, PyBUF_WRITE);
    PyObject *problem = PyObject_CallMethod(module, "merge_blocks", "OiO", list, rotated, out);
    const int valid = problem ? problem == Py_None : -1;
    if (problem) Py_DECREF(problem);
    else outcome(NULL);
    Py_DECREF(out), Py_DECREF(list);
    for (int k = 0; k < bytes; k++) free(parts[k]);
    return valid;
}

/* Valid blocks give words whose planes they are again; bytes that are encoded come back. */
static void check_planes(const uint8_t *head, const uint8_t *data, size_t size) {
    static const int sizes[] = {1, 2, 4, 8, 3};
    const int bytes = sizes[head[1] % 5], rotated = head[2] % 2;
    const size_t count = (size_t)(head[3] << 4 | head[4]) % 3000;
    uint8_t *words = allocate(count * (size_t)bytes + 1), *plane = allocate(count), *again = allocate(count * (size_t)bytes + 1);
    if (head[0] % 2) {
        if (merge_blocks(data, size, bytes, rotated, words, count) == 1) {
            uint8_t *blocks = allocate(count * (size_t)bytes + 1);
            PyObject *in = view(words, count * (size_t)bytes, PyBUF_READ), *out = view(blocks, count * (size_t)bytes, PyBUF_WRITE);
            if (outcome(PyObject_CallMethod(module, "split_words", "OiiO", in, bytes, rotated, out)) == -1) abort();
            Py_DECREF(in), Py_DECREF(out);
            if (merge_blocks(blocks, count * (size_t)bytes, bytes, rotated, again, count) != 1) abort();
            if (memcmp(words, again, count * (size_t)bytes)) abort();
            free(blocks);
        }
    } else {
        const size_t groups = (count + GROUP - 1) / GROUP + (head[2] == 255);
        uint8_t *tables = allocate(groups);
        uint16_t *shares = allocate(2 * SYMBOLS * MOST_TABLES);
        uint32_t *entries = allocate(4 * SHARES);
        for (size_t k = 0; k < groups; k++) tables[k] = (uint8_t)(k * head[1] % (head[2] == 254 ? 9 : 8));
        for (int k = 0; k < MOST_TABLES; k++) {
            uint8_t bytes_of_table[9];
            for (int j = 0; j < 9; j++) bytes_of_table[j] = size ? data[(size_t)(k + j) % size] : (uint8_t)j;
            make_table(shares + k * SYMBOLS, entries, bytes_of_table);
        }
        for (size_t k = 0; k < count; k++) plane[k] = size ? data[k % size] : 0;
        PyObject *in = view(plane, count, PyBUF_READ), *of_groups = view(tables, groups, PyBUF_READ);
        PyObject *all = view(shares, 2 * SYMBOLS * MOST_TABLES, PyBUF_READ);
        PyObject *stream = PyObject_CallMethod(module, "encode_block", "OOO", in, of_groups, all);
        if (stream) Py_DECREF(stream);
        else outcome(NULL);
        Py_DECREF(all), Py_DECREF(of_groups), Py_DECREF(in);
        free(tables), free(shares), free(entries);
    }
    free(words), free(plane), free(again);
}

/* The result of a function of the module for buffers of exact sizes; steals the references. NULL if it was refused. */
static PyObject *call(const char *name, PyObject *arguments) {
    PyObject *function = PyObject_GetAttrString(module, name);
    PyObject *result = function && arguments ? PyObject_CallObject(function, arguments) : NULL;
    Py_XDECREF(function), Py_XDECREF(arguments);
    if (!result) outcome(NULL);
    return result;
}

#define READ(data, size) view(data, size, PyBUF_READ)
#define WRITE(data, size) view(data, size, PyBUF_WRITE)
#define GRID "NNNNN"
#define GRID_OF(g) READ(g.keys, g.count), READ(g.ends, 8 * g.rows), READ(g.row_classes, g.rows), READ(g.column_classes, g.columns), \
                   READ(g.key_classes, 256)

typedef struct {
    size_t count, rows, columns;
    uint8_t *keys, *row_classes, *column_classes, *key_classes;
    int64_t *ends;
} Grid;

/* Bytes that the data give again and again. */
static uint8_t *filled(size_t count, const uint8_t *data, size_t size, size_t from) {
    uint8_t *bytes = allocate(count);
    for (size_t k = 0; k < count; k++) bytes[k] = size ? data[(from + k) % size] : (uint8_t)k;
    return bytes;
}

/* Words and a base give differences, from which they come back; so do differences from symbols and raw bits, and symbols from
 * lines. */
static void check_differences(const uint8_t *head, const uint8_t *data, size_t size) {
    static const int sizes[] = {1, 2, 4, 8, 3};
    const int bytes = sizes[head[1] % 5], is_float = head[2] & 1, shift = head[2] >> 1 > 100 ? (head[2] >> 1) - 110 : (head[2] >> 1) % 20;
    Grid g = {0, 1 + head[3] % 40, head[4] % 40, 0, 0, 0, 0, 0};
    const size_t columns = g.columns ? g.columns : 1 + (size_t)head[5] % 8;
    g.count = g.rows * columns;
    g.keys = filled(g.count, data, size, 0), g.row_classes = filled(g.rows, data, size, 1);
    g.column_classes = filled(g.columns, data, size, 2), g.key_classes = filled(256, data, size, 3), g.ends = allocate(8 * g.rows);
    for (size_t row = 0; row < g.rows; row++) g.ends[row] = (int64_t)((row + 1) * columns);
    if (head[5] == 255) g.ends[g.rows / 2] += (int64_t)head[4] - 128; /* which is refused */
    uint8_t *base = filled(g.count * (size_t)bytes, data, size, 5), *new = filled(g.count * (size_t)bytes, data, size, 7 + head[5]);
    uint8_t *again = allocate(g.count * (size_t)bytes), *symbols = allocate(g.count), *contexts = allocate(g.count);
    int64_t *differences = allocate(8 * g.count), *found = allocate(8 * g.count), *moved = allocate(8 * 256), *contents = allocate(8 * 256);
    const size_t words = g.count * (size_t)bytes;
    PyObject *result = call("changed_bits", Py_BuildValue("(NNi)", READ(base, words), READ(new, words), bytes));
    const uint64_t bits = result ? PyLong_AsUnsignedLongLong(result) : 0;
    Py_XDECREF(result);
    result = call("subtract_words", Py_BuildValue("(NNiiiN)", READ(base, words), READ(new, words), bytes, is_float, shift,
                                                  WRITE(differences, 8 * g.count)));
    if (result) {
        PyObject *sum = call("add_words", Py_BuildValue("(NNiiiN)", READ(base, words), READ(differences, 8 * g.count), bytes, is_float,
                                                        shift, WRITE(again, words)));
        if (!sum || (!(bits & (((uint64_t)1 << shift) - 1)) && (PyLong_AsLong(sum) || memcmp(again, new, words)))) abort();
        Py_DECREF(sum), Py_DECREF(result);
    } else {
        for (size_t k = 0; k < 8 * g.count; k++) ((uint8_t *)differences)[k] = size ? data[(11 + k) % size] : 0;
    }
    result = call("difference_symbols", Py_BuildValue("(NN)", READ(differences, 8 * g.count), WRITE(symbols, g.count)));
    PyObject *raw = call("write_raw_bits", Py_BuildValue("(NN)", READ(differences, 8 * g.count), READ(symbols, g.count)));
    if (!result || !raw) abort();
    const size_t length = (size_t)PyBytes_Size(raw);
    uint8_t *packed = copy(PyBytes_AsString(raw), length);
    Py_DECREF(result), Py_DECREF(raw);
    result = call("read_raw_bits", Py_BuildValue("(NNN)", READ(symbols, g.count), READ(packed, length), WRITE(found, 8 * g.count)));
    if (!result || (size_t)PyLong_AsLong(result) != length || memcmp(found, differences, 8 * g.count)) abort();
    Py_DECREF(result);
    memset(contents, 0, 8 * 256);
    result = call("difference_contexts", Py_BuildValue("(" GRID "iiNN)", GRID_OF(g), head[1], 1 + head[2] % 64, WRITE(contexts, g.count),
                                                       WRITE(contents, 8 * 256)));
    if (result) {
        uint8_t *lines = allocate(g.count), *back = allocate(g.count);
        int64_t at = 0;
        for (int k = 0; k < 256; k++) moved[k] = at, at += contents[k];
        if (head[3] == 255) moved[contexts[0]] = (int64_t)head[4] * 1000 - 100; /* which is refused, or misplaced */
        int64_t *places = copy(moved, 8 * 256);
        for (int turn = 0; turn < 2; turn++, memcpy(moved, places, 8 * 256)) {
            PyObject *sorted = call("sort_symbols", Py_BuildValue("(NNNNi)", READ(contexts, g.count), WRITE(moved, 8 * 256),
                                                                  WRITE(turn ? back : symbols, g.count), WRITE(lines, g.count), turn));
            if (sorted ? head[3] != 255 && turn && memcmp(back, symbols, g.count) : head[3] != 255) abort();
            Py_XDECREF(sorted);
        }
        free(lines), free(back), free(places);
        Py_DECREF(result);
    }
    int32_t *numbers = copy(again, words / 4 * 4);
    Py_XDECREF(call("follow_trellis", Py_BuildValue("(Ni)", WRITE(numbers, words / 4 * 4), 1 + head[5] % 8)));
    free(numbers);
    uint32_t *counts = calloc(766 * 256, 4);
    Py_XDECREF(call("count_differences", Py_BuildValue("(" GRID "NN)", GRID_OF(g), READ(symbols, g.count), WRITE(counts, 4 * 766 * 256))));
    double *table = calloc(256 * 256, 8), *factors = calloc(g.rows, 8), *rows = calloc(g.rows, 8), *sums = calloc(g.columns + 1, 8);
    Py_XDECREF(call("sum_differences", Py_BuildValue("(" GRID "NNNdNN)", GRID_OF(g), READ(symbols, g.count), READ(table, 8 * 256 * 256),
                                                     READ(factors, 8 * g.rows), 16.0, WRITE(rows, 8 * g.rows), WRITE(sums, 8 * g.columns))));
    memcpy(symbols, g.keys, g.count); /* any, which may be none */
    Py_XDECREF(call("read_raw_bits", Py_BuildValue("(NNN)", READ(symbols, g.count), READ(packed, length), WRITE(found, 8 * g.count))));
    free(counts), free(table), free(factors), free(rows), free(sums), free(packed), free(base), free(new), free(again), free(symbols);
    free(contexts), free(differences), free(found), free(moved), free(contents), free(g.keys), free(g.ends), free(g.row_classes);
    free(g.column_classes), free(g.key_classes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const uint8_t kernels[][2] = {{1, 1}, {1, 1}, {9, 3}, {4, 2}, {25, 5}, {49, 7}, {128, 128}, {7, 1}, {27, 3}, {0, 1}, {129, 1}, {9, 2}};
    enum { HEAD = 6 };
    if (size < HEAD) return 0;
    const uint8_t *kernel = kernels[data[3] % (sizeof kernels / sizeof *kernels)];
    Geometry g = {data[1] % 12, data[2] % 12, kernel[0], kernel[1], data[4] == 255 ? 256 : data[4], 0, ALONE};
    if (g.positions > 9 && g.outputs > 2) g.outputs = 1 + g.outputs % 2;
    g.count = (size_t)(g.outputs * g.inputs * g.positions) + (data[5] == 255);
    int kind = data[0] % 4;
    if (data[0] >= 200 && data[0] < 240) {
        check_planes(data, data + HEAD, size - HEAD);
        return 0;
    }
    if (data[0] >= 160 && data[0] < 200) {
        check_differences(data, data + HEAD, size - HEAD);
        return 0;
    }
    if (data[0] >= 240) {
        check_fast(data, data + HEAD, size - HEAD);
        return 0;
    }
    if (kind == 0 && data[5] > 252) g.list = data[5] == 253 ? WITH_A_WRONG_ONE : TWICE;
    data += HEAD, size -= HEAD;
    if (kind == 0) {
        int32_t *codes = allocate(4 * g.count);
        if (decode_codes(&g, data, size, codes) == 1) check_codes(&g, codes);
        free(codes);
    } else if (kind == 1) {
        int32_t *codes = allocate(4 * g.count);
        memset(codes, 0, 4 * g.count);
        memcpy(codes, data, size < 4 * g.count ? size : 4 * g.count);
        for (size_t k = 0; k < g.count; k++) codes[k] %= 1 << (1 + (codes[k] >> 3 & 3) * 8 - (codes[k] >> 3 & 1)); /* wide and narrow ones */
        check_codes(&g, codes);
        free(codes);
    } else {
        size_t count = g.count > 2000 ? 2000 : g.count, above_size = g.first % 3 ? count : g.first % 2 ? 0 : count + 1;
        uint8_t *plane = allocate(count), *above = allocate(above_size);
        for (size_t k = 0; k < above_size; k++) above[k] = size ? data[k * 7 % size] : (uint8_t)k;
        if (kind == 2) {
            if (decode_plane(data, size, above, above_size, plane, count) == 1) check_plane(plane, count, above, above_size);
        } else {
            for (size_t k = 0; k < count; k++) plane[k] = k < size ? data[k] : 0;
            check_plane(plane, count, above, above_size);
        }
        free(plane);
        free(above);
    }
    return 0;
}
