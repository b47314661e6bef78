#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *ane_status_text(ane_status status) {
    switch (status) {
#define X(name, text) case ANE_STATUS_##name: return text;
        ANE_STATUS_MAP(X)
#undef X
    }
    return "unknown status";
}

const char *ane_version(void) { return ANE_VERSION; }

static void format(ane_error *err, ane_status status, const char *fmt, va_list ap) {
    err->status = status;
    err->line = err->column = 0;
    err->code = 0;
    err->file[0] = 0;
    vsnprintf(err->message, sizeof err->message, fmt, ap);
}

ane_status ane_fail(ane_error *err, ane_status status, const char *fmt, ...) {
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        format(err, status, fmt, ap);
        va_end(ap);
    }
    return status;
}

ane_status ane_fail_at(ane_error *err, ane_status status, const char *file, int line,
                       int column, const char *fmt, ...) {
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        format(err, status, fmt, ap);
        va_end(ap);
        err->line = line;
        err->column = column;
        snprintf(err->file, sizeof err->file, "%s", file ? file : "");
    }
    return status;
}

ane_status ane_fail_os(ane_error *err, int errnum, const char *fmt, ...) {
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        format(err, ANE_ERR_OS, fmt, ap);
        va_end(ap);
        size_t n = strlen(err->message);
        snprintf(err->message + n, sizeof err->message - n, ": %s", strerror(errnum));
        err->code = errnum;
    }
    return ANE_ERR_OS;
}

void ane_error_prefix(ane_error *err, const char *fmt, ...) {
    if (!err) return;
    char head[512], tail[sizeof err->message];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(head, sizeof head, fmt, ap);
    va_end(ap);
    memcpy(tail, err->message, sizeof tail);
    size_t n = strlen(head), m = strlen(tail), room = sizeof err->message - 1;
    if (n + m > room) m = room - n;
    memcpy(err->message, head, n);
    memcpy(err->message + n, tail, m);
    err->message[n + m] = 0;
}

void ane_error_clear(ane_error *err) {
    if (err) memset(err, 0, sizeof *err);
}

static ane_log_fn *log_fn;
static void *log_arg;

void ane_set_log(ane_log_fn *fn, void *arg) {
    log_fn = fn;
    log_arg = arg;
}

void ane__log(const char *fmt, ...) {
    ane_log_fn *fn = log_fn;
    if (!fn) return;
    char line[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    fn(log_arg, line);
}

_Noreturn void ane__abort(const char *file, int line, const char *what) {
    fprintf(stderr, "anetorch: impossible state at %s:%d: %s\n", file, line, what);
    abort();
}
