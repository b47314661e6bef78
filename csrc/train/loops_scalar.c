/* The loops for any CPU. */
#include "../kernels/simd_scalar.h"

#include "loops.h"

ANE_TRAIN_TABLE(scalar);
