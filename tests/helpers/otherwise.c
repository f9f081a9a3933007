// otherwise CHANGE COMMAND...: executes the command with something about it that few processes have.
#define _GNU_SOURCE
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
struct attr { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; };
static int slice(void) {
    struct attr a;
    if (syscall(SYS_sched_getattr, 0, &a, sizeof a, 0)) return -1;
    a.runtime = 9000000;
    return syscall(SYS_sched_setattr, 0, &a, 0);
}
static int inheritable(void) {
    struct { uint32_t version; int pid; } h = {0x20080522, 0};
    struct { uint32_t eff, perm, inh; } d[2];
    if (syscall(SYS_capget, &h, d)) return -1;
    d[0].inh |= 1u << CAP_NET_RAW;
    return syscall(SYS_capset, &h, d);
}
static int change(const char *what) {
    struct sched_param fifo = {.sched_priority = 3};
    if (!strcmp(what, "nice")) return setpriority(PRIO_PROCESS, 0, 7);
    if (!strcmp(what, "real-time")) return sched_setscheduler(0, SCHED_FIFO, &fifo);
    if (!strcmp(what, "slice")) return slice();
    if (!strcmp(what, "io")) return syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 7);
    if (!strcmp(what, "slack")) return prctl(PR_SET_TIMERSLACK, 1234567, 0, 0, 0);
    if (!strcmp(what, "memory-errors")) return prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
    if (!strcmp(what, "thp")) return prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    if (!strcmp(what, "personality")) return personality(ADDR_NO_RANDOMIZE | UNAME26) < 0 ? -1 : 0;
    if (!strcmp(what, "securebits")) return prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0);
    if (!strcmp(what, "inheritable")) return inheritable();
    if (!strcmp(what, "ambient")) return inheritable() ? -1 : prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0);
    if (!strcmp(what, "no_new_privs")) return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (!strcmp(what, "bounding")) return prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE, 0, 0, 0);
    return -1;
}
int main(int argc, char **argv) {
    if (argc < 3 || change(argv[1])) { perror(argv[1]); return 126; }
    execv(argv[2], argv + 2);
    perror(argv[2]);
    return 127;
}
