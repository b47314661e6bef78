/* The tables themselves, for select.c and the files that define them. */
#ifndef ANE_TABLES_H
#define ANE_TABLES_H

#include "kernels.h"

#define X(name) extern const ane_kernels ane_kernels__##name;
ANE_TABLE_MAP(X)
#undef X

#endif
