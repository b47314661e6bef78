/* Memory that ends where an unreadable page begins: one element too far is a fault, also by
 * masked instructions and by assembly, which sanitizers do not watch. Test-only, POSIX. */
#ifndef GUARDED_H
#define GUARDED_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)       /* whose malloc watches both ends */
static inline void *guarded(size_t n) { return malloc(n ? n : 1); }
static inline void guarded_free(void *p) { free(p); }
#else
/* n bytes, zero; no more aligned than n is. The page before the first holds the size. */
static inline void *guarded(size_t n) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (n + page - 1) / page * page;
    char *p = mmap(NULL, whole + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
    if (p == MAP_FAILED || mprotect(p + page + whole, page, PROT_NONE)) abort();
    *(size_t *)(void *)p = whole + 2 * page;
    return p + page + whole - n;
}
static inline void guarded_free(void *p) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *first = (char *)p - (uintptr_t)p % page - page;
    munmap(first, *(size_t *)(void *)first);
}
#endif

#endif
