/* The temporary folder that Apple's compiler reads a program from. */
#ifndef ANE_APPLE_FOLDER_H
#define ANE_APPLE_FOLDER_H

#include "../../base/status.h"

/* One weight file of a text, whole. */
typedef struct ane_weight_blob {
    const char *path;                   /* "@model_path/weights/x.bin" */
    const void *data;
    size_t bytes;
} ane_weight_blob;

/* The part of a blob's path below the folder, or NULL where it would leave it. */
const char *ane_folder_relative(const char *path);
/* Writes model.mil and the blobs; existing files are replaced atomically. */
ane_status ane_folder_write(const char *folder, const char *text, size_t n,
                            const ane_weight_blob *blobs, size_t n_blobs, ane_error *err);
/* The one file of the framework's own, where both folders are and `from` has it. */
void ane_folder_copy_network(const char *from, const char *to);
void ane_folder_remove(const char *folder);     /* absence is fine */
/* Out of the way of an unload, which would remove it, and back. show also undoes the hide of
 * a process that died in between. */
void ane_folder_hide(const char *folder);
void ane_folder_show(const char *folder);

#endif
