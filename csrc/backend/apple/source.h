/* What the framework gets of a function: its text, its weight files, and hashes of both. */
#ifndef ANE_APPLE_SOURCE_H
#define ANE_APPLE_SOURCE_H

#include "folder.h"

#include "../backend.h"

#define ANE_HASH_TEXT 33                /* 128 bits in hexadecimal */

typedef struct ane_source {
    ane_program *program;               /* a copy, with its constants moved to a file */
    char *text;
    size_t n;
    ane_weight_blob *blobs;             /* bytes: the program's */
    size_t n_blobs, cap;
    char program_hash[ANE_HASH_TEXT];   /* of the text */
    char weights_hash[ANE_HASH_TEXT];   /* of the files' names, lengths and bytes */
} ane_source;

/* Partly filled when it fails; free it in any case. */
ane_status ane_source_make(ane_source *s, const ane_function *f, ane_error *err);
void ane_source_free(ane_source *s);

#endif
