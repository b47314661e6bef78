/* SHA-256 (FIPS 180-4), for the model's hex identifier. */
#ifndef STANDIN_SHA256_H
#define STANDIN_SHA256_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct sha256 {
    uint32_t h[8];
    uint64_t bytes;
    unsigned char block[64];
    size_t used;
} sha256;

static inline uint32_t sha256_rot(uint32_t x, int n) { return x >> n | x << (32 - n); }

static inline void sha256_block(sha256 *s, const unsigned char *p) {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 |
               (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (sha256_rot(a, 7) ^ sha256_rot(a, 18) ^ a >> 3) + w[i - 7] +
               (sha256_rot(b, 17) ^ sha256_rot(b, 19) ^ b >> 10);
    }
    memcpy(v, s->h, sizeof v);
    /* The eight words turn by one place a round: after eight each is at home again, so they
     * stay in registers. */
#define SHA256_V(r, n) v[((n) + 8 - (r)) % 8]
#define SHA256_ROUND(i, r)                                                            \
    do {                                                                                  \
        uint32_t e = SHA256_V(r, 4), a = SHA256_V(r, 0), b = SHA256_V(r, 1),  \
                 c = SHA256_V(r, 2);                                                  \
        uint32_t t1 = SHA256_V(r, 7) + k[(i) + (r)] + w[(i) + (r)] +                  \
                      (sha256_rot(e, 6) ^ sha256_rot(e, 11) ^ sha256_rot(e, 25)) + \
                      ((e & SHA256_V(r, 5)) ^ (~e & SHA256_V(r, 6)));             \
        SHA256_V(r, 3) += t1;                                                         \
        SHA256_V(r, 7) = t1 + ((a & b) ^ (a & c) ^ (b & c)) +                         \
            (sha256_rot(a, 2) ^ sha256_rot(a, 13) ^ sha256_rot(a, 22));       \
    } while (0)
    for (int i = 0; i < 64; i += 8) {
        SHA256_ROUND(i, 0);
        SHA256_ROUND(i, 1);
        SHA256_ROUND(i, 2);
        SHA256_ROUND(i, 3);
        SHA256_ROUND(i, 4);
        SHA256_ROUND(i, 5);
        SHA256_ROUND(i, 6);
        SHA256_ROUND(i, 7);
    }
#undef SHA256_ROUND
#undef SHA256_V
    for (int i = 0; i < 8; i++) s->h[i] += v[i];
}

static inline void sha256_init(sha256 *s) {
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memset(s, 0, sizeof *s);
    memcpy(s->h, start, sizeof start);
}

static inline void sha256_add(sha256 *s, const void *data, size_t n) {
    const unsigned char *p = data;
    s->bytes += n;
    while (n) {
        if (!s->used && n >= 64) {      /* whole blocks where they lie */
            sha256_block(s, p);
            p += 64;
            n -= 64;
            continue;
        }
        size_t m = 64 - s->used < n ? 64 - s->used : n;
        memcpy(s->block + s->used, p, m);
        s->used += m;
        p += m;
        n -= m;
        if (s->used == 64) {
            sha256_block(s, s->block);
            s->used = 0;
        }
    }
}

/* 64 upper-case digits and a NUL. */
static inline void sha256_hex(sha256 *s, char out[65]) {
    uint64_t bits = s->bytes * 8;
    unsigned char length[8];
    sha256_add(s, "\x80", 1);
    while (s->used != 56) sha256_add(s, "", 1);
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)(bits >> (56 - 8 * i));
    sha256_add(s, length, 8);
    for (int i = 0; i < 8; i++) snprintf(out + 8 * i, 9, "%08X", (unsigned)s->h[i]);
}

#endif
