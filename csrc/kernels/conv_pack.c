/* Geometry of convolutions, blocks of k, and weights in the order tiles read them. */
#include "conv_job.h"

#include "../base/f16.h"
#include "../base/sync.h"

#include <string.h>

/* Floats of one panel of weights for one block of k. The tiles of a block of positions stream
 * it from the second-level cache; shorter blocks of k store and read back sums more often. */
#define PANEL_FLOATS 16384
/* Fewer input channels than this make short runs: neighbouring taps are then joined. */
#define FEW_CHANNELS 16

/* ------------------------------------------------------------------ geometry */

static ane_conv_axis forward_axis(const ane_conv_args *g, int d) {
    return (ane_conv_axis){.out = g->out[d], .stride = g->stride[d], .step = 1, .taps = g->kernel[d],
                  .tap_step = 1, .off0 = -g->pad[d], .off_step = g->dilation[d]};
}

/* Outputs q = phase + t*stride: taps k with (q + pad - k*dilation) divisible by stride. */
static ane_conv_axis transposed_axis(const ane_conv_args *g, int d, int64_t phase) {
    int64_t s = g->stride[d], at = phase + g->pad[d], period = 1, first = -1;
    ane_conv_axis a = {.out = phase < g->out[d] ? (g->out[d] - phase - 1) / s + 1 : 0, .stride = 1,
              .first = phase, .step = s};
    while (period * g->dilation[d] % s) period++;
    for (int64_t k = 0; k < ane__least(period, g->kernel[d]) && first < 0; k++)
        if (((at - k * g->dilation[d]) % s + s) % s == 0) first = k;
    if (first < 0) return a;
    a.taps = (g->kernel[d] - 1 - first) / period + 1;
    a.tap0 = first;
    a.tap_step = period;
    a.off0 = (at - first * g->dilation[d]) / s;
    a.off_step = -(period * g->dilation[d] / s);
    return a;
}

int64_t ane__conv_phases(const ane_conv_args *g) {
    return g->transposed ? g->stride[0] * g->stride[1] * g->stride[2] : 1;
}
static void phase_of(const ane_conv_args *g, int64_t p, ane_conv_axis *a) {
    for (int d = 2; d >= 0; d--) {
        a[d] = g->transposed ? transposed_axis(g, d, p % g->stride[d]) : forward_axis(g, d);
        p /= g->stride[d];
    }
}

static ane_conv_split split_k(size_t segs, size_t len, size_t most) {
    ane_conv_split s = {.segs = segs, .len = len, .per = 1, .parts = 1, .part = len, .n = 1};
    if (!segs || !len) return s;
    if (len > most) {
        s.parts = ane__cut(len, most);
        s.part = ane__up(ane__cut(len, s.parts), 4);
        s.parts = ane__cut(len, s.part);
        s.n = segs * s.parts;
    } else {
        s.per = ane__cut(segs, ane__cut(segs, most / len));
        s.n = ane__cut(segs, s.per);
    }
    return s;
}
void ane__conv_block(const ane_conv_split *s, size_t b, size_t *seg, size_t *segs, size_t *skip,
                     size_t *len) {
    if (s->parts > 1) {
        *seg = b / s->parts;
        *segs = 1;
        *skip = b % s->parts * s->part;
        *len = ane__least_size(s->part, s->len - *skip);
    } else {
        *seg = b * s->per;
        *segs = s->segs ? ane__least_size(s->per, s->segs - *seg) : 0;
        *skip = 0;
        *len = s->len;
    }
}
size_t ane__conv_k_before(const ane_conv_split *s, size_t b) {
    size_t seg, segs, skip, len;
    if (b == s->n) return s->segs * s->len;
    ane__conv_block(s, b, &seg, &segs, &skip, &len);
    return seg * s->len + skip;
}

void ane__conv_halo(const ane_conv_args *g, int64_t *before, int64_t *after) {
    for (int d = 0; d < 3; d++) {
        before[d] = after[d] = 0;
        for (int64_t p = 0; p < (g->transposed ? g->stride[d] : 1); p++) {
            ane_conv_axis a = g->transposed ? transposed_axis(g, d, p) : forward_axis(g, d);
            if (!a.taps || !a.out) continue;
            int64_t last = a.off0 + (a.taps - 1) * a.off_step, low = ane__least(a.off0, last);
            int64_t high = (a.out - 1) * a.stride + (a.off0 > last ? a.off0 : last);
            if (-low > before[d]) before[d] = -low;
            if (high - (g->in[d] - 1) > after[d]) after[d] = high - (g->in[d] - 1);
        }
    }
}

/* ------------------------------------------------------------------ one convolution */

static bool is_float(ane_dtype d) { return d == ANE_F16 || d == ANE_BF16 || d == ANE_F32; }

static bool is_byte(ane_dtype d) { return d == ANE_I8 || d == ANE_U8; }

/* Depthwise. */
static bool one_each(const ane_conv_args *g) {
    return g->groups > 1 && g->cin == g->groups && g->cout == g->groups;
}

/* Terms of a sum of products of 9-bit differences that fit an int32. */
#define INT_TERMS (INT32_MAX / (255 * 255))

ane_status ane__conv_check(const ane_conv_args *g, ane_error *err) {
    bool ints = is_byte(g->x.dtype) && is_byte(g->w_dtype);
    int64_t terms = g->cin / (g->groups > 0 ? g->groups : 1) * g->kernel[0] * g->kernel[1] * g->kernel[2];
    if (ints && ((g->groups != 1 && (!one_each(g) || g->transposed)) || terms > INT_TERMS))
        return ane_fail(err, ANE_ERR_UNSUPPORTED, "[conv] 8-bit operands need one group, or one "
                        "for each channel, and at most %d terms, got %lld and %lld", INT_TERMS,
                        (long long)g->groups, (long long)terms);
    if (ints ? !is_float(g->y.dtype) : !is_float(g->x.dtype) || !is_float(g->y.dtype) || !is_float(g->w_dtype) ||
        (g->residual && !is_float(g->residual->dtype)))
        return ane_fail(err, ANE_ERR_DTYPE, "[conv] expected float16, bfloat16 or float32");
    if (g->eight && !is_byte(g->eight->y.dtype))
        return ane_fail(err, ANE_ERR_DTYPE, "[conv] expected int8 or uint8 behind quantize");
    if (g->n < 0 || g->groups < 1 || g->cin % g->groups || g->cout % g->groups)
        return ane_fail(err, ANE_ERR_SHAPE, "[conv] %lld and %lld channels in %lld groups",
                        (long long)g->cin, (long long)g->cout, (long long)g->groups);
    return ANE_OK;
}

static bool taps_join(const ane_conv_args *g) {
    return !g->transposed && g->groups == 1 && g->dilation[2] == 1 && g->kernel[2] > 1;
}

bool ane__conv_empty(const ane_conv_args *g) {
    return !g->n || !g->cout || !g->out[0] || !g->out[1] || !g->out[2];
}

/* Weights that are int8 once their zero point is gone. */
static bool small_weights(const ane_conv_args *g) {
    return g->w_dtype == ANE_I8 ? g->w_zero == 0 : g->w_zero == 128;
}

static void choose_tile(ane_conv_job *j, const ane_kernels *limit) {
    const ane_conv_args *g = j->g;
    const ane_kernels *pairs = ane_qtile_for(limit), *quads = ane_quad_for(limit);
    j->tile = j->k->tile;
    j->name = j->k->name;
    if (!j->ints) return;
    if (quads && small_weights(g)) {
        j->tile = quads->quad;
        j->name = quads->quad_name;
        j->bytes = (ane_bytes){4, g->x_zero, g->x.dtype == quads->quad_x ? 0 : 0x80};
        return;
    }
    j->tile = pairs->qtile;
    j->name = pairs->qname;
    j->bytes = (ane_bytes){.lanes = 2, .zero = g->x_zero};
}

size_t ane__conv_init_floats(const ane_conv_job *j) {
    if (j->ints && j->depthwise) return ane__up((size_t)j->g->groups, j->k->vw);
    return j->ints && j->bytes.lanes == 4 ? j->panels * j->k->nr : 0;
}

/* What the packed form depends on. */
void ane__conv_begin(ane_conv_job *j, const ane_kernels *limit, const ane_conv_args *g) {
    *j = (ane_conv_job){.g = g, .cin = (size_t)(g->cin / g->groups),
               .cout = (size_t)(g->cout / g->groups)};
    j->table = ane_whole_for(limit);
    j->k = j->table->conv;
    j->ints = is_byte(g->x.dtype);
    j->depthwise = one_each(g);
    if (j->ints && j->depthwise) j->bytes = (ane_bytes){4, g->x_zero, 0};
    else choose_tile(j, limit);
    if (j->ints) j->cin = ane__cut(j->cin, (size_t)j->bytes.lanes);
    j->panels = ane__cut(j->cout, j->k->nr);
    ane_rows view;
    bool staged = !ane__rows_view(&g->x, g->cin, g->in, &view);
    j->joined = !j->depthwise && taps_join(g) && (staged || j->cin < FEW_CHANNELS);
}

void ane__conv_set_phase(ane_conv_job *j, int64_t p) {
    phase_of(j->g, p, j->a);
    size_t outer = (size_t)(j->a[0].taps * j->a[1].taps), inner = (size_t)j->a[2].taps;
    if (j->joined) j->ks = split_k(outer, inner * j->cin, PANEL_FLOATS / j->k->nr);
    else j->ks = split_k(outer * inner, j->cin, PANEL_FLOATS / j->k->nr);
}

size_t ane__conv_phase_floats(const ane_conv_job *j) {
    size_t k = j->ks.segs * j->ks.len;
    if (j->ints && j->depthwise) return (ane__cut(k, 2) + 1) * ane__conv_init_floats(j);
    if (j->depthwise) return k * ane__up((size_t)j->g->groups, j->k->vw);
    return ane__conv_init_floats(j) + (size_t)j->g->groups * j->panels * k * j->k->nr;
}

/* ------------------------------------------------------------------ weights */

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
    const ane_conv_job *j;
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

/* Channels 4*quad and the next three, as int8. */
static void put_quad(const ane_conv_args *g, float *to, const char *p, int64_t quad, bool real) {
    uint8_t v[4] = {0, 0, 0, 0}, flip = g->w_dtype == ANE_U8 ? 0x80 : 0;
    for (int64_t l = 0; l < 4 && real && 4 * quad + l < g->cin; l++)
        v[l] = *(const uint8_t *)(p + l * g->w_in) ^ flip;
    memcpy(to, v, sizeof v);
}

static int32_t quad_sum(const float *at) {
    int8_t v[4];
    memcpy(v, at, sizeof v);
    return v[0] + v[1] + v[2] + v[3];
}

/* sum (x - zero) w = sum x w - zero sum w; the last is known before any x is. */
static int32_t init_of(const ane_conv_job *j, int32_t sum) {
    int byte = ane__bytes_zero(&j->bytes);
    bool sign = (j->g->x.dtype == ANE_I8) == !j->bytes.flip;
    return -(sign ? (int8_t)byte : byte) * sum;
}

/* One panel of one group, all k: [block][panel][k][nr]. Rows of w are read along memory. */
static void pack_panel(void *arg, size_t task) {
    const packing *x = arg;
    const ane_conv_job *j = x->j;
    const ane_conv_args *g = j->g;
    size_t group = task / j->panels, panel = task % j->panels, nr = j->k->nr;
    size_t first = panel * nr, have = ane__least_size(nr, j->cout - first), total = j->ks.segs * j->ks.len;
    float *dst = x->dst + group * j->panels * total * nr;
    const char *w = g->w;
    w += (int64_t)group * (g->transposed ? g->w_in * (int64_t)j->cin : g->w_out * (int64_t)j->cout);
    const ane_conv_axis *a = j->a;
    const bool quads = ane__conv_init_floats(j) > 0;
    const int64_t lanes = j->ints ? j->bytes.lanes : 1;
    int32_t *init = (int32_t *)(void *)x->dst + first;
    dst += ane__conv_init_floats(j);
    if (quads) memset(init, 0, nr * sizeof *init);
    for (size_t b = 0; b < j->ks.n; b++) {
        size_t k0 = ane__conv_k_before(&j->ks, b), k1 = ane__conv_k_before(&j->ks, b + 1);
        float *to = dst + j->panels * k0 * nr + panel * (k1 - k0) * nr;
        for (size_t c = 0; c < nr; c++) {
            const char *row = w + (int64_t)(first + (c < have ? c : 0)) * g->w_out;
            for (size_t k = k0; k < k1; k++) {
                int64_t ci = (int64_t)(k % j->cin), t = (int64_t)(k / j->cin);
                int64_t t2 = t % a[2].taps, t1 = t / a[2].taps % a[1].taps,
                        t0 = t / a[2].taps / a[1].taps;
                const char *p = row + ci * lanes * g->w_in +
                                (a[0].tap0 + t0 * a[0].tap_step) * g->w_s[0] +
                                (a[1].tap0 + t1 * a[1].tap_step) * g->w_s[1] +
                                (a[2].tap0 + t2 * a[2].tap_step) * g->w_s[2];
                float *at = &to[(k - k0) * nr + c];
                if (quads) {
                    put_quad(g, at, p, ci, c < have);
                    init[c] += quad_sum(at);
                } else if (j->ints) put_pair(g, at, p, ci, c < have);
                else *at = c < have ? weight_at(p, g->w_dtype) : 0.0f;
            }
        }
    }
    for (size_t c = 0; quads && c < nr; c++) init[c] = init_of(j, init[c]);
}

/* [tap][channels]. */
static void pack_depthwise(const ane_conv_job *j, float *dst) {
    const ane_conv_args *g = j->g;
    const ane_conv_axis *a = j->a;
    size_t ld = ane__up((size_t)g->groups, j->k->vw);
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

/* What sums begin with, then [pair of taps][channels], as int16 without their zero point. */
static void pack_depthwise_bytes(const ane_conv_job *j, float *dst) {
    const ane_conv_args *g = j->g;
    size_t ld = ane__conv_init_floats(j), taps = j->ks.segs * j->ks.len;
    const int64_t *k = g->kernel;
    for (size_t c = 0; c < ld; c++) {
        int32_t sum = 0;
        for (size_t t = 0; t < taps; t += 2) {
            int16_t v[2] = {0, 0};
            for (size_t q = t; q < t + 2 && q < taps && c < (size_t)g->groups; q++) {
                int64_t at = (int64_t)q;
                const char *p = (const char *)g->w + (int64_t)c * g->w_out + at % k[2] * g->w_s[2] +
                                at / k[2] % k[1] * g->w_s[1] + at / k[2] / k[1] * g->w_s[0];
                v[q - t] = byte_at(p, g->w_dtype, g->w_zero);
                sum += v[q - t];
            }
            memcpy(&dst[(t / 2 + 1) * ld + c], v, sizeof v);
        }
        sum *= -g->x_zero;
        memcpy(&dst[c], &sum, sizeof sum);
    }
}

size_t ane__conv_packed_floats(ane_conv_job *j) {
    size_t n = 0;
    for (int64_t p = 0; p < ane__conv_phases(j->g); p++) {
        ane__conv_set_phase(j, p);
        n += ane__conv_phase_floats(j);
    }
    return n;
}

size_t ane_conv_pack_bytes_with(const ane_kernels *table, const ane_conv_args *args) {
    ane_conv_job j;
    if (ane__conv_check(args, NULL) || ane__conv_empty(args)) return 0;
    ane__conv_begin(&j, table, args);
    return sizeof(ane_conv_packed) + ane__conv_packed_floats(&j) * sizeof(float);
}

ane_status ane_conv_pack_with(const ane_kernels *table, const ane_conv_args *args, void *dst,
                              ane_error *err) {
    ane_conv_job j;
    ane_status st = ane__conv_check(args, err);
    if (st) return st;
    ane__conv_begin(&j, table, args);
    ane_conv_packed *h = dst;
    *h = (ane_conv_packed){.k = j.k, .bytes = sizeof *h + ane__conv_packed_floats(&j) * sizeof(float),
                  .joined = j.joined, .magic = ANE_CONV_MAGIC, .as = j.bytes};
    float *to = (float *)(void *)(h + 1);
    for (int64_t p = 0; p < ane__conv_phases(args); p++) {
        ane__conv_set_phase(&j, p);
        if (j.ints && j.depthwise) pack_depthwise_bytes(&j, to);
        else if (j.depthwise) pack_depthwise(&j, to);
        else {
            packing x = {&j, to};
            if (!ane_parallel_for((size_t)args->groups * j.panels, pack_panel, &x))
                return ane_fail(err, ANE_ERR_CANCELLED, "[conv] cancelled while packing");
        }
        to += ane__conv_phase_floats(&j);
    }
    return ANE_OK;
}
