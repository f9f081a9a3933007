// nest: a process with a pid namespace below it (process 1, a thread of it, 2, a zombie 3), and one in that (1 and 2).
// On the file `go` all look at their ids, and it exits with 7.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static volatile int *up;
static struct timespec t = {0, 3000000};
static void await(void) { while (access("go", F_OK) != 0) nanosleep(&t, NULL); }
static void ready(void) { __atomic_fetch_add(up, 1, __ATOMIC_SEQ_CST); }
static void *thread(void *arg) { ready(); await(); return arg; }
static int plain(pid_t pid, pid_t parent) {
    ready();
    await();
    return getpid() == pid && getppid() == parent ? 1 : 2;
}
static int is(pid_t pid, int code) { int status; return waitpid(pid, &status, 0) == pid && status == code << 8; }
static int inner(void) {
    pid_t two = fork();
    if (two == 0) _exit(plain(2, 1));
    ready();
    await();
    return getpid() == 1 && getppid() == 0 && two == 2 && is(two, 1) ? 3 : 4;
}
static int outer(void) {
    siginfo_t info;
    pthread_t other;
    pid_t two = fork(), three, four;
    if (two == 0) _exit(plain(2, 1));
    if ((three = fork()) == 0) _exit(9);
    if (waitid(P_PID, three, &info, WEXITED | WNOWAIT)) return 2;
    if ((four = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0)) == 0) _exit(inner());
    if (pthread_create(&other, NULL, thread, NULL)) return 2;
    ready();
    pthread_join(other, NULL);
    return getpid() == 1 && getppid() == 0 && is(two, 1) && is(three, 9) && is(four, 3) ? 5 : 6;
}
int main(void) {
    int status;
    up = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t one = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
    if (one == 0) _exit(outer());
    if (one < 0) return 2;
    while (*up < 5) nanosleep(&t, NULL);
    if (write(1, "ready 1\n", 8) != 8) return 2;
    await();
    return wait(&status) > 0 && status == 5 << 8 ? 7 : 8; // it may have another pid now
}
