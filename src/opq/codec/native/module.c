/* The module opq.codec._native: four functions over buffers. They check what keeps memory safe; the Python side checks the rest. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "byte_model.h"
#include "codes.h"

typedef struct {
    Model model;
    Frame frame;
    Position table[POSITIONS];
    Stream stream, raw;
    Walk walk;
    uint32_t columns[];
} Work;

typedef struct {
    ByteModel model;
    Stream stream, raw;
} PlaneWork;

static Work *prepare(const Shape *shape) {
    Work *work = (Work *)malloc(sizeof *work + sizeof(uint32_t) * (size_t)shape->inputs);
    if (!work) return NULL;
    work->model = tables.start;
    memset(&work->frame, 0, sizeof work->frame);
    describe(work->table, shape);
    work->walk = (Walk){&work->model, shape, work->table, &work->frame, work->columns, 0, 0};
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
    work = prepare(&shape);
    if (work) {
        Coder coder = start_encoding(&work->stream, &work->raw);
        encode_weight(&coder, &work->walk, (int32_t *)codes.buf);
        finish_encoding(&coder);
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

/* Whether the data were whole: no magnitude out of range, nothing left over. -1 without memory. */
static int decode_job(const Job *job) {
    Work *work = prepare(&job->shape);
    if (!work) return -1;
    Coder coder = start_decoding(&work->stream, &work->raw, (const uint8_t *)job->data.buf, (size_t)job->data.len);
    memset(job->codes.buf, 0, (size_t)job->codes.len);
    int whole = decode_weight(&coder, &work->walk, (int32_t *)job->codes.buf) && took_all(&coder);
    free(work);
    return whole;
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

/* All jobs of a list in one go: many small weights want Python's lock but once. How many came before one that was not whole. */
static PyObject *decode_codes(PyObject *self, PyObject *list) {
    (void)self;
    if (!PyList_Check(list)) return PyErr_Format(PyExc_TypeError, "expected a list of tuples");
    const Py_ssize_t count = PyList_Size(list);
    Job *jobs = (Job *)calloc((size_t)count + 1, sizeof *jobs);
    if (!jobs) return PyErr_NoMemory();
    Py_ssize_t held = 0, done = 0;
    int whole = 1;
    while (held < count && read_job(&jobs[held], PyList_GetItem(list, held))) held++;
    if (held == count) {
        Py_BEGIN_ALLOW_THREADS;
        while (done < count && (whole = decode_job(&jobs[done])) > 0) done++;
        Py_END_ALLOW_THREADS;
        if (whole < 0) PyErr_NoMemory();
    }
    for (Py_ssize_t k = 0; k < held; k++) {
        PyBuffer_Release(&jobs[k].data);
        PyBuffer_Release(&jobs[k].codes);
    }
    free(jobs);
    return held < count || whole < 0 ? NULL : PyLong_FromSsize_t(done);
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
            Coder coder = start_decoding(&work->stream, &work->raw, (const uint8_t *)data.buf, (size_t)data.len);
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
    {"decode_codes", decode_codes, METH_O, "decode_codes([(data, codes, outputs, inputs, positions, width, first), ...]) -> int"},
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
