/* AVX512-VNNI: products of int16 pairs in one instruction; the sums are exact as everywhere.
 * Tiles are those of ukr_avx512.c, whose packing and rows they read. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512VNNI__)
#define ISA_NAME "avx512vnni"
#include "simd_avx512.h"

#include "tables.h"

#define CONV_MR 12
#define CONV_NV 2
#define CONV_CASES                                                                        \
    CONV_CASE(1, 1) CONV_CASE(2, 1) CONV_CASE(3, 1) CONV_CASE(4, 1) CONV_CASE(5, 1)       \
    CONV_CASE(6, 1) CONV_CASE(7, 1) CONV_CASE(8, 1) CONV_CASE(9, 1) CONV_CASE(10, 1)      \
    CONV_CASE(11, 1) CONV_CASE(12, 1)                                                     \
    CONV_CASE(1, 2) CONV_CASE(2, 2) CONV_CASE(3, 2) CONV_CASE(4, 2) CONV_CASE(5, 2)       \
    CONV_CASE(6, 2) CONV_CASE(7, 2) CONV_CASE(8, 2) CONV_CASE(9, 2) CONV_CASE(10, 2)      \
    CONV_CASE(11, 2) CONV_CASE(12, 2)
#include "conv_post.h"

typedef __m512i qi;
static inline qi q_dot(qi s, qi a, qi b) { return _mm512_dpwssd_epi32(s, a, b); }
#include "pairs16_avx512.h"

#include "body_qconv.h"

const ane_kernels ane_kernels__avx512vnni = {.name = ISA_NAME, .qtile = qconv_tile, .qname = "int16_12x32__" ISA_NAME};
#endif
