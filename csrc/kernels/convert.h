/* Conversion between fp32 and the 16-bit floats: any alignment and length, bit-identical to
 * base/f16.h, threaded above a size, streaming stores for arrays beyond the caches. */
#ifndef ANE_CONVERT_H
#define ANE_CONVERT_H

#include "../base/status.h"

/* Above this many bytes read and written the result would not stay in a last-level cache
 * share anyway; streaming stores then save reading the destination first. */
#define ANE_STREAM_BYTES (16u << 20)

/* dst[0..n) = src[0..n), each dtype one of F16, BF16, F32 (equal: a copy). No overlap,
 * except dst == src with equal element sizes. Threaded. */
void ane_convert(void *dst, ane_dtype to, const void *src, ane_dtype from, size_t n);

#endif
