/* Core ML specifications (protobuf) to and from the program graph, and the interface a
 * model declares around it. Field numbers are those of the published Model.proto,
 * MIL.proto and FeatureTypes.proto. Reading a package's files and folders is the binding's
 * business; these functions see bytes. The public structs and calls are in ane.h. */
#ifndef ANE_COREML_H
#define ANE_COREML_H

#include "../ir/ir.h"
#include "wire.h"

/* interface.c, for package.c. */
ane_status ane_coreml_read_description(ane_wire *w, ane_description *d);
const char *ane_coreml_model_kind(uint32_t field);      /* NULL: not a model kind */

#endif
