/* What is likely to go wrong with a legal program on the Neural Engine. Nothing of it is
 * documented by Apple: every rule of rules.def names who saw it, on what, and who
 * contradicts. Lint warns with a reference and never refuses. The public side is in ane.h. */
#ifndef ANE_LINT_H
#define ANE_LINT_H

#include "../ir/ops.h"

typedef enum ane_lint_id {
#define RULE(id, ...) ANE_LINT_##id,
#define LIMIT_RULE(id, ...) ANE_LINT_##id,
#define CLIFF_RULE(id, ...) ANE_LINT_##id,
#define OPERATION_RULE(id, ...) ANE_LINT_##id,
#include "rules.def"
    ANE_LINT_COUNT
} ane_lint_id;

#endif
