/* Python functions for differences (difference.h). They check what memory safety depends on. */
#ifndef OPQ_DIFFERENCE_FUNCTIONS_H
#define OPQ_DIFFERENCE_FUNCTIONS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>

#include "difference.h"
#include "plane_functions.h"

/* Whether a buffer holds `count` numbers of `size` bytes, at a multiple of these. */
static int has_numbers(const Py_buffer *buffer, Py_ssize_t count, int size) {
    return buffer->len % size == 0 && buffer->len / size == count && (uintptr_t)buffer->buf % (uintptr_t)size == 0;
}

/* Whether a buffer holds words of `size` bytes; their number. */
static int has_words(const Py_buffer *buffer, int size, Py_ssize_t *count) {
    if (!is_word_size(size)) return 0;
    *count = buffer->len / size;
    return has_numbers(buffer, *count, size);
}

/* changed_bits(base, new, size) -> all bits that are set in words that differ. */
static PyObject *py_changed_bits(PyObject *self, PyObject *arguments) {
    Py_buffer base, new;
    Py_ssize_t count;
    uint64_t bits = 0;
    int size;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*y*i", &base, &new, &size)) return NULL;
    const int fits = has_words(&base, size, &count) && has_numbers(&new, count, size);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        bits = changed_bits(base.buf, new.buf, 8 * size, (size_t)count);
        Py_END_ALLOW_THREADS;
    } else {
        refuse("the words do not fit the base");
    }
    PyBuffer_Release(&base), PyBuffer_Release(&new);
    return fits ? PyLong_FromUnsignedLongLong(bits) : NULL;
}

static int is_shift(int shift, int size) { return shift >= 0 && shift < 8 * size; }

/* subtract_words(base, new, size, is_float, shift, differences): int64 differences. */
static PyObject *py_subtract_words(PyObject *self, PyObject *arguments) {
    Py_buffer base, new, differences;
    Py_ssize_t count;
    int size, is_float, shift;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*y*ipiw*", &base, &new, &size, &is_float, &shift, &differences)) return NULL;
    const int fits = has_words(&base, size, &count) && has_numbers(&new, count, size) && has_numbers(&differences, count, 8)
                     && is_shift(shift, size);
    if (fits) {
        const WordKind kind = {8 * size, is_float, shift};
        Py_BEGIN_ALLOW_THREADS;
        subtract_words(base.buf, new.buf, kind, (int64_t *)differences.buf, (size_t)count);
        Py_END_ALLOW_THREADS;
    } else {
        refuse("the differences do not fit the words");
    }
    PyBuffer_Release(&base), PyBuffer_Release(&new), PyBuffer_Release(&differences);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

/* add_words(base, differences, size, is_float, shift, output) -> 0; 1 if low bits of a base's word are set; 2 if a sum is out of
 * range. */
static PyObject *py_add_words(PyObject *self, PyObject *arguments) {
    Py_buffer base, differences, output;
    Py_ssize_t count;
    AddedWords found = WORDS_ADDED;
    int size, is_float, shift;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*y*ipiw*", &base, &differences, &size, &is_float, &shift, &output)) return NULL;
    const int fits = has_words(&base, size, &count) && has_numbers(&differences, count, 8) && has_numbers(&output, count, size)
                     && is_shift(shift, size);
    if (fits) {
        const WordKind kind = {8 * size, is_float, shift};
        Py_BEGIN_ALLOW_THREADS;
        found = add_words(base.buf, (const int64_t *)differences.buf, kind, output.buf, (size_t)count);
        Py_END_ALLOW_THREADS;
    } else {
        refuse("the differences do not fit the words");
    }
    PyBuffer_Release(&base), PyBuffer_Release(&differences), PyBuffer_Release(&output);
    return fits ? PyLong_FromLong(found) : NULL;
}

/* difference_symbols(differences, symbols): the symbols of int64 differences. */
static PyObject *py_difference_symbols(PyObject *self, PyObject *arguments) {
    Py_buffer differences, symbols;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*w*", &differences, &symbols)) return NULL;
    const int fits = has_numbers(&differences, symbols.len, 8);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        difference_symbols((const int64_t *)differences.buf, (uint8_t *)symbols.buf, (size_t)symbols.len);
        Py_END_ALLOW_THREADS;
    } else {
        refuse("the symbols do not fit the differences");
    }
    PyBuffer_Release(&differences), PyBuffer_Release(&symbols);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

/* The arguments keys, ends, row_classes, column_classes, key_classes. */
#define GRID "y*y*y*y*y*"
#define GRID_POINTERS(b) &(b)[0], &(b)[1], &(b)[2], &(b)[3], &(b)[4]

/* The grid of these buffers; raises an exception if it is none. Each row of a matrix has as many elements as there are columns. */
static int read_grid(DifferenceGrid *g, const Py_buffer *b) {
    g->keys = (const uint8_t *)b[0].buf, g->ends = (const int64_t *)b[1].buf, g->row_classes = (const uint8_t *)b[2].buf;
    g->column_classes = (const uint8_t *)b[3].buf, g->key_classes = (const uint8_t *)b[4].buf;
    g->rows = (int64_t)b[2].len, g->columns = (int64_t)b[3].len;
    if (!has_numbers(&b[1], b[2].len, 8) || b[4].len != DIFFERENCE_KEYS) return refuse("the classes do not fit the rows");
    int64_t end = 0;
    for (int64_t row = 0; row < g->rows; end = g->ends[row++])
        if (g->ends[row] < end || g->ends[row] > b[0].len || (g->columns && g->ends[row] - end != g->columns))
            return refuse("the rows do not fit the columns");
    return end == b[0].len ? 1 : refuse("the rows do not fit the keys");
}

static void release_all(Py_buffer *buffers, int count) {
    while (count > 0) PyBuffer_Release(&buffers[--count]);
}

/* count_differences(*grid, symbols, counts): adds how often each symbol occurs with each sum of classes to 766 * 256 uint32. */
static PyObject *py_count_differences(PyObject *self, PyObject *arguments) {
    Py_buffer b[7];
    DifferenceGrid grid;
    (void)self;
    if (!PyArg_ParseTuple(arguments, GRID "y*w*", GRID_POINTERS(b), &b[5], &b[6])) return NULL;
    int fits = read_grid(&grid, b);
    if (fits && (b[5].len != b[0].len || !has_numbers(&b[6], DIFFERENCE_SUMS * DIFFERENCE_COUNTS, 4)))
        fits = refuse("the counts do not fit the symbols");
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        count_differences(&grid, (const uint8_t *)b[5].buf, (uint32_t *)b[6].buf);
        Py_END_ALLOW_THREADS;
    }
    release_all(b, 7);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

/* difference_contexts(*grid, base, count, contexts, sizes): the context of each element, one of `count`; adds how many have each
 * to 256 int64. */
static PyObject *py_difference_contexts(PyObject *self, PyObject *arguments) {
    Py_buffer b[7];
    DifferenceGrid grid;
    int base, count;
    (void)self;
    if (!PyArg_ParseTuple(arguments, GRID "iiw*w*", GRID_POINTERS(b), &base, &count, &b[5], &b[6])) return NULL;
    int fits = read_grid(&grid, b);
    if (fits && (base < 0 || base > 255 || count < 1 || count > 256 || b[5].len != b[0].len || !has_numbers(&b[6], 256, 8)))
        fits = refuse("the contexts do not fit the keys");
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        difference_contexts(&grid, base, count, (uint8_t *)b[5].buf, (int64_t *)b[6].buf);
        Py_END_ALLOW_THREADS;
    }
    release_all(b, 7);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

/* sum_differences(*grid, symbols, table, factors, largest, row_sums, column_sums): adds to doubles for each row and each column;
 * `table` has 256 * 256 doubles, for each symbol of each key. */
static PyObject *py_sum_differences(PyObject *self, PyObject *arguments) {
    Py_buffer b[10];
    DifferenceGrid grid;
    double largest;
    (void)self;
    if (!PyArg_ParseTuple(arguments, GRID "y*y*y*dw*w*", GRID_POINTERS(b), &b[5], &b[6], &b[7], &largest, &b[8], &b[9])) return NULL;
    int fits = read_grid(&grid, b);
    if (fits && (b[5].len != b[0].len || !has_numbers(&b[6], DIFFERENCE_KEYS * DIFFERENCE_COUNTS, 8) || !has_numbers(&b[7], b[2].len, 8)
                 || !has_numbers(&b[8], b[2].len, 8) || !has_numbers(&b[9], b[3].len, 8)))
        fits = refuse("the sums do not fit the rows and columns");
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        sum_differences(&grid, (const uint8_t *)b[5].buf, (const double *)b[6].buf, (const double *)b[7].buf, largest,
                        (double *)b[8].buf, (double *)b[9].buf);
        Py_END_ALLOW_THREADS;
    }
    release_all(b, 10);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

/* sort_symbols(contexts, places, symbols, lines, back): each symbol to the next one of the int64 places of its context in the
 * lines, or from there; `places` has 256, which are moved on. */
static PyObject *py_sort_symbols(PyObject *self, PyObject *arguments) {
    Py_buffer contexts, places, symbols, lines;
    int back;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*w*w*w*p", &contexts, &places, &symbols, &lines, &back)) return NULL;
    int fits = symbols.len == contexts.len && has_numbers(&places, 256, 8);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        fits = sort_symbols((const uint8_t *)contexts.buf, (int64_t *)places.buf, (uint8_t *)symbols.buf, (size_t)symbols.len,
                            (uint8_t *)lines.buf, (int64_t)lines.len, back);
        Py_END_ALLOW_THREADS;
    }
    if (!fits) refuse("the lines do not fit the contexts");
    PyBuffer_Release(&contexts), PyBuffer_Release(&places), PyBuffer_Release(&symbols), PyBuffer_Release(&lines);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

/* follow_trellis(numbers, columns): int32 numbers k of a trellis to its codes. */
static PyObject *py_follow_trellis(PyObject *self, PyObject *arguments) {
    Py_buffer numbers;
    long long columns;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "w*L", &numbers, &columns)) return NULL;
    int fits = columns > 0 && has_numbers(&numbers, numbers.len / 4, 4) && numbers.len / 4 % columns == 0;
    for (Py_ssize_t k = 0; fits && k < numbers.len / 4; k++) fits = (uint32_t)((const int32_t *)numbers.buf)[k] + (1u << 30) < 1u << 31;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        follow_trellis((int32_t *)numbers.buf, (int64_t)(numbers.len / 4 / columns), columns);
        Py_END_ALLOW_THREADS;
    } else {
        refuse("the numbers do not fit the columns");
    }
    PyBuffer_Release(&numbers);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

static int has_symbols(const Py_buffer *symbols) {
    uint8_t largest = 0;
    for (Py_ssize_t k = 0; k < symbols->len; k++)
        if (((const uint8_t *)symbols->buf)[k] > largest) largest = ((const uint8_t *)symbols->buf)[k];
    return largest < DIFFERENCE_SYMBOLS ? 1 : refuse("there is no such symbol");
}

/* write_raw_bits(differences, symbols) -> the raw bits of int64 differences with these symbols. */
static PyObject *py_write_raw_bits(PyObject *self, PyObject *arguments) {
    Py_buffer differences, symbols;
    PyObject *result = NULL;
    RawBits raw;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*y*", &differences, &symbols)) return NULL;
    int fits = has_numbers(&differences, symbols.len, 8) ? has_symbols(&symbols) : refuse("the symbols do not fit the differences");
    if (fits) {
        count_raw_bits(&raw, (const uint8_t *)symbols.buf, (size_t)symbols.len);
        uint8_t *bytes = (uint8_t *)calloc(raw.starts[64] + 1, 1);
        if (bytes) {
            Py_BEGIN_ALLOW_THREADS;
            write_raw_bits(&raw, (const uint8_t *)symbols.buf, (const int64_t *)differences.buf, bytes, (size_t)symbols.len);
            Py_END_ALLOW_THREADS;
            result = PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)raw.starts[64]);
        } else {
            PyErr_NoMemory();
        }
        free(bytes);
    }
    PyBuffer_Release(&differences), PyBuffer_Release(&symbols);
    return result;
}

/* read_raw_bits(symbols, bytes, differences) -> the number of bytes that the raw bits of symbols take; the int64 differences if
 * there are exactly so many. */
static PyObject *py_read_raw_bits(PyObject *self, PyObject *arguments) {
    Py_buffer symbols, bytes, differences;
    RawBits raw;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*y*w*", &symbols, &bytes, &differences)) return NULL;
    int fits = has_numbers(&differences, symbols.len, 8) ? has_symbols(&symbols) : refuse("the differences do not fit the symbols");
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        count_raw_bits(&raw, (const uint8_t *)symbols.buf, (size_t)symbols.len);
        if ((size_t)bytes.len == raw.starts[64])
            read_raw_bits(&raw, (const uint8_t *)symbols.buf, (const uint8_t *)bytes.buf, (int64_t *)differences.buf, (size_t)symbols.len);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&symbols), PyBuffer_Release(&bytes), PyBuffer_Release(&differences);
    return fits ? PyLong_FromSize_t(raw.starts[64]) : NULL;
}

#endif
