/* Python functions for fast sections (fast_coder.h). They check what memory safety depends on. */
#ifndef OPQ_FAST_FUNCTIONS_H
#define OPQ_FAST_FUNCTIONS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>

#include "fast_coder.h"
#include "fast_decoder.h"
#include "fast_table.h"

/* The arguments that all functions begin with: rows, columns, row classes, column classes, contexts, base, trellis, lowest. */
#define FAST_MATRIX "LLy*y*iiii"
#define FAST_MATRIX_POINTERS(m, rows, columns) \
    &(m)->rows, &(m)->columns, &rows, &columns, &(m)->contexts, &(m)->base, &(m)->trellis, &(m)->lowest

/* Whether the arguments fit each other, and `count` elements are those of the matrix; raises an exception if not. */
static int check_fast_matrix(FastMatrix *m, const Py_buffer *rows, const Py_buffer *columns, Py_ssize_t count) {
    m->row_classes = (const uint8_t *)rows->buf, m->column_classes = (const uint8_t *)columns->buf;
    const int fits = m->rows > 0 && m->columns > 0 && m->columns <= INT64_MAX / 16 / m->rows && m->rows * m->columns == count
                     && rows->len == m->rows && columns->len == m->columns && m->contexts > 0
                     && m->contexts <= FAST_MAX_CONTEXTS && m->base >= 0 && m->base <= 255;
    if (!fits) PyErr_SetString(PyExc_ValueError, "the shape does not fit the codes");
    return fits;
}

/* fast_count(rows, columns, row_classes, column_classes, contexts, base, trellis, lowest, symbols, counts): adds to the counts. */
static PyObject *py_fast_count(PyObject *self, PyObject *arguments) {
    FastMatrix m;
    Py_buffer rows, columns, symbols, counts;
    (void)self;
    if (!PyArg_ParseTuple(arguments, FAST_MATRIX "y*w*", FAST_MATRIX_POINTERS(&m, rows, columns), &symbols, &counts)) return NULL;
    int fits = check_fast_matrix(&m, &rows, &columns, symbols.len);
    if (fits && (counts.len != 4 * FAST_SYMBOLS * m.contexts * (m.trellis ? 2 : 1) || (uintptr_t)counts.buf % 4)) {
        PyErr_SetString(PyExc_ValueError, "the counts do not fit the contexts");
        fits = 0;
    }
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        fast_count(&m, (const uint8_t *)symbols.buf, (uint32_t *)counts.buf);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&rows), PyBuffer_Release(&columns), PyBuffer_Release(&symbols), PyBuffer_Release(&counts);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

/* fast_encode(..., symbols, shares) -> bytes; shares are 256 uint16 for each table. */
static PyObject *py_fast_encode(PyObject *self, PyObject *arguments) {
    FastMatrix m;
    Py_buffer rows, columns, symbols, shares;
    (void)self;
    if (!PyArg_ParseTuple(arguments, FAST_MATRIX "y*y*", FAST_MATRIX_POINTERS(&m, rows, columns), &symbols, &shares)) return NULL;
    const int fits = check_fast_matrix(&m, &rows, &columns, symbols.len);
    const int tables = fits ? m.contexts * (m.trellis ? 2 : 1) : 0;
    PyObject *result = NULL;
    if (fits && (shares.len != 2 * FAST_SYMBOLS * tables || (uintptr_t)shares.buf % 2)) {
        PyErr_SetString(PyExc_ValueError, "the shares do not fit the contexts");
    } else if (fits) {
        const size_t longest = fast_longest_stream(&m);
        FastCode *codes = (FastCode *)malloc(sizeof *codes * FAST_SYMBOLS * (size_t)tables);
        uint32_t *quantizers = (uint32_t *)calloc((size_t)m.columns, sizeof *quantizers);
        uint8_t *buffer = (uint8_t *)malloc(longest), *begin = NULL;
        if (codes && quantizers && buffer) {
            Py_BEGIN_ALLOW_THREADS;
            fast_fill_codes(codes, (const uint16_t *)shares.buf, tables);
            begin = fast_encode(&m, (const uint8_t *)symbols.buf, codes, quantizers, buffer + longest);
            Py_END_ALLOW_THREADS;
            if (begin) result = PyBytes_FromStringAndSize((const char *)begin, (Py_ssize_t)(buffer + longest - begin));
            else PyErr_SetString(PyExc_ValueError, "a symbol has no share");
        } else {
            PyErr_NoMemory();
        }
        free(codes), free(quantizers), free(buffer);
    }
    PyBuffer_Release(&rows), PyBuffer_Release(&columns), PyBuffer_Release(&symbols), PyBuffer_Release(&shares);
    return result;
}

/* fast_tables(shares, tables): 256 uint16 to 4096 uint32 for each table. */
static PyObject *py_fast_tables(PyObject *self, PyObject *arguments) {
    Py_buffer shares, tables;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*w*", &shares, &tables)) return NULL;
    const Py_ssize_t count = shares.len / (2 * FAST_SYMBOLS);
    const int fits = shares.len == 2 * FAST_SYMBOLS * count && tables.len == 4 * FAST_TABLE * count
                     && (uintptr_t)shares.buf % 2 == 0 && (uintptr_t)tables.buf % 4 == 0
                     && fast_fill_tables((const uint16_t *)shares.buf, (uint32_t *)tables.buf, count);
    PyBuffer_Release(&shares), PyBuffer_Release(&tables);
    if (fits) Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, "the shares do not fit the tables");
    return NULL;
}

/* Whether there is a set of values for each row. */
static int has_sets(const Py_buffer *sets, Py_ssize_t count) {
    int largest = 0;
    for (Py_ssize_t row = 0; row < sets->len; row++)
        if (((const uint8_t *)sets->buf)[row] > largest) largest = ((const uint8_t *)sets->buf)[row];
    return largest < count;
}

/* fast_decode(..., stream, tables, values, size, sets, output) -> bool; tables are those of fast_tables, values as in FastValues, of
 * `size` bytes, sets one byte for each row. Whether the stream is valid. */
static PyObject *py_fast_decode(PyObject *self, PyObject *arguments) {
    FastMatrix m;
    Py_buffer rows, columns, stream, tables, values, sets, output;
    int size;
    (void)self;
    if (!PyArg_ParseTuple(arguments, FAST_MATRIX "y*y*y*iy*w*", FAST_MATRIX_POINTERS(&m, rows, columns), &stream, &tables, &values,
                          &size, &sets, &output))
        return NULL;
    const int count = m.trellis ? 2 : 1;
    int fits = (size == 1 || size == 2 || size == 4 || size == 8) && output.len % size == 0
               && values.len % (FAST_SYMBOLS * count * size) == 0 && (uintptr_t)values.buf % (uintptr_t)size == 0
               && (uintptr_t)output.buf % (uintptr_t)size == 0 && (uintptr_t)tables.buf % 4 == 0 && sets.len == m.rows
               && has_sets(&sets, values.len / (FAST_SYMBOLS * count * size));
    if (!fits) PyErr_SetString(PyExc_ValueError, "the values do not fit the output");
    else fits = check_fast_matrix(&m, &rows, &columns, output.len / size);
    if (fits && tables.len != (Py_ssize_t)4 * FAST_TABLE * m.contexts * count) {
        PyErr_SetString(PyExc_ValueError, "the tables do not fit the contexts");
        fits = 0;
    }
    int valid = 0;
    if (fits) {
        FastDecoder decoder;
        const FastValues found = {values.buf, (const uint8_t *)sets.buf, size};
        decoder.matrix = &m, decoder.tables = (const uint32_t *)tables.buf;
        Py_BEGIN_ALLOW_THREADS;
        valid = fast_decode(&decoder, (const uint8_t *)stream.buf, (size_t)stream.len, &found, (uint8_t *)output.buf);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&rows), PyBuffer_Release(&columns), PyBuffer_Release(&stream), PyBuffer_Release(&tables);
    PyBuffer_Release(&values), PyBuffer_Release(&sets), PyBuffer_Release(&output);
    return fits ? PyBool_FromLong(valid) : NULL;
}

#endif
