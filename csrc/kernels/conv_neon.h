/* The tile of convolutions in 128 bits, for the NEON files: they share its packing. */
#ifndef ANE_CONV_NEON_H
#define ANE_CONV_NEON_H

#define CONV_MR 8
#define CONV_NV 2
#define CONV_NAME "8x8"
#define CONV_CASES                                                                        \
    CONV_CASE(1, 1) CONV_CASE(2, 1) CONV_CASE(3, 1) CONV_CASE(4, 1) CONV_CASE(5, 1)       \
    CONV_CASE(6, 1) CONV_CASE(7, 1) CONV_CASE(8, 1)                                       \
    CONV_CASE(1, 2) CONV_CASE(2, 2) CONV_CASE(3, 2) CONV_CASE(4, 2) CONV_CASE(5, 2)       \
    CONV_CASE(6, 2) CONV_CASE(7, 2) CONV_CASE(8, 2)

#endif
