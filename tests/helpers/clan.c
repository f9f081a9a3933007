// clan: eight processes with as much to restore as can be: two sessions, groups, threads, a zombie, a stopped child, a pipe with something in
// it, shared memory, a file without a name, a lock on that, a memfd with a seal, a timer, a pending signal. Each counts in the shared memory. On the file `go` the first sees whether
// all do, ends them and exits with 7.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define COUNTERS 9
static volatile unsigned long *count;
static void *counting(void *i) {
    for (;;) {
        struct timespec t = {0, 2000000};
        nanosleep(&t, NULL);
        count[8 * (long)i]++;
    }
    return NULL;
}
static pid_t child(long i, void (*first)(void)) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    if (first) first();
    counting((void *)i);
    return 0;
}
static void threads(void) {
    pthread_t t;
    if (pthread_create(&t, NULL, counting, (void *)7) || pthread_create(&t, NULL, counting, (void *)8)) _exit(3);
}
static void timer(void) {
    struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct itimerspec t = {{1000, 0}, {1000, 0}};
    timer_t id;
    sigset_t s;
    sigemptyset(&s); sigaddset(&s, SIGUSR2); sigprocmask(SIG_BLOCK, &s, NULL);
    if (timer_create(CLOCK_MONOTONIC, &e, &id) || timer_settime(id, 0, &t, NULL) || raise(SIGUSR2)) _exit(3);
}
static void memory(void) {
    long len = 1 << 20;
    char *m = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED) _exit(3);
    for (long i = 0; i < len; i++) m[i] = i * 7;
    // Much room, and nothing in it.
    if (mmap(NULL, 1L << 30, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED) _exit(3);
}
static void session(void) {
    if (setsid() < 0 || child(2, threads) < 0 || child(3, timer) < 0) _exit(3);
}
static void group(void) { if (setpgid(0, 0)) _exit(3); }
static int all_count(void) { // and so does the stopped one: it is stopped again
    unsigned long before[COUNTERS];
    for (int i = 0; i < COUNTERS; i++) before[i] = count[8 * i];
    for (int turn = 0; turn < 500; turn++) {
        struct timespec t = {0, 10000000};
        int on = 0;
        nanosleep(&t, NULL);
        count[0]++;
        for (int i = 0; i < COUNTERS; i++) on += count[8 * i] > before[i] || i == 5;
        if (on == COUNTERS) return 1;
    }
    return 0;
}
int main(void) {
    char said[6] = "";
    int ends[2], status, fd = open("nameless", O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || unlink("nameless") || write(fd, "nothing", 7) != 7 || ftruncate(fd, 1 << 20)) return 2;
    int sealed = memfd_create("clan", MFD_ALLOW_SEALING);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1, .l_len = 2};
    if (sealed < 0 || write(sealed, "sealed", 6) != 6 || fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK) || fcntl(fd, F_SETLK, &lock)) return 2;
    if (pipe(ends) || write(ends[1], "later", 5) != 5) return 2;
    count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (count == MAP_FAILED) return 2;
    pid_t zombie = fork();
    if (zombie == 0) _exit(9);
    pid_t old = child(1, session), own = child(4, group), halted = child(5, NULL), big = child(6, memory);
    siginfo_t info;
    if (waitid(P_PID, zombie, &info, WEXITED | WNOWAIT) || kill(halted, SIGSTOP)) return 2;
    if (waitid(P_PID, halted, &info, WSTOPPED)) return 2;
    if (!all_count() || write(1, "ready 1\n", 8) != 8) return 2;
    struct timespec t = {0, 3000000};
    while (access("go", F_OK) != 0) { nanosleep(&t, NULL); count[0]++; }
    if (!all_count() || read(ends[0], said, 5) != 5 || strcmp(said, "later")) return 8;
    if (lseek(fd, 0, SEEK_SET) != 0 || read(fd, said, 5) != 5 || strcmp(said, "nothi")) return 8;
    if (pread(sealed, said, 5, 1) != 5 || strcmp(said, "ealed") || fcntl(sealed, F_GET_SEALS) != F_SEAL_SHRINK) return 8;
    if (waitpid(zombie, &status, 0) != zombie || status != 9 << 8) return 8;
    kill(-old, SIGKILL); kill(own, SIGKILL); kill(halted, SIGKILL); kill(big, SIGKILL);
    for (int i = 0; i < 4; i++) if (wait(&status) < 0 || !WIFSIGNALED(status)) return 8;
    return 7;
}
