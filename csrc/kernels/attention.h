/* The attention core, streamed: softmax(scale Q K' + mask) V without the [queries, keys]
 * matrix in memory, and its gradient. Memory is linear in the sequence. Operands are fp16,
 * bf16 or fp32 with any strides; sums are fp32. Masked blocks of a causal core are not
 * computed. Same bits for every thread count. */
#ifndef ANE_ATTENTION_H
#define ANE_ATTENTION_H

#include "../base/status.h"

/* Element (b, h, t, c) is at data + b*s[0] + h*s[1] + t*s[2] + c*s[3] (bytes). */
typedef struct ane_mat4 {
    void *data;
    ane_dtype dtype;
    int64_t s[4];
} ane_mat4;

typedef struct ane_attention_args {
    int64_t batch, heads, kv_heads;     /* query head h reads KV head h / (heads/kv_heads) */
    int64_t q_len, k_len, qk_dim, v_dim;
    ane_mat4 q, k, v, out;              /* q, out by query head; k, v by KV head */
    float scale;
    bool causal;                        /* query i sees keys up to i + k_len - q_len */
    /* NULL, or [batch, head, query, key]: floats are added to the scaled scores, bool true
     * keeps. Strides may be 0. */
    const ane_mat4 *mask;
    float *lse;                         /* NULL, or out: [batch, heads, q_len], each row's
                                           log of the sum of exponentials */
} ane_attention_args;

/* A query that sees no key at all gives NaN, as softmax of an empty row does. out must not
 * overlap the inputs. */
ane_status ane_attention(const ane_attention_args *args, ane_error *err);

/* Gradients of the inputs for dout. fwd is what the forward call got: its out and lse are
 * read (where lse is NULL, the forward pass is run again and writes out). dk and dv are by
 * KV head: summed over the query heads that share it. Every output is overwritten. */
typedef struct ane_attention_grad_args {
    const ane_attention_args *fwd;
    ane_mat4 dout, dq, dk, dv;
} ane_attention_grad_args;
ane_status ane_attention_grad(const ane_attention_grad_args *args, ane_error *err);

#endif
