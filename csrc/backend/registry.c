/* The devices, in order of preference. */
#include "../ane.h"

size_t ane_device_count(void) { return 1; }
const char *ane_device_name(size_t i) { (void)i; return "cpu"; }
bool ane_device_available(size_t i) { (void)i; return true; }
const char *ane_device_detail(size_t i) { (void)i; return "CPU"; }
