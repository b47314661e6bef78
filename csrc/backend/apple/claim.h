/* Who uses an identifier's folder, among all processes of this machine. Two lock files lie
 * beside the folder: FOLDER.use is held shared as long as a process has a model that it
 * compiled there, and FOLDER.work is held alone while somebody writes, compiles, unloads or
 * removes. What the system had compiled already needs no folder, and claims none.
 * The system drops the locks of a process that dies, however it dies. */
#ifndef ANE_APPLE_CLAIM_H
#define ANE_APPLE_CLAIM_H

#include "../../base/status.h"

typedef struct ane_claim {
    int use, work;                      /* descriptors; -1: not held */
    bool waited;                        /* somebody else worked on it when we came */
} ane_claim;
#define ANE_CLAIM_NONE {-1, -1, false}

/* Waits for everybody else's work on this folder to end. */
ane_status ane_claim_work(ane_claim *c, const char *folder, ane_error *err);
/* With the work held: this process has the model from now on. */
ane_status ane_claim_use(ane_claim *c, const char *folder, ane_error *err);
/* With the work held: it no longer has it, or never had. True when nobody else has it. */
bool ane_claim_leave(ane_claim *c, const char *folder);
/* Ends the work; last: nobody uses the folder, so the lock files go as well. */
void ane_claim_done(ane_claim *c, const char *folder, bool last);
/* In a forked child, whose locks are the parent's: closes them and changes nothing. */
void ane_claim_forget(ane_claim *c);

#endif
