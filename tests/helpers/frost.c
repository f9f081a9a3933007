// frost: a tree to be frozen. Its root counts in the shared file `count` and in a second thread; its children
//   sleep an hour without asking what remains, poll an hour, wait for SIGUSR1 (then they make the file `usr1`),
//   and are stopped by SIGSTOP (then, continued, make the file `cont`).
// On the file `go` the root ends them and exits with 7.
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static volatile uint64_t *count;
static void make(const char *name) { close(open(name, O_WRONLY | O_CREAT, 0600)); }
static void usr1(int s) { (void)s; make("usr1"); }
static void child(int kind) {
    struct timespec t = {3600, 0};
    if (kind == 0) _exit(syscall(SYS_nanosleep, &t, NULL) ? 3 : 4);
    if (kind == 1) _exit(poll(NULL, 0, 3600000) ? 5 : 6);
    if (kind == 2) for (;;) pause();
    raise(SIGSTOP);
    make("cont");
    for (;;) pause();
}
static void *spin(void *arg) { for (;;) count[1]++; return arg; }
int main(void) {
    struct sigaction a = {.sa_handler = usr1};
    pid_t pids[4];
    pthread_t thread;
    int fd = open("count", O_RDWR | O_CREAT, 0644), status;
    if (fd < 0 || ftruncate(fd, 4096) != 0 || sigaction(SIGUSR1, &a, NULL)) return 2;
    count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (count == MAP_FAILED) return 2;
    for (int i = 0; i < 4; i++) if ((pids[i] = fork()) == 0) child(i);
    if (waitpid(pids[3], &status, WUNTRACED) != pids[3] || !WIFSTOPPED(status)) return 2;
    if (pthread_create(&thread, NULL, spin, NULL) || write(1, "ready 1\n", 8) != 8) return 2;
    while (++count[0] & 0xffff || access("go", F_OK) != 0);
    for (int i = 0; i < 4; i++) kill(pids[i], SIGKILL);
    for (int i = 0; i < 4; i++) if (waitpid(pids[i], &status, 0) != pids[i]) return 3;
    return 7;
}
