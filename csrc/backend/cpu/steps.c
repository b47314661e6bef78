/* Runs: instructions of cheap functions, each of which takes what the one before it made, as
 * one instruction that keeps its vectors in registers (ane_vec.steps). Its loads convert as
 * they read and its store as it writes, so that a chain that is one run touches memory only. */
#include "ins.h"

#include <string.h>

struct ane_run {
    int x;                              /* register that goes in first */
    int n;
    int store;                          /* written by the run itself where it is dense; -1 */
    ane_run_step steps[ANE_STEPS_MAX];
};

/* The step that `i` is, of what comes in on the left; code < 0: not a cheap function. */
static ane_run_step step_of(const ane_ins *i) {
    const ane_vec *v = ane_vec_get();
    ane_run_step s = {.code = -1, .reg = -1, .s = i->s};
    if (i->fn == ane__do_v1) {
#define X(N, name)                                                                        \
        if (i->v1 == v->unary[ANE_VEC_##N]) s.code = ANE_STEP_UNARY(ANE_VEC_##N);
        ANE_STEP_UNARY_MAP(X)
#undef X
    } else if (i->fn == ane__do_vs) {
        for (int op = 0; op < ANE_VEC_BINARY_COUNT; op++) {
            if (i->vs == v->scalar[op]) s.code = ANE_STEP(op, ANE_STEP_S);
            if (i->vs == v->rscalar[op]) s.code = ANE_STEP(op, ANE_STEP_RS);
        }
    } else if (i->fn == ane__do_v2) {
        for (int op = 0; op < ANE_VEC_BINARY_COUNT; op++)
            if (i->v2 == v->binary[op]) s.code = ANE_STEP(op, ANE_STEP_32);
        s.reg = i->b;
    }
    return s;
}

int ane_ins_operands(const ane_ins *i, int **at) {
    int n = 0;
    if (i->run) {
        at[n++] = &i->run->x;
        for (int k = 0; k < i->run->n; k++)
            if (i->run->steps[k].reg >= 0) at[n++] = &i->run->steps[k].reg;
    } else {
        int *own[3] = {(int *)&i->a, (int *)&i->b, (int *)&i->c};
        for (int k = 0; k < 3; k++)
            if (*own[k] >= 0) at[n++] = own[k];
    }
    return n;
}

/* Makes or lengthens the run that ends with instruction k; open[v]: where the run that made
 * virtual register v is. */
static bool extend(ane_expr *e, int k, int *open, const int *uses, ane_arena *arena) {
    ane_ins *i = &e->ins[k];
    ane_run_step s = step_of(i);
    if (s.code < 0) return true;
    int tail = -1;
    if (i->a != i->b && open[i->a] >= 0 && uses[i->a] == 1) {
        tail = i->a;
    } else if (i->a != i->b && i->b >= 0 && open[i->b] >= 0 && uses[i->b] == 1) {
        tail = i->b;
        s.code += ANE_STEP_R32 - ANE_STEP_32;
        s.reg = i->a;
    }
    ane_ins *before = tail < 0 ? NULL : &e->ins[open[tail]];
    if (before && before->run->n < ANE_STEPS_MAX) {
        i->run = before->run;
        before->run = NULL;
        before->fn = NULL;              /* dropped: neither function nor load */
    } else {
        if (tail == i->b && s.reg == i->a && i->b >= 0) {       /* begin on the left again */
            s.code -= ANE_STEP_R32 - ANE_STEP_32;
            s.reg = i->b;
        }
        i->run = ane_arena_alloc(arena, sizeof *i->run);
        if (!i->run) return false;
        i->run->x = i->a;
        i->run->store = -1;
    }
    i->run->steps[i->run->n++] = s;
    i->fn = ane__do_run;
    i->a = i->b = i->c = -1;
    open[i->dst] = k;
    return true;
}

bool ane_expr_fuse_steps(ane_expr *e, int n_virtual, ane_arena *arena) {
    int *uses = ane_arena_alloc(arena, (size_t)n_virtual * sizeof *uses);
    int *open = ane_arena_alloc(arena, (size_t)n_virtual * sizeof *open);
    int *others = ane_arena_alloc(arena, (size_t)n_virtual * sizeof *others), *at[ANE_OPERANDS];
    if (!uses || !open || !others) return false;
    for (int v = 0; v < n_virtual; v++) open[v] = -1;
    for (int k = 0; k < e->n_ins; k++)
        for (int j = ane_ins_operands(&e->ins[k], at); j--;) uses[*at[j]]++;
    for (int k = 0; k < e->n_stores; k++) uses[e->store[k]]++;
    if (e->result >= 0) uses[e->result]++;
    for (int k = 0; k < e->n_ins; k++)
        if (!extend(e, k, open, uses, arena)) return false;
    int n = 0;
    for (int k = 0; k < e->n_ins; k++)
        if (e->ins[k].fn || e->ins[k].load >= 0) e->ins[n++] = e->ins[k];
    e->n_ins = n;
    /* A load that only runs read need not be converted before. */
    for (int k = 0; k < n; k++)
        if (!e->ins[k].run)
            for (int j = ane_ins_operands(&e->ins[k], at); j--;) others[*at[j]]++;
    for (int k = 0; k < e->n_stores; k++) others[e->store[k]]++;
    if (e->result >= 0) others[e->result]++;
    for (int k = 0; k < n; k++) e->ins[k].lazy = !e->ins[k].fn && !others[e->ins[k].dst];
    /* The last instruction's value may go straight to its place: nothing is read after it. */
    ane_ins *last = n ? &e->ins[n - 1] : NULL;
    if (last && last->run && uses[last->dst] == 1)
        for (int k = 0; k < e->n_stores; k++)
            if (e->store[k] == last->dst) last->run->store = k;
    return true;
}

bool ane_expr_is_run(const ane_expr *e) {
    for (int k = 0; k + 1 < e->n_ins; k++)
        if (!e->ins[k].lazy) return false;
    return e->n_ins && e->ins[e->n_ins - 1].run && e->ins[e->n_ins - 1].run->store >= 0;
}

int ane_run_store(const ane_ins *i) { return i->run ? i->run->store : -1; }

void ane_run_steps(const ane_ins *i, void *y, ane_dtype to, bool stream,
                   const float *const *reg, const unsigned char *type, size_t n) {
    const ane_run *r = i->run;
    ane_vec_step steps[ANE_STEPS_MAX];
    for (int k = 0; k < r->n; k++) {
        const ane_run_step *s = &r->steps[k];
        steps[k] = (ane_vec_step){.code = s->code, .s = s->s};
        if (s->reg < 0) continue;
        steps[k].row = reg[s->reg];
        steps[k].code += type[s->reg] == ANE_F16    ? ANE_STEP_16 - ANE_STEP_32
                         : type[s->reg] == ANE_BF16 ? ANE_STEP_B - ANE_STEP_32
                                                    : 0;
    }
    ane_vec_get()->steps(y, to, stream, reg[r->x], (ane_dtype)type[r->x], steps, (size_t)r->n, n);
}
