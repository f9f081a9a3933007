// strict: has children that enter seccomp's strict mode a moment after their birth, and ends with 9 if one of them is
// killed; with 7 when the file `go` is there.
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static void moment(long ms) {
    struct timespec t = {0, ms * 1000000};
    nanosleep(&t, NULL);
}
int main(void) {
    int ends[2], status;
    if (pipe(ends) || write(1, "ready 1\n", 8) != 8) return 2;
    for (long turn = 0; access("go", F_OK) != 0; turn++) {
        pid_t child = fork();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            moment(2 + turn % 9);
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
            char byte;
            syscall(SYS_read, ends[0], &byte, 1);
            syscall(SYS_exit, 4);
        }
        moment(25);
        if (waitpid(child, &status, WNOHANG) == child) return 9;
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
    }
    return 7;
}
