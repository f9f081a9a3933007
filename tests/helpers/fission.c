// fission MOST FORKS: every process forks again and again, and so do its children, until there are MOST; from then on
// some end and others fork, until there have been FORKS. The words of the file `count`: processes, forks, MOST, steps.
// On the file `go` all end, the first one, which adopts them, last, with 7; and after ten minutes, should nobody be left to say so.
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
enum { ALIVE, FORKS, MOST, STEPS };
static volatile long *count;
static time_t begun;
static long add(int at, long n) { return __atomic_add_fetch(&count[at], n, __ATOMIC_SEQ_CST); }
static int live(long forks, int first) {
    unsigned seed = getpid() * 2654435761u;
    for (;;) {
        seed = seed * 1103515245 + 12345;
        nanosleep(&(struct timespec){0, 20000000 + seed % 40000000}, NULL);
        add(STEPS, 1);
        if (access("go", F_OK) == 0 || time(NULL) - begun > 600) {
            if (!first) { add(ALIVE, -1); _exit(0); }
            if (count[ALIVE] == 1) return 7;
            continue;
        }
        if (count[FORKS] >= forks) continue;
        if (add(ALIVE, 1) > count[MOST]) {
            add(ALIVE, -1);
            if (!first && seed / 65536 % 8 == 0) { add(ALIVE, -1); _exit(0); }
            continue;
        }
        pid_t pid = fork();
        if (pid < 0) add(ALIVE, -1);
        if (pid > 0) add(FORKS, 1);
        if (pid == 0) { first = 0; seed = getpid() * 2654435761u; }
    }
}
int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int f = open("count", O_RDWR | O_CREAT, 0644);
    if (f < 0 || ftruncate(f, 4096) != 0) return 2;
    count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
    begun = time(NULL);
    count[ALIVE] = 1;
    count[MOST] = atol(argv[1]);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    signal(SIGCHLD, SIG_IGN); // nobody stays a zombie
    if (write(1, "ready 1\n", 8) != 8) return 2;
    return live(atol(argv[2]), 1);
}
