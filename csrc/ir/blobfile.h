/* The weight files of one program while it is read: opens each path once, finds records,
 * makes constants that view the mapping. Serves the text parser and the package reader. */
#ifndef ANE_IR_BLOBFILE_H
#define ANE_IR_BLOBFILE_H

#include "ir.h"

typedef struct ane_weight_files ane_weight_files;

/* opts (borrowed until destroy; NULL: no files) says how paths are resolved: its open
 * callback first, then weights_dir in place of "@model_path". */
ane_status ane_weight_files_create(const ane_parse_options *opts, ane_weight_files **out,
                                   ane_error *err);
void ane_weight_files_destroy(ane_weight_files *f);     /* constants keep their files */

/* The constant of `type` (a static tensor) whose record is at `offset` of `path`. A file
 * that cannot be opened is an error, or a constant without data where opts allows that;
 * deviations from the format become warnings of the program at (line, column). */
ane_status ane_weight_files_const(ane_weight_files *f, ane_program *p, const ane_type *type,
                                  const char *path, uint64_t offset, int line, int column,
                                  const ane_const **out, ane_error *err);

#endif
