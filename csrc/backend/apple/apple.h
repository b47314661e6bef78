/* The Neural Engine as a device. */
#ifndef ANE_APPLE_H
#define ANE_APPLE_H

#include "../backend.h"

extern const ane_backend ane_backend_apple;

#endif
