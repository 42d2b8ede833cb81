/* Python functions for words, planes and fast planes (words.h, fast_plane.h). They check what memory safety depends on. */
#ifndef OPQ_PLANE_FUNCTIONS_H
#define OPQ_PLANE_FUNCTIONS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>

#include "fast_plane.h"
#include "fast_plane_encoder.h"
#include "words.h"

static int is_word_size(int size) { return size == 1 || size == 2 || size == 4 || size == 8; }

static int refuse(const char *problem) {
    PyErr_SetString(PyExc_ValueError, problem);
    return 0;
}

/* split_words(words, size, rotated, planes): the planes of words, which begin at a multiple of their size. */
static PyObject *py_split_words(PyObject *self, PyObject *arguments) {
    Py_buffer words, planes;
    int size, rotated;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*iiw*", &words, &size, &rotated, &planes)) return NULL;
    const int fits = is_word_size(size) && words.len % size == 0 && planes.len == words.len
                     && (uintptr_t)words.buf % (uintptr_t)size == 0;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        split_words((const uint8_t *)words.buf, size, rotated != 0, (uint8_t *)planes.buf, (size_t)(words.len / size));
        Py_END_ALLOW_THREADS;
    } else {
        refuse("the planes do not fit the words");
    }
    PyBuffer_Release(&words), PyBuffer_Release(&planes);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

/* Whether there are groups of these bytes, each with a table; raises an exception if not. */
static int check_groups(const Py_buffer *bytes, const Py_buffer *tables) {
    int largest = 0;
    if (bytes->len < 1 || bytes->len > FAST_BLOCK || tables->len != (bytes->len + FAST_GROUP - 1) / FAST_GROUP)
        return refuse("the groups do not fit the bytes");
    for (Py_ssize_t k = 0; k < tables->len; k++)
        if (((const uint8_t *)tables->buf)[k] > largest) largest = ((const uint8_t *)tables->buf)[k];
    return largest < FAST_PLANE_TABLES ? 1 : refuse("there are too many tables");
}

/* sum_groups(bytes, sums): adds the sum of each group to a uint32. */
static PyObject *py_sum_groups(PyObject *self, PyObject *arguments) {
    Py_buffer bytes, sums;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*w*", &bytes, &sums)) return NULL;
    const int fits = bytes.len <= FAST_BLOCK && sums.len == 4 * ((bytes.len + FAST_GROUP - 1) / FAST_GROUP) && (uintptr_t)sums.buf % 4 == 0;
    if (fits) fast_sum_groups((const uint8_t *)bytes.buf, bytes.len, (uint32_t *)sums.buf);
    else refuse("the sums do not fit the bytes");
    PyBuffer_Release(&bytes), PyBuffer_Release(&sums);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

/* count_groups(bytes, tables, counts): adds how often each byte occurs in groups of each of 8 tables to 8 * 256 uint32. */
static PyObject *py_count_groups(PyObject *self, PyObject *arguments) {
    Py_buffer bytes, tables, counts;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*y*w*", &bytes, &tables, &counts)) return NULL;
    int fits = check_groups(&bytes, &tables);
    if (fits && (counts.len != 4 * FAST_PLANE_TABLES * FAST_SYMBOLS || (uintptr_t)counts.buf % 4))
        fits = refuse("the counts do not fit the tables");
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        fast_count_groups((const uint8_t *)bytes.buf, bytes.len, (const uint8_t *)tables.buf, (uint32_t *)counts.buf);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&bytes), PyBuffer_Release(&tables), PyBuffer_Release(&counts);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

/* encode_block(bytes, tables, shares) -> the stream of a block; shares are 256 uint16 for each of 8 tables. */
static PyObject *py_encode_block(PyObject *self, PyObject *arguments) {
    Py_buffer bytes, tables, shares;
    PyObject *result = NULL;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "y*y*y*", &bytes, &tables, &shares)) return NULL;
    int fits = check_groups(&bytes, &tables);
    if (fits && (shares.len != 2 * FAST_PLANE_TABLES * FAST_SYMBOLS || (uintptr_t)shares.buf % 2))
        fits = refuse("the shares do not fit the tables");
    if (fits) {
        const size_t longest = fast_longest_block(bytes.len);
        FastPlaneCodes *codes = (FastPlaneCodes *)malloc(sizeof *codes);
        uint8_t *buffer = (uint8_t *)malloc(longest), *begin = NULL;
        if (codes && buffer) {
            Py_BEGIN_ALLOW_THREADS;
            fast_fill_plane_codes(codes, (const uint16_t *)shares.buf, FAST_PLANE_TABLES);
            begin = fast_encode_block(codes, (const uint8_t *)bytes.buf, bytes.len, (const uint8_t *)tables.buf, buffer + longest);
            Py_END_ALLOW_THREADS;
            if (begin) result = PyBytes_FromStringAndSize((const char *)begin, (Py_ssize_t)(buffer + longest - begin));
            else refuse("a byte has no share");
        } else {
            PyErr_NoMemory();
        }
        free(codes), free(buffer);
    }
    PyBuffer_Release(&bytes), PyBuffer_Release(&tables), PyBuffer_Release(&shares);
    return result;
}

/* The words of blocks, one for each byte of a word; `blocks` is memory to work in. What is wrong with the blocks, or NULL. */
static const char *merge_blocks(const Py_buffer *parts, int size, int rotated, FastBlock *blocks, uint8_t *words, int64_t count) {
    const uint8_t *planes[LARGEST_WORD];
    for (int byte = 0; byte < size; byte++) {
        const char *problem = fast_start_block(&blocks[byte], (const uint8_t *)parts[byte].buf, (size_t)parts[byte].len, count);
        if (problem) return problem;
    }
    for (int64_t at = 0; at < count; at += FAST_STEP) {
        const int64_t step = count - at < FAST_STEP ? count - at : FAST_STEP;
        for (int byte = 0; byte < size; byte++)
            if (!(planes[byte] = fast_next_bytes(&blocks[byte], step))) return FAST_NO_END;
        merge_words(planes, size, rotated, words + at * size, (size_t)step);
    }
    for (int byte = 0; byte < size; byte++)
        if (!fast_end_block(&blocks[byte])) return FAST_NO_END;
    return NULL;
}

/* merge_blocks(blocks, rotated, words): decodes a list of blocks, one for each byte of a word, the highest first. Returns what is
 * wrong with them, or None. */
static PyObject *py_merge_blocks(PyObject *self, PyObject *arguments) {
    PyObject *list;
    Py_buffer words, parts[LARGEST_WORD];
    int rotated, taken = 0;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "Oiw*", &list, &rotated, &words)) return NULL;
    const int size = PyList_Check(list) && PyList_Size(list) <= LARGEST_WORD ? (int)PyList_Size(list) : 0;
    int fits = is_word_size(size) && words.len > 0 && words.len % size == 0 && words.len / size <= FAST_BLOCK
               && (uintptr_t)words.buf % (uintptr_t)size == 0;
    if (!fits) refuse("the words do not fit the blocks");
    while (fits && taken < size) {
        PyObject *part = PyList_GetItem(list, taken);
        if (!part || PyObject_GetBuffer(part, &parts[taken], PyBUF_SIMPLE)) fits = 0;
        else taken++;
    }
    FastBlock *blocks = fits ? (FastBlock *)malloc((size_t)size * sizeof *blocks) : NULL;
    const char *problem = NULL;
    if (fits && !blocks) PyErr_NoMemory();
    if (blocks) {
        Py_BEGIN_ALLOW_THREADS;
        problem = merge_blocks(parts, size, rotated != 0, blocks, (uint8_t *)words.buf, words.len / size);
        Py_END_ALLOW_THREADS;
    }
    free(blocks);
    while (taken > 0) PyBuffer_Release(&parts[--taken]);
    PyBuffer_Release(&words);
    if (!fits || PyErr_Occurred()) return NULL;
    if (problem) return PyUnicode_FromString(problem);
    Py_RETURN_NONE;
}

#endif
