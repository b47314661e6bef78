/* The opt-in SIGBUS handler. A read of a mapped page that the file no longer has raises
 * SIGBUS in whatever code reads, which may be NumPy's. With the handler, zeros are mapped
 * from the faulting page to the end of that mapping and the read goes on; the mapping is
 * marked, and the next call of ours that uses it raises.
 *
 * Everything the handler touches is atomic, static, or a system call. Faults outside our
 * mappings go to the handler that was there before. */
#include "mapping.h"

#include "../base/sync.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static ane__guard_slot slots[ANE_GUARD_SLOTS];
static ane_mutex mutex = ANE_MUTEX_INIT;        /* guards claiming a slot, and the two below */
static bool installed;
static struct sigaction before;
static uintptr_t page_mask;

ane__guard_slot *ane__guard_add(const void *base, size_t bytes) {
    ane__guard_slot *found = NULL;
    ane_mutex_lock(&mutex);
    for (size_t i = 0; i < ANE_GUARD_SLOTS && !found; i++)
        if (!atomic_load(&slots[i].base)) found = &slots[i];
    if (found) {
        atomic_store(&found->broken, false);
        atomic_store(&found->end, (uintptr_t)base + bytes);
        atomic_store(&found->base, (uintptr_t)base);
    }
    ane_mutex_unlock(&mutex);
    return found;
}

void ane__guard_remove(ane__guard_slot *slot) {
    if (!slot) return;
    atomic_store(&slot->base, 0);
    atomic_store(&slot->end, 0);
}

static void on_bus(int sig, siginfo_t *info, void *context) {
    int saved = errno;
    uintptr_t at = (uintptr_t)info->si_addr;
    for (size_t i = 0; i < ANE_GUARD_SLOTS; i++) {
        uintptr_t base = atomic_load(&slots[i].base), end = atomic_load(&slots[i].end);
        if (!base || at < base || at >= end) continue;
        uintptr_t from = at & page_mask;
        if (mmap((void *)from, end - from, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                 -1, 0) == MAP_FAILED)
            break;
        atomic_store(&slots[i].broken, true);
        errno = saved;
        return;
    }
    errno = saved;
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(sig, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(sig);
    } else {
        /* Back to what it was: the same read faults again and ends the process. */
        sigaction(SIGBUS, &before, NULL);
    }
}

ane_status ane_weight_guard(bool on, ane_error *err) {
    ane_status st = ANE_OK;
    ane_mutex_lock(&mutex);
    if (on && !installed) {
        struct sigaction a;
        memset(&a, 0, sizeof a);
        a.sa_sigaction = on_bus;
        a.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&a.sa_mask);
        page_mask = ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
        if (sigaction(SIGBUS, &a, &before))
            st = ane_fail_os(err, errno, "[guard] cannot install the SIGBUS handler");
        else installed = true;
    } else if (!on && installed) {
        struct sigaction now;
        /* Somebody may have put a handler over ours; then ours has to stay below it. */
        if (!sigaction(SIGBUS, NULL, &now) && (now.sa_flags & SA_SIGINFO) &&
            now.sa_sigaction == on_bus) {
            sigaction(SIGBUS, &before, NULL);
            installed = false;
        } else {
            st = ane_fail(err, ANE_ERR_BUSY, "[guard] another SIGBUS handler was installed "
                          "after ours; remove that one first");
        }
    }
    ane_mutex_unlock(&mutex);
    return st;
}
