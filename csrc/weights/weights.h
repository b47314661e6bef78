/* Weight files: hostile bytes to bounds-checked views of one read-only mapping each.
 * ane.h has the public calls; here is what the formats share.
 *
 * Every format's reader fills an ane_weight_file with entries whose [offset, offset+bytes)
 * it has checked against the size of the mapping; nothing is checked again later but the
 * file's own identity (mapping.c). */
#ifndef ANE_WEIGHTS_H
#define ANE_WEIGHTS_H

#include "../base/json.h"
#include "../base/mem.h"
#include "../base/status.h"

/* ---------------------------------------------------------------- mapping.c */

/* One file, mapped read-only; shared by the views that outlive the ane_weight_file. */
typedef struct ane_mapping ane_mapping;

ane_status ane_mapping_open(const char *path, ane_mapping **out, ane_error *err);
ane_mapping *ane_mapping_retain(ane_mapping *m);
void ane_mapping_release(ane_mapping *m);
const unsigned char *ane_mapping_base(const ane_mapping *m);
size_t ane_mapping_bytes(const ane_mapping *m);         /* the file's size when opened */
size_t ane_mapping_rounded(const ane_mapping *m);       /* up to ANE_MAPPING_UNIT, readable */
const char *ane_mapping_path(const ane_mapping *m);
/* The file still has the bytes that were mapped: not cut, rewritten or replaced. what (a
 * tensor's name, or NULL) is put into the message. */
ane_status ane_mapping_check(const ane_mapping *m, const char *what, ane_error *err);
/* A read-only surface over the file's bytes. It retains the mapping, and every
 * ane_surface_check of it does ane_mapping_check. */
ane_status ane_mapping_surface(ane_mapping *m, ane_surface **out, ane_error *err);
/* Both steps: a file as a surface, for whoever needs one (BLOBFILE, token files). */
ane_status ane_mapping_file(const char *path, ane_surface **out, ane_error *err);

#define ANE_MAPPING_UNIT ((size_t)16384)        /* Apple's page: kernels bind whole pages */

/* ---------------------------------------------------------------- file.c */

/* How an entry's bytes are stored. */
typedef enum ane_weight_code {
    ANE_WEIGHT_PLAIN,           /* row-major elements of .dtype */
    ANE_WEIGHT_Q8_0,            /* GGUF: f16 scale, 32 int8 */
    ANE_WEIGHT_Q4_0,            /* GGUF: f16 scale, 32 4-bit values less 8 */
    ANE_WEIGHT_OPAQUE           /* a type this library does not read; .type names it */
} ane_weight_code;

typedef struct ane_weight {
    const char *name;           /* UTF-8 without NUL */
    const char *type;           /* as the file calls it: "F16", "Q8_0" */
    size_t offset, bytes;       /* in its file; bytes 0 when OPAQUE of unknown size */
    unsigned shard;
    unsigned char code, rank;
    unsigned char bits;         /* of the values packed in U32 words, by a manifest, else 0 */
    ane_dtype dtype;            /* of the tensor that one gets; F32 for Q8_0, Q4_0 */
    int64_t shape[ANE_MAX_RANK];
} ane_weight;

typedef struct ane_weight_meta {
    const char *key, *value;    /* UTF-8 */
} ane_weight_meta;

struct ane_weight_file {
    ane_arena *arena;
    const char *format, *path;
    ane_mapping **shards;
    size_t n_shards;
    ane_weight *entries;        /* in file order; growable until finished */
    size_t n, capacity;
    uint32_t *index;            /* of names: hashed, 1 + the entry; 0: free */
    size_t index_mask;
    ane_weight_meta *meta;
    size_t n_meta, cap_meta;
};

/* A fresh entry at the end of the list, zeroed; NULL without memory. */
ane_weight *ane__weight_add(ane_weight_file *f);
bool ane__weight_add_meta(ane_weight_file *f, const char *key, const char *value);
/* Makes the names findable; fails on one that is there twice. */
ane_status ane__weight_index(ane_weight_file *f, ane_error *err);
const ane_weight *ane__weight_find(const ane_weight_file *f, const char *name);
/* The name of the first entry that has bytes in the range; NULL: none. */
const char *ane__weight_at(const ane_weight_file *f, unsigned shard, size_t offset,
                           size_t bytes);
/* mapping.c: a surface over one shard, exact or rounded, whose check names the tensor. It
 * retains the file. */
ane_status ane__weight_wrap(const ane_weight_file *f, unsigned shard, bool rounded,
                            ane_surface **out, ane_error *err);
ane_status ane__weight_no_memory(const char *path, ane_error *err);

/* Each reads the header in f->shards[shard] and adds entries (not yet indexed). The bytes
 * are those of the mapping; base and n are passed so that they can be fuzzed alone. */
ane_status ane__safetensors_read(ane_weight_file *f, const unsigned char *base, size_t n,
                                 const char *path, unsigned shard, ane_error *err);
ane_status ane__manifest_read(ane_weight_file *f, const char *json, size_t n,
                              const char *json_path, size_t file_bytes, ane_error *err);
ane_status ane__gguf_read(ane_weight_file *f, const unsigned char *base, size_t n,
                          const char *path, ane_error *err);

/* model.safetensors.index.json: which shard holds which name. */
typedef struct ane_weight_index {
    const char **files;         /* plain file names, each once */
    size_t n_files, cap_files;
    struct ane_weight_place {
        const char *name;
        unsigned file;
    } *places;
    size_t n_places, cap_places;
} ane_weight_index;
ane_status ane__index_read(ane_arena *arena, const char *json, size_t n, const char *path,
                           ane_weight_index *out, ane_error *err);
void ane__index_free(ane_weight_index *x);

/* Types of safetensors and manifests: bits per element, and our dtype or -1. */
bool ane__weight_type(const ane_json_str *name, const char **canonical, int *dtype,
                      int *bits);
/* A shape from JSON into *w; at most ANE_MAX_RANK dims, product below 2^63 bits. */
bool ane__weight_shape(ane_json *r, ane_weight *w, uint64_t *count);

/* gguf.c: blocks to floats; n elements, a multiple of 32. */
void ane_gguf_dequant(float *dst, const unsigned char *src, size_t n, ane_weight_code code);

#endif
