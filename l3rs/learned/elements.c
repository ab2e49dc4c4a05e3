/* The pass of VeLO, Celo, Celo2 and small_fc_lopt over the elements of many parameters, float32 on CPU, by one thread or many.
 *
 * Their MLP sees up to 30 features of each element, each divided by its root mean square over the parameter. So there are several passes:
 *   l3rs_elements_measure  sums what VeLO's LSTM sees of each parameter; changes nothing;
 *   l3rs_elements_step     advances row and column means of the squared gradient; then momentum and mean square, summing the squares of the
 *                          features; then makes the features again, and gives the MLP's direction times exp(exponent * log magnitude).
 * Features live in a block of BLOCK elements at a time, in the first-level cache, and are never written to memory.
 *
 * A parameter is `rows` rows (its first axis in torch) of `length` elements. Adafactor's row and column factors are the same for many
 * elements: a side has an array of each of its nine numbers, and says where element e of row o finds them: at o * stride + index[e].
 *
 * Sums are added in a fixed order: results do not depend on the number of threads.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../optimizer/kernels/vector.h"

enum { BLOCK = 64, FEATURES = 30, VECTOR_FEATURES = 15, HIDDEN = 32, DECAYS = 3, SIDE = 9 };
enum { IN_ORDER, PERIODIC, ANYWHERE }; /* index[e] is e; repeats after `block` elements; is anything */
enum { RAW, FACTOR, ROOT };            /* of a side: the mean squares x, its factor of g / rms, and (x + 1e-8)^-1/2, DECAYS of each */

typedef struct {
    float *mean;          /* (DECAYS, count), the state: row or column means of squares; of a vector, its mean squares */
    const int32_t *index; /* (length) */
    float *values;        /* (SIDE, count), made in each step */
    double *sum;          /* (count) */
    int64_t count, stride, kind;
    double over; /* how many squares a mean is of */
} Side;

typedef struct {
    int64_t rows, length, block, positions; /* elements in a row, in a block (at most BLOCK); spatial positions that are normalized apart */
    int64_t features, vector, hidden;       /* how many; whether fac = g a and the last group is m b, for a vector; units of a layer, at most HIDDEN */
    int64_t outer, inner;                   /* of the row means: axes before and after d1, over which they are averaged again */
    int64_t chunk, chunks, first;           /* rows in a chunk; chunks; the first one's number among those of all parameters */
    const float *g, *p;
    float *momentum[DECAYS], *second, *out;
    Side row, col;
    const float *w0, *b0, *w1, *b1, *w2, *b2; /* (features, hidden), (hidden), (hidden, hidden), (hidden), (hidden, 3), (3) */
    float *scale;                             /* (features, BLOCK) */
    double *stats;                            /* (STATS) */
} Elements;

typedef struct {
    float keep[DECAYS], fresh[DECAYS], keep_mean[DECAYS], fresh_mean[DECAYS], keep_second, fresh_second; /* of momentum, sides, mean square */
    float eps, delta, bound, clip, exponent, of_vectors; /* bound is of gradients, clip of a feature */
} Rule;

typedef struct {
    int64_t count, chunks;
    const int32_t *owner; /* (chunks), which parameter a chunk is of */
    float *partial;       /* (chunks, FEATURES, BLOCK) */
    Elements *parameters;
    Rule rule;
} Portion;

enum { STATS = 9 }; /* sums of p^2; of r, r^2, and of each momentum and its square */

typedef struct {
    float g[BLOCK], p[BLOCK], m[DECAYS][BLOCK], r[BLOCK], row[SIDE][BLOCK], col[SIDE][BLOCK];
} Inputs;

INLINE float within(float x, float bound) { return x > bound ? bound : x < -bound ? -bound : x; }

/* What a side has for `n` elements from e of row o; kept from block to block where it repeats. */
INLINE void load_side(const Side *s, float (*to)[BLOCK], int64_t o, int64_t e, int64_t n)
{
    if (s->kind == PERIODIC && e) return;
    for (int k = 0; k < SIDE; k++) {
        const float *from = s->values + k * s->count + o * s->stride;
        if (s->kind == IN_ORDER)
            memcpy(to[k], from + e, (size_t)n * sizeof(float));
        else
            for (int64_t i = 0; i < n; i++) to[k][i] = from[s->index[e + i]];
    }
}

/* The features of a block; lanes past its end hold what is never used. */
INLINE void features(const Elements *l, const Rule *rule, const Inputs *x, float (*f)[BLOCK])
{
    float s[BLOCK];
    for (int i = 0; i < BLOCK; i++) s[i] = 1 / sqrtf(x->r[i] + rule->eps);
    for (int i = 0; i < BLOCK; i++) {
        f[0][i] = x->g[i];
        f[1][i] = within(x->g[i], rule->clip);
        f[2][i] = x->p[i];
        f[6][i] = x->r[i];
        f[10][i] = s[i];
        f[14][i] = x->g[i] * s[i];
    }
    for (int k = 0; k < DECAYS; k++)
        for (int i = 0; i < BLOCK; i++) {
            float a = x->row[FACTOR * DECAYS + k][i], b = x->col[FACTOR * DECAYS + k][i];
            f[3 + k][i] = x->m[k][i];
            f[7 + k][i] = x->m[k][i] * s[i];
            f[11 + k][i] = x->g[i] * (l->vector ? a : a * b);
        }
    if (l->features == VECTOR_FEATURES) return;
    for (int k = 0; k < DECAYS; k++)
        for (int i = 0; i < BLOCK; i++) {
            float a = x->row[FACTOR * DECAYS + k][i], b = x->col[FACTOR * DECAYS + k][i];
            f[15 + k][i] = x->row[k][i];
            f[18 + k][i] = x->col[k][i];
            f[21 + k][i] = x->row[ROOT * DECAYS + k][i];
            f[24 + k][i] = x->col[ROOT * DECAYS + k][i];
            f[27 + k][i] = x->m[k][i] * (l->vector ? b : a * b);
        }
}

INLINE void load(float *to, const float *from, int64_t n) { memcpy(to, from, (size_t)n * sizeof(float)); }

/* Adds the squares of a block at e of row o to the sums of a side; `lanes` gathers those of a row that repeat. */
INLINE void add_side(Side *s, const float *q, float *lanes, int64_t o, int64_t e, int64_t n)
{
    double *sum = s->sum + o * s->stride;
    if (s->kind == IN_ORDER)
        for (int64_t i = 0; i < n; i++) sum[e + i] += q[i];
    else if (s->kind == PERIODIC)
        for (int64_t i = 0; i < n; i++) lanes[i] += q[i];
    else
        for (int64_t i = 0; i < n; i++) sum[s->index[e + i]] += q[i];
}

static void end_row(Side *s, float *lanes, int64_t o, int64_t n)
{
    if (s->kind == PERIODIC)
        for (int64_t i = 0; i < n; i++) s->sum[o * s->stride + s->index[i]] += lanes[i], lanes[i] = 0;
}

static void advance(Side *s, const Rule *rule)
{
    for (int k = 0; k < DECAYS; k++)
        for (int64_t i = 0; i < s->count; i++) {
            float mean = (float)(s->sum[i] / s->over), *x = s->mean + k * s->count + i;
            *x = rule->keep_mean[k] * *x + rule->fresh_mean[k] * mean;
        }
}

INLINE float inverse_root(float x) { return 1 / sqrtf(x > 1e-9f ? x : 1e-9f); }

/* The sides of a matrix: a = (R / (mean of R over d1 + 1e-9))^-1/2 and b = C^-1/2, both of at least 1e-9, and the roots of both. */
static void sides_of_matrix(Elements *l)
{
    Side *r = &l->row, *c = &l->col;
    int64_t size = r->count / (l->outer * l->inner);
    for (int k = 0; k < DECAYS; k++) {
        const float *mean = r->mean + k * r->count;
        float *raw = r->values + k * r->count, *a = raw + FACTOR * DECAYS * r->count, *root = raw + ROOT * DECAYS * r->count;
        for (int64_t o = 0; o < l->outer; o++)
            for (int64_t i = 0; i < l->inner; i++) {
                double sum = 0;
                for (int64_t d = 0; d < size; d++) sum += mean[(o * size + d) * l->inner + i];
                float over = (float)(sum / (double)size) + 1e-9f;
                for (int64_t d = 0; d < size; d++) {
                    int64_t at = (o * size + d) * l->inner + i;
                    raw[at] = mean[at], a[at] = inverse_root(mean[at] / over), root[at] = 1 / sqrtf(mean[at] + 1e-8f);
                }
            }
        mean = c->mean + k * c->count;
        raw = c->values + k * c->count, a = raw + FACTOR * DECAYS * c->count, root = raw + ROOT * DECAYS * c->count;
        for (int64_t i = 0; i < c->count; i++) raw[i] = mean[i], a[i] = inverse_root(mean[i]), root[i] = 1 / sqrtf(mean[i] + 1e-8f);
    }
}

/* Of a vector, whose rows and columns are its elements. */
static void sides_of_vector(Elements *l, const Rule *rule)
{
    int64_t n = l->row.count;
    for (int64_t i = 0; i < DECAYS * n; i++) {
        float v = l->row.mean[i], root = 1 / sqrtf(v + 1e-8f);
        l->row.values[i] = l->col.values[i] = v;
        l->row.values[ROOT * DECAYS * n + i] = l->col.values[ROOT * DECAYS * n + i] = root;
        l->row.values[FACTOR * DECAYS * n + i] = inverse_root(v + 1e-9f), l->col.values[FACTOR * DECAYS * n + i] = 1 / sqrtf(v + rule->of_vectors);
    }
}

VECTOR static void factors(Elements *l, const Rule *rule)
{
    float q[BLOCK], row[BLOCK] = {0}, col[BLOCK] = {0};
    memset(l->row.sum, 0, (size_t)l->row.count * sizeof(double));
    if (!l->vector) memset(l->col.sum, 0, (size_t)l->col.count * sizeof(double));
    for (int64_t o = 0; o < l->rows; o++) {
        for (int64_t e = 0; e < l->length; e += l->block) {
            int64_t at = o * l->length + e, n = l->length - e < l->block ? l->length - e : l->block;
            for (int64_t i = 0; i < n; i++) {
                float g = within(l->g[at + i], rule->bound);
                q[i] = g * g + 1e-30f;
            }
            add_side(&l->row, q, row, o, e, n);
            if (!l->vector) add_side(&l->col, q, col, o, e, n);
        }
        int64_t n = l->length < l->block ? l->length : l->block;
        end_row(&l->row, row, o, n);
        if (!l->vector) end_row(&l->col, col, o, n);
    }
    advance(&l->row, rule);
    if (l->vector) {
        sides_of_vector(l, rule);
    } else {
        advance(&l->col, rule);
        sides_of_matrix(l);
    }
}

/* Sums of what VeLO's LSTM sees, in double precision, from before this step. */
VECTOR static void measure(Elements *l, const Rule *rule)
{
    const float *of[DECAYS + 2] = {l->p, l->second, l->momentum[0], l->momentum[1], l->momentum[2]};
    int64_t n = l->rows * l->length;
    (void)rule;
    for (int k = 0; k < DECAYS + 2; k++) {
        const float *x = of[k];
        double sum = 0, squares = 0;
        for (int64_t i = 0; i < n; i++) sum += (double)x[i], squares += (double)x[i] * (double)x[i];
        if (k) l->stats[2 * k - 1] = sum;
        l->stats[2 * k] = squares;
    }
}

VECTOR static void scales(const Elements *l, const Rule *rule, int64_t from, int64_t to, float *sums)
{
    Inputs x;
    float f[FEATURES][BLOCK], total[FEATURES][BLOCK];
    memset(&x, 0, sizeof x), memset(total, 0, sizeof total);
    for (int64_t o = from; o < to; o++)
        for (int64_t e = 0; e < l->length; e += l->block) {
            int64_t at = o * l->length + e, n = l->length - e < l->block ? l->length - e : l->block;
            load(x.g, l->g + at, n), load(x.p, l->p + at, n), load(x.r, l->second + at, n);
            for (int k = 0; k < DECAYS; k++) load(x.m[k], l->momentum[k] + at, n);
            for (int i = 0; i < BLOCK; i++) {
                x.g[i] = within(x.g[i], rule->bound);
                x.r[i] = rule->keep_second * x.r[i] + rule->fresh_second * (x.g[i] * x.g[i]);
                for (int k = 0; k < DECAYS; k++) x.m[k][i] = rule->keep[k] * x.m[k][i] + rule->fresh[k] * x.g[i];
            }
            load(l->second + at, x.r, n);
            for (int k = 0; k < DECAYS; k++) load(l->momentum[k] + at, x.m[k], n);
            load_side(&l->row, x.row, o, e, n), load_side(&l->col, x.col, o, e, n);
            features(l, rule, &x, f);
            for (int k = 0; k < l->features; k++)
                if (n == BLOCK)
                    for (int i = 0; i < BLOCK; i++) total[k][i] += f[k][i] * f[k][i];
                else
                    for (int64_t i = 0; i < n; i++) total[k][i] += f[k][i] * f[k][i];
        }
    for (int k = 0; k < l->features; k++) load(sums + k * BLOCK, total[k], BLOCK);
}

/* What each feature is multiplied with, lane by lane: 1 / sqrt(mean square + delta), over the parameter, or over a spatial position of it. */
static void normalizers(const Elements *l, const Rule *rule, const float *partial)
{
    double elements = (double)(l->rows * l->length) / (double)l->positions;
    for (int64_t k = 0; k < l->features; k++) {
        double total[BLOCK] = {0};
        for (int64_t c = 0; c < l->chunks; c++)
            for (int64_t i = 0; i < l->block; i++) total[i % l->positions] += (double)partial[(c * FEATURES + k) * BLOCK + i];
        for (int64_t i = 0; i < BLOCK; i++) l->scale[k * BLOCK + i] = (float)(1 / sqrt(total[i % l->positions] / elements + rule->delta));
    }
}

/* out_j = relu(sum_i in_i w[i][j] + b_j), w of `width` columns; `in` and `out` are rows of a block. */
typedef float Lane __attribute__((vector_size(64), may_alias));
enum { LANES = BLOCK / 16 };

INLINE void layer(const float *w, const float *b, const Lane (*in)[LANES], int64_t inputs, int64_t units, int64_t width, Lane (*out)[LANES], int relu)
{
    const Lane zero = {0};
    for (int64_t j = 0; j < units; j++) {
        Lane a0 = zero + b[j], a1 = a0, a2 = a0, a3 = a0;
        for (int64_t i = 0; i < inputs; i++) {
            float weight = w[i * width + j];
            a0 += weight * in[i][0], a1 += weight * in[i][1], a2 += weight * in[i][2], a3 += weight * in[i][3];
        }
        out[j][0] = relu ? (Lane)((a0 > zero) & (__typeof__(a0 > zero))a0) : a0;
        out[j][1] = relu ? (Lane)((a1 > zero) & (__typeof__(a1 > zero))a1) : a1;
        out[j][2] = relu ? (Lane)((a2 > zero) & (__typeof__(a2 > zero))a2) : a2;
        out[j][3] = relu ? (Lane)((a3 > zero) & (__typeof__(a3 > zero))a3) : a3;
    }
}

VECTOR static void outputs(const Elements *l, const Rule *rule, int64_t from, int64_t to, float *unused)
{
    Inputs x;
    Lane f[FEATURES][LANES], h1[HIDDEN][LANES], h2[HIDDEN][LANES], y[2][LANES];
    (void)unused;
    memset(&x, 0, sizeof x);
    for (int64_t o = from; o < to; o++)
        for (int64_t e = 0; e < l->length; e += l->block) {
            int64_t at = o * l->length + e, n = l->length - e < l->block ? l->length - e : l->block;
            load(x.g, l->g + at, n), load(x.p, l->p + at, n), load(x.r, l->second + at, n);
            for (int k = 0; k < DECAYS; k++) load(x.m[k], l->momentum[k] + at, n);
            for (int i = 0; i < BLOCK; i++) x.g[i] = within(x.g[i], rule->bound);
            load_side(&l->row, x.row, o, e, n), load_side(&l->col, x.col, o, e, n);
            features(l, rule, &x, (float(*)[BLOCK])f);
            for (int k = 0; k < l->features; k++)
                for (int i = 0; i < BLOCK; i++) ((float *)f[k])[i] *= l->scale[k * BLOCK + i];
            layer(l->w0, l->b0, (const Lane(*)[LANES])f, l->features, l->hidden, l->hidden, h1, 1);
            layer(l->w1, l->b1, (const Lane(*)[LANES])h1, l->hidden, l->hidden, l->hidden, h2, 1);
            layer(l->w2, l->b2, (const Lane(*)[LANES])h2, l->hidden, rule->exponent != 0 ? 2 : 1, 3, y, 0);
            float *d = (float *)y[0], *magnitude = (float *)y[1];
            if (rule->exponent != 0)
                for (int64_t i = 0; i < n; i++) d[i] *= expf(rule->exponent * magnitude[i]);
            load(l->out + at, d, n);
        }
}

typedef struct {
    Portion *portion;
    void (*whole)(Elements *, const Rule *);                                 /* takes a parameter, */
    void (*part)(const Elements *, const Rule *, int64_t, int64_t, float *); /* or a chunk of one */
    int64_t next;
} Work;

/* Takes one after the other until none is left; run by every thread. */
static void work(void *argument)
{
    Work *w = argument;
    Portion *b = w->portion;
    int64_t at, end = w->whole ? b->count : b->chunks;
    while ((at = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED)) < end) {
        if (w->whole) {
            w->whole(b->parameters + at, &b->rule);
            continue;
        }
        const Elements *l = b->parameters + b->owner[at];
        int64_t from = (at - l->first) * l->chunk, to = from + l->chunk < l->rows ? from + l->chunk : l->rows;
        w->part(l, &b->rule, from, to, b->partial + at * FEATURES * BLOCK);
    }
}

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

static void run(Work w, Parallel parallel, int threads)
{
    if (parallel && threads > 1 && w.portion->chunks > 1)
        parallel(work, &w, (unsigned)threads, 0);
    else
        work(&w);
}

EXPORT void l3rs_elements_measure(Portion *b, Parallel parallel, int threads) { run((Work){b, measure, 0, 0}, parallel, threads); }

EXPORT void l3rs_elements_step(Portion *b, Parallel parallel, int threads)
{
    run((Work){b, factors, 0, 0}, parallel, threads);
    run((Work){b, 0, scales, 0}, parallel, threads);
    for (int64_t k = 0; k < b->count; k++) {
        const Elements *l = b->parameters + k;
        normalizers(l, &b->rule, b->partial + l->first * FEATURES * BLOCK);
    }
    run((Work){b, 0, outputs, 0}, parallel, threads);
}
