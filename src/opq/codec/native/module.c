/* The module opq.codec._native: four functions over buffers. They check what keeps memory safe; the Python side checks the rest. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "byte_model.h"
#include "dispatch.h"

#if defined(_MSC_VER)
#include <intrin.h>
#endif

typedef struct {
    CodeModel model;
    PaddedKernels frame;
    PositionContext table[MAX_POSITIONS];
    KernelColumn kernels;
    ByteBuffer stream, raw;
    BandState band;
    uint32_t columns[];
} Workspace;

typedef struct {
    ByteModel model;
    ByteBuffer stream, raw;
} PlaneWorkspace;

/* A walk at the beginning of a weight, but for its coder. */
static Workspace *new_workspace(const Shape *shape, int32_t *codes) {
    Workspace *work = (Workspace *)malloc(sizeof *work + sizeof(uint32_t) * (size_t)shape->inputs);
    if (!work) return NULL;
    work->model = tables.start;
    memset(&work->frame, 0, sizeof work->frame);
    init_positions(work->table, shape);
    BandState *band = &work->band;
    memset(band, 0, sizeof *band);
    band->model = &work->model, band->shape = shape, band->table = work->table, band->frame = &work->frame;
    band->columns = work->columns, band->global = shape->start, band->codes = codes;
    start_band(band);
    return work;
}

/* Whether a weight of so many bytes can have this shape, whose first byte of its section says the rest. */
static int complete_shape(Shape *shape, int first, Py_ssize_t bytes) {
    if (first < 0 || first > 255) return 0;
    shape->shift = first & 31, shape->start = (uint32_t)(2 * MEAN_ONE) >> (first >> 5);
    if (shape->outputs < 1 || shape->inputs < 1 || shape->positions < 1 || shape->positions > MAX_POSITIONS) return 0;
    if (shape->width < 1 || shape->positions % shape->width || shape->shift > 20) return 0;
    int64_t count = (int64_t)bytes / 4;
    return bytes % 4 == 0 && count % shape->positions == 0 && count / shape->positions % shape->inputs == 0 &&
           count / shape->positions / shape->inputs == shape->outputs;
}

/* The bytes of a finished stream, whose buffers are given back. */
static PyObject *take_bytes(ByteBuffer *stream, ByteBuffer *raw) {
    PyObject *result = NULL;
    if (stream->failed || raw->failed) PyErr_NoMemory();
    else result = PyBytes_FromStringAndSize((const char *)stream->bytes, (Py_ssize_t)stream->at);
    free(stream->bytes);
    free(raw->bytes);
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
    if (!complete_shape(&shape, first, codes.len)) {
        PyBuffer_Release(&codes);
        PyErr_SetString(PyExc_ValueError, "the shape does not fit the codes");
        return NULL;
    }
    Workspace *work;
    Py_BEGIN_ALLOW_THREADS;
    work = new_workspace(&shape, (int32_t *)codes.buf);
    if (work) {
        work->band.coder = start_encoder(&work->stream, &work->raw);
        encode_bands(&work->band, &work->kernels);
        finish_encoder(&work->band.coder);
    }
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&codes);
    if (!work) return PyErr_NoMemory();
    PyObject *result = take_bytes(&work->stream, &work->raw);
    free(work);
    return result;
}

typedef struct {
    Py_buffer data, codes;
    Shape shape;
} Job;

/* Jobs that threads share: each takes the next one that none has taken. */
typedef struct {
    const Job *jobs;
    Py_ssize_t count, whole; /* whole: how many come before the first of this thread's that was not */
    int64_t *taken;
    int without_memory;
} Queue;

typedef struct {
    Workspace *work;
    Py_ssize_t number;
} Slot;

static int64_t next_job(int64_t *taken) {
#if defined(_MSC_VER)
    return _InterlockedExchangeAdd64(taken, 1);
#else
    return __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
#endif
}

static void start_job(Queue *queue, Slot *slot) {
    const int64_t number = next_job(queue->taken);
    if (number < 0 || number >= queue->count) return;
    const Job *job = &queue->jobs[number];
    slot->number = (Py_ssize_t)number;
    slot->work = new_workspace(&job->shape, (int32_t *)job->codes.buf);
    if (slot->work) slot->work->band.coder = start_decoder((const uint8_t *)job->data.buf, (size_t)job->data.len);
    else queue->without_memory = 1;
}

/* Whole are data without a magnitude out of range, and with nothing left over. */
static void finish_job(Queue *queue, Slot *slot) {
    const BandState *band = &slot->work->band;
    if ((band->failed || !consumed_exactly(&band->coder)) && slot->number < queue->whole) queue->whole = slot->number;
    free(slot->work);
    slot->work = NULL;
}

/* Two jobs are in hand, as long as there are so many, and decoded in step where they can be. */
static void decode_queue(Queue *queue) {
    Slot slots[2] = {{NULL, 0}, {NULL, 0}};
    for (;;) {
        for (int k = 0; k < 2; k++)
            if (!slots[k].work) start_job(queue, &slots[k]);
        Workspace *one = slots[0].work, *two = slots[1].work;
        if (!one && !two) return;
        if (one && two && have_same_kernels(one->band.shape, two->band.shape))
            decode_pair(&one->band, &two->band, &one->kernels, &two->kernels);
        else decode_bands(one ? &one->band : &two->band, one ? &one->kernels : &two->kernels);
        for (int k = 0; k < 2; k++)
            if (slots[k].work && slots[k].work->band.rows <= 0) finish_job(queue, &slots[k]);
    }
}

static int read_job(Job *job, PyObject *tuple) {
    long long outputs, inputs, positions, width;
    int first;
    if (!PyArg_ParseTuple(tuple, "y*w*LLLLi", &job->data, &job->codes, &outputs, &inputs, &positions, &width, &first)) return 0;
    job->shape.outputs = outputs, job->shape.inputs = inputs, job->shape.positions = positions, job->shape.width = width;
    if (complete_shape(&job->shape, first, job->codes.len)) return 1;
    PyBuffer_Release(&job->data);
    PyBuffer_Release(&job->codes);
    PyErr_SetString(PyExc_ValueError, "the shape does not fit the codes");
    return 0;
}

/* Jobs of a list in one go: many small weights want Python's lock but once. Threads that are given the same list and the same eight
 * bytes, 0 at first, share its jobs. How many come before the first, of those that this thread took, that was not whole. */
static PyObject *decode_codes(PyObject *self, PyObject *arguments) {
    PyObject *list;
    Py_buffer taken;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "Ow*", &list, &taken)) return NULL;
    Job *jobs = NULL;
    Py_ssize_t held = 0;
    const Py_ssize_t count = PyList_Check(list) ? PyList_Size(list) : -1;
    if (count < 0) PyErr_SetString(PyExc_TypeError, "expected a list of tuples");
    else if (taken.len != 8 || (uintptr_t)taken.buf % 8) PyErr_SetString(PyExc_ValueError, "expected eight bytes at a multiple of eight");
    else if (!(jobs = (Job *)calloc((size_t)count + 1, sizeof *jobs))) PyErr_NoMemory();
    Queue queue = {jobs, count, count, (int64_t *)taken.buf, 0};
    int decoded = 0;
    if (jobs) {
        while (held < count && held < PyList_Size(list) && read_job(&jobs[held], PyList_GetItem(list, held))) held++;
        if (held == count) {
            Py_BEGIN_ALLOW_THREADS;
            decode_queue(&queue);
            Py_END_ALLOW_THREADS;
            decoded = !queue.without_memory;
            if (!decoded) PyErr_NoMemory();
        } else if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "the list changed while it was read");
        }
    }
    for (Py_ssize_t k = 0; k < held; k++) {
        PyBuffer_Release(&jobs[k].data);
        PyBuffer_Release(&jobs[k].codes);
    }
    free(jobs);
    PyBuffer_Release(&taken);
    return decoded ? PyLong_FromSsize_t(queue.whole) : NULL;
}

static PyObject *encode_plane(PyObject *self, PyObject *arguments) {
    Py_buffer plane, above;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*y*", &plane, &above)) return NULL;
    int fits = above.len == 0 || above.len == plane.len;
    PlaneWorkspace *work = NULL;
    uint8_t *copy = NULL;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        work = (PlaneWorkspace *)malloc(sizeof *work);
        copy = (uint8_t *)malloc((size_t)plane.len + 1);
        if (work && copy) {
            memcpy(copy, plane.buf, (size_t)plane.len);
            RangeCoder coder = start_encoder(&work->stream, &work->raw);
            code_plane(&coder, 0, &work->model, above.len ? (const uint8_t *)above.buf : NULL, copy, plane.len);
            finish_encoder(&coder);
        }
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&plane);
    PyBuffer_Release(&above);
    PyObject *result = NULL;
    if (!fits) PyErr_SetString(PyExc_ValueError, "the plane above does not fit the plane");
    else if (work && copy) result = take_bytes(&work->stream, &work->raw);
    else PyErr_NoMemory();
    free(copy);
    free(work);
    return result;
}

static PyObject *decode_plane(PyObject *self, PyObject *arguments) {
    Py_buffer data, above, plane;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*y*w*", &data, &above, &plane)) return NULL;
    int fits = above.len == 0 || above.len == plane.len, whole = 0;
    PlaneWorkspace *work = NULL;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        work = (PlaneWorkspace *)malloc(sizeof *work);
        if (work) {
            RangeCoder coder = start_decoder((const uint8_t *)data.buf, (size_t)data.len);
            code_plane(&coder, 1, &work->model, above.len ? (const uint8_t *)above.buf : NULL, (uint8_t *)plane.buf, plane.len);
            whole = consumed_exactly(&coder);
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
    return PyBool_FromLong(whole);
}

static PyMethodDef methods[] = {
    {"encode_codes", encode_codes, METH_VARARGS, "encode_codes(codes, outputs, inputs, positions, width, first) -> bytes"},
    {"decode_codes", decode_codes, METH_VARARGS,
     "decode_codes([(data, codes, outputs, inputs, positions, width, first), ...], taken) -> int"},
    {"encode_plane", encode_plane, METH_VARARGS, "encode_plane(plane, above) -> bytes"},
    {"decode_plane", decode_plane, METH_VARARGS, "decode_plane(data, above, plane) -> bool"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "opq.codec._native", "Entropy coding of codes and byte planes.", 0, methods, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    init_tables();
    detect_avx2();
    return PyModuleDef_Init(&definition);
}
