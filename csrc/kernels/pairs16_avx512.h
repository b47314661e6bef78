/* Pairs of int16 in 512 bits, for the AVX-512 files; the dot product is the file's own. */
#ifndef ANE_PAIRS16_AVX512_H
#define ANE_PAIRS16_AVX512_H

static inline qi q_zero(void) { return _mm512_setzero_si512(); }
static inline qi q_load(const void *p) { return _mm512_loadu_si512(p); }
static inline qi q_pair(const void *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return _mm512_set1_epi32(x);
}
static inline qi q_add(qi a, qi b) { return _mm512_add_epi32(a, b); }
static inline qi q_bits(vf x) { return _mm512_castps_si512(x); }
static inline vf q_raw(qi x) { return _mm512_castsi512_ps(x); }
static inline vf q_float(qi x) { return _mm512_cvtepi32_ps(x); }

#endif
