/* The macro-kernel of convolution: tables of pointers, tiles, tasks. */
#include "conv_job.h"

#include "../base/sync.h"

#include <string.h>

/* Positions of one task: its rows of one block of k stay in the second-level cache. */
#define BLOCK 96
#define TASKS_PER_THREAD 4
#define ROW_TASK 32768                  /* products of a depthwise task, at least */

/* ------------------------------------------------------------------ tiles */

/* Sums over fewer terms than this are over before the lines of the next tile are here: those
 * of the one after it are fetched. */
#define SHORT_SUM 160

typedef struct tile {
    int64_t at;                         /* first position */
    size_t m;
} tile;

/* Positions [p0, p1) in tiles that do not cross the end of an even run, of equal size as
 * far as possible. */
static size_t make_tiles(const ane_conv_job *j, int64_t p0, int64_t p1, tile *t) {
    size_t n = 0, mr = j->k->mr;
    while (p0 < p1) {
        size_t left = (size_t)ane__least(p1 - p0, j->run - p0 % j->run), count = ane__cut(left, mr);
        for (size_t i = 0; i < count; i++) {
            size_t m = left / (count - i) + (left % (count - i) != 0);
            t[n++] = (tile){.at = p0, .m = m};
            p0 += (int64_t)m;
            left -= m;
        }
    }
    return n;
}

static int64_t offset_of(const ane_conv_job *j, const int64_t *s, int64_t p) {
    int64_t w = p % j->a[2].out, h = p / j->a[2].out % j->a[1].out,
            d = p / j->a[2].out / j->a[1].out;
    return d * s[0] + h * s[1] + w * s[2];
}

/* Where each tile's positions read for segments [s0, s0 + segs): table[tile][segment][i]. */
static void point(const ane_conv_job *j, const float *image, const tile *tiles, size_t n_tiles,
                  size_t s0, size_t segs, const float **table) {
    const ane_conv_axis *a = j->a;
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
            int64_t stop = ane__least(end, p + a[2].out - w), at = w * a[2].stride + o2;
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

void ane__conv_set_post(const ane_conv_job *j, ane_conv_post *p, int64_t n, size_t channel, int64_t at) {
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

/* The address of position p, channel c, in y or `eight`, whose positions step by s. */
static char *place_in(const ane_conv_job *j, const ane_planes *y, const int64_t *s, int64_t n,
                      size_t c, int64_t p) {
    int64_t first = 0;
    for (int d = 0; d < 3; d++) first += y->s[d] * j->a[d].first;
    return (char *)y->data + n * y->sn + (int64_t)c * y->sc + first + offset_of(j, s, p);
}
char *ane__conv_place(const ane_conv_job *j, int64_t n, size_t c, int64_t p) {
    return place_in(j, &j->g->y, j->ys, n, c, p);
}

int64_t ane__conv_position_step(const ane_conv_job *j, const int64_t *s) {
    return j->a[2].out > 1 ? s[2] : j->a[1].out > 1 ? s[1] : s[0];
}

#define PIECE 512                       /* channels quantised at a time where that takes room */

/* Finished rows of positions [at, at + m) as 8-bit integers. */
static void put_eight(const ane_conv_job *j, int64_t n, size_t channel, int64_t at, size_t m,
                      const float *rows, size_t ld, size_t cols) {
    const ane_conv_eight *e = j->g->eight;
    const ane_vec *vec = j->table->vec;
    const ane_dtype type = j->g->y.dtype;
    const bool sign = e->y.dtype == ANE_I8;
    char *to = place_in(j, &e->y, j->es, n, channel, at);
    int64_t step = ane__conv_position_step(j, j->es);
    if (type == ANE_F32 && e->y.sc == 1 && ld == cols && step == (int64_t)cols) {
        vec->quantize(to, sign, rows, e->scale, e->zero, m * cols);
        return;
    }
    for (size_t i = 0; i < m; i++, to += step, rows += ld)
        for (size_t c = 0; c < cols; c += PIECE) {
            size_t w = ane__least_size(PIECE, cols - c);
            const float *from = rows + c;
            float rounded[PIECE];
            uint16_t half[PIECE];
            uint8_t out[PIECE];
            if (type != ANE_F32) {      /* they were values of that type in between */
                vec->store(half, type, from, w);
                vec->load(rounded, half, type, w);
                from = rounded;
            }
            char *y = to + (int64_t)c * e->y.sc;
            vec->quantize(e->y.sc == 1 ? (void *)y : out, sign, from, e->scale, e->zero, w);
            if (e->y.sc == 1) continue;
            for (size_t l = 0; l < w; l++, y += e->y.sc) *y = (char)out[l];
        }
}

/* Finished sums of positions [at, at + m) from scratch to y. */
static void put(const ane_conv_job *j, int64_t n, size_t channel, int64_t at, size_t m, float *acc,
                size_t ld, size_t cols, bool finish) {
    ane_conv_post post;
    ane__conv_set_post(j, &post, n, channel, at);
    if (finish && !j->whole) j->k->finish(&post, acc, ld, m, cols);
    if (j->g->eight) put_eight(j, n, channel, at, m, acc, ld, cols);
    if (j->g->only_eight) return;
    ane_tile_out out = {.alpha = 1, .c = ane__conv_place(j, n, channel, at), .c_dtype = j->g->y.dtype,
                        .c_rs = ane__conv_position_step(j, j->ys), .c_cs = j->g->y.sc};
    j->table->tile(&out, acc, ld, m, cols);
}

/* The most segments of a block of k. */
static size_t most_segments(const ane_conv_job *j) {
    size_t most = 1;
    for (size_t b = 0; b < j->ks.n && b < 2; b++) {
        size_t seg, segs, skip, len;
        ane__conv_block(&j->ks, b, &seg, &segs, &skip, &len);
        if (segs > most) most = segs;
    }
    return most;
}

static size_t table_bytes(const ane_conv_job *j, size_t n_tiles) {
    return ane__up(n_tiles * most_segments(j) * j->k->mr * sizeof(float *), ANE_ALIGN);
}

/* What a task pushes, at most over all of them. */
static size_t tile_task_bytes(const ane_conv_job *j) {
    size_t most = 0;
    for (int64_t p0 = 0; p0 < j->positions; p0 += j->block) {
        int64_t p1 = ane__least(p0 + j->block, j->positions);
        tile tiles[BLOCK];
        size_t bytes = table_bytes(j, make_tiles(j, p0, p1, tiles));
        if (!j->direct) bytes += (size_t)(p1 - p0) * ane__least_size(j->part, j->panels) * j->k->nr * sizeof(float);
        if (bytes > most) most = bytes;
    }
    return most;
}

static void run_tiles(void *arg, size_t task) {
    ane_conv_job *j = arg;
    const ane_conv_args *g = j->g;
    const ane_conv_kernels *k = j->k;
    /* All parts of one block are neighbours: a thread finds in its own cache what it wrote
     * there as a block of the layer before. */
    size_t part = task % j->parts;
    int64_t left = (int64_t)(task / j->parts), block = left % j->blocks, image = left / j->blocks;
    int64_t group = image % g->groups, n = image / g->groups;
    int64_t p0 = block * j->block, p1 = ane__least(p0 + j->block, j->positions);
    size_t c0 = part * j->part, c1 = ane__least_size(c0 + j->part, j->panels);
    size_t cols = ane__least_size(c1 * k->nr, j->cout) - c0 * k->nr, ld = (c1 - c0) * k->nr;
    tile tiles[BLOCK];
    size_t n_tiles = make_tiles(j, p0, p1, tiles), before_acc = table_bytes(j, n_tiles);
    ane_conv_spot spots[BLOCK + 2];     /* at the task's first channel */
    size_t acc_bytes = j->direct ? 0 : (size_t)(p1 - p0) * ld * sizeof(float);
    char *scratch = ane_scratch_push(before_acc + acc_bytes);
    if (!scratch) {
        atomic_store(&j->failed, true);
        return;
    }
    const float **table = (const float **)(void *)scratch;
    float *acc = (float *)(void *)(scratch + before_acc);
    const float *x = j->x.base + n * j->x.sn + group * (int64_t)j->cin;
    size_t channel = (size_t)group * j->cout + c0 * k->nr;
    ane_conv_post post = {.res = NULL};
    size_t ldc = j->direct ? (size_t)(ane__conv_position_step(j, j->ys) / 4) : ld;
    int64_t res_size = g->residual && g->residual->dtype != ANE_F32 ? 2 : 4;
    for (size_t i = 0; i < n_tiles; i++) {
        ane__conv_set_post(j, &post, n, channel, tiles[i].at);
        spots[i].res = post.res;
        spots[i].c = j->direct ? (float *)(void *)ane__conv_place(j, n, channel, tiles[i].at)
                               : acc + (size_t)(tiles[i].at - p0) * ld;
    }
    size_t seg = 0, segs = 0, skip = 0, len = 0, from = SIZE_MAX;
    for (size_t b = 0; b < j->ks.n; b++) {
        ane__conv_block(&j->ks, b, &seg, &segs, &skip, &len);
        if (seg != from) point(j, x, tiles, n_tiles, seg, segs, table);
        from = seg;
        size_t k0 = ane__conv_k_before(&j->ks, b), kb = segs * len;
        const float *w = j->w + (size_t)group * j->w_group + j->panels * k0 * k->nr;
        bool last = b + 1 == j->ks.n;
        size_t share = ane__cut(k->nr * sizeof(float), n_tiles);
        for (size_t c = c0; c < c1; c++) {
            size_t at = (c - c0) * k->nr, width = ane__least_size(k->nr, cols - at);
            ane_conv_tile t = {.a = table, .skip = skip, .segs = segs, .len = len,
                               .b = w + c * kb * k->nr, .at = at, .ldc = ldc, .n = width,
                               .add = b > 0,
                               .init = j->init && !b ? j->init + c * k->nr : NULL,
                               .post = last ? &post : NULL, .ahead_step = share,
                               .soon = kb < SHORT_SUM ? 2 : 1};
            /* The tiles of this panel fetch the one behind it, each a share. */
            const float *behind = c + 1 < c1 ? t.b + kb * k->nr
                                  : last     ? t.b
                                             : w + j->panels * kb * k->nr + c0 * kb * k->nr;
            t.ahead = (const char *)behind;
            if (g->scale) post.scale = g->scale + channel + at;
            if (g->shift) post.shift = g->shift + channel + at;
            for (size_t i = n_tiles; i < n_tiles + 2; i++) {
                spots[i] = spots[(i - n_tiles) % n_tiles];
                if (c + 1 == c1) continue;
                spots[i].c += k->nr;
                if (spots[i].res) spots[i].res += (int64_t)k->nr * res_size;
            }
            for (size_t i = 0; i < n_tiles; i += t.count) {
                t.spots = spots + i;
                for (t.count = 1; i + t.count < n_tiles && tiles[i + t.count].m == tiles[i].m;)
                    t.count++;
                j->tile(tiles[i].m, &t);
                t.a += t.count * segs * k->mr;
                t.ahead += t.count * share * kb;
                for (size_t q = 0; last && j->direct && !j->whole && q < t.count; q++) {
                    post.res = spots[i + q].res;
                    if (post.res) post.res += (int64_t)at * res_size;
                    k->finish(&post, spots[i + q].c + at, ldc, tiles[i].m, width);
                }
            }
        }
    }
    for (int64_t p = p0; (!j->direct || g->eight) && p < p1;) {
        int64_t m = ane__least(p1 - p, j->run - p % j->run);
        if (j->direct)
            put_eight(j, n, channel, p, (size_t)m, (const float *)(const void *)ane__conv_place(j, n, channel, p),
                      ldc, cols);
        else put(j, n, channel, p, (size_t)m, acc + (size_t)(p - p0) * ld, ld, cols, true);
        p += m;
    }
    ane_scratch_pop(scratch);
}

/* ------------------------------------------------------------------ depthwise */

void ane__conv_row_done(const ane_conv_job *j, int64_t n, int64_t p, float *acc) {
    size_t width = (size_t)j->a[2].out, channels = (size_t)j->g->groups;
    if (!j->direct) put(j, n, 0, p, width, acc, channels, channels, false);
    else if (j->g->eight)
        put_eight(j, n, 0, p, width, (const float *)(const void *)ane__conv_place(j, n, 0, p),
                  (size_t)(ane__conv_position_step(j, j->ys) / 4), channels);
}

/* ------------------------------------------------------------------ running */

static bool plain_act(const ane_conv_act *a) { return a->limits || a->act == ANE_ACT_NONE; }

/* Blocks of positions and parts of panels: enough tasks, and as even a load as possible. */
static void share_out(ane_conv_job *j, size_t images, size_t threads) {
    size_t positions = (size_t)j->positions;
    size_t blocks = ane__cut(positions, BLOCK), even = ane__up(blocks, threads);
    if (ane__cut(positions, even) >= BLOCK / 2) blocks = even;
    j->block = (int64_t)ane__cut(positions, blocks);
    j->blocks = (int64_t)ane__cut(positions, (size_t)j->block);
    size_t tasks = images * (size_t)j->blocks, wanted = threads * TASKS_PER_THREAD;
    size_t first = threads > 1 && tasks < wanted ? ane__cut(wanted, tasks) : 1;
    double best = 0;
    j->parts = 0;
    for (size_t n = first; n <= 4 * first || !j->parts; n++) {
        size_t part = ane__cut(j->panels, n < j->panels ? n : j->panels);
        size_t parts = ane__cut(j->panels, part);
        /* Panels that the busiest thread has, against its share. */
        double load = (double)(ane__cut(tasks * parts, threads) * threads * part) /
                      (double)(tasks * j->panels);
        if (j->parts && load > best - 0.01) continue;
        best = load;
        j->part = part;
        j->parts = parts;
        if (n >= j->panels) break;
    }
}

/* How the phase is divided; its tasks, 0: nothing to do. */
static size_t plan_phase(ane_conv_job *j, int threads) {
    const ane_conv_args *g = j->g;
    int64_t out[3], rs[3];
    for (int d = 0; d < 3; d++) {
        out[d] = j->a[d].out;
        j->ys[d] = g->y.s[d] * j->a[d].step;
        rs[d] = g->residual ? g->residual->s[d] * j->a[d].step : 0;
    }
    j->positions = out[0] * out[1] * out[2];
    if (!j->positions) return 0;
    j->direct = !g->only_eight && ane__rows_writable(&g->y, g->cout);
    j->run = ane__even_run(out, j->ys);
    if (g->eight) {
        for (int d = 0; d < 3; d++) j->es[d] = g->eight->y.s[d] * j->a[d].step;
        j->run = ane__least(j->run, ane__even_run(out, j->es));
    }
    if (g->residual) {
        const ane_planes *r = g->residual;
        j->run = ane__least(j->run, ane__even_run(out, rs));
        j->whole = r->dtype == ANE_F32 && (uintptr_t)r->data % 4 == 0;
    } else {
        j->whole = true;
    }
    j->whole = j->whole && plain_act(&g->before) && plain_act(&g->after);
    if (j->depthwise) {
        int64_t rows = g->n * out[0] * out[1];
        int64_t work = out[2] * g->groups * j->a[0].taps * j->a[1].taps * j->a[2].taps;
        j->run = ane__least(j->run, out[2]);
        j->blocks = rows;
        j->block = work ? ROW_TASK / work + 1 : rows;
        return ane__cut((size_t)rows, (size_t)j->block);
    }
    size_t images = (size_t)(g->n * g->groups);
    share_out(j, images, (size_t)threads);
    return images * (size_t)j->blocks * j->parts;
}

static ane_status run_phase(ane_conv_job *j, ane_error *err) {
    size_t tasks = plan_phase(j, ane_num_threads());
    if (tasks && !ane_parallel_for(tasks, j->depthwise ? ane__conv_row : run_tiles, j))
        return ane_fail(err, ANE_ERR_CANCELLED, "[conv] cancelled");
    if (atomic_load(&j->failed))
        return ane_fail(err, ANE_ERR_NOMEM, "[conv] no memory for a thread's tiles");
    return ANE_OK;
}

/* Depthwise convolutions of bytes read them as they are: j->x then counts bytes. */
static bool reads_bytes(const ane_conv_job *j) { return j->ints && j->depthwise; }

/* Whether x lies as rows already, and the padding that a copy of it gets. Joined taps run along
 * a row and need its padding; otherwise a tap outside the image has pointers of its own. */
static bool is_rows(ane_conv_job *j, int64_t *before, int64_t *after) {
    const ane_conv_args *g = j->g;
    for (int i = 0; i < 3; i++) before[i] = after[i] = 0;
    if (reads_bytes(j)) {
        j->x = (ane_rows){.base = g->x.data, .sn = g->x.sn};
        memcpy(j->x.s, g->x.s, sizeof j->x.s);
        memcpy(j->x.in, g->in, sizeof j->x.in);
        return g->x.sc == 1 && g->x.s[2] >= g->cin;
    }
    if (!j->joined) return ane__rows_view(&g->x, g->cin, g->in, &j->x);
    ane__conv_halo(g, before, after);
    return false;
}

static void rows_in_bytes(ane_rows *x) {
    x->sn *= 4;
    for (int i = 0; i < 3; i++) x->s[i] *= 4;
}

static ane_status rows_of(ane_conv_job *j, ane_error *err) {
    const ane_conv_args *g = j->g;
    int64_t before[3], after[3];
    if (is_rows(j, before, after)) return ANE_OK;
    ane_status st = ane__rows_stage(j->table, &g->x, g->n, g->cin, g->in, before, after,
                                    j->ints ? &j->bytes : NULL, &j->x, err);
    if (!st && reads_bytes(j)) rows_in_bytes(&j->x);
    return st;
}

/* What stands in for the padding: zeros as far as the longest segment. x is known. */
static size_t zeros_bytes(ane_conv_job *j) {
    size_t longest = 0;
    ane__conv_set_phase(j, 0);
    if (reads_bytes(j)) return ane__conv_row_zeros(j);
    for (int64_t p = 0; p < ane__conv_phases(j->g); p++) {
        ane__conv_set_phase(j, p);
        if (j->ks.len > longest) longest = j->ks.len;
    }
    return (longest + 1) * sizeof(float);
}

void ane_conv_room(const ane_conv_args *args, ane_room *room) {
    ane_conv_job j;
    if (ane__conv_check(args, NULL) || ane__conv_empty(args)) return;
    ane__conv_begin(&j, NULL, args);
    int64_t before[3], after[3];
    size_t staged = 0, weights = 0;
    bool rows = is_rows(&j, before, after);
    if (!rows && !ane__rows_stage_bytes(args->n, args->cin, args->in, before, after,
                                        j.ints ? &j.bytes : NULL, &j.x, &staged))
        staged = SIZE_MAX;
    if (!rows && reads_bytes(&j)) rows_in_bytes(&j.x);
    if (!rows) ane_room_push(room, staged);
    size_t zeros = zeros_bytes(&j);
    ane_room_push(room, zeros);
    if (!args->packed) {
        weights = sizeof(ane_conv_packed) + ane__conv_packed_floats(&j) * sizeof(float);
        ane_room_push(room, weights);
    }
    for (int64_t p = 0; p < ane__conv_phases(args); p++) {
        ane__conv_set_phase(&j, p);
        size_t tasks = plan_phase(&j, room->threads);
        if (tasks) ane_room_loop(room, tasks, j.depthwise ? ane__conv_row_bytes(&j) : tile_task_bytes(&j), 0);
    }
    if (weights) ane_room_pop(room, weights);
    ane_room_pop(room, zeros);
    if (!rows) ane_room_pop(room, staged);
}

ane_status ane_conv_with(const ane_kernels *table, const ane_conv_args *args, ane_error *err) {
    ane_conv_job j;
    ane_status st = ane__conv_check(args, err);
    if (st || ane__conv_empty(args)) return st;
    ane__conv_begin(&j, table, args);
    size_t floats = ane__conv_packed_floats(&j), none;
    float *zeros = NULL;
    ane_conv_packed *mine = NULL;
    const ane_conv_packed *h = args->packed;
    st = rows_of(&j, err);
    if (st) return st;
    none = zeros_bytes(&j);
    zeros = ane_scratch_push(none);
    if (!zeros) goto nomem;
    memset(zeros, j.ints ? ane__bytes_zero(&j.bytes) : 0, none);
    j.zeros = zeros;
    if (!h || h->magic != ANE_CONV_MAGIC || h->k != j.k || h->joined != (uint32_t)j.joined ||
        h->bytes != sizeof *h + floats * sizeof(float) || h->as.lanes != j.bytes.lanes ||
        h->as.zero != j.bytes.zero || h->as.flip != j.bytes.flip) {
        h = mine = ane_scratch_push(sizeof *h + floats * sizeof(float));
        if (!mine) goto nomem;
        st = ane_conv_pack_with(table, args, mine, err);
    }
    const float *w = (const float *)(const void *)(h + 1);
    for (int64_t p = 0; p < ane__conv_phases(args) && !st; p++) {
        ane__conv_set_phase(&j, p);
        size_t init = ane__conv_init_floats(&j);
        j.w = w + init;
        j.init = init ? (const int32_t *)(const void *)w : NULL;
        j.w_group = j.panels * j.ks.segs * j.ks.len * j.k->nr;
        w += ane__conv_phase_floats(&j);
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
    ane_conv_job j;
    ane__conv_begin(&j, NULL, args);
    return !j.depthwise ? j.name : j.ints ? j.table->dw8_name : j.k->dw_name;
}
double ane_conv_flops(const ane_conv_args *args) {
    double n = 2.0 * (double)args->n * (double)(args->cin / args->groups) * (double)args->cout;
    for (int d = 0; d < 3; d++)
        n *= (double)args->kernel[d] * (double)(args->transposed ? args->in[d] : args->out[d]);
    return n;
}
