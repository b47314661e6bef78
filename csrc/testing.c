#include "testing.h"

#include "base/mem.h"
#include "backend/cpu/cpu.h"
#include "base/sync.h"
#include "ir/ops.h"
#include "kernels/kernels.h"
#include "pass/memplan.h"
#include "program.h"
#include "train/train.h"
#include "weights/blob.h"
#include "weights/weights.h"

#include <string.h>

#define ANE_TESTING_MAP(X)                                                                 \
    /* kernels */                                                                      \
    X(ane_attention_with) X(ane_attention_grad_with)                                   \
    X(ane_conv_with) X(ane_conv_pack_with) X(ane_conv_pack_bytes_with) X(ane_pool_with)  \
    X(ane_kernels_peak)                                                                \
    X(ane_kernels_count) X(ane_kernels_at) X(ane_kernels_get) X(ane_whole_for)                 \
    X(ane_gemm_with)                                                                   \
    X(ane_gemm_pack_with) X(ane_gemm_pack_bytes_with) X(ane_gemm_name)                 \
    X(ane_gemm_scratch) X(ane_convert_with) X(ane_parallel_for) X(ane_worker_index)    \
    /* ir: the op table and the reference evaluator */                                 \
    X(ane_op_row_count) X(ane_op_row_at) X(ane_program_function) X(ane_rt_tensor)      \
    X(ane_rt_release) X(ane_rt_round) X(ane_function_eval)                             \
    /* weights, train */                                                                \
    X(ane_train_at) X(ane_train_force) X(ane_blob_find) X(ane_blob_layout)             \
    X(ane_blob_emit) X(ane_blob_deviations) X(ane_json_init) X(ane_json_peek)          \
    X(ane_json_object) X(ane_json_key) X(ane_json_array) X(ane_json_item)              \
    X(ane_json_string) X(ane_json_u64) X(ane_json_skip) X(ane_json_end)                \
    X(ane_json_decode)                                                                 \
    /* the rest */                                                                     \
    X(ane_mem_fail_after)                                                              \
    X(ane_mem_watch) X(ane_mem_watch_read) X(ane_memplan) X(ane_scratch_used) X(ane_kept_packs)                                                 \
    X(ane_shadow_create)                                                               \
    X(ane_shadow_destroy)                                                              \
    X(ane_shadow_write)                                                                \
    X(ane_shadow_read)                                                                 \
    X(ane_shadow_run)

void (*ane__testing(const char *name))(void) {
    static const struct {
        const char *name;
        void (*fn)(void);
    } table[] = {
#define X(f) {#f, (void (*)(void))f},
        ANE_TESTING_MAP(X)
#undef X
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, name)) return table[i].fn;
    ane__abort(__FILE__, __LINE__, name);
}
