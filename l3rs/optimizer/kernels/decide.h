/* The decision of a step: from the sums of squares of the first pass to the scales of the second, layer by layer.
 *
 * Its model in torch operations, and what each table is, stands in l3rs/optimizer/decision.py, which checks their shapes and places.
 */
#pragma once
#include <math.h>
#include <stdint.h>

#include "vector.h"

enum { ALL_DIRECTIONS = 6, ALL_SUMS = 6, ALL_SIGNALS = 4 };
enum { SHARED, LAYERWISE, GLOBAL };                                    /* controllers */
enum { LOG_WEIGHT_NORM, LOG_GRAD_NORM, LOSS, LOG_RELATIVE_GRAD };      /* signals */
enum { MULTIPLIER, BY_WEIGHTS, BY_SIZE };                              /* units */
enum { BY_NORM, CONSTANT, OF_THE_HEAD };                               /* sizes */
enum { OF_P, OF_G, OF_ADAM, OF_LION, OF_LAMB, OF_ADAMAX };             /* sums */

typedef struct {
    int64_t layers, groups, signals, factors, points, scales, directions, shown, constants, inputs, hidden1, hidden2;
    int64_t controller, unit, sized, head, head_bias;
    int64_t signal[ALL_SIGNALS];
    int64_t order[ALL_DIRECTIONS], column[ALL_DIRECTIONS], show[ALL_DIRECTIONS]; /* of each direction: its scale, its sum, whether shown */
    float slope, norm_scale, norm_floor, loss_scale, floor, root;
    float loss;
    int32_t ok; /* whether the loss is finite */
    float *steps_of, *ema, *clock;
    const int64_t *group;
    const float *root_numel, *factors_of;
    const double *log_factors;
    const float *totals, *points_of, *absolute, *constants_of, *unit_of;
    const int64_t *size_kind, *size_row;
    const float *size_floor, *size_constant;
    const float *w1, *b1, *w2, *b2, *w3, *b3;
    float *lam, *mu, *lengths;
    const float *rates; /* (2, groups): lr, and the sign of the loss */
    const double *sums; /* (layers, ALL_SUMS) */
    float *scales_of;   /* (layers, ALL_DIRECTIONS) */
    int64_t *skipped;
    float *work; /* layers * inputs + hidden1 + hidden2 + points + scales + 2 * factors */
} Decide;

/* W x + b, of which negative ones may become 0. */
VECTOR static void linear(const float *x, const float *w, const float *b, int64_t inputs, int64_t outputs, int cut, float *y)
{
    for (int64_t o = 0; o < outputs; o++) {
        float sum = b[o];
        for (int64_t i = 0; i < inputs; i++) sum += w[o * inputs + i] * x[i];
        y[o] = cut && sum < 0 ? 0 : sum;
    }
}

/* The norm up to which a direction counts as 0: below it, sums of squares of floats are noise (l3rs/directions/base.py). */
#define NOTHING 1e-17f

static float norm_of(const Decide *d, int64_t layer, int64_t column) { return (float)sqrt(d->sums[layer * ALL_SUMS + column]); }

static float size_of(const Decide *d, int64_t layer)
{
    float size = d->size_constant[layer];
    if (d->size_kind[layer] == BY_NORM) size = norm_of(d, d->size_row[layer], OF_P);
    if (d->size_kind[layer] == OF_THE_HEAD) {
        float of_weights = norm_of(d, d->head, OF_G);
        size = of_weights > 0 ? d->root * norm_of(d, d->head_bias, OF_G) / of_weights : 0;
    }
    return size > d->size_floor[layer] ? size : d->size_floor[layer];
}

/* The features of a layer into x; advances its averages. `times` are those of its group, `now` and `before` 1 - g^n and 1 - g^(n - 1). */
static void features(const Decide *d, int64_t layer, const float *times, const float *now, const float *before, float *x)
{
    float root = d->root_numel[layer], weights = norm_of(d, layer, OF_P), grads = norm_of(d, layer, OF_G);
    for (int64_t s = 0; s < d->signals; s++) {
        float seen = 0;
        switch (d->signal[s]) {
        case LOG_WEIGHT_NORM: seen = logf(weights / root + d->norm_floor) / d->norm_scale; break;
        case LOG_GRAD_NORM: seen = logf(grads / root + d->norm_floor) / d->norm_scale; break;
        case LOSS: seen = d->loss * d->rates[d->groups + d->group[layer]] / d->loss_scale; break;
        case LOG_RELATIVE_GRAD: seen = logf(size_of(d, layer) * grads + d->norm_floor) / d->norm_scale; break;
        }
        float *average = d->ema + (layer * d->signals + s) * d->factors;
        for (int64_t a = 0; a < d->factors; a++) {
            float g = d->factors_of[a], old = average[a];
            average[a] = old + (1 - g) * ((d->ok ? seen : old / before[a]) - old); /* those of a skipped step take in themselves */
            *x++ = average[a] / now[a];
        }
    }
    for (int64_t i = 0; i < d->points + d->scales; i++) *x++ = times[i];
    for (int64_t k = 0; k < d->directions; k++)
        if (d->show[k]) {
            float norm = norm_of(d, layer, d->column[k]);
            if (d->column[k] == OF_LAMB && norm > 0 && weights > 0) norm = weights; /* its trust */
            *x++ = logf(norm / root + d->norm_floor) / d->norm_scale;
        }
    for (int64_t i = 0; i < d->constants; i++) *x++ = d->constants_of[layer * d->constants + i];
}

/* lambda, mu, the length and the scales of a layer, from the features that its controller takes. */
static void judge(const Decide *d, int64_t layer, const float *x, float *h1, float *h2)
{
    int64_t own = d->controller == LAYERWISE ? layer : 0, outputs = d->directions + 1;
    float z[ALL_DIRECTIONS + 1], largest = -INFINITY, total = 0, unit = d->unit_of[layer], *mu = d->mu + layer * d->directions;
    linear(x, d->w1 + own * d->hidden1 * d->inputs, d->b1 + own * d->hidden1, d->inputs, d->hidden1, 1, h1);
    linear(h1, d->w2 + own * d->hidden2 * d->hidden1, d->b2 + own * d->hidden2, d->hidden1, d->hidden2, 1, h2);
    linear(h2, d->w3 + own * outputs * d->hidden2, d->b3 + own * outputs, d->hidden2, outputs, 0, z);
    for (int64_t k = 0; k < d->directions; k++) largest = z[k + 1] > largest ? z[k + 1] : largest;
    for (int64_t k = 0; k < d->directions; k++) total += mu[k] = expf(z[k + 1] - largest);
    if (d->unit == BY_WEIGHTS) unit *= norm_of(d, layer, OF_P) > d->floor ? norm_of(d, layer, OF_P) : d->floor;
    if (d->unit == BY_SIZE) unit *= size_of(d, layer);
    d->lam[layer] = expf(z[0]);
    d->lengths[layer] = d->ok ? d->lam[layer] * unit * d->rates[d->group[layer]] : 0;
    for (int64_t k = 0; k < d->directions; k++) {
        float norm = norm_of(d, layer, d->column[k]);
        mu[k] /= total;
        d->scales_of[layer * ALL_DIRECTIONS + d->order[k]] = norm > NOTHING ? d->lengths[layer] * mu[k] / norm : 0;
    }
}

/* Decides, and advances the counts, the averages and the clock; or does nothing and returns 1 if a gradient is not finite. */
static int decide(const Decide *d)
{
    for (int64_t l = 0; d->ok && l < d->layers; l++)
        if (!isfinite(d->sums[l * ALL_SUMS + OF_G])) return 1;
    float *x = d->work, *h1 = x + d->layers * d->inputs, *h2 = h1 + d->hidden1, *times = h2 + d->hidden2;
    float *now = times + d->points + d->scales, *before = now + d->factors;
    float count = -1;
    int64_t group = -1;
    for (int64_t l = 0; l < d->layers; l++) {
        if (d->group[l] != group) { /* layers of a group stand together */
            group = d->group[l];
            float progress = d->clock[group] / d->totals[group];
            for (int64_t i = 0; i < d->points; i++) times[i] = tanhf(d->slope * ((progress < 1 ? progress : 1) - d->points_of[i]));
            for (int64_t i = 0; i < d->scales; i++) times[d->points + i] = d->absolute[group * d->scales + i];
        }
        d->steps_of[l] += 1;
        if (d->steps_of[l] != count) { /* mostly the same for all */
            count = d->steps_of[l];
            for (int64_t a = 0; a < d->factors; a++) {
                now[a] = (float)-expm1(count * d->log_factors[a]);
                before[a] = (float)-expm1((count > 1 ? count - 1 : 1) * d->log_factors[a]);
            }
        }
        features(d, l, times, now, before, x + l * d->inputs);
    }
    if (d->controller == GLOBAL)
        for (int64_t i = 0; i < d->inputs; i++) {
            double sum = 0;
            for (int64_t l = 0; l < d->layers; l++) sum += x[l * d->inputs + i];
            for (int64_t l = 0; l < d->layers; l++) x[l * d->inputs + i] = (float)(sum / (double)d->layers);
        }
    for (int64_t l = 0; l < d->layers; l++) judge(d, l, x + l * d->inputs, h1, h2);
    for (int64_t g = 0; g < d->groups; g++) d->clock[g] += 1;
    *d->skipped += !d->ok;
    return 0;
}
