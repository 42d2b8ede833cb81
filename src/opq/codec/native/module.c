/* The module opq.codec._native: four functions over buffers. They check what keeps memory safe; the Python side checks the rest. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "byte_model.h"
#include "codes.h"

#if defined(_MSC_VER)
#include <intrin.h>
#endif

typedef struct {
    Model model;
    Frame frame;
    Position table[POSITIONS];
    Kernels kernels;
    Stream stream, raw;
    Walk walk;
    uint32_t columns[];
} Work;

typedef struct {
    ByteModel model;
    Stream stream, raw;
} PlaneWork;

/* A walk at the beginning of a weight, but for its coder. */
static Work *prepare(const Shape *shape, int32_t *codes) {
    Work *work = (Work *)malloc(sizeof *work + sizeof(uint32_t) * (size_t)shape->inputs);
    if (!work) return NULL;
    work->model = tables.start;
    memset(&work->frame, 0, sizeof work->frame);
    describe(work->table, shape);
    Walk *walk = &work->walk;
    memset(walk, 0, sizeof *walk);
    walk->model = &work->model, walk->shape = shape, walk->table = work->table, walk->frame = &work->frame;
    walk->columns = work->columns, walk->global = shape->start, walk->codes = codes;
    begin_rows(walk);
    return work;
}

/* Whether a weight of so many bytes can have this shape, whose first byte of its section says the rest. */
static int complete(Shape *shape, int first, Py_ssize_t bytes) {
    if (first < 0 || first > 255) return 0;
    shape->shift = first & 31, shape->start = (uint32_t)(2 * ONE) >> (first >> 5);
    if (shape->outputs < 1 || shape->inputs < 1 || shape->positions < 1 || shape->positions > POSITIONS) return 0;
    if (shape->width < 1 || shape->positions % shape->width || shape->shift > 20) return 0;
    int64_t count = (int64_t)bytes / 4;
    return bytes % 4 == 0 && count % shape->positions == 0 && count / shape->positions % shape->inputs == 0 &&
           count / shape->positions / shape->inputs == shape->outputs;
}

/* The bytes of a finished stream, whose buffers are given back. */
static PyObject *take(Stream *stream, Stream *raw) {
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
    if (!complete(&shape, first, codes.len)) {
        PyBuffer_Release(&codes);
        PyErr_SetString(PyExc_ValueError, "the shape does not fit the codes");
        return NULL;
    }
    Work *work;
    Py_BEGIN_ALLOW_THREADS;
    work = prepare(&shape, (int32_t *)codes.buf);
    if (work) {
        work->walk.coder = start_encoding(&work->stream, &work->raw);
        encode_rows(&work->walk, &work->kernels);
        finish_encoding(&work->walk.coder);
    }
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&codes);
    if (!work) return PyErr_NoMemory();
    PyObject *result = take(&work->stream, &work->raw);
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
    Work *work;
    Py_ssize_t number;
} Hand;

static int64_t take_next(int64_t *taken) {
#if defined(_MSC_VER)
    return _InterlockedExchangeAdd64(taken, 1);
#else
    return __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
#endif
}

static void begin_job(Queue *queue, Hand *hand) {
    const int64_t number = take_next(queue->taken);
    if (number < 0 || number >= queue->count) return;
    const Job *job = &queue->jobs[number];
    hand->number = (Py_ssize_t)number;
    hand->work = prepare(&job->shape, (int32_t *)job->codes.buf);
    if (hand->work) hand->work->walk.coder = start_decoding((const uint8_t *)job->data.buf, (size_t)job->data.len);
    else queue->without_memory = 1;
}

/* Whole are data without a magnitude out of range, and with nothing left over. */
static void end_job(Queue *queue, Hand *hand) {
    const Walk *walk = &hand->work->walk;
    if ((walk->failed || !took_all(&walk->coder)) && hand->number < queue->whole) queue->whole = hand->number;
    free(hand->work);
    hand->work = NULL;
}

/* Two jobs are in hand, as long as there are so many, and decoded in step where they can be. */
static void decode_queue(Queue *queue) {
    Hand hands[2] = {{NULL, 0}, {NULL, 0}};
    for (;;) {
        for (int k = 0; k < 2; k++)
            if (!hands[k].work) begin_job(queue, &hands[k]);
        Work *one = hands[0].work, *two = hands[1].work;
        if (!one && !two) return;
        if (one && two && are_alike(one->walk.shape, two->walk.shape))
            decode_pair(&one->walk, &two->walk, &one->kernels, &two->kernels);
        else decode_rows(one ? &one->walk : &two->walk, one ? &one->kernels : &two->kernels);
        for (int k = 0; k < 2; k++)
            if (hands[k].work && hands[k].work->walk.rows <= 0) end_job(queue, &hands[k]);
    }
}

static int read_job(Job *job, PyObject *tuple) {
    long long outputs, inputs, positions, width;
    int first;
    if (!PyArg_ParseTuple(tuple, "y*w*LLLLi", &job->data, &job->codes, &outputs, &inputs, &positions, &width, &first)) return 0;
    job->shape.outputs = outputs, job->shape.inputs = inputs, job->shape.positions = positions, job->shape.width = width;
    if (complete(&job->shape, first, job->codes.len)) return 1;
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
    PlaneWork *work = NULL;
    uint8_t *copy = NULL;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        work = (PlaneWork *)malloc(sizeof *work);
        copy = (uint8_t *)malloc((size_t)plane.len + 1);
        if (work && copy) {
            memcpy(copy, plane.buf, (size_t)plane.len);
            Coder coder = start_encoding(&work->stream, &work->raw);
            code_plane(&coder, 0, &work->model, above.len ? (const uint8_t *)above.buf : NULL, copy, plane.len);
            finish_encoding(&coder);
        }
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&plane);
    PyBuffer_Release(&above);
    PyObject *result = NULL;
    if (!fits) PyErr_SetString(PyExc_ValueError, "the plane above does not fit the plane");
    else if (work && copy) result = take(&work->stream, &work->raw);
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
    PlaneWork *work = NULL;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        work = (PlaneWork *)malloc(sizeof *work);
        if (work) {
            Coder coder = start_decoding((const uint8_t *)data.buf, (size_t)data.len);
            code_plane(&coder, 1, &work->model, above.len ? (const uint8_t *)above.buf : NULL, (uint8_t *)plane.buf, plane.len);
            whole = took_all(&coder);
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

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "opq.codec._native", "Entropy coding of codes and byte planes.", 0, methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    prepare_tables();
    choose_decoder();
    return PyModuleDef_Init(&definition);
}
