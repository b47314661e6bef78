/* ane_vec.steps: a chain of cheap functions on a block of vectors that stay in registers,
 * where ane_vec's rows would read and write the first-level cache at every step. Included by
 * body_vec.h only, which has the functions.
 *
 * One loop over blocks around an interpreter. What it decides is the same in every block, so
 * that direct branches are predicted and cost next to nothing; a jump through a table costs
 * five cycles however well it is predicted, as much as two functions of a block, and is left
 * to the rare ones. Results are those of the rows, bit for bit. */

#define UNITS V_UNITS           /* vectors of a block: registers but a few for operands */
#define BLOCK (UNITS * VW)

typedef struct step {
    unsigned kind;
    unsigned size;              /* bytes of an element of the row, 0: none */
    float s, t;
    char *row;
} step;

/* F is x * s + t with t = -0 or s = 1: a product or a sum, to the bit. Sums then take the
 * units of products; those of sums have maxima, minima and conversions to do. A is x + row * s
 * with s = 1 or -1, M is x * row. X and N are the maximum and minimum with a scalar that is a
 * number: v_max and v_min give the second where either is NaN, here the value. The same goes
 * for MAX_X and MIN_X, whose row is what the chain began with: where that is NaN, the value
 * is, since every function keeps NaN. The rest is named after the functions. */
#define RIGHT(X, N, name)                                                                 \
    X(N##_R32, f_##name(ROW32, r[j])) X(N##_R16, f_##name(ROW16, r[j]))                   \
    X(N##_RB, f_##name(ROWB, r[j]))
#define SCALARS(X, N, name) X(N##_S, f_##name(r[j], s)) X(N##_RS, f_##name(s, r[j]))
#define LEFT(X, N, name)                                                                  \
    X(N##_32, f_##name(r[j], ROW32)) X(N##_16, f_##name(r[j], ROW16))                     \
    X(N##_B, f_##name(r[j], ROWB))
#define RARE_MAP(X)                                                                       \
    X(SQRT, f_sqrt(r[j])) X(RSQRT, f_rsqrt(r[j])) X(RECIP, f_recip(r[j]))                 \
    X(ABS, f_abs(r[j])) X(NEG, f_neg(r[j])) X(SQUARE, f_square(r[j]))                     \
    SCALARS(X, DIV, div) SCALARS(X, MAX, max) SCALARS(X, MIN, min)                        \
    RIGHT(X, SUB, sub) RIGHT(X, DIV, div) RIGHT(X, MAX, max) RIGHT(X, MIN, min)           \
    LEFT(X, DIV, div) LEFT(X, MAX, max) LEFT(X, MIN, min)                                 \
    X(MAX_X_B, v_max(ROWB, r[j])) X(MIN_X_B, v_min(ROWB, r[j]))                           \
    X(A_B, v_fma(ROWB, s, r[j])) X(M_B, v_mul(r[j], ROWB))
enum {
    DO_F, DO_X, DO_N,
    DO_A_16, DO_M_16, DO_A_32, DO_M_32, DO_MAX_X_16, DO_MIN_X_16, DO_MAX_X_32, DO_MIN_X_32,
    DO_STREAM_16, DO_STORE_16, DO_STREAM_32, DO_STORE_32, DO_STORE_B,
#define X(name, expr) DO_##name,
    RARE_MAP(X)
#undef X
};

#ifdef V_ORDER
/* One vector after the other: worked at together, functions of several instructions need more
 * registers than there are. And what a branch begins with stays in the branch. */
#define ORDER(r) __asm__ volatile("" : "+" V_ORDER(r))
#define HERE(p) __asm__ volatile("" : "+r"(p))
#else
#define ORDER(r) (void)(r)
#define HERE(p) (void)(p)
#endif
#define EACH(expr)                                                                        \
    UNROLL for (size_t j = 0; j < UNITS; j++) {                                           \
        r[j] = expr;                                                                      \
        ORDER(r[j]);                                                                      \
    }
#define ROW32 v_loadu(p + j * VW * 4)
#define ROW16 v_load16(p + j * VW * 2)
#define ROWB v_loadb(p + j * VW * 2)
/* The hardware fetches no further than the page that it is in. */
#define AHEAD(size)                                                                       \
    (j * VW * size % 64 ? (void)0 : __builtin_prefetch(p + j * VW * size + 4096, 0, 3))
#define SCALAR(k)                                                                         \
    const step *here = s0 + (k);                                                          \
    HERE(here);                                                                           \
    const vf s = v_set1(here->s)

/* One of the frequent functions, or on to the others. */
#define SLOT(k)                                                                           \
    if (s0[k].kind == DO_F) {                                                             \
        SCALAR(k), t = v_set1(here->t);                                                   \
        EACH(v_fma(r[j], s, t))                                                           \
    } else if (s0[k].kind == DO_X) {                                                      \
        SCALAR(k);                                                                        \
        EACH(v_max(s, r[j]))                                                              \
    } else if (s0[k].kind == DO_N) {                                                      \
        SCALAR(k);                                                                        \
        EACH(v_min(s, r[j]))                                                              \
    } else {                                                                              \
        s0 += (k);                                                                        \
        goto other;                                                                       \
    }
#define STORE(per, size, put)                                                             \
    UNROLL for (size_t j = 0; j < UNITS; j += per) {                                      \
        char *to = p + j * VW * size;                                                     \
        put;                                                                              \
    }
/* This or that: at most one branch for each is taken. */
#define EITHER(name, expr, other)                                                         \
    if (s0->kind == DO_##name) {                                                          \
        SCALAR(0);                                                                        \
        HERE(p);                                                                          \
        (void)s;                                                                          \
        EACH(expr)                                                                        \
    } else {                                                                              \
        SCALAR(0);                                                                        \
        HERE(p);                                                                          \
        (void)s;                                                                          \
        EACH(other)                                                                       \
    }

/* Whole blocks of n elements from element i on; the first step only says what to load, the
 * last one stores. Returns where it stopped. */
static size_t blocks(const step *code, ane_dtype from, size_t i, size_t n) {
    vf r[UNITS];
    for (; i + BLOCK <= n; i += BLOCK) {
        const step *s0 = code + 1;
        char *p = code->row + i * code->size;
        if (from == ANE_F16) {
            UNROLL for (size_t j = 0; j < UNITS; j++) AHEAD(2), r[j] = ROW16;
        } else if (from == ANE_F32) {
            UNROLL for (size_t j = 0; j < UNITS; j++) AHEAD(4), r[j] = ROW32;
        } else {
            UNROLL for (size_t j = 0; j < UNITS; j++) AHEAD(2), r[j] = ROWB;
        }
        for (;;) {
            SLOT(0) SLOT(1) SLOT(2) SLOT(3)
            s0 += 4;
            continue;
        other:
            p = s0->row + i * s0->size;
            if (s0->kind < DO_A_32) {
                EITHER(A_16, v_fma(ROW16, s, r[j]), v_mul(r[j], ROW16))
            } else if (s0->kind < DO_MAX_X_16) {
                EITHER(A_32, v_fma(ROW32, s, r[j]), v_mul(r[j], ROW32))
            } else if (s0->kind < DO_MAX_X_32) {
                EITHER(MAX_X_16, v_max(ROW16, r[j]), v_min(ROW16, r[j]))
            } else if (s0->kind < DO_STREAM_16) {
                EITHER(MAX_X_32, v_max(ROW32, r[j]), v_min(ROW32, r[j]))
            } else if (s0->kind <= DO_STORE_B) {
                if (s0->kind == DO_STREAM_16) {
                    STORE(2, 2, v_stream16(to, r[j], r[j + 1]))
                } else if (s0->kind == DO_STORE_16) {
                    STORE(1, 2, v_store16(to, r[j]))
                } else if (s0->kind == DO_STREAM_32) {
                    STORE(1, 4, v_stream(to, r[j]))
                } else if (s0->kind == DO_STORE_32) {
                    STORE(1, 4, v_storeu(to, r[j]))
                } else {
                    STORE(1, 2, v_storeb(to, r[j]))
                }
                break;
            } else {
                SCALAR(0);
                (void)s;
                switch (here->kind) {
#define X(name, expr)                                                                     \
    case DO_##name: EACH(expr) break;
                RARE_MAP(X)
#undef X
                }
            }
            s0++;
        }
    }
    return i;
}
#undef EITHER
#undef STORE
#undef SLOT
#undef SCALAR
#undef AHEAD
#undef ROWB
#undef ROW16
#undef ROW32
#undef EACH
#undef HERE
#undef ORDER

/* What a step does, bit for bit. */
static step step_of(const ane_vec_step *p, const void *x, ane_dtype from) {
    static const unsigned sizes[ANE_STEP_KINDS] = {
        [ANE_STEP_32] = 4, [ANE_STEP_16] = 2, [ANE_STEP_B] = 2,
        [ANE_STEP_R32] = 4, [ANE_STEP_R16] = 2, [ANE_STEP_RB] = 2};
    /* Rows are only read; the one that is written is the last step's. */
    step s = {.s = p->s, .row = (char *)(uintptr_t)p->row};
    int kind = p->code < ANE_VEC_UNARY_COUNT
                   ? ANE_STEP_S : (p->code - ANE_VEC_UNARY_COUNT) % ANE_STEP_KINDS;
    bool own = p->row == x && kind == (from == ANE_F32   ? ANE_STEP_32
                                       : from == ANE_F16 ? ANE_STEP_16
                                                         : ANE_STEP_B);
    s.size = sizes[kind];
    switch (p->code) {
#define IS(op, kind) ANE_STEP(ANE_VEC_##op, ANE_STEP_##kind)
    case ANE_STEP_UNARY(ANE_VEC_RELU): s.kind = DO_X, s.s = 0; break;
    case IS(ADD, S): case IS(ADD, RS): s.kind = DO_F, s.s = 1, s.t = p->s; break;
    case IS(SUB, S): s.kind = DO_F, s.s = 1, s.t = -p->s; break;
    case IS(SUB, RS): s.kind = DO_F, s.s = -1, s.t = p->s; break;
    case IS(MUL, S): case IS(MUL, RS): s.kind = DO_F, s.t = -0.0f; break;
    case IS(MAX, S): s.kind = p->s == p->s ? DO_X : DO_MAX_S; break;
    case IS(MAX, RS): s.kind = p->s < 0 || p->s > 0 ? DO_X : DO_MAX_RS; break;
    case IS(MIN, S): s.kind = p->s == p->s ? DO_N : DO_MIN_S; break;
    case IS(MIN, RS): s.kind = p->s < 0 || p->s > 0 ? DO_N : DO_MIN_RS; break;
    case IS(ADD, 32): case IS(ADD, R32): s.kind = DO_A_32, s.s = 1; break;
    case IS(ADD, 16): case IS(ADD, R16): s.kind = DO_A_16, s.s = 1; break;
    case IS(ADD, B): case IS(ADD, RB): s.kind = DO_A_B, s.s = 1; break;
    case IS(SUB, 32): s.kind = DO_A_32, s.s = -1; break;
    case IS(SUB, 16): s.kind = DO_A_16, s.s = -1; break;
    case IS(SUB, B): s.kind = DO_A_B, s.s = -1; break;
    case IS(MUL, 32): case IS(MUL, R32): s.kind = DO_M_32; break;
    case IS(MUL, 16): case IS(MUL, R16): s.kind = DO_M_16; break;
    case IS(MUL, B): case IS(MUL, RB): s.kind = DO_M_B; break;
#define KIND(op, k) case IS(op, k): s.kind = DO_##op##_##k; break;
#define ROWS(op) KIND(op, R32) KIND(op, R16) KIND(op, RB)
    ROWS(SUB)
    KIND(DIV, S) KIND(DIV, RS) KIND(DIV, 32) KIND(DIV, 16) KIND(DIV, B) ROWS(DIV)
    ROWS(MAX) ROWS(MIN)
#define OWN(op, k) case IS(op, k): s.kind = own ? DO_##op##_X_##k : DO_##op##_##k; break;
    OWN(MAX, 32) OWN(MAX, 16) OWN(MAX, B) OWN(MIN, 32) OWN(MIN, 16) OWN(MIN, B)
#undef OWN
#undef ROWS
#undef KIND
#undef IS
#define KIND(op) case ANE_STEP_UNARY(ANE_VEC_##op): s.kind = DO_##op; break;
    KIND(SQRT) KIND(RSQRT) KIND(RECIP) KIND(ABS) KIND(NEG) KIND(SQUARE)
#undef KIND
    default: ANE_ASSERT(!"a step");
    }
    return s;
}

static void vec_steps(void *y, ane_dtype to, bool stream, const void *x, ane_dtype from,
                      const ane_vec_step *steps, size_t n_steps, size_t n) {
    step code[ANE_STEPS_MAX + 2];
    const unsigned in = from == ANE_F32 ? 4 : 2, out = to == ANE_F32 ? 4 : 2;
    unsigned store = to == ANE_F16 ? DO_STORE_16 : to == ANE_F32 ? DO_STORE_32 : DO_STORE_B;
    ANE_ASSERT(n_steps <= ANE_STEPS_MAX);
    code[0] = (step){.size = in, .row = (char *)(uintptr_t)x};
    for (size_t k = 0; k < n_steps; k++) code[k + 1] = step_of(&steps[k], x, from);
    step *last = &code[n_steps + 1];
    *last = (step){.kind = store, .size = out, .row = y};
    stream = VSTREAM && stream && to != ANE_BF16 && (uintptr_t)y % (VSTREAM ? VSTREAM : 1) == 0;
    if (stream) last->kind = to == ANE_F16 ? DO_STREAM_16 : DO_STREAM_32;
    size_t i = blocks(code, from, 0, n);
    if (stream) v_fence();
    if (i == n) return;
    /* What is left, in copies with room for a whole block. */
    char room[ANE_STEPS_MAX + 2][BLOCK * 4];
    size_t left = n - i;
    for (size_t k = 0; k <= n_steps; k++) {
        if (!code[k].size) continue;
        memset(room[k], 0, sizeof room[k]);
        memcpy(room[k], code[k].row + i * code[k].size, left * code[k].size);
        code[k].row = room[k];
    }
    last->kind = store;
    last->row = room[n_steps + 1];
    (void)blocks(code, from, 0, BLOCK);
    memcpy((char *)y + i * out, last->row, left * out);
}
#undef RARE_MAP
#undef SCALARS
#undef LEFT
#undef RIGHT
#undef BLOCK
#undef UNITS
