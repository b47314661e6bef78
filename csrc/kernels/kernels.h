/* Kernel tables: one per instruction set, each in a file of its own with its own compiler
 * flags. select.c (no such flags) decides once per process which of them this CPU runs. */
#ifndef ANE_KERNELS_H
#define ANE_KERNELS_H

#include "attention.h"
#include "conv_tile.h"
#include "gemm.h"
#include "vec.h"

/* K is cut into equal blocks of at most this many, in every table, so that tables whose
 * products are exact give equal bits. */
#define ANE_GEMM_KC 512

/* C[0..m)[0..nr) = A B (+ C when add) for one packed panel of A ([k][mr]) and of B
 * ([k][nr]); 1 <= m <= mr; ldc in floats. Always writes nr columns. k may be 0.
 * Sums start at zero and go in order of k; the old C is added last. */
typedef void ane_gemm_ukr(size_t m, size_t k, const void *a, const void *b, float *c,
                          size_t ldc, bool add);
/* `count` rows of A (or columns of B) over k into panels of mr (nr), `stride` bytes apart:
 * element (i, p) of the source is at src + i*s_i + p*s_k. The last panel is filled with
 * zeros, k padded with zeros to a multiple of kr. dst is 64-byte aligned. */
typedef void ane_pack_fn(void *dst, size_t stride, const void *src, ane_dtype dtype,
                         int64_t s_i, int64_t s_k, size_t count, size_t k);

typedef struct ane_gemm_entry {
    const char *name;               /* "f32_12x32__avx512" */
    ane_precision keeps;            /* the strictest promise it keeps */
    unsigned a_types, b_types;      /* bit masks of ane_dtype */
    size_t mr, nr, kr;
    size_t unit;                    /* bytes of a packed element */
    ane_gemm_ukr *ukr;
    ane_pack_fn *pack_a, *pack_b;
} ane_gemm_entry;

/* What becomes of one finished fp32 tile (see ane_epilogue). Pointers are at the tile's
 * element (0, 0); bias and res may be NULL. */
typedef struct ane_tile_out {
    float alpha, beta;
    ane_act act;
    const char *bias, *res;
    char *c;
    ane_dtype bias_dtype, res_dtype, c_dtype;
    int64_t bias_rs, bias_cs, res_rs, res_cs, c_rs, c_cs;
} ane_tile_out;
/* tile is overwritten; its rows have room for whole vectors of the table. */
typedef void ane_tile_fn(const ane_tile_out *out, float *tile, size_t ld, size_t m,
                         size_t n);

typedef struct ane_kernels {
    const char *name;               /* "avx512" */
    const ane_gemm_entry *entries;
    size_t n_entries;
    const ane_vec *vec;             /* NULL: an extension of the tables below it */
    ane_tile_fn *tile;
    /* y[r] (+)= sum over c of w[r, c] x[c]: w row-contiguous of `dtype`, rows s_r bytes
     * apart; x fp32; sums as in ane_vec.dot. */
    void (*gemv_rows)(float *y, const void *w, ane_dtype dtype, int64_t s_r, const float *x,
                      size_t rows, size_t cols);
    /* y[c] = sum over r of x[r] w[r, c], in order of r. */
    void (*gemv_cols)(float *y, const void *w, ane_dtype dtype, int64_t s_r, const float *x,
                      size_t rows, size_t cols);
    /* Conversion of one block; stream: stores bypass the caches. */
    void (*convert)(void *dst, ane_dtype to, const void *src, ane_dtype from, size_t n,
                    bool stream);
    /* Streaming attention on scores stored key by key, w queries side by side (w a multiple
     * of the vector): see body_attention.h. */
    void (*attn_forward)(float *s, size_t keys, size_t w, float scale, float *m, float *l,
                         float *fix);
    void (*attn_rescale)(float *o, size_t rows, size_t w, const float *fix);
    void (*attn_mask)(float *s, const float *mask, size_t n, float scale, float by);
    void (*attn_backward)(float *s, float *dp, size_t keys, size_t w, float scale, float by);
    const ane_conv_kernels *conv;   /* never NULL where vec is not */
    /* Tiles whose elements are pairs of int16 instead of floats: bare sums are int32, which
     * `post` takes as floats. NULL: those of the table below. Same shape as conv's. */
    ane_conv_tile_fn *qtile;
    const char *qname;              /* "int16_6x16__avx2" */
    /* Depthwise of bytes, up to four positions; where `conv` is. */
    void (*dw8)(size_t px, const struct ane_conv_dw8 *d);
    const char *dw8_name;           /* "int8_depthwise__avx2" */
    /* The same with four 8-bit channels in an element, weights int8, activations of `quad_x`
     * (ANE_I8 or ANE_U8); NULL: pairs do. */
    ane_conv_tile_fn *quad;
    ane_dtype quad_x;
    const char *quad_name;          /* "int8_8x8__neondot" */
    /* `loops` rounds of fused multiply-adds in registers, each of `peak_flops` operations:
     * what fractions of peak are measured against. The result only defeats the optimiser. */
    float (*peak)(size_t loops);
    size_t peak_flops;
} ane_kernels;

#define ANE_BIT(dtype) (1u << (dtype))
#define ANE_FLOATS (ANE_BIT(ANE_F16) | ANE_BIT(ANE_BF16) | ANE_BIT(ANE_F32))

/*   table       what                                   */
#define ANE_TABLE_MAP(X)                                                                  \
    X(scalar) X(avx2) X(avx512) X(avx512vnni) X(avx512bf16) X(avx512fp16)                 \
    X(neon) X(neondot) X(neonfhm) X(neonbf16) X(neonfp16)

/* The chosen table (the widest that has vector primitives); never NULL. */
const ane_kernels *ane_kernels_get(void);
/* (ane_isa_check and ane_isa_name of ane.h say what was chosen and why.) */
/* Every table of this build that this CPU runs, weakest first; index < count. */
size_t ane_kernels_count(void);
const ane_kernels *ane_kernels_at(size_t index);
/* The entry that runs these operand types: of the tables up to `table` (NULL: the chosen
 * ones), widest first, the first that keeps the promise. Never NULL for float types. */
const ane_gemm_entry *ane_gemm_entry_for(const ane_kernels *table, ane_dtype a, ane_dtype b,
                                         ane_precision precision);

/* The widest table up to `table` (NULL: the chosen ones) that has vec and, with it, everything
 * but products of its own: those of single extensions have only these. Never NULL. */
const ane_kernels *ane_whole_for(const ane_kernels *table);
/* The widest table up to `table` (NULL: the chosen ones) that has a qtile, and the widest
 * that has either where that is a quad (NULL: where not). */
const ane_kernels *ane_qtile_for(const ane_kernels *table);
const ane_kernels *ane_quad_for(const ane_kernels *table);

/* ane_gemm with the tables up to `table` (testing). */
ane_status ane_gemm_with(const ane_kernels *table, const ane_gemm_args *args, void *scratch,
                         ane_error *err);
size_t ane_gemm_pack_bytes_with(const ane_kernels *table, const ane_gemm_args *args,
                                int which);
ane_status ane_gemm_pack_with(const ane_kernels *table, const ane_gemm_args *args, int which,
                              void *dst, ane_error *err);
ane_status ane_conv_with(const ane_kernels *table, const ane_conv_args *args, ane_error *err);
size_t ane_conv_pack_bytes_with(const ane_kernels *table, const ane_conv_args *args);
ane_status ane_conv_pack_with(const ane_kernels *table, const ane_conv_args *args, void *dst,
                              ane_error *err);
ane_status ane_pool_with(const ane_kernels *table, const ane_pool_args *args, ane_error *err);
/* GFLOP/s of registers alone with the pool's threads, over about `seconds`. */
double ane_kernels_peak(const ane_kernels *table, double seconds);
ane_status ane_attention_with(const ane_kernels *table, const ane_attention_args *args,
                              ane_error *err);
ane_status ane_attention_grad_with(const ane_kernels *table,
                                   const ane_attention_grad_args *args, ane_error *err);
void ane_convert_with(const ane_kernels *table, void *dst, ane_dtype to, const void *src,
                      ane_dtype from, size_t n);

#endif
