/* The memory for coding the codes of a weight. */
#ifndef OPQ_WORKSPACE_H
#define OPQ_WORKSPACE_H

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"

/* The memory for coding one weight. */
typedef struct {
    CodeModel model;
    PaddedKernels padded;
    PositionContext contexts[MAX_POSITIONS];
    KernelColumn kernels;
    ByteBuffer output, raw_output; /* encoder */
    BandState band;
    Distribution second_set[]; /* with a trellis, set A for quantizer 1; then the means of columns */
} Workspace;

/* A workspace at the first band of a weight, without a coder; NULL if out of memory. */
static Workspace *new_workspace(const Shape *shape, int32_t *codes) {
    const size_t second = shape->trellis ? SET_B : 0, means = sizeof(uint32_t) * (size_t)shape->inputs;
    Workspace *work = (Workspace *)malloc(sizeof *work + sizeof(Distribution) * second + means);
    if (!work) return NULL;
    work->model = tables.initial;
    memset(&work->padded, 0, sizeof work->padded);
    init_positions(work->contexts, shape);
    BandState *band = &work->band;
    memset(band, 0, sizeof *band);
    band->model = &work->model, band->shape = shape, band->contexts = work->contexts, band->padded = &work->padded;
    band->kernels = &work->kernels;
    band->column_means = (uint32_t *)(work->second_set + second), band->global_mean = shape->initial_mean, band->codes = codes;
    band->second_set = (uint32_t)(offsetof(Workspace, second_set) - offsetof(Workspace, model.distributions));
    memcpy(work->second_set, tables.initial.distributions, sizeof(Distribution) * second);
    start_band(band);
    return work;
}

#endif
