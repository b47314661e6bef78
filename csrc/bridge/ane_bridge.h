/* The flat C bridge that existing clients call through ctypes or link against: the same
 * signatures and meanings, with the checks that were missing.
 *
 * - Programs run on the engine where there is one, else on the CPU device.
 * - Index i of an input or output is the i-th parameter or result of the text.
 * - What the original overran or ignored (a bad index, a wrong size, NULL) is refused, and
 *   ane_bridge_last_error() says why. After a failed eval, read_output gives NaN bytes.
 * - One thread uses a handle at a time; different handles are independent. Error texts are
 *   per thread.
 */
#ifndef ANE_BRIDGE_H
#define ANE_BRIDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define ANE_BRIDGE_API __attribute__((visibility("default")))
#else
#define ANE_BRIDGE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ANEKernelHandle ANEKernelHandle;

/* 0, or -1 with an error. Idempotent. Compiling before it fails. */
ANE_BRIDGE_API int ane_bridge_init(void);

/* Constant weights: none (NULL or length 0), or one blob bound to
 * @model_path/weights/weight.bin; copied, so the caller may free it at once. Sizes are
 * bytes, at least what the program needs; data lies packed, row-major, at the start.
 * NULL on failure. */
ANE_BRIDGE_API ANEKernelHandle *ane_bridge_compile(
    const char *mil_text, size_t mil_len, const uint8_t *weight_data, size_t weight_len,
    int n_inputs, const size_t *input_sizes, int n_outputs, const size_t *output_sizes);

/* The same with n_weights named blobs ("@model_path/weights/wq.bin", ...). A name without
 * @model_path/ is below the model's folder all the same; absolute names and ".." are
 * refused. */
ANE_BRIDGE_API ANEKernelHandle *ane_bridge_compile_multi_weights(
    const char *mil_text, size_t mil_len, const char **weight_names,
    const uint8_t **weight_datas, const size_t *weight_lens, int n_weights, int n_inputs,
    const size_t *input_sizes, int n_outputs, const size_t *output_sizes);

/* Weights are the parameters behind the n_inputs activations, written by write_weight
 * (index 0 is the first weight) or write_input; one result. */
ANE_BRIDGE_API ANEKernelHandle *ane_bridge_compile_dyn(
    const char *mil_text, size_t mil_len, int n_inputs, const size_t *input_sizes,
    int n_weights, const size_t *weight_sizes, size_t output_size);

ANE_BRIDGE_API bool ane_bridge_eval(ANEKernelHandle *kernel);
ANE_BRIDGE_API void ane_bridge_write_input(ANEKernelHandle *kernel, int idx,
                                           const void *data, size_t bytes);
ANE_BRIDGE_API void ane_bridge_read_output(ANEKernelHandle *kernel, int idx, void *data,
                                           size_t bytes);
ANE_BRIDGE_API void ane_bridge_write_weight(ANEKernelHandle *kernel, int idx,
                                            const void *fp16_data, size_t bytes);
/* count elements, rounded to fp16 (nearest even); the weight must be fp16. */
ANE_BRIDGE_API void ane_bridge_write_weight_f32(ANEKernelHandle *kernel, int idx,
                                                const float *fp32_data, size_t count);
/* The whole of one kernel's output into another kernel's input (a copy). */
ANE_BRIDGE_API void ane_bridge_copy_io(ANEKernelHandle *src, int src_out_idx,
                                       ANEKernelHandle *dst, int dst_in_idx);
/* Process-wide request; what the system answered is in the error text. */
ANE_BRIDGE_API void ane_bridge_begin_realtime(void);
ANE_BRIDGE_API void ane_bridge_end_realtime(void);
ANE_BRIDGE_API void ane_bridge_free(ANEKernelHandle *kernel);

/* Real compiles since start or reset; a cache hit does not count. */
ANE_BRIDGE_API int ane_bridge_get_compile_count(void);
ANE_BRIDGE_API void ane_bridge_reset_compile_count(void);

/* A one-record fp16 weight file image (128-byte header) of src[rows, cols]; the transposed
 * form stores element [j*rows + i] = src[i*cols + j]. Freed with ane_bridge_free_blob. */
ANE_BRIDGE_API uint8_t *ane_bridge_build_weight_blob(const float *src, int rows, int cols,
                                                     size_t *out_len);
ANE_BRIDGE_API uint8_t *ane_bridge_build_weight_blob_transposed(const float *src, int rows,
                                                                int cols, size_t *out_len);
ANE_BRIDGE_API void ane_bridge_free_blob(void *ptr);
/* A 64-byte header and the int8 values. quantized: one scale max|w|/127 for the tensor. */
ANE_BRIDGE_API uint8_t *ane_bridge_build_weight_blob_int8(const int8_t *src, int rows,
                                                          int cols, size_t *out_len);
ANE_BRIDGE_API uint8_t *ane_bridge_build_weight_blob_quantized(const float *src, int rows,
                                                               int cols, float *out_scale,
                                                               size_t *out_len);

/* Why the last failing call of this thread failed; "" when none did. Valid until the next
 * call of this thread. */
ANE_BRIDGE_API const char *ane_bridge_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
