/* Error reporting inside the library. Only status.c formats messages. */
#ifndef ANE_BASE_STATUS_H
#define ANE_BASE_STATUS_H

#include "../ane.h"

#if defined(__GNUC__)
#define ANE_PRINTF(a, b) __attribute__((format(printf, a, b)))
#else
#define ANE_PRINTF(a, b)
#endif

/* Fills *err (NULL is fine) and returns status, so `return ane_fail(...)` works. */
ane_status ane_fail(ane_error *err, ane_status status, const char *fmt, ...)
    ANE_PRINTF(3, 4);
/* The same with a position in a text. */
ane_status ane_fail_at(ane_error *err, ane_status status, const char *file, int line,
                       int column, const char *fmt, ...) ANE_PRINTF(6, 7);
/* ANE_ERR_OS with errno's text appended and code = errnum. */
ane_status ane_fail_os(ane_error *err, int errnum, const char *fmt, ...) ANE_PRINTF(3, 4);
/* Prefixes the message already in *err; for callers that know the place. */
void ane_error_prefix(ane_error *err, const char *fmt, ...) ANE_PRINTF(2, 3);
void ane_error_clear(ane_error *err);

void ane__log(const char *fmt, ...) ANE_PRINTF(1, 2);

_Noreturn void ane__abort(const char *file, int line, const char *what);
/* For states that cannot happen; kept in release builds. */
#define ANE_ASSERT(cond) ((cond) ? (void)0 : ane__abort(__FILE__, __LINE__, #cond))

#endif
