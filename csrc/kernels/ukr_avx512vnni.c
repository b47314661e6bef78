/* AVX512-VNNI: products of int16 pairs in one instruction; the sums are exact as everywhere.
 * Tiles are those of ukr_avx512.c, whose packing and rows they read. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512VNNI__)
#define ISA_NAME "avx512vnni"
#include "simd_avx512.h"

#include "tables.h"

#include "conv_avx512.h"
#include "conv_post.h"

typedef __m512i qi;
static inline qi q_dot(qi s, qi a, qi b) { return _mm512_dpwssd_epi32(s, a, b); }
#include "pairs16_avx512.h"

#include "body_qconv.h"

const ane_kernels ane_kernels__avx512vnni = {.name = ISA_NAME, .qtile = qconv_tile, .qname = "int16_12x32__" ISA_NAME};
#endif
