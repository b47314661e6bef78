/* Weight files of MIL programs: MILBlob storage v2 (`BLOBFILE(path, offset)`), and the
 * small files of the ANE projects, which are the same format or nearly so.
 *
 * A file is a 64-byte header and records; a record is a 64-byte descriptor and its data,
 * both at multiples of 64. `offset` in a text names the descriptor, never the data.
 * All fields are little-endian; element i of a b-bit type occupies bits i*b.. of the byte
 * stream, least significant first. */
#ifndef ANE_WEIGHTS_BLOB_H
#define ANE_WEIGHTS_BLOB_H

#include "../base/status.h"

#define ANE_BLOB_ALIGN 64u
#define ANE_BLOB_MARKER 0xDEADBEEFu

/* Departures from the format that files in the wild have and the reader accepts; lint and
 * warnings say them in words. */
#define ANE_BLOB_DEVIATION_MAP(X)                                                          \
    X(COUNT, 1, "the header says there are no records")                                    \
    X(UNALIGNED, 2, "the record is not at a multiple of 64")                               \
    X(FIELDS, 4, "size and data offset are not set; the data is taken to follow the "     \
                 "record, with the size that the declared type needs")                     \
    X(CODE, 8, "int8 data is marked as fp16; the type in the text is used")                \
    X(BARE, 16, "there is no file header; the record is at offset 0")

typedef enum ane_blob_deviation {
#define X(name, bit, text) ANE_BLOB_##name = bit,
    ANE_BLOB_DEVIATION_MAP(X)
#undef X
} ane_blob_deviation;

/* Options of the reader. */
#define ANE_BLOB_ALLOW_BARE 1u  /* accept offset 0 in a file that starts with a record */

typedef struct ane_blob {
    size_t offset;              /* of the data, from the start of the file */
    size_t bytes;               /* of the data: ceil(count * bits / 8) */
    unsigned deviations;        /* ane_blob_deviation bits */
} ane_blob;

/* Type code of a record; 0 for the types that are never in blobs. */
unsigned ane_blob_code(ane_dtype dtype);
/* Bytes of `count` packed elements; false on overflow or for strings. */
bool ane_blob_bytes(ane_dtype dtype, uint64_t count, size_t *out);

/* Finds the data of the record at `offset` for a constant of `count` elements. Everything
 * in the file is checked against file_bytes; nothing outside is read. */
ane_status ane_blob_find(const void *file, size_t file_bytes, uint64_t offset,
                         ane_dtype dtype, uint64_t count, unsigned flags, ane_blob *out,
                         ane_error *err);
/* The same over a surface that holds the whole file (a mapping). */
static inline ane_status ane_blob_view(const ane_surface *file, uint64_t offset,
                                       ane_dtype dtype, uint64_t count, unsigned flags,
                                       ane_blob *out, ane_error *err) {
    return ane_blob_find(ane_surface_base(file), ane_surface_bytes(file), offset, dtype,
                         count, flags, out, err);
}
/* "a; b" in buf, always terminated. */
void ane_blob_deviations(unsigned deviations, char *buf, size_t n);

/* Writing. layout() gives every record its offset (the number for BLOBFILE) and the
 * file's size; emit() hands the file out in order, in pieces, without a copy of the data. */
typedef struct ane_blob_record {
    ane_dtype dtype;
    uint64_t count;
    const void *data;           /* packed, ane_blob_bytes(dtype, count) bytes */
    uint64_t offset;            /* out */
} ane_blob_record;

typedef ane_status ane_blob_sink(void *arg, const void *bytes, size_t n, ane_error *err);

ane_status ane_blob_layout(ane_blob_record *records, size_t n, size_t *file_bytes,
                           ane_error *err);
ane_status ane_blob_emit(const ane_blob_record *records, size_t n, ane_blob_sink *sink,
                         void *arg, ane_error *err);

#endif
