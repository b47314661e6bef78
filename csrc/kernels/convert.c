/* Threads and cache policy of conversions; the loops are in body_vec.h. */
#include "convert.h"

#include "kernels.h"

#include "../base/sync.h"

/* Bytes of one task: long enough to pay for a wake-up, short enough to share evenly. */
#define BLOCK_ELEMENTS 65536
typedef struct job {
    const ane_kernels *table;
    char *dst;
    const char *src;
    ane_dtype to, from;
    size_t n, in, out;
    bool stream;
} job;

static void block(void *arg, size_t i) {
    const job *j = arg;
    size_t at = i * BLOCK_ELEMENTS, n = j->n - at;
    if (n > BLOCK_ELEMENTS) n = BLOCK_ELEMENTS;
    j->table->convert(j->dst + at * j->out, j->to, j->src + at * j->in, j->from, n, j->stream);
}

void ane_convert_with(const ane_kernels *table, void *dst, ane_dtype to, const void *src,
                      ane_dtype from, size_t n) {
    if (!n) return;
    job j = {.table = ane_whole_for(table), .dst = dst, .src = src, .to = to,
             .from = from, .n = n, .in = ane_dtype_size(from), .out = ane_dtype_size(to)};
    j.stream = n >= ANE_STREAM_BYTES / (j.in + j.out);
    /* A conversion is finished even when the run it belongs to has been stopped. */
    ane_poll *poll = ane_poll_swap(NULL);
    ane_parallel_for((n - 1) / BLOCK_ELEMENTS + 1, block, &j);
    ane_poll_swap(poll);
}

void ane_convert(void *dst, ane_dtype to, const void *src, ane_dtype from, size_t n) {
    ane_convert_with(NULL, dst, to, src, from, n);
}

void ane_f32_to_f16(uint16_t *dst, const float *src, size_t n) {
    ane_convert(dst, ANE_F16, src, ANE_F32, n);
}
void ane_f16_to_f32(float *dst, const uint16_t *src, size_t n) {
    ane_convert(dst, ANE_F32, src, ANE_F16, n);
}
void ane_f32_to_bf16(uint16_t *dst, const float *src, size_t n) {
    ane_convert(dst, ANE_BF16, src, ANE_F32, n);
}
void ane_bf16_to_f32(float *dst, const uint16_t *src, size_t n) {
    ane_convert(dst, ANE_F32, src, ANE_BF16, n);
}
