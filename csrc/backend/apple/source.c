#include "source.h"

#include "../../ir/target.h"
#include "table.def"

#include "../../ir/ops.h"
#include "../../weights/blob.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- constants */

/* Where constants go that the text would spell out: a causal mask of 256 positions is 0.7 MB
 * of text, and 128 KiB in a file. */
#define OWN_FILE "@model_path/weights/anetorch.bin"

typedef struct constants {
    ane_value **values;
    ane_blob_record *records;           /* equal values share one */
    size_t *record_of;
    size_t n, n_records;
} constants;

/* What the other writers put into files: ten elements or more, of these types. */
static bool belongs_in_file(const ane_op *op) {
    const ane_value *v = op->n_results == 1 ? op->results[0] : NULL;
    const ane_const *c = v && !op->inlined && !strcmp(op->row->name, "const") ? v->konst : NULL;
    if (!c || c->blob_path || !c->data || v->type->kind != ANE_T_TENSOR) return false;
    ane_dtype d = v->type->dtype;
    return (d == ANE_F16 || d == ANE_F32 || d == ANE_I8 || d == ANE_U8) &&
           ane_type_count(v->type) >= ANE_APPLE_FILE_ELEMENTS;
}

static bool names_own_file(const ane_block *b) {
    for (const ane_op *op = b->first; op; op = op->next) {
        for (int i = 0; i < op->n_results; i++) {
            const ane_const *c = op->results[i]->konst;
            if (c && c->blob_path && !strcmp(c->blob_path, OWN_FILE)) return true;
        }
        for (int i = 0; i < op->n_blocks; i++)
            if (names_own_file(op->blocks[i])) return true;
    }
    return false;
}

/* Counts them (c->values NULL), then collects them. */
static void collect(constants *c, const ane_block *b) {
    for (ane_op *op = b->first; op; op = op->next) {
        for (int i = 0; i < op->n_blocks; i++) collect(c, op->blocks[i]);
        if (!belongs_in_file(op)) continue;
        if (c->values) c->values[c->n] = op->results[0];
        c->n++;
    }
}

static void make_records(constants *c) {
    for (size_t i = 0; i < c->n; i++) {
        const ane_type *t = c->values[i]->type;
        ane_blob_record r = {.dtype = t->dtype, .count = (uint64_t)ane_type_count(t),
                             .data = c->values[i]->konst->data};
        size_t bytes = (size_t)r.count * ane_dtype_size(r.dtype), k = 0;
        while (k < c->n_records &&
               (c->records[k].dtype != r.dtype || c->records[k].count != r.count ||
                memcmp(c->records[k].data, r.data, bytes)))
            k++;
        if (k == c->n_records) c->records[c->n_records++] = r;
        c->record_of[i] = k;
    }
}

static ane_status append(void *arg, const void *bytes, size_t n, ane_error *err) {
    char **at = arg;
    (void)err;
    memcpy(*at, bytes, n);
    *at += n;
    return ANE_OK;
}

static ane_status move_constants(ane_program *p, ane_block *body, ane_error *err) {
    constants c = {0};
    ane_surface *file = NULL;
    size_t bytes = 0;
    ane_status st = ANE_OK;
    if (names_own_file(body)) return ANE_OK;
    collect(&c, body);
    if (!c.n) return ANE_OK;
    c.values = ane_calloc(c.n, sizeof *c.values);
    c.records = ane_calloc(c.n, sizeof *c.records);
    c.record_of = ane_calloc(c.n, sizeof *c.record_of);
    if (!c.values || !c.records || !c.record_of) {
        st = ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
        goto done;
    }
    c.n = 0;
    collect(&c, body);
    make_records(&c);
    st = ane_blob_layout(c.records, c.n_records, &bytes, err);
    if (!st) st = ane_surface_create(ANE_MEM_HEAP, bytes, "constants", &file, err);
    if (st) goto done;
    char *at = ane_surface_base(file);
    st = ane_blob_emit(c.records, c.n_records, append, &at, err);
    for (size_t i = 0; i < c.n && !st; i++) {
        const ane_blob_record *r = &c.records[c.record_of[i]];
        ane_blob where;
        st = ane_blob_view(file, r->offset, r->dtype, r->count, 0, &where, err);
        if (st) break;
        const ane_const *k = ane_const_blob(p, c.values[i]->type, file, where.offset, where.bytes,
                                            OWN_FILE, r->offset, err);
        if (k) c.values[i]->konst = k;
        else st = ANE_ERR_NOMEM;
    }
done:
    ane_surface_release(file);
    ane_free(c.values);
    ane_free(c.records);
    ane_free(c.record_of);
    return st;
}

/* ---------------------------------------------------------------- weight files */

/* The weight file behind a constant is handed over whole, as the text's offsets count from
 * its beginning: what the constant views must still be that file. */
static ane_status add_blob(ane_source *s, const ane_const *c, ane_error *err) {
    if (!c->blob_path) return ANE_OK;
    for (size_t i = 0; i < s->n_blobs; i++)
        if (!strcmp(s->blobs[i].path, c->blob_path)) return ANE_OK;
    if (!ane_folder_relative(c->blob_path))
        return ane_fail(err, ANE_ERR_INVALID,
                        "[compile] weight file '%.200s' is not a path below @model_path/",
                        c->blob_path);
    uint32_t mark = 0;
    const char *base = c->owner ? ane_surface_base(c->owner) : NULL;
    size_t have = c->owner ? ane_surface_bytes(c->owner) : 0;
    if (have >= 64 && c->blob_offset <= have - 64) memcpy(&mark, base + c->blob_offset, sizeof mark);
    if (mark != 0xDEADBEEF)
        return ane_fail(err, ANE_ERR_UNSUPPORTED,
                        "[compile] weight file '%.200s' is %s; the engine needs it whole, "
                        "with aligned records", c->blob_path,
                        c->data ? "held in parts" : "missing");
    if (s->n_blobs == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 8;
        ane_weight_blob *more = ane_realloc(s->blobs, cap * sizeof *more);
        if (!more) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
        s->blobs = more;
        s->cap = cap;
    }
    s->blobs[s->n_blobs++] = (ane_weight_blob){c->blob_path, base, have};
    return ANE_OK;
}

/* Recursion is bounded by ANE_MAX_BLOCK_DEPTH. */
static ane_status find_blobs(ane_source *s, const ane_block *b, ane_error *err) {
    ane_status st = ANE_OK;
    for (const ane_op *op = b->first; op && !st; op = op->next) {
        for (int i = 0; i < op->n_results && !st; i++)
            if (op->results[i]->konst) st = add_blob(s, op->results[i]->konst, err);
        for (int i = 0; i < op->n_blocks && !st; i++) st = find_blobs(s, op->blocks[i], err);
    }
    return st;
}

/* ---------------------------------------------------------------- hashes */

/* Two sums of 64 bits, each four lanes wide: a lane takes a word by xor and multiplies by an
 * odd number, so that no single change is lost. It tells sources apart that differ by chance
 * or by mistake; nobody is kept out by it. */
typedef struct hash {
    uint64_t lanes[8];
} hash;

static const uint64_t odd[2] = {0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f};

static uint64_t turn(uint64_t x, int n) { return x << n | x >> (64 - n); }

static void hash_init(hash *h) {
    for (int i = 0; i < 8; i++) h->lanes[i] = odd[i / 4] * (uint64_t)(2 * i + 1);
}

static void hash_block(hash *h, const unsigned char *p) {
    uint64_t w[4];
    memcpy(w, p, sizeof w);
    for (int i = 0; i < 8; i++)
        h->lanes[i] = turn((h->lanes[i] ^ w[i % 4]) * odd[i / 4], i < 4 ? 31 : 29);
}

/* Each piece is padded to whole blocks; its length goes in as well. */
static void hash_add(hash *h, const void *data, size_t n) {
    const unsigned char *p = data;
    unsigned char last[32] = {0};
    uint64_t length = n;
    for (; n >= sizeof last; p += sizeof last, n -= sizeof last) hash_block(h, p);
    if (n) {
        memcpy(last, p, n);
        hash_block(h, last);
    }
    memset(last, 0, sizeof last);
    memcpy(last, &length, sizeof length);
    hash_block(h, last);
}

static void hash_text(const hash *h, char out[ANE_HASH_TEXT]) {
    uint64_t sum[2] = {0, 0};
    for (int i = 0; i < 8; i++) {
        uint64_t x = sum[i / 4] ^ h->lanes[i];
        x = (x ^ x >> 32) * odd[i / 4];
        sum[i / 4] = turn(x ^ x >> 29, 17);
    }
    snprintf(out, ANE_HASH_TEXT, "%016" PRIx64 "%016" PRIx64, sum[0], sum[1]);
}

/* What the compiled code depends on. Names and lengths of the weights count here; in the
 * framework's identifier they do not, so two programs may share one. */
static void hash_source(ane_source *s) {
    hash h;
    hash_init(&h);
    hash_add(&h, s->text, s->n);
    hash_text(&h, s->program_hash);
    hash_init(&h);
    for (size_t i = 0; i < s->n_blobs; i++) {
        hash_add(&h, s->blobs[i].path, strlen(s->blobs[i].path));
        hash_add(&h, s->blobs[i].data, s->blobs[i].bytes);
    }
    hash_text(&h, s->weights_hash);
}

ane_status ane_source_make(ane_source *s, const ane_function *f, ane_error *err) {
    ane_status st = ane_function_specialize(f, NULL, &s->program, err);
    if (st) return st;
    ane_block *body = s->program->functions->body;
    st = move_constants(s->program, body, err);
    if (!st) st = ane_program_print(s->program, NULL, &s->text, &s->n, err);
    if (!st) st = find_blobs(s, body, err);
    if (!st) hash_source(s);
    return st;
}

void ane_source_free(ane_source *s) {
    ane_free(s->text);
    ane_free(s->blobs);
    ane_program_release(s->program);
}
