/* AVX-512 F, BW, DQ, VL. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define ISA_NAME "avx512"
#include "simd_avx512.h"

#include "body_vec.h"

#include "body_gemm.h"

#include "tables.h"

PACK(pack_12, 12)
PACK(pack_32, 32)

/* m rows of two vectors: 24 of the 32 registers hold sums. */
static inline __attribute__((always_inline)) void rows_of(const size_t m, size_t k,
                                                          const float *a, const float *b,
                                                          float *c, size_t ldc, bool add) {
    vf s[12][2];
    UNROLL for (size_t i = 0; i < m; i++) {
        s[i][0] = add ? v_loadu(c + i * ldc) : v_set1(0);
        s[i][1] = add ? v_loadu(c + i * ldc + 16) : v_set1(0);
    }
    for (size_t p = 0; p < k; p++, a += 12, b += 32) {
        vf b0 = v_loadu(b), b1 = v_loadu(b + 16);
        UNROLL for (size_t i = 0; i < m; i++) {
            vf v = v_set1(a[i]);
            s[i][0] = v_fma(v, b0, s[i][0]);
            s[i][1] = v_fma(v, b1, s[i][1]);
        }
    }
    UNROLL for (size_t i = 0; i < m; i++) {
        v_storeu(c + i * ldc, s[i][0]);
        v_storeu(c + i * ldc + 16, s[i][1]);
    }
}

static void ukr_12x32(size_t m, size_t k, const void *a, const void *b, float *c, size_t ldc,
                      bool add) {
    switch (m) {
#define CASE(n)                                                                           \
    case n: rows_of(n, k, a, b, c, ldc, add); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11)
#undef CASE
    default: rows_of(12, k, a, b, c, ldc, add); break;
    }
}

static const ane_gemm_entry entries[] = {
    {.name = "f32_12x32__avx512", .keeps = ANE_PRECISION_HIGHEST, .a_types = ANE_FLOATS,
     .b_types = ANE_FLOATS, .mr = 12, .nr = 32, .kr = 1, .unit = 4, .ukr = ukr_12x32,
     .pack_a = pack_12, .pack_b = pack_32},
};

const ane_kernels ane_kernels__avx512 = {
    .name = ISA_NAME, .entries = entries, .n_entries = 1, .vec = &vec_table,
    .tile = tile_out, .gemv_rows = gemv_rows, .gemv_cols = gemv_cols,
    .convert = vec_convert,
};
#endif
