/* Between the two halves of the reader: package.c (names, operations, functions) and
 * values.c (types, constants). */
#ifndef ANE_COREML_READER_H
#define ANE_COREML_READER_H

#include "coreml.h"

#include "../ir/blobfile.h"

typedef struct ane_coreml_reader {
    ane_program *program;
    ane_function *function;
    ane_arena *scratch;         /* dies with the reader */
    ane_weight_files *files;
    struct scope_entry *entries;    /* names; package.c */
    int32_t n_entries, cap_entries;
    int32_t mark;               /* where the entries of the block being read begin */
    int32_t *buckets;
    uint32_t n_buckets;         /* power of two */
    int type_depth;
    uint32_t renamed;           /* grows with each name that another block has taken */
} ane_coreml_reader;

ane_status ane__coreml_nomem(ane_wire *w);
/* A ValueType, and a Value of it; NULL with w's status set. */
const ane_type *ane__coreml_type(ane_wire *parent, const ane_wire_field *field,
                                 ane_coreml_reader *r);
const ane_const *ane__coreml_value(ane_wire *parent, const ane_wire_field *field,
                                   ane_coreml_reader *r);

#endif
