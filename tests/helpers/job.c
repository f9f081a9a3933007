// job own|joined: a job of a shell, in a process group of its own or in that of who started it; the file `got` holds a byte for
// each signal it got: h for SIGHUP, c for SIGCONT, p for SIGUSR1, which it is to get when its parent dies. When there is the
// file `go` it ends with 7, or with 8 if its parent-death signal is another.
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
static void on(int s) {
    int fd = open("got", O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (write(fd, s == SIGHUP ? "h" : s == SIGCONT ? "c" : "p", 1) != 1) _exit(3);
    close(fd);
}
int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "own") && setpgid(0, 0)) return 1;
    int signals[] = {SIGHUP, SIGCONT, SIGUSR1}, now = 0;
    for (int i = 0; i < 3; i++) signal(signals[i], on);
    prctl(PR_SET_PDEATHSIG, SIGUSR1);
    if (write(1, "ready 1\n", 8) != 8) return 2;
    struct timespec t = {0, 3000000};
    while (access("go", F_OK) != 0) nanosleep(&t, NULL);
    prctl(PR_GET_PDEATHSIG, &now);
    return now == SIGUSR1 ? 7 : 8;
}
