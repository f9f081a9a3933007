// Timers of the CPU time of this process and of another thread, as clock_getcpuclockid(3) and pthread_getcpuclockid(3)
// give them. When there is a file `go`: exit 7 if both still are of who they were of.
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t told[2];
static volatile int go;

static void on_time(int signal) { told[signal == SIGUSR2] = 1; }

static void *other(void *arg) {
    while (!go) usleep(1000);
    while (!told[1]) {}
    return arg;
}

static timer_t made(clockid_t clock, int signal) {
    struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signal};
    struct itimerspec when = {{0, 0}, {1, 0}};
    timer_t timer;
    if (timer_create(clock, &e, &timer) || timer_settime(timer, 0, &when, NULL)) _exit(20);
    return timer;
}

int main(void) {
    clockid_t process, thread;
    pthread_t t;
    signal(SIGUSR1, on_time);
    signal(SIGUSR2, on_time);
    if (pthread_create(&t, NULL, other, NULL)) return 21;
    if (clock_getcpuclockid(getpid(), &process) || pthread_getcpuclockid(t, &thread)) return 22;
    made(process, SIGUSR1);
    timer_t timer = made(thread, SIGUSR2);
    write(1, "ready 1\n", 8);
    while (access("go", F_OK)) usleep(1000);
    // This thread's time is not the other's.
    for (clock_t begin = clock(); clock() < begin + CLOCKS_PER_SEC / 5;) {}
    struct itimerspec left;
    if (timer_gettime(timer, &left) || left.it_value.tv_sec * 1000 + left.it_value.tv_nsec / 1000000 < 850) return 23;
    struct itimerspec soon = {{0, 0}, {0, 50000000}};
    if (timer_settime(timer, 0, &soon, NULL)) return 24;
    go = 1;
    pthread_join(t, NULL);
    while (!told[0]) {}
    return 7;
}
