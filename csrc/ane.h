/* anetorch: the one public header of the C library. Self-contained.
 *
 * Conventions
 *  - Every call that can fail returns ane_status (ANE_OK is 0) and takes a caller-owned
 *    ane_error (may be NULL) that is written on failure only. *out is set only on ANE_OK.
 *  - create/parse/load give the caller one reference; retain/release count; release(NULL)
 *    is fine. `const T *` arguments are borrowed for the call unless said otherwise.
 *  - Sizes are bytes, strides are bytes, shapes are elements. Layout is row-major.
 *  - Nothing prints, nothing exits; see ane_set_log for messages.
 */
#ifndef ANE_H
#define ANE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ANE_VERSION "0.1.0"
#define ANE_ABI_VERSION 0

#if defined(_WIN32)
#define ANE_API
#else
#define ANE_API __attribute__((visibility("default")))
#endif

#define ANE_MAX_RANK 8

/* ------------------------------------------------------------------ status, errors */

/*        name         text                      Python exception                      */
#define ANE_STATUS_MAP(X)                                                               \
    X(OK, "ok")                                                                         \
    X(NOMEM, "out of memory")                /* MemoryError */                          \
    X(INVALID, "invalid argument")           /* ValueError */                           \
    X(SHAPE, "shape mismatch")               /* ValueError */                           \
    X(DTYPE, "dtype mismatch")               /* TypeError */                            \
    X(INDEX, "index out of range")           /* IndexError */                           \
    X(PARSE, "malformed text or file")       /* anetorch.MILError (a SyntaxError) */    \
    X(OS, "system call failed")              /* OSError, code = errno */                \
    X(UNSUPPORTED, "not supported here")     /* NotImplementedError */                  \
    X(BUSY, "in use")                        /* BufferError */                          \
    X(NOT_FOUND, "not found")                /* KeyError */                             \
    X(CANCELLED, "cancelled")                /* pending exception, else RuntimeError */ \
    X(RUNTIME, "run failed")                 /* RuntimeError */

typedef enum ane_status {
#define X(name, text) ANE_STATUS_##name,
    ANE_STATUS_MAP(X)
#undef X
} ane_status;

#define ANE_OK ANE_STATUS_OK
#define ANE_ERR_NOMEM ANE_STATUS_NOMEM
#define ANE_ERR_INVALID ANE_STATUS_INVALID
#define ANE_ERR_SHAPE ANE_STATUS_SHAPE
#define ANE_ERR_DTYPE ANE_STATUS_DTYPE
#define ANE_ERR_INDEX ANE_STATUS_INDEX
#define ANE_ERR_PARSE ANE_STATUS_PARSE
#define ANE_ERR_OS ANE_STATUS_OS
#define ANE_ERR_UNSUPPORTED ANE_STATUS_UNSUPPORTED
#define ANE_ERR_BUSY ANE_STATUS_BUSY
#define ANE_ERR_NOT_FOUND ANE_STATUS_NOT_FOUND
#define ANE_ERR_CANCELLED ANE_STATUS_CANCELLED
#define ANE_ERR_RUNTIME ANE_STATUS_RUNTIME

typedef struct ane_error {
    ane_status status;
    int line, column;       /* 1-based position in a text; 0 where there is none */
    long long code;         /* errno, NSError code, ... ; 0 where there is none */
    char file[256];         /* file name, or "" */
    char message[1024];
} ane_error;

ANE_API const char *ane_status_text(ane_status status);
ANE_API const char *ane_version(void);

typedef void ane_log_fn(void *arg, const char *line);
/* One callback for the process; NULL restores silence. */
ANE_API void ane_set_log(ane_log_fn *fn, void *arg);

/* ------------------------------------------------------------------ element types */

/*   enum     MIL name      NumPy name        short   bits  blob code  MIL.proto code */
#define ANE_DTYPE_MAP(X)                                                               \
    X(F16, "fp16", "float16", "f16", 16, 1, 10)                                         \
    X(F32, "fp32", "float32", "f32", 32, 2, 11)                                         \
    X(F64, "fp64", "float64", "f64", 64, 0, 12)                                         \
    X(BF16, "bf16", "bfloat16", "bf16", 16, 5, 13)                                      \
    X(BOOL, "bool", "bool", "b1", 8, 0, 1)                                              \
    X(I8, "int8", "int8", "i8", 8, 4, 21)                                               \
    X(I16, "int16", "int16", "i16", 16, 6, 22)                                          \
    X(I32, "int32", "int32", "i32", 32, 14, 23)                                         \
    X(I64, "int64", "int64", "i64", 64, 0, 24)                                          \
    X(U8, "uint8", "uint8", "u8", 8, 3, 31)                                             \
    X(U16, "uint16", "uint16", "u16", 16, 7, 32)                                        \
    X(U32, "uint32", "uint32", "u32", 32, 15, 33)                                       \
    X(U64, "uint64", "uint64", "u64", 64, 0, 34)                                        \
    X(STRING, "string", "str", "str", 0, 0, 2)                                          \
    X(I4, "int4", "int4", "i4", 4, 8, 25)                                               \
    X(U4, "uint4", "uint4", "u4", 4, 11, 35)                                            \
    X(U2, "uint2", "uint2", "u2", 2, 10, 36)                                            \
    X(U1, "uint1", "uint1", "u1", 1, 9, 37)                                             \
    X(U6, "uint6", "uint6", "u6", 6, 13, 38)                                            \
    X(U3, "uint3", "uint3", "u3", 3, 12, 39)                                            \
    X(F8E4M3, "fp8e4m3fn", "float8_e4m3fn", "f8e4m3", 8, 16, 40)                        \
    X(F8E5M2, "fp8e5m2", "float8_e5m2", "f8e5m2", 8, 17, 41)

typedef enum ane_dtype {
#define X(name, mil, numpy, brief, bits, blob, proto) ANE_##name,
    ANE_DTYPE_MAP(X)
#undef X
    ANE_DTYPE_COUNT
} ane_dtype;

ANE_API const char *ane_dtype_name(ane_dtype dtype);        /* NumPy's name: "float16" */
ANE_API const char *ane_dtype_mil_name(ane_dtype dtype);    /* MIL's name: "fp16" */
ANE_API int ane_dtype_bits(ane_dtype dtype);                /* 0 for string */
ANE_API size_t ane_dtype_size(ane_dtype dtype);             /* bytes; 0 for sub-byte and string */
/* Accepts NumPy's, MIL's and the short names. */
ANE_API ane_status ane_dtype_parse(const char *name, ane_dtype *out, ane_error *err);

/* ------------------------------------------------------------------ surfaces, tensors */

typedef enum ane_memory {
    ANE_MEM_HEAP,
    ANE_MEM_SHM,            /* memfd on Linux, shm_open elsewhere */
    ANE_MEM_IOSURFACE,      /* macOS */
    ANE_MEM_DMA,            /* Linux dma-heap */
    ANE_MEM_EXTERNAL        /* wraps memory that somebody else owns */
} ane_memory;

typedef enum ane_access { ANE_READ = 1, ANE_WRITE = 2, ANE_READWRITE = 3 } ane_access;

typedef struct ane_surface ane_surface;

ANE_API const char *ane_memory_name(ane_memory kind);
ANE_API bool ane_memory_available(ane_memory kind);
ANE_API ane_memory ane_memory_default(void);
/* bytes may be 0 (one byte is then held). Contents are zero. name may be NULL. */
ANE_API ane_status ane_surface_create(ane_memory kind, size_t bytes, const char *name,
                                      ane_surface **out, ane_error *err);
/* The same, but small shm surfaces get a descriptor of their own (offset 0) instead of a slot
 * of a common file: for sharing with code that is not ours. */
ANE_API ane_status ane_surface_create_apart(ane_memory kind, size_t bytes, const char *name,
                                            ane_surface **out, ane_error *err);
/* Wraps [base, base+bytes); release(arg) runs once, when the last reference goes. */
ANE_API ane_status ane_surface_wrap(void *base, size_t bytes, bool readonly,
                                    void (*release)(void *arg), void *arg,
                                    ane_surface **out, ane_error *err);
ANE_API ane_surface *ane_surface_retain(ane_surface *s);
ANE_API void ane_surface_release(ane_surface *s);
ANE_API void *ane_surface_base(const ane_surface *s);
ANE_API size_t ane_surface_bytes(const ane_surface *s);     /* usable bytes, not rounded */
ANE_API size_t ane_surface_capacity(const ane_surface *s);  /* what the system gave */
ANE_API ane_memory ane_surface_memory(const ane_surface *s);
ANE_API bool ane_surface_readonly(const ane_surface *s);
ANE_API uint64_t ane_surface_identity(const ane_surface *s); /* fresh per allocation, never 0 */
ANE_API const char *ane_surface_name(const ane_surface *s);
/* Counted. On IOSurface these are the platform's locks, elsewhere only the count. */
ANE_API ane_status ane_surface_lock(ane_surface *s, ane_access access, ane_error *err);
ANE_API ane_status ane_surface_unlock(ane_surface *s, ane_access access, ane_error *err);
/* Validity of a byte range. A failed or cancelled run marks its outputs invalid; a full
 * write or a successful run restores them. why names the failure. */
ANE_API void ane_surface_invalidate(ane_surface *s, size_t offset, size_t bytes,
                                    const char *why);
ANE_API void ane_surface_validate(ane_surface *s, size_t offset, size_t bytes);
ANE_API ane_status ane_surface_check(const ane_surface *s, size_t offset, size_t bytes,
                                     ane_error *err);
/* Kernels may keep what they have made of an operand (matrices in a product's own order) while
 * it is not written. They do so only for surfaces whose writes are all known, which the owner
 * promises by `track`: from then on whoever writes by other means than this library's functions
 * says so, by ane_tensor_written or `touch` after a write, or by `expose` before (true) and after
 * (false) a time in which somebody may write. Counted. Memory that is wrapped, a device's, another
 * process's or a forked child's is never trusted. */
ANE_API void ane_surface_track(ane_surface *s);
ANE_API void ane_surface_touch(ane_surface *s, size_t offset, size_t bytes);
ANE_API void ane_surface_expose(ane_surface *s, bool on);

/* Sharing with other processes; UNSUPPORTED for heap and external memory. A descriptor is the
 * surface's own (do not close it) and its file position is *offset. A handle is a short text
 * naming this process' descriptor; lookup opens it through /proc (Linux), and fails with
 * NOT_FOUND once the holder closed it. seal: refuse a file that could shrink under us. */
ANE_API ane_status ane_surface_descriptor(ane_surface *s, int *fd, size_t *offset,
                                          ane_error *err);
ANE_API ane_status ane_surface_from_descriptor(int fd, size_t offset, size_t bytes, bool seal,
                                               ane_surface **out, ane_error *err);
ANE_API ane_status ane_surface_handle(ane_surface *s, char *text, size_t n, ane_error *err);
ANE_API ane_status ane_surface_lookup(const char *text, ane_surface **out, ane_error *err);
/* Named POSIX shared memory: create it with a name that begins with '/'. The name goes when
 * its creator releases the surface (mappings stay), or by unlink. */
ANE_API ane_status ane_surface_open(const char *name, size_t bytes, ane_surface **out,
                                    ane_error *err);
ANE_API ane_status ane_surface_unlink(const char *name, ane_error *err);

/* Recycling by size class. take gives a surface with a fresh identity and arbitrary contents;
 * its last release returns it while at most `limit` bytes idle. destroy may come before. */
typedef struct ane_surface_pool ane_surface_pool;
ANE_API ane_status ane_surface_pool_create(ane_memory memory, size_t limit,
                                           ane_surface_pool **out, ane_error *err);
ANE_API void ane_surface_pool_destroy(ane_surface_pool *p);
ANE_API void ane_surface_pool_clear(ane_surface_pool *p);
ANE_API ane_status ane_surface_pool_take(ane_surface_pool *p, size_t bytes,
                                         ane_surface **out, ane_error *err);
ANE_API void ane_surface_pool_stats(ane_surface_pool *p, size_t *held, uint64_t *hits,
                                    uint64_t *misses);

/* A view: plain data. Whoever keeps one retains its surface; arguments are borrowed. */
typedef struct ane_tensor {
    ane_surface *surface;
    size_t offset;                      /* bytes from the surface's base to element 0 */
    ane_dtype dtype;
    int rank;
    int64_t shape[ANE_MAX_RANK];
    int64_t strides[ANE_MAX_RANK];      /* bytes; negative and zero are legal */
} ane_tensor;

/* Bytes of a row-major tensor, every product checked. */
ANE_API ane_status ane_shape_size(ane_dtype dtype, int rank, const int64_t *shape,
                                  size_t *bytes, ane_error *err);
/* Row-major view at byte `offset`; checks that it fits. */
ANE_API ane_status ane_tensor_init(ane_tensor *t, ane_surface *s, size_t offset,
                                   ane_dtype dtype, int rank, const int64_t *shape,
                                   ane_error *err);
ANE_API bool ane_tensor_contiguous(const ane_tensor *t);
ANE_API int64_t ane_tensor_count(const ane_tensor *t);      /* elements */
ANE_API void *ane_tensor_data(const ane_tensor *t);         /* address of element 0 */
/* Lowest byte and one past the highest byte, as offsets into the surface. */
ANE_API void ane_tensor_extent(const ane_tensor *t, size_t *lo, size_t *hi);
/* dst[...] = src[...], converting dtype (round to nearest even; float to integer
 * truncates and saturates). Shapes must be equal. Threaded. Overlap is an error unless
 * the two are the same view. */
ANE_API ane_status ane_tensor_copy(const ane_tensor *dst, const ane_tensor *src,
                                   ane_error *err);
/* A row-major tensor of its own with src's shape, dtype and values; the caller holds the
 * surface's reference. */
ANE_API ane_status ane_tensor_create_like(ane_memory kind, const ane_tensor *src,
                                          const char *name, ane_tensor *out, ane_error *err);
/* Whether every element lies inside the surface, for views made by hand. */
ANE_API ane_status ane_tensor_check(const ane_tensor *t, ane_error *err);
/* Whether two views share a byte; may say yes for interleaved views that do not. */
ANE_API bool ane_tensor_overlap(const ane_tensor *a, const ane_tensor *b);
/* ane_surface_check of the view's range; and the mark of a full write, to be called by
 * whoever writes through ane_tensor_data (of a part: ane_surface_touch). */
ANE_API ane_status ane_tensor_readable(const ane_tensor *t, ane_error *err);
ANE_API void ane_tensor_written(const ane_tensor *t);
/* Integers that stand for real numbers: scale * (stored - zero_point). Plain data beside a
 * tensor: no operation looks at it by itself. */
typedef struct ane_quantization {
    int axis;                           /* that the scales go along; -1: one for all */
    size_t n;                           /* scales: 1, or the axis' length */
    const float *scale;                 /* finite and above 0 */
    const int64_t *zero_point;          /* as many, in the dtype's range; NULL: zeros */
} ane_quantization;
/* t NULL: what can be said without a tensor. t's dtype is an integer of 8, 16 or 32 bits.
 * Messages are "[quantization] FIELD: expected ..., got ...". */
ANE_API ane_status ane_quantization_check(const ane_quantization *q, const ane_tensor *t,
                                          ane_error *err);
/* The real numbers, into a row-major float tensor of src's shape: rounded once for integers
 * of 8 and 16 bits. Threaded. */
ANE_API ane_status ane_tensor_dequantize(const ane_tensor *dst, const ane_tensor *src,
                                         const ane_quantization *q, ane_error *err);
/* Images: 8 bits per component, rows padded to 64 bytes. shape is [height, width, components]
 * or, for one byte per pixel, [height, width]; NV12 has 3/2 * height rows, the last third
 * being interleaved U and V. */
typedef enum ane_image {
    ANE_IMAGE_NONE,
    ANE_IMAGE_YUYV,
    ANE_IMAGE_NV12,
    ANE_IMAGE_RGBA,
    ANE_IMAGE_BGRA,
    ANE_IMAGE_RGB,
    ANE_IMAGE_GREY
} ane_image;
typedef struct ane_image_layout {
    ane_image format;
    uint32_t fourcc;                    /* IOSurface's pixel format */
    int bytes_per_pixel;
    int64_t width, height;
    size_t row_bytes, bytes;
    int rank;
    int64_t shape[3], strides[3];
} ane_image_layout;
ANE_API const char *ane_image_name(ane_image format);   /* "RGBA"; "" for none */
ANE_API ane_status ane_image_layout_init(ane_image_layout *out, const char *format,
                                         int64_t width, int64_t height, ane_error *err);
/* A view over a fresh surface; the caller holds its reference. */
ANE_API ane_status ane_image_create(ane_memory kind, const ane_image_layout *layout,
                                    const char *name, ane_tensor *out, ane_error *err);

/* macOS: id (0: not an IOSurface) and borrowed pointer; from_iosurface retains ref and checks
 * bytes against its allocation. */
ANE_API uint32_t ane_surface_iosurface_id(const ane_surface *s);
ANE_API void *ane_surface_iosurface_ref(const ane_surface *s);
ANE_API ane_status ane_surface_from_iosurface(void *ref, size_t bytes, ane_surface **out,
                                              ane_error *err);

/* One element, with ane_tensor_copy's rounding; any alignment. */
ANE_API ane_status ane_element_convert(ane_dtype dst_dtype, void *dst, ane_dtype src_dtype,
                                       const void *src, ane_error *err);

/* ------------------------------------------------------------------ programs */

typedef struct ane_program ane_program;

/* Weight files of a text. Called with the path as written in BLOBFILE; gives a retained
 * surface over the file's bytes. */
typedef ane_status ane_weight_open_fn(void *arg, const char *path, ane_surface **out,
                                      ane_error *err);

typedef struct ane_parse_options {
    size_t size;                        /* sizeof(ane_parse_options) */
    const char *filename;               /* for messages; NULL: "<mil>" */
    const char *weights_dir;            /* replaces "@model_path"; NULL: none */
    ane_weight_open_fn *open;           /* tried first; NULL: none */
    void *open_arg;
    bool allow_missing_weights;         /* blobs that cannot be opened stay without data */
} ane_parse_options;

ANE_API ane_status ane_program_create(const char *version, ane_program **out,
                                      ane_error *err);
/* text need not end in NUL. opts may be NULL. */
ANE_API ane_status ane_program_parse(const char *text, size_t n,
                                     const ane_parse_options *opts, ane_program **out,
                                     ane_error *err);
ANE_API ane_program *ane_program_retain(ane_program *p);
ANE_API void ane_program_release(ane_program *p);
/* MIL text, malloc'd, NUL-terminated; the caller frees it with ane_free. spelling is
 * "1.0", "1.3" or NULL (the program's own). */
ANE_API ane_status ane_program_print(const ane_program *p, const char *spelling,
                                     char **text, size_t *n, ane_error *err);
ANE_API void ane_free(void *p);

/* ------------------------------------------------------------------ types, constants */

typedef enum ane_type_kind {
    ANE_T_TENSOR,       /* scalars are rank 0; strings have dtype ANE_STRING */
    ANE_T_LIST,
    ANE_T_TUPLE,
    ANE_T_DICT,
    ANE_T_STATE
} ane_type_kind;

/* Types and constants belong to a program and die with it; read only. */
typedef struct ane_type {
    ane_type_kind kind;
    ane_dtype dtype;                    /* TENSOR */
    int rank;                           /* TENSOR */
    int64_t dims[ANE_MAX_RANK];         /* TENSOR; negative: unknown */
    const struct ane_type *elem;        /* LIST, STATE: element; DICT: key */
    const struct ane_type *elem2;       /* DICT: value */
    int64_t length;                     /* LIST: -1 unknown */
    int n;                              /* TUPLE */
    const struct ane_type *const *items;        /* TUPLE */
} ane_type;

/* Constructors allocate in the program; NULL: out of memory, rank above ANE_MAX_RANK, or
 * nesting deeper than 16. */
ANE_API const ane_type *ane_type_tensor(ane_program *p, ane_dtype dtype, int rank,
                                        const int64_t *dims);
ANE_API const ane_type *ane_type_list(ane_program *p, const ane_type *elem, int64_t length);
ANE_API const ane_type *ane_type_state(ane_program *p, const ane_type *elem);
ANE_API const ane_type *ane_type_tuple(ane_program *p, const ane_type *const *items, int n);
ANE_API const ane_type *ane_type_dict(ane_program *p, const ane_type *key,
                                      const ane_type *value);
/* "tensor<fp16, [1, 8, ?]>" into buf, cut where it does not fit; returns buf. */
#define ANE_TYPE_TEXT 256
ANE_API char *ane_type_text(const ane_type *t, char *buf, size_t n);

typedef struct ane_const {
    const ane_type *type;
    /* TENSOR: packed row-major, little-endian, sub-byte types LSB first; ANE_STRING: an
     * array of `const char *` (NUL-terminated UTF-8). NULL when a blob is absent. */
    const void *data;
    size_t bytes;
    ane_surface *owner;                 /* what data points into; NULL: the program */
    const char *blob_path;              /* as written; NULL: inline in the text */
    uint64_t blob_offset;               /* of the record's descriptor */
    int n;                              /* LIST, TUPLE: items; DICT: 2n, key then value */
    const struct ane_const *const *items;
} ane_const;

/* Copies data (up to 64 bytes into the program, more into a new heap surface). */
ANE_API const ane_const *ane_const_tensor(ane_program *p, const ane_type *type,
                                          const void *data, size_t bytes, ane_error *err);
/* Views owner's bytes; retains owner. */
ANE_API const ane_const *ane_const_view(ane_program *p, const ane_type *type,
                                        ane_surface *owner, size_t offset, size_t bytes,
                                        ane_error *err);
ANE_API const ane_const *ane_const_string(ane_program *p, const char *s, ane_error *err);
/* LIST, TUPLE: n items; DICT: n = 2 * pairs, key then value. */
ANE_API const ane_const *ane_const_items(ane_program *p, const ane_type *type,
                                         const ane_const *const *items, int n,
                                         ane_error *err);

/* ------------------------------------------------------------------ the graph
 *
 * Functions, blocks, operations and values of a program have numeric ids, never 0 and
 * never given twice. A call with the id of something removed fails with NOT_FOUND; it
 * cannot touch anything else. Strings and structs handed out live as long as the program
 * (names until the next rename). Edits are not thread-safe. */

ANE_API const char *ane_program_version(const ane_program *p);
ANE_API uint64_t ane_program_generation(const ane_program *p);  /* grows with every edit */
/* Structural check of everything, types inferred anew. */
ANE_API ane_status ane_program_verify(const ane_program *p, ane_error *err);
ANE_API ane_status ane_program_clone(const ane_program *p, ane_program **out,
                                     ane_error *err);
/* A new program of one function, the named parameters (n of them) with other types of
 * the same rank and dtype, and what follows from them inferred anew: how flexible shapes
 * become fixed ones. */
ANE_API ane_status ane_program_specialize(const ane_program *p, const char *function,
                                          const char *const *names,
                                          const ane_type *const *types, int n,
                                          ane_program **out, ane_error *err);
/* The same functions, statement for statement: what prints to the same text. Versions may
 * differ (they only say how types are spelled), and so may the places in a file. */
ANE_API bool ane_program_same(const ane_program *a, const ane_program *b);

typedef struct ane_warning {
    int line, column;
    const char *message;
} ane_warning;
ANE_API size_t ane_program_warnings(const ane_program *p, const ane_warning **out);

typedef enum ane_list {
    ANE_LIST_FUNCTIONS,                 /* id is ignored */
    ANE_LIST_FUNCTION_PARAMS,           /* values */
    ANE_LIST_BLOCK_PARAMS, ANE_LIST_BLOCK_OPS, ANE_LIST_BLOCK_OUTPUTS,
    ANE_LIST_OP_RESULTS, ANE_LIST_OP_BLOCKS,
    ANE_LIST_VALUE_USERS                /* ops with an argument naming it; a whole scan */
} ane_list;
/* Ids in order: at most cap are stored, *n is the true count. */
ANE_API ane_status ane_graph_list(const ane_program *p, ane_list which, uint32_t id,
                                  uint32_t *out, size_t cap, size_t *n, ane_error *err);

typedef struct ane_function_info {
    const char *name, *opset_tag;
    int opset;                          /* 15 to 18 */
    uint32_t body;
    int n_attrs;
} ane_function_info;
typedef struct ane_block_info {
    uint32_t function, owner;           /* owner: an op, 0 for a body or a loose block */
} ane_block_info;
typedef struct ane_op_info {
    const char *op, *name;              /* name: the attribute; NULL: none */
    uint32_t block;
    int opset;                          /* of the definition that applies */
    int n_params, n_attrs;
    bool inlined;                       /* a const written in place as an argument */
    int line, column;                   /* 0: built */
} ane_op_info;
typedef struct ane_argument_info {
    const char *name;
    int n;                              /* values; 0: absent, unless tuple */
    bool tuple;
    const ane_const *default_value;     /* NULL: none */
} ane_argument_info;
typedef struct ane_value_info {
    const char *name;                   /* "" for a const written in place */
    const ane_type *type;
    uint32_t op, block;                 /* op 0: parameter of block */
    int index, uses;
    const ane_const *konst;             /* known value, or NULL */
} ane_value_info;
ANE_API ane_status ane_graph_function(const ane_program *p, uint32_t id,
                                      ane_function_info *out, ane_error *err);
ANE_API ane_status ane_graph_block(const ane_program *p, uint32_t id, ane_block_info *out,
                                   ane_error *err);
ANE_API ane_status ane_graph_op(const ane_program *p, uint32_t id, ane_op_info *out,
                                ane_error *err);
ANE_API ane_status ane_graph_value(const ane_program *p, uint32_t id, ane_value_info *out,
                                   ane_error *err);
/* Parameter i of an op's signature, and value k given for it. */
ANE_API ane_status ane_graph_argument(const ane_program *p, uint32_t op, int i,
                                      ane_argument_info *out, ane_error *err);
ANE_API uint32_t ane_graph_argument_value(const ane_program *p, uint32_t op, int i, int k);
/* Attribute i of a function or op, or of the program (id 0). */
ANE_API ane_status ane_graph_attr(const ane_program *p, uint32_t id, int i,
                                  const char **name, const ane_const **value,
                                  ane_error *err);
/* Sets, or with value NULL removes, an attribute of a function or of the program (id 0). */
ANE_API ane_status ane_graph_set_attr(ane_program *p, uint32_t id, const char *name,
                                      const ane_const *value, ane_error *err);

ANE_API ane_status ane_graph_add_function(ane_program *p, const char *name,
                                          const char *opset_tag, const char *const *names,
                                          const ane_type *const *types, int n,
                                          uint32_t *out, ane_error *err);
typedef struct ane_argument {
    const char *name;
    int n;
    bool tuple;
    const uint32_t *values;
} ane_argument;
typedef struct ane_operation {
    const char *op;
    const char *name;                   /* attribute; NULL: none */
    const ane_argument *args;
    int n_args;
    int n_results;                      /* -1: as inferred */
    const char *const *result_names;    /* NULL, or n_results entries, each may be NULL */
    const uint32_t *blocks;             /* loose blocks */
    int n_blocks;
} ane_operation;
/* Checks, infers the result types and links the op at the end of the block, or in front of
 * op `before` when that is not 0. */
ANE_API ane_status ane_graph_add_op(ane_program *p, uint32_t block, uint32_t before,
                                    const ane_operation *op, uint32_t *out, ane_error *err);
/* name NULL: made up. inlined: written in place where it is used, without a name. */
ANE_API ane_status ane_graph_add_const(ane_program *p, uint32_t block, uint32_t before,
                                       const ane_const *value, const char *name,
                                       bool inlined, uint32_t *out, ane_error *err);
/* A loose block of a function, to be given to ane_graph_add_op once it is filled. */
ANE_API ane_status ane_graph_add_block(ane_program *p, uint32_t function, uint32_t *out,
                                       ane_error *err);
ANE_API ane_status ane_graph_add_block_param(ane_program *p, uint32_t block,
                                             const char *name, const ane_type *type,
                                             uint32_t *out, ane_error *err);
ANE_API ane_status ane_graph_set_outputs(ane_program *p, uint32_t block,
                                         const uint32_t *values, int n, ane_error *err);
ANE_API ane_status ane_graph_remove_op(ane_program *p, uint32_t op, ane_error *err);
/* Every use of `from` becomes `to`. */
ANE_API ane_status ane_graph_replace(ane_program *p, uint32_t from, uint32_t to,
                                     ane_error *err);
ANE_API ane_status ane_graph_rename(ane_program *p, uint32_t value, const char *name,
                                    ane_error *err);

/* The table of operations: parameter i of `op` in an opset (15 to 18). */
typedef struct ane_parameter_info {
    const char *name;
    ane_type_kind kind;                 /* TENSOR, LIST, STATE; TUPLE stands for any */
    uint32_t dtypes;                    /* bit set of ane_dtype; 0: any */
    int var;                            /* parameters with one number share a dtype; -1 */
    bool is_const, is_vector, is_tuple, optional;
    bool attribute;                     /* written in [], by value: ios16's constexpr_* */
} ane_parameter_info;
/* Number of parameters, or -1 when the opset has no such op. */
ANE_API int ane_operation_params(const char *op, int opset);
ANE_API bool ane_operation_param(const char *op, int opset, int i, ane_parameter_info *out);
/* ------------------------------------------------------------------ packing
 *
 * The engine's dynamic-weight form: one surface [1, R, 1, S] holds activations and weights
 * side by side along the last axis, and one the results stacked along channels. */

/* A port of the original program in a packed surface: element k of it (row-major) is in row
 * row + k / columns and column column + k % columns. */
typedef struct ane_slot {
    const char *name;
    ane_dtype dtype;
    int rank;
    int64_t dims[ANE_MAX_RANK];
    int64_t row, column, rows, columns;
} ane_slot;

typedef struct ane_packing {
    size_t n_in, n_out;
    const ane_slot *in, *out;           /* in the original order */
    const char *input, *output;         /* packed ports; NULL: that side had one port and
                                           is as it was */
    int64_t in_rows, in_columns, out_rows, out_columns;
} ane_packing;

/* A program that computes the same from packed ports. *layout lives as long as *out. Fails
 * with UNSUPPORTED where a side's ports differ in element type, have open shapes or no
 * elements, or where there is nothing to pack. */
ANE_API ane_status ane_program_pack(const ane_program *p, const char *function,
                                    ane_program **out, const ane_packing **layout,
                                    ane_error *err);
/* Copies a port's tensor into its slot of a packed tensor [1, R, 1, S], or out of it. */
ANE_API ane_status ane_slot_copy(const ane_slot *slot, const ane_tensor *packed,
                                 const ane_tensor *port, bool into, ane_error *err);
/* ------------------------------------------------------------------ lint */

typedef enum ane_severity { ANE_INFO, ANE_WARNING, ANE_ERROR } ane_severity;

/* Chip generations a rule speaks of; bit sets. */
typedef enum ane_chip {
    ANE_CHIP_M1 = 1, ANE_CHIP_M2 = 2, ANE_CHIP_M3 = 4, ANE_CHIP_M4 = 8, ANE_CHIP_M5 = 16,
    ANE_CHIP_ALL = 31
} ane_chip;

/* The private in-memory compiler, or Core ML's own way to the engine. */
typedef enum ane_route { ANE_ROUTE_INMEMORY = 1, ANE_ROUTE_COREML = 2 } ane_route;

typedef struct ane_lint_rule {
    const char *id;                     /* "ANE01": stable */
    const char *name;                   /* "concat": for people and for disabling */
    ane_severity severity;
    unsigned chips, routes;
    const char *message;                /* what happens */
    const char *evidence;               /* who saw it, on what; who contradicts */
    const char *rewrite;                /* what to write instead; "" where unknown */
    const char *numerics;               /* of a rule about values: whether numerics="ane"
                                           does it, "modelled" or "not modelled"; else "" */
    bool fixable;                       /* the rewrite is mechanical */
} ane_lint_rule;

typedef struct ane_finding {
    const ane_lint_rule *rule;
    ane_severity severity;              /* the rule's, or stronger for a worse case */
    int line, column;                   /* of the statement; 0: built, or the function */
    uint32_t op;                        /* id; 0: the function or the program */
    const char *function, *what;        /* what: op and result, or port */
    const char *detail;                 /* the numbers of this case; may be "" */
} ane_finding;

typedef struct ane_findings ane_findings;

/* target: "m1".."m5", "a14".."a18" (the generation of that M chip), NULL: every chip.
 * route: "inmemory" (NULL) or "coreml". */
ANE_API ane_status ane_lint(const ane_program *p, const char *target, const char *route,
                            ane_findings **out, ane_error *err);
ANE_API size_t ane_findings_count(const ane_findings *f);
ANE_API const ane_finding *ane_findings_at(const ane_findings *f, size_t i);
ANE_API void ane_findings_destroy(ane_findings *f);
ANE_API size_t ane_lint_rule_count(void);
ANE_API const ane_lint_rule *ane_lint_rule_at(size_t i);

/* ------------------------------------------------------------------ Core ML models */

typedef enum ane_feature_kind {
    ANE_FEATURE_NONE = 0,
    ANE_FEATURE_INT64 = 1,
    ANE_FEATURE_DOUBLE = 2,
    ANE_FEATURE_STRING = 3,
    ANE_FEATURE_IMAGE = 4,
    ANE_FEATURE_ARRAY = 5,
    ANE_FEATURE_DICT = 6,
    ANE_FEATURE_SEQUENCE = 7,
    ANE_FEATURE_STATE = 8
} ane_feature_kind;

typedef enum ane_feature_role {
    ANE_ROLE_INPUT, ANE_ROLE_OUTPUT, ANE_ROLE_STATE
} ane_feature_role;

/* Sizes an array or image may take: `n` entries of rank values (enumerated), or one
 * (low, high) pair per dimension (range; high -1: unbounded). */
typedef enum ane_flexibility {
    ANE_FLEX_NONE, ANE_FLEX_ENUMERATED, ANE_FLEX_RANGE
} ane_flexibility;

typedef struct ane_feature {
    const char *name, *doc;
    ane_feature_kind kind;
    bool optional;
    /* ARRAY and STATE: dtype and default shape. IMAGE: shape is {height, width}. */
    ane_dtype dtype;
    int rank;
    int64_t shape[ANE_MAX_RANK];
    int color;                          /* IMAGE: ColorSpace's number */
    bool string_keys;                   /* DICT */
    ane_flexibility flexibility;
    size_t n_flex;                      /* entries (enumerated) or dimensions (range) */
    const int64_t *flex;                /* n*rank values, or n*2 */
    bool has_default;
    double default_value;
} ane_feature;

typedef struct ane_interface {
    const char *function;               /* "main" where the description has no functions */
    const char *predicted_feature, *predicted_probabilities;    /* "" when absent */
    size_t n[3];                        /* by role */
    ane_feature *features[3];
} ane_interface;

/* Everything beside the program; one arena owns it all. */
typedef struct ane_description {
    struct ane_arena *arena;            /* private */
    int specification_version;
    const char *author, *license, *version, *short_description;
    size_t n_user;
    const char *const *user;            /* key, value, key, value ... */
    const char *default_function;       /* "" when absent */
    size_t n_interfaces;
    ane_interface *interfaces;
    const void *raw;                    /* the ModelDescription message as read */
    size_t raw_bytes;
} ane_description;

/* A serialized Model. opts as for a text; blob paths keep their "@model_path/". A model of
 * another kind than ML Program is ANE_ERR_UNSUPPORTED, naming the kind. */
ANE_API ane_status ane_coreml_read(const void *data, size_t n,
                                   const ane_parse_options *opts, ane_program **program,
                                   ane_description **description, ane_error *err);
ANE_API void ane_description_destroy(ane_description *d);

/* The serialized Model of p, freed with ane_free. Constants of ten elements and more whose
 * type a weight file can hold are put into weight_path ("@model_path/weights/weight.bin"):
 * every byte of that file goes through sink, in order. description NULL: made from the
 * functions' own types. */
typedef ane_status ane_coreml_sink(void *arg, const void *bytes, size_t n, ane_error *err);
ANE_API ane_status ane_coreml_write(const ane_program *p,
                                    const ane_description *description,
                                    const char *weight_path, ane_coreml_sink *sink,
                                    void *arg, void **model, size_t *model_bytes,
                                    ane_error *err);

/* ------------------------------------------------------------------ kernels */

typedef struct ane_kernel ane_kernel;
typedef struct ane_request ane_request;
typedef struct ane_pipeline ane_pipeline;

typedef struct ane_compile_options {
    size_t size;                        /* sizeof(ane_compile_options) */
    const char *function;               /* NULL: "main", or the only one */
    const char *device;                 /* NULL: "cpu" */
    const char *numerics;               /* NULL: "ieee"; "ane": imitate the engine */
    const char *target;                 /* numerics "ane" of which chip, as in ane_lint */
    const char *precision;              /* NULL: "highest"; "high", "medium" */
    bool prepack;
    const char *lowering;               /* device "ane": "inputs", "packed"; NULL: inputs, and
                                           packed where the compiler refuses those */
    size_t memory_limit;                /* bytes that one run may need in all (the total of
                                           ane_memory_info); binding fails with NOMEM beyond
                                           it, before anything of that size is allocated.
                                           0: ANETORCH_MEMORY_LIMIT, or none. CPU only */
    /* Experiments with device "ane", which ANETORCH_EXPERIMENTS must name. donor is a kernel
     * of the same text with other weights. "patch": loaded from new weight files and donor's
     * intermediate file, never given to the compiler. "reload": donor's own program, loaded
     * again over new weight files; donor does not run any more. Whether the result has the
     * new weights is not known here: compare it. */
    ane_kernel *donor;
    const char *exchange;
} ane_compile_options;

typedef struct ane_port {
    const char *name;                   /* lives as long as the kernel */
    ane_dtype dtype;
    int rank;
    int64_t dims[ANE_MAX_RANK];         /* -1: any */
    int64_t strides[ANE_MAX_RANK];      /* bytes the device wants; row-major on the CPU */
    size_t bytes;                       /* of the device's layout; 0 when a dim is unknown */
    bool state;
} ane_port;

typedef struct ane_run_options {
    size_t size;                        /* sizeof(ane_run_options) */
    volatile int *cancel;               /* non-zero stops the run; may be NULL */
    int (*poll)(void *arg);             /* called by the calling thread, at most every
                                           50 ms; non-zero cancels; may be NULL */
    void *poll_arg;
} ane_run_options;

/* Immutable; may be run from several threads at once. Keeps what it needs of p. */
ANE_API ane_status ane_kernel_compile(const ane_program *p,
                                      const ane_compile_options *opts,
                                      ane_kernel **out, ane_error *err);
ANE_API ane_kernel *ane_kernel_retain(ane_kernel *k);
ANE_API void ane_kernel_release(ane_kernel *k);
ANE_API size_t ane_kernel_input_count(const ane_kernel *k);
ANE_API size_t ane_kernel_output_count(const ane_kernel *k);
ANE_API const ane_port *ane_kernel_input(const ane_kernel *k, size_t i);
ANE_API const ane_port *ane_kernel_output(const ane_kernel *k, size_t i);
ANE_API const char *ane_kernel_device(const ane_kernel *k);
/* "ieee", or "ane" for the engine's arithmetic: the engine's own, or imitated on the CPU. */
ANE_API const char *ane_kernel_numerics(const ane_kernel *k);
/* "inputs", or "packed" into one surface a side. *why (may be NULL): where that was the second
 * choice, what became of the first; else "". */
ANE_API const char *ane_kernel_lowering(const ane_kernel *k, const char **why);
/* Result shapes for these inputs. An output whose shape depends on data has dims -1. */
ANE_API ane_status ane_kernel_infer(ane_kernel *k, const ane_tensor *inputs, size_t n_in,
                                    ane_port *outputs, size_t n_out, ane_error *err);

/* Binds views (their surfaces are retained). One surface may be input and output at the
 * same time when both views are identical; a partial overlap is an error. An output whose
 * shape depends on data is given with surface NULL; each run then makes a fresh one, read
 * with ane_request_output. States are inputs that the run changes. */
ANE_API ane_status ane_request_create(ane_kernel *k, const ane_tensor *inputs, size_t n_in,
                                      const ane_tensor *outputs, size_t n_out,
                                      ane_request **out, ane_error *err);
/* The request on other memory: as if made anew, but nothing is allocated. dtypes, shapes and
 * strides must be those of before, and so must what aliases what; outputs that the run makes
 * stay. INVALID otherwise, UNSUPPORTED where the device cannot, and the request is as it was.
 * Waits for a run in another thread. */
ANE_API ane_status ane_request_rebind(ane_request *r, const ane_tensor *inputs, size_t n_in,
                                      const ane_tensor *outputs, size_t n_out,
                                      ane_error *err);
/* Before its first run: there will be no second one soon, so nothing is kept for it (packed
 * weights, see ane_surface_track). */
ANE_API void ane_request_once(ane_request *r);
ANE_API ane_request *ane_request_retain(ane_request *r);
ANE_API void ane_request_release(ane_request *r);
ANE_API ane_kernel *ane_request_kernel(const ane_request *r);
ANE_API const ane_tensor *ane_request_input(const ane_request *r, size_t i);
ANE_API const ane_tensor *ane_request_output(const ane_request *r, size_t i);
/* Serialised per request; different requests run at once. opts may be NULL. */
ANE_API ane_status ane_request_run(ane_request *r, const ane_run_options *opts,
                                   ane_error *err);

/* What ran: one entry per step of the plan. Strings live as long as the request. */
typedef struct ane_step_info {
    const char *op;                     /* "matmul+add+relu" */
    const char *name;                   /* the value it makes */
    const char *kernel;                 /* "f32_12x32__avx512", "reference", ... */
    const char *isa;                    /* table it is from; "": plain C */
    const char *packed;                 /* "constant", "kept": an operand that is packed once, or
                                           once per write; "": each run packs what it needs */
    const char *const *values;          /* what its ops make, in program order: the fused ones
                                           too, which exist in no memory */
    size_t n_values;
    double flops, bytes;                /* estimated work; operand bytes read + written */
    double begin, seconds;              /* in the last profiled run; 0, 0: none */
} ane_step_info;

/* One thread's part of a step, in the last profiled run. */
typedef struct ane_thread_info {
    int thread;                         /* 0: the one that called */
    size_t step;
    double begin, seconds;              /* from the run's begin */
} ane_thread_info;

typedef struct ane_memory_info {
    size_t inputs, outputs, constants;
    size_t packed;                      /* constants once more, as products want them */
    size_t kept;                        /* bound weights of products of few rows once more, for as
                                           long as nobody writes to them (ane_surface_track) */
    size_t scratch;                     /* the block that a run borrows */
    size_t threads;                     /* blocks that threads fill as they go (panels, tiles,
                                           rows, staged operands) and keep for later runs, on as
                                           many threads as there are now */
    size_t reference;                   /* values that are held as doubles at once by what is
                                           evaluated plainly: as far as shapes tell, or the most
                                           that a run of the kernel had */
    size_t rounding;                    /* what blocks of the library's own take beyond their
                                           content: whole large pages */
    size_t total;                       /* of the above */
    size_t values;                      /* what scratch would be without reuse */
} ane_memory_info;

typedef struct ane_buffer_info {
    const char *name;                   /* a value, or "" for a temporary copy; lives for the
                                           call */
    const char *kind;                   /* "input", "output", "constant", "packed", "kept", "scratch",
                                           "thread" (its blocks: the caller's, a worker's) */
    size_t bytes, offset;               /* offset: in the scratch block */
    size_t first, last;                 /* steps between which a scratch buffer is in use */
} ane_buffer_info;

/* What a run on such inputs needs, with or without a limit. Only dtypes, shapes and strides of
 * the inputs are looked at: their surfaces may be NULL. Outputs are row-major and separate.
 * `each` (may be NULL) gets every buffer. */
ANE_API ane_status ane_kernel_memory(ane_kernel *k, const ane_tensor *inputs, size_t n_in,
                                     ane_memory_info *info,
                                     void (*each)(void *arg, const ane_buffer_info *buffer),
                                     void *arg, ane_error *err);
/* NOMEM when such a run would pass the kernel's limit, with what takes how much; for callers
 * that make the outputs themselves, before they do. */
ANE_API ane_status ane_kernel_check_memory(ane_kernel *k, const ane_tensor *inputs, size_t n_in,
                                           ane_error *err);

/* A run that times every step. */
ANE_API ane_status ane_request_profile(ane_request *r, const ane_run_options *opts,
                                       ane_error *err);
ANE_API size_t ane_request_step_count(const ane_request *r);
ANE_API void ane_request_step(ane_request *r, size_t i, ane_step_info *info);
ANE_API size_t ane_request_thread_count(ane_request *r);
ANE_API void ane_request_thread(ane_request *r, size_t i, ane_thread_info *info);
ANE_API void ane_request_memory(ane_request *r, ane_memory_info *info);

ANE_API ane_status ane_pipeline_create(ane_request *const *requests, size_t n,
                                       ane_pipeline **out, ane_error *err);
ANE_API ane_pipeline *ane_pipeline_retain(ane_pipeline *p);
ANE_API void ane_pipeline_release(ane_pipeline *p);
ANE_API size_t ane_pipeline_count(const ane_pipeline *p);
ANE_API ane_request *ane_pipeline_request(const ane_pipeline *p, size_t i);
ANE_API ane_status ane_pipeline_run(ane_pipeline *p, const ane_run_options *opts,
                                    ane_error *err);

/* ------------------------------------------------------------------ devices, threads */

ANE_API size_t ane_device_count(void);
ANE_API const char *ane_device_name(size_t i);
ANE_API bool ane_device_available(size_t i);
/* Human text: what the device is, or why it is absent. */
ANE_API const char *ane_device_detail(size_t i);

/* Calls of the engine's compiler by this process, and how many it may make: about 119 are
 * believed to be the engine's limit, ANETORCH_COMPILE_BUDGET sets another (0: none). Near the
 * limit one line is logged; beyond it compiling fails. */
ANE_API int ane_compile_count(void);
ANE_API int ane_compile_budget(void);
ANE_API int ane_compile_warn_at(void);      /* the count at which that line comes */

/* Compiled code stays with the system; ours on disk is an index of what was compiled from
 * what. hits were loaded without a compile; stale entries cost one. */
typedef struct ane_cache_info {
    size_t size;                        /* sizeof(ane_cache_info) */
    char folder[1024];                  /* "": no place for it */
    size_t entries, limit, bytes;       /* on disk now */
    uint64_t hits, misses, stale;       /* of this process */
} ane_cache_info;
ANE_API void ane_cache_get_info(ane_cache_info *out);
/* Forgets every entry, so that each program is compiled once more. removed may be NULL. */
ANE_API ane_status ane_cache_clear(size_t *removed, ane_error *err);

/* Asks for the engine's real-time mode, or ends it; *granted is what the system answered.
 * What it does, if anything, is not known. Fails only where there is no engine. */
ANE_API ane_status ane_realtime_begin(bool *granted, ane_error *err);
ANE_API ane_status ane_realtime_end(bool *granted, ane_error *err);

ANE_API int ane_num_threads(void);
ANE_API ane_status ane_set_num_threads(int n, ane_error *err);

/* Kernel tables by instruction set: the name of the i-th (NULL past the end) and its state:
 * "chosen", "available", "not built", "CPU lacks it", "other architecture", ... */
ANE_API const char *ane_isa_name(size_t i, const char **state);
/* ANE_OK, or what is wrong with ANETORCH_ISA (the message lists what exists). Compiling a
 * kernel fails with the same error. */
ANE_API ane_status ane_isa_check(ane_error *err);
/* What of another library runs large products ("accelerate_sgemm"), or NULL: our kernels. */
ANE_API const char *ane_blas_kernel(void);

/* What fractions of peak are measured against, on all threads for about `seconds`: fused
 * multiply-adds in the registers of a table (NULL or "": the chosen one), in FLOP/s; and a copy
 * that reads and writes `bytes` altogether, in bytes/s. */
ANE_API ane_status ane_measure_flops(const char *isa, double seconds, double *rate,
                                     ane_error *err);
ANE_API ane_status ane_measure_copy(size_t bytes, double seconds, double *rate,
                                    ane_error *err);

/* ------------------------------------------------------------------ conversion, layers */

/* Round to nearest even; |x| >= 65520 becomes inf; subnormals and NaN kept; any
 * alignment; n elements. Threaded above a size. */
ANE_API void ane_f32_to_f16(uint16_t *dst, const float *src, size_t n);
ANE_API void ane_f16_to_f32(float *dst, const uint16_t *src, size_t n);
ANE_API void ane_f32_to_bf16(uint16_t *dst, const float *src, size_t n);
ANE_API void ane_bf16_to_f32(float *dst, const uint16_t *src, size_t n);

/* Surface I/O in the engine's layout [1, C, 1, S]: t is a contiguous fp16 tensor seen as flat
 * elements, (c, s) at c*S + s; host arrays are fp32 [C, S]; channel offsets count channels of
 * S elements. Everything is checked against t; the surface is locked meanwhile.
 *
 * write/read convert `channels` channels from `channel` on. copy moves fp16 bits between two
 * tensors (or inside one, overlap allowed). write_dyn packs a dynamic matmul's input: row d
 * of pitch S+OC is act[d, :] then w[d, :], act [IC, S], w [IC, OC]. read_dyn reads its
 * result [OC, S]. */
ANE_API ane_status ane_io_write(const ane_tensor *t, size_t channel, const float *x,
                                size_t channels, size_t s, ane_error *err);
ANE_API ane_status ane_io_read(const ane_tensor *t, size_t channel, float *out,
                               size_t channels, size_t s, ane_error *err);
ANE_API ane_status ane_io_copy(const ane_tensor *dst, size_t dst_channel,
                               const ane_tensor *src, size_t src_channel, size_t channels,
                               size_t s, ane_error *err);
ANE_API ane_status ane_io_write_dyn(const ane_tensor *t, const float *act, size_t ic, size_t s,
                                    const float *w, size_t oc, ane_error *err);
ANE_API ane_status ane_io_read_dyn(const ane_tensor *t, float *out, size_t oc, size_t s,
                                   ane_error *err);

/* Grouped-query attention, f32 [heads*head_dim, seq]. Query head h uses KV head
 * h / (heads/kv_heads). tile copies, reduce sums (its adjoint). out must not overlap in. */
ANE_API ane_status ane_gqa_tile(float *out, const float *in, size_t heads, size_t kv_heads,
                                size_t head_dim, size_t seq, ane_error *err);
ANE_API ane_status ane_gqa_reduce(float *out, const float *in, size_t heads,
                                  size_t kv_heads, size_t head_dim, size_t seq,
                                  ane_error *err);

/* ------------------------------------------------------------------ weight files */

/* safetensors, a raw file with a JSON manifest, an index of safetensors shards, or GGUF:
 * mapped read-only, every entry checked against the file when it is opened. */
typedef struct ane_weight_file ane_weight_file;

typedef struct ane_weight_entry {
    const char *name, *type;            /* type as the file calls it; live with the file */
    ane_dtype dtype;                    /* of the tensor; ANE_DTYPE_COUNT: not supported */
    int rank;
    int64_t shape[ANE_MAX_RANK];
    size_t file, offset, bytes;         /* which mapped file, and where in it */
    int bits;                           /* of the values packed in a manifest's U32, else 0 */
} ane_weight_entry;

/* manifest: path of the JSON manifest of a raw file, or NULL to go by the contents. */
ANE_API ane_status ane_weight_open(const char *path, const char *manifest,
                                   ane_weight_file **out, ane_error *err);
ANE_API ane_weight_file *ane_weight_retain(ane_weight_file *f);
ANE_API void ane_weight_release(ane_weight_file *f);
ANE_API const char *ane_weight_path(const ane_weight_file *f);
ANE_API const char *ane_weight_format(const ane_weight_file *f);
ANE_API size_t ane_weight_count(const ane_weight_file *f);
ANE_API bool ane_weight_find(const ane_weight_file *f, const char *name, size_t *index);
ANE_API void ane_weight_info(const ane_weight_file *f, size_t i, ane_weight_entry *out);
/* False past the last pair. */
ANE_API bool ane_weight_metadata(const ane_weight_file *f, size_t i, const char **key,
                                 const char **value);
ANE_API size_t ane_weight_file_count(const ane_weight_file *f);         /* mapped files */
ANE_API const char *ane_weight_file_path(const ane_weight_file *f, size_t file);
ANE_API size_t ane_weight_file_bytes(const ane_weight_file *f, size_t file);
/* The entry's file still has the bytes that were mapped: not cut, written or replaced. */
ANE_API ane_status ane_weight_check(const ane_weight_file *f, size_t i, ane_error *err);
/* A view without a copy; quantized (GGUF) and misaligned entries are copied. The caller
 * owns one reference of out->surface, which keeps the mapping. */
ANE_API ane_status ane_weight_get(const ane_weight_file *f, size_t i, ane_tensor *out,
                                  ane_error *err);
/* One read-only surface over a whole mapped file, rounded up to 16 KiB of readable bytes;
 * entry i is at its offset in it. */
ANE_API ane_status ane_weight_surface(const ane_weight_file *f, size_t file,
                                      ane_surface **out, ane_error *err);
/* Opt-in SIGBUS handler: where a mapped file was cut, code that is not ours reads zeros,
 * and the next call of ours raises. Off by default; process-wide. */
ANE_API ane_status ane_weight_guard(bool on, ane_error *err);

/* Writing safetensors: streaming, atomic. Entries are laid out by alignment, then name;
 * the payload starts at a multiple of 16 KiB; equal contents are equal bytes. */
typedef struct ane_weight_writer ane_weight_writer;

typedef struct ane_weight_spec {
    const char *name;
    ane_dtype dtype;
    int rank;
    int64_t shape[ANE_MAX_RANK];
} ane_weight_spec;

/* metadata: n_metadata pairs of key and value. Nothing is visible at path before commit. */
ANE_API ane_status ane_weight_writer_create(const char *path, const ane_weight_spec *specs,
                                            size_t n, const char *const (*metadata)[2],
                                            size_t n_metadata, ane_weight_writer **out,
                                            ane_error *err);
/* Appends to the bytes of entry i (as in specs), in any order of entries. */
ANE_API ane_status ane_weight_writer_append(ane_weight_writer *w, size_t i,
                                            const void *data, size_t bytes, ane_error *err);
/* fsync, rename over path, fsync the folder. Fails when an entry is not complete. */
ANE_API ane_status ane_weight_writer_commit(ane_weight_writer *w, ane_error *err);
/* Removes the temporary file unless committed; NULL is fine. */
ANE_API void ane_weight_writer_destroy(ane_weight_writer *w);

/* ------------------------------------------------------------------ weight blobs */

/* One-record weight files (128-byte header, then the payload; the text names them with
 * offset 64). *out is malloc'd, free with ane_free. Payloads above 2^32-1 bytes fail.
 * transpose: payload element [j*rows + i] = src[i*cols + j]. */
ANE_API ane_status ane_blob_build_f32(const float *src, size_t rows, size_t cols,
                                      bool transpose, uint8_t **out, size_t *n,
                                      ane_error *err);
ANE_API ane_status ane_blob_build_f16(const uint16_t *src, size_t count, uint8_t **out,
                                      size_t *n, ane_error *err);
/* bare: the C bridge's 64-byte header instead (no file header). */
ANE_API ane_status ane_blob_build_i8(const int8_t *src, size_t rows, size_t cols, bool bare,
                                     uint8_t **out, size_t *n, ane_error *err);
/* One scale for the whole tensor, max|w|/127 (0 or not finite: 1); half away from zero,
 * clamped to [-128, 127], NaN to 0. Gives the scale; w ~ q * scale. */
ANE_API float ane_quantize_i8(int8_t *dst, const float *src, size_t count);

/* ------------------------------------------------------------------ optimizer */

typedef struct ane_range { size_t begin, end; } ane_range;      /* elements, [begin, end) */

typedef struct ane_adamw_options {
    size_t size;                        /* sizeof(ane_adamw_options) */
    double lr, beta1, beta2, eps, weight_decay;
    double scale;                       /* gradients are multiplied by it first: clipping,
                                           1/accumulation, 1/loss scale in one factor */
    int64_t step;                       /* updates so far, this one included: from 1 */
    const ane_range *decay;             /* where weight decay applies, ascending, disjoint */
    size_t n_decay;                     /* decay NULL: everywhere; n_decay 0: nowhere */
} ane_adamw_options;

/* p -= lr (m'/(sqrt(v')+eps) + weight_decay p), bias-corrected, over n fp32 elements.
 * staged (may be NULL) gets the new parameters as f16, bf16 or f32 in the same pass. The
 * blocks must not overlap. Threaded; the bits do not depend on threads or CPU. */
ANE_API ane_status ane_adamw_step(float *params, const float *grads, float *m, float *v,
                                  void *staged, ane_dtype staged_dtype, size_t n,
                                  const ane_adamw_options *opts, ane_error *err);
/* |scale| times the L2 norm over all blocks, summed in double in a fixed order. *finite is
 * false when any element is inf or NaN. */
ANE_API void ane_grad_norm(const float *const *blocks, const size_t *counts, size_t n,
                           double scale, double *norm, bool *finite);
/* limit/norm when norm > limit > 0, else 1. */
ANE_API double ane_clip_factor(double norm, double limit);
/* dst[i] = src[i] as f16, bf16 (round to nearest even) or f32. No overlap. Threaded. */
ANE_API ane_status ane_stage(void *dst, ane_dtype dtype, const float *src, size_t n,
                             ane_error *err);

#ifdef __cplusplus
}
#endif
#endif
