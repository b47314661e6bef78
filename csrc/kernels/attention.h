/* The attention core, streamed: softmax(scale Q K' + mask) V without the [queries, keys]
 * matrix in memory, and its gradient. Memory is linear in the sequence. Operands are fp16,
 * bf16 or fp32 with any strides; sums are fp32. Keys that a mask is known to hide are not
 * computed. Same bits for every thread count. */
#ifndef ANE_ATTENTION_H
#define ANE_ATTENTION_H

#include "../base/status.h"

struct ane_room;                        /* base/sync.h */

/* Element (batch b, KV head g, r-th query head of its group, position t, channel c) is at
 * data + b*s[0] + g*s[1] + r*s[2] + t*s[3] + c*s[4] (bytes). Keys and values are shared by a
 * group: their s[2] is not used. */
typedef struct ane_mat5 {
    void *data;
    ane_dtype dtype;
    int64_t s[5];
} ane_mat5;

/* Which keys a query may see at all: [first, end). */
typedef struct ane_span {
    int32_t first, end;
} ane_span;

typedef struct ane_attention_args {
    int64_t batch, kv_heads, group;     /* group: query heads that share a KV head */
    int64_t q_len, k_len, qk_dim, v_dim;
    ane_mat5 q, k, v, out;
    float scale;
    /* NULL, or [batch, KV head, group, query, key]; strides may be 0. Floats: mask_scale
     * times them is added to the scaled scores. Bool: where it is not `keep`, the scaled
     * score becomes `fill`. */
    const ane_mat5 *mask;
    float mask_scale, fill;
    bool keep;
    /* NULL, or [q_len] for every head (span_group further on for the next head of a group;
     * 0: the same): outside of its span a query's masked score is at most `hidden` more than
     * what it is without the mask, where inside nothing is added when `plain`. Such keys are
     * left out where that changes nothing: that is checked against the operands' size, as
     * huge scores show through a finite mask and 0 * inf is NaN. Without a mask a span hides
     * like -inf. */
    const ane_span *span;
    int64_t span_group;
    float hidden;
    bool plain;
} ane_attention_args;

/* A query that sees no key at all gives NaN, as softmax of a row of -inf does. out must not
 * overlap the inputs. */
ane_status ane_attention(const ane_attention_args *args, ane_error *err);
/* States what that takes; of addresses only whether they are there counts. */
void ane_attention_room(const ane_attention_args *args, struct ane_room *room);

/* Gradients of the inputs for dout: dS = dscale P (dout V' - sum(P dout V')), dQ = dS K,
 * dK = dS' Q, dV = P' dout. fwd is what the forward call got, but its out, which is neither
 * read nor written. dk and dv are summed over a group. An output with no data is not wanted;
 * the others are overwritten. */
typedef struct ane_attention_grad_args {
    const ane_attention_args *fwd;
    float dscale;
    bool masked;                        /* dS is 0 where a bool mask is not `keep`, also in
                                           rows where fill makes weights of such scores */
    ane_mat5 dout, dq, dk, dv;
} ane_attention_grad_args;
ane_status ane_attention_grad(const ane_attention_grad_args *args, ane_error *err);
void ane_attention_grad_room(const ane_attention_grad_args *args, struct ane_room *room);

#endif
