/* emulate_avx512.h against the instructions it stands for, bit for bit, on a processor (or an
 * emulator of one) that has them; tests/run_bochs.sh builds and runs it. A NaN is a NaN: which
 * one comes out, no kernel asks. */
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Before the header takes the intrinsics' names. */
static __m512i real_dpbf16(__m512i s, __m512i a, __m512i b) {
    return _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(s), (__m512bh)a, (__m512bh)b));
}
static __m512i real_fmadd_ph(__m512i s, __m512i a, __m512i b) {
    return _mm512_castph_si512(_mm512_fmadd_ph(_mm512_castsi512_ph(a), _mm512_castsi512_ph(b),
                                               _mm512_castsi512_ph(s)));
}
static __m512i real_add_ph(__m512i s, __m512i a, __m512i b) {
    (void)s;
    return _mm512_castph_si512(_mm512_add_ph(_mm512_castsi512_ph(a), _mm512_castsi512_ph(b)));
}
static __m512i real_dpwssd(__m512i s, __m512i a, __m512i b) {
    return _mm512_dpwssd_epi32(s, a, b);
}
static __m512i real_dpbusd(__m512i s, __m512i a, __m512i b) {
    return _mm512_dpbusd_epi32(s, a, b);
}

#include "emulate_avx512.h"

static __m512i ours_dpbf16(__m512i s, __m512i a, __m512i b) {
    return _mm512_castps_si512(emulate_dpbf16(_mm512_castsi512_ps(s), a, b));
}
static __m512i ours_fmadd_ph(__m512i s, __m512i a, __m512i b) {
    return emulate_fmadd_ph(a, b, s);
}
static __m512i ours_add_ph(__m512i s, __m512i a, __m512i b) {
    (void)s;
    return emulate_add_ph(a, b);
}

typedef __m512i three(__m512i s, __m512i a, __m512i b);
enum kind { INTEGER, HALF, BFLOAT };

static uint64_t state = 88172645463325252u;
static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

/* Sums that end beside the least normal float, where what is flushed is decided before or
 * after rounding: 2^-126 and a few steps, and products of +-2^-144 to 2^-158 on one side. */
static void edge(uint8_t s[64], uint8_t a[64], uint8_t b[64]) {
    for (int i = 0; i < 16; i++) {
        uint64_t r = next();
        uint32_t sum = 0x00800000 + (uint32_t)(r & 3), half = r >> 2 & 1 ? 16 : 0;
        uint32_t x = ((uint32_t)(r >> 3 & 7) + 48) << 7 | (r >> 6 & 1 ? 0x40 : 0);
        uint32_t y = ((uint32_t)(r >> 7 & 7) + 48) << 7 | (r >> 10 & 1 ? 0x8000 : 0);
        sum |= (uint32_t)(r >> 11 & 1) << 31;
        x <<= half;
        y <<= half;
        memcpy(s + 4 * i, &sum, 4);
        memcpy(a + 4 * i, &x, 4);
        memcpy(b + 4 * i, &y, 4);
    }
}

/* 64 random bytes: raw bits; small exponents; few significant bits (so that sums tie and
 * cancel); or one of the values at the ends of a format. */
static void fill(uint8_t *to, enum kind kind, bool is_sum) {
    static const uint16_t half[] = {0, 0x8000, 1, 0x8001, 0x3ff, 0x400, 0x7bff, 0xfbff, 0x7c00,
                                    0xfc00, 0x7e00, 0x3c00, 0xbc00, 0x3c01, 0x1400};
    static const uint16_t bfloat[] = {0, 0x8000, 1, 0x7f, 0x80, 0x8080, 0x7f7f, 0xff7f, 0x7f80,
                                      0xff80, 0x7fc0, 0x3f80, 0xbf80, 0x0100, 0x2000, 0x1f80};
    for (int i = 0; i < 32; i++) {
        uint64_t r = next();
        uint16_t u = (uint16_t)(r >> 16);
        if (kind == HALF) {
            if (r % 4 == 1) u &= 0x8fff;
            if (r % 4 == 2) u &= 0xfe00;
            if (r % 4 == 3) u = half[(r >> 40) % (sizeof half / sizeof *half)];
        } else if (kind == BFLOAT) {
            if (r % 4 == 1) u = (u & 0x807f) | (uint16_t)((r >> 40 & 63) + 0x1c) << 7;
            if (r % 4 == 2) u = (u & 0x807f) | (uint16_t)((r >> 40 & 7) + 0x7c) << 7;
            if (r % 4 == 3) u = bfloat[(r >> 40) % (sizeof bfloat / sizeof *bfloat)];
            if (is_sum && !(i & 1) && r >> 60 == 0) u = 0;      /* low halves of floats */
        } else if (r % 4 == 3) {
            u = r & 256 ? 0x8080 : r & 512 ? 0x7f7f : 0xffff;
        }
        memcpy(to + 2 * i, &u, sizeof u);
    }
}

static bool is_nan(uint32_t u, enum kind kind) {
    return kind == HALF ? (u & 0x7fff) > 0x7c00
                        : kind == BFLOAT && (u & 0x7fffffff) > 0x7f800000;
}

static long check(const char *name, three *real, three *ours, enum kind kind, long rounds) {
    long failures = 0;
    size_t size = kind == HALF ? 2 : 4;
    for (long round = 0; round < rounds; round++) {
        uint8_t s[64], a[64], b[64], x[64], y[64];
        fill(s, kind, true);
        fill(a, kind, false);
        fill(b, kind, false);
        if (kind == BFLOAT && round % 8 == 0) edge(s, a, b);
        __m512i vs = _mm512_loadu_si512(s), va = _mm512_loadu_si512(a);
        __m512i vb = _mm512_loadu_si512(b);
        _mm512_storeu_si512(x, real(vs, va, vb));
        _mm512_storeu_si512(y, ours(vs, va, vb));
        for (size_t i = 0; i < 64; i += size) {
            uint32_t p = 0, q = 0, in[3] = {0};
            memcpy(&p, x + i, size);
            memcpy(&q, y + i, size);
            if (p == q || (is_nan(p, kind) && is_nan(q, kind))) continue;
            memcpy(&in[0], s + i, size);
            memcpy(&in[1], a + i, size);
            memcpy(&in[2], b + i, size);
            if (failures++ < 5)
                printf("FAILED %s of %x, %x, %x: the instruction gives %x, the double %x\n",
                       name, in[0], in[1], in[2], p, q);
        }
    }
    printf("%s: %ld vectors, %ld failed\n", name, rounds, failures);
    return failures;
}

int main(void) {
    long failed = 0;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512vnni")) {
        printf("no VNNI here\n");
        return 0;
    }
    failed += check("vpdpwssd", real_dpwssd, emulate_dpwssd, INTEGER, 20000);
    failed += check("vpdpbusd", real_dpbusd, emulate_dpbusd, INTEGER, 20000);
    if (__builtin_cpu_supports("avx512bf16"))
        failed += check("vdpbf16ps", real_dpbf16, ours_dpbf16, BFLOAT, 50000);
    else printf("no BF16 here\n");
    unsigned a, b, c, d;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    if (d & (1u << 23)) {
        failed += check("vfmadd...ph", real_fmadd_ph, ours_fmadd_ph, HALF, 20000);
        failed += check("vaddph", real_add_ph, ours_add_ph, HALF, 20000);
    } else printf("no FP16 here\n");
    return failed != 0;
}
