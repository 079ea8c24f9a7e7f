/* SPDX-License-Identifier: Apache-2.0 */
/* gaussian: latents drawn around their means, and their divergence from the standard normal.
 *
 *   s  = exp(logvar / 2), by cq_exp (1 unit in the last place)
 *   z  = mu + s noise
 *   kl = sum (mu^2 + s^2 - 1 - logvar) / 2                      nats, in lanes of double
 *   gmu     = gz + gkl mu
 *   glogvar = (gz (s noise) + gkl (s^2 - 1)) / 2
 *
 * A run of n elements; z may be mu, gz may be gmu. float32 without FMA but for that within the
 * exponential. NaN stays NaN. logvar is not clamped; the exponential saturates at its ends.
 * Exactness: EXACT. Source: Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014,
 * appendix B. */
#include "core/activation.h"
#include "core/dispatch.h"

void cq_gaussian_f32_scalar(const cq_gaussian_run *t) {
    for (size_t i = 0; i < t->n; i++) {
        const float mu = t->mu[i], v = t->logvar[i], s = cq_exp(0.5f * v);
        t->kl[i % 8] += (double)(0.5f * (((mu * mu + s * s) - 1.0f) - v));
        t->z[i] = mu + s * t->noise[i];
    }
}

void cq_gaussian_bwd_f32_scalar(const cq_gaussian_run *t) {
    for (size_t i = 0; i < t->n; i++) {
        const float gz = t->gz[i], s = cq_exp(0.5f * t->logvar[i]);
        t->glogvar[i] = 0.5f * (gz * (s * t->noise[i]) + t->gkl * (s * s - 1.0f));
        t->gmu[i] = gz + t->gkl * t->mu[i];
    }
}
