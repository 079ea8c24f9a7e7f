/* SPDX-License-Identifier: Apache-2.0 */
/* A C program that runs the drivers with the kernels of every ISA level and compares what they give
 * with what the scalar kernels give, on the same seeded operands. It needs no Python, so it also
 * runs where only an emulator is (qemu): see run.sh. */
#ifndef PARITY_H
#define PARITY_H

#include "core/half.h"
#include "core/parallel.h"
#include "ops/ops.h"

/* One call of one case: its shape, its operands and the results it reported. */
typedef struct run {
    cq_ctx *cx;
    size_t R, C;
    uint64_t random;
    double *result; /* all results so far */
    size_t results, room;
    void *memory[64];
    size_t memories;
    double tolerance; /* 0: the same bits */
} run;

typedef struct parity_case {
    const char *name;
    void (*call)(run *t);
} parity_case;

extern const parity_case elementwise_cases[];
extern const size_t elementwise_count;
extern const parity_case matrix_cases[];
extern const size_t matrix_count;
extern const parity_case product_cases[];
extern const size_t product_count;
extern const parity_case linear_cases[];
extern const size_t linear_count;

/* Aligned memory that lives as long as the call; never NULL. */
void *take(run *t, size_t bytes);

/* Seeded operands. `nasty`: ties, zeros of both signs, infinities, NaN, denormals among normal
 * values; `finite` without NaN and infinities; `grids`: scales and integer bounds of n grids. */
uint64_t draw(run *t);
float *nasty(run *t, size_t n);
float *finite(run *t, size_t n);
uint8_t *bytes_below(run *t, size_t n, int bits);
void grids(run *t, size_t n, float **scale, float **lo, float **hi);

/* A packed weight of N outputs and t->C inputs in groups of 32, or one group per row. */
cq_packed packed_weight(run *t, size_t N, int bits, int symmetric);

/* Report results; a status other than CQ_OK is a result too. */
void report_status(run *t, cq_status status);
void report_f32(run *t, const float *v, size_t n);
void report_f64(run *t, const double *v, size_t n);
void report_u8(run *t, const uint8_t *v, size_t n);
void report_s8(run *t, const int8_t *v, size_t n);

#endif
