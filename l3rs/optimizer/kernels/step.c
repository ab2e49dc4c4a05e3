/* The step of L3RS on float32 parameters on CPU, in two passes over memory, by one thread or many.
 *
 * Directions are normalized, so their norms come before the update:
 *   NORMS    reads g and the moments, and sums the squares of g and of each direction, layer by layer;
 *   DECIDE   makes scales of the sums, see decide.h;
 *   APPLY    reads them again, with p, writes the moments, moves p <- p - sum_k scale_k d_k, and sums the squares of the new p.
 * That is 3 + 7 words per parameter for SGD + Adam, where a fused Adam moves 7. WEIGHTS sums the squares of p alone, for the first
 * step, and where p was changed since. Nothing is written before the norms are known.
 *
 * Layers are cut into chunks, whose sums are added in a fixed order: the result does not depend on the number of threads.
 */
#include <math.h>
#include <stdint.h>

#include "decide.h"
#include "vector.h"

/* Bits of a set of directions, in the order of their outputs, scales, moments and constants. */
enum { SGD = 1, ADAM = 2, LION = 4, LAMB = 8, ADAMAX = 16, WEIGHT_DECAY = 32 };
enum { DIRECTIONS = 6, SUMS = 6, MOMENTS = 7, CONSTANTS = 4, BLOCK = 1024, PROBES = 256 };

#if defined(__GNUC__) && !defined(__clang__)
#define IVDEP _Pragma("GCC ivdep") /* the tensors of a layer do not overlap */
#elif defined(__clang__)
#define IVDEP _Pragma("clang loop vectorize(assume_safety)")
#endif

typedef struct {
    float *p;
    const float *g;
    float *moment[MOMENTS]; /* adam m, adam v, lion m, lamb m, lamb v, adamax m, adamax u */
    float scale[DIRECTIONS];
} Layer;

/* Per layer, from the constants (beta1, beta2, eps, weight decay) of a direction and the number of the step. */
typedef struct {
    float keep1, new1, keep2, new2, eps, gain, decay;
} Rule;
typedef struct {
    Rule adam, lion, lamb, adamax;
} Rules;

/* Adam and LAMB: m_hat / (sqrt(v_hat) + eps) = gain m / (sqrt(v) + eps sqrt(c2)), gain = sqrt(c2) / c1, c = 1 - beta^step. */
INLINE Rule rule(int direction, const double *constant, double step)
{
    double b1 = constant[0], b2 = constant[1];
    double c1 = -expm1(step * log(b1)), root = sqrt(-expm1(step * log(b2))); /* log(0) = -inf gives c = 1 */
    double shrink = direction & (ADAM | LAMB) ? root : 1, gain = direction & (ADAM | LAMB) ? root / c1 : direction & ADAMAX ? 1 / c1 : 1;
    Rule r = {(float)b1, (float)(1 - b1), (float)b2, (float)(1 - b2), (float)(constant[2] * shrink), (float)gain, (float)constant[3]};
    return r;
}

INLINE Rules rules_of(int64_t set, const double *constants, double step)
{
    Rules r = {0};
    if (set & ADAM) r.adam = rule(ADAM, constants + 1 * CONSTANTS, step);
    if (set & LION) r.lion = rule(LION, constants + 2 * CONSTANTS, step);
    if (set & LAMB) r.lamb = rule(LAMB, constants + 3 * CONSTANTS, step);
    if (set & ADAMAX) r.adamax = rule(ADAMAX, constants + 4 * CONSTANTS, step);
    return r;
}

INLINE float sign(float x) { return (float)((x > 0) - (x < 0)); }

/* The directions at element i, into d, and the new moments, into n; `set` is a constant wherever speed matters. */
INLINE void directions(const int set, const Layer *l, const Rules *r, int64_t i, float p, float g, float *d, float *n)
{
    if (set & SGD) d[0] = g;
    if (set & ADAM) {
        n[0] = r->adam.keep1 * l->moment[0][i] + r->adam.new1 * g;
        n[1] = r->adam.keep2 * l->moment[1][i] + r->adam.new2 * g * g;
        d[1] = r->adam.gain * n[0] / (sqrtf(n[1]) + r->adam.eps);
    }
    if (set & LION) {
        d[2] = sign(r->lion.keep1 * l->moment[2][i] + r->lion.new1 * g);
        n[2] = r->lion.keep2 * l->moment[2][i] + r->lion.new2 * g;
    }
    if (set & LAMB) { /* without the trust ratio, which normalization cancels */
        n[3] = r->lamb.keep1 * l->moment[3][i] + r->lamb.new1 * g;
        n[4] = r->lamb.keep2 * l->moment[4][i] + r->lamb.new2 * g * g;
        d[3] = r->lamb.gain * n[3] / (sqrtf(n[4]) + r->lamb.eps) + r->lamb.decay * p;
    }
    if (set & ADAMAX) {
        float decayed = r->adamax.keep2 * l->moment[6][i], fresh = fabsf(g) + r->adamax.eps;
        n[5] = r->adamax.keep1 * l->moment[5][i] + r->adamax.new1 * g;
        n[6] = decayed > fresh ? decayed : fresh;
        d[4] = r->adamax.gain * n[5] / n[6];
    }
    if (set & WEIGHT_DECAY) d[5] = p;
}

/* The sum of squares; compiled once, so that a norm has the same bits whichever pass took it. */
VECTOR static __attribute__((noinline)) float squares(const float *x, int64_t n)
{
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

static double weights(const Layer *l, int64_t from, int64_t to)
{
    double sum = 0;
    for (int64_t start = from; start < to; start += BLOCK) sum += squares(l->p + start, to - start < BLOCK ? to - start : BLOCK);
    return sum;
}

/* Sets all sums but the first to the squares of g and of the directions over elements from <= i < to. */
INLINE void norms(const int set, const Layer *layer, const Rules *rules, int64_t from, int64_t to, double *sums)
{
    Layer l = *layer; /* copies, which no store through a pointer can change */
    const Rules r = *rules;
    double total[SUMS] = {0};
    for (int64_t start = from; start < to; start += BLOCK) {
        int64_t end = start + BLOCK < to ? start + BLOCK : to;
        float gg = 0, adam = 0, lion = 0, lamb = 0, adamax = 0;
        IVDEP
        for (int64_t i = start; i < end; i++) {
            float d[DIRECTIONS], next[MOMENTS], g = l.g[i];
            directions(set & ~WEIGHT_DECAY, &l, &r, i, set & LAMB ? l.p[i] : 0, g, d, next);
            gg += g * g;
            if (set & ADAM) adam += d[1] * d[1];
            if (set & LION) lion += d[2] * d[2];
            if (set & LAMB) lamb += d[3] * d[3];
            if (set & ADAMAX) adamax += d[4] * d[4];
        }
        total[1] += gg, total[2] += adam, total[3] += lion, total[4] += lamb, total[5] += adamax;
    }
    for (int k = 1; k < SUMS; k++) sums[k] = total[k];
}

/* Moves p, writes the moments, and sets the first sum to the squares of the new p. */
INLINE void apply(const int set, const Layer *layer, const Rules *rules, int64_t from, int64_t to, double *sums)
{
    Layer l = *layer;
    const Rules r = *rules;
    double total = 0;
    for (int64_t start = from; start < to; start += BLOCK) {
        int64_t end = start + BLOCK < to ? start + BLOCK : to;
        IVDEP
        for (int64_t i = start; i < end; i++) {
            float d[DIRECTIONS], next[MOMENTS], p = l.p[i];
            directions(set, &l, &r, i, p, l.g[i], d, next);
            if (set & SGD) p -= l.scale[0] * d[0];
            if (set & ADAM) p -= l.scale[1] * d[1], l.moment[0][i] = next[0], l.moment[1][i] = next[1];
            if (set & LION) p -= l.scale[2] * d[2], l.moment[2][i] = next[2];
            if (set & LAMB) p -= l.scale[3] * d[3], l.moment[3][i] = next[3], l.moment[4][i] = next[4];
            if (set & ADAMAX) p -= l.scale[4] * d[4], l.moment[5][i] = next[5], l.moment[6][i] = next[6];
            if (set & WEIGHT_DECAY) p -= l.scale[5] * d[5];
            l.p[i] = p;
        }
        total += squares(l.p + start, end - start);
    }
    sums[0] = total;
}

/* One compiled pair for each base set of the paper's tables; any other set is decided element by element. */
typedef void (*Pass)(int, const Layer *, const Rules *, int64_t, int64_t, double *);
#define PAIR(NAME, SET) \
    VECTOR static void norms_##NAME(int set, const Layer *l, const Rules *r, int64_t from, int64_t to, double *sums) \
    { (void)set; norms(SET, l, r, from, to, sums); } \
    VECTOR static void apply_##NAME(int set, const Layer *l, const Rules *r, int64_t from, int64_t to, double *sums) \
    { (void)set; apply(SET, l, r, from, to, sums); }
PAIR(sgd, SGD)
PAIR(adam, ADAM)
PAIR(sgd_adam, SGD | ADAM)
PAIR(adam_lion_lamb, ADAM | LION | LAMB)
PAIR(sgd_lamb_adamax, SGD | LAMB | ADAMAX)
PAIR(all, SGD | ADAM | LION | LAMB | ADAMAX | WEIGHT_DECAY)
PAIR(any, set)

static const struct { int set; Pass norms, apply; } PAIRS[] = {
#define ROW(NAME, SET) {SET, norms_##NAME, apply_##NAME}
    ROW(sgd, SGD), ROW(adam, ADAM), ROW(sgd_adam, SGD | ADAM), ROW(adam_lion_lamb, ADAM | LION | LAMB),
    ROW(sgd_lamb_adamax, SGD | LAMB | ADAMAX), ROW(all, SGD | ADAM | LION | LAMB | ADAMAX | WEIGHT_DECAY), ROW(any, 0),
};

/* What the passes are told, laid out row by row: moments (MOMENTS, layers), scales (layers, DIRECTIONS), sums (layers, SUMS). */
typedef struct {
    int64_t set, layers, chunks;
    const int64_t *chunk_layer, *chunk_from, *chunk_to; /* (chunks), in the order of the layers */
    const int64_t *p, *g, *moments;                     /* addresses; 0 for moments that the set has no use for */
    const float *steps;                                 /* (layers), taken before this one; DECIDE counts it */
    const double *constants;                            /* (DIRECTIONS, CONSTANTS) */
    const float *scales;
    double *partial; /* (chunks, SUMS) */
    double *sums;    /* squares of p, g, and the directions of Adam, Lion, LAMB, Adamax */
    float *probes;   /* (layers, PROBES), elements of p as the last step has left them */
} Step;

enum { WEIGHTS = 1, NORMS = 2, DECIDE = 4, APPLY = 8 };

typedef struct {
    const Step *step;
    int what;
    Pass pass;
    int64_t next;
} Work;

/* Takes chunk after chunk until none is left; run by every thread. */
static void work(void *argument)
{
    Work *w = argument;
    const Step *s = w->step;
    int64_t chunk, last = -1;
    Layer l;
    Rules rules;
    while ((chunk = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED)) < s->chunks) {
        int64_t layer = s->chunk_layer[chunk], from = s->chunk_from[chunk], to = s->chunk_to[chunk];
        double *sums = s->partial + chunk * SUMS;
        if (layer != last) {
            l.p = (float *)(intptr_t)s->p[layer];
            l.g = (const float *)(intptr_t)s->g[layer];
            for (int k = 0; k < MOMENTS; k++) l.moment[k] = (float *)(intptr_t)s->moments[k * s->layers + layer];
            for (int k = 0; k < DIRECTIONS; k++) l.scale[k] = s->scales[layer * DIRECTIONS + k];
            if (w->pass) rules = rules_of(s->set, s->constants, s->steps[layer] + (w->what == NORMS));
            last = layer;
        }
        if (w->pass)
            w->pass((int)s->set, &l, &rules, from, to, sums);
        else
            sums[0] = weights(&l, from, to);
    }
}

/* `parallel` is GOMP_parallel of the OpenMP runtime that torch has loaded, so that there are not two pools of threads; or NULL. */
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

static void run(const Step *s, int what, Parallel parallel, int threads)
{
    int row = 0;
    while (PAIRS[row].set && PAIRS[row].set != s->set) row++;
    Work w = {s, what, what == NORMS ? PAIRS[row].norms : what == APPLY ? PAIRS[row].apply : 0, 0};
    if (parallel && threads > 1)
        parallel(work, &w, (unsigned)threads, 0);
    else
        work(&w);

    int first = what == NORMS, end = what == NORMS ? SUMS : 1; /* the sums that this pass has taken */
    for (int64_t l = 0; l < s->layers; l++)
        for (int k = first; k < end; k++) s->sums[l * SUMS + k] = 0;
    for (int64_t c = 0; c < s->chunks; c++)
        for (int k = first; k < end; k++) s->sums[s->chunk_layer[c] * SUMS + k] += s->partial[c * SUMS + k];
}

/* Compares a few elements of each layer, from its first to its last, with those of the last step, and keeps them: whether one differs. */
static int changed(const Step *s)
{
    int differs = 0;
    for (int64_t c = 0; c < s->chunks; c++) {
        int64_t layer = s->chunk_layer[c], n = s->chunk_to[c];
        if (c + 1 < s->chunks && s->chunk_layer[c + 1] == layer) continue; /* the last chunk ends where the layer does */
        const float *p = (const float *)(intptr_t)s->p[layer];
        float *probe = s->probes + layer * PROBES;
        int64_t count = n < PROBES ? n : PROBES;
        double apart = count > 1 ? (double)(n - 1) / (double)(count - 1) : 0; /* a division an element would be a tenth of a small step */
        for (int64_t k = 0; k < count; k++) {
            float now = p[(int64_t)((double)k * apart)];
            differs |= now != probe[k];
            probe[k] = now;
        }
    }
    return differs;
}

/* Takes the parts of a step that `parts` names, in their order; returns 1, and nothing has been written but sums, if a gradient is not
 * finite. The number in its name is that of the tables: it changes with them, so that no other l3rs calls this one. */
EXPORT int l3rs_step2(const Step *s, const Decide *d, int parts, Parallel parallel, int threads)
{
    if (parts & WEIGHTS || (parts & NORMS && changed(s))) run(s, WEIGHTS, parallel, threads);
    if (parts & NORMS) run(s, NORMS, parallel, threads);
    if (parts & DECIDE && decide(d)) return 1;
    if (parts & APPLY) {
        run(s, APPLY, parallel, threads);
        changed(s);
    }
    return 0;
}
