/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

/* Both calls begin with the same arguments; samples 0: no noise. */
#define COMMON                                                                                     \
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0}, {"low", NPY_FLOAT32, "C", CQ_IN, 0, 0},                 \
        {"high", NPY_FLOAT32, "C", CQ_IN, 0, 0}, {"bits", NPY_FLOAT32, "GC", CQ_IN, 0, 0},         \
        {"tables", NPY_FLOAT32, "CT", CQ_IN | CQ_OPT, 0, 0},                                       \
        {"samples", CQ_ARG_INT, NULL, 0, 0, UINT32_MAX},                                           \
        {"seed", CQ_ARG_INT, NULL, 0, LLONG_MIN, LLONG_MAX},                                       \
        {"step", CQ_ARG_INT, NULL, 0, 0, UINT32_MAX},                                              \
        {"sample", CQ_ARG_INT, NULL, 0, 0, UINT32_MAX}, {                                          \
        "stream", CQ_ARG_INT, NULL, 0, 0, UINT32_MAX                                               \
    }

static const cq_arg forward[] = {
    COMMON,
    {"y", NPY_FLOAT32, "RC", CQ_OUT, 0, 0},
    {"rate", NPY_FLOAT32, "R", CQ_OUT, 0, 0},
};
static const cq_arg backward[] = {
    COMMON,
    {"gy", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"grate", NPY_FLOAT32, "R", CQ_IN, 0, 0},
    {"gx", NPY_FLOAT32, "RC", CQ_OUT, 0, 0},
    {"gbits", NPY_FLOAT32, "GC", CQ_OUT, 0, 0},
    {"glow", NPY_FLOAT64, "C", CQ_OUT, 0, 0},
    {"ghigh", NPY_FLOAT64, "C", CQ_OUT, 0, 0},
    {"gtables", NPY_FLOAT32, "CT", CQ_OUT | CQ_OPT, 0, 0},
    {"work", NPY_FLOAT64, "W", CQ_OUT, 0, 0},
};

/* 0, or -1 with an exception set where groups, samples or tables do not fit. */
static int common(const cq_args *a, cq_noise *noise, cq_channel_args *to) {
    const size_t R = a->dim['R'], G = a->dim['G'], samples = (size_t)a->i[5];
    const size_t rows = G ? cq_mul(R / G, G) : 0, noisy = samples ? R / samples * samples : R;
    if (cq_expect_size(a, "x", R, rows, "a multiple of the rows of bits") < 0) return -1;
    if (cq_expect_size(a, "x", R, noisy, "a multiple of samples") < 0) return -1;
    if (a->ptr[4] && cq_expect_size(a, "tables", a->dim['T'], CQ_CHANNEL_TABLE, "511 entries") < 0)
        return -1;
    *noise = (cq_noise){{(uint32_t)a->i[6], (uint32_t)((unsigned long long)a->i[6] >> 32)},
                        (uint32_t)a->i[8],
                        (uint32_t)a->i[7],
                        (uint32_t)a->i[9],
                        NULL};
    *to = (cq_channel_args){.x = a->ptr[0],
                            .low = a->ptr[1],
                            .high = a->ptr[2],
                            .bits = a->ptr[3],
                            .tables = a->ptr[4],
                            .noise = samples ? noise : NULL,
                            .R = R,
                            .C = a->dim['C'],
                            .G = G,
                            .T = samples ? R / samples : R};
    return 0;
}

PyObject *cq_py_channel_bits(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_noise noise;
    cq_channel_args all;
    cq_status status;
    if (CQ_PARSE("channel_bits", forward, &a) < 0 || common(&a, &noise, &all) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_channel_bits(&a.cx, &all, a.ptr[10], a.ptr[11]);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

PyObject *cq_py_channel_bits_bwd(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_noise noise;
    cq_channel_args all;
    cq_status status;
    if (CQ_PARSE("channel_bits_backward", backward, &a) < 0 || common(&a, &noise, &all) < 0)
        return NULL;
    const size_t work = a.ptr[4] ? cq_channel_workspace(all.C) : 0;
    if (cq_expect_size(&a, "gtables", a.ptr[16] != NULL, a.ptr[4] != NULL, "given with tables") <
            0 ||
        cq_expect_size(&a, "work", a.dim['W'], work, "channel_workspace(C) with tables") < 0)
        return NULL;
    const cq_channel_grads g = {a.ptr[12], a.ptr[13], a.ptr[14], a.ptr[15],
                                a.ptr[16], a.ptr[17], NULL};
    Py_BEGIN_ALLOW_THREADS
    status = cq_channel_bits_bwd(&a.cx, &all, a.ptr[10], a.ptr[11], &g);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg sizes[] = {{"cols", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX}};

PyObject *cq_py_channel_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("channel_workspace", sizes, &a) < 0) return NULL;
    return PyLong_FromSize_t(cq_channel_workspace((size_t)a.i[0]));
}
