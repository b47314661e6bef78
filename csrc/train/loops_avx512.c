/* Sixteen lanes. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "../kernels/simd_avx512.h"

#include "loops.h"

ANE_TRAIN_TABLE(avx512);
#endif
