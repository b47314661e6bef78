#include "number.h"

#include <stdio.h>
#include <string.h>

typedef struct format {
    int mantissa, bias, max_exp;        /* stored bits; exponent bias; largest exponent */
    int bits;
    bool has_inf;
} format;

static const format *format_of(ane_dtype d) {
    static const format formats[ANE_DTYPE_COUNT] = {
        [ANE_F16] = {10, 15, 15, 16, true},     [ANE_F32] = {23, 127, 127, 32, true},
        [ANE_F64] = {52, 1023, 1023, 64, true}, [ANE_BF16] = {7, 127, 127, 16, true},
        [ANE_F8E4M3] = {3, 7, 8, 8, false},     [ANE_F8E5M2] = {2, 15, 15, 8, true},
    };
    return &formats[d];
}

bool ane__is_float(ane_dtype d) {
    return d == ANE_F16 || d == ANE_F32 || d == ANE_F64 || d == ANE_BF16 ||
           d == ANE_F8E4M3 || d == ANE_F8E5M2;
}

static uint64_t infinity_bits(const format *f) {
    if (!f->has_inf) return (1u << (f->bits - 1)) - 1u;         /* e4m3fn: NaN */
    return ((uint64_t)(f->max_exp + f->bias + 1)) << f->mantissa;
}

static uint64_t nan_bits(const format *f) {
    if (!f->has_inf) return infinity_bits(f);
    return infinity_bits(f) | (uint64_t)1 << (f->mantissa - 1);
}

/* m * 2^e, m's top bit set, plus something below its last bit when sticky. */
static uint64_t round_bits(uint64_t m, long e, bool sticky, const format *f, bool *overflow) {
    if (!m) return 0;
    long exp = e + 63;                  /* of the leading bit */
    long keep = f->mantissa + 1;
    if (exp < 1 - f->bias) keep -= (1 - f->bias) - exp;         /* subnormal: fewer bits */
    uint64_t q;
    if (keep < 0) {
        q = 0;                          /* below half of the least subnormal */
    } else {
        long drop = 64 - keep;          /* 11..64 */
        uint64_t rest, half = (uint64_t)1 << (drop - 1);
        if (drop == 64) {
            q = 0;
            rest = m;
        } else {
            q = m >> drop;
            rest = m & (((uint64_t)1 << drop) - 1);
        }
        if (rest > half || (rest == half && (sticky || (q & 1)))) q++;
    }
    if (exp < 1 - f->bias) return q;    /* carries into the least normal by itself */
    if (q >> (f->mantissa + 1)) {
        q >>= 1;
        exp++;
    }
    uint64_t frac = q & (((uint64_t)1 << f->mantissa) - 1);
    bool over = exp > f->max_exp;
    /* e4m3fn: the all-ones pattern of the top exponent is NaN. */
    if (!f->has_inf && exp == f->max_exp && frac == ((uint64_t)1 << f->mantissa) - 1)
        over = true;
    if (over) {
        *overflow = true;
        return infinity_bits(f);
    }
    return (uint64_t)(exp + f->bias) << f->mantissa | frac;
}

/* ---------------------------------------------------------------- decimal */

/* A decimal can decide a rounding of fp64 as late as its 767th digit; what follows 780
 * digits only says whether something is there. */
#define MAX_DIGITS 780
/* 10^MAX_EXP is beyond every format, 10^-MAX_EXP below half of every least subnormal. */
#define MAX_EXP 400
#define WORDS ((MAX_DIGITS + 2 * MAX_EXP) * 10 / 3 / 32 + 8)

typedef struct big {
    int n;
    uint32_t w[WORDS];                  /* least significant first */
} big;

static void big_mul_add(big *b, uint32_t mul, uint32_t add) {
    uint64_t carry = add;
    for (int i = 0; i < b->n; i++) {
        carry += (uint64_t)b->w[i] * mul;
        b->w[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry) b->w[b->n++] = (uint32_t)carry;
}

static void big_pow10(big *b, int k) {
    for (; k >= 9; k -= 9) big_mul_add(b, 1000000000u, 0);
    for (; k > 0; k--) big_mul_add(b, 10, 0);
}

static int big_bits(const big *b) {
    return b->n ? 32 * b->n - __builtin_clz(b->w[b->n - 1]) : 0;
}

static void big_shift(big *b, int k) {
    int words = k / 32, bits = k % 32;
    if (!b->n || !k) return;
    for (int i = b->n - 1; i >= 0; i--) b->w[i + words] = b->w[i];
    for (int i = 0; i < words; i++) b->w[i] = 0;
    b->n += words;
    if (bits) big_mul_add(b, 1u << bits, 0);
}

static int big_cmp(const big *a, const big *b) {
    if (a->n != b->n) return a->n < b->n ? -1 : 1;
    for (int i = a->n - 1; i >= 0; i--)
        if (a->w[i] != b->w[i]) return a->w[i] < b->w[i] ? -1 : 1;
    return 0;
}

static void big_sub(big *a, const big *b) {     /* a >= b */
    int64_t borrow = 0;
    for (int i = 0; i < a->n; i++) {
        int64_t d = (int64_t)a->w[i] - (i < b->n ? b->w[i] : 0) + borrow;
        a->w[i] = (uint32_t)d;
        borrow = d < 0 ? -1 : 0;
    }
    while (a->n && !a->w[a->n - 1]) a->n--;
}

/* num / den to 64 bits and a sticky: value = m * 2^e. */
static uint64_t big_divide(big *num, big *den, long *e, bool *sticky) {
    /* Scale so that 1 <= num/den < 2, then take bits one by one. */
    int k = big_bits(num) - big_bits(den);
    if (k > 0) big_shift(den, k);
    else big_shift(num, -k);
    if (big_cmp(num, den) < 0) {
        big_shift(num, 1);
        k--;
    }
    uint64_t m = 0;
    for (int i = 0; i < 64; i++) {
        m <<= 1;
        if (big_cmp(num, den) >= 0) {
            big_sub(num, den);
            m |= 1;
        }
        big_shift(num, 1);
    }
    *e = k - 63;
    *sticky = num->n != 0;
    return m;
}

/* digits * 10^e10 */
static uint64_t decimal_slow(const char *digits, int n, bool tail, long e10, long *e,
                             bool *sticky) {
    big num = {0}, den = {0};
    for (int i = 0; i < n; i++) big_mul_add(&num, 10, (uint32_t)(digits[i] - '0'));
    /* A non-zero tail is a little more than the digits: one more digit says so. */
    if (tail) {
        big_mul_add(&num, 10, 1);
        e10--;
    }
    den.n = 1;
    den.w[0] = 1;
    if (e10 >= 0) big_pow10(&num, (int)e10);
    else big_pow10(&den, (int)-e10);
    return big_divide(&num, &den, e, sticky);
}

static const uint64_t POW10[20] = {
    1u, 10u, 100u, 1000u, 10000u, 100000u, 1000000u, 10000000u, 100000000u, 1000000000u,
    10000000000u, 100000000000u, 1000000000000u, 10000000000000u, 100000000000000u,
    1000000000000000u, 10000000000000000u, 100000000000000000u, 1000000000000000000u,
    10000000000000000000u,
};

__extension__ typedef unsigned __int128 u128;

static uint64_t normalize128(u128 v, long *e, bool *sticky) {
    uint64_t hi = (uint64_t)(v >> 64), lo = (uint64_t)v;
    if (!hi) {
        int z = __builtin_clzll(lo);
        *e -= z;
        return lo << z;
    }
    int z = __builtin_clzll(hi);
    uint64_t m = z ? hi << z | lo >> (64 - z) : hi;
    if ((uint64_t)(lo << z)) *sticky = true;
    *e += 64 - z;
    return m;
}

/* d * 10^e10 of d > 0 and |e10| <= 19. */
static uint64_t decimal_fast(uint64_t d, int e10, long *e, bool *sticky) {
    if (e10 >= 0) return normalize128((u128)d * POW10[e10], e, sticky);
    /* (d << 64) / 10^k keeps at least 64 bits of the quotient after the shift of d. */
    int z = __builtin_clzll(d);
    u128 num = (u128)(d << z) << 64, q = num / POW10[-e10];
    *sticky = q * POW10[-e10] != num;
    *e = -64 - z;
    return normalize128(q, e, sticky);
}

static bool digit(char c) { return c >= '0' && c <= '9'; }

/* Exponent digits, clamped far beyond every format. */
static long read_exponent(const char *s, const char *end) {
    bool minus = s < end && *s == '-';
    if (s < end && (*s == '-' || *s == '+')) s++;
    long v = 0;
    for (; s < end; s++)
        if (v < 100000000) v = v * 10 + (*s - '0');
    return minus ? -v : v;
}

static uint64_t read_decimal(const char *s, const char *end, long *e, bool *sticky) {
    char digits[MAX_DIGITS];
    int n = 0;
    long e10 = 0;
    bool dot = false, tail = false;
    for (; s < end && *s != 'e' && *s != 'E'; s++) {
        if (*s == '.') {
            dot = true;
            continue;
        }
        if (n < MAX_DIGITS) {
            if (n || *s != '0') digits[n++] = *s;
            if (dot && e10 > -200000000) e10--;
        } else {
            tail |= *s != '0';
            if (!dot && e10 < 200000000) e10++;
        }
    }
    if (s < end) e10 += read_exponent(s + 1, end);
    while (n && !tail && digits[n - 1] == '0') {
        n--;
        e10++;
    }
    *e = 0;
    *sticky = false;
    if (!n) return 0;
    if (n + e10 > MAX_EXP) {            /* above every format */
        *e = 100000;
        return (uint64_t)1 << 63;
    }
    if (n + e10 < -MAX_EXP) {           /* below half of every least subnormal */
        *e = -100000;
        return (uint64_t)1 << 63;
    }
    if (n <= 19 && !tail && e10 >= -19 && e10 <= 19) {
        uint64_t d = 0;
        for (int i = 0; i < n; i++) d = d * 10 + (uint64_t)(digits[i] - '0');
        return decimal_fast(d, (int)e10, e, sticky);
    }
    return decimal_slow(digits, n, tail, e10, e, sticky);
}

/* ---------------------------------------------------------------- hex */

/* One more than the value; 0: no hex digit. */
static const unsigned char hex_values[256] = {
    ['0'] = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
    ['A'] = 11, 12, 13, 14, 15, 16,
    ['a'] = 11, 12, 13, 14, 15, 16,
};
static int hex_digit(char c) { return hex_values[(unsigned char)c] - 1; }

static uint64_t read_hex(const char *s, const char *end, long *e, bool *sticky) {
    uint64_t m = 0;
    bool dot = false;
    *e = 0;
    *sticky = false;
    for (; s < end && *s != 'p' && *s != 'P'; s++) {
        if (*s == '.') {
            dot = true;
            continue;
        }
        int d = hex_digit(*s);
        if (m >> 60) {                  /* full: the rest only says whether it is there */
            *sticky |= d != 0;
            if (!dot && *e < 200000000) *e += 4;
        } else {
            m = m << 4 | (uint64_t)d;
            if (dot && *e > -200000000) *e -= 4;
        }
    }
    if (s < end) *e += read_exponent(s + 1, end);
    if (!m) return 0;
    int z = __builtin_clzll(m);
    *e -= z;
    return m << z;
}

/* ---------------------------------------------------------------- entry points */

void ane__number_float(const char *s, size_t n, ane_dtype dtype, uint64_t *bits,
                       bool *overflow) {
    format f = *format_of(dtype);
    const char *end = s + n;
    bool minus = *s == '-', sticky;
    if (*s == '-' || *s == '+') s++;
    uint64_t v;
    *overflow = false;
    if (*s == 'i') {
        /* e4m3fn cannot hold it: that is an overflow like any other. */
        *overflow = !f.has_inf;
        v = infinity_bits(&f);
    } else if (*s == 'n') {
        v = nan_bits(&f);
    } else {
        long e;
        bool hex = end - s > 2 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X');
        uint64_t m = hex ? read_hex(s + 2, end, &e, &sticky) : read_decimal(s, end, &e, &sticky);
        v = round_bits(m, e, sticky, &f, overflow);
    }
    *bits = v | (uint64_t)minus << (f.bits - 1);
}

/* ---------------------------------------------------------------- common forms */

#define SCAN_BYTES 40                   /* no form is longer: checked once, not at each byte */

static bool is_integer_signed(ane_dtype d) {
    return d == ANE_I8 || d == ANE_I16 || d == ANE_I32 || d == ANE_I64;
}

/* Up to 15 hex digits: "1.8p+3" behind the 0x. */
static const char *scan_hex(const char *p, uint64_t *m, long *e) {
    int n = 0, d;
    *m = 0;
    *e = 0;
    for (; (d = hex_digit(*p)) >= 0 && n < 15; p++, n++) *m = *m << 4 | (uint64_t)d;
    if (*p == '.')
        for (p++; (d = hex_digit(*p)) >= 0 && n < 15; p++, n++) {
            *m = *m << 4 | (uint64_t)d;
            *e -= 4;
        }
    if (!n || (*p | 32) != 'p') return NULL;
    const char *sign = ++p;
    if (*p == '-' || *p == '+') p++;
    const char *digits = p;
    long v = 0;
    while (digit(*p) && p - digits < 4) v = v * 10 + (*p++ - '0');
    if (p == digits) return NULL;
    *e += *sign == '-' ? -v : v;
    if (!*m) return p;
    int z = __builtin_clzll(*m);
    *m <<= z;
    *e -= z;
    return p;
}

/* Up to 18 digits and no exponent. */
static const char *scan_decimal(const char *p, uint64_t *m, long *e, bool *sticky) {
    int n = 0, fraction = 0;
    uint64_t v = 0;
    for (; digit(*p) && n < 18; p++, n++) v = v * 10 + (uint64_t)(*p - '0');
    if (!n) return NULL;
    if (*p == '.')
        for (p++; digit(*p) && n < 18; p++, n++, fraction++)
            v = v * 10 + (uint64_t)(*p - '0');
    *e = 0;
    *m = v ? decimal_fast(v, -fraction, e, sticky) : 0;
    return p;
}

static const char *scan_float(const char *p, const format *f, uint64_t *bits) {
    uint64_t m;
    long e;
    bool sticky = false, overflow = false;
    if (digit(*p)) {
        p = p[0] == '0' && (p[1] | 32) == 'x' ? scan_hex(p + 2, &m, &e)
                                               : scan_decimal(p, &m, &e, &sticky);
        if (!p) return NULL;
        *bits = round_bits(m, e, sticky, f, &overflow);
        return overflow ? NULL : p;
    }
    if (!f->has_inf || (memcmp(p, "inf", 3) && memcmp(p, "nan", 3))) return NULL;
    *bits = *p == 'i' ? infinity_bits(f) : nan_bits(f);
    return p + 3;
}

const char *ane__number_scan(const char *s, const char *end, ane_dtype dtype, uint64_t *bits) {
    const char *p = s;
    if (end - s < SCAN_BYTES) return NULL;
    if (dtype == ANE_BOOL) {
        *bits = *p == 't';
        p = !memcmp(p, "true", 4) ? p + 4 : !memcmp(p, "false", 5) ? p + 5 : NULL;
    } else if (ane__is_float(dtype)) {
        const format *f = format_of(dtype);
        bool minus = *p == '-';
        if (minus || *p == '+') p++;
        p = scan_float(p, f, bits);
        if (p) *bits |= (uint64_t)minus << (f->bits - 1);
    } else {
        if (*p == '-' || *p == '+') p++;
        while (digit(*p) && p - s < 18) p++;
        if (!ane__number_int(s, (size_t)(p - s), ane_dtype_bits(dtype), is_integer_signed(dtype),
                             bits))
            return NULL;
    }
    if (!p) return NULL;
    return *p == ',' || *p == ' ' || *p == ']' || *p == '\n' || *p == '\t' || *p == '\r' ? p : NULL;
}

bool ane__number_int(const char *s, size_t n, int width, bool is_signed, uint64_t *bits) {
    const char *end = s + n;
    bool minus = *s == '-';
    if (*s == '-' || *s == '+') s++;
    uint64_t v = 0;
    if (s == end) return false;
    for (; s < end; s++) {
        if (!digit(*s)) return false;
        if (__builtin_mul_overflow(v, 10u, &v) ||
            __builtin_add_overflow(v, (uint64_t)(*s - '0'), &v))
            return false;
    }
    uint64_t top = width == 64 ? UINT64_MAX : ((uint64_t)1 << width) - 1;
    if (is_signed) {
        uint64_t limit = (top >> 1) + (minus ? 1 : 0);
        if (v > limit) return false;
    } else if (v > top || (minus && v)) {
        return false;
    }
    *bits = (minus ? 0 - v : v) & top;
    return true;
}

char *ane__number_text(uint64_t bits, ane_dtype dtype, char *buf) {
    format f = *format_of(dtype);
    bool minus = bits >> (f.bits - 1) & 1;
    uint64_t abs = bits & (((uint64_t)1 << (f.bits - 1)) - 1);
    uint64_t frac = abs & (((uint64_t)1 << f.mantissa) - 1);
    int exp = (int)(abs >> f.mantissa);
    const char *sign = minus ? "-" : "";
    if (abs > infinity_bits(&f) || (!f.has_inf && abs == infinity_bits(&f))) {
        snprintf(buf, ANE_NUMBER_TEXT, "nan");
    } else if (f.has_inf && abs == infinity_bits(&f)) {
        snprintf(buf, ANE_NUMBER_TEXT, "%sinf", sign);
    } else if (!abs) {
        snprintf(buf, ANE_NUMBER_TEXT, "%s0x0p+0", sign);
    } else {
        /* frac to the top of 52 bits, leading one removed. */
        int e = exp - f.bias;
        uint64_t m = frac << (52 - f.mantissa);
        if (!exp) {
            e = 1 - f.bias;
            while (!(m >> 52)) {
                m <<= 1;
                e--;
            }
            m &= ((uint64_t)1 << 52) - 1;
        }
        int digits = 13;
        while (digits && !(m & 15)) {
            m >>= 4;
            digits--;
        }
        if (digits)
            snprintf(buf, ANE_NUMBER_TEXT, "%s0x1.%0*llxp%+d", sign, digits,
                     (unsigned long long)m, e);
        else
            snprintf(buf, ANE_NUMBER_TEXT, "%s0x1p%+d", sign, e);
    }
    return buf;
}
