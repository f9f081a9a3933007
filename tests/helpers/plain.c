// plain: what is not seen from outside is the same at the file `go` as it was before: exits with 7, else 8.
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
struct state { int securebits, memory_errors, thp; unsigned char sched[48]; };
static void look(struct state *s) {
    memset(s, 0, sizeof *s);
    s->securebits = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
    s->memory_errors = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
    s->thp = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
    syscall(SYS_sched_getattr, 0, s->sched, sizeof s->sched, 0);
}
int main(void) {
    struct state before, after;
    look(&before);
    if (write(1, "ready 1\n", 8) != 8) return 2;
    struct timespec t = {0, 3000000};
    while (access("go", F_OK) != 0) nanosleep(&t, NULL);
    look(&after);
    return memcmp(&before, &after, sizeof before) ? 8 : 7;
}
