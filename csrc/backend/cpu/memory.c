/* What a plan takes, and where: totals, one line per buffer, and the limit. Everything is
 * known from the plan, before anything of that size is allocated. */
#include "cpu.h"

#include <string.h>

static size_t key_bytes(const ane_tensor *t) {
    return t->rank < 0 ? 0 : (size_t)ane_tensor_count(t) * ane_dtype_size(t->dtype);
}

/* Doubles that a step of the reference evaluator converts its operands to. */
static size_t reference_bytes(const ane_step *s) {
    size_t n = 0;
    for (int i = 0; i < s->n_out + s->n_in; i++)
        if (s->views[i].buf >= 0) n += (size_t)ane_view_count(&s->views[i]) * sizeof(double);
    return n;
}

void ane_plan_memory(const ane_plan *p, ane_memory_info *info) {
    *info = (ane_memory_info){.scratch = p->scratch, .values = p->values};
    for (int i = 0; i < p->n_in + p->n_out; i++)
        *(i < p->n_in ? &info->inputs : &info->outputs) += key_bytes(&p->key[i]);
    for (int i = 0; i < p->n_bufs; i++)
        if (p->bufs[i].kind == ANE_BUF_CONST) info->constants += p->bufs[i].bytes;
    for (const ane_packed *k = p->packed; k; k = k->next) info->packed += k->bytes;
    for (int i = 0; i < p->n_steps; i++) {
        size_t panels = p->steps[i].panels ? p->steps[i].panels(&p->steps[i]) : 0;
        if (panels > info->panels) info->panels = panels;
        if (strcmp(p->steps[i].kernel, "reference")) continue;
        size_t n = reference_bytes(&p->steps[i]);
        if (n > info->reference) info->reference = n;
    }
    info->total = ane_memory_total(info);
}

void ane_plan_buffers(const ane_plan *p,
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
    for (const ane_packed *k = p->packed; k; k = k->next) {
        ane_buffer_info row = {.name = k->name ? k->name : "", .kind = "packed",
                               .bytes = k->bytes};
        each(arg, &row);
    }
}

ane_status ane_plan_check_limit(const ane_plan *p, size_t limit, ane_error *err) {
    ane_memory_info m;
    if (!limit) return ANE_OK;
    ane_plan_memory(p, &m);
    if (m.total <= limit) return ANE_OK;
    return ane_fail(err, ANE_ERR_NOMEM,
                    "[bind] %s needs %zu bytes for these shapes (%zu of inputs, %zu of outputs, "
                    "%zu of constants, %zu of packed weights, %zu of scratch, %zu of panels, %zu of reference "
                    "evaluation) and the memory limit is %zu: use smaller shapes, or raise "
                    "memory_limit or ANETORCH_MEMORY_LIMIT", p->fn->name, m.total, m.inputs,
                    m.outputs, m.constants, m.packed, m.scratch, m.panels, m.reference, limit);
}
