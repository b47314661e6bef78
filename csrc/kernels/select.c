/* Which kernel tables this CPU runs, decided once. Compiled without instruction-set flags,
 * and the only file that asks the CPU. */
#include "tables.h"

#include "../base/env.h"
#include "../base/sync.h"

#include <stdio.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#define ANE_X86 1
#include <cpuid.h>
#elif defined(__aarch64__)
#define ANE_ARM 1
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

/* setup.py defines ANE_BUILT_<TABLE>=1 for the flags that the compiler accepts. */
#define ANE_BUILT_SCALAR 1
#ifndef ANE_BUILT_AVX2
#define ANE_BUILT_AVX2 0
#endif
#ifndef ANE_BUILT_AVX512
#define ANE_BUILT_AVX512 0
#endif
#ifndef ANE_BUILT_AVX512VNNI
#define ANE_BUILT_AVX512VNNI 0
#endif
#ifndef ANE_BUILT_AVX512BF16
#define ANE_BUILT_AVX512BF16 0
#endif
#ifndef ANE_BUILT_AVX512FP16
#define ANE_BUILT_AVX512FP16 0
#endif
#ifndef ANE_BUILT_NEON
#define ANE_BUILT_NEON 0
#endif
#ifndef ANE_BUILT_NEONDOT
#define ANE_BUILT_NEONDOT 0
#endif
#ifndef ANE_BUILT_NEONFHM
#define ANE_BUILT_NEONFHM 0
#endif
#ifndef ANE_BUILT_NEONBF16
#define ANE_BUILT_NEONBF16 0
#endif
#ifndef ANE_BUILT_NEONFP16
#define ANE_BUILT_NEONFP16 0
#endif

/* The table's address where its file is part of this build. */
#define GIVE_0(name) NULL
#define GIVE_1(name) (&ane_kernels__##name)
#define GIVE_(built, name) GIVE_##built(name)
#define GIVE(built, name) GIVE_(built, name)

enum { OTHER = 1, NOT_BUILT, LACKS, SLOW, THERE };

typedef struct row {
    const char *name;
    const ane_kernels *table;
    int state;
} row;

static ane_once once = ANE_ONCE_INIT;
static row rows[16];
static size_t n_rows;
static const ane_kernels *usable[16];   /* weakest first */
static size_t n_usable;
static const ane_kernels *chosen;       /* the limit: tables up to this one may run */
static const ane_kernels *with_vec;     /* the widest of them that has vec */
static char wrong[512];                 /* what is wrong with ANETORCH_ISA */

/* ------------------------------------------------------------------ what the CPU has */

typedef struct cpu {
    bool avx2, avx512, vnni, bf16, fp16, intel;
    bool neon, neon_dot, neon_fp16, neon_fhm, neon_bf16;
} cpu;

#if defined(ANE_X86)
static uint64_t xcr0(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return ((uint64_t)hi << 32) | lo;
}

static cpu look(void) {
    cpu c = {0};
    unsigned a, b, cx, d, a1 = 0, b7 = 0, c7 = 0, d7 = 0, x;
    if (!__get_cpuid(0, &a, &b, &cx, &d)) return c;
    c.intel = b == 0x756e6547;          /* "Genu" */
    if (!__get_cpuid(1, &a, &b, &cx, &d)) return c;
    bool saves = cx & (1u << 27), fma = cx & (1u << 12), f16c = cx & (1u << 29);
    if (!saves || !(cx & (1u << 28))) return c;
    uint64_t state = xcr0();
    if (__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) && a >= 1)
        __get_cpuid_count(7, 1, &a1, &b, &x, &d);
    bool ymm = (state & 6) == 6, zmm = (state & 0xe6) == 0xe6;
    c.avx2 = ymm && fma && f16c && (b7 & (1u << 5));
    unsigned need = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  /* F DQ BW VL */
    c.avx512 = c.avx2 && zmm && (b7 & need) == need;
    c.vnni = c.avx512 && (c7 & (1u << 11));
    c.bf16 = c.avx512 && (a1 & (1u << 5));
    c.fp16 = c.avx512 && (d7 & (1u << 23));
    return c;
}
#elif defined(ANE_ARM) && defined(__linux__)
static cpu look(void) {
    unsigned long w = getauxval(AT_HWCAP), w2 = getauxval(AT_HWCAP2);
    bool fp16 = (w & (1ul << 9)) && (w & (1ul << 10));
    return (cpu){.neon = true, .neon_dot = w & (1ul << 20), .neon_fp16 = fp16, .neon_fhm = fp16 && (w & (1ul << 23)),
                 .neon_bf16 = w2 & (1ul << 14)};
}
#elif defined(ANE_ARM) && defined(__APPLE__)
static bool feature(const char *name) {
    int v = 0;
    size_t n = sizeof v;
    return !sysctlbyname(name, &v, &n, NULL, 0) && v;
}
static cpu look(void) {
    return (cpu){.neon = true, .neon_dot = feature("hw.optional.arm.FEAT_DotProd"),
                 .neon_fp16 = feature("hw.optional.arm.FEAT_FP16"),
                 .neon_fhm = feature("hw.optional.arm.FEAT_FHM"),
                 .neon_bf16 = feature("hw.optional.arm.FEAT_BF16")};
}
#else
static cpu look(void) { return (cpu){0}; }
#endif

/* ------------------------------------------------------------------ the choice */

#if defined(ANE_X86)
#define ARCH_X86 1
#else
#define ARCH_X86 0
#endif
#if defined(ANE_ARM)
#define ARCH_ARM 1
#else
#define ARCH_ARM 0
#endif

static void add(const char *name, const ane_kernels *table, bool arch, bool has, bool slow) {
    rows[n_rows++] = (row){name, table, !arch ? OTHER : !table ? NOT_BUILT : !has ? LACKS
                                              : slow ? SLOW : THERE};
}

static bool is_slow(const ane_kernels *table) {
    for (size_t i = 0; i < n_rows; i++)
        if (rows[i].table == table) return rows[i].state == SLOW;
    return false;
}

static void force(const char *isa) {
    for (size_t i = 0; i < n_usable; i++)
        if (!strcmp(usable[i]->name, isa)) {
            chosen = usable[i];
            return;
        }
    int n = snprintf(wrong, sizeof wrong, "ANETORCH_ISA='%.40s' is not a kernel table that "
                     "this build and this CPU have; they have:", isa);
    for (size_t i = 0; i < n_usable && n < (int)sizeof wrong; i++)
        n += snprintf(wrong + n, sizeof wrong - (size_t)n, " %s", usable[i]->name);
}

static void decide(void) {
    cpu c = look();
#if defined(ANE_EMULATE_AVX512)         /* testing: see tests/emulate_avx512.h */
    c.vnni = c.bf16 = c.fp16 = c.avx512;
    c.intel = false;
#endif
    n_rows = n_usable = 0;
    add("scalar", GIVE(ANE_BUILT_SCALAR, scalar), true, true, false);
    add("avx2", GIVE(ANE_BUILT_AVX2, avx2), ARCH_X86, c.avx2, false);
    add("avx512", GIVE(ANE_BUILT_AVX512, avx512), ARCH_X86, c.avx512, false);
    add("avx512vnni", GIVE(ANE_BUILT_AVX512VNNI, avx512vnni), ARCH_X86, c.vnni, false);
    /* Intel runs vdpbf16ps at half the rate of fp32 multiply-adds (gemm-notes, section 1). */
    add("avx512bf16", GIVE(ANE_BUILT_AVX512BF16, avx512bf16), ARCH_X86, c.bf16, c.intel);
    add("avx512fp16", GIVE(ANE_BUILT_AVX512FP16, avx512fp16), ARCH_X86, c.fp16, false);
    add("neon", GIVE(ANE_BUILT_NEON, neon), ARCH_ARM, c.neon, false);
    add("neondot", GIVE(ANE_BUILT_NEONDOT, neondot), ARCH_ARM, c.neon_dot, false);
    add("neonfhm", GIVE(ANE_BUILT_NEONFHM, neonfhm), ARCH_ARM, c.neon_fhm, false);
    add("neonbf16", GIVE(ANE_BUILT_NEONBF16, neonbf16), ARCH_ARM, c.neon_bf16, false);
    add("neonfp16", GIVE(ANE_BUILT_NEONFP16, neonfp16), ARCH_ARM, c.neon_fp16, false);
    for (size_t i = 0; i < n_rows; i++)
        if (rows[i].state >= SLOW) usable[n_usable++] = rows[i].table;
    for (size_t i = 0; i < n_usable; i++)
        if (!is_slow(usable[i])) chosen = usable[i];
    const char *isa = ane_env(ANE_ENV_ISA);
    if (*isa) force(isa);
    for (size_t i = 0; i < n_usable; i++) {
        if (usable[i]->vec) with_vec = usable[i];
        if (usable[i] == chosen) break;
    }
    if (ane_env_flag(ANE_ENV_LOG))
        ane__log("kernels: %s%s%s", chosen->name, *wrong ? "; " : "", wrong);
}

static void ready(void) { pthread_once(&once, decide); }

const ane_kernels *ane_kernels_get(void) {
    ready();
    return with_vec;
}
const ane_vec *ane_vec_get(void) { return ane_kernels_get()->vec; }

ane_status ane_isa_check(ane_error *err) {
    ready();
    return *wrong ? ane_fail(err, ANE_ERR_INVALID, "%s", wrong) : ANE_OK;
}

size_t ane_kernels_count(void) {
    ready();
    return n_usable;
}
const ane_kernels *ane_kernels_at(size_t i) {
    ready();
    return i < n_usable ? usable[i] : NULL;
}

const char *ane_isa_name(size_t i, const char **state) {
    static const char *const text[] = {
        [OTHER] = "other architecture", [NOT_BUILT] = "not built", [LACKS] = "CPU lacks it",
        [SLOW] = "available, slower here than its fallback", [THERE] = "available",
    };
    ready();
    if (i >= n_rows) return NULL;
    *state = rows[i].table && rows[i].table == chosen ? "chosen" : text[rows[i].state];
    return rows[i].name;
}

/* Index of `table` (NULL: the chosen one) among the usable ones. */
static size_t index_of(const ane_kernels *table) {
    size_t top = 0;
    ready();
    if (!table) table = chosen;
    while (top + 1 < n_usable && usable[top] != table) top++;
    return top;
}

const ane_gemm_entry *ane_gemm_entry_for(const ane_kernels *table, ane_dtype a, ane_dtype b,
                                         ane_precision precision) {
    size_t top = index_of(table);
    if (!table) table = chosen;
    for (size_t i = top + 1; i-- > 0;) {
        /* One that loses to its own fallback runs only when it is asked for by name. */
        if (usable[i] != table && is_slow(usable[i])) continue;
        for (size_t j = 0; j < usable[i]->n_entries; j++) {
            const ane_gemm_entry *e = &usable[i]->entries[j];
            if (precision >= e->keeps && (e->a_types & ANE_BIT(a)) && (e->b_types & ANE_BIT(b)))
                return e;
        }
    }
    return NULL;
}

const ane_kernels *ane_whole_for(const ane_kernels *table) {
    size_t top = index_of(table);
    while (!usable[top]->vec) top--;            /* the scalar table has it */
    return usable[top];
}

const ane_kernels *ane_qtile_for(const ane_kernels *table) {
    size_t top = index_of(table);
    while (!usable[top]->qtile) top--;          /* the scalar table has one */
    return usable[top];
}

const ane_kernels *ane_quad_for(const ane_kernels *table) {
    size_t i = index_of(table);
    while (!usable[i]->quad && !usable[i]->qtile) i--;
    return usable[i]->quad ? usable[i] : NULL;
}
