/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

/* Both calls begin with the same arguments. */
#define COMMON                                                                                     \
    {"mu", NPY_FLOAT32, "RC", CQ_IN, 0, 0}, {"logvar", NPY_FLOAT32, "RC", CQ_IN, 0, 0},            \
        {"low", NPY_FLOAT32, "C", CQ_IN, 0, 0}, {"high", NPY_FLOAT32, "C", CQ_IN, 0, 0},           \
        {"bits", NPY_FLOAT32, "GC", CQ_IN, 0, 0}, {"samples", CQ_ARG_INT, NULL, 0, 1, UINT32_MAX}, \
        {"seed", CQ_ARG_INT, NULL, 0, LLONG_MIN, LLONG_MAX},                                       \
        {"step", CQ_ARG_INT, NULL, 0, 0, UINT32_MAX},                                              \
        {"sample", CQ_ARG_INT, NULL, 0, 0, UINT32_MAX},                                            \
        {"stream", CQ_ARG_INT, NULL, 0, 0, UINT32_MAX}, {"table", NPY_FLOAT32, "TP", CQ_IN, 0, 0}

static const cq_arg forward[] = {
    COMMON,
    {"y", NPY_FLOAT32, "RC", CQ_OUT, 0, 0},
    {"kl", NPY_FLOAT32, "R", CQ_OUT, 0, 0},
};
static const cq_arg backward[] = {
    COMMON,
    {"gy", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"gkl", NPY_FLOAT32, "R", CQ_IN, 0, 0},
    {"gmu", NPY_FLOAT32, "RC", CQ_OUT, 0, 0},
    {"glogvar", NPY_FLOAT32, "RC", CQ_OUT, 0, 0},
    {"gbits", NPY_FLOAT32, "GC", CQ_OUT, 0, 0},
    {"glow", NPY_FLOAT64, "C", CQ_OUT, 0, 0},
    {"ghigh", NPY_FLOAT64, "C", CQ_OUT, 0, 0},
};

/* 0, or -1 with an exception set where groups, samples or the table do not fit. */
static int common(const cq_args *a, cq_noise *noise, cq_channel_args *to) {
    const size_t R = a->dim['R'], G = a->dim['G'], samples = (size_t)a->i[5];
    const size_t rows = G ? cq_mul(R / G, G) : 0;
    if (cq_expect_size(a, "mu", R, rows, "a multiple of the rows of bits") < 0) return -1;
    if (cq_expect_size(a, "mu", R, R / samples * samples, "a multiple of samples") < 0) return -1;
    if (cq_expect_size(a, "table", a->dim['T'] * a->dim['P'], (size_t)3 * CQ_NOISE_PIECES,
                       "3 * 496") < 0)
        return -1;
    *noise = (cq_noise){{(uint32_t)a->i[6], (uint32_t)((unsigned long long)a->i[6] >> 32)},
                        (uint32_t)a->i[8],
                        (uint32_t)a->i[7],
                        (uint32_t)a->i[9],
                        a->ptr[10]};
    *to = (cq_channel_args){.x = a->ptr[0],
                            .logvar = a->ptr[1],
                            .low = a->ptr[2],
                            .high = a->ptr[3],
                            .bits = a->ptr[4],
                            .latent = noise,
                            .R = R,
                            .C = a->dim['C'],
                            .G = G,
                            .T = R / samples};
    return 0;
}

PyObject *cq_py_bottleneck(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_noise noise;
    cq_channel_args all;
    cq_status status;
    if (CQ_PARSE("bottleneck", forward, &a) < 0 || common(&a, &noise, &all) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_channel_bits(&a.cx, &all, a.ptr[11], a.ptr[12]);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

PyObject *cq_py_bottleneck_bwd(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_noise noise;
    cq_channel_args all;
    cq_status status;
    if (CQ_PARSE("bottleneck_backward", backward, &a) < 0 || common(&a, &noise, &all) < 0)
        return NULL;
    const cq_channel_grads g = {a.ptr[13], a.ptr[15], a.ptr[16], a.ptr[17], NULL, NULL, a.ptr[14]};
    Py_BEGIN_ALLOW_THREADS
    status = cq_channel_bits_bwd(&a.cx, &all, a.ptr[11], a.ptr[12], &g);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}
