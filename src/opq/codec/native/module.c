/* The module opq.codec._native: functions over buffers, which encode and decode streams of docs/format.md. They check what
 * memory safety depends on; their callers in Python check the rest. All integers of a model are bounded whatever the data are.
 *     compiler.h      attributes; what is assumed of the compiler
 *     crc32.h         checksums                                               "Checksums"
 *     vec8_u16.h      eight 16-bit numbers: the probabilities of a distribution
 *     vec4_u32.h      four 32-bit numbers: one for each row of a band
 *     range_coder.h   decisions and raw bits <-> bytes                        docs/format.md, "Coder"
 *     code_model.h    adaptive probabilities of magnitudes and signs          "Adaptive states and rows"
 *     band.h          position in a weight, running means; a picture          "Sections of codes"
 *     kernel_codes.h  weights with kernels                                    "Sections of codes"
 *     dispatch.h      weights without kernels; choice of instruction set      "Sections of codes"
 *     workspace.h     the memory for these
 *     byte_model.h    byte planes                                             "Packs of auxiliary tensors"
 *     fast_*.h        interleaved rANS; fast_functions.h for Python           "Fast sections"
 *     fast_plane*.h   blocks of bytes by the same coder                       "Fast planes"
 *     difference.h    words less those of a base; difference_functions.h for Python   "Differences"
 *     words.h         words <-> planes; plane_functions.h for Python          "Packs of auxiliary tensors"
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "byte_model.h"
#include "crc32.h"
#include "difference_functions.h"
#include "fast_functions.h"
#include "plane_functions.h"
#include "workspace.h"

typedef struct {
    ByteModel model;
    ByteBuffer output, raw_output; /* encoder */
} PlaneWorkspace;

/* As `complete_shape`, for the buffer that holds the codes; raises an exception if they do not fit. */
static int check_codes(Shape *shape, int first, const Py_buffer *codes) {
    if (!complete_shape(shape, first, codes->len)) {
        PyErr_SetString(PyExc_ValueError, "the shape does not fit the codes");
        return 0;
    }
    if ((uintptr_t)codes->buf % _Alignof(int32_t)) {
        PyErr_SetString(PyExc_ValueError, "the codes must begin at a multiple of four bytes");
        return 0;
    }
    return 1;
}

/* The bytes of a finished stream, whose buffers are freed. */
static PyObject *take_bytes(ByteBuffer *output, ByteBuffer *raw_output) {
    PyObject *result = NULL;
    if (output->out_of_memory || raw_output->out_of_memory) PyErr_NoMemory();
    else result = PyBytes_FromStringAndSize((const char *)output->data, (Py_ssize_t)output->length);
    free(output->data);
    free(raw_output->data);
    return result;
}

static PyObject *encode_codes(PyObject *self, PyObject *arguments) {
    Py_buffer codes;
    Shape shape;
    long long outputs, inputs, positions, width;
    int first;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*LLLLi", &codes, &outputs, &inputs, &positions, &width, &first)) return NULL;
    shape.outputs = outputs, shape.inputs = inputs, shape.positions = positions, shape.width = width;
    if (!check_codes(&shape, first, &codes)) {
        PyBuffer_Release(&codes);
        return NULL;
    }
    Workspace *work;
    Py_BEGIN_ALLOW_THREADS;
    work = new_workspace(&shape, (int32_t *)codes.buf);
    if (work) {
        work->band.coder = start_encoder(&work->output, &work->raw_output);
        encode_bands(&work->band);
        finish_encoder(&work->band.coder);
    }
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&codes);
    if (!work) return PyErr_NoMemory();
    PyObject *result = take_bytes(&work->output, &work->raw_output);
    if (work->band.breaks_trellis) {
        Py_CLEAR(result);
        PyErr_SetString(PyExc_ValueError, "the codes do not follow the trellis");
    }
    free(work);
    return result;
}

/* One stream to decode. */
typedef struct {
    Py_buffer data, codes;
    Shape shape;
} Job;

/* Jobs that threads share. Each thread has its own Queue; `next`, the number of the next job, is common to all. */
typedef struct {
    const Job *jobs;
    Py_ssize_t count, num_valid; /* num_valid: jobs before the first invalid stream among those of this thread */
    int64_t *next;
    int out_of_memory;
} Queue;

/* A job that is being decoded; none if there is no workspace. */
typedef struct {
    Workspace *work;
    Py_ssize_t number;
} Slot;

static void start_job(Queue *queue, Slot *slot) {
    const int64_t number = __atomic_fetch_add(queue->next, 1, __ATOMIC_RELAXED);
    if (number < 0 || number >= queue->count) return;
    const Job *job = &queue->jobs[number];
    slot->number = (Py_ssize_t)number;
    slot->work = new_workspace(&job->shape, (int32_t *)job->codes.buf);
    if (slot->work) slot->work->band.coder = start_decoder((const uint8_t *)job->data.buf, (size_t)job->data.len);
    else queue->out_of_memory = 1;
}

/* A stream is valid if no magnitude is out of range and no byte is left over or missing. */
static void finish_job(Queue *queue, Slot *slot) {
    const BandState *band = &slot->work->band;
    if ((band->out_of_range || !consumed_exactly(&band->coder)) && slot->number < queue->num_valid) queue->num_valid = slot->number;
    free(slot->work);
    slot->work = NULL;
}

/* Decodes two jobs at a time while there are two, interleaved if their kernels have one shape. */
static void decode_queue(Queue *queue) {
    Slot slots[2] = {{NULL, 0}, {NULL, 0}};
    for (;;) {
        for (int k = 0; k < 2; k++)
            if (!slots[k].work) start_job(queue, &slots[k]);
        Workspace *one = slots[0].work, *two = slots[1].work;
        if (!one && !two) return;
        if (one && two && have_same_kernels(one->band.shape, two->band.shape)) decode_pair(&one->band, &two->band);
        else decode_bands(one ? &one->band : &two->band);
        for (int k = 0; k < 2; k++)
            if (slots[k].work && slots[k].work->band.rows <= 0) finish_job(queue, &slots[k]);
    }
}

static int read_job(Job *job, PyObject *tuple) {
    long long outputs, inputs, positions, width;
    int first;
    if (!PyArg_ParseTuple(tuple, "y*w*LLLLi", &job->data, &job->codes, &outputs, &inputs, &positions, &width, &first)) return 0;
    job->shape.outputs = outputs, job->shape.inputs = inputs, job->shape.positions = positions, job->shape.width = width;
    if (check_codes(&job->shape, first, &job->codes)) return 1;
    PyBuffer_Release(&job->data);
    PyBuffer_Release(&job->codes);
    return 0;
}

/* Decodes a list of jobs, for which Python's lock is released once. `next` is eight bytes, 0 at first: threads that are given the
 * same list and the same bytes share the jobs. Returns how many jobs come before the first one, of those of this thread, whose
 * stream is invalid. */
static PyObject *decode_codes(PyObject *self, PyObject *arguments) {
    PyObject *list;
    Py_buffer next;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "Ow*", &list, &next)) return NULL;
    Job *jobs = NULL;
    Py_ssize_t num_read = 0;
    const Py_ssize_t count = PyList_Check(list) ? PyList_Size(list) : -1;
    if (count < 0) PyErr_SetString(PyExc_TypeError, "expected a list of tuples");
    else if (next.len != 8 || (uintptr_t)next.buf % 8)
        PyErr_SetString(PyExc_ValueError, "expected eight bytes at a multiple of eight");
    else if (!(jobs = (Job *)calloc((size_t)count + 1, sizeof *jobs))) PyErr_NoMemory();
    Queue queue = {jobs, count, count, (int64_t *)next.buf, 0};
    int decoded = 0;
    if (jobs) {
        while (num_read < count && num_read < PyList_Size(list) && read_job(&jobs[num_read], PyList_GetItem(list, num_read)))
            num_read++;
        if (num_read == count) {
            Py_BEGIN_ALLOW_THREADS;
            decode_queue(&queue);
            Py_END_ALLOW_THREADS;
            decoded = !queue.out_of_memory;
            if (!decoded) PyErr_NoMemory();
        } else if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "the list changed while it was read");
        }
    }
    for (Py_ssize_t k = 0; k < num_read; k++) {
        PyBuffer_Release(&jobs[k].data);
        PyBuffer_Release(&jobs[k].codes);
    }
    free(jobs);
    PyBuffer_Release(&next);
    return decoded ? PyLong_FromSsize_t(queue.num_valid) : NULL;
}

static PyObject *encode_plane(PyObject *self, PyObject *arguments) {
    Py_buffer plane, above;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*y*", &plane, &above)) return NULL;
    int fits = above.len == 0 || above.len == plane.len;
    PlaneWorkspace *work = NULL;
    uint8_t *copy = NULL; /* code_plane writes what it codes, and the buffer may be read-only */
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        work = (PlaneWorkspace *)malloc(sizeof *work);
        copy = (uint8_t *)malloc((size_t)plane.len + 1);
        if (work && copy) {
            memcpy(copy, plane.buf, (size_t)plane.len);
            RangeCoder coder = start_encoder(&work->output, &work->raw_output);
            code_plane(&coder, ENCODE, &work->model, above.len ? (const uint8_t *)above.buf : NULL, copy, plane.len);
            finish_encoder(&coder);
        }
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&plane);
    PyBuffer_Release(&above);
    PyObject *result = NULL;
    if (!fits) PyErr_SetString(PyExc_ValueError, "the plane above does not fit the plane");
    else if (work && copy) result = take_bytes(&work->output, &work->raw_output);
    else PyErr_NoMemory();
    free(copy);
    free(work);
    return result;
}

/* Whether the stream is valid. */
static PyObject *decode_plane(PyObject *self, PyObject *arguments) {
    Py_buffer data, above, plane;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*y*w*", &data, &above, &plane)) return NULL;
    int fits = above.len == 0 || above.len == plane.len, valid = 0;
    PlaneWorkspace *work = NULL;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        work = (PlaneWorkspace *)malloc(sizeof *work);
        if (work) {
            RangeCoder coder = start_decoder((const uint8_t *)data.buf, (size_t)data.len);
            const uint8_t *upper = above.len ? (const uint8_t *)above.buf : NULL;
            code_plane(&coder, DECODE, &work->model, upper, (uint8_t *)plane.buf, plane.len);
            valid = consumed_exactly(&coder);
        }
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&above);
    PyBuffer_Release(&plane);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "the plane above does not fit the plane");
        return NULL;
    }
    if (!work) return PyErr_NoMemory();
    free(work);
    return PyBool_FromLong(valid);
}

/* The CRC-32 of bytes that follow others with the CRC-32 `start`. */
static PyObject *crc32(PyObject *self, PyObject *arguments) {
    Py_buffer data;
    unsigned int start = 0;
    uint32_t crc;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*|I", &data, &start)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    crc = checksum(start, (const uint8_t *)data.buf, (size_t)data.len);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

static PyMethodDef methods[] = {
    {"crc32", crc32, METH_VARARGS, "crc32(data, start=0) -> int"},
    {"encode_codes", encode_codes, METH_VARARGS, "encode_codes(codes, outputs, inputs, positions, width, first) -> bytes"},
    {"decode_codes", decode_codes, METH_VARARGS,
     "decode_codes([(data, codes, outputs, inputs, positions, width, first), ...], next) -> int"},
    {"encode_plane", encode_plane, METH_VARARGS, "encode_plane(plane, above) -> bytes"},
    {"decode_plane", decode_plane, METH_VARARGS, "decode_plane(data, above, plane) -> bool"},
    {"fast_count", py_fast_count, METH_VARARGS, "fast_count(*matrix, symbols, counts)"},
    {"fast_encode", py_fast_encode, METH_VARARGS, "fast_encode(*matrix, symbols, shares) -> bytes"},
    {"fast_tables", py_fast_tables, METH_VARARGS, "fast_tables(shares, tables)"},
    {"fast_decode", py_fast_decode, METH_VARARGS, "fast_decode(*matrix, stream, tables, values, size, sets, output) -> bool"},
    {"split_words", py_split_words, METH_VARARGS, "split_words(words, size, rotated, planes)"},
    {"sum_groups", py_sum_groups, METH_VARARGS, "sum_groups(bytes, sums)"},
    {"count_groups", py_count_groups, METH_VARARGS, "count_groups(bytes, tables, counts)"},
    {"encode_block", py_encode_block, METH_VARARGS, "encode_block(bytes, tables, shares) -> bytes"},
    {"merge_blocks", py_merge_blocks, METH_VARARGS, "merge_blocks(blocks, rotated, words) -> str | None"},
    {"changed_bits", py_changed_bits, METH_VARARGS, "changed_bits(base, new, size) -> int"},
    {"subtract_words", py_subtract_words, METH_VARARGS, "subtract_words(base, new, size, is_float, shift, differences)"},
    {"add_words", py_add_words, METH_VARARGS, "add_words(base, differences, size, is_float, shift, output) -> int"},
    {"difference_symbols", py_difference_symbols, METH_VARARGS, "difference_symbols(differences, symbols)"},
    {"count_differences", py_count_differences, METH_VARARGS, "count_differences(*grid, symbols, counts)"},
    {"difference_contexts", py_difference_contexts, METH_VARARGS, "difference_contexts(*grid, base, count, contexts, sizes)"},
    {"sum_differences", py_sum_differences, METH_VARARGS,
     "sum_differences(*grid, symbols, table, factors, largest, row_sums, column_sums)"},
    {"sort_symbols", py_sort_symbols, METH_VARARGS, "sort_symbols(contexts, places, symbols, lines, back)"},
    {"follow_trellis", py_follow_trellis, METH_VARARGS, "follow_trellis(numbers, columns)"},
    {"write_raw_bits", py_write_raw_bits, METH_VARARGS, "write_raw_bits(differences, symbols) -> bytes"},
    {"read_raw_bits", py_read_raw_bits, METH_VARARGS, "read_raw_bits(symbols, bytes, differences) -> int"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "opq.codec._native", "Entropy coding of codes and byte planes.", 0, methods, module_slots,
    NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    init_crc();
    init_tables();
    detect_avx2();
    fast_init();
#if defined(OPQ_AVX2)
    fast_init_written_order();
#endif
    return PyModuleDef_Init(&definition);
}
