/* Conversion between every pair of element types, n adjacent elements at a time. The pairs
 * that carry training (fp32 <-> fp16, bf16) have their own loops; every other pair goes
 * through a block of double, int64 or uint64, which hold each source exactly, so that there
 * is one rounding.
 *
 * Meaning: float to float rounds to nearest even; float to integer truncates, saturates, and
 * makes NaN 0; integer to integer wraps (as C and NumPy do); to bool is "not zero". */
#include "../base/f16.h"
#include "tensor.h"

#include <math.h>
#include <string.h>

#define BLOCK 256

typedef union block {
    double d[BLOCK];
    int64_t i[BLOCK];
    uint64_t u[BLOCK];
} block;

typedef enum wide { WIDE_D, WIDE_I, WIDE_U } wide;

/* ---------------------------------------------------------------- one to wide */

#define LOAD(name, type, field, expr)                                                    \
    static void name(block *b, const unsigned char *p, size_t n) {                       \
        for (size_t k = 0; k < n; k++) {                                                 \
            type x;                                                                      \
            memcpy(&x, p + k * sizeof x, sizeof x);                                      \
            b->field[k] = (expr);                                                        \
        }                                                                                \
    }
LOAD(load_f16, uint16_t, d, (double)ane_f32_from_f16(x))
LOAD(load_bf16, uint16_t, d, (double)ane_f32_from_bf16(x))
LOAD(load_f32, float, d, (double)x)
LOAD(load_f64, double, d, x)
LOAD(load_bool, uint8_t, i, x != 0)
LOAD(load_i8, int8_t, i, x)
LOAD(load_i16, int16_t, i, x)
LOAD(load_i32, int32_t, i, x)
LOAD(load_i64, int64_t, i, x)
LOAD(load_u8, uint8_t, i, x)
LOAD(load_u16, uint16_t, i, x)
LOAD(load_u32, uint32_t, i, x)
LOAD(load_u64, uint64_t, u, x)

/* ---------------------------------------------------------------- wide to one */

/* A double that rounds to fp32 or a narrower format as the integer itself would: bits that
 * a double cannot hold are folded into its last one. */
static double sticky_u64(uint64_t x) {
    if (x >> 53) x = (x & ~(uint64_t)0x7ff) | ((x & 0x7ff) ? 0x800 : 0);
    return (double)x;
}
static double sticky_i64(int64_t x) {
    return x < 0 ? -sticky_u64((uint64_t)0 - (uint64_t)x) : sticky_u64((uint64_t)x);
}

#define CLAMP(x, lo, hi) ((x) < (lo) ? (lo) : (x) > (hi) ? (hi) : (x))
/* Truncation and saturation towards [lo, hi]; both are exact doubles below 64 bits. */
static int64_t to_int(double x, double lo, double hi) {
    return x != x ? 0 : (int64_t)CLAMP(x, lo, hi);
}
static int64_t to_i64(double x) {
    if (x != x) return 0;
    return x >= 0x1p63 ? INT64_MAX : x < -0x1p63 ? INT64_MIN : (int64_t)x;
}
static uint64_t to_u64(double x) {
    return !(x > 0) ? 0 : x >= 0x1p64 ? UINT64_MAX : (uint64_t)x;
}

#define STORE(name, type, from_d, from_i, from_u)                                        \
    static void name(unsigned char *p, const block *b, wide w, size_t n) {               \
        if (w == WIDE_D)                                                                 \
            for (size_t k = 0; k < n; k++) {                                             \
                double x = b->d[k];                                                      \
                type y = (type)(from_d);                                                 \
                memcpy(p + k * sizeof y, &y, sizeof y);                                  \
            }                                                                            \
        else if (w == WIDE_I)                                                            \
            for (size_t k = 0; k < n; k++) {                                             \
                int64_t x = b->i[k];                                                     \
                type y = (type)(from_i);                                                 \
                memcpy(p + k * sizeof y, &y, sizeof y);                                  \
            }                                                                            \
        else                                                                             \
            for (size_t k = 0; k < n; k++) {                                             \
                uint64_t x = b->u[k];                                                    \
                type y = (type)(from_u);                                                 \
                memcpy(p + k * sizeof y, &y, sizeof y);                                  \
            }                                                                            \
    }
STORE(store_f16, uint16_t, ane_f16_from_f64(x), ane_f16_from_f64(sticky_i64(x)),
      ane_f16_from_f64(sticky_u64(x)))
STORE(store_bf16, uint16_t, ane_bf16_from_f64(x), ane_bf16_from_f64(sticky_i64(x)),
      ane_bf16_from_f64(sticky_u64(x)))
STORE(store_f32, float, x, x, x)
STORE(store_f64, double, x, x, x)
STORE(store_bool, uint8_t, x != 0, x != 0, x != 0)
STORE(store_i8, int8_t, to_int(x, -128, 127), x, x)
STORE(store_i16, int16_t, to_int(x, -32768, 32767), x, x)
STORE(store_i32, int32_t, to_int(x, -0x1p31, 0x1p31 - 1), x, x)
STORE(store_i64, int64_t, to_i64(x), x, x)
STORE(store_u8, uint8_t, to_int(x, 0, 255), x, x)
STORE(store_u16, uint16_t, to_int(x, 0, 65535), x, x)
STORE(store_u32, uint32_t, to_int(x, 0, 0x1p32 - 1), x, x)
STORE(store_u64, uint64_t, to_u64(x), x, x)

/*   dtype  load        wide    store       bytes */
#define EACH(X)                                                                          \
    X(F16, load_f16, WIDE_D, store_f16, 2)                                               \
    X(F32, load_f32, WIDE_D, store_f32, 4)                                               \
    X(F64, load_f64, WIDE_D, store_f64, 8)                                               \
    X(BF16, load_bf16, WIDE_D, store_bf16, 2)                                            \
    X(BOOL, load_bool, WIDE_I, store_bool, 1)                                            \
    X(I8, load_i8, WIDE_I, store_i8, 1)                                                  \
    X(I16, load_i16, WIDE_I, store_i16, 2)                                               \
    X(I32, load_i32, WIDE_I, store_i32, 4)                                               \
    X(I64, load_i64, WIDE_I, store_i64, 8)                                               \
    X(U8, load_u8, WIDE_I, store_u8, 1)                                                  \
    X(U16, load_u16, WIDE_I, store_u16, 2)                                               \
    X(U32, load_u32, WIDE_I, store_u32, 4)                                               \
    X(U64, load_u64, WIDE_U, store_u64, 8)

#define PAIR(S, sl, sw, sb, D, ds, db)                                                   \
    static void S##_to_##D(void *dst, const void *src, size_t n) {                       \
        block b;                                                                         \
        for (size_t at = 0; at < n; at += BLOCK) {                                       \
            size_t m = n - at < BLOCK ? n - at : BLOCK;                                  \
            sl(&b, (const unsigned char *)src + at * sb, m);                             \
            ds((unsigned char *)dst + at * db, &b, sw, m);                               \
        }                                                                                \
    }
/* One row of pairs per source; the preprocessor cannot nest EACH in itself. */
#define ROW(S, sl, sw, ss, sb)                                                           \
    PAIR(S, sl, sw, sb, F16, store_f16, 2) PAIR(S, sl, sw, sb, F32, store_f32, 4)        \
    PAIR(S, sl, sw, sb, F64, store_f64, 8) PAIR(S, sl, sw, sb, BF16, store_bf16, 2)      \
    PAIR(S, sl, sw, sb, BOOL, store_bool, 1) PAIR(S, sl, sw, sb, I8, store_i8, 1)        \
    PAIR(S, sl, sw, sb, I16, store_i16, 2) PAIR(S, sl, sw, sb, I32, store_i32, 4)        \
    PAIR(S, sl, sw, sb, I64, store_i64, 8) PAIR(S, sl, sw, sb, U8, store_u8, 1)          \
    PAIR(S, sl, sw, sb, U16, store_u16, 2) PAIR(S, sl, sw, sb, U32, store_u32, 4)        \
    PAIR(S, sl, sw, sb, U64, store_u64, 8)
EACH(ROW)

/* ---------------------------------------------------------------- the short ways */

static void fast_f32_f16(void *dst, const void *src, size_t n) { ane_f32_to_f16(dst, src, n); }
static void fast_f16_f32(void *dst, const void *src, size_t n) { ane_f16_to_f32(dst, src, n); }
static void fast_f32_bf16(void *dst, const void *src, size_t n) { ane_f32_to_bf16(dst, src, n); }
static void fast_bf16_f32(void *dst, const void *src, size_t n) { ane_bf16_to_f32(dst, src, n); }

/* Straight loops for what data comes as; each is exact or rounds once, as through a block. */
#define DIRECT(name, from, to)                                                           \
    static void name(void *dst, const void *src, size_t n) {                             \
        const unsigned char *s = src;                                                    \
        unsigned char *d = dst;                                                          \
        for (size_t k = 0; k < n; k++) {                                                 \
            from x;                                                                      \
            memcpy(&x, s + k * sizeof x, sizeof x);                                      \
            to y = (to)x;                                                                \
            memcpy(d + k * sizeof y, &y, sizeof y);                                      \
        }                                                                                \
    }
DIRECT(f64_f32, double, float)
DIRECT(f32_f64, float, double)
DIRECT(i64_f32, int64_t, float)
DIRECT(i32_f32, int32_t, float)
DIRECT(u8_f32, uint8_t, float)
DIRECT(i8_f32, int8_t, float)
DIRECT(u16_f32, uint16_t, float)
DIRECT(i16_f32, int16_t, float)
DIRECT(i32_i64, int32_t, int64_t)
DIRECT(i64_i32, int64_t, int32_t)

/* Small integers are exact in fp32, so going through it rounds once. */
#define THROUGH_F32(name, to_f32, from, out)                                             \
    static void name(void *dst, const void *src, size_t n) {                             \
        float b[BLOCK];                                                                  \
        for (size_t at = 0; at < n; at += BLOCK) {                                       \
            size_t m = n - at < BLOCK ? n - at : BLOCK;                                  \
            to_f32(b, (const from *)src + at, m);                                        \
            out((unsigned char *)dst + at * 2, b, m);                                    \
        }                                                                                \
    }
THROUGH_F32(u8_f16, u8_f32, uint8_t, fast_f32_f16)
THROUGH_F32(i8_f16, i8_f32, int8_t, fast_f32_f16)
THROUGH_F32(bf16_f16, fast_bf16_f32, uint16_t, fast_f32_f16)
THROUGH_F32(f16_bf16, fast_f16_f32, uint16_t, fast_f32_bf16)

bool ane__convert_is_threaded(ane__convert_fn *f) {
    return f == fast_f32_f16 || f == fast_f16_f32 || f == fast_f32_bf16 || f == fast_bf16_f32;
}

ane__convert_fn *ane__convert(ane_dtype dst, ane_dtype src) {
#define COLUMNS(S)                                                                       \
    {[ANE_F16] = S##_to_F16, [ANE_F32] = S##_to_F32, [ANE_F64] = S##_to_F64,             \
     [ANE_BF16] = S##_to_BF16, [ANE_BOOL] = S##_to_BOOL, [ANE_I8] = S##_to_I8,           \
     [ANE_I16] = S##_to_I16, [ANE_I32] = S##_to_I32, [ANE_I64] = S##_to_I64,             \
     [ANE_U8] = S##_to_U8, [ANE_U16] = S##_to_U16, [ANE_U32] = S##_to_U32,               \
     [ANE_U64] = S##_to_U64}
#define X(S, sl, sw, ss, sb) [ANE_##S] = COLUMNS(S),
    static ane__convert_fn *const table[ANE_DTYPE_COUNT][ANE_DTYPE_COUNT] = {EACH(X)};
#undef X
    if ((unsigned)dst >= ANE_DTYPE_COUNT || (unsigned)src >= ANE_DTYPE_COUNT) return NULL;
    static const struct {
        ane_dtype dst, src;
        ane__convert_fn *fn;
    } direct[] = {
        {ANE_F16, ANE_F32, fast_f32_f16},   {ANE_F32, ANE_F16, fast_f16_f32},
        {ANE_BF16, ANE_F32, fast_f32_bf16}, {ANE_F32, ANE_BF16, fast_bf16_f32},
        {ANE_F16, ANE_BF16, bf16_f16},      {ANE_BF16, ANE_F16, f16_bf16},
        {ANE_F32, ANE_F64, f64_f32},        {ANE_F64, ANE_F32, f32_f64},
        {ANE_F32, ANE_I64, i64_f32},        {ANE_F32, ANE_I32, i32_f32},
        {ANE_F32, ANE_U8, u8_f32},          {ANE_F32, ANE_I8, i8_f32},
        {ANE_F32, ANE_U16, u16_f32},        {ANE_F32, ANE_I16, i16_f32},
        {ANE_F16, ANE_U8, u8_f16},          {ANE_F16, ANE_I8, i8_f16},
        {ANE_I64, ANE_I32, i32_i64},        {ANE_I32, ANE_I64, i64_i32},
    };
    for (size_t i = 0; i < sizeof direct / sizeof *direct; i++)
        if (direct[i].dst == dst && direct[i].src == src) return direct[i].fn;
    return table[src][dst];
}
