/* ane_tensor_copy: any strides, any pair of types, threaded.
 *
 * The axes are put into the destination's order and merged where both sides allow; what is
 * left is a loop over blocks of two axes: j, innermost in the destination, and i, the axis
 * along which the source lies closest (so a transposition is walked in tiles that fit the
 * first-level cache on both sides). Work is cut by shape, not by thread. */
#include "tensor.h"

#include <inttypes.h>
#include <string.h>

/* Elements of a tile's edge when the source runs across, and of a tile altogether. */
#define EDGE 32
#define TILE (EDGE * EDGE)
/* Elements from which a row pays for a call of its own. */
#define LONG_ROW 32
/* Bytes of one unit of work, and the most jobs a copy is cut into. */
#define UNIT_BYTES ((size_t)64 << 10)
#define MAX_JOBS 64

typedef struct plan {
    int rank;                           /* outer axes, then i, then j: at least 2 */
    int64_t n[ANE_MAX_RANK + 2], ds[ANE_MAX_RANK + 2], ss[ANE_MAX_RANK + 2];
    unsigned char *dst;
    const unsigned char *src;
    size_t du, su;                      /* element sizes */
    ane__convert_fn *convert;           /* NULL: same type */
    bool across;                        /* the source's close axis is i */
    int64_t bi, bj, ni_blocks, nj_blocks;
    int64_t units, jobs;
} plan;

/* ---------------------------------------------------------------- elements */

/* Rows with an adjacent destination have their own loop: the compiler then knows one of the
 * strides. Four at a time, since the loads do not depend on each other. */
#define STRIDED(type)                                                                    \
    for (int64_t i = 0; i < ni; i++) {                                                   \
        const unsigned char *s = src + i * ssi;                                          \
        unsigned char *d = dst + i * dsi;                                                \
        int64_t j = 0;                                                                   \
        if (dsj == (int64_t)sizeof(type))                                                \
            for (; j + 4 <= nj; j += 4, s += 4 * ssj, d += 4 * sizeof(type)) {           \
                type x[4];                                                               \
                memcpy(x, s, sizeof *x);                                                 \
                memcpy(x + 1, s + ssj, sizeof *x);                                       \
                memcpy(x + 2, s + 2 * ssj, sizeof *x);                                   \
                memcpy(x + 3, s + 3 * ssj, sizeof *x);                                   \
                memcpy(d, x, sizeof x);                                                  \
            }                                                                            \
        for (; j < nj; j++, s += ssj, d += dsj) {                                        \
            type x;                                                                      \
            memcpy(&x, s, sizeof x);                                                     \
            memcpy(d, &x, sizeof x);                                                     \
        }                                                                                \
    }

typedef struct bytes16 {
    uint64_t a, b;
} bytes16;

/* Moves an ni x nj block of elements of 1, 2, 4, 8 or 16 bytes. */
static void move(unsigned char *dst, int64_t dsi, int64_t dsj, const unsigned char *src,
                 int64_t ssi, int64_t ssj, int64_t ni, int64_t nj, size_t unit) {
    switch (unit) {
    case 1: STRIDED(uint8_t); break;
    case 2: STRIDED(uint16_t); break;
    case 4: STRIDED(uint32_t); break;
    case 8: STRIDED(uint64_t); break;
    default: STRIDED(bytes16); break;
    }
}

static void tile(const plan *p, unsigned char *dst, const unsigned char *src, int64_t ni,
                 int64_t nj) {
    int i = p->rank - 2, j = p->rank - 1;
    int64_t su = (int64_t)p->su, du = (int64_t)p->du;
    if (!p->convert) {
        move(dst, p->ds[i], p->ds[j], src, p->ss[i], p->ss[j], ni, nj, p->su);
        return;
    }
    uint64_t from[TILE], to[TILE];
    move((unsigned char *)from, nj * su, su, src, p->ss[i], p->ss[j], ni, nj, p->su);
    if (p->ds[j] == du && p->ds[i] == nj * du) {
        p->convert(dst, from, (size_t)(ni * nj));
        return;
    }
    if (p->ds[j] == du && nj >= LONG_ROW) {
        for (int64_t k = 0; k < ni; k++)
            p->convert(dst + k * p->ds[i], (unsigned char *)from + k * nj * su, (size_t)nj);
        return;
    }
    p->convert(to, from, (size_t)(ni * nj));
    move(dst, p->ds[i], p->ds[j], (unsigned char *)to, nj * du, du, ni, nj, p->du);
}

static void run_block(const plan *p, unsigned char *dst, const unsigned char *src,
                      int64_t ni, int64_t nj) {
    int i = p->rank - 2, j = p->rank - 1;
    if (p->ds[j] == (int64_t)p->du && p->ss[j] == (int64_t)p->su &&
        nj >= LONG_ROW) {
        for (int64_t k = 0; k < ni; k++, dst += p->ds[i], src += p->ss[i])
            if (p->convert) p->convert(dst, src, (size_t)nj);
            else memcpy(dst, src, (size_t)nj * p->su);
        return;
    }
    int64_t edge = ni < EDGE ? ni : EDGE;       /* a narrow side makes the other one long */
    int64_t tj = p->across ? TILE / edge : TILE;
    if (tj > nj) tj = nj;
    int64_t ti = p->across ? edge : TILE / tj;
    for (int64_t a = 0; a < ni; a += ti)
        for (int64_t b = 0; b < nj; b += tj)
            tile(p, dst + a * p->ds[i] + b * p->ds[j], src + a * p->ss[i] + b * p->ss[j],
                 ni - a < ti ? ni - a : ti, nj - b < tj ? nj - b : tj);
}

static void run_job(void *arg, size_t job) {
    const plan *p = arg;
    int i = p->rank - 2, j = p->rank - 1;
    int64_t each = p->units / p->jobs, more = p->units % p->jobs, k = (int64_t)job;
    int64_t first = k * each + (k < more ? k : more);
    int64_t last = first + each + (k < more);
    for (int64_t u = first; u < last; u++) {
        int64_t rest = u, jb = rest % p->nj_blocks;
        rest /= p->nj_blocks;
        int64_t ib = rest % p->ni_blocks;
        rest /= p->ni_blocks;
        int64_t a = ib * p->bi, b = jb * p->bj;
        unsigned char *dst = p->dst + a * p->ds[i] + b * p->ds[j];
        const unsigned char *src = p->src + a * p->ss[i] + b * p->ss[j];
        for (int axis = i - 1; axis >= 0; axis--) {
            int64_t at = rest % p->n[axis];
            rest /= p->n[axis];
            dst += at * p->ds[axis];
            src += at * p->ss[axis];
        }
        run_block(p, dst, src, p->n[i] - a < p->bi ? p->n[i] - a : p->bi,
                  p->n[j] - b < p->bj ? p->n[j] - b : p->bj);
    }
}

/* ---------------------------------------------------------------- planning */

static int64_t magnitude(int64_t x) { return x < 0 ? -x : x; }

static void swap_axes(plan *p, int a, int b) {
    int64_t n = p->n[a], d = p->ds[a], s = p->ss[a];
    p->n[a] = p->n[b], p->ds[a] = p->ds[b], p->ss[a] = p->ss[b];
    p->n[b] = n, p->ds[b] = d, p->ss[b] = s;
}

/* Axes of length 1 dropped, destination strides positive and descending, mergeable
 * neighbours merged. */
static void collapse(plan *p, const ane_tensor *dst, const ane_tensor *src) {
    for (int a = 0; a < dst->rank; a++) {
        if (dst->shape[a] == 1) continue;
        int k = p->rank++;
        p->n[k] = dst->shape[a];
        p->ds[k] = dst->strides[a];
        p->ss[k] = src->strides[a];
        if (p->ds[k] < 0) {
            p->dst += (p->n[k] - 1) * p->ds[k];
            p->src += (p->n[k] - 1) * p->ss[k];
            p->ds[k] = -p->ds[k];
            p->ss[k] = -p->ss[k];
        }
        for (; k > 0 && p->ds[k - 1] < p->ds[k]; k--) swap_axes(p, k - 1, k);
    }
    int out = 0;
    for (int k = 1; k < p->rank; k++) {
        if (p->ds[out] == p->ds[k] * p->n[k] && p->ss[out] == p->ss[k] * p->n[k]) {
            p->n[out] *= p->n[k];
            p->ds[out] = p->ds[k];
            p->ss[out] = p->ss[k];
        } else {
            out++;
            p->n[out] = p->n[k], p->ds[out] = p->ds[k], p->ss[out] = p->ss[k];
        }
    }
    if (p->rank) p->rank = out + 1;
}

/* Short runs that are adjacent on both sides move as one wider element. */
static void widen(plan *p) {
    while (p->rank && !p->convert) {
        int k = p->rank - 1;
        size_t wide = p->du * (size_t)p->n[k];
        bool fits = p->n[k] <= 16 && (wide == 2 || wide == 4 || wide == 8 || wide == 16);
        if (!fits || p->ds[k] != (int64_t)p->du || p->ss[k] != (int64_t)p->su) return;
        p->du = p->su = wide;
        p->rank--;
    }
}

static void set_blocks(plan *p, int64_t count) {
    int i = p->rank - 2, j = p->rank - 1;
    int64_t wide = (int64_t)(p->du > p->su ? p->du : p->su);
    int64_t block = (int64_t)UNIT_BYTES / wide;
    bool rows = p->ds[j] == (int64_t)p->du && p->ss[j] == (int64_t)p->su;
    if (rows && !p->convert) {
        /* Long runs: memcpy then writes past the cache. One run per thread. */
        int64_t share = count / ane_num_threads() + 1;
        if (share > block) block = (share + 63) & ~(int64_t)63;
    }
    if (p->across) {
        p->bi = p->n[i] < 4 * EDGE ? p->n[i] : 4 * EDGE;
        p->bj = 16 * TILE / p->bi;
    } else {
        p->bj = p->n[j] < block ? p->n[j] : block;
        p->bi = block / p->bj;
    }
    if (p->bi > p->n[i]) p->bi = p->n[i];
    if (p->bj > p->n[j]) p->bj = p->n[j];
    p->ni_blocks = (p->n[i] + p->bi - 1) / p->bi;
    p->nj_blocks = (p->n[j] + p->bj - 1) / p->bj;
    p->units = p->ni_blocks * p->nj_blocks;
    for (int a = 0; a < i; a++) p->units *= p->n[a];
    p->jobs = (size_t)(count * wide) < ANE__THREAD_FROM ? 1 : p->units;
    if (p->jobs > MAX_JOBS) p->jobs = MAX_JOBS;
}

void ane__copy_unchecked(const ane_tensor *dst, const ane_tensor *src,
                         ane__convert_fn *convert) {
    int64_t count = ane_tensor_count(dst);
    if (!count) return;
    plan p = {.dst = ane_tensor_data(dst), .src = ane_tensor_data(src),
              .du = ane_dtype_size(dst->dtype), .su = ane_dtype_size(src->dtype),
              .convert = convert};
    collapse(&p, dst, src);
    widen(&p);
    count = 1;
    for (int a = 0; a < p.rank; a++) count *= p.n[a];
    while (p.rank < 2) {                /* in front: leaves j where it is */
        memmove(p.n + 1, p.n, sizeof p.n - sizeof *p.n);
        memmove(p.ds + 1, p.ds, sizeof p.ds - sizeof *p.ds);
        memmove(p.ss + 1, p.ss, sizeof p.ss - sizeof *p.ss);
        p.n[0] = 1;
        p.ds[0] = p.ss[0] = 0;
        /* A lone element: its axis is one element long, adjacent to nothing. */
        if (!p.rank++) p.ds[0] = (int64_t)p.du, p.ss[0] = (int64_t)p.su;
    }
    int j = p.rank - 1, best = j;
    if (p.n[0] == 1 && p.rank == 2 && ane__convert_is_threaded(convert) &&
        p.ds[1] == (int64_t)p.du && p.ss[1] == (int64_t)p.su) {
        convert(p.dst, p.src, (size_t)count);
        return;
    }
    for (int a = 0; a < j; a++)
        if (p.ss[a] && p.n[a] > 1 &&
            (!p.ss[best] || magnitude(p.ss[a]) < magnitude(p.ss[best])))
            best = a;
    /* A source that is constant along j is read once and written along j: not across. */
    p.across = best != j && p.ss[j] != 0;
    if (p.across)                       /* outer axes may stand in any order */
        swap_axes(&p, best, j - 1);
    set_blocks(&p, count);
    if (p.jobs == 1) run_job(&p, 0);
    else ane_parallel_for((size_t)p.jobs, run_job, &p);
}

/* ---------------------------------------------------------------- checks */

static bool same_view(const ane_tensor *a, const ane_tensor *b) {
    if (ane_tensor_data(a) != ane_tensor_data(b) || a->dtype != b->dtype) return false;
    for (int i = 0; i < a->rank; i++)
        if (a->shape[i] > 1 && a->strides[i] != b->strides[i]) return false;
    return true;
}

static size_t gcd(size_t a, size_t b) {
    while (b) {
        size_t t = a % b;
        a = b;
        b = t;
    }
    return a;
}

bool ane_tensor_overlap(const ane_tensor *a, const ane_tensor *b) {
    size_t alo, ahi, blo, bhi;
    ane_tensor_extent(a, &alo, &ahi);
    ane_tensor_extent(b, &blo, &bhi);
    if (alo == ahi || blo == bhi) return false;
    uintptr_t pa = (uintptr_t)a->surface->base, pb = (uintptr_t)b->surface->base;
    if (pa + ahi <= pb + blo || pb + bhi <= pa + alo) return false;
    /* Every address of a view is its start plus a multiple of g: two combs whose teeth pass
     * each other (x[0::2] and x[1::2]) never meet. */
    size_t g = 0;
    for (int i = 0; i < a->rank; i++)
        if (a->shape[i] > 1) g = gcd(g, (size_t)magnitude(a->strides[i]));
    for (int i = 0; i < b->rank; i++)
        if (b->shape[i] > 1) g = gcd(g, (size_t)magnitude(b->strides[i]));
    if (!g) return true;
    uintptr_t xa = pa + a->offset, xb = pb + b->offset;
    size_t apart = xb >= xa ? (size_t)((xb - xa) % g) : (g - (size_t)((xa - xb) % g)) % g;
    return !(apart >= ane_dtype_size(a->dtype) && g - apart >= ane_dtype_size(b->dtype));
}

ane_status ane_tensor_copy(const ane_tensor *dst, const ane_tensor *src, ane_error *err) {
    char a[ANE__SHAPE_TEXT], b[ANE__SHAPE_TEXT];
    ane_status st = ane_tensor_check(dst, err);
    if (!st) st = ane_tensor_check(src, err);
    if (st) return st;
    bool equal = dst->rank == src->rank;
    for (int i = 0; equal && i < dst->rank; i++) equal = dst->shape[i] == src->shape[i];
    if (!equal)
        return ane_fail(err, ANE_ERR_SHAPE, "[copy] destination is [%s], source is [%s]",
                        ane__shape_text(dst->rank, dst->shape, a, sizeof a),
                        ane__shape_text(src->rank, src->shape, b, sizeof b));
    if (dst->surface->readonly)
        return ane_fail(err, ANE_ERR_INVALID, "[copy] the destination is read-only");
    ane__convert_fn *convert = NULL;
    if (dst->dtype != src->dtype && !(convert = ane__convert(dst->dtype, src->dtype)))
        return ane_fail(err, ANE_ERR_DTYPE, "[copy] there is no conversion from %s to %s",
                        ane_dtype_name(src->dtype), ane_dtype_name(dst->dtype));
    int64_t count = ane_tensor_count(dst);
    if (!count) return ANE_OK;
    for (int i = 0; i < dst->rank; i++)
        if (dst->shape[i] > 1 && dst->strides[i] == 0)
            return ane_fail(err, ANE_ERR_INVALID,
                            "[copy] the destination repeats one element along axis %d (a "
                            "broadcast view cannot be written)", i);
    st = ane_tensor_readable(src, err);
    if (st) {
        ane_error_prefix(err, "[copy] ");
        return st;
    }
    if (same_view(dst, src)) return ANE_OK;
    if (ane_tensor_overlap(dst, src))
        return ane_fail(err, ANE_ERR_INVALID,
                        "[copy] source and destination overlap; copy through a third tensor");
    ane__copy_unchecked(dst, src, convert);
    ane_tensor_written(dst);
    return ANE_OK;
}

ane_status ane_element_convert(ane_dtype dst_dtype, void *dst, ane_dtype src_dtype,
                               const void *src, ane_error *err) {
    ane__convert_fn *convert = ane__convert(dst_dtype, src_dtype);
    if (!convert)
        return ane_fail(err, ANE_ERR_DTYPE, "[element] there is no conversion from %s to %s",
                        ane_dtype_name(src_dtype), ane_dtype_name(dst_dtype));
    convert(dst, src, 1);
    return ANE_OK;
}
