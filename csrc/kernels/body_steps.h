/* ane_vec.steps: a chain of cheap functions on a few vectors that stay in registers, where
 * ane_vec's rows would read and write the first-level cache at every step. Included by
 * body_vec.h only, which has the functions.
 *
 * Threaded code: the vectors are arguments, which the calling conventions keep in registers,
 * and every step ends by calling the next: a jump with a place of its own that the CPU
 * predicts, where one loop with a switch costs more than eight vectors of arithmetic. A
 * compiler that makes calls of the jumps nests them at most ANE_STEPS_MAX + 2 deep. The
 * first step loads, the last one stores and returns. Results are those of the rows, bit for
 * bit. */

#define UNITS 8                 /* vectors at a time: what is passed in registers */

typedef struct step step;
typedef void step_fn(const step *s, size_t i, vf r0, vf r1, vf r2, vf r3, vf r4, vf r5, vf r6,
                     vf r7);
struct step {
    step_fn *fn;
    char *row;
    float s, t;
};

/* One vector after the other: worked at together, functions of several instructions need more
 * registers than there are, and each step would spill. */
#ifdef V_ORDER
#define ORDER(r) __asm__ volatile("" : "+" V_ORDER(r))
#else
#define ORDER(r) (void)(r)
#endif

#define STEP(name, expr)                                                                  \
    static void p_##name(const step *s, size_t i, vf r0, vf r1, vf r2, vf r3, vf r4,      \
                         vf r5, vf r6, vf r7) {                                           \
        vf r[UNITS] = {r0, r1, r2, r3, r4, r5, r6, r7};                                   \
        vf v = v_set1(s->s), w = v_set1(s->t);                                            \
        const char *row = s->row;                                                         \
        (void)v, (void)w, (void)row;                                                      \
        UNROLL for (size_t j = 0; j < UNITS; j++) {                                       \
            r[j] = expr;                                                                  \
            ORDER(r[j]);                                                                  \
        }                                                                                 \
        s++;                                                                              \
        s->fn(s, i, r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7]);                      \
    }
#define ROW32 v_loadu(row + (i + j * VW) * 4)
#define ROW16 v_load16(row + (i + j * VW) * 2)
#define ROWB v_loadb(row + (i + j * VW) * 2)
/* The hardware fetches no further than the page that it is in. */
#define AHEAD(size)                                                                       \
    (j * VW * size % 64 ? (void)0                                                         \
                        : __builtin_prefetch(row + (i + j * VW) * size + 4096, 0, 3))
STEP(load_32, (AHEAD(4), ROW32))
STEP(load_16, (AHEAD(2), ROW16))
STEP(load_b, (AHEAD(2), ROWB))
#undef AHEAD
#define X(N, name) STEP(name, f_##name(r[j]))
ANE_STEP_UNARY_MAP(X)
#undef X
#define X(N, name)                                                                        \
    STEP(name##_s, f_##name(r[j], v)) STEP(name##_rs, f_##name(v, r[j]))                  \
    STEP(name##_32, f_##name(r[j], ROW32)) STEP(name##_r32, f_##name(ROW32, r[j]))        \
    STEP(name##_16, f_##name(r[j], ROW16)) STEP(name##_r16, f_##name(ROW16, r[j]))        \
    STEP(name##_b, f_##name(r[j], ROWB)) STEP(name##_rb, f_##name(ROWB, r[j]))
ANE_VEC_BINARY_MAP(X)
#undef X
#undef ROWB
#undef ROW16
#undef ROW32

/* Two in one jump: the functions of a scalar that are one instruction. max and min give
 * their second operand where either is NaN, here the value: right for a scalar that is a
 * number, and not 0, whose sign would be the other's. */
#define SIMPLE_MAP(X) X(ADD, add) X(MUL, mul) X(MAX, max) X(MIN, min)
#define PAIR(second)                                                                      \
    STEP(add_##second, v_##second(w, v_add(v, r[j])))                                     \
    STEP(mul_##second, v_##second(w, v_mul(v, r[j])))                                     \
    STEP(max_##second, v_##second(w, v_max(v, r[j])))                                     \
    STEP(min_##second, v_##second(w, v_min(v, r[j])))
PAIR(add) PAIR(mul) PAIR(max) PAIR(min)
#undef PAIR
#define X(N, name) STEP(simple_##name, v_##name(v, r[j]))
SIMPLE_MAP(X)
#undef X
#undef STEP
#undef ORDER

#define STORE(name, per, size, put)                                                       \
    static void p_##name(const step *s, size_t i, vf r0, vf r1, vf r2, vf r3, vf r4,      \
                         vf r5, vf r6, vf r7) {                                           \
        const vf r[UNITS] = {r0, r1, r2, r3, r4, r5, r6, r7};                             \
        UNROLL for (size_t j = 0; j < UNITS; j += per) {                                  \
            char *to = s->row + (i + j * VW) * size;                                      \
            put;                                                                          \
        }                                                                                 \
    }
STORE(store_32, 1, 4, v_storeu(to, r[j]))
STORE(store_16, 1, 2, v_store16(to, r[j]))
STORE(store_b, 1, 2, v_storeb(to, r[j]))
STORE(stream_32, 1, 4, v_stream(to, r[j]))
STORE(stream_16, 2, 2, v_stream16(to, r[j], r[j + 1]))
#undef STORE

static step_fn *const step_table[ANE_VEC_UNARY_COUNT + ANE_VEC_BINARY_COUNT * ANE_STEP_KINDS] = {
#define X(N, name) [ANE_STEP_UNARY(ANE_VEC_##N)] = p_##name,
    ANE_STEP_UNARY_MAP(X)
#undef X
#define X(N, name)                                                                        \
    [ANE_STEP(ANE_VEC_##N, ANE_STEP_S)] = p_##name##_s,                                   \
    [ANE_STEP(ANE_VEC_##N, ANE_STEP_RS)] = p_##name##_rs,                                 \
    [ANE_STEP(ANE_VEC_##N, ANE_STEP_32)] = p_##name##_32,                                 \
    [ANE_STEP(ANE_VEC_##N, ANE_STEP_R32)] = p_##name##_r32,                               \
    [ANE_STEP(ANE_VEC_##N, ANE_STEP_16)] = p_##name##_16,                                 \
    [ANE_STEP(ANE_VEC_##N, ANE_STEP_R16)] = p_##name##_r16,                               \
    [ANE_STEP(ANE_VEC_##N, ANE_STEP_B)] = p_##name##_b,                                   \
    [ANE_STEP(ANE_VEC_##N, ANE_STEP_RB)] = p_##name##_rb,
    ANE_VEC_BINARY_MAP(X)
#undef X
};

enum {
#define X(N, name) SIMPLE_##N,
    SIMPLE_MAP(X)
#undef X
    SIMPLE_COUNT
};
static step_fn *const simple_table[SIMPLE_COUNT] = {
#define X(N, name) [SIMPLE_##N] = p_simple_##name,
    SIMPLE_MAP(X)
#undef X
};
static step_fn *const pair_table[SIMPLE_COUNT][SIMPLE_COUNT] = {
#define X(N, name) [SIMPLE_##N] = {p_##name##_add, p_##name##_mul, p_##name##_max, p_##name##_min},
    SIMPLE_MAP(X)
#undef X
};

/* The same with a scalar on the left, bit for bit; -1: none. */
static int simple_of(const ane_vec_step *p, float *s) {
    *s = p->s;
    switch (p->code) {
    case ANE_STEP_UNARY(ANE_VEC_RELU): *s = 0; return SIMPLE_MAX;
    case ANE_STEP(ANE_VEC_SUB, ANE_STEP_S): *s = -p->s; return SIMPLE_ADD;
    case ANE_STEP(ANE_VEC_ADD, ANE_STEP_S): case ANE_STEP(ANE_VEC_ADD, ANE_STEP_RS):
        return SIMPLE_ADD;
    case ANE_STEP(ANE_VEC_MUL, ANE_STEP_S): case ANE_STEP(ANE_VEC_MUL, ANE_STEP_RS):
        return SIMPLE_MUL;
    case ANE_STEP(ANE_VEC_MAX, ANE_STEP_S): case ANE_STEP(ANE_VEC_MAX, ANE_STEP_RS):
        return p->s < 0 || p->s > 0 ? SIMPLE_MAX : -1;
    case ANE_STEP(ANE_VEC_MIN, ANE_STEP_S): case ANE_STEP(ANE_VEC_MIN, ANE_STEP_RS):
        return p->s < 0 || p->s > 0 ? SIMPLE_MIN : -1;
    default: return -1;
    }
}

/* Code of the steps between load and store; how much. unit[k]: bytes of an element of the
 * row that code k reads, 0: none. */
static size_t translate(step *code, unsigned char *unit, const ane_vec_step *p, size_t n) {
    static const unsigned char units[ANE_STEP_KINDS] = {
        [ANE_STEP_32] = 4, [ANE_STEP_16] = 2, [ANE_STEP_B] = 2,
        [ANE_STEP_R32] = 4, [ANE_STEP_R16] = 2, [ANE_STEP_RB] = 2};
    size_t m = 0;
    int open = -1;                      /* what code m - 1 is, while it may become a pair */
    for (size_t k = 0; k < n; k++) {
        float s;
        int simple = simple_of(&p[k], &s);
        if (simple >= 0 && open >= 0) {
            code[m - 1].fn = pair_table[open][simple];
            code[m - 1].t = s;
            open = -1;
            continue;
        }
        open = simple;
        unit[m] = p[k].code < ANE_VEC_UNARY_COUNT
                      ? 0 : units[(p[k].code - ANE_VEC_UNARY_COUNT) % ANE_STEP_KINDS];
        /* Rows are only read; the one that is written is the last step's. */
        code[m++] = (step){simple >= 0 ? simple_table[simple] : step_table[p[k].code],
                           (char *)(uintptr_t)p[k].row, s, 0};
    }
    return m;
}

static void vec_steps(void *y, ane_dtype to, bool stream, const void *x, ane_dtype from,
                      const ane_vec_step *steps, size_t n_steps, size_t n) {
    step code[ANE_STEPS_MAX + 2];
    unsigned char unit[ANE_STEPS_MAX + 2];
    const size_t block = UNITS * VW, out = to == ANE_F32 ? 4 : 2;
    const vf z = v_set1(0);
    size_t i = 0;
    ANE_ASSERT(n_steps <= ANE_STEPS_MAX);
    code[0] = (step){from == ANE_F16 ? p_load_16 : from == ANE_F32 ? p_load_32 : p_load_b,
                     (char *)(uintptr_t)x, 0, 0};
    unit[0] = from == ANE_F32 ? 4 : 2;
    n_steps = translate(code + 1, unit + 1, steps, n_steps);
    step *last = &code[n_steps + 1];
    *last = (step){to == ANE_F16 ? p_store_16 : to == ANE_F32 ? p_store_32 : p_store_b, y, 0, 0};
    unit[n_steps + 1] = 0;
    stream = VSTREAM && stream && to != ANE_BF16 && (uintptr_t)y % (VSTREAM ? VSTREAM : 1) == 0;
    if (stream) last->fn = to == ANE_F16 ? p_stream_16 : p_stream_32;
    for (; i + block <= n; i += block) code->fn(code, i, z, z, z, z, z, z, z, z);
    if (stream) v_fence();
    if (i == n) return;
    /* What is left, in copies with room for a whole block. */
    float room[ANE_STEPS_MAX + 2][UNITS * VW];
    size_t left = n - i;
    for (size_t k = 0; k <= n_steps + 1; k++) {
        if (unit[k]) {
            memset(room[k], 0, sizeof room[k]);
            memcpy(room[k], code[k].row + i * unit[k], left * unit[k]);
        }
        code[k].row = (char *)room[k];
    }
    if (stream) last->fn = to == ANE_F16 ? p_store_16 : p_store_32;
    code->fn(code, 0, z, z, z, z, z, z, z, z);
    memcpy((char *)y + i * out, last->row, left * out);
}
#undef SIMPLE_MAP
#undef UNITS
