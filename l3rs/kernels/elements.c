/* The pass of VeLO, Celo and Celo2 over the elements of one parameter, float32 on CPU, by one thread or many.
 *
 * Their MLP sees up to 30 features of each element, each divided by its root mean square over the parameter. So there are two passes:
 *   l3rs_elements_scales   advances momentum and mean square, and sums the squares of the features;
 *   l3rs_elements_outputs  makes the features again, and gives the MLP's direction times exp(exponent * log magnitude).
 * Features live in a block of BLOCK elements at a time, in the first-level cache, and are never written to memory.
 *
 * A parameter is `rows` rows (its first axis in torch) of `length` elements. Adafactor's row and column factors are the same for many
 * elements: a side has an array of each of its nine numbers, and says where element e of row o finds them: at o * stride + index[e].
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
#define VECTOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTOR __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define VECTOR
#endif
#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

enum { BLOCK = 64, FEATURES = 30, OF_VECTORS = 15, HIDDEN = 8, DECAYS = 3, SIDE = 9 };
enum { IN_ORDER, PERIODIC, ANYWHERE }; /* index[e] is e; repeats after `block` elements; is anything */
enum { RAW, FACTOR, ROOT };            /* of a side: the mean squares x, its factor of g / rms, and (x + 1e-8)^-1/2, DECAYS of each */

typedef struct {
    const float *values; /* (SIDE, count) */
    const int32_t *index;
    int64_t count, stride, kind;
} Side;

typedef struct {
    int64_t rows, length, block, chunk, chunks; /* elements in a row, in a block (at most BLOCK); rows in a chunk */
    int64_t features, vector;                   /* how many; whether fac = g a and the last group is m b, for a vector */
    int64_t hidden;                             /* units of a layer, at most HIDDEN */
    const float *g, *p;
    float *momentum[DECAYS], *second, *out;
    Side row, col;
    float keep[DECAYS], fresh[DECAYS], keep_second, fresh_second, eps, clip, exponent;
    const float *scale;                                     /* (features, BLOCK) */
    const float *w0, *b0, *w1, *b1, *w2, *b2;               /* (hidden, features), (hidden), (hidden, hidden), (hidden), (2, hidden), (2) */
    float *partial;                                         /* (chunks, features, BLOCK) */
} Elements;

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
INLINE void features(const Elements *l, const Inputs *x, float (*f)[BLOCK])
{
    float s[BLOCK];
    for (int i = 0; i < BLOCK; i++) s[i] = 1 / sqrtf(x->r[i] + l->eps);
    for (int i = 0; i < BLOCK; i++) {
        f[0][i] = x->g[i];
        f[1][i] = within(x->g[i], l->clip);
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
    if (l->features == OF_VECTORS) return;
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

VECTOR static void scales(const Elements *l, int64_t from, int64_t to, float *sums)
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
                x.g[i] = within(x.g[i], 1000.0f);
                x.r[i] = l->keep_second * x.r[i] + l->fresh_second * (x.g[i] * x.g[i]);
                for (int k = 0; k < DECAYS; k++) x.m[k][i] = l->keep[k] * x.m[k][i] + l->fresh[k] * x.g[i];
            }
            load(l->second + at, x.r, n);
            for (int k = 0; k < DECAYS; k++) load(l->momentum[k] + at, x.m[k], n);
            load_side(&l->row, x.row, o, e, n), load_side(&l->col, x.col, o, e, n);
            features(l, &x, f);
            for (int k = 0; k < l->features; k++)
                if (n == BLOCK)
                    for (int i = 0; i < BLOCK; i++) total[k][i] += f[k][i] * f[k][i];
                else
                    for (int64_t i = 0; i < n; i++) total[k][i] += f[k][i] * f[k][i];
        }
    for (int k = 0; k < l->features; k++) load(sums + k * BLOCK, total[k], BLOCK);
}

/* out_j = relu(sum_i w[j][i] in_i + b_j); `in` and `out` are rows of a block. */
typedef float Lane __attribute__((vector_size(64), may_alias));
enum { LANES = BLOCK / 16 };

INLINE void layer(const float *w, const float *b, const Lane (*in)[LANES], int64_t inputs, int64_t units, Lane (*out)[LANES], int relu)
{
    const Lane zero = {0};
    for (int64_t j = 0; j < units; j++) {
        Lane a0 = zero + b[j], a1 = a0, a2 = a0, a3 = a0;
        for (int64_t i = 0; i < inputs; i++) {
            float weight = w[j * inputs + i];
            a0 += weight * in[i][0], a1 += weight * in[i][1], a2 += weight * in[i][2], a3 += weight * in[i][3];
        }
        out[j][0] = relu ? (Lane)((a0 > zero) & (__typeof__(a0 > zero))a0) : a0;
        out[j][1] = relu ? (Lane)((a1 > zero) & (__typeof__(a1 > zero))a1) : a1;
        out[j][2] = relu ? (Lane)((a2 > zero) & (__typeof__(a2 > zero))a2) : a2;
        out[j][3] = relu ? (Lane)((a3 > zero) & (__typeof__(a3 > zero))a3) : a3;
    }
}

VECTOR static void outputs(const Elements *l, int64_t from, int64_t to, float *unused)
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
            for (int i = 0; i < BLOCK; i++) x.g[i] = within(x.g[i], 1000.0f);
            load_side(&l->row, x.row, o, e, n), load_side(&l->col, x.col, o, e, n);
            features(l, &x, (float(*)[BLOCK])f);
            for (int k = 0; k < l->features; k++)
                for (int i = 0; i < BLOCK; i++) ((float *)f[k])[i] *= l->scale[k * BLOCK + i];
            layer(l->w0, l->b0, (const Lane(*)[LANES])f, l->features, l->hidden, h1, 1);
            layer(l->w1, l->b1, (const Lane(*)[LANES])h1, l->hidden, l->hidden, h2, 1);
            layer(l->w2, l->b2, (const Lane(*)[LANES])h2, l->hidden, l->exponent != 0 ? 2 : 1, y, 0);
            float *d = (float *)y[0], *magnitude = (float *)y[1];
            if (l->exponent != 0)
                for (int64_t i = 0; i < n; i++) d[i] *= expf(l->exponent * magnitude[i]);
            load(l->out + at, d, n);
        }
}

typedef struct {
    const Elements *elements;
    void (*pass)(const Elements *, int64_t, int64_t, float *);
    int64_t next;
} Work;

static void work(void *argument)
{
    Work *w = argument;
    const Elements *l = w->elements;
    int64_t c;
    while ((c = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED)) < l->chunks) {
        int64_t from = c * l->chunk, to = from + l->chunk < l->rows ? from + l->chunk : l->rows;
        w->pass(l, from, to, l->partial + c * FEATURES * BLOCK);
    }
}

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

static void run(const Elements *l, void (*pass)(const Elements *, int64_t, int64_t, float *), Parallel parallel, int threads)
{
    Work w = {l, pass, 0};
    if (parallel && threads > 1 && l->chunks > 1)
        parallel(work, &w, (unsigned)threads, 0);
    else
        work(&w);
}

EXPORT void l3rs_elements_scales(const Elements *l, Parallel parallel, int threads) { run(l, scales, parallel, threads); }
EXPORT void l3rs_elements_outputs(const Elements *l, Parallel parallel, int threads) { run(l, outputs, parallel, threads); }
