/* AdamW with decoupled weight decay over one flat block (Loshchilov and Hutter, 2019):
 *
 *     g  = scale * grad
 *     m  = beta1 m + (1 - beta1) g            v  = beta2 v + (1 - beta2) g^2
 *     m' = m / (1 - beta1^t)                  v' = v / (1 - beta2^t)
 *     p  = p - lr ( m' / (sqrt(v') + eps) + weight_decay p )
 *
 * One pass over memory: the staged copy is written from the registers that hold the new
 * parameters. */
#include "train.h"

#include "../base/sync.h"

#include <inttypes.h>
#include <math.h>

/* Elements per task: small enough to balance two threads on a model of a million
 * parameters, large enough to hide the cost of a task. */
#define BLOCK ((size_t)32768)

typedef struct step {
    float *p, *m, *v;
    const float *g;
    char *staged;
    ane_dtype staged_dtype;
    size_t n;
    ane_adamw_consts on, off;           /* with and without weight decay */
    const ane_range *decay;
    size_t n_decay;
    const ane_train_loops *t;
} step;

/* [lo, hi), all with or all without decay. */
static void run(const step *s, size_t lo, size_t hi, bool decay) {
    char *staged = s->staged ? s->staged + lo * ane_dtype_size(s->staged_dtype) : NULL;
    s->t->adamw(s->p + lo, s->g + lo, s->m + lo, s->v + lo, staged, s->staged_dtype, hi - lo,
                decay ? &s->on : &s->off);
}

static void block(void *arg, size_t i) {
    const step *s = arg;
    size_t lo = i * BLOCK, hi = s->n - lo > BLOCK ? lo + BLOCK : s->n;
    if (!s->decay) {
        run(s, lo, hi, true);
        return;
    }
    /* First range that ends behind lo; ranges ascend and do not overlap. */
    size_t a = 0, b = s->n_decay;
    while (a < b) {
        size_t mid = a + (b - a) / 2;
        if (s->decay[mid].end <= lo) a = mid + 1;
        else b = mid;
    }
    for (; lo < hi; a++) {
        size_t from = a < s->n_decay && s->decay[a].begin < hi ? s->decay[a].begin : hi;
        size_t to = a < s->n_decay && s->decay[a].end < hi ? s->decay[a].end : hi;
        if (lo < from) run(s, lo, from, false), lo = from;
        if (lo < to) run(s, lo, to, true), lo = to;
    }
}

static bool overlap(const void *a, size_t na, const void *b, size_t nb) {
    uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;
    return na && nb && (x < y ? y - x < na : x - y < nb);
}

static ane_status check_options(const ane_adamw_options *o, size_t n, ane_error *err) {
    if (!o || o->size < sizeof *o)
        return ane_fail(err, ANE_ERR_INVALID, "[adamw_step] options are missing or of an "
                        "older size");
    if (o->step < 1)
        return ane_fail(err, ANE_ERR_INVALID,
                        "[adamw_step] step counts updates from 1, got %" PRId64, o->step);
    const struct {
        const char *name;
        double value, hi;
    } range[] = {
        {"lr", o->lr, HUGE_VAL},   {"beta1", o->beta1, 1},
        {"beta2", o->beta2, 1},    {"eps", o->eps, HUGE_VAL},
        {"weight_decay", o->weight_decay, HUGE_VAL},
    };
    for (size_t i = 0; i < sizeof range / sizeof *range; i++)
        if (!(range[i].value >= 0 && range[i].value < range[i].hi))
            return ane_fail(err, ANE_ERR_INVALID,
                            "[adamw_step] %s is %g, expected at least 0 and %s",
                            range[i].name, range[i].value,
                            range[i].hi == 1 ? "below 1" : "finite");
    if (!isfinite(o->scale))
        return ane_fail(err, ANE_ERR_INVALID, "[adamw_step] scale is %g, expected a finite "
                        "number", o->scale);
    for (size_t i = 0; o->decay && i < o->n_decay; i++)
        if (o->decay[i].begin > o->decay[i].end || o->decay[i].end > n ||
            (i && o->decay[i].begin < o->decay[i - 1].end))
            return ane_fail(err, ANE_ERR_INVALID,
                            "[adamw_step] decay range %zu is [%zu, %zu); ranges must ascend, "
                            "not overlap, and end at %zu at most",
                            i, o->decay[i].begin, o->decay[i].end, n);
    return ANE_OK;
}

static ane_status check_blocks(const step *s, ane_error *err) {
    if (s->staged && s->staged_dtype != ANE_F16 && s->staged_dtype != ANE_BF16 &&
        s->staged_dtype != ANE_F32)
        return ane_fail(err, ANE_ERR_DTYPE,
                        "[adamw_step] the staged copy is %s, expected float16, bfloat16 or "
                        "float32", ane_dtype_name(s->staged_dtype));
    size_t bytes = 4 * s->n;
    const struct {
        const char *name;
        const void *at;
        size_t bytes;
    } blocks[] = {
        {"params", s->p, bytes}, {"grads", s->g, bytes}, {"m", s->m, bytes},
        {"v", s->v, bytes},
        {"staged", s->staged, s->staged ? s->n * ane_dtype_size(s->staged_dtype) : 0},
    };
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < i; j++)
            if (overlap(blocks[i].at, blocks[i].bytes, blocks[j].at, blocks[j].bytes))
                return ane_fail(err, ANE_ERR_INVALID,
                                "[adamw_step] %s and %s share memory", blocks[j].name,
                                blocks[i].name);
    return ANE_OK;
}

ane_status ane_adamw_step(float *params, const float *grads, float *m, float *v,
                          void *staged, ane_dtype staged_dtype, size_t n,
                          const ane_adamw_options *o, ane_error *err) {
    step s = {.p = params, .m = m, .v = v, .g = grads, .staged = staged,
              .staged_dtype = staged_dtype, .n = n};
    if (n > PTRDIFF_MAX / 8)
        return ane_fail(err, ANE_ERR_SHAPE, "[adamw_step] %zu elements overflow a size", n);
    ane_status st = check_options(o, n, err);
    if (!st) st = check_blocks(&s, err);
    if (st || !n) return st;
    /* Constants in double, rounded once. 1-beta is taken in double: in fp32 1-0.999 is
     * off by 1e-5 of itself. expm1 keeps 1-beta^t exact for small t and beta near 1. */
    double t = (double)o->step;
    double bc1 = o->beta1 > 0 ? -expm1(t * log(o->beta1)) : 1;
    double bc2 = o->beta2 > 0 ? -expm1(t * log(o->beta2)) : 1;
    s.off = (ane_adamw_consts){
        .scale = (float)o->scale,
        .b1 = (float)o->beta1,
        .c1 = (float)(1 - o->beta1),
        .b2 = (float)o->beta2,
        .c2 = (float)(1 - o->beta2),
        .root = (float)(1 / sqrt(bc2)),
        .eps = (float)o->eps,
        .rate = (float)(o->lr / bc1),
        .keep = 1,
    };
    s.on = s.off;
    s.on.keep = (float)(1 - o->lr * o->weight_decay);
    s.decay = o->decay;
    s.n_decay = o->n_decay;
    s.t = ane_train_table();
    ane_parallel_for((n + BLOCK - 1) / BLOCK, block, &s);
    return ANE_OK;
}
