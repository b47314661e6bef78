/* What a plan takes, and where: totals, one line per buffer, and the limit. Everything is
 * known from the plan and the number of threads, before anything of that size is allocated. */
#include "cpu.h"

#include <stdio.h>
#include <string.h>

static size_t key_bytes(const ane_tensor *t) {
    return t->rank < 0 ? 0 : (size_t)ane_tensor_count(t) * ane_dtype_size(t->dtype);
}

/* What planning has computed once and keeps, though no step reads it: 8-bit weights, say, that
 * were widened for whoever would want them so. */
static void each_unread(const ane_plan *p, void (*each)(void *arg, const ane_buffer_info *buffer),
                        void *arg) {
    for (const ane_op *op = p->fn->body->first; op; op = op->next)
        for (int i = 0; i < op->n_results && strcmp(op->row->name, "const"); i++) {
            const ane_const *c = op->results[i]->konst;
            int b = p->n_in + p->n_out;
            if (!c || !c->owner) continue;
            while (b < p->n_bufs && p->bufs[b].data != c->data) b++;
            ane_buffer_info row = {.name = op->results[i]->name, .kind = "constant",
                                   .bytes = c->bytes};
            if (b == p->n_bufs) each(arg, &row);
        }
}

static void add_bytes(void *arg, const ane_buffer_info *row) { *(size_t *)arg += row->bytes; }

/* Doubles that a step of the reference evaluator converts its operands to. */
static size_t reference_bytes(const ane_step *s) {
    size_t n = 0;
    for (int i = 0; i < s->n_out + s->n_in; i++)
        if (s->views[i].buf >= 0) n += (size_t)ane_view_count(&s->views[i]) * sizeof(double);
    return n;
}

/* An address for every buffer, with nothing behind it: the same for the same memory. */
static void stand_in(const ane_plan *p, char **base) {
    for (int i = 0; i < p->n_bufs; i++) {
        const ane_buf *b = &p->bufs[i];
        uintptr_t at = ((uintptr_t)i + 1) << 40;
        if (b->kind == ANE_BUF_SCRATCH) at = ((uintptr_t)1 << 30) + b->offset;
        if (b->kind == ANE_BUF_INPUT) at = ((uintptr_t)b->index + 1) << 40;
        if (b->kind == ANE_BUF_OUTPUT) {
            at = ((uintptr_t)(p->n_in + b->index) + 1) << 40;
            for (int j = p->n_in; j-- > 0;)
                if (p->alias[b->index * p->n_in + j]) at = ((uintptr_t)j + 1) << 40;
        }
        base[i] = (char *)at;
    }
}

ane_status ane_plan_room(const ane_plan *p, int threads, size_t **sizes, ane_room *room,
                         ane_error *err) {
    size_t n = 2 * (size_t)threads;
    char **base = ane_calloc((size_t)p->n_bufs + 1, sizeof *base);
    size_t *grown = base ? ane_realloc(*sizes, n * sizeof *grown) : NULL;
    if (grown) *sizes = grown;
    if (!grown) {
        ane_free(base);
        return ane_fail(err, ANE_ERR_NOMEM, "[memory] out of memory");
    }
    memset(grown, 0, n * sizeof *grown);
    ane_room_init(room, threads, grown);
    stand_in(p, base);
    ane_exec ex = {.plan = p, .base = base};
    for (int i = 0; i < p->n_steps; i++)
        if (p->steps[i].room) p->steps[i].room(&ex, &p->steps[i], room);
    ane_free(base);
    return ANE_OK;
}

static size_t rounding(size_t bytes, size_t head) {
    return bytes ? ane_aligned_size(bytes + head) - bytes : 0;
}

void ane_plan_memory(const ane_plan *p, const ane_room *room, ane_memory_info *info) {
    *info = (ane_memory_info){.scratch = p->scratch, .values = p->values};
    info->rounding = rounding(p->scratch, ANE_BLOCK_HEAD);
    size_t kept_rounding = 0;
    for (int i = 0; i < p->n_in + p->n_out; i++)
        *(i < p->n_in ? &info->inputs : &info->outputs) += key_bytes(&p->key[i]);
    for (int i = 0; i < p->n_bufs; i++)
        if (p->bufs[i].kind == ANE_BUF_CONST) info->constants += p->bufs[i].bytes;
    each_unread(p, add_bytes, &info->constants);
    for (const ane_packed *k = p->packed; k; k = k->next) {
        info->packed += k->bytes;
        info->rounding += rounding(k->bytes, 0);
    }
    for (int i = 0; i < room->threads; i++) {
        info->threads += room->stack[i] + room->kept[i];
        info->rounding += rounding(room->stack[i], 0) + rounding(room->kept[i], 0);
    }
    for (int i = 0; i < p->n_keeps; i++) {
        info->kept += p->keeps[i].bytes;
        kept_rounding += rounding(p->keeps[i].bytes, 0);
    }
    info->reference = atomic_load(&p->reference);
    for (int i = 0; i < p->n_steps; i++) {
        if (strcmp(p->steps[i].kernel, "reference")) continue;
        size_t n = reference_bytes(&p->steps[i]);
        if (n > info->reference) info->reference = n;
    }
    info->rounding += kept_rounding;
    info->total = ane_memory_total(info);
    if (!p->limit || info->total <= p->limit) return;
    info->total -= info->kept + kept_rounding;
    info->rounding -= kept_rounding;
    info->kept = 0;
}

void ane_plan_buffers(const ane_plan *p, const ane_room *room,
                      void (*each)(void *arg, const ane_buffer_info *buffer), void *arg) {
    static const char *const kinds[] = {"input", "output", "constant", "scratch"};
    for (int i = 0; i < p->n_bufs; i++) {
        const ane_buf *b = &p->bufs[i];
        ane_buffer_info row = {.name = b->name ? b->name : "", .kind = kinds[b->kind],
                               .bytes = b->bytes};
        if (b->kind == ANE_BUF_INPUT || b->kind == ANE_BUF_OUTPUT) {
            bool out = b->kind == ANE_BUF_OUTPUT;
            if (i != (out ? p->n_in : 0) + b->index) continue;      /* a second handle */
            row.bytes = key_bytes(&p->key[i]);
            row.name = out ? p->fn->body->outputs[b->index]->name
                           : p->fn->params[b->index]->name;
        } else if (b->kind == ANE_BUF_SCRATCH) {
            if (b->first > b->last) continue;                       /* nobody touches it */
            row.offset = b->offset;
            row.first = (size_t)b->first;
            row.last = (size_t)b->last;
        }
        each(arg, &row);
    }
    each_unread(p, each, arg);
    ane_memory_info m;
    ane_plan_memory(p, room, &m);
    for (int i = 0; i < p->n_keeps && m.kept; i++) {
        ane_buffer_info row = {.name = p->fn->params[p->bufs[p->keeps[i].view.buf].index]->name,
                               .kind = "kept", .bytes = p->keeps[i].bytes};
        each(arg, &row);
    }
    for (const ane_packed *k = p->packed; k; k = k->next) {
        ane_buffer_info row = {.name = k->name ? k->name : "", .kind = "packed",
                               .bytes = k->bytes};
        each(arg, &row);
    }
    for (int i = 0; i < room->threads; i++) {
        char name[32] = "caller";
        if (i) (void)snprintf(name, sizeof name, "worker %d", i);
        ane_buffer_info row = {.name = name, .kind = "thread",
                               .bytes = room->stack[i] + room->kept[i]};
        if (row.bytes) each(arg, &row);
    }
}

ane_status ane_plan_check_limit(const ane_plan *p, const ane_room *room, const char *where,
                                ane_error *err) {
    ane_memory_info m;
    if (!p->limit) return ANE_OK;
    ane_plan_memory(p, room, &m);
    if (m.total <= p->limit) return ANE_OK;
    return ane_fail(err, ANE_ERR_NOMEM,
                    "[%s] %s needs %zu bytes for these shapes on %d thread%s (%zu of inputs, %zu "
                    "of outputs, %zu of constants, %zu of packed weights, %zu of scratch, %zu of "
                    "threads' blocks, %zu of reference evaluation, %zu of rounding) and the memory "
                    "limit is %zu: use smaller shapes or fewer threads, or raise memory_limit or "
                    "ANETORCH_MEMORY_LIMIT", where, p->fn->name, m.total, room->threads,
                    room->threads == 1 ? "" : "s", m.inputs, m.outputs, m.constants, m.packed,
                    m.scratch, m.threads, m.reference, m.rounding, p->limit);
}
