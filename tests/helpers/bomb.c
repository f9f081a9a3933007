// bomb WALKERS MS FORKS: walkers, each of which every MS milliseconds forks and leaves the rest to its child, up to FORKS
// in all (then they walk on without); the first process adopts and reaps. The words of the file `count`: forks, then the
// steps of each walker. On the file `go` all end, the first with 7.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static volatile long *count;
static void nap(long ms) { struct timespec t = {ms / 1000, ms % 1000 * 1000000}; nanosleep(&t, NULL); }
static void walk(int id, long ms, long most) {
    for (;;) {
        nap(ms);
        if (access("go", F_OK) == 0) _exit(0);
        count[1 + id]++;
        if (count[0] >= most) continue;
        pid_t pid = fork();
        if (pid < 0) _exit(9);
        if (pid > 0) _exit(0);
        __atomic_fetch_add(count, 1, __ATOMIC_SEQ_CST);
    }
}
int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int f = open("count", O_RDWR | O_CREAT, 0644), status;
    if (f < 0 || ftruncate(f, 4096) != 0) return 2;
    count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    for (int i = 0; i < atoi(argv[1]); i++) if (fork() == 0) walk(i, atoi(argv[2]), atoi(argv[3]));
    if (write(1, "ready 1\n", 8) != 8) return 2;
    while (waitpid(-1, &status, 0) > 0) if (status != 0) return 3;
    return 7;
}
