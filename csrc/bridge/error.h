/* The text behind ane_bridge_last_error, of the calling thread. */
#ifndef ANE_BRIDGE_ERROR_H
#define ANE_BRIDGE_ERROR_H

void ane__fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void ane__no_error(void);

#endif
