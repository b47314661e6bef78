/* The macro-kernel of convolution: geometry, blocks of k, tables of pointers, tasks. */
#include "conv_plan.h"

#include "../base/f16.h"
#include "../base/mem.h"
#include "../base/sync.h"

#include <stdatomic.h>
#include <string.h>

/* Floats of one panel of weights for one block of k: half of a first-level cache. */
#define PANEL_FLOATS 4096
/* Positions of one task: its rows of one block of k stay in the second-level cache. */
#define BLOCK 96
#define TASKS_PER_THREAD 4
/* Fewer input channels than this make short runs: neighbouring taps are then joined. */
#define FEW_CHANNELS 16
#define ROW_TASK 32768                  /* products of a depthwise task, at least */

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static size_t up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }
static size_t cut(size_t n, size_t unit) { return n ? (n - 1) / unit + 1 : 0; }

/* ------------------------------------------------------------------ geometry */

/* One spatial dim of one phase: tap t reads input t_in*stride + off[t]. A forward
 * convolution is one phase; a transposed one has stride^dims of them: the outputs
 * first + t*step, each a forward convolution of stride 1 by the taps that reach it. */
typedef struct axis {
    int64_t out, stride, first, step;
    int64_t taps;
    int64_t tap0, tap_step;             /* tap t is the kernel's tap0 + t*tap_step */
    int64_t off0, off_step;             /* and reads at off0 + t*off_step */
} axis;

static axis forward_axis(const ane_conv_args *g, int d) {
    return (axis){.out = g->out[d], .stride = g->stride[d], .step = 1, .taps = g->kernel[d],
                  .tap_step = 1, .off0 = -g->pad[d], .off_step = g->dilation[d]};
}

/* Outputs q = phase + t*stride: taps k with (q + pad - k*dilation) divisible by stride. */
static axis transposed_axis(const ane_conv_args *g, int d, int64_t phase) {
    int64_t s = g->stride[d], at = phase + g->pad[d], period = 1, first = -1;
    axis a = {.out = phase < g->out[d] ? (g->out[d] - phase - 1) / s + 1 : 0, .stride = 1,
              .first = phase, .step = s};
    while (period * g->dilation[d] % s) period++;
    for (int64_t k = 0; k < least(period, g->kernel[d]) && first < 0; k++)
        if (((at - k * g->dilation[d]) % s + s) % s == 0) first = k;
    if (first < 0) return a;
    a.taps = (g->kernel[d] - 1 - first) / period + 1;
    a.tap0 = first;
    a.tap_step = period;
    a.off0 = (at - first * g->dilation[d]) / s;
    a.off_step = -(period * g->dilation[d] / s);
    return a;
}

static int64_t phases_of(const ane_conv_args *g) {
    return g->transposed ? g->stride[0] * g->stride[1] * g->stride[2] : 1;
}
static void phase_of(const ane_conv_args *g, int64_t p, axis *a) {
    for (int d = 2; d >= 0; d--) {
        a[d] = g->transposed ? transposed_axis(g, d, p % g->stride[d]) : forward_axis(g, d);
        p /= g->stride[d];
    }
}

/* Blocks of k of one phase: `per` segments each, or, where one segment is longer than a
 * block, `parts` parts of one segment. Depends on the shape only. */
typedef struct ksplit {
    size_t segs, len, per, parts, part, n;
} ksplit;

static ksplit split_k(size_t segs, size_t len, size_t most) {
    ksplit s = {.segs = segs, .len = len, .per = 1, .parts = 1, .part = len, .n = 1};
    if (!segs || !len) return s;
    if (len > most) {
        s.parts = cut(len, most);
        s.part = up(cut(len, s.parts), 4);
        s.parts = cut(len, s.part);
        s.n = segs * s.parts;
    } else {
        s.per = cut(segs, cut(segs, most / len));
        s.n = cut(segs, s.per);
    }
    return s;
}
/* Of block b: its first segment, how many, and which floats of each. */
static void block_of(const ksplit *s, size_t b, size_t *seg, size_t *segs, size_t *skip,
                     size_t *len) {
    if (s->parts > 1) {
        *seg = b / s->parts;
        *segs = 1;
        *skip = b % s->parts * s->part;
        *len = min_size(s->part, s->len - *skip);
    } else {
        *seg = b * s->per;
        *segs = s->segs ? min_size(s->per, s->segs - *seg) : 0;
        *skip = 0;
        *len = s->len;
    }
}
/* k in front of block b. */
static size_t k_before(const ksplit *s, size_t b) {
    size_t seg, segs, skip, len;
    if (b == s->n) return s->segs * s->len;
    block_of(s, b, &seg, &segs, &skip, &len);
    return seg * s->len + skip;
}

/* ------------------------------------------------------------------ one convolution */

typedef struct job {
    const ane_kernels *table;
    const ane_conv_kernels *k;
    const ane_conv_args *g;
    size_t cin, cout;                   /* of one group */
    bool ints;                          /* elements are pairs of int16 */
    ane_conv_tile_fn *tile;
    bool depthwise, joined;             /* joined: the taps along w make one segment */
    ane_rows x;
    axis a[3];
    ksplit ks;
    const float *w;                     /* of this phase */
    size_t w_group;                     /* floats of one group */
    size_t panels;
    const float *zeros;
    bool direct;                        /* tiles go to y itself */
    bool whole;
    int64_t ys[3], run;                 /* y's strides of this phase's positions (bytes) */
    int64_t positions, blocks, block;   /* of one image */
    size_t parts, part;                 /* of panels */
    bool parts_first;                   /* tasks of one part are neighbours */
    atomic_bool failed;
} job;

static bool is_float(ane_dtype d) { return d == ANE_F16 || d == ANE_BF16 || d == ANE_F32; }

static bool is_byte(ane_dtype d) { return d == ANE_I8 || d == ANE_U8; }

/* Terms of a sum of products of 9-bit differences that fit an int32. */
#define INT_TERMS (INT32_MAX / (255 * 255))

static ane_status check(const ane_conv_args *g, ane_error *err) {
    bool ints = is_byte(g->x.dtype) && is_byte(g->w_dtype);
    int64_t terms = g->cin * g->kernel[0] * g->kernel[1] * g->kernel[2];
    if (ints && (g->groups != 1 || terms > INT_TERMS))
        return ane_fail(err, ANE_ERR_UNSUPPORTED, "[conv] 8-bit operands need one group and at "
                        "most %d terms, got %lld and %lld", INT_TERMS, (long long)g->groups,
                        (long long)terms);
    if (ints ? !is_float(g->y.dtype) : !is_float(g->x.dtype) || !is_float(g->y.dtype) || !is_float(g->w_dtype) ||
        (g->residual && !is_float(g->residual->dtype)))
        return ane_fail(err, ANE_ERR_DTYPE, "[conv] expected float16, bfloat16 or float32");
    if (g->n < 0 || g->groups < 1 || g->cin % g->groups || g->cout % g->groups)
        return ane_fail(err, ANE_ERR_SHAPE, "[conv] %lld and %lld channels in %lld groups",
                        (long long)g->cin, (long long)g->cout, (long long)g->groups);
    return ANE_OK;
}

static bool taps_join(const ane_conv_args *g) {
    return !g->transposed && g->groups == 1 && g->dilation[2] == 1 && g->kernel[2] > 1;
}

static bool nothing(const ane_conv_args *g) {
    return !g->n || !g->cout || !g->out[0] || !g->out[1] || !g->out[2];
}

/* What the packed form depends on. */
static void begin(job *j, const ane_kernels *limit, const ane_conv_args *g) {
    *j = (job){.g = g, .cin = (size_t)(g->cin / g->groups),
               .cout = (size_t)(g->cout / g->groups)};
    j->table = limit && limit->vec ? limit : ane_kernels_get();
    j->k = j->table->conv;
    j->ints = is_byte(g->x.dtype);
    j->tile = j->ints ? ane_qtile_for(limit)->qtile : j->k->tile;
    if (j->ints) j->cin = cut(j->cin, 2);
    j->depthwise = !j->ints && j->cin == 1 && j->cout == 1 && g->groups > 1;
    j->panels = cut(j->cout, j->k->nr);
    ane_rows view;
    bool staged = !ane__rows_view(&g->x, g->cin, g->in, &view);
    j->joined = !j->depthwise && taps_join(g) && (staged || j->cin < FEW_CHANNELS);
}

static void set_phase(job *j, int64_t p) {
    phase_of(j->g, p, j->a);
    size_t outer = (size_t)(j->a[0].taps * j->a[1].taps), inner = (size_t)j->a[2].taps;
    if (j->joined) j->ks = split_k(outer, inner * j->cin, PANEL_FLOATS / j->k->nr);
    else j->ks = split_k(outer * inner, j->cin, PANEL_FLOATS / j->k->nr);
}

/* Floats of one phase's packed weights. */
static size_t phase_floats(const job *j) {
    size_t k = j->ks.segs * j->ks.len;
    if (j->depthwise) return k * up((size_t)j->g->groups, j->k->vw);
    return (size_t)j->g->groups * j->panels * k * j->k->nr;
}

/* ------------------------------------------------------------------ weights */

typedef struct header {
    const ane_conv_kernels *k;
    uint64_t bytes, k_split;
    uint32_t joined, magic;
    char pad[ANE_ALIGN - 8 - 16 - 8];
} header;
#define MAGIC 0x564e4f43u

static float weight_at(const char *p, ane_dtype dtype) {
    if (dtype == ANE_F32) {
        float x;
        memcpy(&x, p, sizeof x);
        return x;
    }
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return dtype == ANE_F16 ? ane_f32_from_f16(h) : ane_bits_f32((uint32_t)h << 16);
}

typedef struct packing {
    const job *j;
    float *dst;
} packing;

static int16_t byte_at(const char *p, ane_dtype dtype, int zero) {
    return (int16_t)((dtype == ANE_I8 ? *(const int8_t *)p : *(const uint8_t *)p) - zero);
}

/* Channels 2*pair and the next, without their zero point. */
static void put_pair(const ane_conv_args *g, float *to, const char *p, int64_t pair, bool real) {
    int16_t v[2] = {0, 0};
    if (real) v[0] = byte_at(p, g->w_dtype, g->w_zero);
    if (real && 2 * pair + 1 < g->cin) v[1] = byte_at(p + g->w_in, g->w_dtype, g->w_zero);
    memcpy(to, v, sizeof v);
}

/* One panel of one group, all k: [block][panel][k][nr]. Rows of w are read along memory. */
static void pack_panel(void *arg, size_t task) {
    const packing *x = arg;
    const job *j = x->j;
    const ane_conv_args *g = j->g;
    size_t group = task / j->panels, panel = task % j->panels, nr = j->k->nr;
    size_t first = panel * nr, have = min_size(nr, j->cout - first), total = j->ks.segs * j->ks.len;
    float *dst = x->dst + group * j->panels * total * nr;
    const char *w = g->w;
    w += (int64_t)group * (g->transposed ? g->w_in * (int64_t)j->cin : g->w_out * (int64_t)j->cout);
    const axis *a = j->a;
    for (size_t b = 0; b < j->ks.n; b++) {
        size_t k0 = k_before(&j->ks, b), k1 = k_before(&j->ks, b + 1);
        float *to = dst + j->panels * k0 * nr + panel * (k1 - k0) * nr;
        for (size_t c = 0; c < nr; c++) {
            const char *row = w + (int64_t)(first + (c < have ? c : 0)) * g->w_out;
            for (size_t k = k0; k < k1; k++) {
                int64_t ci = (int64_t)(k % j->cin), t = (int64_t)(k / j->cin);
                int64_t t2 = t % a[2].taps, t1 = t / a[2].taps % a[1].taps,
                        t0 = t / a[2].taps / a[1].taps;
                const char *p = row + ci * (j->ints ? 2 : 1) * g->w_in +
                                (a[0].tap0 + t0 * a[0].tap_step) * g->w_s[0] +
                                (a[1].tap0 + t1 * a[1].tap_step) * g->w_s[1] +
                                (a[2].tap0 + t2 * a[2].tap_step) * g->w_s[2];
                float *at = &to[(k - k0) * nr + c];
                if (j->ints) put_pair(g, at, p, ci, c < have);
                else *at = c < have ? weight_at(p, g->w_dtype) : 0.0f;
            }
        }
    }
}

/* [tap][channels]. */
static void pack_depthwise(const job *j, float *dst) {
    const ane_conv_args *g = j->g;
    const axis *a = j->a;
    size_t ld = up((size_t)g->groups, j->k->vw);
    int64_t step = g->transposed ? g->w_in : g->w_out;
    for (int64_t t0 = 0; t0 < a[0].taps; t0++)
        for (int64_t t1 = 0; t1 < a[1].taps; t1++)
            for (int64_t t2 = 0; t2 < a[2].taps; t2++, dst += ld) {
                const char *p = (const char *)g->w +
                                (a[0].tap0 + t0 * a[0].tap_step) * g->w_s[0] +
                                (a[1].tap0 + t1 * a[1].tap_step) * g->w_s[1] +
                                (a[2].tap0 + t2 * a[2].tap_step) * g->w_s[2];
                for (int64_t c = 0; c < (int64_t)ld; c++)
                    dst[c] = c < g->groups ? weight_at(p + c * step, g->w_dtype) : 0.0f;
            }
}

static size_t packed_floats(job *j) {
    size_t n = 0;
    for (int64_t p = 0; p < phases_of(j->g); p++) {
        set_phase(j, p);
        n += phase_floats(j);
    }
    return n;
}

size_t ane_conv_pack_bytes_with(const ane_kernels *table, const ane_conv_args *args) {
    job j;
    if (check(args, NULL) || nothing(args)) return 0;
    begin(&j, table, args);
    return sizeof(header) + packed_floats(&j) * sizeof(float);
}

ane_status ane_conv_pack_with(const ane_kernels *table, const ane_conv_args *args, void *dst,
                              ane_error *err) {
    job j;
    ane_status st = check(args, err);
    if (st) return st;
    begin(&j, table, args);
    header *h = dst;
    *h = (header){.k = j.k, .bytes = sizeof *h + packed_floats(&j) * sizeof(float),
                  .joined = j.joined, .magic = MAGIC};
    float *to = (float *)(void *)(h + 1);
    for (int64_t p = 0; p < phases_of(args); p++) {
        set_phase(&j, p);
        if (j.depthwise) pack_depthwise(&j, to);
        else {
            packing x = {&j, to};
            if (!ane_parallel_for((size_t)args->groups * j.panels, pack_panel, &x))
                return ane_fail(err, ANE_ERR_CANCELLED, "[conv] cancelled while packing");
        }
        to += phase_floats(&j);
    }
    return ANE_OK;
}

/* ------------------------------------------------------------------ tiles */

typedef struct tile {
    int64_t at;                         /* first position */
    size_t m;
    float *y;                           /* where the sums go, at the task's first channel */
    const char *res;
} tile;

/* Positions [p0, p1) in tiles that do not cross the end of an even run, of equal size as
 * far as possible. */
static size_t make_tiles(const job *j, int64_t p0, int64_t p1, tile *t) {
    size_t n = 0, mr = j->k->mr;
    while (p0 < p1) {
        size_t left = (size_t)least(p1 - p0, j->run - p0 % j->run), count = cut(left, mr);
        for (size_t i = 0; i < count; i++) {
            size_t m = left / (count - i) + (left % (count - i) != 0);
            t[n++] = (tile){.at = p0, .m = m};
            p0 += (int64_t)m;
            left -= m;
        }
    }
    return n;
}

static int64_t offset_of(const job *j, const int64_t *s, int64_t p) {
    int64_t w = p % j->a[2].out, h = p / j->a[2].out % j->a[1].out,
            d = p / j->a[2].out / j->a[1].out;
    return d * s[0] + h * s[1] + w * s[2];
}

/* Where each tile's positions read for segments [s0, s0 + segs): table[tile][segment][i]. */
static void point(const job *j, const float *image, const tile *tiles, size_t n_tiles,
                  size_t s0, size_t segs, const float **table) {
    const axis *a = j->a;
    const ane_rows *x = &j->x;
    size_t mr = j->k->mr;
    int64_t inner = j->joined ? 1 : a[2].taps;
    int64_t first = tiles[0].at, end = tiles[n_tiles - 1].at + (int64_t)tiles[n_tiles - 1].m;
    for (size_t s = 0; s < segs; s++) {
        int64_t t = (int64_t)(s0 + s), t2 = t % inner, t1 = t / inner % a[1].taps,
                t0 = t / inner / a[1].taps;
        int64_t o2 = a[2].off0 + t2 * a[2].off_step + x->shift[2];
        int64_t o1 = a[1].off0 + t1 * a[1].off_step + x->shift[1];
        int64_t o0 = a[0].off0 + t0 * a[0].off_step + x->shift[0];
        const float **to = table + s * mr;
        size_t tile_no = 0, i = 0;
        for (int64_t p = first; p < end;) {
            int64_t w = p % a[2].out, row = p / a[2].out;
            int64_t h = row % a[1].out * a[1].stride + o1, d = row / a[1].out * a[0].stride + o0;
            int64_t stop = least(end, p + a[2].out - w), at = w * a[2].stride + o2;
            bool in = h >= 0 && h < x->in[1] && d >= 0 && d < x->in[0];
            const float *base = in ? image + d * x->s[0] + h * x->s[1] : NULL;
            for (; p < stop; p++, at += a[2].stride) {
                to[i] = in && at >= 0 && at < x->in[2] ? base + at * x->s[2] : j->zeros;
                if (++i == tiles[tile_no].m) {
                    i = 0;
                    tile_no++;
                    to += segs * mr;
                }
            }
        }
    }
}

static void set_post(const job *j, ane_conv_post *p, int64_t n, size_t channel, int64_t at) {
    const ane_conv_args *g = j->g;
    *p = (ane_conv_post){.scale = g->scale ? g->scale + channel : NULL,
                         .shift = g->shift ? g->shift + channel : NULL, .before = g->before,
                         .after = g->after, .whole = j->whole};
    if (!g->residual) return;
    const ane_planes *r = g->residual;
    int64_t s[3], size = r->dtype == ANE_F32 ? 4 : 2;
    for (int d = 0; d < 3; d++) s[d] = r->s[d] * j->a[d].step;
    int64_t first = 0;
    for (int d = 0; d < 3; d++) first += r->s[d] * j->a[d].first;
    p->res = (const char *)r->data + n * r->sn + (int64_t)channel * size + first +
             offset_of(j, s, at);
    p->res_dtype = r->dtype;
    p->res_s = s[2];
    if (j->a[2].out == 1) p->res_s = j->a[1].out == 1 ? s[0] : s[1];
}

/* y's address of position p, channel c. */
static char *place(const job *j, int64_t n, size_t c, int64_t p) {
    const ane_planes *y = &j->g->y;
    int64_t first = 0;
    for (int d = 0; d < 3; d++) first += y->s[d] * j->a[d].first;
    return (char *)y->data + n * y->sn + (int64_t)c * y->sc + first + offset_of(j, j->ys, p);
}

static int64_t position_step(const job *j, const int64_t *s) {
    return j->a[2].out > 1 ? s[2] : j->a[1].out > 1 ? s[1] : s[0];
}

/* Finished sums of positions [at, at + m) from scratch to y. */
static void put(const job *j, int64_t n, size_t channel, int64_t at, size_t m, float *acc,
                size_t ld, size_t cols, bool finish) {
    ane_conv_post post;
    set_post(j, &post, n, channel, at);
    if (finish && !j->whole) j->k->finish(&post, acc, ld, m, cols);
    ane_tile_out out = {.alpha = 1, .c = place(j, n, channel, at), .c_dtype = j->g->y.dtype,
                        .c_rs = position_step(j, j->ys), .c_cs = j->g->y.sc};
    j->table->tile(&out, acc, ld, m, cols);
}

static void run_tiles(void *arg, size_t task) {
    job *j = arg;
    const ane_conv_args *g = j->g;
    const ane_conv_kernels *k = j->k;
    size_t outer = (size_t)(g->n * g->groups * j->blocks);
    size_t part = j->parts_first ? task / outer : task % j->parts;
    size_t left = j->parts_first ? task % outer : task / j->parts;
    int64_t block = (int64_t)left % j->blocks, image = (int64_t)left / j->blocks;
    int64_t group = image % g->groups, n = image / g->groups;
    int64_t p0 = block * j->block, p1 = least(p0 + j->block, j->positions);
    size_t c0 = part * j->part, c1 = min_size(c0 + j->part, j->panels);
    size_t cols = min_size(c1 * k->nr, j->cout) - c0 * k->nr, ld = (c1 - c0) * k->nr;
    size_t most = 0;
    for (size_t b = 0; b < j->ks.n && b < 2; b++) {
        size_t seg, segs, skip, len;
        block_of(&j->ks, b, &seg, &segs, &skip, &len);
        if (segs > most) most = segs;
    }
    tile tiles[BLOCK];
    size_t n_tiles = make_tiles(j, p0, p1, tiles);
    size_t table_bytes = up(n_tiles * (most ? most : 1) * k->mr * sizeof(float *), ANE_ALIGN);
    size_t acc_bytes = j->direct ? 0 : (size_t)(p1 - p0) * ld * sizeof(float);
    char *scratch = ane_scratch_push(table_bytes + acc_bytes);
    if (!scratch) {
        atomic_store(&j->failed, true);
        return;
    }
    const float **table = (const float **)(void *)scratch;
    float *acc = (float *)(void *)(scratch + table_bytes);
    const float *x = j->x.base + n * j->x.sn + group * (int64_t)j->cin;
    size_t channel = (size_t)group * j->cout + c0 * k->nr;
    ane_conv_post post = {.res = NULL};
    size_t ldc = j->direct ? (size_t)(position_step(j, j->ys) / 4) : ld;
    int64_t res_size = g->residual && g->residual->dtype != ANE_F32 ? 2 : 4;
    for (size_t i = 0; i < n_tiles; i++) {
        set_post(j, &post, n, channel, tiles[i].at);
        tiles[i].res = post.res;
        tiles[i].y = j->direct ? (float *)(void *)place(j, n, channel, tiles[i].at)
                               : acc + (size_t)(tiles[i].at - p0) * ld;
    }
    size_t seg = 0, segs = 0, skip = 0, len = 0, from = SIZE_MAX;
    for (size_t b = 0; b < j->ks.n; b++) {
        block_of(&j->ks, b, &seg, &segs, &skip, &len);
        if (seg != from) point(j, x, tiles, n_tiles, seg, segs, table);
        from = seg;
        size_t k0 = k_before(&j->ks, b), kb = segs * len;
        const float *w = j->w + (size_t)group * j->w_group + j->panels * k0 * k->nr;
        bool last = b + 1 == j->ks.n;
        for (size_t c = c0; c < c1; c++) {
            size_t at = (c - c0) * k->nr, width = min_size(k->nr, cols - at);
            ane_conv_tile t = {.skip = skip, .segs = segs, .len = len, .b = w + c * kb * k->nr,
                               .ldc = ldc, .n = width, .add = b > 0,
                               .post = last ? &post : NULL};
            if (g->scale) post.scale = g->scale + channel + at;
            if (g->shift) post.shift = g->shift + channel + at;
            for (size_t i = 0; i < n_tiles; i++) {
                t.a = table + i * segs * k->mr;
                t.c = tiles[i].y + at;
                if (post.res) post.res = tiles[i].res + (int64_t)at * res_size;
                j->tile(tiles[i].m, &t);
                if (last && j->direct && !j->whole)
                    k->finish(&post, t.c, t.ldc, tiles[i].m, width);
            }
        }
    }
    for (int64_t p = p0; !j->direct && p < p1;) {
        int64_t m = least(p1 - p, j->run - p % j->run);
        put(j, n, channel, p, (size_t)m, acc + (size_t)(p - p0) * ld, ld, cols, true);
        p += m;
    }
    ane_scratch_pop(scratch);
}

/* ------------------------------------------------------------------ depthwise */

/* One row of outputs. Taps outside the image are left out of the sum. */
static void run_row(void *arg, size_t task) {
    job *j = arg;
    const ane_conv_args *g = j->g;
    const axis *a = j->a;
    const ane_rows *x = &j->x;
    size_t channels = (size_t)g->groups, ldw = up(channels, j->k->vw);
    size_t taps = (size_t)(a[0].taps * a[1].taps * a[2].taps), width = (size_t)a[2].out;
    size_t lists = up(4 * (taps + 1) * sizeof(float *), ANE_ALIGN);
    /* The store reads whole vectors, up to one past the last row. */
    size_t room = j->direct ? 0 : (width * channels + 64) * sizeof(float);
    char *scratch = ane_scratch_push(lists + room);
    if (!scratch) {
        atomic_store(&j->failed, true);
        return;
    }
    const float **row = (const float **)(void *)scratch, **row_w = row + taps;
    const float **at = row_w + taps, **at_w = at + taps;
    float *acc = (float *)(void *)(scratch + lists);
    int64_t first = (int64_t)task * j->block, end = least(first + j->block, j->blocks);
    for (int64_t r = first; r < end; r++) {
        int64_t h = r % a[1].out, d = r / a[1].out % a[0].out, n = r / a[1].out / a[0].out;
        int64_t p = (d * a[1].out + h) * a[2].out;
        /* Rows of the image that this row sees: pointers at column 0. */
        size_t rows = 0;
        for (int64_t t0 = 0; t0 < a[0].taps; t0++)
            for (int64_t t1 = 0; t1 < a[1].taps; t1++) {
                int64_t id = d * a[0].stride + a[0].off0 + t0 * a[0].off_step + x->shift[0];
                int64_t ih = h * a[1].stride + a[1].off0 + t1 * a[1].off_step + x->shift[1];
                if (id < 0 || id >= x->in[0] || ih < 0 || ih >= x->in[1]) continue;
                row[rows] = x->base + n * x->sn + id * x->s[0] + ih * x->s[1];
                row_w[rows++] = j->w + (size_t)((t0 * a[1].taps + t1) * a[2].taps) * ldw;
            }
        ane_conv_dw dw = {.channels = channels, .step = (size_t)(a[2].stride * x->s[2]),
                          .a = at, .w = at_w};
        int64_t step = position_step(j, j->ys);
        dw.ldy = j->direct ? (size_t)(step / 4) : channels;
        for (int64_t w = 0; w < a[2].out;) {
            int64_t px = least(4, a[2].out - w), lo = 0, hi = a[2].taps;
            for (;; px = 1) {           /* four where every tap is inside for all of them */
                int64_t base = w * a[2].stride + a[2].off0 + x->shift[2];
                int64_t reach = base + (px - 1) * a[2].stride, last = (a[2].taps - 1) * a[2].off_step;
                int64_t low = last < 0 ? base + last : base, high = last < 0 ? reach : reach + last;
                if (low >= 0 && high < x->in[2]) break;
                if (px > 1) continue;
                while (lo < hi) {
                    int64_t q = base + lo * a[2].off_step;
                    if (q >= 0 && q < x->in[2]) break;
                    lo++;
                }
                while (hi > lo) {
                    int64_t q = base + (hi - 1) * a[2].off_step;
                    if (q >= 0 && q < x->in[2]) break;
                    hi--;
                }
                break;
            }
            dw.taps = 0;
            for (size_t q = 0; q < rows; q++)
                for (int64_t t = lo; t < hi; t++) {
                    int64_t col = w * a[2].stride + a[2].off0 + t * a[2].off_step + x->shift[2];
                    at[dw.taps] = row[q] + col * x->s[2];
                    at_w[dw.taps++] = row_w[q] + (size_t)t * ldw;
                }
            dw.y = j->direct ? (float *)(void *)place(j, n, 0, p + w) : acc + (size_t)w * channels;
            set_post(j, &dw.post, n, 0, p + w);
            j->k->depthwise((size_t)px, &dw);
            w += px;
        }
        if (!j->direct) put(j, n, 0, p, width, acc, channels, channels, false);
    }
    ane_scratch_pop(scratch);
}

/* ------------------------------------------------------------------ running */

static bool plain_act(const ane_conv_act *a) { return a->limits || a->act == ANE_ACT_NONE; }

/* Blocks of positions and parts of panels: enough tasks, and as even a load as possible. */
static void share_out(job *j, size_t images) {
    size_t threads = (size_t)ane_num_threads(), positions = (size_t)j->positions;
    size_t blocks = cut(positions, BLOCK), even = up(blocks, threads);
    if (cut(positions, even) >= BLOCK / 2) blocks = even;
    j->block = (int64_t)cut(positions, blocks);
    j->blocks = (int64_t)cut(positions, (size_t)j->block);
    size_t tasks = images * (size_t)j->blocks, wanted = threads * TASKS_PER_THREAD;
    size_t first = threads > 1 && tasks < wanted ? cut(wanted, tasks) : 1;
    double best = 0;
    j->parts = 0;
    for (size_t n = first; n <= 4 * first || !j->parts; n++) {
        size_t part = cut(j->panels, n < j->panels ? n : j->panels);
        size_t parts = cut(j->panels, part);
        /* Panels that the busiest thread has, against its share. */
        double load = (double)(cut(tasks * parts, threads) * threads * part) /
                      (double)(tasks * j->panels);
        if (j->parts && load > best - 0.01) continue;
        best = load;
        j->part = part;
        j->parts = parts;
        if (n >= j->panels) break;
    }
    /* Threads then split what is larger: each reads its own half of it. */
    double weights = (double)(j->ks.segs * j->ks.len) * (double)j->cout;
    j->parts_first = weights > (double)positions * (double)(j->cin + j->cout);
}

static ane_status run_phase(job *j, ane_error *err) {
    const ane_conv_args *g = j->g;
    int64_t out[3], rs[3];
    for (int d = 0; d < 3; d++) {
        out[d] = j->a[d].out;
        j->ys[d] = g->y.s[d] * j->a[d].step;
        rs[d] = g->residual ? g->residual->s[d] * j->a[d].step : 0;
    }
    j->positions = out[0] * out[1] * out[2];
    if (!j->positions) return ANE_OK;
    j->direct = ane__rows_writable(&g->y, g->cout);
    j->run = ane__even_run(out, j->ys);
    if (g->residual) {
        const ane_planes *r = g->residual;
        j->run = least(j->run, ane__even_run(out, rs));
        j->whole = r->dtype == ANE_F32 && (uintptr_t)r->data % 4 == 0;
    } else {
        j->whole = true;
    }
    j->whole = j->whole && plain_act(&g->before) && plain_act(&g->after);
    bool done;
    if (j->depthwise) {
        int64_t rows = g->n * out[0] * out[1];
        int64_t work = out[2] * g->groups * j->a[0].taps * j->a[1].taps * j->a[2].taps;
        j->run = least(j->run, out[2]);
        j->blocks = rows;
        j->block = work ? ROW_TASK / work + 1 : rows;
        done = ane_parallel_for(cut((size_t)rows, (size_t)j->block), run_row, j);
    } else {
        size_t images = (size_t)(g->n * g->groups);
        share_out(j, images);
        done = ane_parallel_for(images * (size_t)j->blocks * j->parts, run_tiles, j);
    }
    if (!done) return ane_fail(err, ANE_ERR_CANCELLED, "[conv] cancelled");
    if (atomic_load(&j->failed))
        return ane_fail(err, ANE_ERR_NOMEM, "[conv] no memory for a thread's tiles");
    return ANE_OK;
}

/* The zeros that any phase reads around the image. */
static void halo(const ane_conv_args *g, int64_t *before, int64_t *after) {
    for (int d = 0; d < 3; d++) {
        before[d] = after[d] = 0;
        for (int64_t p = 0; p < (g->transposed ? g->stride[d] : 1); p++) {
            axis a = g->transposed ? transposed_axis(g, d, p) : forward_axis(g, d);
            if (!a.taps || !a.out) continue;
            int64_t last = a.off0 + (a.taps - 1) * a.off_step, low = least(a.off0, last);
            int64_t high = (a.out - 1) * a.stride + (a.off0 > last ? a.off0 : last);
            if (-low > before[d]) before[d] = -low;
            if (high - (g->in[d] - 1) > after[d]) after[d] = high - (g->in[d] - 1);
        }
    }
}

/* x as rows, staged where it has to be. Joined taps run along a row and need its padding;
 * otherwise a tap outside the image has pointers of its own. */
static ane_status rows_of(job *j, ane_error *err) {
    const ane_conv_args *g = j->g;
    int64_t before[3] = {0}, after[3] = {0};
    if (!j->joined && ane__rows_view(&g->x, g->cin, g->in, &j->x)) return ANE_OK;
    if (j->joined) halo(g, before, after);
    if (j->ints)
        return ane__rows_stage(j->table, &g->x, g->n, g->cin, g->in, before, after, g->x_zero,
                               &j->x, err);
    return ane__rows_stage(j->table, &g->x, g->n, g->cin, g->in, before, after, 0, &j->x, err);
}

ane_status ane_conv_with(const ane_kernels *table, const ane_conv_args *args, ane_error *err) {
    job j;
    ane_status st = check(args, err);
    if (st || nothing(args)) return st;
    begin(&j, table, args);
    size_t floats = packed_floats(&j), longest = 0;
    float *zeros = NULL;
    header *mine = NULL;
    const header *h = args->packed;
    for (int64_t p = 0; p < phases_of(args); p++) {
        set_phase(&j, p);
        if (j.ks.len > longest) longest = j.ks.len;
    }
    st = rows_of(&j, err);
    if (st) return st;
    zeros = ane_scratch_push((longest + 1) * sizeof *zeros);
    if (!zeros) goto nomem;
    memset(zeros, 0, (longest + 1) * sizeof *zeros);
    j.zeros = zeros;
    if (!h || h->magic != MAGIC || h->k != j.k || h->joined != (uint32_t)j.joined ||
        h->bytes != sizeof *h + floats * sizeof(float)) {
        h = mine = ane_scratch_push(sizeof *h + floats * sizeof(float));
        if (!mine) goto nomem;
        st = ane_conv_pack_with(table, args, mine, err);
    }
    const float *w = (const float *)(const void *)(h + 1);
    for (int64_t p = 0; p < phases_of(args) && !st; p++) {
        set_phase(&j, p);
        j.w = w;
        j.w_group = j.panels * j.ks.segs * j.ks.len * j.k->nr;
        w += phase_floats(&j);
        st = run_phase(&j, err);
    }
    goto done;
nomem:
    st = ane_fail(err, ANE_ERR_NOMEM, "[conv] no memory for packed weights");
done:
    ane_scratch_pop(mine);
    ane_scratch_pop(zeros);
    ane_scratch_pop(j.x.owned);
    return st;
}

/* ------------------------------------------------------------------ the chosen table */

ane_status ane_conv(const ane_conv_args *args, ane_error *err) {
    return ane_conv_with(NULL, args, err);
}
size_t ane_conv_pack_bytes(const ane_conv_args *args) {
    return ane_conv_pack_bytes_with(NULL, args);
}
ane_status ane_conv_pack(const ane_conv_args *args, void *dst, ane_error *err) {
    return ane_conv_pack_with(NULL, args, dst, err);
}
const char *ane_conv_name(const ane_conv_args *args) {
    job j;
    begin(&j, NULL, args);
    if (j.ints) return ane_qtile_for(NULL)->qname;
    return j.depthwise ? j.k->dw_name : j.k->name;
}
double ane_conv_flops(const ane_conv_args *args) {
    double n = 2.0 * (double)args->n * (double)(args->cin / args->groups) * (double)args->cout;
    for (int d = 0; d < 3; d++)
        n *= (double)args->kernel[d] * (double)(args->transposed ? args->in[d] : args->out[d]);
    return n;
}
