/* AVX512-VNNI: products of int16 pairs in one instruction, or of four bytes where weights have
 * no zero point; the sums are exact as everywhere. Tiles are those of ukr_avx512.c, whose packing and rows they read. */
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

static inline qi q_dot4(qi s, qi a, qi b) { return _mm512_dpbusd_epi32(s, a, b); }
#define QCONV_TILE quad_tile
#define QCONV_ROWS quad_rows
#define QCONV_DOT q_dot4
#include "body_qconv.h"

const ane_kernels ane_kernels__avx512vnni = {
    .name = ISA_NAME, .qtile = qconv_tile, .qname = "int16_12x32__" ISA_NAME,
    .quad = quad_tile, .quad_x = ANE_U8, .quad_name = "int8_12x32__" ISA_NAME,
};
#endif
