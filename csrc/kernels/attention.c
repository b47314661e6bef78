/* Streaming attention on the product's own micro-kernel. Scores are computed transposed, key
 * by key with one panel of queries side by side: that is the very layout of a packed B panel,
 * so the exponentials go into the next product where they lie, and softmax runs down columns
 * without touching neighbours. */
#include "attention_block.h"

/* Packed keys and values of as many heads at once. */
#define PACKED_BYTES ((size_t)32 << 20)

/* ------------------------------------------------------------------ masks */

/* s[i][q] = keep ? scale s : fill */
static void fill_scores(const job *j, float *s, head h, size_t q0, size_t n, size_t k0,
                        size_t keys, float scale, float fill) {
    const ane_mat5 *m = j->a->mask;
    for (size_t q = 0; q < n; q++) {
        const char *p = at5(m, h, q0 + q) + (int64_t)k0 * m->s[4];
        float *x = s + q;
        for (size_t i = 0; i < keys; i++, p += m->s[4], x += j->nr)
            *x = (*p != 0) == j->a->keep ? *x * scale : fill;
    }
}

void ane__attention_zero(const job *j, float *ds, head h, size_t q0, size_t n, size_t k0,
                         size_t keys) {
    fill_scores(j, ds, h, q0, n, k0, keys, 1, 0);
}

float ane__attention_mask(const job *j, float *s, head h, size_t q0, size_t n, size_t k0,
                          size_t keys, bool spans, float *room) {
    const ane_attention_args *a = j->a;
    float scale = a->scale, off = scale < 0 ? INFINITY : -INFINITY;
    bool mask = a->mask && !(spans && a->plain);
    if (mask && a->mask->dtype == ANE_BOOL) {
        fill_scores(j, s, h, q0, n, k0, keys, scale, a->fill);
    } else if (mask) {
        /* As a panel of its own: queries side by side, like the scores. */
        ane_mat5 part = from_channel(a->mask, k0);
        pack_rows(j->e->pack_b, room, j->nr, &part, h, q0, n, keys);
        j->t->attn_mask(s, room, keys * j->nr, scale, a->mask_scale);
    } else if (scale == 0) {            /* 0 * -inf is not what is meant below */
        j->t->vec->scalar[ANE_VEC_MUL](s, s, 0, keys * j->nr);
    }
    if (mask || scale == 0) scale = 1, off = -INFINITY;
    if (!spans) return scale;
    const ane_span *span = spans_of(j, h, q0);
    for (size_t q = 0; q < n; q++) {
        size_t first = (size_t)span[q].first, end = (size_t)span[q].end;
        for (size_t i = k0; i < k0 + keys && i < first; i++) s[(i - k0) * j->nr + q] = off;
        for (size_t i = end > k0 ? end : k0; i < k0 + keys; i++) s[(i - k0) * j->nr + q] = off;
    }
    return scale;
}

/* ------------------------------------------------------------------ forward */

static void pack_task(void *arg, size_t i) {
    job *j = arg;
    head h = head_of(j, j->first + i / 2, 0);
    float *dst = j->packed + i / 2 * (j->k_floats + j->v_floats);
    if (i % 2 == 0) {
        pack_rows(j->e->pack_a, dst, j->mr, &j->a->k, h, 0, j->k_len, j->d);
        j->sizes[i] = longest_row(j, dst, up(j->k_len, j->mr) * j->d, j->mr * j->d);
        return;
    }
    /* Values block by block of keys, so that a block's panels lie together. */
    dst += j->k_floats;
    size_t panels = up(j->dv, j->mr);
    for (size_t k0 = 0; k0 < j->k_len; k0 += j->keys)
        pack_cols(j->e->pack_a, dst + k0 * panels, j->mr, &j->a->v, h, k0,
                  min_size(j->keys, j->k_len - k0), j->dv);
    j->sizes[i] = longest_row(j, dst, panels * j->k_len, panels * j->k_len);
}

/* Panels of queries that go over the keys together, so that a block of keys and values is
 * fetched once for them: fewer where there are few, for the threads' sake. */
#define PANELS 4
static size_t panels_of(const job *j) {
    size_t blocks = cut(j->q_len, j->nr);
    return blocks >= 64 ? PANELS : blocks >= 16 ? PANELS / 2 : 1;
}

/* One panel of queries on its way over the keys: [d][nr], [channels][nr], per query the
 * largest score and the sum of exponentials. */
typedef struct panel {
    float *q, *o, *m, *l;
    size_t q0, n;
    ane_span seen;
    bool spans;
} panel;

static size_t panel_floats(const job *j) {
    return (j->d + up(j->dv, j->mr) + 2) * j->nr;
}

static void begin_panel(const job *j, panel *p, head h, size_t q0, const float *sizes,
                        float *work) {
    size_t nr = j->nr, rows = up(j->dv, j->mr);
    *p = (panel){.q = work, .o = work + j->d * nr, .q0 = q0, .n = min_size(nr, j->q_len - q0)};
    p->m = p->o + rows * nr;
    p->l = p->m + nr;
    pack_rows(j->e->pack_b, p->q, nr, &j->a->q, h, q0, p->n, j->d);
    p->spans = spans_hold(j, longest_row(j, p->q, j->d * nr, j->d * nr), sizes[0], sizes[1]);
    p->seen = reach(j, h, q0, p->n, p->spans);
    for (size_t i = 0; i < nr; i++) p->m[i] = -INFINITY, p->l[i] = 0;
    memset(p->o, 0, rows * nr * sizeof *p->o);
}

/* Keys k0.. of a block, `stored` in all, whose values are at v. */
static void add_block(const job *j, const panel *p, head h, size_t k0, size_t stored,
                      const float *k, const float *v, float *s, float *fix, float *room) {
    size_t nr = j->nr, keys = min_size(stored, (size_t)p->seen.end - k0);
    tall(j, keys, j->d, k, j->d * j->mr, p->q, s, nr, false);
    float scale = ane__attention_mask(j, s, h, p->q0, p->n, k0, keys, p->spans, room);
    j->t->attn_forward(s, keys, nr, scale, p->m, p->l, fix);
    if (k0 > (size_t)p->seen.first) j->t->attn_rescale(p->o, j->dv, nr, fix);
    tall(j, j->dv, keys, v, stored * j->mr, s, p->o, nr, true);
}

static void end_panel(const job *j, const panel *p, head h, float *fix) {
    size_t nr = j->nr;
    for (size_t i = 0; i < nr; i++) fix[i] = 1 / p->l[i];
    if (p->seen.end)
        j->t->attn_rescale(p->o, j->dv, nr, fix);
    else
        for (size_t i = 0; i < j->dv * nr; i++) p->o[i] = NAN;
    put(j, p->o, nr, j->dv, p->n, &j->a->out, h, p->q0, true);
}

static size_t forward_bytes(const job *j) {
    size_t room = j->a->mask ? j->keys * j->nr : 0;
    return (panels_of(j) * panel_floats(j) + (j->keys + 1) * j->nr + room) * sizeof(float);
}

static void forward_task(void *arg, size_t i) {
    job *j = arg;
    size_t panels = panels_of(j), width = panels * j->nr, chunks = cut(j->q_len, width);
    /* Head by head, so that its keys stay in the caches; long rows first, so that the last
     * tasks of a causal core are short ones. */
    size_t at = i / chunks, pair = at / j->group, rows = up(j->dv, j->mr);
    size_t q0 = (chunks - 1 - i % chunks) * width;
    head h = head_of(j, j->first + pair, at % j->group);
    const float *k = j->packed + pair * (j->k_floats + j->v_floats), *v = k + j->k_floats;
    float *work = ane_scratch_push(forward_bytes(j));
    if (!work) {
        atomic_store(&j->status, (int)ANE_ERR_NOMEM);
        return;
    }
    float *s = work + panels * panel_floats(j), *fix = s + j->keys * j->nr;
    panel p[PANELS];
    size_t n = 0, first = j->k_len, end = 0;
    for (; n < panels && q0 + n * j->nr < j->q_len; n++) {
        begin_panel(j, &p[n], h, q0 + n * j->nr, j->sizes + pair * 2,
                    work + n * panel_floats(j));
        first = min_size(first, (size_t)p[n].seen.first);
        if ((size_t)p[n].seen.end > end) end = (size_t)p[n].seen.end;
    }
    for (size_t k0 = first; k0 < end; k0 += j->keys) {
        size_t stored = min_size(j->keys, j->k_len - k0);
        for (size_t b = 0; b < n; b++)
            if ((size_t)p[b].seen.first <= k0 && k0 < (size_t)p[b].seen.end)
                add_block(j, &p[b], h, k0, stored, k + k0 * j->d, v + k0 * rows, s, fix,
                          fix + j->nr);
    }
    for (size_t b = 0; b < n; b++) end_panel(j, &p[b], h, fix);
    ane_scratch_pop(work);
}

/* ------------------------------------------------------------------ arguments */

static bool is_float(ane_dtype d) { return d == ANE_F16 || d == ANE_BF16 || d == ANE_F32; }

ane_status ane__attention_job(job *j, const ane_kernels *table, const ane_attention_args *a,
                              ane_error *err) {
    *j = (job){.a = a};
    if (a->batch < 0 || a->kv_heads < 0 || a->group < 0 || a->q_len < 0 || a->k_len < 0 ||
        a->k_len > INT32_MAX || a->qk_dim < 0 || a->v_dim < 0)
        return ane_fail(err, ANE_ERR_SHAPE,
                        "[attention] expected no negative size and at most 2^31 keys; got "
                        "batch %lld, KV heads %lld, group %lld, queries %lld, keys %lld, dims "
                        "%lld and %lld", (long long)a->batch, (long long)a->kv_heads,
                        (long long)a->group, (long long)a->q_len, (long long)a->k_len,
                        (long long)a->qk_dim, (long long)a->v_dim);
    if (!is_float(a->q.dtype) || !is_float(a->k.dtype) || !is_float(a->v.dtype) ||
        (a->out.data && !is_float(a->out.dtype)) ||
        (a->mask && !is_float(a->mask->dtype) && a->mask->dtype != ANE_BOOL))
        return ane_fail(err, ANE_ERR_DTYPE,
                        "[attention] expected float16, bfloat16 or float32 operands (a mask "
                        "may be bool), got %s, %s, %s", ane_dtype_name(a->q.dtype),
                        ane_dtype_name(a->k.dtype), ane_dtype_name(a->v.dtype));
    j->t = ane_whole_for(table);
    j->e = ane_gemm_entry_for(j->t, ANE_F32, ANE_F32, ANE_PRECISION_HIGHEST);
    j->batch = (size_t)a->batch;
    j->kv_heads = (size_t)a->kv_heads;
    j->group = (size_t)a->group;
    j->q_len = (size_t)a->q_len;
    j->k_len = (size_t)a->k_len;
    j->d = (size_t)a->qk_dim;
    j->dv = (size_t)a->v_dim;
    j->mr = j->e->mr;
    j->nr = j->e->nr;
    j->keys = KEYS / j->mr * j->mr;
    j->queries = QUERIES / j->nr * j->nr;
    return ANE_OK;
}

ane_status ane__attention_done(const job *j, bool ran, ane_error *err) {
    if (!ran) return ane_fail(err, ANE_ERR_CANCELLED, "[attention] cancelled");
    if (atomic_load(&j->status))
        return ane_fail(err, ANE_ERR_NOMEM, "[attention] no memory for a thread's blocks");
    return ANE_OK;
}

/* Pairs whose panels are packed at a time; *bytes: for them. */
static size_t packed_at_once(job *j, size_t pairs, size_t *bytes) {
    j->k_floats = up(up(j->k_len, j->mr) * j->d, 16);
    j->v_floats = up(up(j->dv, j->mr) * j->k_len, 16);
    size_t each = (j->k_floats + j->v_floats) * sizeof(float);
    size_t step = min_size(pairs, each && each < PACKED_BYTES ? PACKED_BYTES / each : 1);
    *bytes = step * (each + 2 * sizeof(float));
    return step;
}

static size_t forward_tasks(const job *j, size_t pairs) {
    return pairs * j->group * cut(j->q_len, panels_of(j) * j->nr);
}

void ane_attention_room(const ane_attention_args *args, ane_room *room) {
    job j;
    if (ane__attention_job(&j, NULL, args, NULL)) return;
    size_t pairs = j.batch * j.kv_heads, bytes;
    if (!pairs || !j.group || !j.q_len) return;
    if (ane__attention_few(&j)) {
        ane_room_loop(room, pairs, ane__attention_row_bytes(&j), 0);
        return;
    }
    size_t step = packed_at_once(&j, pairs, &bytes);
    ane_room_push(room, bytes);
    ane_room_loop(room, forward_tasks(&j, step), forward_bytes(&j), 0);
    ane_room_pop(room, bytes);
}

ane_status ane_attention_with(const ane_kernels *table, const ane_attention_args *args,
                              ane_error *err) {
    job j;
    ane_status st = ane__attention_job(&j, table, args, err);
    size_t pairs = j.batch * j.kv_heads, bytes;
    if (st || !pairs || !j.group || !j.q_len) return st;
    if (ane__attention_few(&j))
        return ane__attention_done(&j, ane_parallel_for(pairs, ane__attention_rows, &j), err);
    size_t step = packed_at_once(&j, pairs, &bytes);
    j.packed = ane_scratch_push(bytes);
    if (!j.packed)
        return ane_fail(err, ANE_ERR_NOMEM, "[attention] no memory for %zu bytes of panels",
                        bytes);
    j.sizes = j.packed + step * (j.k_floats + j.v_floats);
    bool ran = true;
    for (j.first = 0; j.first < pairs && ran; j.first += step) {
        j.count = min_size(step, pairs - j.first);
        ran = ane_parallel_for(j.count * 2, pack_task, &j) &&
              ane_parallel_for(forward_tasks(&j, j.count), forward_task, &j);
    }
    ane_scratch_pop(j.packed);
    return ane__attention_done(&j, ran, err);
}

ane_status ane_attention(const ane_attention_args *args, ane_error *err) {
    return ane_attention_with(NULL, args, err);
}
