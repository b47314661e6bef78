/* Shared by the simd_*.h. */
#ifndef ANE_SIMD_H
#define ANE_SIMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* In front of a loop with a constant count, so that its arrays become registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

/* For functions that a loop is made of: a call would pass its vectors through memory. */
#define ALWAYS static inline __attribute__((always_inline))

#endif
