/* The loops for any CPU. */
#include "loops.h"

ANE_TRAIN_TABLE(scalar);
