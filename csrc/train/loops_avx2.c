/* Eight lanes. */
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "../kernels/simd_avx2.h"

#include "loops.h"

ANE_TRAIN_TABLE(avx2);
#endif
